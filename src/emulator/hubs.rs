//! The hubs of one emulator. A client names the one that it means by a host name.
//!
//! Owns: which hub a host name means, and that the clocks of all hubs show the same time. Must not know: protocols,
//! listeners.

use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

use super::clock::{ClockError, ClockSetting};
use super::hub_names::HubNames;
use super::registrar::Registrar;
use crate::credentials::HostPort;

/// Most hubs of one emulator.
pub(super) const MAX_HUBS: usize = 16;

/// The hubs. All clones share them.
#[derive(Clone)]
pub(super) struct Hubs(Arc<SharedHubs>);

struct SharedHubs {
    main: NamedHub,
    others: Vec<NamedHub>,
    /// Held while the clocks are moved, because two moves at a time could leave them at different times.
    clocks: Mutex<()>,
}

/// The names are beside the hub, so that finding a hub does not lock it.
struct NamedHub {
    names: HubNames,
    registrar: Registrar,
}

impl Hubs {
    /// The main hub, which has the name that the emulator was given, and further ones.
    pub(super) fn new(main: Registrar, others: Vec<Registrar>) -> Self {
        let named = |registrar: Registrar| {
            let names = registrar.hub().with(|hub, _| hub.names().clone());
            NamedHub { names, registrar }
        };
        let (main, others) = (named(main), others.into_iter().map(named).collect());
        Self(Arc::new(SharedHubs { main, others, clocks: Mutex::default() }))
    }

    /// The main hub. It also serves clients that name no hub.
    pub(super) fn main(&self) -> &Registrar {
        &self.0.main.registrar
    }

    /// The hub that has this host name. Case does not count.
    pub(super) fn named(&self, host: &str) -> Option<&Registrar> {
        self.all().find(|hub| hub.names.contains(host)).map(|hub| &hub.registrar)
    }

    /// The hub of an address such as `sb://hub.test:5671/iothub-ehub-hub` or `hub.test/devices/pi-01`.
    pub(super) fn of_address(&self, address: &str) -> Option<&Registrar> {
        let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
        let host = rest.split_once('/').map_or(rest, |(host, _)| host);
        HostPort::parse(host).and_then(|host| self.named(&host.name))
    }

    /// All hubs; the main one is the first.
    pub(super) fn iter(&self) -> impl Iterator<Item = &Registrar> {
        self.all().map(|hub| &hub.registrar)
    }

    /// The own names of all hubs, in the same order.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        self.all().map(|hub| hub.names.own())
    }

    /// Moves the clocks of all hubs; see [`super::shared::SharedHub::move_clock`].
    ///
    /// # Errors
    /// [`ClockError::OutOfBounds`]; in this case nothing has changed.
    pub(super) fn move_clock(&self, setting: ClockSetting) -> Result<(), ClockError> {
        let _one_at_a_time = self.0.clocks.lock().unwrap_or_else(PoisonError::into_inner);
        let main = self.main().hub();
        main.move_clock(setting)?;
        // Not the setting itself: a little time has passed since, so that a time of day would be another offset.
        let offset = ClockSetting::Offset(main.clock().1);
        self.0.others.iter().try_for_each(|hub| hub.registrar.hub().move_clock(offset))
    }

    fn all(&self) -> impl Iterator<Item = &NamedHub> {
        std::iter::once(&self.0.main).chain(&self.0.others)
    }
}

/// The name of a further hub as the emulator writes it: an address in its shortest form, and without brackets. `None`
/// if it is neither an address nor a host name, or has a port.
pub(super) fn checked_name(text: &str) -> Option<String> {
    let HostPort { name, port: None } = HostPort::parse(text)? else { return None };
    match name.parse::<IpAddr>() {
        Ok(address) => Some(address.to_canonical().to_string()),
        // It becomes a folder, and stands in the certificate.
        Err(_) => rustls::pki_types::DnsName::try_from(name.as_str()).is_ok().then_some(name),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, SystemTime};

    use crate::emulator::clock::ClockOffset;
    use crate::emulator::hub::Hub;
    use crate::emulator::registry::Registry;
    use crate::emulator::shared::SharedHub;

    /// For tests of protocols, which are in other files.
    impl Hubs {
        /// These hubs, each with a temporary state directory.
        pub(in crate::emulator) fn of(main: &SharedHub, others: &[SharedHub]) -> Self {
            Self::new(Registrar::of(main), others.iter().map(Registrar::of).collect())
        }
    }

    fn hub(name: &str) -> SharedHub {
        SharedHub::new(Hub::new(Registry::new(name, Vec::new()), Duration::ZERO), || SystemTime::UNIX_EPOCH)
    }

    fn name_of(registrar: Option<&Registrar>) -> Option<String> {
        registrar.map(|found| found.hub().with(|hub, _| hub.hostname().to_owned()))
    }

    #[test]
    fn a_host_name_and_an_address_mean_the_hub_that_has_that_name() {
        let hubs = Hubs::of(&hub("a.test"), &[hub("b.test"), hub("127.0.0.2"), hub("::1")]);
        for (host, own) in [
            ("a.test", Some("a.test")),
            ("B.Device.test", Some("b.test")),
            ("127.0.0.2", Some("127.0.0.2")),
            ("c.test", None),
            ("", None),
        ] {
            assert_eq!(name_of(hubs.named(host)).as_deref(), own, "{host}");
        }
        for (address, own) in [
            ("b.test", Some("b.test")),
            ("b.test/devices/d", Some("b.test")),
            ("sb://B.service.test:5671/iothub-ehub-b/", Some("b.test")),
            ("amqps://[::1]:5671/devices/d", Some("::1")),
            ("/devices/d/messages/events", None),
            ("$cbs", None),
            ("amqps://", None),
        ] {
            assert_eq!(name_of(hubs.of_address(address)).as_deref(), own, "{address}");
        }
        assert_eq!(hubs.names().collect::<Vec<_>>(), ["a.test", "b.test", "127.0.0.2", "::1"]);
    }

    #[test]
    fn all_clocks_are_moved_or_none() {
        let hubs = Hubs::of(&hub("a.test"), &[hub("b.test")]);
        let offsets = || hubs.iter().map(|hub| hub.hub().clock().1.as_millis()).collect::<Vec<_>>();
        hubs.move_clock(ClockSetting::advance("1h").expect("a setting")).expect("moved");
        assert_eq!(offsets(), [3_600_000; 2]);
        let before_1970 = ClockSetting::Offset("-1h".parse::<ClockOffset>().expect("an offset"));
        hubs.move_clock(before_1970).expect_err("out of bounds");
        assert_eq!(offsets(), [3_600_000; 2]);
    }

    #[test]
    fn the_name_of_a_hub_is_a_host_name_or_an_address() {
        for (text, name) in [
            ("hub.test", "hub.test"),
            ("127.0.0.2", "127.0.0.2"),
            ("[::1]", "::1"),
            ("0:0:0:0:0:0:0:1", "::1"),
            ("::ffff:127.0.0.3", "127.0.0.3"),
        ] {
            assert_eq!(checked_name(text).as_deref(), Some(name), "{text}");
        }
        for text in ["", ".", "..", "a/b", "hub.test:443", "https://hub.test", "hub test", "a..b", "-a.test"]
        {
            assert_eq!(checked_name(text), None, "{text}");
        }
    }
}
