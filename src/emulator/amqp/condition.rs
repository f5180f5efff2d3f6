//! Errors in the form that AMQP sends: condition, description, tracking id.
//!
//! Owns: the symbols. Must not know: links.
//! Source: wire reference 2.8 and 4.3.

use fe2o3_amqp::types::definitions::{AmqpError, Error, ErrorCondition, Fields, LinkError};
use fe2o3_amqp::types::primitives::{Symbol, Value};

use crate::emulator::hub::EnqueueError;

/// Why a link or a message is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LinkRefusal {
    pub(super) condition: ErrorCondition,
    /// The hub's code, if there is one.
    pub(super) code: Option<i32>,
    pub(super) description: String,
}

impl LinkRefusal {
    /// The hub does not allow this property or address: 400003.
    pub(super) fn argument(description: impl Into<String>) -> Self {
        let condition = ErrorCondition::Custom(Symbol::from("com.microsoft:argument-error"));
        Self { condition, code: Some(400_003), description: description.into() }
    }

    /// The client has not signed in, or lacks the right: 401003.
    pub(super) fn unauthorized(description: impl Into<String>) -> Self {
        let condition = AmqpError::UnauthorizedAccess.into();
        Self { condition, code: Some(401_003), description: description.into() }
    }

    /// The address does not exist: 404006.
    pub(super) fn no_address(description: impl Into<String>) -> Self {
        Self { condition: AmqpError::NotFound.into(), code: Some(404_006), description: description.into() }
    }

    /// The device is throttled: 429001.
    pub(super) fn throttled(description: impl Into<String>) -> Self {
        let condition = ErrorCondition::Custom(Symbol::from("com.microsoft:device-container-throttled"));
        Self { condition, code: Some(429_001), description: description.into() }
    }

    pub(super) fn new(condition: impl Into<ErrorCondition>, description: impl Into<String>) -> Self {
        Self { condition: condition.into(), code: None, description: description.into() }
    }
}

impl From<EnqueueError> for LinkRefusal {
    fn from(error: EnqueueError) -> Self {
        let description = error.to_string();
        let (condition, code) = match error {
            EnqueueError::UnknownDevice(_) => (AmqpError::NotFound.into(), 404_001),
            EnqueueError::QueueFull(_) => (AmqpError::ResourceLimitExceeded.into(), 403_004),
            EnqueueError::Throttled(_) => return Self::throttled(description),
            EnqueueError::PropertyText(_) => return Self::argument(description),
            EnqueueError::TooLarge(_) => (LinkError::MessageSizeExceeded.into(), 413_001),
            EnqueueError::ExpiryPast(_) | EnqueueError::ExpiryTooFar(_) => {
                (ErrorCondition::Custom(Symbol::from("com.microsoft:argument-error")), 403_009)
            }
        };
        Self { condition, code: Some(code), description }
    }
}

impl From<&LinkRefusal> for Error {
    /// Each error has its own tracking id, as the hub's errors do. The log has it together with the refusal.
    fn from(refusal: &LinkRefusal) -> Self {
        let tracking_id = uuid::Uuid::new_v4().to_string();
        tracing::debug!(description = refusal.description, tracking_id, "refused");
        let mut info = Fields::new();
        info.insert(Symbol::from("com.microsoft:tracking-id"), Value::String(tracking_id));
        if let Some(code) = refusal.code {
            info.insert(Symbol::from("com.microsoft:error-code"), Value::Int(code));
        }
        Error::new(refusal.condition.clone(), refusal.description.clone(), info)
    }
}
