//! The filter with which a reader of Event Hubs says where it begins.
//!
//! Owns: the text of the filter. Must not know: links, what is stored.
//!
//! Source: `event_position_selector` in `_utils.py` of azure-eventhub 5.15, the same in Microsoft's other SDKs:
//! `amqp.annotation.NAME > 'VALUE'`, also with `>=`. The extension of `az` for IoT wrote `x-opt-enqueuedtimeutc`, and
//! the value without quotes, in its older versions (`monitor.py`). Choice: without a filter, a reader begins with what
//! is kept.

use fe2o3_amqp::types::messaging::Source;
use fe2o3_amqp::types::primitives::{Symbol, Value};

use super::condition::LinkRefusal;
use crate::emulator::hub::EventPosition;
use crate::message::excerpt;

const FILTER: &str = "apache.org:selector-filter:string";
const ANNOTATION: &str = "amqp.annotation.";

/// Where the reader of a link begins.
///
/// # Errors
/// An argument error that names the filter that is not known.
pub(super) fn position(source: &Source) -> Result<EventPosition, LinkRefusal> {
    let Some(filters) = &source.filter else {
        return Ok(EventPosition::Number { number: -1, inclusive: false });
    };
    if let Some((other, _)) = filters.iter().find(|(name, _)| name.as_str() != FILTER) {
        let words = format!("the hub has no filter \"{}\": use {FILTER}", excerpt(other.as_str()));
        return Err(LinkRefusal::argument(words));
    }
    let Some(filter) = filters.get(&Symbol::from(FILTER)) else {
        return Ok(EventPosition::Number { number: -1, inclusive: false });
    };
    let value = match filter {
        Value::Described(described) => &described.value,
        other => other,
    };
    let text = match value {
        Value::String(text) => Some(text.as_str()),
        Value::Binary(bytes) => std::str::from_utf8(bytes).ok(),
        _ => None,
    };
    let text = text.unwrap_or_default();
    parse(text).ok_or_else(|| {
        LinkRefusal::argument(format!(
            "the filter \"{}\" is not known: use {ANNOTATION}NAME > 'VALUE' or >= with x-opt-offset, \
             x-opt-sequence-number or x-opt-enqueued-time",
            excerpt(text)
        ))
    })
}

fn parse(text: &str) -> Option<EventPosition> {
    let (name, rest) = text.trim().strip_prefix(ANNOTATION)?.split_once('>')?;
    let (inclusive, value) = match rest.strip_prefix('=') {
        Some(value) => (true, value),
        None => (false, rest),
    };
    let value = value.trim();
    let value = value.strip_prefix('\'').map_or(Some(value), |open| open.strip_suffix('\''))?;
    match name.trim() {
        "x-opt-offset" if value.eq_ignore_ascii_case("@latest") => Some(EventPosition::End),
        "x-opt-offset" | "x-opt-sequence-number" => {
            Some(EventPosition::Number { number: value.parse().ok()?, inclusive })
        }
        "x-opt-enqueued-time" | "x-opt-enqueuedtimeutc" => {
            Some(EventPosition::Time { millis: value.parse().ok()?, inclusive })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn any_text_is_a_position_or_none(text in ".{0,80}", rest in ".{0,40}") {
            let _any = parse(&text);
            let _close = parse(&format!("amqp.annotation.x-opt-offset {rest}"));
        }
    }

    #[test]
    fn the_filters_of_the_sdks_are_understood() {
        let number = |number, inclusive| Some(EventPosition::Number { number, inclusive });
        let time = |millis, inclusive| Some(EventPosition::Time { millis, inclusive });
        for (text, position) in [
            ("amqp.annotation.x-opt-offset > '-1'", number(-1, false)),
            ("amqp.annotation.x-opt-offset > '@latest'", Some(EventPosition::End)),
            ("amqp.annotation.x-opt-offset >= '17'", number(17, true)),
            ("amqp.annotation.x-opt-sequence-number > '3'", number(3, false)),
            ("amqp.annotation.x-opt-enqueued-time >= '1800000000000'", time(1_800_000_000_000, true)),
            ("amqp.annotation.x-opt-enqueuedtimeutc > 1800000000000", time(1_800_000_000_000, false)),
            ("amqp.annotation.x-opt-offset > '1", None),
            ("amqp.annotation.x-opt-offset > 'abc'", None),
            ("amqp.annotation.x-opt-offset < '1'", None),
            ("amqp.annotation.x-opt-partition-key > 'a'", None),
            ("x-opt-offset > '1'", None),
            ("", None),
        ] {
            assert_eq!(parse(text), position, "{text}");
        }
    }
}
