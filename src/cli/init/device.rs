//! How `init` finds out the identity of the device.
//!
//! Owns: where the identity comes from, the names of its files, its lines in the configuration. Must not know: the rest of
//! the configuration, how a file is written.

use std::fs::File;
use std::io::{self, IsTerminal as _, Read};
use std::path::{Path, PathBuf};

use anyhow::anyhow;

use super::text::quoted;
use super::{Args, ask, variable};
use crate::cli::{Failure, check_is_no_secret};
use crate::credentials::{CredentialError, DeviceConnectionString, DeviceSecret, HostPort, check_device_id};
use crate::trust;

pub(super) const CONNECTION_STRING_VARIABLE: &str = "C2D_DEVICE_CONNECTION_STRING";
pub(super) const CA_FILE_VARIABLE: &str = "C2D_CA_FILE";

/// The names of files beside the configuration that the systemd unit loads.
pub(super) const STRING_FILE: &str = "device.connection-string";
pub(super) const CERTIFICATE_FILE: &str = "device.cert.pem";
pub(super) const KEY_FILE: &str = "device.key.pem";
/// The file name of a private root, which everybody may read.
pub(super) const ROOT_FILE: &str = "ca.pem";

/// Far more than a connection string with a token, and than a certificate with its chain or a file of roots.
const MAX_STRING_BYTES: u64 = 16 * 1024;
const MAX_PEM_BYTES: u64 = 1024 * 1024;

/// Where to find the device's connection string, for a user who gave another kind of string.
const WHERE: &str = "it is in the portal under Devices, the device, Primary connection string, and az prints it: az iot hub \
                     device-identity connection-string show --hub-name HUB --device-id DEVICE --query connectionString -o tsv";

/// The device that signs in.
#[derive(Debug)]
pub(super) struct Device {
    pub(super) hub: HostPort,
    pub(super) id: String,
    gateway: Option<HostPort>,
    pub(super) proof: Proof,
}

/// How the device proves who it is.
#[derive(Debug)]
pub(super) enum Proof {
    /// The whole connection string, with a key or a token in it.
    String(String),
    /// The present paths of these files.
    Certificate { certificate: PathBuf, private_key: PathBuf },
}

/// A device that is complete, or lacks only its certificate.
pub(super) struct Named {
    hub: HostPort,
    id: String,
    gateway: Option<HostPort>,
    /// The connection string, unless it says x509=true.
    string: Option<String>,
}

/// Finds the device in the options, in the environment, or else by asking at the terminal.
pub(super) fn find(args: &Args) -> Result<Device, Failure> {
    let named = match (&args.connection_string_file, &args.hub, &args.device_id) {
        (Some(path), ..) if path == Path::new("-") && io::stdin().is_terminal() => ask::device()?,
        (Some(path), ..) if path == Path::new("-") => {
            named("standard input", &read_string(io::stdin().lock(), path)?)?
        }
        (Some(path), ..) => {
            check_is_no_secret("--connection-string-file", path).map_err(Failure::usage)?;
            let file = File::open(path).map_err(|error| unreadable(path, &error))?;
            named(&path.display().to_string(), &read_string(file, path)?)?
        }
        (None, Some(hub), Some(id)) => Named {
            hub: host(hub).map_err(|why| Failure::usage(anyhow!("--hub: {why}")))?,
            id: device_id(id).map_err(|why| Failure::usage(anyhow!("--device-id: {why}")))?,
            gateway: None,
            string: None,
        },
        (None, ..) => match variable(CONNECTION_STRING_VARIABLE) {
            Some(text) => named(CONNECTION_STRING_VARIABLE, &text)?,
            None => ask::device()?,
        },
    };
    let proof = match (named.string, args.certificate.clone(), args.private_key.clone()) {
        (Some(_), Some(_), _) | (Some(_), _, Some(_)) => {
            return Err(Failure::usage(anyhow!(
                "the device has a connection string with a key, so --certificate and --private-key have no use: leave them out"
            )));
        }
        (Some(string), None, None) => Proof::String(string),
        (None, Some(certificate), Some(private_key)) => Proof::Certificate { certificate, private_key },
        (None, ..) if io::stdin().is_terminal() => ask::certificate()?,
        (None, ..) => {
            return Err(Failure::usage(anyhow!(
                "the connection string says x509=true: give --certificate FILE and --private-key FILE as well"
            )));
        }
    };
    Ok(Device { hub: named.hub, id: named.id, gateway: named.gateway, proof })
}

