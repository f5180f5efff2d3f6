//! The identity of the device that `init` writes down.
//!
//! Owns: what an identity is, the names of its files, its lines in the configuration. Must not know: where it comes from,
//! the rest of the configuration, how a file is written.

use std::path::{Path, PathBuf};

use super::duty::shown;
use super::toml::quoted;
use crate::credentials::{
    CredentialError, DeviceConnectionString, DeviceSecret, HostPort, check_device_host, check_device_id,
};

pub(super) const CA_FILE_VARIABLE: &str = "C2D_CA_FILE";

/// The names of files beside the configuration that the systemd unit loads.
pub(super) const STRING_FILE: &str = "device.connection-string";
pub(super) const CERTIFICATE_FILE: &str = "device.cert.pem";
pub(super) const KEY_FILE: &str = "device.key.pem";
/// The file name of a private root, which everybody may read.
pub(super) const ROOT_FILE: &str = "ca.pem";

/// Where to find the device's connection string, for a user who gave another kind of string.
const WHERE: &str = "it is in the portal under Devices, the device, Primary connection string, and az prints it: az iot hub \
                     device-identity connection-string show --hub-name HUB --device-id DEVICE --query connectionString -o tsv";

/// The device that signs in.
#[derive(Debug)]
pub(super) struct NewDevice {
    pub(super) hub: HostPort,
    pub(super) id: String,
    pub(super) gateway: Option<HostPort>,
    pub(super) proof: DeviceProof,
}

/// How the device proves who it is.
#[derive(Debug)]
pub(super) enum DeviceProof {
    /// The whole connection string, with a key or a token in it.
    String(String),
    /// The present paths of these files.
    Certificate { certificate: PathBuf, private_key: PathBuf },
}

/// A device that is complete, or lacks only its certificate.
pub(super) struct Named {
    pub(super) hub: HostPort,
    pub(super) id: String,
    pub(super) gateway: Option<HostPort>,
    /// The connection string, unless it says x509=true.
    pub(super) string: Option<String>,
}

impl Named {
    pub(super) fn new(hub: HostPort, id: String) -> Self {
        Self { hub, id, gateway: None, string: None }
    }

    /// Reads a device connection string.
    ///
    /// # Errors
    /// A sentence without the secret.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let text = text.trim_start_matches('\u{feff}').trim();
        let parsed = DeviceConnectionString::parse(text).and_then(|parsed| match &parsed.module_id {
            Some(_) => Err(CredentialError::ModuleString),
            None => Ok(parsed),
        });
        let parsed = parsed.map_err(|error| match error {
            CredentialError::ServiceInsteadOfDevice => format!(
                "this is a service connection string (it has SharedAccessKeyName), and the one of the device belongs here: {WHERE}"
            ),
            CredentialError::PolicyInDeviceString | CredentialError::ModuleString => {
                format!("{error}; {WHERE}")
            }
            _ => error.to_string(),
        })?;
        let string = (parsed.secret != DeviceSecret::X509).then(|| text.to_owned());
        Ok(Self { hub: parsed.host, id: parsed.device_id, gateway: parsed.gateway, string })
    }

    /// The device in words, without the secret.
    pub(super) fn told(&self) -> String {
        format!("device {} on hub {}", self.id, self.hub)
    }
}

/// Reads a host name.
///
/// # Errors
/// A sentence.
pub(super) fn host(text: &str) -> Result<HostPort, String> {
    let host = HostPort::parse(text).ok_or_else(|| {
        format!("\"{}\" is not a host name: write it as in myhub.azure-devices.net", shown(text))
    })?;
    check_device_host(&host).map_err(|problem| problem.to_string())?;
    Ok(host)
}

/// Reads a device id.
///
/// # Errors
/// A sentence.
pub(super) fn device_id(text: &str) -> Result<String, String> {
    check_device_id(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

impl NewDevice {
    /// The connection string, if there is one.
    pub(super) fn connection_string(&self) -> Option<String> {
        match &self.proof {
            DeviceProof::String(text) => Some(text.clone()),
            DeviceProof::Certificate { .. } => None,
        }
    }

    /// The device's lines in `[device]`.
    pub(super) fn lines(&self) -> String {
        match &self.proof {
            DeviceProof::String(_) => {
                format!(
                    "# The secret is in a file of its own, beside this one.\nconnection_string_file = \"{STRING_FILE}\"\n"
                )
            }
            DeviceProof::Certificate { .. } => {
                self.with_certificate(Path::new(CERTIFICATE_FILE), Path::new(KEY_FILE))
            }
        }
    }

    /// The lines for the inspection before the files exist. There are as many as in [`NewDevice::lines`], so that the line
    /// number of a problem is right for both.
    pub(super) fn lines_before_writing(&self) -> String {
        match &self.proof {
            DeviceProof::String(_) => "\n\n".to_owned(),
            DeviceProof::Certificate { certificate, private_key } => {
                let [certificate, private_key] = [certificate, private_key]
                    .map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
                self.with_certificate(&certificate, &private_key)
            }
        }
    }

    fn with_certificate(&self, certificate: &Path, private_key: &Path) -> String {
        let fields = [
            ("hub", Some(self.hub.to_string())),
            ("device_id", Some(self.id.clone())),
            ("gateway", self.gateway.as_ref().map(ToString::to_string)),
            ("certificate", Some(certificate.display().to_string())),
            ("private_key", Some(private_key.display().to_string())),
        ];
        let given = fields.into_iter().filter_map(|(key, value)| Some((key, value?)));
        given.map(|(key, value)| format!("{key} = {}\n", quoted(&value))).collect()
    }
}
