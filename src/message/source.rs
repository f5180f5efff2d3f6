//! The door that a message came through: a C2D message, an input of the module, or a direct method.
//!
//! Owns: the names that show the door to a rule, and that no sender can set them. Pure. Must not know: topics'
//! filters, answers.
//!
//! The door is in the system properties, so that it is still there after the message was stored and read again.
//! [`INPUT`] or [`METHOD`] holds a name. A message with neither is a C2D message.

use std::borrow::Cow;

use bytes::Bytes;
use percent_encoding::percent_decode_str;

use super::{C2dMessage, MESSAGE_ID, MessageError, excerpt};

/// The name by which a rule asks for the door; its value is [`Source::word`].
pub const SOURCE: &str = "$.source";
/// The module's input that a message came to.
pub const INPUT: &str = "$.input";
/// The direct method that was called.
pub const METHOD: &str = "$.method";
/// The device that sent a message to an input; the gateway sets it. Source: wire reference 1.5, 6.3.
pub const CONNECTION_DEVICE_ID: &str = "$.cdid";
/// The module of that device. Source: wire reference 1.5, 6.3.
pub const CONNECTION_MODULE_ID: &str = "$.cmid";

/// Names that no sender of a C2D message may set, because rules trust them.
const CLAIMS: [&str; 5] = [SOURCE, INPUT, METHOD, CONNECTION_DEVICE_ID, CONNECTION_MODULE_ID];
/// The names that no sender of a message to an input may set; there the gateway sets the sender's ids.
const INPUT_CLAIMS: [&str; 3] = [SOURCE, INPUT, METHOD];

/// The door that a message came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source<'m> {
    /// From the hub's queue for the device.
    C2d,
    /// This input of the module, through a route of the gateway.
    Input(&'m str),
    /// A call of this direct method. The caller waits for the answer.
    Method(&'m str),
}

impl Source<'_> {
    /// The word that `"$.source"` has in a rule.
    pub fn word(self) -> &'static str {
        match self {
            Self::C2d => "c2d",
            Self::Input(_) => "input",
            Self::Method(_) => "method",
        }
    }
}

impl C2dMessage {
    /// The door that the message came through.
    pub fn source(&self) -> Source<'_> {
        match (self.system.get(METHOD), self.system.get(INPUT)) {
            (Some(method), _) => Source::Method(method),
            (None, Some(input)) => Source::Input(input),
            (None, None) => Source::C2d,
        }
    }

    /// Removes everything from a C2D message that only this side and the gateway may set. Use it on each message that
    /// arrives.
    #[must_use]
    pub fn as_c2d(mut self) -> Self {
        self.system.remove_all(&CLAIMS);
        self
    }

    /// Reads the topic of a message to an input of a module. The bag may be missing, and also the slash before it.
    /// Source: wire reference 6.3.
    ///
    /// # Errors
    /// When the topic belongs to another module or purpose, or when its bag cannot be decoded.
    pub fn from_input_topic(
        device_id: &str,
        module_id: &str,
        topic: &str,
        body: Bytes,
    ) -> Result<Self, MessageError> {
        let foreign = || MessageError::ForeignInput(excerpt(topic));
        let rest = topic.strip_prefix(&inputs_topic(device_id, module_id)).ok_or_else(foreign)?;
        let (input, bag) = rest.split_once('/').unwrap_or((rest, ""));
        let input: Cow<'_, str> = percent_decode_str(input).decode_utf8().map_err(|_| foreign())?;
        if input.is_empty() {
            return Err(foreign());
        }
        // Some senders put a slash after the bag. Source: wire reference 1.7.
        let mut message = Self::from_bag(bag.strip_suffix('/').unwrap_or(bag), body)?;
        message.system.remove_all(&INPUT_CLAIMS);
        message.system.set(INPUT, input);
        Ok(message)
    }

    /// A call of a direct method. The receiver makes `id`, because the ids of calls are used again.
    pub fn of_method(name: &str, id: &str, payload: Bytes) -> Self {
        let mut message = Self { body: payload, ..Self::default() };
        message.system.set(MESSAGE_ID, id);
        message.system.set(METHOD, name);
        message
    }
}

/// The topic of a module's inputs without an input. With `#` after it, it is the filter to subscribe to. Source: wire
/// reference 6.3.
pub fn inputs_topic(device_id: &str, module_id: &str) -> String {
    format!("devices/{device_id}/modules/{module_id}/inputs/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn input(topic: &str) -> C2dMessage {
        C2dMessage::from_input_topic("edge1", "agent", topic, Bytes::from_static(b"{}")).expect("a message")
    }

    #[test]
    fn a_message_says_through_which_door_it_came() {
        let c2d = C2dMessage::from_topic("d", "devices/d/messages/devicebound/%24.mid=m", Bytes::new());
        assert_eq!(c2d.expect("a message").property(SOURCE), Some("c2d"));
        let input = input("devices/edge1/modules/agent/inputs/in%201/%24.cdid=edge1&%24.cmid=sensor&x=1");
        assert_eq!(input.source(), Source::Input("in 1"));
        let seen =
            [SOURCE, INPUT, CONNECTION_DEVICE_ID, CONNECTION_MODULE_ID, "x"].map(|name| input.property(name));
        assert_eq!(seen, [Some("input"), Some("in 1"), Some("edge1"), Some("sensor"), Some("1")]);
        let call = C2dMessage::of_method("pump", "method-1", Bytes::new());
        assert_eq!((call.source(), call.message_id()), (Source::Method("pump"), Some("method-1")));
        assert_eq!((call.property(SOURCE), call.property(METHOD)), (Some("method"), Some("pump")));
    }

    #[test]
    fn no_sender_can_claim_another_door_or_another_module() {
        let bag =
            "%24.source=method&%24.method=reboot&%24.input=in&%24.cdid=edge1&%24.cmid=trusted&%24.mid=m&x=1";
        let c2d = C2dMessage::from_topic("d", &format!("devices/d/messages/devicebound/{bag}"), Bytes::new());
        let c2d = c2d.expect("a message");
        assert_eq!(
            (c2d.property(SOURCE), c2d.message_id(), c2d.property("x")),
            (Some("c2d"), Some("m"), Some("1"))
        );
        assert_eq!(
            [METHOD, INPUT, CONNECTION_DEVICE_ID, CONNECTION_MODULE_ID].map(|name| c2d.property(name)),
            [None; 4]
        );
        let input = input(&format!("devices/edge1/modules/agent/inputs/own/{bag}"));
        assert_eq!((input.source(), input.property(METHOD)), (Source::Input("own"), None));
        assert_eq!(input.property(CONNECTION_MODULE_ID), Some("trusted"), "the gateway's word");
    }

    #[test]
    fn the_bag_of_an_input_may_be_missing_and_foreign_topics_are_refused() {
        for topic in ["devices/edge1/modules/agent/inputs/in", "devices/edge1/modules/agent/inputs/in/"] {
            assert_eq!(input(topic).source(), Source::Input("in"));
        }
        assert_eq!(input("devices/edge1/modules/agent/inputs/in/a=1/").property("a"), Some("1"));
        for topic in [
            "devices/edge1/modules/other/inputs/in/",
            "devices/edge1/modules/agent/inputs/",
            "devices/edge1/modules/agent/inputs//a=1",
            "devices/edge1/modules/agent/inputs/%ff/",
            "devices/edge1/messages/devicebound/",
        ] {
            let result = C2dMessage::from_input_topic("edge1", "agent", topic, Bytes::new());
            assert!(matches!(result, Err(MessageError::ForeignInput(_))), "{topic}");
        }
    }
}
