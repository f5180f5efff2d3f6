//! The topics that a device may subscribe to and publish to.
//!
//! Owns: the documented filters and topics. Must not know: packets, sessions.
//! Source: wire reference 1.4, 1.5 and 1.7.

use crate::message::{self, MessageError, Properties};

use super::super::hub::Subscription;
use super::super::identity;
use super::{certificates, methods, twin};

/// The subscription that a filter of `device_id` stands for; `None` if the filter is not documented.
pub(super) fn subscription(device_id: &str, filter: &str) -> Option<Subscription> {
    match filter {
        "$iothub/methods/POST/#" => Some(Subscription::Methods),
        "$iothub/twin/res/#" => Some(Subscription::TwinResponses),
        "$iothub/twin/PATCH/properties/desired/#" => Some(Subscription::DesiredProperties),
        "$iothub/credentials/res/#" if !identity::is_module(device_id) => {
            Some(Subscription::CertificateAnswers)
        }
        _ => {
            let begins = filter.strip_suffix('#')?;
            let own = if identity::is_module(device_id) {
                // C# and C send the first form, Python and Node the second.
                let all = format!("{}/", identity::path(device_id));
                begins == all || begins == all + "inputs/"
            } else {
                begins == message::devicebound_topic(device_id)
            };
            own.then_some(Subscription::DeviceBound)
        }
    }
}

/// Whether a module subscribes to C2D messages, as Java's SDK does. An edgeHub accepts this, but sends none. Source:
/// wire reference 6.1.
pub(super) fn brings_nothing(id: &str, filter: &str) -> bool {
    identity::is_module(id) && filter == format!("{}/messages/devicebound/#", identity::path(id))
}

/// The purpose of a topic that a device publishes to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Destination {
    /// D2C telemetry.
    Events(Properties),
    /// The device's twin.
    Twin(twin::TwinRequest),
    /// An answer to a call of a method.
    MethodAnswer(methods::AnswerTopic),
    /// A request for a certificate, with this id.
    Certificate(String),
}

/// The purpose of a topic of `device_id`; `Ok(None)` if the topic is not documented.
///
/// # Errors
/// Fails if the property bag after the events topic cannot be decoded.
pub(super) fn destination(device_id: &str, topic: &str) -> Result<Option<Destination>, MessageError> {
    if let Some(answer) = methods::answer(topic) {
        return Ok(Some(Destination::MethodAnswer(answer)));
    }
    if let Some(request) = certificates::request(topic) {
        return Ok(Some(Destination::Certificate(request.to_owned())));
    }
    if let Some(request) = twin::request(topic) {
        return Ok(Some(Destination::Twin(request)));
    }
    let bag = topic
        .strip_prefix(&identity::path(device_id))
        .and_then(|rest| rest.strip_prefix("/messages/events"))
        .and_then(|rest| if rest.is_empty() { Some("") } else { rest.strip_prefix('/') });
    let Some(bag) = bag else { return Ok(None) };
    let bag = bag.strip_suffix('/').unwrap_or(bag);
    Properties::decode(bag).map(|properties| Some(Destination::Events(properties)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::MESSAGE_ID;

    #[test]
    fn only_the_documented_filters_of_the_own_device_are_known() {
        let own = |filter: &str| subscription("dev1", filter);
        assert_eq!(own("devices/dev1/messages/devicebound/#"), Some(Subscription::DeviceBound));
        assert_eq!(own("$iothub/twin/res/#"), Some(Subscription::TwinResponses));
        let module = |filter: &str| subscription("dev1/m", filter);
        for filter in ["devices/dev1/modules/m/inputs/#", "devices/dev1/modules/m/#"] {
            assert_eq!(module(filter), Some(Subscription::DeviceBound), "{filter}");
        }
        for foreign in ["devices/dev1/messages/devicebound/#", "devices/dev1/modules/n/inputs/#"] {
            assert_eq!(module(foreign), None, "{foreign}");
        }
        let c2d = "devices/dev1/modules/m/messages/devicebound/#";
        assert!(brings_nothing("dev1/m", c2d) && !brings_nothing("dev1/n", c2d));
        assert!(!brings_nothing("dev1", "devices/dev1/messages/devicebound/#"));
        for foreign in
            ["devices/dev2/messages/devicebound/#", "devices/dev1/messages/devicebound/", "#", "+", ""]
        {
            assert_eq!(own(foreign), None, "{foreign}");
        }
    }

    #[test]
    fn events_come_with_either_spelling_of_the_dollar_and_with_or_without_a_slash() {
        let id_of = |topic: &str| match destination("dev1", topic) {
            Ok(Some(Destination::Events(properties))) => properties.get(MESSAGE_ID).map(str::to_owned),
            other => panic!("{topic}: {other:?}"),
        };
        assert_eq!(id_of("devices/dev1/messages/events/%24.mid=a&x=1").as_deref(), Some("a"));
        assert_eq!(id_of("devices/dev1/messages/events/$.mid=a/").as_deref(), Some("a"));
        assert_eq!(id_of("devices/dev1/messages/events/"), None);
        assert_eq!(id_of("devices/dev1/messages/events"), None);
    }

    #[test]
    fn other_topics_are_not_known() {
        let topics = [
            "devices/dev2/messages/events/",
            "devices/dev1/messages/eventsx",
            "devices/dev1/messages/devicebound/",
            "$iothub/other",
            "$iothub/methods/res/ok/?$rid=1",
            "a",
        ];
        for topic in topics {
            assert_eq!(destination("dev1", topic), Ok(None), "{topic}");
        }
        let answer = destination("dev1", "$iothub/methods/res/200/?$rid=1");
        assert!(matches!(answer, Ok(Some(Destination::MethodAnswer(_)))), "{answer:?}");
        assert!(matches!(destination("dev1", "$iothub/twin/GET/?$rid=1"), Ok(Some(Destination::Twin(_)))));
        assert!(destination("dev1", "devices/dev1/messages/events/a=%zz").is_err());
    }
}
