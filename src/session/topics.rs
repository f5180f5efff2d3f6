//! The topics on which a device publishes, and those of the answers to its twin requests.
//!
//! Owns: their spelling. Pure. Must not know: packets, who waits for an answer. Used by: `session::mqtt`.
//! Source: wire reference 1.7.

use crate::message::Properties;

/// The filter of all answers to twin requests.
pub(super) const TWIN_ANSWERS: &str = "$iothub/twin/res/#";

/// The topic of a D2C message with these properties.
pub(super) fn telemetry(device_id: &str, properties: &Properties) -> String {
    format!("devices/{device_id}/messages/events/{}", properties.encode())
}

/// The topic of a patch of the reported properties; its answer carries the same `request`.
pub(super) fn reported(request: u64) -> String {
    format!("$iothub/twin/PATCH/properties/reported/?$rid={request}")
}

/// The answer to a twin request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TwinAnswer {
    pub(super) request: u64,
    /// As in HTTP.
    pub(super) status: u16,
}

/// What a topic says about the answer it carries; `None` when it is no answer to a request of ours.
pub(super) fn twin_answer(topic: &str) -> Option<TwinAnswer> {
    let (status, query) = topic.strip_prefix("$iothub/twin/res/")?.split_once('/')?;
    let mut pairs = query.strip_prefix('?').unwrap_or(query).split('&');
    let request = pairs.find_map(|pair| pair.strip_prefix("$rid="))?;
    Some(TwinAnswer { request: request.parse().ok()?, status: status.parse().ok()? })
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
            telemetry("dev1", &properties),
            "devices/dev1/messages/events/%24.cid=m%2F1%3Da%26b&%24.ct=application%2Fjson&%24.ce=utf-8\
             &outcome=failed%3A%2050%20%25%20%2B%20%C3%BC&empty="
        );
        assert_eq!(telemetry("dev1", &Properties::default()), "devices/dev1/messages/events/");
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
}
