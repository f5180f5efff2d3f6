//! The C2D message: system properties, application properties, body, and reading and writing of the property bag.
//!
//! Owns: the bag's grammar, the names of system properties, the devicebound topic, size and id limits; the door of a
//! message (`source.rs`), and how a person writes a message (`sample.rs`).
//! Must not know: MQTT packets, AMQP sections, rules, clocks.
//!
//! The grammar (wire reference 1.5): `pair *("&" pair)`; `pair` is `key`, `key=` or `key=value`, each percent-encoded;
//! `+` is a plus sign; only the first `=` of a pair separates.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};

mod sample;
mod source;
mod unique;

pub use sample::SampleError;
pub use source::{CONNECTION_DEVICE_ID, CONNECTION_MODULE_ID, INPUT, METHOD, SOURCE, Source, inputs_topic};
pub use unique::contains_uuid;

/// The largest C2D message in bytes: body, system property values, and application names and values together. Source:
/// wire reference 5.1.
pub const MAX_C2D_BYTES: usize = 64 * 1024;

/// The longest message id in characters. Source: wire reference 4.1.
pub const MAX_MESSAGE_ID_CHARS: usize = 128;

/// With at most this many properties, comparing each name with all others is faster than a set of names.
const FEW: usize = 16;

/// Bag key of the message id.
pub const MESSAGE_ID: &str = "$.mid";
/// Bag key of the correlation id.
pub const CORRELATION_ID: &str = "$.cid";
/// Bag key of the user id.
pub const USER_ID: &str = "$.uid";
/// Bag key of the destination path.
pub const TO: &str = "$.to";
/// Bag key of the absolute expiry time.
pub const EXPIRY: &str = "$.exp";
/// Bag key of the content type.
pub const CONTENT_TYPE: &str = "$.ct";
/// Bag key of the content encoding.
pub const CONTENT_ENCODING: &str = "$.ce";

/// System properties without the prefix `$.`. Source: wire reference 1.5.
const UNPREFIXED_SYSTEM: [&str; 2] = [crate::feedback::ACK_PROPERTY, "iothub-operation"];

/// All characters except `A-Z a-z 0-9 - _ . ~` are escaped, with upper-case hex. Source: wire reference 1.5.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// A message from the cloud to this device, or through another door to its module: see [`Source`].
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct C2dMessage {
    /// Properties that IoT Hub defines: `$.mid`, `$.cid`, … and `iothub-ack`, `iothub-operation`.
    pub system: Properties,
    /// Properties that the sender chose.
    pub application: Properties,
    /// The payload; may be empty.
    pub body: Bytes,
}

impl C2dMessage {
    /// Reads a devicebound topic and a payload. The bag may be missing, and also the slash before it.
    ///
    /// # Errors
    /// When the topic belongs to another device or purpose, or when its bag cannot be decoded.
    pub fn from_topic(device_id: &str, topic: &str, body: Bytes) -> Result<Self, MessageError> {
        let bag = topic
            .strip_prefix("devices/")
            .and_then(|rest| rest.strip_prefix(device_id))
            .and_then(|rest| rest.strip_prefix("/messages/devicebound"))
            .and_then(|rest| if rest.is_empty() { Some("") } else { rest.strip_prefix('/') })
            .ok_or_else(|| MessageError::ForeignTopic(excerpt(topic)))?;
        Ok(Self::from_bag(bag, body)?.as_c2d())
    }

    /// Makes a message of a property bag and a payload. The bag has system and application properties together.
    ///
    /// # Errors
    /// When the bag cannot be decoded.
    pub fn from_bag(bag: &str, body: Bytes) -> Result<Self, MessageError> {
        let pairs = each_name_once(decode_pairs(bag)?).into_iter();
        let (system, application) = pairs.partition(|(name, _)| is_system_property(name));
        Ok(Self {
            system: Properties(Arc::new(system)),
            application: Properties(Arc::new(application)),
            body,
        })
    }

