//! The node `$management`, where back ends ask for the Event Hub and its partitions.
//!
//! Owns: the two questions and their answers. Must not know: links, how messages are read.
//!
//! Source: `_client_base.py` of azure-eventhub 5.15, which sends `operation` READ, `type`, `name` and `partition`, and
//! reads the fields below from a map. The token that it sends along is ignored: the connection is signed in.

use std::time::SystemTime;

use fe2o3_amqp::types::primitives::{Array, OrderedMap, Timestamp, Value};

use super::claims::Claims;
use super::requests::{self, NodeAnswer, NodeRequest};
use crate::emulator::hub::{PARTITIONS, PartitionInfo, millis_of};
use crate::message::excerpt;

const EVENT_HUB: &str = "com.microsoft:eventhub";
const PARTITION: &str = "com.microsoft:partition";

/// Answers a request.
pub(super) fn read(claims: &Claims, request: &NodeRequest) -> NodeAnswer {
    carry_out(claims, request).unwrap_or_else(|refused| {
        tracing::warn!(reason = refused.description, "refused a request to $management");
        refused
    })
}

fn carry_out(claims: &Claims, request: &NodeRequest) -> Result<NodeAnswer, NodeAnswer> {
    claims.check_reader().map_err(|refusal| NodeAnswer::new(401, refusal.description))?;
    let text = |name| requests::text(request, name).unwrap_or_default();
    let (operation, kind) = (text("operation"), text("type"));
    if !operation.eq_ignore_ascii_case("READ") {
        let words = format!("$management has no operation \"{}\": use READ", excerpt(operation));
        return Err(NodeAnswer::new(400, words));
    }
    let event_hub = claims.hub().with(|hub, _| hub.event_hub());
    if !event_hub.is_named(text("name")) {
        let words =
            format!("the hub has no Event Hub \"{}\": its name is {}", excerpt(text("name")), event_hub.name);
        return Err(NodeAnswer::new(404, words));
    }
    let name = ("name", Value::String(event_hub.name));
    if kind.eq_ignore_ascii_case(EVENT_HUB) {
        let ids: Vec<Value> = (0..PARTITIONS).map(|id| Value::String(id.to_string())).collect();
        let made = claims.hub().with(|hub, _| hub.began());
        return Ok(found(vec![
            name,
            ("type", Value::String(EVENT_HUB.to_owned())),
            ("created_at", timestamp(made)),
            ("partition_count", Value::Int(i32::try_from(PARTITIONS).unwrap_or(i32::MAX))),
            ("partition_ids", Value::Array(Array::from(ids))),
        ]));
    }
    if !kind.eq_ignore_ascii_case(PARTITION) {
        let words = format!("$management has no type \"{}\": use {EVENT_HUB} or {PARTITION}", excerpt(kind));
        return Err(NodeAnswer::new(400, words));
    }
    let id = text("partition");
    let info = id.parse().ok().and_then(|id: usize| claims.hub().with(|hub, _| hub.partition_info(id)));
    let PartitionInfo { first, last, is_empty } = info.ok_or_else(|| {
        let words = format!("there is no partition \"{}\": they are 0 to {}", excerpt(id), PARTITIONS - 1);
        NodeAnswer::new(404, words)
    })?;
    let (last, enqueued) = match last {
        Some((number, enqueued)) => (long(number), enqueued),
        None => (-1, SystemTime::UNIX_EPOCH),
    };
    Ok(found(vec![
        name,
        ("type", Value::String(PARTITION.to_owned())),
        ("partition", Value::String(id.to_owned())),
        ("begin_sequence_number", Value::Long(long(first))),
        ("last_enqueued_sequence_number", Value::Long(last)),
        ("last_enqueued_offset", Value::String(last.to_string())),
        ("last_enqueued_time_utc", timestamp(enqueued)),
        ("is_partition_empty", Value::Bool(is_empty)),
    ]))
}

fn found(fields: Vec<(&str, Value)>) -> NodeAnswer {
    let map: OrderedMap<Value, Value> =
        fields.into_iter().map(|(name, value)| (Value::String(name.to_owned()), value)).collect();
    NodeAnswer { value: Value::Map(map), ..NodeAnswer::new(200, "OK") }
}

fn long(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn timestamp(time: SystemTime) -> Value {
    Value::Timestamp(Timestamp::from_milliseconds(millis_of(time)))
}
