//! Link addresses and the `to` of messages, in all forms that the SDKs write.
//!
//! Owns: the syntax of addresses. Must not know: links, who may use them.
//!
//! Clients write a bare path or a whole URI, in any letter case, with or without percent-encoded ids (wire reference
//! 2.4).

use percent_encoding::percent_decode_str;

/// The meaning of an address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Address {
    /// The token service.
    Cbs,
    /// A back end sends C2D messages here.
    DeviceBound,
    /// A back end reads feedback here.
    Feedback,
    /// The C2D queue of one device: the `to` of a message, or the address of a device's own link.
    Device(String),
    /// A device sends its D2C messages here.
    Events(String),
    /// A device gets its twin and reports properties here.
    Twin(String),
    /// A device receives method calls and answers them here.
    Methods(String),
    /// The C2D queue of a module. The hub does not have one.
    Module,
    /// A back end would hear here that a device has uploaded a file.
    FileNotifications,
    /// A back end asks for the Event Hub and its partitions.
    Management,
    /// A back end reads the D2C messages of a partition. None of the parts is checked.
    Partition { event_hub: String, group: String, partition: String },
    /// The Event Hub-compatible endpoint at the hub itself, with what stands below it.
    HubEvents(String),
    /// A device asks the provisioning service here: the ID scope and the registration id.
    Registration(String, String),
    /// Another address of a device.
    OtherOfDevice,
    /// Anything else.
    Unknown,
}

impl Address {
    pub(super) fn parse(text: &str) -> Self {
        let path = match text.split_once("://") {
            Some((_, rest)) => rest.split_once('/').map_or("", |(_, path)| path),
            None => text,
        };
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let lower: Vec<String> = segments.iter().map(|segment| segment.to_ascii_lowercase()).collect();
        let lower: Vec<&str> = lower.iter().map(String::as_str).collect();
        let address = match (&*lower, &*segments) {
            (["$cbs"], _) => Self::Cbs,
            (["messages", "devicebound"], _) => Self::DeviceBound,
            (["messages", "servicebound", "feedback"], _) => Self::Feedback,
            (["messages", "servicebound", "filenotifications"], _) => Self::FileNotifications,
            (["$management"] | [_, "$management"], _) => Self::Management,
            (["messages", "events", ..], [_, _, below @ ..]) => Self::HubEvents(below.join("/")),
            ([_, "consumergroups", _, "partitions", _], [event_hub, _, group, _, partition]) => {
                let [event_hub, group, partition] = [event_hub, group, partition].map(|part| decode(part));
                Self::Partition { event_hub, group, partition }
            }
            (["devices", _, "messages", "devicebound"], [_, id, ..]) => Self::Device(decode(id)),
            (["devices", _, "messages", "events"], [_, id, ..]) => Self::Events(decode(id)),
            (["devices", _, "twin"], [_, id, ..]) => Self::Twin(decode(id)),
            (["devices", _, "methods", "devicebound"], [_, id, ..]) => Self::Methods(decode(id)),
            (["devices", _, "modules", _, "messages", "devicebound"], _) => Self::Module,
            ([_, "registrations", _], [id_scope, _, id]) => Self::Registration(decode(id_scope), decode(id)),
            (["devices", _, _, ..], _) => Self::OtherOfDevice,
            _ => Self::Unknown,
        };
        match &address {
            // The decoded id contains another path.
            Self::Device(id) | Self::Events(id) | Self::Twin(id) | Self::Methods(id) if id.contains('/') => {
                Self::Unknown
            }
            _ => address,
        }
    }
}

