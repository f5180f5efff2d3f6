//! What the messages of a run have in common, and the message of one entry.
//!
//! Owns: placeholders, ids, the checks of a message. Must not know: where an entry comes from, when it is sent.
//!
//! A placeholder is `{name}`: a column of the entry's line, or else `{deviceId}`, `{n}` for the number of the entry, or
//! `{run}` for the UUID of the run. Other braces stay, so that JSON can be written as it is: `{"a": 1}` has no
//! placeholder.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

use super::list::{Columns, distinct_columns, text};
use super::{Entry, Naming, Run};
use crate::feedback::DeliveryAck;
use crate::message::{MAX_C2D_BYTES, MAX_MESSAGE_ID_CHARS, Properties, is_message_id, is_system_property};
use crate::service::OutgoingMessage;

/// The longest name of a column that a placeholder can have, in bytes.
const MAX_NAME: usize = 64;
/// A line's own properties, beside those of all messages.
const PROPERTIES: &str = "properties";
/// A line's own body, in place of that of all messages.
const BODY: &str = "body";

/// The parts of a message that may have placeholders, and those that are the same for all.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MessageTemplate {
    /// The message id; absent: it follows from the run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) message_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) correlation_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) user_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content_type: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) content_encoding: Option<String>,
    /// How long the hub may keep a message, from when that one is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) expiry: Option<Duration>,
    #[serde(with = "ack")]
    pub(crate) ack: DeliveryAck,
    /// Their values may have placeholders.
    pub(crate) properties: Vec<(String, String)>,
    /// If it is UTF-8, it may have placeholders.
    #[serde(with = "body")]
    pub(crate) body: Vec<u8>,
}

impl Run {
    /// The message of an entry as it is sent at `now`.
    ///
    /// # Errors
    /// What is wrong with it, in one sentence.
    pub(crate) fn message(&self, entry: &Entry, now: SystemTime) -> Result<OutgoingMessage, String> {
        let of_entry = |reason| format!("{}: {reason}", entry.place());
        self.template.message(self, entry, now).map_err(of_entry)
    }

    /// The id of the message of an entry.
    ///
    /// # Errors
    /// As [`Run::message`].
    pub(crate) fn message_id(&self, entry: &Entry) -> Result<String, String> {
        self.template.message_id_of(self, entry, &entry.columns()?)
    }
}

impl Run {
    /// The line of an entry in a list that sends it again. `{n}` stays what it was, if the messages have it.
    pub(crate) fn line(&self, entry: &Entry) -> String {
        let is_plain = self.naming == Naming::ByDevice && entry.row.is_none();
        if is_plain && !self.template.is_numbered() {
            return entry.device_id.clone();
        }
        // The columns were read before, when the run was checked.
        let columns = entry.columns().unwrap_or_default();
        let mut columns: BTreeMap<_, _> =
            columns.into_iter().map(|(name, own)| (name, own.get().to_owned())).collect();
        if is_plain {
            columns.insert("deviceId".to_owned(), Value::from(entry.device_id.as_str()).to_string());
        }
        if self.template.is_numbered() || columns.is_empty() {
            columns.entry("n".to_owned()).or_insert_with(|| entry.number.to_string());
        }
        let fields: Vec<_> =
            columns.iter().map(|(name, own)| format!("{}:{own}", Value::from(name.as_str()))).collect();
        format!("{{{}}}", fields.join(","))
    }
}