fn named(origin: &str, text: &str) -> Result<Named, Failure> {
    Named::parse(text).map_err(|why| Failure::usage(anyhow!("{origin}: {why}")))
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
    HostPort::parse(text).ok_or_else(|| {
        format!("\"{}\" is not a host name: write it as in myhub.azure-devices.net", super::duty::shown(text))
    })
}

/// Reads a device id.
///
/// # Errors
/// A sentence.
pub(super) fn device_id(text: &str) -> Result<String, String> {
    check_device_id(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
}

fn read_string(source: impl Read, path: &Path) -> Result<String, Failure> {
    let bytes = read_at_most(source, MAX_STRING_BYTES).map_err(|error| unreadable(path, &error))?;
    String::from_utf8(bytes)
        .map_err(|_| Failure::usage(anyhow!("cannot read {}: it is not UTF-8 text", path.display())))
}

/// The bytes of a PEM file.
///
/// # Errors
/// When it cannot be read.
pub(super) fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let read = File::open(path).and_then(|file| read_at_most(file, MAX_PEM_BYTES));
    read.map_err(|error| unreadable(path, &error))
}

/// The certificates of a PEM file and nothing else, because everybody may read the copy.
///
/// # Errors
/// When it cannot be read, or has something else than certificates, such as a private key.
pub(super) fn read_roots(path: &Path) -> Result<Vec<u8>, Failure> {
    const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
    const END: &str = "-----END CERTIFICATE-----";
    let bytes = read(path)?;
    let (mut kept, mut is_inside) = (String::new(), false);
    let is_base64 =
        |line: &str| line.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+/=".contains(&byte));
    for line in String::from_utf8_lossy(&bytes).lines().map(str::trim_end) {
        let is_mark = line.starts_with("-----");
        if (is_mark && line != if is_inside { END } else { BEGIN })
            || (is_inside && !is_mark && !is_base64(line))
        {
            return Err(Failure::usage(anyhow!(
                "{} has something else than certificates, and everybody may read the copy of it: name a file that has only \
                 the certificates of the root",
                path.display()
            )));
        }
        if is_mark || is_inside {
            kept.extend([line, "\n"]);
        }
        is_inside = is_inside != is_mark;
    }
    if kept.is_empty() || is_inside {
        return Err(Failure::usage(anyhow!(
            "{} has no whole certificate: name a PEM file of the root",
            path.display()
        )));
    }
    Ok(kept.into_bytes())
}

fn read_at_most(source: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("it is larger than {limit} bytes; is it the right file?")));
    }
    Ok(bytes)
}

fn unreadable(path: &Path, error: &io::Error) -> Failure {
    let name = if path == Path::new("-") { "standard input".to_owned() } else { path.display().to_string() };
    Failure::usage(anyhow!("cannot read {name}: {}", trust::in_words(error)))
}

impl Device {
    /// The connection string, if there is one.
    pub(super) fn connection_string(&self) -> Option<String> {
        match &self.proof {
            Proof::String(text) => Some(text.clone()),
            Proof::Certificate { .. } => None,
        }
    }

    /// The device's lines in `[device]`.
    pub(super) fn lines(&self) -> String {
        match &self.proof {
            Proof::String(_) => {
                format!(
                    "# The secret is in a file of its own, beside this one.\nconnection_string_file = \"{STRING_FILE}\"\n"
                )
            }
            Proof::Certificate { .. } => {
                self.with_certificate(Path::new(CERTIFICATE_FILE), Path::new(KEY_FILE))
            }
        }
    }

    /// The lines for the inspection before the files exist. There are as many as in [`Device::lines`], so that the line
    /// number of a problem is right for both.
    pub(super) fn lines_before_writing(&self) -> String {
        match &self.proof {
            Proof::String(_) => "\n\n".to_owned(),
            Proof::Certificate { certificate, private_key } => {
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
