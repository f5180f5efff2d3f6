//! The record of a message, and the counts of the inbox.
//!
//! Owns: the shapes, and milliseconds since 1970. Must not know: files, threads.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use crate::message::{C2dMessage, excerpt};
use crate::outcome::{OutcomeReport, Totals};

/// The number of a record. It counts up in order of acceptance, and is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Number(pub(crate) u64);

/// How far a message has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum State {
    /// Recorded. Its action has not begun, or waits for its next attempt.
    Accepted,
    /// Its action may have begun.
    Started,
    /// Ended, with nothing left to do.
    Finished,
    /// Ended badly, or no rule matched it. It is kept whole, so that a person can run it again or drop it.
    Dead,
}

impl State {
    /// Whether the message has ended.
    pub(crate) fn has_ended(self) -> bool {
        matches!(self, Self::Finished | Self::Dead)
    }
}

/// When a message is completed at the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Settled {
    /// When it is finished. Until then the hub keeps it, too, and sends it again after a lost connection.
    AfterAction,
    /// As soon as it is accepted. From then on only the inbox has it.
    OnAccept,
}

/// One message's record, without the message itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Record {
    pub(crate) number: Number,
    /// The message's id, if its sender gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) message_id: Option<String>,
    /// The rule that matched. None if no rule matches the message.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rule: Option<String>,
    pub(crate) state: State,
    pub(crate) settled: Settled,
    /// When it arrived, in milliseconds since 1970. In JSON it is in RFC 3339, as all times there.
    #[serde(rename = "received", with = "rfc3339")]
    pub(crate) received_ms: u64,
    /// How many attempts were begun.
    pub(crate) attempts: u32,
    /// When the last attempt was begun, in the format of `received_ms`.
    #[serde(default, skip_serializing_if = "Option::is_none", rename = "started", with = "optional_rfc3339")]
    pub(crate) started_ms: Option<u64>,
    /// Whether to run the action again if a crash interrupted it: what the rule said at its start.
    #[serde(default)]
    pub(crate) retry_on_crash: bool,
    /// Whether a dead letter was given back to the hub. When it comes again, it runs again.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) abandoned: bool,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) outcome: Option<OutcomeReport>,
}

impl Record {
    /// The name of the message in a sentence.
    pub(crate) fn name(&self) -> String {
        match &self.message_id {
            Some(id) => format!("message \"{}\" (#{})", excerpt(id), self.number.0),
            None => format!("message #{}", self.number.0),
        }
    }
}

/// A message that is recorded and has not ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Unfinished {
    pub(crate) record: Record,
    pub(crate) message: C2dMessage,
}

/// How many messages and reports there are. Kept in memory, so it costs no read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Counts {
    /// All records.
    pub(crate) records: u64,
    /// Records that are accepted or started.
    pub(crate) unfinished: u64,
    /// Dead letters.
    pub(crate) dead: u64,
    /// Bytes of records, messages and reports, as counted towards `max_size`.
    pub(crate) bytes: u64,
    /// Telemetry reports that wait for the hub.
    pub(crate) reports: u64,
    /// Reports dropped because too many waited, since the inbox was created.
    pub(crate) reports_dropped: u64,
    /// Ended messages by outcome, since the inbox was created.
    pub(crate) totals: Totals,
}

/// What the file held when it was opened for the first time.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    /// Messages in order of acceptance.
    pub(crate) unfinished: Vec<Unfinished>,
    /// The newest ended record of each rule.
    pub(crate) latest: Vec<Record>,
    /// When attempts were begun, by rule, oldest first. For each rule: the newest 1,000 of the last hour, or if there
    /// are none, the newest one.
    pub(crate) starts: Vec<(String, SystemTime)>,
    pub(crate) last_received: Option<SystemTime>,
    /// What the last `Op::PinsOn` recorded.
    pub(crate) pins_on: BTreeMap<String, SystemTime>,
    pub(crate) counts: Counts,
}

/// A time in the recorded format. Times before 1970 count as 1970.
pub(crate) fn to_millis(time: SystemTime) -> u64 {
    let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// A recorded time. If no clock can show it, it counts as 1970.
pub(crate) fn from_millis(millis: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH.checked_add(Duration::from_millis(millis)).unwrap_or(SystemTime::UNIX_EPOCH)
}

/// A recorded time as text.
mod rfc3339 {
    use super::{from_millis, to_millis};
    use crate::message::{format_time, parse_time};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(millis: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_time(from_millis(*millis)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let time = parse_time(&text);
        time.map(to_millis)
            .ok_or_else(|| D::Error::custom(format_args!("\"{text}\" is not a time in RFC 3339")))
    }
}

/// A recorded time as text, or null.
mod optional_rfc3339 {
    use super::rfc3339;
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    struct Time(#[serde(with = "rfc3339")] u64);

    pub(super) fn serialize<S: Serializer>(millis: &Option<u64>, to: S) -> Result<S::Ok, S::Error> {
        match millis {
            Some(millis) => rfc3339::serialize(millis, to),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<u64>, D::Error> {
        Ok(Option::<Time>::deserialize(from)?.map(|Time(millis)| millis))
    }
}
