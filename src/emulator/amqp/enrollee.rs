//! The client of the provisioning service on one AMQP connection.
//!
//! Owns: who has passed the service's door here, by SASL PLAIN or with the certificate of the TLS connection, and the
//! answers that wait for that client. Must not know: links, enrolments.
//!
//! Source: wire reference 12.1 and 12.5. Where it is not verified, these are choices: a connection is for one
//! registration, and links without an api-version are refused.

use std::sync::{Arc, OnceLock};
use std::time::SystemTime;

use fe2o3_amqp::types::messaging::{Data, Message};
use fe2o3_amqp::types::performatives::Attach;
use fe2o3_amqp::types::primitives::{Symbol, Value};
use tokio::sync::{Mutex, mpsc};

use super::condition::LinkRefusal;
use crate::emulator::provisioning::{DoorError, ProvisioningDesk, Reception, RegistrationClaim};
use crate::message::excerpt;

/// Most answers that wait for the client, which asks one question at a time.
const MAX_WAITING: usize = 16;

/// The property of a link that has the version of the service's API.
const API_VERSION: &str = "com.microsoft:api-version";

/// An answer of the service.
pub(super) type DpsReply = Message<Data>;

/// A client that has passed the door.
pub(super) struct Enrollee {
    pub(super) desk: ProvisioningDesk,
    pub(super) claim: RegistrationClaim,
    /// The port of the hubs' AMQP, if a client would dial another one.
    pub(super) port: Option<u16>,
    id_scope: String,
    pub(super) queue: mpsc::Sender<DpsReply>,
    /// The link that sends answers holds the lock.
    pub(super) replies: Mutex<mpsc::Receiver<DpsReply>>,
}

/// The door of the service on one connection, which one client can pass.
pub(super) struct ConnectionDoor {
    reception: Reception,
    passed: OnceLock<Arc<Enrollee>>,
}

/// The scope and the registration id of a link's address or of a user name, `{scope}/registrations/{id}`.
pub(super) fn registration(text: &str) -> Option<(&str, &str)> {
    let (id_scope, rest) = text.split_once('/')?;
    let id = rest.strip_prefix("registrations/")?;
    (!id_scope.is_empty() && !id.is_empty() && !id.contains('/')).then_some((id_scope, id))
}

impl ConnectionDoor {
    pub(super) fn new(reception: Reception) -> Self {
        Self { reception, passed: OnceLock::new() }
    }

    /// Lets in the client of SASL PLAIN. `now` is the real time.
    ///
    /// # Errors
    /// [`DoorError`]; the client must only learn that it is not authorised.
    pub(super) fn sign_in(
        &self,
        (id_scope, registration_id): (&str, &str),
        token: &str,
        now: SystemTime,
    ) -> Result<(), DoorError> {
        let admitted = self.admit(id_scope, registration_id, Some(token), now)?;
        self.passed.get_or_init(|| admitted);
        Ok(())
    }

    /// The client of a link at this address. If it has not signed in, its certificate must let it in.
    ///
    /// # Errors
    /// The service's error for a client that may not have the link.
    pub(super) fn at(
        &self,
        attach: &Attach,
        (id_scope, registration_id): (&str, &str),
        now: SystemTime,
    ) -> Result<Arc<Enrollee>, LinkRefusal> {
        let version = attach.properties.as_ref().and_then(|fields| fields.get(&Symbol::from(API_VERSION)));
        if !matches!(version, Some(Value::String(version)) if !version.is_empty()) {
            return Err(LinkRefusal::argument(format!("the link lacks the property {API_VERSION}")));
        }
        let refused = |reason: String| {
            let registration_id = excerpt(registration_id);
            tracing::warn!(registration_id, "the provisioning service refused a link: {reason}");
            LinkRefusal::unauthorized("Unauthorized")
        };
        let enrollee = match self.passed.get() {
            Some(enrollee) => Arc::clone(enrollee),
            None => match self.admit(id_scope, registration_id, None, now) {
                Ok(admitted) => Arc::clone(self.passed.get_or_init(|| admitted)),
                Err(error @ DoorError::Closed) => return Err(LinkRefusal::no_address(error.to_string())),
                Err(error) => return Err(refused(error.to_string())),
            },
        };
        let is_own = enrollee.claim.registration_id == registration_id
            && enrollee.id_scope.eq_ignore_ascii_case(id_scope);
        if is_own {
            return Ok(enrollee);
        }
        let own = &enrollee.claim.registration_id;
        Err(refused(format!("the connection is for the registration \"{own}\"")))
    }

    fn admit(
        &self,
        id_scope: &str,
        registration_id: &str,
        token: Option<&str>,
        now: SystemTime,
    ) -> Result<Arc<Enrollee>, DoorError> {
        let (desk, claim) = self.reception.admit(id_scope, registration_id, token, now)?;
        tracing::info!(
            registration_id = claim.registration_id,
            "a device asks the provisioning service over AMQP"
        );
        let (port, id_scope) = (self.reception.amqp_port, id_scope.to_owned());
        let (queue, replies) = mpsc::channel(MAX_WAITING);
        let replies = Mutex::new(replies);
        Ok(Arc::new(Enrollee { desk, claim, port, id_scope, queue, replies }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_registration_has_a_scope_and_an_id() {
        assert_eq!(registration("0ne00000001/registrations/pump-12"), Some(("0ne00000001", "pump-12")));
        for text in [
            "",
            "0ne/registrations/",
            "/registrations/a",
            "0ne/registrations/a/b",
            "devices/a/twin",
            "a@sas.h",
        ] {
            assert_eq!(registration(text), None, "{text}");
        }
    }
}
