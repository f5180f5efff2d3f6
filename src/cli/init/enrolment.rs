//! The enrolment that `init` writes down, for a device that asks the provisioning service for its hub.
//!
//! Owns: what it is, the name of its file, its lines in the configuration. Must not know: where it comes from, the rest of
//! the configuration, how a file is written.

use std::path::{Path, PathBuf};

use super::device::{CERTIFICATE_FILE, KEY_FILE};
use super::toml::quoted;

/// The file beside the configuration that holds the key. The systemd unit loads it.
pub(super) const ENROLMENT_KEY_FILE: &str = "device.key";

/// A device that is enrolled.
#[derive(Debug)]
pub(super) struct NewEnrolment {
    pub(super) id_scope: String,
    pub(super) registration_id: Option<String>,
    pub(super) endpoint: Option<String>,
    pub(super) proof: NewProof,
}

/// How it proves who it is.
#[derive(Debug)]
pub(super) enum NewProof {
    /// Its key in base64.
    Key(String),
    /// The present paths of these files.
    Certificate { certificate: PathBuf, private_key: PathBuf },
}

impl NewEnrolment {
    /// The key, if there is one.
    pub(super) fn key(&self) -> Option<String> {
        match &self.proof {
            NewProof::Key(key) => Some(key.clone()),
            NewProof::Certificate { .. } => None,
        }
    }

    /// The lines in `[provisioning]`.
    pub(super) fn lines(&self) -> String {
        let proof = match &self.proof {
            NewProof::Key(_) => {
                format!(
                    "# The secret is in a file of its own, beside this one.\nkey_file = \"{ENROLMENT_KEY_FILE}\"\n"
                )
            }
            NewProof::Certificate { .. } => pair(Path::new(CERTIFICATE_FILE), Path::new(KEY_FILE)),
        };
        self.ids() + &proof
    }

    /// The lines for the inspection before the files exist. There are as many as in [`NewEnrolment::lines`], so that the
    /// line number of a problem is right for both.
    pub(super) fn lines_before_writing(&self) -> String {
        let proof = match &self.proof {
            NewProof::Key(_) => "\n\n".to_owned(),
            NewProof::Certificate { certificate, private_key } => {
                let [certificate, private_key] = [certificate, private_key]
                    .map(|path| std::path::absolute(path).unwrap_or_else(|_| path.clone()));
                pair(&certificate, &private_key)
            }
        };
        self.ids() + &proof
    }

    fn ids(&self) -> String {
        let fields = [
            ("id_scope", Some(&self.id_scope)),
            ("registration_id", self.registration_id.as_ref()),
            ("endpoint", self.endpoint.as_ref()),
        ];
        let given = fields.into_iter().filter_map(|(key, value)| Some((key, value?)));
        given.map(|(key, value)| format!("{key} = {}\n", quoted(value))).collect()
    }
}

fn pair(certificate: &Path, private_key: &Path) -> String {
    let [certificate, private_key] =
        [certificate, private_key].map(|path| quoted(&path.display().to_string()));
    format!("certificate = {certificate}\nprivate_key = {private_key}\n")
}