    /// The topic on which this message reaches `device_id`. It has a slash after `devicebound`, and system properties
    /// first (`$.mid`, then `$.to`), because the Node and Java SDKs need that. Source: wire reference 1.5.
    pub fn to_topic(&self, device_id: &str) -> String {
        let mut topic = devicebound_topic(device_id);
        let leading = [MESSAGE_ID, TO];
        let leads = |pair: &&Pair| leading.contains(&pair.0.as_str());
        let first = leading.iter().filter_map(|name| self.system.0.iter().find(|(own, _)| own == name));
        let rest = self.system.0.iter().filter(|pair| !leads(pair));
        encode_pairs(first.chain(rest).chain(self.application.0.iter()), &mut topic);
        topic
    }

    /// A property by the name that a rule uses: `$.cid`, `iothub-ack`, `$.source`, or an application property.
    pub fn property(&self, name: &str) -> Option<&str> {
        if name == SOURCE {
            return Some(self.source().word());
        }
        if is_system_property(name) { self.system.get(name) } else { self.application.get(name) }
    }

    /// The message id, if the sender gave one.
    pub fn message_id(&self) -> Option<&str> {
        self.system.get(MESSAGE_ID).filter(|id| !id.is_empty())
    }

    /// The correlation id, if the sender gave one.
    pub fn correlation_id(&self) -> Option<&str> {
        self.system.get(CORRELATION_ID).filter(|id| !id.is_empty())
    }

    /// When the message expires; `None` if it has no expiry, or one that is not a time.
    pub fn expiry(&self) -> Option<SystemTime> {
        self.system.get(EXPIRY).and_then(parse_time)
    }

    /// The expiry of a message that expired after it was received. `None` also if the expiry is before that: the hub
    /// never delivers an expired message, so the clock was wrong then, and says nothing about the message.
    pub fn expired_since(&self, received: SystemTime, now: SystemTime) -> Option<SystemTime> {
        self.expiry().filter(|expiry| received < *expiry && *expiry < now)
    }

    /// Bytes that count towards [`MAX_C2D_BYTES`].
    pub fn wire_size(&self) -> usize {
        let values = |pairs: &[Pair]| {
            pairs.iter().map(|(_, value)| value.as_deref().map_or(0, str::len)).sum::<usize>()
        };
        let names = self.application.0.iter().map(|(name, _)| name.len()).sum::<usize>();
        self.body.len() + values(&self.system.0) + values(&self.application.0) + names
    }
}

/// The place of a message in a device's queue. It does not change when the hub sends the message again, and no other
/// message has it. Source: wire reference 2.5.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Sequence {
    /// The hub's sequence number.
    pub number: u64,
    /// When the message was put into the queue, in milliseconds since 1970. A new queue counts from 1 again.
    pub enqueued_ms: i64,
}

/// A property's name and value. A bare key in the bag has no value.
pub type Pair = (String, Option<String>);

/// Properties in the order in which they arrived, each name once. A clone shares them, because each message is at two
/// places at once: in hand, and on its way to the inbox.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Properties(Arc<Vec<Pair>>);

impl Properties {
    /// Decodes a property bag. It skips empty pairs (`a&&b`). If a name occurs twice, the first one counts.
    ///
    /// # Errors
    /// When an escape is not `%` and two hexadecimal digits, when a name or value is not UTF-8, or a name is empty.
    pub fn decode(bag: &str) -> Result<Self, MessageError> {
        Ok(decode_pairs(bag)?.into_iter().collect())
    }

    /// Encodes a property bag, in order.
    pub fn encode(&self) -> String {
        let mut bag = String::new();
        encode_pairs(self.0.iter(), &mut bag);
        bag
    }

