//! What the agent and people ask of the inbox, and what it answers.
//!
//! Owns: the shapes. Must not know: how any of it is done.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::record::{Counts, Number, Opened, Record, Settled, State, Unfinished};
use crate::message::{C2dMessage, Sequence};
use crate::outcome::{OutcomeKind, OutcomeReport};

/// A message that arrived, with what the agent makes of it.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// Comes back with the answer.
    pub(crate) ticket: u64,
    /// The message; none when it could not be decoded. It is only kept while it may have to be run.
    pub(crate) message: Option<C2dMessage>,
    /// The connection on which it came. A message that equals an earlier one of the same connection is a new one, unless
    /// the transport says that it was sent before.
    pub(crate) connection: u64,
    /// Whether the transport says that it was sent before.
    pub(crate) redelivered: bool,
    /// Which message of the hub's queue it is, where the transport tells.
    pub(crate) sequence: Option<Sequence>,
    pub(crate) received: SystemTime,
    pub(crate) rule: Option<String>,
    pub(crate) settled: Settled,
    /// What to do with it when it is new.
    pub(crate) intent: Intent,
}

/// What is to become of a new message.
#[derive(Debug)]
pub(crate) enum Intent {
    /// Accepted; it waits for its turn.
    Wait,
    /// Accepted and started in one go: its turn has come.
    Start(Start),
    /// Nothing is to be done with it.
    /// With `report`, this telemetry report waits for the hub from now on.
    End { outcome: Box<OutcomeReport>, report: Option<Bytes> },
}

/// The beginning of an attempt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Start {
    pub(crate) at: SystemTime,
    /// Whether to run it again after a crash.
    pub(crate) retry_on_crash: bool,
}

/// Something to be written, or read in its turn.
#[derive(Debug)]
pub(crate) enum Op {
    Accept(Box<Arrival>),
    /// An attempt is about to begin. Nothing may be done before the answer.
    Start {
        number: Number,
        start: Start,
    },
    /// An attempt failed and another one follows: back to accepted.
    Again {
        number: Number,
        /// Whether the attempt was made: one that was noted and then not made does not count.
        made: bool,
    },
    /// It has ended: finished, or dead where the kind of outcome says so. With `report`, this telemetry report
    /// waits for the hub from now on, unless the message had ended before.
    End {
        number: Number,
        outcome: Box<OutcomeReport>,
        /// Whether a dead letter is given back to the hub: when it comes again, it counts as new.
        abandoned: bool,
        report: Option<Bytes>,
    },
    /// The hub has the completions of these messages. Goes to the disk with what else is to be written.
    Confirmed(Vec<Number>),
    /// Since when each pin that has a `max_on` is on; replaces what was recorded.
    PinsOn(BTreeMap<String, SystemTime>),
    /// The oldest waiting reports with a number above `after`, at most `limit`.
    Reports {
        after: u64,
        limit: usize,
    },
    /// These reports have arrived at the hub, or cannot: they wait no longer.
    ReportsDone(Vec<u64>),
    /// A question, or a wish, from a person. `ticket` comes back with the answer.
    Query {
        ticket: u64,
        query: Query,
    },
}

/// Which record: `#12` is number 12, anything else a message id (of several records with it, the newest).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub(crate) struct Selector(pub(crate) String);

impl From<Number> for Selector {
    fn from(number: Number) -> Self {
        Self(format!("#{}", number.0))
    }
}

/// What a person wants of the inbox.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Query {
    /// Records with a number above `after`, in order, at most `limit`; all states unless one is given.
    List { state: Option<State>, after: u64, limit: usize },
    /// One record with its message.
    Show(Selector),
    /// A dead letter becomes accepted again, settled on accept.
    Retry(Selector),
    /// A dead letter, or an accepted message that waits for its turn, is finished as dropped.
    Drop(Selector),
}

/// The answer to a [`Query`].
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Reply {
    Records(Vec<Record>),
    /// The message is there as long as it may have to be run.
    Record {
        record: Record,
        message: Option<C2dMessage>,
    },
    /// It is to be run now.
    Retried(Box<Unfinished>),
    Dropped(Record),
    /// In one sentence.
    Refused(String),
    /// It cannot be answered now: why, in one sentence.
    Unavailable(String),
}

/// What became of an operation. Once it is told, it is on disk.
#[derive(Debug)]
pub(crate) enum Answer {
    Accepted {
        ticket: u64,
        verdict: Verdict,
    },
    /// The attempt may begin now.
    Started(Number),
    Again,
    Confirmed,
    /// It has ended, now or before. Also the answer to [`Op::Start`] where somebody has dropped the message: then
    /// nothing may be done.
    Ended(Number),
    PinsOn,
    /// Each with its number, the oldest first.
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
    /// Nothing, or that it was given back to the hub: it is recorded as the agent wished.
    New(Number),
    /// It has ended (finished or dead): it is to be settled as it ended, and not acted on.
    Ended(Past),
    /// It is accepted or started, and has not ended.
    Unfinished(Number),
    /// There is no room for it: it stays at the hub.
    Full,
}

/// How a message ended that came again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Past {
    pub(crate) number: Number,
    pub(crate) settled: Settled,
    /// None where the record does not say it.
    pub(crate) outcome: Option<OutcomeKind>,
}

/// What the inbox tells.
#[derive(Debug)]
pub(crate) enum News {
    /// The file is open; comes once, before all answers.
    Opened(Box<Opened>),
    /// Operations are on disk, in the order in which they were handed in.
    Done { answers: Vec<Answer>, counts: Counts },
    /// Nothing can be written or read: operations wait. The sentence is logged by the inbox.
    Trouble { sentence: String },
    /// What waited goes on.
    Well,
}
