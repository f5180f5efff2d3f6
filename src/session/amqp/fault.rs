//! Translates the AMQP crate's errors into [`Fault`].
//!
//! Owns: what each condition of the hub means to a device. Must not know: retries, sentences.
//! Source: wire reference 2.8.

use std::time::SystemTime;

use fe2o3_amqp::connection::ConnectionStopReason;
use fe2o3_amqp::link::{
    DetachError, LinkStateError, ReceiverAttachError, RecvError, SendError, SenderAttachError,
    SessionStopReason,
};
use fe2o3_amqp::session::BeginError;
use fe2o3_amqp::types::definitions::{AmqpError, Error, ErrorCondition, LinkError};
use fe2o3_amqp::types::messaging::Outcome;
use fe2o3_amqp::types::primitives::Symbol;

use crate::session::failure::Fault;
use crate::session::upstream::PublishError;

/// What the hub said.
pub(super) fn of_error(error: &Error, now: SystemTime) -> Fault {
    let said = error.description.clone().unwrap_or_default();
    match &error.condition {
        ErrorCondition::AmqpError(AmqpError::UnauthorizedAccess) => Fault::NotAuthorised { now },
        ErrorCondition::AmqpError(AmqpError::NotFound) => Fault::UnknownDevice { said },
        ErrorCondition::LinkError(LinkError::Stolen) => Fault::Stolen,
        ErrorCondition::AmqpError(AmqpError::ResourceLimitExceeded) => Fault::Throttled { said },
        condition => match symbol(condition).as_str() {
            "com.microsoft:device-container-throttled" | "com.microsoft:quota-exceeded" => {
                Fault::Throttled { said }
            }
            "com.microsoft:iot-hub-suspended" | "com.microsoft:iot-hub-not-found-error" => {
                Fault::Suspended { said }
            }
            other => Fault::HubSaid { condition: other.to_owned(), description: said },
        },
    }
}

pub(super) fn of_begin(error: BeginError, now: SystemTime) -> Fault {
    match error {
        BeginError::ConnectionStopped(reason) => of_connection_stop(reason, now),
        BeginError::RemoteEndedWithError(error) => of_error(&error, now),
        error => Fault::Protocol { reason: error.to_string() },
    }
}

pub(super) fn of_sender_attach(error: SenderAttachError, now: SystemTime) -> Fault {
    match error {
        SenderAttachError::SessionStopped(reason) => of_session_stop(reason, now),
        SenderAttachError::RemoteClosedWithError(error) => of_error(&error, now),
        error => Fault::Protocol { reason: error.to_string() },
    }
}

pub(super) fn of_receiver_attach(error: ReceiverAttachError, now: SystemTime) -> Fault {
    match error {
        ReceiverAttachError::SessionStopped(reason) => of_session_stop(reason, now),
        ReceiverAttachError::RemoteClosedWithError(error) => of_error(&error, now),
        error => Fault::Protocol { reason: error.to_string() },
    }
}

pub(super) fn of_receive(error: RecvError, now: SystemTime) -> Fault {
    match error {
        RecvError::LinkStateError(error) => of_link_state(error, now),
        error => Fault::Protocol { reason: error.to_string() },
    }
}

pub(super) fn of_send(error: SendError, now: SystemTime) -> Fault {
    match error {
        SendError::LinkStateError(error) => of_link_state(error, now),
        SendError::Detached(DetachError::SessionStopped(reason)) => of_session_stop(reason, now),
        SendError::Detached(
            DetachError::RemoteDetachedWithError(error) | DetachError::RemoteClosedWithError(error),
        ) => of_error(&error, now),
        SendError::Detached(_) => Fault::Closed,
        error => Fault::Protocol { reason: error.to_string() },
    }
}

/// Why the hub did not accept a D2C message.
pub(super) fn publish_error(outcome: &Outcome) -> PublishError {
    let Outcome::Rejected(rejected) = outcome else { return PublishError::Busy(503) };
    match rejected.error.as_ref().map(|error| &error.condition) {
        Some(ErrorCondition::LinkError(LinkError::MessageSizeExceeded)) => PublishError::Refused(413),
        Some(ErrorCondition::AmqpError(AmqpError::ResourceLimitExceeded)) => PublishError::Busy(429),
        Some(condition) if symbol(condition) == "com.microsoft:device-container-throttled" => {
            PublishError::Busy(429)
        }
        Some(ErrorCondition::AmqpError(AmqpError::InternalError)) => PublishError::Busy(500),
        _ => PublishError::Refused(400),
    }
}

