//! Translates the AMQP crate's errors into [`ServiceError`].
//!
//! Owns: which errors are a refusal of the hub and which are a lost connection. Must not know: messages.

use std::io;
use std::time::SystemTime;

use fe2o3_amqp::connection::{ConnectionStopReason, OpenError};
use fe2o3_amqp::link::{
    DetachError, IllegalLinkStateError, LinkStateError, ReceiverAttachError, RecvError, SendError,
    SenderAttachError, SessionStopReason,
};
use fe2o3_amqp::session::BeginError;
use fe2o3_amqp::types::definitions;

use super::ServiceError;
use super::identity::ServiceIdentity;
use super::refusal::{Refusal, RefusedRequest};
use crate::amqp_frames::Failed;

pub(super) fn of_open(error: OpenError, identity: &ServiceIdentity, now: SystemTime) -> ServiceError {
    match error {
        OpenError::SaslError { .. } => ServiceError::NotAuthorised {
            host: identity.host.to_string(),
            who: identity.who().to_string(),
            remedy: identity.who().remedy(now, TO_CONNECT),
        },
        OpenError::RemoteClosedWithError(error) => refused(&error, RefusedRequest::Connection),
        OpenError::ProtocolHeaderMismatch(_) => ServiceError::Unreachable(format!(
            "{} answers over TLS, but not with AMQP: check the port",
            identity.host
        )),
        OpenError::Io(error) => ServiceError::Unreachable(unopened(&error, identity)),
        error => ServiceError::Lost(error.to_string()),
    }
}

/// The failure with its real reason, if it began with input of the hub that the guard refused.
pub(super) fn explained(error: ServiceError, failed: &Failed) -> ServiceError {
    match (error, failed.get()) {
        (ServiceError::Lost(_) | ServiceError::Unreachable(_), Some(reason)) => {
            ServiceError::Lost(reason.to_string())
        }
        (error, _) => error,
    }
}

/// The sentence for a connection that ended between the TLS handshake and the AMQP one.
fn unopened(error: &io::Error, identity: &ServiceIdentity) -> String {
    use io::ErrorKind::*;
    let host = &identity.host;
    match error.kind() {
        ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof => format!(
            "{host} closed the connection before it answered: check that HostName and its port are those of an IoT \
             Hub (AMQP, 5671)"
        ),
        _ => format!("the connection to {host} failed: {error}"),
    }
}

pub(super) fn of_begin(error: BeginError) -> ServiceError {
    match error {
        BeginError::ConnectionStopped(reason) => of_connection_stop(reason, RefusedRequest::Connection),
        BeginError::RemoteEndedWithError(error) => refused(&error, RefusedRequest::Connection),
        error => ServiceError::Lost(error.to_string()),
    }
}

pub(super) fn of_sender_attach(error: SenderAttachError, asked: RefusedRequest<'_>) -> ServiceError {
    match error {
        SenderAttachError::SessionStopped(reason) => of_session_stop(reason, RefusedRequest::Connection),
        SenderAttachError::RemoteClosedWithError(error) => refused(&error, asked),
        error => ServiceError::Lost(error.to_string()),
    }
}

pub(super) fn of_receiver_attach(error: ReceiverAttachError, asked: RefusedRequest<'_>) -> ServiceError {
    match error {
        ReceiverAttachError::SessionStopped(reason) => of_session_stop(reason, RefusedRequest::Connection),
        ReceiverAttachError::RemoteClosedWithError(error) => refused(&error, asked),
        error => ServiceError::Lost(error.to_string()),
    }
}

/// For a message that is being sent: it may or may not be in the queue.
pub(super) fn of_send(error: SendError) -> ServiceError {
    of_sending(error, RefusedRequest::Sending)
}

/// For a request to a node, such as `$cbs`.
pub(super) fn of_request(error: SendError) -> ServiceError {
    of_sending(error, RefusedRequest::Connection)
}

fn of_sending(error: SendError, asked: RefusedRequest<'_>) -> ServiceError {
    match error {
        SendError::LinkStateError(error) => of_link_state(error, asked),
        SendError::Detached(error) => match error {
            DetachError::SessionStopped(reason) => of_session_stop(reason, asked),
            DetachError::RemoteDetachedWithError(error) | DetachError::RemoteClosedWithError(error) => {
                refused(&error, asked)
            }
            _ => closed(),
        },
        SendError::MessageSizeExceeded(_) => {
            refused(&definitions::LinkError::MessageSizeExceeded.into(), asked)
        }
        error => ServiceError::Lost(error.to_string()),
    }
}

