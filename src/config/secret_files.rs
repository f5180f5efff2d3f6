//! Files with secrets that a configuration names: where they are, and that they are not the secrets themselves.
//!
//! Owns: the credentials of systemd, pairs of certificate and key, warnings about permissions. Must not know: whose
//! secrets they are.

use std::path::{Path, PathBuf};

use toml::de::DeValue;

use super::field::Field;
use super::files;
use super::report::{Report, holds_a_secret};
use crate::tls::{self, ClientCertificate};

/// Names the directory in which systemd puts the files that the unit loads with `LoadCredential=`. Source:
/// systemd.exec(5).
const CREDENTIALS_VARIABLE: &str = "CREDENTIALS_DIRECTORY";

/// Where files are looked up.
pub(super) struct Places<'p> {
    /// Relative paths start here.
    pub(super) directory: &'p Path,
    /// What systemd has read for this process, which may not be allowed to read the files itself.
    credentials: Option<PathBuf>,
}

impl<'p> Places<'p> {
    pub(super) fn new(directory: &'p Path, env: &dyn Fn(&str) -> Option<String>) -> Self {
        let credentials =
            env(CREDENTIALS_VARIABLE).filter(|value| !value.trim().is_empty()).map(PathBuf::from);
        Self { directory, credentials }
    }

    /// The path itself; but the credential of its file name if there is one and this process may not open the path.
    ///
    /// # Errors
    /// When the file exists, this process may not open it, and the unit could load it.
    pub(super) fn readable(&self, path: PathBuf) -> Result<PathBuf, String> {
        if files::can_open(&path) {
            return Ok(path);
        }
        let Some(name) = path.file_name().filter(|_| self.credentials.is_some()) else { return Ok(path) };
        match self.credential(name.as_ref()) {
            Some(credential) => Ok(credential),
            None if files::check_regular(&path).is_ok() => Err(format!(
                "the agent's user may not read {path}: let systemd load it, with \
                 LoadCredential={name}:{path} in the unit's [Service]",
                path = path.display(),
                name = name.display(),
            )),
            None => Ok(path),
        }
    }

    /// A credential; none if it is absent or blank. For a missing file the unit supplies a line break.
    pub(super) fn credential(&self, name: &Path) -> Option<PathBuf> {
        let path = self.credentials.as_ref()?.join(name);
        files::has_text(&path).then_some(path)
    }
}

/// A certificate and its private key, which must fit together; `None` after a problem was reported.
pub(super) fn read_pair(
    certificate: &Field<'_>,
    private_key: &Field<'_>,
    places: &Places<'_>,
    report: &mut Report,
) -> Option<ClientCertificate> {
    let mut readable = |field: &Field<'_>| {
        let path = read_secret_path(field, places, report)?;
        match check_file(&path) {
            Ok(()) => Some(path),
            Err(reason) => field.wrong(reason, report),
        }
    };
    let (certificate_path, private_key_path) = (readable(certificate), readable(private_key));
    let (certificate_path, private_key_path) = (certificate_path?, private_key_path?);
    let pair = ClientCertificate { certificate: certificate_path, private_key: private_key_path };
    if let Err(error) = tls::check_client_certificate(&pair) {
        let at_key = error.path() == Some(pair.private_key.as_path());
        let field = if at_key { private_key } else { certificate };
        return field.wrong(error.to_string(), report);
    }
    warn_if_world_readable(&pair.private_key, private_key, report);
    Some(pair)
}

/// # Errors
/// Why the file cannot be read, with its name.
pub(super) fn check_file(path: &Path) -> Result<(), String> {
    files::check_regular(path).map_err(|reason| format!("cannot read {}: {reason}", path.display()))
}

/// The path of a file with a secret. The secret itself in its place is a problem.
pub(super) fn read_secret_path(
    field: &Field<'_>,
    places: &Places<'_>,
    report: &mut Report,
) -> Option<PathBuf> {
    if matches!(field.value.value, DeValue::String(text) if holds_a_secret(text)) {
        let message = format!(
            "{} is the secret itself: write it to a file of its own and give the path of that file \
                     here",
            field.key
        );
        return field.wrong(message, report);
    }
    let text = field.text(report)?;
    if text.starts_with("pkcs11:") {
        let message = format!(
            "{} is a PKCS#11 URI, but keys in a token, a TPM or an HSM are not supported: give the path of a PEM file, which \
             only the agent's user can read",
            field.key
        );
        return field.wrong(message, report);
    }
    match places.readable(places.directory.join(text)) {
        Ok(path) => Some(path),
        Err(message) => field.wrong(message, report),
    }
}

pub(super) fn warn_if_world_readable(path: &Path, field: &Field<'_>, report: &mut Report) {
    if files::is_world_readable(path) {
        let path = path.display();
        let message = format!("everyone on this machine can read the secret in {path}: run chmod o= {path}");
        report.warning(field.value.place.clone(), message);
    }
}