/// Decodes an id: Node escapes ids, Python does not. Text that cannot be decoded is used unchanged.
pub(super) fn decode(id: &str) -> String {
    percent_decode_str(id).decode_utf8().map_or_else(|_| id.to_owned(), |text| text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_some_address_and_a_device_keeps_its_escaped_id(text in ".{0,80}", id in "[!-.0-~]{1,20}") {
            let _address = Address::parse(&text);
            let escaped = percent_encoding::utf8_percent_encode(&id, percent_encoding::NON_ALPHANUMERIC);
            let to = format!("amqps://h/devices/{escaped}/messages/deviceBound");
            prop_assert_eq!(Address::parse(&to), Address::Device(id));
        }
    }

    #[test]
    fn every_spelling_of_the_sdks_is_understood() {
        for text in [
            "/messages/devicebound",
            "messages/deviceBound",
            "amqps://hub.local.test/messages/devicebound",
            "amqps://hub.local.test:5671/Messages/DeviceBound/",
        ] {
            assert_eq!(Address::parse(text), Address::DeviceBound, "{text}");
        }
        assert_eq!(Address::parse("/messages/serviceBound/feedback"), Address::Feedback);
        assert_eq!(Address::parse("amqps://h/messages/servicebound/Feedback"), Address::Feedback);
        assert_eq!(Address::parse("$cbs"), Address::Cbs);
        let files = "/messages/serviceBound/filenotifications";
        assert_eq!(Address::parse(files), Address::FileNotifications);
        assert_eq!(Address::parse(&files.to_ascii_uppercase()), Address::FileNotifications);
    }

    #[test]
    fn the_addresses_of_event_hubs_keep_the_letters_of_their_names() {
        for text in ["$management", "amqps://h:5671/iothub-ehub-h/$management"] {
            assert_eq!(Address::parse(text), Address::Management, "{text}");
        }
        let partition = |text: &str| match Address::parse(text) {
            Address::Partition { event_hub, group, partition } => [event_hub, group, partition],
            other => panic!("{text}: {other:?}"),
        };
        for text in [
            "sb://h/iothub-ehub-h/ConsumerGroups/$Default/Partitions/0",
            "iothub-ehub-h/consumergroups/%24Default/partitions/0",
        ] {
            assert_eq!(partition(text), ["iothub-ehub-h", "$Default", "0"]);
        }
        let below = "ConsumerGroups/$Default/Partitions/1";
        for (text, below) in [
            ("amqps://h/messages/events/$management", "$management"),
            ("messages/Events", ""),
            (&format!("/messages/events/{below}"), below),
        ] {
            assert_eq!(Address::parse(text), Address::HubEvents(below.to_owned()), "{text}");
        }
    }

    #[test]
    fn the_device_of_a_message_keeps_its_letters_and_loses_its_escapes() {
        let device = |text: &str| Address::parse(text);
        assert_eq!(device("/devices/Dev1/messages/deviceBound"), Address::Device("Dev1".into()));
        assert_eq!(device("/devices/a%3Ab/messages/devicebound"), Address::Device("a:b".into()));
        assert_eq!(device("/devices/a%/messages/devicebound"), Address::Device("a%".into()));
        assert_eq!(device("/devices/d/modules/m/messages/deviceBound"), Address::Module);
        assert_eq!(device("amqps://h:5671/devices/d/messages/events"), Address::Events("d".into()));
        assert_eq!(device("/devices/d/Twin"), Address::Twin("d".into()));
        assert_eq!(device("/devices/d/methods/deviceBound"), Address::Methods("d".into()));
        assert_eq!(device("/devices/d/modules/m/twin"), Address::OtherOfDevice);
        assert_eq!(device("/devices/d%2Fm/twin"), Address::Unknown);
        assert_eq!(device("/devices/d"), Address::Unknown);
        // Node writes the path, and C the whole URI.
        let registration = Address::Registration("0ne01".into(), "pump:12".into());
        assert_eq!(device("0ne01/registrations/pump:12"), registration);
        assert_eq!(device("amqps://h:5671/0ne01/registrations/pump%3A12"), registration);
        assert_eq!(device("amqps://h"), Address::Unknown);
        assert_eq!(device(""), Address::Unknown);
    }
}
