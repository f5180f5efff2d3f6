//! The provisioning service as the command line describes it.
//!
//! Owns: the form of `--dps-device` and `--dps-group`, and what is wrong with them. Must not know: files' contents, the
//! service.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::str::FromStr;

use super::attestation::EnrolmentKind;
use super::enrolment::check_id;
use super::faults::DpsFaultOrder;
use crate::credentials::SharedAccessKey;
use crate::message::excerpt;

/// The ID scope if no other one is given.
pub const DEFAULT_ID_SCOPE: &str = "0ne00000001";
/// The longest ID scope.
const MAX_ID_SCOPE: usize = 64;
/// Most individual enrolments of a command line.
const MAX_DEVICES: usize = 1_000;
/// Most groups. Source: azure-docs, `iot-dps-limits`.
pub(super) const MAX_GROUPS: usize = 100;

/// The provisioning service to start.
#[derive(Debug, Clone)]
pub struct ProvisioningSettings {
    /// The ID scope: letters and digits.
    pub id_scope: String,
    /// Individual enrolments.
    pub devices: Vec<EnrolmentOption>,
    /// Enrolment groups.
    pub groups: Vec<EnrolmentOption>,
    /// The faults that are set from the start.
    pub faults: Vec<DpsFaultOrder>,
}

/// `NAME`, `NAME=KEY` or `NAME=FILE`. The name is a registration id or that of a group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EnrolmentOption {
    /// The registration id, or the name of the group.
    pub name: String,
    /// What the devices must prove.
    pub secret: EnrolmentSecret,
}

/// What an enrolment of the command line wants to see.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnrolmentSecret {
    /// A key that the emulator makes.
    Made,
    /// This key.
    Key(SharedAccessKey),
    /// The certificate in this PEM file: that of the device, or the authority of the group.
    Certificate(PathBuf),
}

/// What is wrong with the options of the provisioning service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnrolmentOptionError {
    /// The name is wrong.
    #[error("{0}")]
    Name(String),
    /// The value is neither a key nor a file.
    #[error(
        "what follows \"{0}=\" is neither a key in base64 nor a PEM file: the path of a file needs a dot in it, as in \
         ./ca.pem"
    )]
    Secret(String),
    /// The scope is wrong.
    #[error(
        "\"{0}\" is not an ID scope: use up to {MAX_ID_SCOPE} letters and digits, as in {DEFAULT_ID_SCOPE}"
    )]
    Scope(String),
    /// An enrolment is there twice.
    #[error("the {0} enrolment \"{1}\" is given twice: give it once")]
    Doubled(&'static str, String),
    /// Too many.
    #[error("{0} individual enrolments are too many: at most {MAX_DEVICES} can be given, or use --dps-group")]
    TooManyDevices(usize),
    /// Too many.
    #[error("{0} enrolment groups are too many: the service has at most {MAX_GROUPS}")]
    TooManyGroups(usize),
    /// The file of a certificate cannot be used.
    #[error("the certificate of the enrolment \"{name}\" cannot be used: {path}: {reason}", path = .path.display())]
    Certificate {
        /// The enrolment.
        name: String,
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

impl FromStr for EnrolmentOption {
    type Err = EnrolmentOptionError;

    /// A key in base64 has no dot, and the path of a file has one.
    fn from_str(text: &str) -> Result<Self, EnrolmentOptionError> {
        let (name, secret) = match text.split_once('=') {
            None => (text, EnrolmentSecret::Made),
            Some((name, value)) if value.contains('.') => (name, EnrolmentSecret::Certificate(value.into())),
            Some((name, value)) => {
                let key = SharedAccessKey::from_base64(value);
                let key = key.map_err(|_| EnrolmentOptionError::Secret(excerpt(name)))?;
                (name, EnrolmentSecret::Key(key))
            }
        };
        check_id(EnrolmentKind::Individual, name).map_err(EnrolmentOptionError::Name)?;
        Ok(Self { name: name.to_owned(), secret })
    }
}

impl ProvisioningSettings {
    /// Checks what can be checked without files.
    ///
    /// # Errors
    /// [`EnrolmentOptionError`].
    pub(in crate::emulator) fn check(&self) -> Result<(), EnrolmentOptionError> {
        let is_word = !self.id_scope.is_empty() && self.id_scope.chars().all(|c| c.is_ascii_alphanumeric());
        if !is_word || self.id_scope.len() > MAX_ID_SCOPE {
            return Err(EnrolmentOptionError::Scope(excerpt(&self.id_scope)));
        }
        if self.devices.len() > MAX_DEVICES {
            return Err(EnrolmentOptionError::TooManyDevices(self.devices.len()));
        }
        if self.groups.len() > MAX_GROUPS {
            return Err(EnrolmentOptionError::TooManyGroups(self.groups.len()));
        }
        for (options, kind) in
            [(&self.devices, EnrolmentKind::Individual), (&self.groups, EnrolmentKind::Group)]
        {
            let mut names = BTreeSet::new();
            if let Some(doubled) =
                options.iter().find(|option| !names.insert(option.name.to_ascii_lowercase()))
            {
                return Err(EnrolmentOptionError::Doubled(kind.word(), doubled.name.clone()));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_told_from_a_file() {
        let read = |text: &str| text.parse::<EnrolmentOption>();
        assert_eq!(read("pi-01").map(|own| own.secret), Ok(EnrolmentSecret::Made));
        let key = SharedAccessKey::from_base64("a2V5").expect("base64");
        assert_eq!(read("pi-01=a2V5").map(|own| own.secret), Ok(EnrolmentSecret::Key(key)));
        let file = EnrolmentSecret::Certificate("./a=b.pem".into());
        assert_eq!(read("pi-01=./a=b.pem").map(|own| (own.name, own.secret)), Ok(("pi-01".into(), file)));
        let said = |text: &str| read(text).expect_err("refused").to_string();
        assert!(
            said("pi-01=secret!").starts_with("what follows \"pi-01=\" is neither a key"),
            "{}",
            said("pi-01=secret!")
        );
        assert!(!said("pi-01=secret!").contains("secret!"));
        assert!(said("pi 01").contains("is not a registration id"));
        assert!(read("pi-01=").is_err());
    }

    #[test]
    fn what_is_too_much_or_doubled_is_refused() {
        let option = |name: &str| name.parse::<EnrolmentOption>().expect("an option");
        let settings = |devices: Vec<EnrolmentOption>, groups: Vec<EnrolmentOption>| ProvisioningSettings {
            id_scope: DEFAULT_ID_SCOPE.to_owned(),
            devices,
            groups,
            faults: Vec::new(),
        };
        assert_eq!(settings(vec![option("a")], vec![option("a")]).check(), Ok(()));
        let said = |own: ProvisioningSettings| own.check().expect_err("refused").to_string();
        assert_eq!(
            said(settings(vec![option("a"), option("A")], Vec::new())),
            "the individual enrolment \"A\" is given twice: give it once"
        );
        let many = |count: usize| (0..count).map(|number| option(&format!("n{number}"))).collect::<Vec<_>>();
        assert!(
            said(settings(many(1001), Vec::new())).starts_with("1001 individual enrolments are too many")
        );
        assert!(said(settings(Vec::new(), many(101))).starts_with("101 enrolment groups are too many"));
        for wrong in ["", "0ne 1", "0ne/1", &"0".repeat(65)] {
            let own = ProvisioningSettings { id_scope: wrong.to_owned(), ..settings(Vec::new(), Vec::new()) };
            assert!(said(own).contains("is not an ID scope"));
        }
    }
}
