//! Enrolment through the Device Provisioning Service (DPS): who asks, what is asked, and what is answered.
//!
//! Owns: registration ids, the credentials of a registration, its bodies, and the assignment that comes of it.
//! Must not know: sockets, topics, files, the clock (`now` is an argument), retries.
//!
//! A device knows only its ID scope, its registration id and one proof. DPS tells it which hub it belongs to, and as
//! which device. Sources: wire reference 12.1 to 12.4, 12.7.

use std::path::PathBuf;
use std::time::SystemTime;

use crate::credentials::{CredentialError, DeviceAuth, HostPort, SasToken, SharedAccessKey};

mod answer;
mod assignment;
mod refusal;

pub use answer::{Assigning, Registration};
pub use assignment::{Assignment, AssignmentError};
pub use refusal::RegistrationRefusal;

/// The endpoint of all instances of the service in the public cloud.
pub const GLOBAL_ENDPOINT: &str = "global.azure-devices-provisioning.net";
/// The version of the protocol when no certificate is requested.
const API_VERSION: &str = "2021-06-01";
/// The first version that issues certificates.
const API_VERSION_WITH_CERTIFICATE: &str = "2025-07-01-preview";
/// The longest registration id in characters.
const MAX_REGISTRATION_ID: usize = 128;
/// The longest ID scope that is sent. Real ones have eleven characters; the service documents no limit.
const MAX_ID_SCOPE: usize = 64;
/// Tokens name this policy, as Microsoft's SDKs do.
const POLICY: &str = "registration";

/// A device that asks DPS for its hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Enrolment {
    /// The service: [`GLOBAL_ENDPOINT`], or another one.
    pub endpoint: HostPort,
    /// Which instance of the service; it is no secret.
    pub id_scope: String,
    /// Who asks. The service compares it without case, but a key of a group is derived from its exact bytes.
    pub registration_id: String,
    /// The proof.
    pub auth: EnrolmentAuth,
    /// JSON for a custom allocation, if there is one.
    pub payload: Option<serde_json::Value>,
    /// Whether the service is asked to issue a certificate.
    pub request_certificate: bool,
}

/// How a device proves its registration id. The same proof signs in at the hub afterwards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EnrolmentAuth {
    /// With the key of the device: that of an individual enrolment, or one that was derived from a group's key.
    Key(SharedAccessKey),
    /// With a client certificate, whose CN is the registration id; both files are PEM.
    Certificate {
        /// The certificate, followed by its chain.
        certificate: PathBuf,
        /// The private key.
        private_key: PathBuf,
    },
}

impl From<&EnrolmentAuth> for DeviceAuth {
    fn from(auth: &EnrolmentAuth) -> Self {
        match auth.clone() {
            EnrolmentAuth::Key(key) => Self::Key(key),
            EnrolmentAuth::Certificate { certificate, private_key } => {
                Self::Certificate { certificate, private_key }
            }
        }
    }
}

impl Enrolment {
    /// `{idScope}/registrations/{registrationId}`: what a token covers, where AMQP links lead, and where the user name
    /// of MQTT begins.
    pub fn resource(&self) -> String {
        format!("{}/registrations/{}", self.id_scope, self.registration_id)
    }

    /// Whether both ask the same service as the same device.
    pub fn is_registered_as(&self, other: &Self) -> bool {
        let who = |enrolment: &Self| {
            let Self { endpoint, id_scope, registration_id, .. } = enrolment.clone();
            (endpoint, id_scope, registration_id)
        };
        who(self) == who(other)
    }

    /// The user name of MQTT. No `?` before `api-version`, other than at a hub.
    pub fn user_name(&self) -> String {
        let (resource, version) = (self.resource(), self.api_version());
        let program = env!("CARGO_PKG_VERSION");
        format!("{resource}/api-version={version}&ClientVersion=c2d-agent%2F{program}")
    }

    /// The version of the protocol that this enrolment needs.
    pub fn api_version(&self) -> &'static str {
        if self.request_certificate { API_VERSION_WITH_CERTIFICATE } else { API_VERSION }
    }

    /// A token that is valid until `expiry`; none with a certificate.
    pub fn token(&self, expiry: SystemTime) -> Option<SasToken> {
        match &self.auth {
            EnrolmentAuth::Key(key) => Some(SasToken::sign(key, &self.resource(), Some(POLICY), expiry)),
            EnrolmentAuth::Certificate { .. } => None,
        }
    }

    /// The body of a registration. `csr` is the DER of a certificate request in base64.
    pub fn body(&self, csr: Option<&str>) -> Vec<u8> {
        let mut body =
            serde_json::Map::from_iter([("registrationId".to_owned(), self.registration_id.clone().into())]);
        body.extend(self.payload.clone().map(|payload| ("payload".to_owned(), payload)));
        body.extend(csr.map(|csr| ("csr".to_owned(), csr.into())));
        serde_json::Value::Object(body).to_string().into_bytes()
    }
}

