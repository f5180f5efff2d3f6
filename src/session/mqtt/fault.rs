//! Translates rumqttc's errors into [`Fault`].
//!
//! Owns: what each of its errors means to a device. Must not know: retries, sentences.

use rumqttc::mqttbytes::Error as CodecError;
use rumqttc::{ConnectReturnCode, ConnectionError, StateError, TlsError};

use super::hand_over::PACKET_LIMIT;
use crate::session::dial::{ANSWER_LIMIT, Dial};
use crate::session::failure::{self, Fault};

/// What an error of this connection means.
pub(super) fn of_connection(error: ConnectionError, dial: &Dial) -> Fault {
    match error {
        ConnectionError::NetworkTimeout => Fault::Unanswered { within: ANSWER_LIMIT },
        ConnectionError::FlushTimeout => Fault::Silent,
        ConnectionError::Io(error) | ConnectionError::Tls(TlsError::Io(error)) => {
            failure::from_io(&error, &dial.host)
        }
        ConnectionError::Tls(TlsError::TLS(error)) => failure::of_tls(&error, &dial.host),
        ConnectionError::Tls(error) => Fault::Tls { sentence: error.to_string() },
        ConnectionError::ConnectionRefused(code) => match code {
            ConnectReturnCode::BadUserNamePassword | ConnectReturnCode::NotAuthorized => {
                Fault::NotAuthorised { now: (dial.clock)() }
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
                failure::from_io(&error, &dial.host)
            }
            StateError::Deserialization(CodecError::PayloadSizeLimitExceeded(_)) => {
                Fault::TooLarge { limit: PACKET_LIMIT }
            }
            StateError::ConnectionAborted => Fault::Closed,
            StateError::AwaitPingResp => Fault::Silent,
            other => Fault::Protocol { reason: other.to_string() },
        },
    }
}
