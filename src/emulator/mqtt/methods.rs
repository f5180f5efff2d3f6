//! Calls of direct methods that are sent to a device, and its answers.
//!
//! Owns: their topics. Must not know: who calls, time-outs.
//! Source: wire reference 1.7.

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use super::codec::{MAX_TOPIC, Publish, QoS};
use crate::emulator::event_log::excerpt;
use crate::emulator::hub::{CallId, ConnectionId};
use crate::emulator::shared::SharedHub;

/// The characters that are escaped in a method's name.
const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

// A topic must have room for a name with every byte escaped to three characters, and for the rest of the topic.
const _: () = assert!(crate::emulator::hub::MAX_NAME * 3 + 100 < MAX_TOPIC);

/// An answer's topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct AnswerTopic {
    /// The status that the device chose.
    pub(super) status: i32,
    /// The request id as the device sent it back; empty if it sent none.
    pub(super) request_id: String,
}

/// The answer in a topic, if the topic is one of an answer.
pub(super) fn answer(topic: &str) -> Option<AnswerTopic> {
    let (status, query) = topic.strip_prefix("$iothub/methods/res/")?.split_once('/')?;
    let pairs = query.strip_prefix('?').unwrap_or(query).split('&');
    let mut ids = pairs.filter_map(|pair| pair.strip_prefix("$rid=").or(pair.strip_prefix("%24rid=")));
    let request_id = ids.next().unwrap_or_default().to_owned();
    Some(AnswerTopic { status: status.parse().ok()?, request_id })
}

/// The next call that waits for the device.
pub(super) fn next_call(hub: &SharedHub, device_id: &str, connection: ConnectionId) -> Option<Publish> {
    let request = hub.with(|hub, now| hub.next_method(device_id, connection, now))?;
    let (rid, method) = (request.id.number(), &*request.name);
    tracing::debug!(device_id, rid, method, "called a method");
    let name = utf8_percent_encode(method, ESCAPED);
    let topic = format!("$iothub/methods/POST/{name}/?$rid={rid}");
    Some(Publish::new(topic, QoS::AtMostOnce, request.payload.get().to_owned()))
}

/// Passes an answer to the caller that waits for it.
pub(super) fn take_answer(
    hub: &SharedHub,
    device_id: &str,
    connection: ConnectionId,
    topic: &AnswerTopic,
    body: &[u8],
) {
    let taken = topic.request_id.parse().is_ok_and(|number| {
        let id = CallId::from_number(number);
        hub.with(|hub, _| hub.answer_method(device_id, connection, id, topic.status, body))
    });
    if !taken {
        let request_id = excerpt(&topic.request_id);
        tracing::warn!(device_id, request_id, "ignored an answer to a method: no call waits for it");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_told_by_their_topics() {
        let read = |topic: &str| answer(topic).map(|answer| (answer.status, answer.request_id));
        assert_eq!(read("$iothub/methods/res/200/?$rid=7"), Some((200, "7".into())));
        assert_eq!(read("$iothub/methods/res/-1/?x=1&%24rid=a%20b"), Some((-1, "a%20b".into())));
        assert_eq!(read("$iothub/methods/res/404/"), Some((404, String::new())));
        for other in
            ["$iothub/methods/res/ok/?$rid=1", "$iothub/methods/res/200", "$iothub/methods/POST/x/?$rid=1"]
        {
            assert_eq!(answer(other), None, "{other}");
        }
    }
}
