//! Sentences for the hub's refusals.
//!
//! Owns: what each AMQP error condition means for a sender, and the remedy. Must not know: links, sockets.

use std::fmt;
use std::time::Duration;

use fe2o3_amqp::types::definitions::{self, ErrorCondition};
use fe2o3_amqp::types::primitives::{Symbol, Value};

use super::identity::Who;

/// The longest text of the hub that a sentence repeats, in characters.
const EXCERPT_CHARS: usize = 300;

/// What the hub was asked for when it refused.
#[derive(Debug, Clone, Copy)]
pub(super) enum RefusedRequest<'a> {
    /// Queue a message for this device.
    Message { device_id: &'a str },
    /// Let a policy or a principal use a link.
    Link { who: &'a Who },
    /// Read the messages of devices in this consumer group.
    Events { group: &'a str },
    /// Keep the link on which a message was being sent.
    Sending,
    /// Keep the link that reads feedback.
    Reading,
    /// Keep the connection.
    Connection,
}

/// What to do if the hub was lost before it answered a message.
pub(super) const OPEN_QUESTION: &str = "it is not known whether the message is queued: send it again with \
                                        the same --message-id; a device runs it only once if that id has a \
                                        UUID in it";

/// What a refusal of a message is about, so what follows for it and for the messages after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RefusalScope {
    /// This message, or its device: the hub refuses it again.
    Message,
    /// The device, whose queue is full: the hub takes the message once the device has taken some.
    Device,
    /// The hub, which has had too many requests: it takes the same message a little later.
    Throttling,
    /// The hub, which failed: it may take the same message a little later.
    Passing,
    /// The hub, which takes nothing more until its next day.
    Quota,
    /// The hub, which takes nothing from this program until a person has changed something.
    Hub,
}

/// A refusal: its meaning, and the hub's own words.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Refusal {
    /// The AMQP error condition, such as `amqp:not-found`.
    pub condition: String,
    /// The hub's description; may be empty.
    pub description: String,
    /// The id by which the hub's operators find the case.
    pub tracking_id: Option<String>,
    /// How many seconds the hub wants to be left alone, if it says so. UNVERIFIED: its name is the one of HTTP.
    pub(crate) retry_after: Option<u32>,
    pub(crate) code: Option<u32>,
    pub(crate) meaning: String,
}

impl Refusal {
    pub(super) fn new(error: &definitions::Error, asked: RefusedRequest<'_>) -> Self {
        let condition = symbol(&error.condition).0;
        let description = excerpt(error.description.as_deref().unwrap_or_default());
        let info = |name: &str| error.info.as_ref().and_then(|info| info.get(&Symbol::from(name)));
        let tracking_id = match info("com.microsoft:tracking-id") {
            Some(Value::String(id)) => Some(excerpt(id)),
            _ => None,
        };
        let number = |name: &str| match info(name) {
            Some(Value::Int(number)) => u32::try_from(*number).ok(),
            Some(Value::Uint(number)) => Some(*number),
            Some(Value::Long(number)) => u32::try_from(*number).ok(),
            _ => None,
        };
        let code = number("com.microsoft:error-code");
        let retry_after = number("Retry-After");
        let meaning = meaning(&condition, &description, code, asked);
        Self { condition, description, tracking_id, retry_after, code, meaning }
    }
}

impl Refusal {
    /// Whether a retry is useless until a person has changed something.
    pub fn is_lasting(&self) -> bool {
        LASTING.contains(&self.condition.as_str())
    }

    /// What it is about. Source: wire reference 2.8; the error codes 429xxx and 5xxxxx are those of Microsoft's C# SDK.
    pub fn scope(&self) -> RefusalScope {
        let kind = self.code.map_or(0, |code| code / 1000);
        match self.condition.as_str() {
            _ if self.is_quota() => RefusalScope::Quota,
            condition if condition.ends_with("throttled") || kind == 429 => RefusalScope::Throttling,
            "amqp:resource-limit-exceeded" => RefusalScope::Device,
            condition if PASSING.contains(&condition) || kind / 100 == 5 => RefusalScope::Passing,
            condition if OF_THE_HUB.contains(&condition) => RefusalScope::Hub,
            _ => RefusalScope::Message,
        }
    }

    /// How long the hub wants to be left alone, if it says so.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after.map(|seconds| Duration::from_secs(seconds.into()))
    }

    /// Whether the hub takes nothing more until its next day.
    pub fn is_quota(&self) -> bool {
        is_quota(&self.condition, &self.description, self.code)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}", self.meaning, self.condition)?;
        if !self.description.is_empty() {
            write!(f, ": {}", self.description)?;
        }
        if let Some(id) = &self.tracking_id {
            write!(f, "; tracking id {id}")?;
        }
        f.write_str(")")
    }
}

