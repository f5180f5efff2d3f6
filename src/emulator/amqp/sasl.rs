//! SASL of back ends and devices.
//!
//! Owns: the mechanisms and the identity in PLAIN. Must not know: sessions, links.
//!
//! `MSSBCBS`, `ANONYMOUS` and `EXTERNAL` prove nothing. They are accepted because a CBS token follows (wire reference
//! 2.2).

use std::sync::Arc;

use fe2o3_amqp::acceptor::SaslAcceptor;
use fe2o3_amqp::acceptor::sasl_acceptor::SaslServerFrame;
use fe2o3_amqp::types::primitives::{Array, Symbol};
use fe2o3_amqp::types::sasl::{SaslCode, SaslInit, SaslOutcome, SaslResponse};

use super::claims::Claims;
use super::enrollee;

#[derive(Clone)]
pub(super) struct Sasl {
    claims: Arc<Claims>,
}

impl Sasl {
    pub(super) fn new(claims: Arc<Claims>) -> Self {
        Self { claims }
    }

    fn plain(&self, init: SaslInit) -> Result<(), String> {
        let response = init.initial_response.map(|bytes| bytes.into_vec()).unwrap_or_default();
        let (user, token) = split_plain(&response).ok_or("the PLAIN response is not user and password")?;
        if let Some((id_scope, registration_id)) = enrollee::registration(user) {
            let admitted = self.claims.enroll(id_scope, registration_id, token);
            return admitted.map_err(|error| format!("the provisioning service refuses it: {error}"));
        }
        let taken = match (user.split_once("@sas.root."), user.rsplit_once('@')) {
            (Some((policy, _)), _) => self.claims.put_of_policy(token, policy),
            // DEVICE@sas.HUB or DEVICE@HUB. The hub's name is checked in the token.
            (None, Some((device_id, _))) => self.claims.put_of_device(token, device_id),
            (None, None) => {
                let shown = excerpt(user);
                return Err(format!(
                    "\"{shown}\" is neither POLICY@sas.root.HUB nor DEVICE@sas.HUB nor SCOPE/registrations/ID"
                ));
            }
        };
        taken.map_err(|error| error.to_string())
    }
}

impl SaslAcceptor for Sasl {
    fn mechanisms(&self) -> Array<Symbol> {
        Array::from(["MSSBCBS", "PLAIN", "ANONYMOUS", "EXTERNAL"].map(Symbol::from).to_vec())
    }

    fn on_init(&mut self, init: SaslInit) -> SaslServerFrame {
        let accepted = match init.mechanism.as_str() {
            "PLAIN" => self.plain(init),
            "MSSBCBS" | "ANONYMOUS" | "EXTERNAL" => Ok(()),
            other => Err(format!("the SASL mechanism \"{}\" was not offered", excerpt(other))),
        };
        match accepted {
            Ok(()) => outcome(SaslCode::Ok),
            Err(reason) => {
                tracing::warn!(reason, "refused a sign-in over AMQP");
                outcome(SaslCode::Auth)
            }
        }
    }

    fn on_response(&mut self, _response: SaslResponse) -> SaslServerFrame {
        // No mechanism here has a second step.
        outcome(SaslCode::Sys)
    }
}

fn outcome(code: SaslCode) -> SaslServerFrame {
    SaslServerFrame::Outcome(SaslOutcome { code, additional_data: None })
}

/// Splits `authzid NUL authcid NUL password` (RFC 4616). The authzid is ignored.
fn split_plain(response: &[u8]) -> Option<(&str, &str)> {
    let mut parts = std::str::from_utf8(response).ok()?.split('\0');
    let (_authzid, user, password) = (parts.next()?, parts.next()?, parts.next()?);
    parts.next().is_none().then_some((user, password))
}

fn excerpt(text: &str) -> String {
    text.chars().take(80).flat_map(char::escape_debug).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_response_is_split_or_refused(response in proptest::collection::vec(any::<u8>(), 0..80)) {
            if let Some((user, token)) = split_plain(&response) {
                let end = ["", user, token].join("\0");
                prop_assert!(response.ends_with(end.as_bytes()));
            }
        }
    }

    #[test]
    fn a_plain_response_has_exactly_three_parts() {
        assert_eq!(split_plain(b"\0service@sas.root.h\0token"), Some(("service@sas.root.h", "token")));
        assert_eq!(split_plain(b"z\0u\0p"), Some(("u", "p")));
        for malformed in [&b""[..], b"u\0p", b"\0u\0p\0x", b"\0\xff\0p"] {
            assert_eq!(split_plain(malformed), None);
        }
    }
}
