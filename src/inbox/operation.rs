//! What the agent and people ask of the inbox, and its answers.
//!
//! Owns: the shapes. Must not know: how operations are done.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::record::{Counts, Number, Opened, Record, Settled, State, Unfinished};
use crate::message::{C2dMessage, Sequence};
use crate::outcome::{OutcomeKind, OutcomeReport};

/// A message that arrived, with what the agent wants to do with it.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// Returned with the answer.
    pub(crate) ticket: u64,
    /// The message. None if it could not be decoded. The inbox keeps it only while it may have to be run.
    pub(crate) message: Option<C2dMessage>,
    /// The connection on which it came. If a message equals an earlier one of this connection, it is a new one,
    /// unless the transport says that it was sent before.
    pub(crate) connection: u64,
    /// Whether the transport says that it was sent before.
    pub(crate) redelivered: bool,
    /// Its place in the hub's queue, if the transport has it.
    pub(crate) sequence: Option<Sequence>,
    pub(crate) received: SystemTime,
    pub(crate) rule: Option<String>,
    pub(crate) settled: Settled,
    /// What to do with it if it is new.
    pub(crate) intent: Intent,
}

/// What to do with a new message.
#[derive(Debug)]
pub(crate) enum Intent {
    /// Accept it. It waits for its turn.
    Wait,
    /// Accept and start it in one batch, because its turn has come.
    Start(Start),
    /// Record it as ended, because there is nothing to do. If there is a `report`, this telemetry report waits for
    /// the hub from now on.
    End { outcome: Box<OutcomeReport>, report: Option<Bytes> },
}

/// The start of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) at: SystemTime,
    /// Whether to run it again after a crash.
    pub(crate) retry_on_crash: bool,
}

/// Something to write, or to read in its turn.
#[derive(Debug)]
pub(crate) enum Op {
    Accept(Box<Arrival>),
    /// An attempt is about to begin. No action may start before the answer.
    Start {
        number: Number,
        start: Start,
    },
    /// An attempt failed and another one follows. The record goes back to accepted.
    Again {
        number: Number,
        /// Whether the attempt was made. An attempt that was recorded but not made does not count.
        made: bool,
    },
    /// The message has ended: finished, or dead if the kind of outcome says so. If there is a `report`, this
    /// telemetry report waits for the hub from now on, unless the message had ended before.
    End {
        number: Number,
        outcome: Box<OutcomeReport>,
        /// Whether a dead letter is given back to the hub. When it comes again, it counts as new.
        abandoned: bool,
        report: Option<Bytes>,
    },
    /// From now on C2D messages come from here: a name for the hub and the device, the same each time. If they came from
    /// elsewhere before, what has not ended is not sent again, so only the inbox has it; and what comes is no redelivery of
    /// what came from there, unless its id is a key by itself.
    Origin(Arc<str>),
    /// The hub has the completions of these messages. Written together with the next other operations.
    Confirmed(Vec<Number>),
    /// Since when each pin with a `max_on` is on. Replaces what was recorded.
    PinsOn(BTreeMap<String, SystemTime>),
    /// Reads the oldest waiting reports with a number above `after`, at most `limit`.
    Reports {
        after: u64,
        limit: usize,
    },
    /// These reports have arrived at the hub, or never can, so they no longer wait.
    ReportsDone(Vec<u64>),
    /// A question or a request from a person. `ticket` is returned with the answer.
    Query {
        ticket: u64,
        query: Query,
    },
}

/// Which record: `#12` is number 12, anything else is a message id. If several records have the id, the newest one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Selector(pub(crate) String);

impl From<Number> for Selector {
    fn from(number: Number) -> Self {
        Self(format!("#{}", number.0))
    }
}

/// A question or a request of a person.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Query {
    /// Lists records with a number above `after`, in order, at most `limit`. Without a state, records of all states.
    List { state: Option<State>, after: u64, limit: usize },
    /// One record with its message.
    Show(Selector),
    /// Makes a dead letter accepted again, settled on accept.
    Retry(Selector),
    /// Finishes a dead letter, or an accepted message that waits for its turn, as dropped.
    Drop(Selector),
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    Records(Vec<Record>),
    /// One record. The message is there as long as it may have to be run.
    Record {
        record: Record,
        message: Option<C2dMessage>,
    },
    /// The message is to be run now.
    Retried(Box<Unfinished>),
    Dropped(Record),
    /// Why not, in one sentence.
    Refused(String),
    /// Why it cannot be answered now, in one sentence.
    Unavailable(String),
}

/// The result of an operation. When the agent gets it, it is on disk.
#[derive(Debug)]
pub(crate) enum Written {
    Accepted {
        ticket: u64,
        verdict: Verdict,
    },
    /// The attempt may begin now.
    Started(Number),
    Again,
    /// The messages that only the inbox has because the origin is another one, in order of acceptance.
    Origin(Vec<Unfinished>),
    Confirmed,
    /// The message has ended, now or before. Also the answer to [`Op::Start`] if a person has dropped the message:
    /// then no action may start.
    Ended(Number),
    PinsOn,
    /// Reports with their numbers, oldest first.
    Reports(Vec<(u64, Bytes)>),
    ReportsDone,
    Reply {
        ticket: u64,
        reply: Box<Reply>,
    },
}

/// What the inbox knew of a message that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is new, or was given back to the hub. It is recorded as the agent asked.
    New(Number),
    /// It has ended (finished or dead). The agent must settle it as it ended, and must not run it.
    Ended(Past),
    /// It is accepted or started, and has not ended.
    Unfinished(Number),
    /// There is no room for it, so it stays at the hub.
    Full,
}

/// How a message ended before it came again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Past {
    pub(crate) number: Number,
    pub(crate) settled: Settled,
    /// None if the record does not say it.
    pub(crate) outcome: Option<OutcomeKind>,
}

/// What the inbox reports.
#[derive(Debug)]
pub(crate) enum News {
    /// The file is open. Comes once, before all answers.
    Opened(Box<Opened>),
    /// Operations are on disk, in the order in which they were handed in.
    Done { answers: Vec<Written>, counts: Counts },
    /// Nothing can be written or read, so operations wait. The inbox has logged the sentence.
    Trouble { sentence: String },
    /// The trouble is over, and waiting operations go on.
    Well,
}