impl MessageTemplate {
    fn message(&self, run: &Run, entry: &Entry, now: SystemTime) -> Result<OutgoingMessage, String> {
        let mut columns = entry.columns()?;
        let (own_properties, own_body) = (columns.remove(PROPERTIES), columns.remove(BODY));
        let fill = |text: &str| fill(text, &|name| value(name, run, entry, &columns));
        let message_id = self.message_id_of(run, entry, &columns)?;
        let mut message = self.to_device(&entry.device_id, message_id, now)?;
        for (what, text) in [
            ("correlation id", &mut message.correlation_id),
            ("user id", &mut message.user_id),
            ("content type", &mut message.content_type),
            ("content encoding", &mut message.content_encoding),
        ] {
            let Some(text) = text else { continue };
            *text = fill(text)?;
            check_text(text).map_err(|reason| format!("the {what} {reason}"))?;
        }
        let mut properties = Properties::default();
        for (name, value) in &self.properties {
            properties.set(name, fill(value)?);
        }
        for (name, value) in
            own_properties.map(|own| object(PROPERTIES, &own)).transpose()?.unwrap_or_default()
        {
            let shown = name.escape_debug();
            if is_system_property(&name) {
                return Err(format!(
                    "\"{PROPERTIES}\" has \"{shown}\", a system property: remove it, and give its value by an option, \
                     such as --correlation-id"
                ));
            }
            let value =
                scalar(&value).ok_or_else(|| format!("the property \"{shown}\" has no text as its value"))?;
            properties.set(name, value);
        }
        message.properties = properties;
        message.body = match (own_body, std::str::from_utf8(&self.body)) {
            (Some(own), _) => as_text(&own).into(),
            (None, Ok(text)) => fill(text)?.into(),
            (None, Err(_)) => message.body,
        };
        check_message(&message).map(|()| message)
    }

    fn message_id_of(&self, run: &Run, entry: &Entry, columns: &Columns) -> Result<String, String> {
        match &self.message_id {
            Some(id) => fill(id, &|name| value(name, run, entry, columns)),
            None => Ok(own_id(run, entry)),
        }
    }

    /// Whether a part that all messages have in common has the number of the entry.
    pub(crate) fn is_numbered(&self) -> bool {
        let texts = [
            &self.message_id,
            &self.correlation_id,
            &self.user_id,
            &self.content_type,
            &self.content_encoding,
        ];
        let texts = texts.into_iter().flatten().chain(self.properties.iter().map(|(_, value)| value));
        let body = std::str::from_utf8(&self.body).ok();
        texts.map(String::as_str).chain(body).any(|text| text.contains("{n}"))
    }

    /// The message to one device, as it is: nothing is filled in, and no part is checked.
    ///
    /// # Errors
    /// When it would expire at a time that no clock has.
    pub(crate) fn to_device(
        &self,
        device_id: &str,
        message_id: String,
        now: SystemTime,
    ) -> Result<OutgoingMessage, String> {
        let expiry = self.expiry.map(|expiry| {
            let given =
                || format!("the expiry is {}: give at most 2 days", humantime::format_duration(expiry));
            now.checked_add(expiry).ok_or_else(given)
        });
        let mut properties = Properties::default();
        for (name, value) in &self.properties {
            properties.set(name, value);
        }
        Ok(OutgoingMessage {
            device_id: device_id.to_owned(),
            message_id,
            correlation_id: self.correlation_id.clone(),
            user_id: self.user_id.clone(),
            content_type: self.content_type.clone(),
            content_encoding: self.content_encoding.clone(),
            expiry: expiry.transpose()?,
            ack: self.ack,
            properties,
            body: self.body.clone().into(),
        })
    }
}

/// Checks a part of a message that is neither its id nor a property of the application.
///
/// # Errors
/// The end of a sentence: what it is, and the remedy.
pub(crate) fn check_text(text: &str) -> Result<(), String> {
    match text.is_empty() || !text.chars().all(|c| c.is_ascii_graphic() || c == ' ') {
        true => Err(format!("is \"{}\": use printable ASCII text", text.escape_debug())),
        false => Ok(()),
    }
}