    /// The value of `name`. A bare key gives the empty string; use [`Properties::contains`] to check presence.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(own, _)| own == name).map(|(_, value)| value.as_deref().unwrap_or(""))
    }

    /// Whether `name` occurs, with or without a value.
    pub fn contains(&self, name: &str) -> bool {
        self.0.iter().any(|(own, _)| own == name)
    }

    /// Adds a property, or replaces its value if it is there.
    pub fn set(&mut self, name: impl Into<String>, value: impl Into<String>) {
        let (name, value) = (name.into(), Some(value.into()));
        let pairs = Arc::make_mut(&mut self.0);
        match pairs.iter_mut().find(|(own, _)| *own == name) {
            Some(pair) => pair.1 = value,
            None => pairs.push((name, value)),
        }
    }

    fn remove_all(&mut self, names: &[&str]) {
        Arc::make_mut(&mut self.0).retain(|(own, _)| !names.contains(&own.as_str()));
    }

    /// The pairs in order of arrival.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Option<&str>)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value.as_deref()))
    }

    /// How many properties there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl FromIterator<Pair> for Properties {
    /// If a name occurs twice, the first one counts.
    fn from_iter<I: IntoIterator<Item = Pair>>(pairs: I) -> Self {
        Self(Arc::new(each_name_once(pairs.into_iter().collect())))
    }
}

/// Why a topic or a bag cannot become a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MessageError {
    /// The topic is not this device's devicebound topic.
    #[error("the topic \"{0}\" is not this device's devicebound topic")]
    ForeignTopic(String),
    /// The topic is not one of this module's inputs.
    #[error("the topic \"{0}\" is not an input of this module")]
    ForeignInput(String),
    /// A `%` that is not followed by two hexadecimal digits.
    #[error("the property text \"{0}\" has a % that is not followed by two hexadecimal digits")]
    BadEscape(String),
    /// Bytes that are not UTF-8 after decoding.
    #[error("the property text \"{0}\" is not UTF-8 once decoded")]
    NotUtf8(String),
    /// A part of an AMQP message that is not text, or cannot be decoded at all.
    #[error("the message cannot be read: {0}")]
    Unreadable(String),
    /// A property without a name.
    #[error("the property \"{0}\" has no name")]
    EmptyName(String),
}

/// Whether IoT Hub defines the property, and not the sender.
pub fn is_system_property(name: &str) -> bool {
    name.starts_with("$.") || UNPREFIXED_SYSTEM.contains(&name)
}

/// The topic of a device's C2D messages without a bag. With `#` after it, it is the filter to subscribe to.
pub fn devicebound_topic(device_id: &str) -> String {
    format!("devices/{device_id}/messages/devicebound/")
}

/// Whether `text` may be a message id: 1 to 128 of the characters that the hub accepts. Source: wire reference 4.1.
pub fn is_message_id(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-:.+%_#*?!(),=@;$'".contains(c);
    !text.is_empty() && text.len() <= MAX_MESSAGE_ID_CHARS && text.chars().all(allowed)
}

/// Formats a time as the hub does: RFC 3339 in UTC with seven fractional digits. A time outside the years 1970 to 9999
/// becomes the nearest one within them.
pub fn format_time(time: SystemTime) -> String {
    let latest = SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(253_402_300_799);
    let time = time.clamp(SystemTime::UNIX_EPOCH, latest);
    let mut text = humantime::format_rfc3339_nanos(time).to_string();
    text.truncate(27);
    text.push('Z');
    text
}

/// Reads a time in RFC 3339, in UTC. A missing zone means UTC, because the Python SDK sends none.
pub fn parse_time(text: &str) -> Option<SystemTime> {
    let bare = text.strip_suffix("+00:00").or_else(|| text.strip_suffix('Z')).unwrap_or(text);
    humantime::parse_rfc3339(&format!("{bare}Z")).ok()
}

fn encode_pairs<'a>(pairs: impl Iterator<Item = &'a Pair>, out: &mut String) {
    for (index, (name, value)) in pairs.enumerate() {
        if index > 0 {
            out.push('&');
        }
        out.extend(utf8_percent_encode(name, ESCAPED));
        if let Some(value) = value {
            out.push('=');
            out.extend(utf8_percent_encode(value, ESCAPED));
        }
    }
}

fn decode_pairs(bag: &str) -> Result<Vec<Pair>, MessageError> {
    bag.split('&').filter(|pair| !pair.is_empty()).map(decode_pair).collect()
}

/// The first pair of each name.
fn each_name_once(mut pairs: Vec<Pair>) -> Vec<Pair> {
    if pairs.len() <= FEW {
        for at in (1..pairs.len()).rev() {
            if pairs[..at].iter().any(|(earlier, _)| *earlier == pairs[at].0) {
                pairs.remove(at);
            }
        }
    } else {
        // A topic has room for 20,000 names: comparing each one with all before it would take seconds.
        let mut seen = HashSet::new();
        pairs.retain(|(name, _)| seen.insert(name.clone()));
    }
    pairs
}