pub(super) fn of_receive(error: RecvError) -> ServiceError {
    match error {
        RecvError::LinkStateError(error) => of_link_state(error, RefusedRequest::Reading),
        error => ServiceError::Lost(error.to_string()),
    }
}

/// For feedback that is requested or settled.
pub(super) fn of_settlement(error: IllegalLinkStateError) -> ServiceError {
    match error {
        IllegalLinkStateError::SessionStopped(reason) => of_session_stop(reason, RefusedRequest::Reading),
        IllegalLinkStateError::IllegalState => closed(),
    }
}

/// The hub closed the link without a reason.
fn closed() -> ServiceError {
    ServiceError::Lost("the hub has closed the link and gave no reason".to_owned())
}

pub(super) fn refused(error: &definitions::Error, asked: RefusedRequest<'_>) -> ServiceError {
    ServiceError::Refused(Refusal::new(error, asked))
}

fn of_link_state(error: LinkStateError, asked: RefusedRequest<'_>) -> ServiceError {
    match error {
        LinkStateError::SessionStopped(reason) => of_session_stop(reason, asked),
        LinkStateError::RemoteDetachedWithError(error) | LinkStateError::RemoteClosedWithError(error) => {
            refused(&error, asked)
        }
        _ => closed(),
    }
}

fn of_session_stop(reason: SessionStopReason, asked: RefusedRequest<'_>) -> ServiceError {
    match reason {
        SessionStopReason::RemoteEndedWithError(error) => refused(&error, asked),
        SessionStopReason::ConnectionStopped(reason) => of_connection_stop(reason, asked),
        SessionStopReason::EndedWithError(error) => ServiceError::Lost(error.to_string()),
        SessionStopReason::Ended | SessionStopReason::RemoteEnded => {
            ServiceError::Lost("the session has ended".to_owned())
        }
    }
}

fn of_connection_stop(reason: ConnectionStopReason, asked: RefusedRequest<'_>) -> ServiceError {
    match reason {
        ConnectionStopReason::RemoteClosedWithError(error) => refused(&error, asked),
        ConnectionStopReason::ClosedWithError(error) => ServiceError::Lost(error.to_string()),
        ConnectionStopReason::Closed => ServiceError::Lost("the network connection has ended".to_owned()),
        ConnectionStopReason::RemoteClosed => ServiceError::Lost("the hub has closed it".to_owned()),
    }
}

/// The right that most requests need, in words for [`Who::remedy`](super::identity::Who::remedy).
pub(super) const TO_CONNECT: &str = "the permission ServiceConnect";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::ServiceConnectionString;
    use std::time::Duration;

    #[test]
    fn a_peer_that_hangs_up_before_it_answers_is_told_without_the_crates_words() {
        let identity =
            ServiceConnectionString::parse("HostName=h;SharedAccessKeyName=p;SharedAccessKey=AAAA")
                .expect("valid")
                .into();
        let error = OpenError::Io(io::Error::from(io::ErrorKind::ConnectionReset));
        assert_eq!(
            of_open(error, &identity, SystemTime::UNIX_EPOCH).to_string(),
            "h closed the connection before it answered: check that HostName and its port are those of an IoT Hub \
             (AMQP, 5671)"
        );
    }

    #[test]
    fn a_refused_sign_in_names_the_clock_when_it_is_not_set() {
        let text = "HostName=h;SharedAccessKeyName=service;SharedAccessKey=AAAA";
        let identity = ServiceConnectionString::parse(text).expect("valid").into();
        let refused = |now| {
            let code = fe2o3_amqp::types::sasl::SaslCode::Auth;
            of_open(OpenError::SaslError { code, additional_data: None }, &identity, now).to_string()
        };
        assert!(refused(SystemTime::UNIX_EPOCH).contains("clock says 1970-01-01T00:00:00Z"));
        let error = refused(SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000));
        assert!(
            error.starts_with("h does not accept the policy \"service\": check its name and key"),
            "{error}"
        );
    }
}
