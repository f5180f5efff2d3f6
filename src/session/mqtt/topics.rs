//! The topics of a device or a module: those that it publishes on, and those that it receives on.
//!
//! Owns: their spelling. Pure. Must not know: packets, who waits for an answer.
//! Source: wire reference 1.7.

use bytes::Bytes;
use percent_encoding::percent_decode_str;

use crate::message::{C2dMessage, MessageError, Properties, devicebound_topic, inputs_topic};
use crate::session::publish::TwinAnswer;

/// The filter for all answers to twin requests.
pub(super) const TWIN_ANSWERS: &str = "$iothub/twin/res/#";
/// The filter for all calls of direct methods.
pub(super) const METHOD_CALLS: &str = "$iothub/methods/POST/#";
/// The filter for all changes of desired properties.
pub(super) const DESIRED_CHANGES: &str = "$iothub/twin/PATCH/properties/desired/#";
/// The filter for all answers to requests for a certificate. Source: wire reference 12.6.
pub(super) const CERTIFICATE_ANSWERS: &str = "$iothub/credentials/res/#";
/// The longest id of a call that an answer repeats. The hub's ids have about 40 characters.
const LONGEST_CALL_ID: usize = 1024;

/// What comes on a topic.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum TopicKind {
    /// A C2D message, or a message for an input.
    Message,
    TwinAnswer,
    MethodCall,
    DesiredChange,
    CertificateAnswer,
}

/// What comes on this topic.
pub(super) fn kind(topic: &str) -> TopicKind {
    let on = |filter: &str| topic.starts_with(filter.trim_end_matches('#'));
    match topic {
        _ if on(TWIN_ANSWERS) => TopicKind::TwinAnswer,
        _ if on(METHOD_CALLS) => TopicKind::MethodCall,
        _ if on(DESIRED_CHANGES) => TopicKind::DesiredChange,
        _ if on(CERTIFICATE_ANSWERS) => TopicKind::CertificateAnswer,
        _ => TopicKind::Message,
    }
}

/// The filter for the messages: the device's queue, or all inputs of the module.
pub(super) fn messages(device_id: &str, module_id: Option<&str>) -> String {
    match module_id {
        None => devicebound_topic(device_id) + "#",
        Some(module_id) => inputs_topic(device_id, module_id) + "#",
    }
}

/// The message that came on a topic.
///
/// # Errors
/// When the topic is not for this device or module, or cannot be decoded.
pub(super) fn message(
    device_id: &str,
    module_id: Option<&str>,
    topic: &str,
    body: Bytes,
) -> Result<C2dMessage, MessageError> {
    match module_id {
        None => C2dMessage::from_topic(device_id, topic, body),
        Some(module_id) => C2dMessage::from_input_topic(device_id, module_id, topic, body),
    }
}

/// The topic of a D2C message with these properties.
pub(super) fn telemetry(device_id: &str, module_id: Option<&str>, properties: &Properties) -> String {
    let bag = properties.encode();
    match module_id {
        None => format!("devices/{device_id}/messages/events/{bag}"),
        Some(module_id) => format!("devices/{device_id}/modules/{module_id}/messages/events/{bag}"),
    }
}

/// The topic of a patch of the reported properties; the topic of its answer repeats `request`.
pub(super) fn reported(request: u64) -> String {
    format!("$iothub/twin/PATCH/properties/reported/?$rid={request}")
}

/// The topic of a request for the whole twin; the topic of its answer repeats `request`.
pub(super) fn read_twin(request: u64) -> String {
    format!("$iothub/twin/GET/?$rid={request}")
}

/// The topic of a request for a certificate; the topic of its answers repeats `request`.
pub(super) fn issue_certificate(request: &str) -> String {
    format!("$iothub/credentials/POST/issueCertificate/?$rid={request}")
}

/// The request and the status of an answer to a request for a certificate; `None` if the topic names none.
pub(super) fn certificate_answer(topic: &str) -> Option<(&str, u16)> {
    let (status, query) = topic.strip_prefix(CERTIFICATE_ANSWERS.trim_end_matches('#'))?.split_once("/?")?;
    let request = query.split('&').find_map(|pair| pair.strip_prefix("$rid="))?;
    Some((request, status.parse().ok()?))
}

/// What a topic says about its answer; `None` if it answers no request of this program.
pub(super) fn twin_answer(topic: &str) -> Option<TwinAnswer> {
    let (status, query) = topic.strip_prefix("$iothub/twin/res/")?.split_once('/')?;
    let mut pairs = query.strip_prefix('?').unwrap_or(query).split('&');
    let request = pairs.find_map(|pair| pair.strip_prefix("$rid="))?;
    Some(TwinAnswer { request: request.parse().ok()?, status: status.parse().ok()? })
}

/// The method and the request id of a call. The method is `None` if it is not text after decoding. The result is
/// `None` if the topic has no id that an answer could repeat.
pub(super) fn method_call(topic: &str) -> Option<(Option<String>, &str)> {
    let (name, query) = topic.strip_prefix("$iothub/methods/POST/")?.split_once("/?")?;
    let id = query.split('&').find_map(|pair| pair.strip_prefix("$rid="))?;
    // No topic may hold a wildcard, so no answer could repeat such an id.
    if id.is_empty() || id.len() > LONGEST_CALL_ID || id.contains(['+', '#', '\0']) {
        return None;
    }
    Some((percent_decode_str(name).decode_utf8().ok().map(Into::into), id))
}

