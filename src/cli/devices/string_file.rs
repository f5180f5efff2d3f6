//! The file with a device's connection string.
//!
//! Owns: the string, a file that only its owner can read and that replaces none. Must not know: the hub.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, anyhow};

use crate::cli::shown::plain;
use crate::credentials::{HostPort, HubName};
use crate::service::RegisteredDevice;
use crate::trust;

/// A new, empty file. It is removed again if it is dropped before it is written.
pub(super) struct StringFile {
    path: PathBuf,
    file: Option<File>,
}

impl StringFile {
    /// # Errors
    /// When there is a file of that name, or none can be made.
    pub(super) fn create(path: &Path) -> anyhow::Result<Self> {
        let file = trust::create_exclusive(path, 0o600).map_err(|error| match error.kind() {
            std::io::ErrorKind::AlreadyExists => {
                anyhow!("{} exists already: name another file with --out, or remove it", path.display())
            }
            _ => anyhow!("cannot make {}: {}; correct --out", path.display(), trust::in_words(&error)),
        })?;
        Ok(Self { path: path.to_owned(), file: Some(file) })
    }

    /// Writes the string of a device of this hub, and returns where it is.
    ///
    /// # Errors
    /// When the file cannot be written, or there is no string.
    pub(super) fn write(mut self, host: &HostPort, device: &RegisteredDevice) -> anyhow::Result<PathBuf> {
        let text = connection_string(host, device)?;
        let path = self.path.clone();
        let written = self.file.as_mut().map_or(Ok(()), |file| {
            file.write_all(text.as_bytes())?;
            file.sync_all()
        });
        let again = "the device is there: c2d-agent devices show --out FILE writes it again";
        written.with_context(|| format!("cannot write {} ({again})", path.display()))?;
        self.file = None;
        Ok(path)
    }
}

impl Drop for StringFile {
    fn drop(&mut self) {
        if self.file.is_some()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(%error, "cannot remove the empty file {}", self.path.display());
        }
    }
}

/// The port of the service's string is that of AMQP for back ends, so a device's string has none. A device may not use the
/// hub's service endpoint, so its string has the name of the hub itself.
///
/// # Errors
/// When the device signs in with keys, and the hub did not give them.
fn connection_string(host: &HostPort, device: &RegisteredDevice) -> anyhow::Result<String> {
    let name = HubName::of(&host.name).map_or_else(|| host.name.clone(), |name| name.classic());
    let device_id = device.identity["deviceId"].as_str().unwrap_or_default();
    let secret = match (&device.keys, device.identity["authentication"]["type"].as_str()) {
        (Some(keys), _) => format!("SharedAccessKey={}", keys.primary.expose_base64()),
        (None, Some("selfSigned" | "certificateAuthority")) => "x509=true".to_owned(),
        (None, _) => {
            return Err(anyhow!(
                "the hub gave no key of the device {}, so there is no connection string: use a policy that may read keys, \
                 such as registryRead",
                plain(device_id)
            ));
        }
    };
    Ok(format!("HostName={name};DeviceId={device_id};{secret}\n"))
}
