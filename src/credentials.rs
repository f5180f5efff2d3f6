//! Who signs in to the hub: connection strings, shared access keys and SAS tokens; and the proxy for the connection.
//!
//! Owns: the syntax of device, module and service connection strings, device id rules, making and checking SAS tokens;
//! the environment of an IoT Edge module; where tokens of Microsoft Entra come from; `HTTPS_PROXY` and `NO_PROXY`.
//! Must not know: files, the environment, TLS, clocks (the expiry is an argument).

use std::path::PathBuf;

mod connection_string;
mod entra;
mod event_hub_string;
mod hub_name;
mod module;
mod proxy;
mod route;
mod sas;

pub use connection_string::{
    CredentialError, DeviceConnectionString, DeviceSecret, HostPort, ServiceConnectionString, ServiceSecret,
    check_device_id, check_module_id,
};
pub use entra::{
    AppProof, AuthMethod, BearerToken, ENTRA_RESOURCE, EndpointError, EntraApp, EntraError, EntraLogin,
    HiddenText, TokenClaims, TokenEndpoint, Variables,
};
pub use event_hub_string::EventHubConnectionString;
pub use hub_name::{HubEndpoint, HubName, check_device_host};
pub use module::{ModuleEnvironment, ModuleError, WorkloadAccess, module_from_environment, module_variable};
pub use proxy::{Proxy, ProxyError, ProxyLogin, ProxySettings};
pub use route::{Over, Route};
pub use sas::{SasError, SasToken, SharedAccessKey, UnsignedToken};

/// The complete identity of a device or a module: everything that the session needs to sign in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceIdentity {
    /// The IoT Hub: its name is in user names and tokens, without the port.
    pub hub: HostPort,
    /// The device.
    pub device_id: String,
    /// The module on the device, if a module signs in and not the device.
    pub module_id: Option<String>,
    /// An IoT Edge gateway to dial instead of the hub.
    pub gateway: Option<HostPort>,
    /// The proof.
    pub auth: DeviceAuth,
}

impl DeviceIdentity {
    /// The host to dial: the gateway, or the hub if there is no gateway.
    pub fn dialled(&self) -> &HostPort {
        self.gateway.as_ref().unwrap_or(&self.hub)
    }

    /// The MQTT client id, and the name in messages: `{device}` or `{device}/{module}`. Source: wire reference 1.2.
    pub fn client_id(&self) -> String {
        match &self.module_id {
            None => self.device_id.clone(),
            Some(module) => format!("{}/{module}", self.device_id),
        }
    }

    /// Where the messages of this identity come from: `{hub}/{client id}`, the same text for all names of one hub. A name
    /// counts without case, and `{hub}.device.{domain}` is `{hub}.{domain}`. Source: Microsoft's page "IoT Hub endpoints",
    /// 2026.
    pub fn origin(&self) -> String {
        let mut hub = self.hub.name.to_ascii_lowercase();
        let rest = hub.find('.').and_then(|dot| Some((dot, hub.get(dot..)?.strip_prefix(".device")?)));
        if let Some((dot, rest)) = rest.filter(|(_, rest)| rest.is_empty() || rest.starts_with('.')) {
            hub = format!("{}{rest}", &hub[..dot]);
        }
        format!("{hub}/{}", self.client_id())
    }

    /// The resource that a token must cover, not escaped: `{hub}/devices/{device}`, and for a module also
    /// `/modules/{module}`. Source: wire reference 4.2 and 6.3.
    pub fn resource(&self) -> String {
        let device = format!("{}/devices/{}", self.hub.name, self.device_id);
        match &self.module_id {
            None => device,
            Some(module) => format!("{device}/modules/{module}"),
        }
    }
}

/// The protocol between a device and the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// MQTT 3.1.1. It can only complete a message.
    #[default]
    Mqtt,
    /// AMQP 1.0. It can complete a message, give it back or refuse it.
    Amqp,
}

/// How a device or a module signs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceAuth {
    /// With tokens made from its key.
    Key(SharedAccessKey),
    /// With a ready-made token, until that expires.
    Token(SasToken),
    /// With a client certificate; both files are PEM.
    Certificate {
        /// The certificate, followed by its chain if it has one.
        certificate: PathBuf,
        /// The private key.
        private_key: PathBuf,
    },
    /// With tokens that the workload API of an IoT Edge device signs.
    Workload(WorkloadAccess),
}

/// The beginning of refused text for an error message, without control characters. Never pass a secret. If a secret
/// follows by mistake, because the separator before it was lost, it stands after its `=`.
fn excerpt(text: &str, chars: usize) -> String {
    let (shown, cut) = text.split_once('=').map_or((text, ""), |(before, _)| (before, "=…"));
    let cut = if shown.chars().nth(chars).is_some() { "…" } else { cut };
    let shown: String = shown.chars().take(chars).flat_map(char::escape_debug).collect();
    shown + cut
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_names_of_a_hub_and_no_other_ones_are_one_origin() {
        let origin = |hub: &str, device_id: &str| {
            let hub = HostPort::parse(hub).expect("a host");
            let auth = DeviceAuth::Certificate { certificate: PathBuf::new(), private_key: PathBuf::new() };
            let device_id = device_id.to_owned();
            DeviceIdentity { hub, device_id, module_id: None, gateway: None, auth }.origin()
        };
        for hub in ["h.azure-devices.net", "H.Azure-Devices.Net:8883", "h.device.azure-devices.net"] {
            assert_eq!(origin(hub, "d"), "h.azure-devices.net/d", "{hub}");
        }
        assert_eq!(origin("localhost.device", "D"), "localhost/D");
        for hub in ["h.devices.test", "h.a.device.test", "device.azure-devices.net", "127.0.0.1", "::1", "h"]
        {
            assert_eq!(origin(hub, "d"), format!("{hub}/d"), "{hub}");
        }
    }
}
