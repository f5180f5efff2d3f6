//! Translates rumqttc's errors into [`Fault`].
//!
//! Owns: what each of its errors means to a device. Must not know: retries, sentences.

use rumqttc::mqttbytes::Error as CodecError;
use rumqttc::{ConnectReturnCode, ConnectionError, StateError, TlsError};

use super::{ANSWER_LIMIT, PACKET_LIMIT, Reader};
use crate::session::failure::{self, Fault};

impl Reader {
    /// What an error of this connection means.
    pub(super) fn fault(&self, error: ConnectionError) -> Fault {
        let fault = match error {
            ConnectionError::NetworkTimeout => Fault::Unanswered { within: ANSWER_LIMIT },
            ConnectionError::FlushTimeout => Fault::Silent,
            ConnectionError::Io(error) | ConnectionError::Tls(TlsError::Io(error)) => {
                failure::from_io(&error, &self.dial.host)
            }
            ConnectionError::Tls(TlsError::TLS(error)) => failure::of_tls(&error, &self.dial.host),
            ConnectionError::Tls(error) => Fault::Tls { sentence: error.to_string() },
            ConnectionError::ConnectionRefused(code) => match code {
                ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
                    Fault::NotAuthorised { now: (self.dial.clock)() }
                }
                ConnectReturnCode::ServiceUnavailable => Fault::Unavailable,
                other => Fault::Protocol { reason: format!("it refused the sign-in with {other:?}") },
            },
            ConnectionError::NotConnAck(_) => {
                Fault::Protocol { reason: "its first answer is not CONNACK".into() }
            }
            ConnectionError::RequestsDone => Fault::Closed,
            ConnectionError::MqttState(error) => match error {
                StateError::Io(error) | StateError::Deserialization(CodecError::Io(error)) => {
                    failure::from_io(&error, &self.dial.host)
                }
                StateError::Deserialization(CodecError::PayloadSizeLimitExceeded(_)) => {
                    Fault::TooLarge { limit: PACKET_LIMIT }
                }
                StateError::ConnectionAborted => Fault::Closed,
                StateError::AwaitPingResp => Fault::Silent,
                other => Fault::Protocol { reason: other.to_string() },
            },
        };
        let fault = match (fault, self.far.get()) {
            (Fault::Closed, Some(error)) => failure::from_io(error, &self.dial.host),
            (fault, _) => fault,
        };
        match (fault, self.progress.borrow().signed_in) {
            (Fault::Closed, None) => Fault::ClosedBeforeSignIn,
            (Fault::Silent, None) => Fault::Unanswered { within: ANSWER_LIMIT },
            (fault, _) => fault,
        }
    }
}