/// Source of the symbols: wire reference 2.8 and 4.3.
fn meaning(condition: &str, description: &str, code: Option<u32>, asked: RefusedRequest<'_>) -> String {
    let lower = description.to_ascii_lowercase();
    match (condition, asked) {
        ("amqp:not-found", RefusedRequest::Message { device_id }) => {
            format!("the hub knows no device \"{device_id}\": check --device, or the list")
        }
        ("amqp:not-found", RefusedRequest::Events { group }) => {
            format!("the Event Hubs endpoint has no consumer group \"{group}\": make it, or use $Default")
        }
        ("amqp:resource-limit-exceeded", RefusedRequest::Events { group }) => format!(
            "the consumer group \"{group}\" has as many readers as it may have: end another one, or give another group \
             with --consumer-group"
        ),
        ("amqp:not-found", _) => {
            "the hub has no such address: C2D messages need a hub of the Standard or Free tier".to_owned()
        }
        _ if is_quota(condition, description, code) => {
            "the hub has used up its message quota of the day: wait until it is renewed, or add units to the hub"
                .to_owned()
        }
        ("amqp:resource-limit-exceeded", RefusedRequest::Message { device_id }) => format!(
            "the queue of device \"{device_id}\" is full (50 messages): the device is offline or slow; wait until it \
             has taken some, or purge its queue"
        ),
        ("amqp:resource-limit-exceeded", _) => {
            "the hub allows no more links or connections at the moment: end other senders and readers of feedback, or wait"
                .to_owned()
        }
        ("amqp:link:stolen", _) => {
            "another connection has taken the link: end the other program that uses it".to_owned()
        }
        ("amqp:link:detach-forced" | "amqp:connection:forced", _) => {
            "the hub ended the link, for example because it is busy or being moved: try again".to_owned()
        }
        ("amqp:link:redirect" | "amqp:connection:redirect", _) => {
            "the hub redirects to another address, which this program does not support: check HostName".to_owned()
        }
        ("amqp:not-allowed" | "amqp:not-implemented", _) => {
            "the hub does not support this: check that the policy has ServiceConnect, and that the hub is of \
             the Standard or Free tier"
                .to_owned()
        }
        ("com.microsoft:message-lock-lost", _) => {
            "the lock on the feedback has expired: the hub sends it again".to_owned()
        }
        ("amqp:link:message-size-exceeded", RefusedRequest::Message { .. } | RefusedRequest::Sending) => {
            "the message is too large for the hub: at most 64 KiB, properties included".to_owned()
        }
        (BAD_ARGUMENT | BAD_RANGE, _) if code == Some(403_009) || lower.contains("expir") => {
            "the hub refused the expiry time: it is in the past or more than two days ahead; check --expiry \
             and this machine's clock"
                .to_owned()
        }
        (BAD_ARGUMENT | BAD_RANGE, _) => "the hub refused an argument of the message".to_owned(),
        ("amqp:unauthorized-access", RefusedRequest::Link { who }) => {
            format!("{who} may not do this: {}", who.needed())
        }
        ("amqp:unauthorized-access", _) => {
            "the hub no longer allows this: check that the policy has ServiceConnect, its key, and this \
             machine's clock"
                .to_owned()
        }
        ("com.microsoft:device-container-throttled", RefusedRequest::Reading | RefusedRequest::Link { .. }) => {
            "the hub is throttling: wait, and ask less often".to_owned()
        }
        ("com.microsoft:device-container-throttled", _) => {
            "the hub is throttling: it takes about 100 C2D messages a minute for each unit; wait and send again"
                .to_owned()
        }
        ("com.microsoft:iot-hub-suspended", _) => {
            "the hub is suspended: check the Azure subscription".to_owned()
        }
        ("com.microsoft:iot-hub-not-found-error", _) => {
            "there is no such hub: check HostName in the service connection string".to_owned()
        }
        ("amqp:internal-error" | "com.microsoft:timeout", _) => {
            "the hub failed to do it: try again later".to_owned()
        }
        (_, RefusedRequest::Message { device_id }) => format!("the hub refused the message to device \"{device_id}\""),
        (_, RefusedRequest::Link { .. } | RefusedRequest::Events { .. }) => "the hub refused the link".to_owned(),
        (_, RefusedRequest::Sending | RefusedRequest::Reading) => "the hub ended the link".to_owned(),
        (_, RefusedRequest::Connection) => "the hub ended the connection".to_owned(),
    }
}

fn is_quota(condition: &str, description: &str, code: Option<u32>) -> bool {
    let said = code == Some(403_002) || description.to_ascii_lowercase().contains("quota");
    condition == "com.microsoft:quota-exceeded" || condition == "amqp:resource-limit-exceeded" && said
}

/// Conditions that stay until a person has changed something.
const LASTING: [&str; 8] = [
    "amqp:not-found",
    "amqp:not-allowed",
    "amqp:not-implemented",
    "amqp:link:redirect",
    "amqp:connection:redirect",
    "com.microsoft:iot-hub-not-found-error",
    BAD_ARGUMENT,
    BAD_RANGE,
];

/// Conditions of a hub that is busy or being moved.
const PASSING: [&str; 6] = [
    "amqp:internal-error",
    "amqp:link:detach-forced",
    "amqp:link:stolen",
    "amqp:connection:forced",
    "com.microsoft:timeout",
    "com.microsoft:server-busy",
];

