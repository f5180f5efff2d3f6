//! The host names of one hub: its own, and those of its device and its service endpoint.
//!
//! Owns: how the other two follow from the first. Must not know: certificates, tokens, protocols.
//!
//! Source: a hub `{hub}.azure-devices.net` is `{hub}.device.azure-devices.net` for devices and
//! `{hub}.service.azure-devices.net` for back ends, too (Microsoft's page "IoT Hub endpoints", 2026). For other names
//! this emulator does the same: `hub.local.test` is also `hub.device.local.test`, and `localhost` is also
//! `localhost.device`. An address has no other names.

use std::net::IpAddr;

/// The names of one hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubNames {
    own: String,
    /// The names of the device and the service endpoint.
    endpoints: Option<[String; 2]>,
}

impl HubNames {
    /// The names that belong to a hub's own name, or its address.
    pub fn new(own: impl Into<String>) -> Self {
        let own = own.into();
        let (hub, domain) = own.find('.').map_or((own.as_str(), ""), |dot| own.split_at(dot));
        let endpoints = own.parse::<IpAddr>().is_err();
        let endpoints = endpoints.then(|| ["device", "service"].map(|kind| format!("{hub}.{kind}{domain}")));
        Self { own, endpoints }
    }

    /// The hub's own name.
    pub fn own(&self) -> &str {
        &self.own
    }

    /// All names; the first is the hub's own.
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        std::iter::once(&self.own).chain(self.endpoints.iter().flatten()).map(String::as_str)
    }

    /// Whether a client means this hub by `host`.
    pub fn contains(&self, host: &str) -> bool {
        self.iter().any(|name| name.eq_ignore_ascii_case(host))
    }

    /// Whether `host` is the name of the service endpoint, which is for back ends only.
    pub fn is_service(&self, host: &str) -> bool {
        self.endpoints.as_ref().is_some_and(|[_, service]| service.eq_ignore_ascii_case(host))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hub_has_three_names_and_an_address_has_one() {
        for (own, all) in [
            (
                "hub.azure-devices.net",
                &["hub.azure-devices.net", "hub.device.azure-devices.net", "hub.service.azure-devices.net"][..],
            ),
            ("localhost", &["localhost", "localhost.device", "localhost.service"]),
            ("127.0.0.1", &["127.0.0.1"]),
            ("::1", &["::1"]),
        ] {
            assert_eq!(HubNames::new(own).iter().collect::<Vec<_>>(), all);
        }
        let names = HubNames::new("hub.test");
        assert!(
            names.contains("HUB.Device.test") && !names.contains("hub.other.test") && !names.contains("")
        );
        assert!(names.is_service("hub.SERVICE.test") && !names.is_service("hub.test"));
    }
}
