//! Who signs in to the hub: connection strings, shared access keys and SAS tokens; and the proxy on the way.
//!
//! Owns: the syntax of device and service connection strings, device id rules, making and checking SAS tokens;
//! `HTTPS_PROXY` and `NO_PROXY`.
//! Must not know: files, the environment, TLS, clocks (the expiry comes in as an argument).
//! Used by: `config`, `session`, `service`, `emulator`, `cli`.

use std::path::PathBuf;

mod connection_string;
mod proxy;
mod route;
mod sas;

pub use connection_string::{
    CredentialError, DeviceConnectionString, DeviceSecret, HostPort, ServiceConnectionString, ServiceSecret,
    check_device_id, check_module_id,
};
pub use proxy::{Proxy, ProxyError, ProxyLogin, ProxySettings};
pub use route::{Over, Route};
pub use sas::{SasError, SasToken, SharedAccessKey};

/// A device's complete identity: what the session needs to sign in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceIdentity {
    /// The IoT Hub: named in user names and tokens, without the port.
    pub hub: HostPort,
    /// The device.
    pub device_id: String,
    /// An IoT Edge gateway to dial instead of the hub.
    pub gateway: Option<HostPort>,
    /// The proof.
    pub auth: DeviceAuth,
}

impl DeviceIdentity {
    /// The host to dial: the gateway when one is given.
    pub fn dialled(&self) -> &HostPort {
        self.gateway.as_ref().unwrap_or(&self.hub)
    }

    /// The resource that a token must cover: `{hub}/devices/{device}`.
    pub fn resource(&self) -> String {
        format!("{}/devices/{}", self.hub.name, self.device_id)
    }
}

/// What a device speaks with the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Transport {
    /// MQTT 3.1.1: a message can only be completed.
    #[default]
    Mqtt,
    /// AMQP 1.0: a message can be completed, given back and refused.
    Amqp,
}

/// How a device signs in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceAuth {
    /// By tokens made from its key.
    Key(SharedAccessKey),
    /// By a ready-made token, good until it expires.
    Token(SasToken),
    /// By a client certificate; both files are PEM.
    Certificate {
        /// The certificate, followed by its chain where there is one.
        certificate: PathBuf,
        /// The private key.
        private_key: PathBuf,
    },
}

/// The beginning of refused text for an error message, without control characters. Never for a secret; and where one follows
/// by mistake, because the separator before it was lost, it comes after its `=`.
fn excerpt(text: &str, chars: usize) -> String {
    let (shown, cut) = text.split_once('=').map_or((text, ""), |(before, _)| (before, "=…"));
    let shown: String = shown.chars().take(chars).flat_map(char::escape_debug).collect();
    shown + cut
}
