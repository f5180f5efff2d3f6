//! The inbox as JSON: messages and answers, on the control socket and for `--json`.
//!
//! Owns: the shapes, both ways; fields are added, never renamed. Must not know: sockets, the table that people see.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use serde::de::{MapAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::inbox::{Record, Reply, Unfinished};
use crate::message::{C2dMessage, Properties};

/// A record, with its message if the inbox still has it.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct RecordView {
    #[serde(flatten)]
    pub(crate) record: Record,
    #[serde(default)]
    pub(crate) message: Option<MessageView>,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct MessageView {
    system_properties: PropertiesView,
    application_properties: PropertiesView,
    #[serde(flatten)]
    body: BodyView,
}

/// `body` if the bytes are text, else `bodyBase64`.
#[derive(Debug, Serialize, Deserialize)]
enum BodyView {
    #[serde(rename = "body")]
    Text(String),
    #[serde(rename = "bodyBase64")]
    Base64(String),
}

/// An object, in order of arrival. A key without a value has null.
#[derive(Debug)]
struct PropertiesView(Properties);

/// An answer of the inbox.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum ReplyView {
    Records(Vec<Record>),
    Record(RecordView),
    Retried(RecordView),
    Dropped(Record),
    Refused(String),
    Unavailable(String),
}

impl RecordView {
    pub(crate) fn new(record: Record, message: Option<&C2dMessage>) -> Self {
        Self { record, message: message.map(MessageView::from) }
    }
}

impl From<&C2dMessage> for MessageView {
    fn from(message: &C2dMessage) -> Self {
        let body = match std::str::from_utf8(&message.body) {
            Ok(text) => BodyView::Text(text.to_owned()),
            Err(_) => BodyView::Base64(BASE64.encode(&message.body)),
        };
        Self {
            system_properties: PropertiesView(message.system.clone()),
            application_properties: PropertiesView(message.application.clone()),
            body,
        }
    }
}

impl TryFrom<MessageView> for C2dMessage {
    type Error = base64::DecodeError;

    fn try_from(view: MessageView) -> Result<Self, Self::Error> {
        let body = match view.body {
            BodyView::Text(text) => text.into_bytes(),
            BodyView::Base64(text) => BASE64.decode(text)?,
        };
        Ok(Self {
            system: view.system_properties.0,
            application: view.application_properties.0,
            body: Bytes::from(body),
        })
    }
}

impl From<Reply> for ReplyView {
    fn from(reply: Reply) -> Self {
        match reply {
            Reply::Records(records) => Self::Records(records),
            Reply::Record { record, message } => Self::Record(RecordView::new(record, message.as_ref())),
            Reply::Retried(unfinished) => {
                Self::Retried(RecordView::new(unfinished.record, Some(&unfinished.message)))
            }
            Reply::Dropped(record) => Self::Dropped(record),
            Reply::Refused(sentence) => Self::Refused(sentence),
            Reply::Unavailable(sentence) => Self::Unavailable(sentence),
        }
    }
}

impl TryFrom<ReplyView> for Reply {
    type Error = base64::DecodeError;

    fn try_from(view: ReplyView) -> Result<Self, Self::Error> {
        Ok(match view {
            ReplyView::Records(records) => Self::Records(records),
            ReplyView::Record(RecordView { record, message }) => {
                Self::Record { record, message: message.map(C2dMessage::try_from).transpose()? }
            }
            ReplyView::Retried(RecordView { record, message }) => {
                let message = message.map(C2dMessage::try_from).transpose()?.unwrap_or_default();
                Self::Retried(Box::new(Unfinished { record, message }))
            }
            ReplyView::Dropped(record) => Self::Dropped(record),
            ReplyView::Refused(sentence) => Self::Refused(sentence),
            ReplyView::Unavailable(sentence) => Self::Unavailable(sentence),
        })
    }
}

impl Serialize for PropertiesView {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.0.iter())
    }
}

impl<'de> Deserialize<'de> for PropertiesView {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = PropertiesView;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of texts and nulls")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut pairs = Vec::new();
                while let Some(pair) = map.next_entry()? {
                    pairs.push(pair);
                }
                Ok(PropertiesView(pairs.into_iter().collect()))
            }
        }
        deserializer.deserialize_map(Pairs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::{Number, Settled, State};
    use proptest::prelude::*;

    fn record() -> Record {
        Record {
            number: Number(12),
            message_id: Some("m-1".into()),
            rule: Some("pump".into()),
            state: State::Dead,
            settled: Settled::OnAccept,
            received_ms: 1,
            attempts: 2,
            started_ms: Some(2),
            retry_on_crash: false,
            abandoned: false,
            outcome: None,
        }
    }

    fn message(bag: &str, body: &'static [u8]) -> C2dMessage {
        C2dMessage::from_bag(bag, Bytes::from_static(body)).expect("a message")
    }

    #[test]
    fn a_message_is_an_object_that_people_can_read() {
        let view = RecordView::new(record(), Some(&message("$.mid=m-1&z=1&flag&a=", b"hello")));
        let text = serde_json::to_string(&view).expect("JSON");
        assert_eq!(
            text,
            "{\"number\":12,\"messageId\":\"m-1\",\"rule\":\"pump\",\"state\":\"dead\",\"settled\":\"on-accept\",\
             \"received\":\"1970-01-01T00:00:00.0010000Z\",\"attempts\":2,\"started\":\"1970-01-01T00:00:00.0020000Z\",\"retryOnCrash\":false,\"message\":{\
             \"systemProperties\":{\"$.mid\":\"m-1\"},\"applicationProperties\":{\"z\":\"1\",\"flag\":null,\"a\":\"\"},\
             \"body\":\"hello\"}}"
        );
        let binary = serde_json::to_string(&MessageView::from(&message("", b"\xff\x00"))).expect("JSON");
        assert_eq!(binary, "{\"systemProperties\":{},\"applicationProperties\":{},\"bodyBase64\":\"/wA=\"}");
    }

    #[test]
    fn every_answer_survives_json() {
        let message = message("$.mid=m-1&z=1&flag&a=", b"\xff");
        let unfinished = Unfinished { record: record(), message: message.clone() };
        for reply in [
            Reply::Records(vec![record(), record()]),
            Reply::Record { record: record(), message: None },
            Reply::Record { record: record(), message: Some(message) },
            Reply::Retried(Box::new(unfinished)),
            Reply::Dropped(record()),
            Reply::Refused("there is none".into()),
            Reply::Unavailable("the disk is full".into()),
        ] {
            let text = serde_json::to_string(&ReplyView::from(reply.clone())).expect("JSON");
            let view: ReplyView = serde_json::from_str(&text).expect("a view");
            assert_eq!(Reply::try_from(view).expect("an answer"), reply, "{text}");
        }
    }

    proptest! {
        #[test]
        fn any_message_survives_json(
            bag in "[a-z=&$.%25]{0,40}", body in proptest::collection::vec(any::<u8>(), 0..64)
        ) {
            if let Ok(message) = C2dMessage::from_bag(&bag, Bytes::from(body)) {
                let text = serde_json::to_string(&MessageView::from(&message)).expect("JSON");
                let view: MessageView = serde_json::from_str(&text).expect("a view");
                prop_assert_eq!(C2dMessage::try_from(view).expect("a message"), message);
            }
        }
    }
}