/// Why a link cannot be used.
pub(super) fn of_link_state(error: LinkStateError, now: SystemTime) -> Fault {
    match error {
        LinkStateError::SessionStopped(reason) => of_session_stop(reason, now),
        LinkStateError::RemoteDetachedWithError(error) | LinkStateError::RemoteClosedWithError(error) => {
            of_error(&error, now)
        }
        _ => Fault::Closed,
    }
}

fn of_session_stop(reason: SessionStopReason, now: SystemTime) -> Fault {
    match reason {
        SessionStopReason::RemoteEndedWithError(error) => of_error(&error, now),
        SessionStopReason::ConnectionStopped(reason) => of_connection_stop(reason, now),
        _ => Fault::Closed,
    }
}

fn of_connection_stop(reason: ConnectionStopReason, now: SystemTime) -> Fault {
    match reason {
        ConnectionStopReason::RemoteClosedWithError(error) => of_error(&error, now),
        _ => Fault::Closed,
    }
}

/// A condition, spelled as on the wire.
pub(super) fn symbol(condition: &ErrorCondition) -> String {
    match condition {
        ErrorCondition::AmqpError(error) => Symbol::from(error).into_inner(),
        ErrorCondition::ConnectionError(error) => Symbol::from(error).into_inner(),
        ErrorCondition::SessionError(error) => Symbol::from(error).into_inner(),
        ErrorCondition::LinkError(error) => Symbol::from(error).into_inner(),
        ErrorCondition::Custom(symbol) => symbol.as_str().to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::failure::{Failure, Who};

    /// What a person reads if a hub ends a link with this condition.
    fn sentence(condition: impl Into<ErrorCondition>) -> String {
        let error = Error::new(condition, Some("words of the hub".to_owned()), None);
        let fault = of_error(&error, SystemTime::UNIX_EPOCH);
        Failure { peer: "hub.example:5671".into(), who: Who { kind: "device", id: "dev1".into() }, fault }
            .to_string()
    }

    fn custom(symbol: &str) -> ErrorCondition {
        ErrorCondition::Custom(Symbol::from(symbol))
    }

    #[test]
    fn each_condition_of_the_hub_has_its_sentence() {
        let expected = [
            (AmqpError::UnauthorizedAccess.into(), "hub.example:5671 refused device dev1: the key"),
            (AmqpError::NotFound.into(), "has no device dev1 (words of the hub): check the device id"),
            (
                LinkError::Stolen.into(),
                "another program has signed in at hub.example:5671 with the same device id dev1",
            ),
            (AmqpError::ResourceLimitExceeded.into(), "is throttling device dev1 or its quota is used up"),
            (custom("com.microsoft:device-container-throttled"), "is throttling device dev1"),
            (custom("com.microsoft:iot-hub-suspended"), "is suspended or gone (words of the hub)"),
            (custom("com.microsoft:timeout"), "(com.microsoft:timeout: words of the hub)"),
            (AmqpError::InternalError.into(), "(amqp:internal-error: words of the hub)"),
        ];
        for (condition, part) in expected {
            let said = sentence(condition);
            assert!(said.contains(part), "{said}");
        }
    }

    #[test]
    fn only_a_device_that_is_not_let_in_ends_the_first_attempt() {
        let refuses = |condition: ErrorCondition| {
            let fault = of_error(&Error::new(condition, None, None), SystemTime::UNIX_EPOCH);
            Failure { peer: String::new(), who: Who { kind: "device", id: String::new() }, fault }
                .is_refusal()
        };
        assert!(refuses(AmqpError::UnauthorizedAccess.into()) && refuses(AmqpError::NotFound.into()));
        assert!(!refuses(LinkError::Stolen.into()) && !refuses(custom("com.microsoft:iot-hub-suspended")));
    }
}