/// The topic of the answer to the call with this request id.
pub(super) fn method_answer(status: u16, id: &str) -> String {
    format!("$iothub/methods/res/{status}/?$rid={id}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bag_of_a_report_is_encoded_in_the_order_given() {
        let mut properties = Properties::default();
        for (name, value) in [
            ("$.cid", "m/1=a&b"),
            ("$.ct", "application/json"),
            ("$.ce", "utf-8"),
            ("outcome", "failed: 50 % + ü"),
            ("empty", ""),
        ] {
            properties.set(name, value);
        }
        assert_eq!(
            telemetry("dev1", None, &properties),
            "devices/dev1/messages/events/%24.cid=m%2F1%3Da%26b&%24.ct=application%2Fjson&%24.ce=utf-8\
             &outcome=failed%3A%2050%20%25%20%2B%20%C3%BC&empty="
        );
        let none = Properties::default();
        assert_eq!(telemetry("dev1", None, &none), "devices/dev1/messages/events/");
        assert_eq!(telemetry("dev1", Some("m"), &none), "devices/dev1/modules/m/messages/events/");
    }

    #[test]
    fn answers_are_told_by_status_and_request() {
        let of = |request, status| Some(TwinAnswer { request, status });
        assert_eq!(twin_answer("$iothub/twin/res/204/?$rid=7&$version=3"), of(7, 204));
        assert_eq!(twin_answer("$iothub/twin/res/429/?$rid=8"), of(8, 429));
        assert_eq!(twin_answer("$iothub/twin/res/200/?x=1&$rid=9"), of(9, 200));
        for other in [
            "$iothub/twin/res/204/",
            "$iothub/twin/res/204/?$rid=x",
            "$iothub/twin/res/no/?$rid=1",
            "$iothub/twin/res/204",
            "devices/dev1/messages/devicebound/$rid=1",
        ] {
            assert_eq!(twin_answer(other), None, "{other}");
        }
    }

    #[test]
    fn calls_are_told_by_method_and_request_and_ids_are_echoed_as_they_are() {
        let call = |topic: &str| {
            let (name, id) = method_call(topic)?;
            Some((name, id.to_owned()))
        };
        let is = |name: &str, id: &str| Some((Some(name.to_owned()), id.to_owned()));
        assert_eq!(call("$iothub/methods/POST/reboot/?$rid=1"), is("reboot", "1"));
        assert_eq!(
            call("$iothub/methods/POST/a%20b%2Fc%3F%C3%BC/?x=1&$rid=%C3%BC=/?$y"),
            is("a b/c?ü", "%C3%BC=/?$y")
        );
        assert_eq!(call("$iothub/methods/POST/50%/?$rid=1"), is("50%", "1"));
        assert_eq!(call("$iothub/methods/POST/%ff/?$rid=1"), Some((None, "1".into())));
        assert_eq!(call("$iothub/methods/POST//?$rid=1"), is("", "1"));
        let long = format!("$iothub/methods/POST/x/?$rid={}", "x".repeat(1025));
        for other in [
            "$iothub/methods/POST/x/",
            "$iothub/methods/POST/x/?rid=1",
            "$iothub/methods/POST/x/?$rid=",
            &long,
        ] {
            assert_eq!(call(other), None, "{other}");
        }
        assert_eq!(call("$iothub/methods/POST/x/?$rid=a#"), None);
        assert_eq!(method_answer(404, "a=b%20"), "$iothub/methods/res/404/?$rid=a=b%20");
    }

    #[test]
    fn what_comes_is_told_by_its_topic() {
        for (topic, expected) in [
            ("$iothub/methods/POST/x/?$rid=1", TopicKind::MethodCall),
            ("$iothub/twin/res/200/?$rid=1", TopicKind::TwinAnswer),
            ("$iothub/twin/PATCH/properties/desired/?$version=3", TopicKind::DesiredChange),
            ("$iothub/credentials/res/202/?$rid=1", TopicKind::CertificateAnswer),
            ("devices/d/messages/devicebound/", TopicKind::Message),
            ("$iothub/methods/res/1", TopicKind::Message),
        ] {
            assert_eq!(kind(topic), expected, "{topic}");
        }
    }

    #[test]
    fn answers_of_the_authority_are_told_by_request_and_status() {
        assert_eq!(certificate_answer("$iothub/credentials/res/202/?$rid=a-1"), Some(("a-1", 202)));
        assert_eq!(certificate_answer("$iothub/credentials/res/200/?x=y&$rid=b"), Some(("b", 200)));
        for other in [
            "$iothub/credentials/res/x/?$rid=1",
            "$iothub/credentials/res/200/",
            "$iothub/twin/res/200/?$rid=1",
        ] {
            assert_eq!(certificate_answer(other), None, "{other}");
        }
    }
}