/// Conditions that all messages meet until a person has changed something.
const OF_THE_HUB: [&str; 7] = [
    "amqp:unauthorized-access",
    "amqp:not-allowed",
    "amqp:not-implemented",
    "amqp:link:redirect",
    "amqp:connection:redirect",
    "com.microsoft:iot-hub-not-found-error",
    "com.microsoft:iot-hub-suspended",
];

const BAD_ARGUMENT: &str = "com.microsoft:argument-error";
const BAD_RANGE: &str = "com.microsoft:argument-out-of-range";

fn symbol(condition: &ErrorCondition) -> Symbol {
    match condition {
        ErrorCondition::AmqpError(error) => error.into(),
        ErrorCondition::ConnectionError(error) => error.into(),
        ErrorCondition::SessionError(error) => error.into(),
        ErrorCondition::LinkError(error) => error.into(),
        ErrorCondition::Custom(symbol) => Symbol(excerpt(symbol.as_str())),
    }
}

/// Foreign text for a terminal: limited in length, without control characters.
pub(super) fn excerpt(text: &str) -> String {
    let plain = |c: char| if c.is_control() { ' ' } else { c };
    let mut short: String = text.chars().take(EXCERPT_CHARS).map(plain).collect();
    if text.chars().nth(EXCERPT_CHARS).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use fe2o3_amqp::types::definitions::{AmqpError, Fields};

    const DEVICE: RefusedRequest<'static> = RefusedRequest::Message { device_id: "dev1" };

    fn refusal(condition: impl Into<ErrorCondition>, description: &str, asked: RefusedRequest<'_>) -> String {
        Refusal::new(&definitions::Error::new(condition, description.to_owned(), None), asked).to_string()
    }

    #[test]
    fn the_condition_decides_the_words() {
        assert_eq!(
            refusal(AmqpError::NotFound, "no such device", DEVICE),
            "the hub knows no device \"dev1\": check --device, or the list (amqp:not-found: no such device)"
        );
        assert!(refusal(AmqpError::ResourceLimitExceeded, "", DEVICE).contains("is full (50 messages)"));
        assert!(refusal(AmqpError::ResourceLimitExceeded, "Quota", DEVICE).contains("quota of the day"));
        let who = Who::Policy("device".to_owned());
        let link = RefusedRequest::Link { who: &who };
        assert!(refusal(AmqpError::UnauthorizedAccess, "", link).contains("\"device\""));
    }

    #[test]
    fn what_a_refusal_is_about_decides_what_follows() {
        let scope = |condition: &str, description: &str, code: Option<u32>| {
            let info = code.map(|code| {
                let mut info = Fields::new();
                info.insert(Symbol::from("com.microsoft:error-code"), Value::Uint(code));
                info
            });
            let condition = ErrorCondition::Custom(Symbol::from(condition));
            Refusal::new(&definitions::Error::new(condition, description.to_owned(), info), DEVICE).scope()
        };
        for (condition, description, code, expected) in [
            ("amqp:not-found", "", Some(404_001), RefusalScope::Message),
            ("amqp:link:message-size-exceeded", "", None, RefusalScope::Message),
            (BAD_ARGUMENT, "", Some(400_004), RefusalScope::Message),
            ("com.example:odd", "", None, RefusalScope::Message),
            ("amqp:resource-limit-exceeded", "", Some(403_004), RefusalScope::Device),
            ("amqp:resource-limit-exceeded", "", Some(403_002), RefusalScope::Quota),
            ("com.microsoft:quota-exceeded", "", None, RefusalScope::Quota),
            ("com.microsoft:device-container-throttled", "", None, RefusalScope::Throttling),
            ("com.example:odd", "", Some(429_002), RefusalScope::Throttling),
            ("com.example:odd", "", Some(500_001), RefusalScope::Passing),
            ("amqp:internal-error", "", None, RefusalScope::Passing),
            ("amqp:unauthorized-access", "", Some(401_003), RefusalScope::Hub),
            ("com.microsoft:iot-hub-suspended", "", None, RefusalScope::Hub),
        ] {
            assert_eq!(scope(condition, description, code), expected, "{condition} {code:?}");
        }
    }

    #[test]
    fn an_unknown_condition_is_shown_with_its_tracking_id() {
        let mut info = Fields::new();
        info.insert(Symbol::from("com.microsoft:tracking-id"), Value::String("t-1".into()));
        let condition = ErrorCondition::Custom(Symbol::from("com.example:odd"));
        let error = definitions::Error::new(condition, "because\u{7}".to_owned(), info);
        assert_eq!(
            Refusal::new(&error, DEVICE).to_string(),
            "the hub refused the message to device \"dev1\" (com.example:odd: because ; tracking id t-1)"
        );
    }

    #[test]
    fn a_bad_expiry_is_told_from_other_arguments() {
        let condition = || ErrorCondition::Custom(Symbol::from(BAD_ARGUMENT));
        assert!(refusal(condition(), "The expiry is past", DEVICE).contains("--expiry"));
        assert!(refusal(condition(), "bad to", DEVICE).contains("an argument of the message"));
    }
}
