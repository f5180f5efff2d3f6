//! Who asks the provisioning service, and what it shows as its proof.
//!
//! Owns: the user name of MQTT, and the checks that need no enrolment: scope, form and expiry of a token. Must not know:
//! enrolments, packets.
//!
//! Source: wire reference 12.1 and 12.2. A choice where it is not verified: what these checks refuse is refused at the
//! door (CONNACK 5), and what an enrolment decides is refused in band (401).

use std::time::SystemTime;

use crate::credentials::{SasError, SasToken};
use crate::emulator::tls::ShownChain;
use crate::message::{excerpt, format_time};

/// The longest registration id in characters.
const MAX_REGISTRATION_ID: usize = 128;
/// The policy that tokens of devices may name.
const POLICY: &str = "registration";

/// A user name such as `0ne00000001/registrations/pi-01/api-version=2021-06-01&ClientVersion=…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::emulator) struct DpsUserName {
    pub(in crate::emulator) id_scope: String,
    pub(in crate::emulator) registration_id: String,
    /// Any value is accepted, but not an empty one.
    pub(in crate::emulator) has_version: bool,
}

/// A client that has passed the door.
#[derive(Debug, Clone)]
pub(in crate::emulator) struct RegistrationClaim {
    /// The registration id exactly as the client wrote it: a key of a group is derived from these bytes.
    pub(in crate::emulator) registration_id: String,
    pub(super) proof: Proof,
}

/// The proof of a claim.
#[derive(Debug, Clone)]
pub(super) enum Proof {
    /// A token whose signature is not checked yet.
    Token(SasToken),
    /// The certificates of the handshake.
    Certificate(ShownChain),
}

/// Why a client is refused at the door, for the log. No variant holds secret text; foreign text is short and escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(in crate::emulator) enum DoorError {
    /// There is no such service here.
    #[error("this emulator has no provisioning service: start it with --dps-device or --dps-group")]
    Closed,
    /// The scope is another one.
    #[error("the ID scope is \"{0}\", and that of this service is \"{1}\" (--id-scope)")]
    Scope(String, String),
    /// The id cannot be one.
    #[error(
        "\"{0}\" is not a registration id: use 1 to {MAX_REGISTRATION_ID} letters, digits and -._: with a letter, a digit \
         or - at the end"
    )]
    Id(String),
    /// Neither a token nor a certificate.
    #[error("no token and no client certificate was presented")]
    NoProof,
    /// The text is not a token.
    #[error(transparent)]
    Token(#[from] SasError),
    /// The token is for another resource.
    #[error("the token is for \"{0}\", not for \"{1}\"")]
    Resource(String, String),
    /// The token names a policy of the service.
    #[error("the token names the policy \"{0}\", but a device signs with its own key (skn={POLICY})")]
    Policy(String),
    /// The token has expired.
    #[error("the token expired at {0}")]
    Expired(String),
}

impl DpsUserName {
    /// Takes a user name apart; `None` if it is not one of a provisioning client, whose second of four segments is
    /// `registrations`.
    pub(in crate::emulator) fn parse(text: &str) -> Option<Self> {
        let segments: Vec<&str> = text.splitn(4, '/').collect();
        let [id_scope, "registrations", registration_id, query] = segments.as_slice() else { return None };
        let version = query.split('&').find_map(|pair| pair.strip_prefix("api-version="));
        Some(Self {
            id_scope: (*id_scope).to_owned(),
            registration_id: (*registration_id).to_owned(),
            has_version: version.is_some_and(|version| !version.is_empty()),
        })
    }
}

impl RegistrationClaim {
    /// Checks who a client says it is, and the form of what it shows. `now` is the real time, as tokens are made by it.
    ///
    /// # Errors
    /// [`DoorError`]; a client must only learn that it is not authorised.
    pub(super) fn new(
        id_scope: &str,
        registration_id: &str,
        token: Option<&str>,
        shown: Option<&ShownChain>,
        now: SystemTime,
    ) -> Result<Self, DoorError> {
        if !is_registration_id(registration_id) {
            return Err(DoorError::Id(excerpt(registration_id)));
        }
        let proof = match (token, shown) {
            (Some(text), _) => Proof::Token(checked_token(text, id_scope, registration_id, now)?),
            (None, Some(shown)) => Proof::Certificate(shown.clone()),
            (None, None) => return Err(DoorError::NoProof),
        };
        Ok(Self { registration_id: registration_id.to_owned(), proof })
    }

