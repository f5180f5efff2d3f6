//! The host names of a hub in Azure: its own, and those of its device and its service endpoint.
//!
//! Owns: the domains of Azure, and which endpoint a name belongs to. Must not know: dialling, tokens.
//!
//! Source: a hub `{hub}.azure-devices.net` is `{hub}.device.azure-devices.net` for devices and
//! `{hub}.service.azure-devices.net` for back ends, too; devices must not use the latter (Microsoft's page "IoT Hub
//! endpoints", 2026). The domains of the other clouds: wire reference 1.1.

use super::{CredentialError, HostPort};

const DOMAINS: [&str; 3] = ["azure-devices.net", "azure-devices.cn", "azure-devices.us"];

/// The endpoint that a name of a hub belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HubEndpoint {
    /// The hub's own name, for devices and back ends.
    Classic,
    /// For devices only.
    Device,
    /// For back ends only.
    Service,
}

/// A name of a hub in Azure.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HubName<'a> {
    /// The hub's name within its domain, as `az` takes it.
    pub hub: &'a str,
    /// Which of its names this is.
    pub endpoint: HubEndpoint,
    domain: &'static str,
}

impl<'a> HubName<'a> {
    /// Reads a host name, without regard to case. `None`: it is not of Azure.
    pub fn of(host: &'a str) -> Option<Self> {
        let (hub, rest) = host.split_once('.')?;
        let endpoint_and_domain = rest.split_once('.');
        let (endpoint, domain) = match endpoint_and_domain {
            Some((kind, domain)) if kind.eq_ignore_ascii_case("device") => (HubEndpoint::Device, domain),
            Some((kind, domain)) if kind.eq_ignore_ascii_case("service") => (HubEndpoint::Service, domain),
            _ => (HubEndpoint::Classic, rest),
        };
        let domain = DOMAINS.into_iter().find(|known| known.eq_ignore_ascii_case(domain))?;
        Some(Self { hub, endpoint, domain })
    }

    /// The hub's own name.
    pub fn classic(&self) -> String {
        format!("{}.{}", self.hub, self.domain)
    }
}

/// Whether a device may use this name of its hub.
///
/// # Errors
/// [`CredentialError::ServiceEndpoint`]; it names the one to use.
pub fn check_device_host(host: &HostPort) -> Result<(), CredentialError> {
    match HubName::of(&host.name).filter(|name| name.endpoint == HubEndpoint::Service) {
        Some(name) => Err(CredentialError::ServiceEndpoint(host.name.clone(), name.classic())),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_tells_its_hub_and_its_endpoint() {
        let read =
            |host: &'static str| HubName::of(host).map(|name| (name.hub, name.endpoint, name.classic()));
        let classic = || "my-hub.azure-devices.net".to_owned();
        for (host, endpoint) in [
            ("my-hub.azure-devices.net", HubEndpoint::Classic),
            ("my-hub.device.azure-devices.net", HubEndpoint::Device),
            ("my-hub.Service.Azure-Devices.NET", HubEndpoint::Service),
        ] {
            assert_eq!(read(host), Some(("my-hub", endpoint, classic())), "{host}");
        }
        assert_eq!(
            read("h.azure-devices.cn").map(|(.., classic)| classic),
            Some("h.azure-devices.cn".into())
        );
        for other in [
            "localhost",
            "h.service",
            "h.x.azure-devices.net",
            "h.azure-devices.net.test",
            "azure-devices.net",
        ] {
            assert_eq!(read(other), None, "{other}");
        }
    }

    #[test]
    fn a_device_must_not_use_the_name_for_back_ends() {
        let check = |host: &str| check_device_host(&HostPort::parse(host).expect("a host"));
        assert_eq!(check("h.device.azure-devices.net"), Ok(()));
        let refused = check("h.service.azure-devices.net:8883").expect_err("refused").to_string();
        assert_eq!(
            refused,
            "h.service.azure-devices.net is the hub's name for back ends, which refuses devices: use \
             h.azure-devices.net"
        );
    }
}