fn decode_pair(pair: &str) -> Result<Pair, MessageError> {
    let (name, value) = match pair.split_once('=') {
        Some((name, value)) => (name, Some(decode_text(value)?)),
        None => (pair, None),
    };
    let name = decode_text(name)?;
    if name.is_empty() { Err(MessageError::EmptyName(excerpt(pair))) } else { Ok((name, value)) }
}

/// Percent-decodes strictly. The hub never sends a lone `%`, so a text with one is not a bag.
fn decode_text(text: &str) -> Result<String, MessageError> {
    if !text.contains('%') {
        return Ok(text.to_owned());
    }
    let bytes = text.as_bytes();
    let escape_at =
        |at: usize| bytes.get(at + 1..at + 3).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit));
    if bytes.iter().enumerate().any(|(at, byte)| *byte == b'%' && !escape_at(at)) {
        return Err(MessageError::BadEscape(excerpt(text)));
    }
    let mut decoded = Vec::with_capacity(text.len());
    decoded.extend(percent_decode_str(text));
    String::from_utf8(decoded).map_err(|_| MessageError::NotUtf8(excerpt(text)))
}

/// At most 80 characters of foreign text, without control characters, for an error message.
pub(crate) fn excerpt(text: &str) -> String {
    let mut short: String = text.chars().take(80).flat_map(char::escape_debug).collect();
    if text.chars().nth(80).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn message(topic: &str) -> C2dMessage {
        C2dMessage::from_topic("dev1", topic, Bytes::new()).expect("a decodable topic")
    }

    #[test]
    fn system_and_application_properties_are_kept_apart() {
        let message = message(
            "devices/dev1/messages/devicebound/%24.mid=m-2&%24.to=%2Fdevices%2Fdev1%2Fmessages%2Fdevicebound\
             &%24.cid&flag&empty=&x=1&iothub-ack=full",
        );
        assert_eq!(message.message_id(), Some("m-2"));
        assert_eq!(message.correlation_id(), None, "a bare $.cid is no correlation id");
        assert_eq!(message.property("iothub-ack"), Some("full"));
        let application: Vec<_> = message.application.iter().collect();
        assert_eq!(application, [("flag", None), ("empty", Some("")), ("x", Some("1"))]);
    }

    #[test]
    fn only_the_first_equals_sign_separates_and_plus_stays_plus() {
        let message = message("devices/dev1/messages/devicebound/f=a=b=c&p=1+1&c=a:b&u=%C3%A9");
        assert_eq!(message.property("f"), Some("a=b=c"));
        assert_eq!(message.property("p"), Some("1+1"));
        assert_eq!(message.property("c"), Some("a:b"));
        assert_eq!(message.property("u"), Some("é"));
    }

    #[test]
    fn the_bag_and_its_slash_may_be_missing() {
        assert!(message("devices/dev1/messages/devicebound/").application.is_empty());
        assert!(message("devices/dev1/messages/devicebound").application.is_empty());
    }

    #[test]
    fn a_literal_dollar_is_read_like_an_escaped_one() {
        assert_eq!(message("devices/dev1/messages/devicebound/$.mid=a").message_id(), Some("a"));
    }

    #[test]
    fn undecodable_bags_are_errors_that_quote_the_text() {
        let error = |bag: &str| Properties::decode(bag).expect_err("undecodable").to_string();
        assert!(error("a=%zz").contains("\"%zz\""));
        assert!(error("a=%C3").contains("not UTF-8"));
        assert!(error("a=%4").contains("two hexadecimal digits"));
        assert!(error("=v").contains("no name"));
    }

    #[test]
    fn other_topics_are_refused() {
        for topic in ["devices/dev10/messages/devicebound/", "devices/dev1/messages/devicebounder", "x"] {
            let result = C2dMessage::from_topic("dev1", topic, Bytes::new());
            assert!(matches!(result, Err(MessageError::ForeignTopic(_))), "{topic}");
        }
    }

    #[test]
    fn the_first_of_two_equal_names_counts() {
        assert_eq!(Properties::decode("a=1&a=2").expect("decodable").get("a"), Some("1"));
    }

    #[test]
    fn as_many_names_as_a_topic_can_hold_are_read_in_no_time() {
        let bag: String = (0..13_000).map(|n| format!("{n:x}&")).collect();
        assert!(bag.len() < usize::from(u16::MAX));
        let begin = std::time::Instant::now();
        assert_eq!(Properties::decode(&bag).expect("decodable").len(), 13_000);
        assert!(begin.elapsed() < std::time::Duration::from_secs(1), "it took {:?}", begin.elapsed());
    }

    #[test]
    fn topics_lead_with_the_message_id_and_the_destination() {
        let mut message = C2dMessage::default();
        message.application.set("b", "x y/z");
        message.system.set(EXPIRY, "2026-02-11T10:00:00.0000000Z");
        message.system.set(TO, "/devices/d/messages/deviceBound");
        message.system.set(MESSAGE_ID, "m:1");
        assert_eq!(
            message.to_topic("d"),
            "devices/d/messages/devicebound/%24.mid=m%3A1&%24.to=%2Fdevices%2Fd%2Fmessages%2FdeviceBound\
             &%24.exp=2026-02-11T10%3A00%3A00.0000000Z&b=x%20y%2Fz"
        );
    }

    #[test]
    fn times_have_seven_digits_and_are_read_back() {
        let text = "2026-02-11T10:00:00.1234567Z";
        let time = parse_time(text).expect("a time");
        assert_eq!(format_time(time), text);
        assert_eq!(parse_time("2026-02-11T10:00:00.123456700+00:00"), Some(time));
        assert_eq!(parse_time("soon"), None);
    }

    #[test]
    fn only_a_message_that_expired_after_it_was_received_has_expired() {
        let at = |hour: u64| SystemTime::UNIX_EPOCH + std::time::Duration::from_secs(hour * 3600);
        let mut message = C2dMessage::default();
        assert_eq!(message.expired_since(at(1), at(9)), None);
        message.system.set(EXPIRY, format_time(at(5)));
        assert_eq!(message.expired_since(at(1), at(9)), Some(at(5)));
        assert_eq!(message.expired_since(at(1), at(4)), None, "it is good still");
        assert_eq!(message.expired_since(at(7), at(9)), None, "the clock was ahead when it came");
        assert_eq!(message.expired_since(at(9), at(1)), None, "the clock was set back");
    }

    #[test]
    fn message_ids_are_checked_as_the_hub_does() {
        assert!(is_message_id("419cfb05-0c2a-4f0e-a001-000000000001"));
        assert!(!is_message_id("") && !is_message_id("a b") && !is_message_id(&"x".repeat(129)));
    }

    proptest! {
        #[test]
        fn any_bag_survives_encoding_and_decoding(
            pairs in proptest::collection::vec((".{1,12}", proptest::option::of(".{0,24}")), 0..8)
        ) {
            let bag: Properties = pairs.into_iter().collect();
            prop_assert_eq!(Properties::decode(&bag.encode()), Ok(bag));
        }

        #[test]
        fn any_message_survives_its_topic(
            id in "[a-z0-9-]{1,20}", value in ".{0,40}", body in proptest::collection::vec(any::<u8>(), 0..64)
        ) {
            let mut message = C2dMessage { body: Bytes::from(body), ..C2dMessage::default() };
            message.system.set(MESSAGE_ID, id);
            message.application.set("name", value);
            let topic = message.to_topic("d");
            prop_assert!(topic.is_ascii() && !topic.contains('+'));
            prop_assert_eq!(C2dMessage::from_topic("d", &topic, message.body.clone()), Ok(message));
        }

        #[test]
        fn any_text_decodes_or_is_refused_without_a_panic(bag in ".{0,200}") {
            if let Ok(properties) = Properties::decode(&bag) {
                prop_assert_eq!(Properties::decode(&properties.encode()), Ok(properties));
            }
        }
    }
}
