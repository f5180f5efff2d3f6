//! The hub's Event Hub-compatible endpoint, where back ends read D2C messages: its name, and where it is.
//!
//! Owns: the name, the address, and which resources of tokens mean it. Must not know: who may read, partitions.
//!
//! Source: Microsoft's documents on the built-in endpoint. On the real hub it is in a namespace of Event Hubs with its
//! own host name. The emulator's is at the hub's own name and AMQP port. Choice: the name of the Event Hub is the
//! hub's, up to its first dot, after `iothub-ehub-`. The real one has a number and a hash behind it.

use crate::credentials::HostPort;
use crate::emulator::listener::AMQP_PORT;

/// The path of the endpoint at the hub itself, which redirects from there.
pub(super) const HUB_PATH: &str = "messages/events";

/// Schemes of resources of tokens and of addresses.
const SCHEMES: [&str; 3] = ["sb", "amqps", "https"];

/// The endpoint of one hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventHub {
    /// The name of the Event Hub, `EntityPath` in a connection string.
    pub name: String,
    /// The host name, the hub's own.
    pub hostname: String,
    /// The AMQP port.
    pub port: u16,
}

impl EventHub {
    /// The endpoint of the hub with this name.
    pub(super) fn new(hostname: &str, port: u16) -> Self {
        let label = hostname.split('.').next().unwrap_or_default();
        Self { name: format!("iothub-ehub-{label}"), hostname: hostname.to_owned(), port }
    }

    /// The host, with the port if it is not the standard one.
    pub(super) fn host(&self) -> HostPort {
        HostPort { name: self.hostname.clone(), port: (self.port != AMQP_PORT).then_some(self.port) }
    }

    /// The connection string of a policy with this key. The port is in it if it is not the standard one.
    pub(super) fn connection_string(&self, policy: &str, key: &str) -> String {
        let (host, name) = (self.host(), &self.name);
        format!("Endpoint=sb://{host}/;SharedAccessKeyName={policy};SharedAccessKey={key};EntityPath={name}")
    }

    /// The address of a link to `below`, such as `$management`. Empty means the Event Hub itself.
    pub(super) fn address(&self, below: &str) -> String {
        let host = HostPort { name: self.hostname.clone(), port: Some(self.port) };
        let slash = if below.is_empty() { "" } else { "/" };
        format!("amqps://{host}/{}{slash}{below}", self.name)
    }

    /// Whether this is the name of the Event Hub. Case does not count, because .NET writes small letters.
    pub(super) fn is_named(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// Whether a token for `resource` is for this endpoint or a part of it, or for its whole namespace. Clients of Event
    /// Hubs write a scheme: `sb://HOST/NAME/ConsumerGroups/…`.
    pub(super) fn is_meant(&self, resource: &str) -> bool {
        let (scheme, rest) = match resource.split_once("://") {
            Some((scheme, rest)) => (Some(scheme), rest),
            None => (None, resource),
        };
        if scheme.is_some_and(|scheme| !SCHEMES.iter().any(|own| own.eq_ignore_ascii_case(scheme))) {
            return false;
        }
        let (host, path) = rest.split_once('/').unwrap_or((rest, ""));
        let host = host.split_once(':').map_or(host, |(name, _)| name);
        let path = path.trim_matches('/').to_ascii_lowercase();
        let is_below = |whole: &str| {
            path.strip_prefix(whole).is_some_and(|below| below.is_empty() || below.starts_with('/'))
        };
        let is_namespace = path.is_empty() && scheme.is_some_and(|scheme| scheme.eq_ignore_ascii_case("sb"));
        host.eq_ignore_ascii_case(&self.hostname)
            && (is_namespace || is_below(&self.name.to_ascii_lowercase()) || is_below(HUB_PATH))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_connection_string_and_the_address_say_where_the_endpoint_is() {
        let standard = EventHub::new("hub.local.test", 5671);
        assert_eq!(
            standard.connection_string("service", "a2V5"),
            "Endpoint=sb://hub.local.test/;SharedAccessKeyName=service;SharedAccessKey=a2V5;\
             EntityPath=iothub-ehub-hub"
        );
        assert_eq!(
            standard.address("$management"),
            "amqps://hub.local.test:5671/iothub-ehub-hub/$management"
        );
        let other = EventHub::new("localhost", 15671);
        assert!(other.connection_string("service", "k").starts_with("Endpoint=sb://localhost:15671/;"));
        assert_eq!(other.address(""), "amqps://localhost:15671/iothub-ehub-localhost");
    }

    #[test]
    fn resources_of_event_hubs_clients_mean_the_endpoint_and_others_do_not() {
        let own = EventHub::new("Hub.local.test", 5671);
        for resource in [
            "sb://hub.local.test/iothub-ehub-hub",
            "sb://hub.local.test:5671/IOTHUB-EHUB-HUB/ConsumerGroups/$Default/Partitions/0",
            "amqps://hub.local.test/iothub-ehub-hub/$management/",
            "hub.local.test/messages/events",
            "sb://hub.local.test/",
        ] {
            assert!(own.is_meant(resource), "{resource}");
        }
        for resource in [
            "hub.local.test",
            "amqps://hub.local.test",
            "sb://other.test/iothub-ehub-hub",
            "sb://hub.local.test/iothub-ehub-hub2",
            "hub.local.test/devices/d/messages/events",
            "ftp://hub.local.test/iothub-ehub-hub",
            "",
        ] {
            assert!(!own.is_meant(resource), "{resource}");
        }
    }
}