/// Checks what a hub would refuse: the id and the size.
///
/// # Errors
/// What is wrong, in one sentence.
pub(crate) fn check_message(message: &OutgoingMessage) -> Result<(), String> {
    let id = &message.message_id;
    if !is_message_id(id) {
        return Err(format!(
            "the message id is \"{}\": use 1 to 128 of the letters and digits of ASCII and - : . + % _ # * ? ! ( ) , = @ \
             ; $ '",
            id.escape_debug()
        ));
    }
    match message.wire_size() {
        size if size > MAX_C2D_BYTES => Err(format!(
            "the message has {size} bytes with its properties, but a C2D message has at most {MAX_C2D_BYTES} (64 KiB): \
             send less, or send a link to the data"
        )),
        _ => Ok(()),
    }
}

/// RUN-DEVICE, as long as that is an id: a device id may have 128 characters, as many as a message id.
fn own_id(run: &Run, entry: &Entry) -> String {
    let by_device = format!("{}-{}", run.id, entry.device_id);
    match run.naming {
        Naming::ByDevice if by_device.len() <= MAX_MESSAGE_ID_CHARS => by_device,
        Naming::ByDevice | Naming::ByNumber => format!("{}-{}", run.id, entry.number),
    }
}

fn value(name: &str, run: &Run, entry: &Entry, columns: &Columns) -> Option<String> {
    match (columns.get(name), name) {
        (Some(own), _) if own.get() == "null" => None,
        (Some(own), _) => Some(as_text(own)),
        (None, "deviceId") => Some(entry.device_id.clone()),
        (None, "n") => Some(entry.number.to_string()),
        (None, "run") => Some(run.id.clone()),
        (None, _) => None,
    }
}

/// The text of a string, and of anything else its JSON as it was written.
fn as_text(value: &RawValue) -> String {
    text(value).unwrap_or_else(|| value.get().to_owned())
}

fn scalar(value: &RawValue) -> Option<String> {
    let is_scalar = value.get() != "null" && !value.get().starts_with(['[', '{']);
    is_scalar.then(|| as_text(value))
}

fn object(name: &str, value: &RawValue) -> Result<Columns, String> {
    distinct_columns(value.get())
        .map_err(|_| format!("\"{name}\" is no object with different names: write {{\"name\": \"value\"}}"))
}

/// Puts values in place of placeholders.
fn fill(text: &str, value: &dyn Fn(&str) -> Option<String>) -> Result<String, String> {
    let mut filled = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once('{') {
        filled.push_str(before);
        match placeholder(after) {
            Some((name, behind)) => {
                let value = value(name).ok_or_else(|| {
                    format!("there is no value for {{{name}}}: add a column \"{name}\" to the line, or correct the name")
                })?;
                filled.push_str(&value);
                rest = behind;
            }
            None => {
                filled.push('{');
                rest = after;
            }
        }
    }
    filled.push_str(rest);
    Ok(filled)
}

/// The name of a placeholder, and what is behind its closing brace.
fn placeholder(after: &str) -> Option<(&str, &str)> {
    let end = after.bytes().take(MAX_NAME + 1).position(|byte| byte == b'}')?;
    let name = after.get(..end)?;
    let is_name = !name.is_empty() && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_name.then_some((name, after.get(end + 1..)?))
}

/// The word of the wire.
mod ack {
    use super::*;