    /// Whether the proof has expired since the client passed the door.
    pub(super) fn has_expired(&self, now: SystemTime) -> bool {
        matches!(&self.proof, Proof::Token(token) if token.expiry() <= now)
    }
}

/// Whether a text may be a registration id. Source: wire reference 12.2.
pub(super) fn is_registration_id(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._:".contains(c);
    let ends_well = text.ends_with(|c: char| c.is_ascii_alphanumeric() || c == '-');
    ends_well && text.len() <= MAX_REGISTRATION_ID && text.chars().all(allowed)
}

fn checked_token(text: &str, id_scope: &str, id: &str, now: SystemTime) -> Result<SasToken, DoorError> {
    let token = SasToken::parse(text)?;
    let needed = format!("{id_scope}/registrations/{id}");
    if !token.resource().eq_ignore_ascii_case(&needed) {
        return Err(DoorError::Resource(excerpt(&token.resource()), needed));
    }
    if let Some(policy) = token.policy().filter(|policy| *policy != POLICY) {
        return Err(DoorError::Policy(excerpt(policy)));
    }
    if token.expiry() <= now {
        return Err(DoorError::Expired(format_time(token.expiry())));
    }
    Ok(token)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::SharedAccessKey;
    use proptest::prelude::*;
    use std::time::Duration;

    #[test]
    fn the_user_names_of_the_sdks_are_read_and_those_of_a_hub_are_not() {
        let python =
            "0ne00000001/registrations/reg-01/api-version=2019-03-31&ClientVersion=azure-iot-device%2F2.14.0";
        let read = DpsUserName::parse(python).expect("a user name");
        assert_eq!((read.id_scope.as_str(), read.registration_id.as_str()), ("0ne00000001", "reg-01"));
        assert!(read.has_version);
        assert!(
            !DpsUserName::parse("s/registrations/r/api-version=&ClientVersion=x").expect("one").has_version
        );
        for hub in
            ["h/dev1/?api-version=1", "h/registrations/?api-version=1", "h/dev1/registrations/?api-version=1"]
        {
            assert_eq!(DpsUserName::parse(hub), None, "{hub}");
        }
    }

    #[test]
    fn a_token_must_be_for_this_registration_and_not_expired() {
        let (key, now) = (SharedAccessKey::from_bytes([7; 32]), SystemTime::UNIX_EPOCH);
        let token = |resource: &str, policy, seconds| {
            SasToken::sign(&key, resource, policy, now + Duration::from_secs(seconds)).expose().to_owned()
        };
        let own = "s/registrations/a";
        for policy in [None, Some("registration")] {
            assert!(checked_token(&token(own, policy, 9), "s", "a", now).is_ok());
        }
        let said = |token: &str| checked_token(token, "s", "a", now).expect_err("refused").to_string();
        assert_eq!(
            said(&token("s/registrations/b", None, 9)),
            "the token is for \"s/registrations/b\", not for \"s/registrations/a\""
        );
        assert!(said(&token("s", None, 9)).starts_with("the token is for \"s\""));
        assert!(said(&token(own, Some("provisioningserviceowner"), 9)).contains("its own key"));
        assert_eq!(said(&token(own, None, 0)), "the token expired at 1970-01-01T00:00:00.0000000Z");
        assert!(said("nonsense").contains("SharedAccessSignature"));
    }

    #[test]
    fn ids_are_what_the_service_documents() {
        for id in ["a", "Pump-12", "a.b_c:d-", &"x".repeat(128)] {
            assert!(is_registration_id(id), "{id}");
        }
        for id in ["", "a/b", "a b", "a.", "é", "..", &"x".repeat(129)] {
            assert!(!is_registration_id(id), "{id}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_a_user_name_or_not_without_a_panic(text in "[a-z/?=&:%.-]{0,60}|.{0,60}|[a-z]{1,5}/registrations/.{0,40}") {
            if let Some(user) = DpsUserName::parse(&text) {
                let begins = format!("{}/registrations/{}/", user.id_scope, user.registration_id);
                prop_assert!(text.starts_with(&begins));
            }
        }
    }
}