/// The key of one device in an enrolment group with symmetric keys: HMAC-SHA256 of the registration id under the key of
/// the group. A machine with the group's key can be any device, so the key must never be on a device.
pub fn derive_key(group: &SharedAccessKey, registration_id: &str) -> SharedAccessKey {
    SharedAccessKey::from_bytes(group.digest(registration_id.as_bytes()))
}

/// Checks a registration id: at most 128 letters, digits and `-._:`, of which the last is a letter, a digit or `-`.
/// Capitals are allowed here. Source: wire reference 12.2.
///
/// # Errors
/// Says what is wrong with it, and what it must be.
pub fn check_registration_id(id: &str) -> Result<(), String> {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    let ends_well = id.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '-');
    if ends_well && id.len() <= MAX_REGISTRATION_ID && id.chars().all(is_allowed) {
        return Ok(());
    }
    Err(format!(
        "the registration id {:?} is not one: it has 1 to {MAX_REGISTRATION_ID} letters, digits and -._: and ends with a \
         letter, a digit or -",
        excerpt(id)
    ))
}

/// Checks an ID scope, which stands in user names and paths.
///
/// # Errors
/// Says what is wrong with it, and where to find the right one.
pub fn check_id_scope(scope: &str) -> Result<(), String> {
    let is_word = !scope.is_empty() && scope.chars().all(|c| c.is_ascii_alphanumeric());
    if is_word && scope.len() <= MAX_ID_SCOPE {
        return Ok(());
    }
    Err(format!(
        "the ID scope {:?} is not one: copy it from the overview of the provisioning service; it looks like 0ne00012345",
        excerpt(scope)
    ))
}

/// Reads a host that DPS or a configuration names.
///
/// # Errors
/// When it is no host name.
fn host(text: &str, what: &'static str) -> Result<HostPort, CredentialError> {
    HostPort::parse(text).ok_or_else(|| CredentialError::Host(what, excerpt(text)))
}

/// The beginning of a text for a message.
fn excerpt(text: &str) -> String {
    text.chars().take(60).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use std::time::Duration;

    /// The bytes 0 to 31. Source of the vectors: wire reference 12.2.
    const GROUP_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn enrolment() -> Enrolment {
        let group = SharedAccessKey::from_base64(GROUP_KEY).expect("base64");
        Enrolment {
            endpoint: HostPort { name: GLOBAL_ENDPOINT.into(), port: None },
            id_scope: "0ne00000001".into(),
            registration_id: "reg-01".into(),
            auth: EnrolmentAuth::Key(derive_key(&group, "reg-01")),
            payload: None,
            request_certificate: false,
        }
    }

    #[test]
    fn a_derived_key_and_its_token_match_the_test_vectors() {
        let enrolment = enrolment();
        let EnrolmentAuth::Key(key) = &enrolment.auth else { panic!("a key") };
        assert_eq!(key.expose_base64(), "loIcOklwYeGOA435V7aqfiADrvH7eV6ntyrboHz4F4E=");
        let token = enrolment.token(SystemTime::UNIX_EPOCH + Duration::from_secs(1_893_456_000));
        assert_eq!(
            token.expect("a token").expose(),
            "SharedAccessSignature sr=0ne00000001%2Fregistrations%2Freg-01\
             &sig=vsO7mi%2F0gAsKIhcJ3SCXXQEnFpOnTBJ9QVX%2FYVKom3w%3D&se=1893456000&skn=registration"
        );
    }

    #[test]
    fn user_name_and_body_say_who_asks_and_for_what() {
        let plain = enrolment();
        let version = env!("CARGO_PKG_VERSION");
        let client = format!("&ClientVersion=c2d-agent%2F{version}");
        assert_eq!(
            plain.user_name(),
            format!("0ne00000001/registrations/reg-01/api-version=2021-06-01{client}")
        );
        assert_eq!(plain.body(None), br#"{"registrationId":"reg-01"}"#);
        let asks = Enrolment { payload: Some(json!({ "site": 12 })), request_certificate: true, ..plain };
        assert!(asks.user_name().contains("/api-version=2025-07-01-preview&"));
        let body: serde_json::Value = serde_json::from_slice(&asks.body(Some("MIIB"))).expect("JSON");
        assert_eq!(body, json!({ "registrationId": "reg-01", "payload": { "site": 12 }, "csr": "MIIB" }));
    }

    #[test]
    fn ids_that_the_service_would_refuse_are_named() {
        for id in ["a", "Pump-12", "a.b_c:d-", &"x".repeat(128)] {
            assert_eq!(check_registration_id(id), Ok(()), "{id}");
        }
        for id in ["", "a/b", "a b", "a.", "é", &"x".repeat(129)] {
            let said = check_registration_id(id).expect_err("refused");
            assert!(said.contains("1 to 128 letters"), "{said}");
        }
        assert_eq!(check_id_scope("0ne00012345"), Ok(()));
        for scope in ["", "0ne 1", "0ne/1", "https://x", &"0".repeat(65)] {
            assert!(check_id_scope(scope).expect_err("refused").contains("looks like 0ne00012345"));
        }
    }
}