    pub(super) fn serialize<S: Serializer>(ack: &DeliveryAck, serializer: S) -> Result<S::Ok, S::Error> {
        ack.as_str().serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<DeliveryAck, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// In base64, because a body may be anything.
mod body {
    use super::*;

    pub(super) fn serialize<S: Serializer>(body: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        STANDARD.encode(body).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        STANDARD.decode(String::deserialize(deserializer)?).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fleet::EntryList;
    use proptest::prelude::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn run(template: MessageTemplate, list: &str) -> Run {
        let entries = EntryList::of_devices(list.as_bytes(), "the list").expect("a list").entries;
        Run { id: "run".into(), hub: "h".into(), naming: Naming::ByDevice, template, entries }
    }

    fn message(template: MessageTemplate, list: &str) -> Result<OutgoingMessage, String> {
        let run = run(template, list);
        run.message(&run.entries[0], NOW)
    }

    #[test]
    fn placeholders_are_filled_and_other_braces_stay() {
        let template = MessageTemplate {
            properties: vec![("valve".into(), "{valve}".into()), ("to".into(), "{deviceId}/{n}".into())],
            body: br#"{"open": {open}, "of": {"n": {n}}}"#.to_vec(),
            ..MessageTemplate::default()
        };
        let row = r#"{"deviceId": "pump-1", "valve": "v7", "open": true}"#;
        let message = message(template, row).expect("a message");
        assert_eq!(message.body, br#"{"open": true, "of": {"n": 1}}"#.as_slice());
        assert_eq!(message.properties.get("valve"), Some("v7"));
        assert_eq!(message.properties.get("to"), Some("pump-1/1"));
        assert_eq!((message.device_id.as_str(), message.message_id.as_str()), ("pump-1", "run-pump-1"));
    }

    #[test]
    fn nothing_in_the_json_of_a_line_changes() {
        let own = r#"{"zeta":12345678901234567890123,"alpha":1e3, "x":0.10000000000000000001}"#;
        let row = format!(r#"{{"deviceId":"a","exact":12345678901234567890123,"body":{own}}}"#);
        let template = MessageTemplate {
            properties: vec![("exact".into(), "{exact}".into())],
            ..MessageTemplate::default()
        };
        let message = message(template, &row).expect("a message");
        assert_eq!(message.body, own.as_bytes());
        assert_eq!(message.properties.get("exact"), Some("12345678901234567890123"));
    }

    #[test]
    fn all_texts_of_a_message_are_filled_and_checked() {
        let template = MessageTemplate {
            message_id: Some("{run}-{n}".into()),
            correlation_id: Some("order-{order}".into()),
            user_id: Some("{deviceId}".into()),
            content_type: Some("{type}".into()),
            content_encoding: Some("utf-{bits}".into()),
            ..MessageTemplate::default()
        };
        let row = r#"{"deviceId": "a", "order": 7, "type": "text/plain", "bits": 8}"#;
        let filled = message(template.clone(), row).expect("a message");
        assert_eq!(filled.message_id, "run-1");
        assert_eq!(filled.correlation_id.as_deref(), Some("order-7"));
        assert_eq!(filled.user_id.as_deref(), Some("a"));
        assert_eq!(filled.content_type.as_deref(), Some("text/plain"));
        assert_eq!(filled.content_encoding.as_deref(), Some("utf-8"));
        let row = row.replace("text/plain", "\\u001b[31m");
        let error = message(template, &row).expect_err("not text");
        assert_eq!(error, "line 1 (a): the content type is \"\\u{1b}[31m\": use printable ASCII text");
    }

    #[test]
    fn a_line_that_is_sent_again_gives_the_same_message() {
        let body = |body: &str| MessageTemplate { body: body.into(), ..MessageTemplate::default() };
        let list = "{\"deviceId\":\"a\"}\n{\"deviceId\":\"b\",\"x\":1}\n{\"deviceId\":\"c\",\"n\":9}";
        for (template, list, lines) in [
            (body("on"), "a\nb", vec!["a", "b"]),
            (body("{n}"), "a\nb", vec![r#"{"deviceId":"a","n":1}"#, r#"{"deviceId":"b","n":2}"#]),
            (
                body("{n}"),
                list,
                vec![
                    r#"{"deviceId":"a","n":1}"#,
                    r#"{"deviceId":"b","n":2,"x":1}"#,
                    r#"{"deviceId":"c","n":9}"#,
                ],
            ),
        ] {
            let run = run(template.clone(), list);
            let again: Vec<_> = run.entries.iter().map(|entry| run.line(entry)).collect();
            assert_eq!(again, lines);
            let last = run.entries.last().expect("an entry");
            let alone = super::tests::run(template, again.last().expect("a line"));
            let bodies = [(&run, last), (&alone, &alone.entries[0])]
                .map(|(run, entry)| run.message(entry, NOW).expect("a message").body);
            assert_eq!(bodies[0], bodies[1]);
        }
    }

    #[test]
    fn an_expiry_that_no_clock_has_is_refused() {
        let expiry = Some(Duration::MAX);
        let error =
            message(MessageTemplate { expiry, ..MessageTemplate::default() }, "a").expect_err("too far");
        assert!(error.contains("the expiry is ") && error.ends_with(": give at most 2 days"), "{error}");
    }

    #[test]
    fn a_line_can_have_a_body_and_properties_of_its_own() {
        let template = MessageTemplate {
            properties: vec![("action".into(), "pump".into())],
            body: b"all".to_vec(),
            ..MessageTemplate::default()
        };
        let row = r#"{"deviceId": "a", "body": {"on": 1}, "properties": {"state": "on", "n": 2}}"#;
        let own = message(template.clone(), row).expect("a message");
        assert_eq!(own.body, br#"{"on": 1}"#.as_slice());
        let pairs: Vec<_> = own.properties.iter().collect();
        assert_eq!(pairs, [("action", Some("pump")), ("n", Some("2")), ("state", Some("on"))]);
        let text = message(template, r#"{"deviceId": "a", "body": "text {n}"}"#).expect("a message");
        assert_eq!(text.body, b"text {n}".as_slice(), "what a line says is no template");
    }

    #[test]
    fn what_cannot_be_sent_is_said_with_its_line() {
        let with_body = |body: &str| MessageTemplate { body: body.into(), ..MessageTemplate::default() };
        let of = |template, list| message(template, list).expect_err("not a message");
        assert_eq!(
            of(with_body("{valve}"), "a"),
            "line 1 (a): there is no value for {valve}: add a column \"valve\" to the line, or correct the name"
        );
        assert!(of(with_body("{v}"), r#"{"deviceId":"a","v":null}"#).contains("no value for {v}"));
        assert!(of(with_body(&"x".repeat(70_000)), "a").contains("has 70"));
        assert!(
            of(with_body(""), r#"{"deviceId":"a","properties":[]}"#).contains("\"properties\" is no object")
        );
        assert_eq!(
            of(with_body(""), r#"{"deviceId":"a","properties":{"iothub-ack":"full"}}"#),
            "line 1 (a): \"properties\" has \"iothub-ack\", a system property: remove it, and give its value by an option, \
             such as --correlation-id"
        );
        let id = MessageTemplate { message_id: Some("a b".into()), ..MessageTemplate::default() };
        assert!(of(id, "a").contains("the message id is \"a b\""));
    }

    #[test]
    fn the_id_of_a_long_device_id_has_its_number() {
        let long = "d".repeat(128);
        let message = message(MessageTemplate::default(), &long).expect("a message");
        assert_eq!(message.message_id, "run-1");
    }

    #[test]
    fn a_template_survives_the_journal() {
        let template = MessageTemplate {
            message_id: Some("m-{n}".into()),
            expiry: Some(Duration::from_secs(60)),
            ack: DeliveryAck::Full,
            properties: vec![("a".into(), "b".into())],
            body: vec![0, 255],
            ..MessageTemplate::default()
        };
        let text = serde_json::to_string(&template).expect("JSON");
        assert_eq!(serde_json::from_str::<MessageTemplate>(&text).expect("a template"), template);
    }

    proptest! {
        #[test]
        fn any_text_is_filled_or_refused(text in "[{}a-c ]{0,60}") {
            if let Ok(filled) = fill(&text, &|name| Some(name.to_uppercase())) {
                let braces = |text: &str| text.matches(['{', '}']).count();
                prop_assert!(braces(&filled) <= braces(&text));
            }
        }
    }
}
