//! Errors in the form that AMQP sends: condition, description, tracking id.
//!
//! Owns: the symbols. Must not know: links.
//! Source: wire reference 2.8 and 4.3.

use fe2o3_amqp::types::definitions::{AmqpError, Error, ErrorCondition, Fields, LinkError};
use fe2o3_amqp::types::primitives::{Symbol, Value};

use crate::emulator::event_hub::EventHub;
use crate::emulator::hub::{EnqueueError, TooSoon};

/// Why a link or a message is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LinkRefusal {
    pub(super) condition: ErrorCondition,
    /// The hub's code, if there is one.
    pub(super) code: Option<i32>,
    pub(super) description: String,
    /// Whole seconds until the client should come again, if the hub says so.
    pub(super) retry_after: Option<u32>,
    /// Where the link is instead, for a redirect: the Event Hub, and the path below it.
    pub(super) instead: Option<Box<(EventHub, String)>>,
}

impl LinkRefusal {
    /// The hub does not allow this property or address: 400003.
    pub(super) fn argument(description: impl Into<String>) -> Self {
        let condition = ErrorCondition::Custom(Symbol::from("com.microsoft:argument-error"));
        Self { code: Some(400_003), ..Self::new(condition, description) }
    }

    /// The client has not signed in, or lacks the right: 401003.
    pub(super) fn unauthorized(description: impl Into<String>) -> Self {
        Self { code: Some(401_003), ..Self::new(AmqpError::UnauthorizedAccess, description) }
    }

    /// The address does not exist: 404006.
    pub(super) fn no_address(description: impl Into<String>) -> Self {
        Self { code: Some(404_006), ..Self::new(AmqpError::NotFound, description) }
    }

    /// The device, or the hub, is throttled: 429001.
    pub(super) fn throttled(description: impl Into<String>) -> Self {
        let condition = ErrorCondition::Custom(Symbol::from("com.microsoft:device-container-throttled"));
        Self { code: Some(429_001), ..Self::new(condition, description) }
    }

    pub(super) fn new(condition: impl Into<ErrorCondition>, description: impl Into<String>) -> Self {
        Self {
            condition: condition.into(),
            code: None,
            description: description.into(),
            retry_after: None,
            instead: None,
        }
    }

    /// The link is at the Event Hub-compatible endpoint: at `below` there. Source: `hub_target_builder.py` of the
    /// extension of `az` for IoT, which reads hostname and address, and AMQP 1.0, 2.8.18.
    pub(super) fn redirect(event_hub: EventHub, below: String) -> Self {
        let words = format!("the link is at {}", event_hub.address(&below));
        Self { instead: Some(Box::new((event_hub, below))), ..Self::new(LinkError::Redirect, words) }
    }
}

impl From<EnqueueError> for LinkRefusal {
    fn from(error: EnqueueError) -> Self {
        let description = error.to_string();
        let (condition, code): (ErrorCondition, _) = match error {
            EnqueueError::UnknownDevice(_) => (AmqpError::NotFound.into(), 404_001),
            EnqueueError::QueueFull(_) => (AmqpError::ResourceLimitExceeded.into(), 403_004),
            EnqueueError::Throttled(_) => return Self::throttled(description),
            EnqueueError::PropertyText(_) => return Self::argument(description),
            EnqueueError::TooLarge(_) => (LinkError::MessageSizeExceeded.into(), 413_001),
            EnqueueError::ExpiryPast(_) | EnqueueError::ExpiryTooFar(_) => {
                (ErrorCondition::Custom(Symbol::from("com.microsoft:argument-error")), 403_009)
            }
        };
        Self { code: Some(code), ..Self::new(condition, description) }
    }
}

impl From<TooSoon> for LinkRefusal {
    fn from(error: TooSoon) -> Self {
        Self { retry_after: Some(error.retry_after), ..Self::throttled(error.to_string()) }
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
        if let Some(seconds) = refusal.retry_after {
            // UNVERIFIED: its name is the one of HTTP, as at the provisioning service.
            info.insert(Symbol::from("Retry-After"), Value::Uint(seconds));
        }
        if let Some((event_hub, below)) = refusal.instead.as_deref() {
            let mut add = |name: &str, value| drop(info.insert(Symbol::from(name), value));
            add("hostname", Value::String(event_hub.host().to_string()));
            add("network-host", Value::String(event_hub.hostname.clone()));
            add("port", Value::Uint(event_hub.port.into()));
            add("address", Value::String(event_hub.address(below)));
        }
        Error::new(refusal.condition.clone(), refusal.description.clone(), info)
    }
}
