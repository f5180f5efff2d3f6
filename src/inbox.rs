//! The inbox: the durable record of each message, so that none is lost and none is acted on twice.
//!
//! Owns: the file, its states (accepted, started, finished, dead), duplicates, retention, dead letters, the reports that
//! wait for the hub; what happens when the disk does not do as it should.
//! Must not know: sessions, rules, actions. Used by: `agent`, `cli` (on the file, when no agent runs).
//!
//! A thread of its own (`worker.rs`) owns the file (`store.rs`), because a write waits for the disk. The agent hands in
//! operations ([`Inbox::submit`]) and gets their answers when they are on disk ([`Inbox::next`]); what has been handed
//! in while a write was under way goes into one transaction together.

use std::collections::BTreeMap;
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::config::InboxSettings;
use crate::message::C2dMessage;
use crate::outcome::{OutcomeReport, Totals};

/// The number of a record: counts up in order of acceptance, and is never used again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Number(pub u64);

/// Where a message is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Recorded; its action has not begun, or waits for its next attempt.
    Accepted,
    /// Its action may have begun.
    Started,
    /// Ended; nothing is left to do.
    Finished,
    /// Ended badly; kept whole, so that somebody can run it again or drop it.
    Dead,
}

/// When a message is completed at the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Settled {
    /// When it is finished: until then the hub keeps it, too, and sends it again after a lost connection.
    AfterAction,
    /// As soon as it is accepted: from then on only the inbox has it.
    OnAccept,
}

/// One message's record, without the message itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Record {
    /// Its number.
    pub number: Number,
    /// The message's id, when its sender gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// The rule that took it; none for a message that no rule takes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// Where it is.
    pub state: State,
    /// When it is completed at the hub.
    pub settled: Settled,
    /// When it arrived, in milliseconds since 1970.
    pub received_ms: u64,
    /// How many attempts were begun.
    pub attempts: u32,
    /// When the last attempt was begun, in milliseconds since 1970.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_ms: Option<u64>,
    /// Whether the action is to be run again when a crash cut it off: the rule's word at its start.
    #[serde(default)]
    pub retry_on_crash: bool,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub outcome: Option<OutcomeReport>,
}

/// A message that is recorded and has not ended.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Unfinished {
    pub(crate) record: Record,
    pub(crate) message: C2dMessage,
}

/// A message that arrived, with what the agent makes of it.
#[derive(Debug)]
pub(crate) struct Arrival {
    /// Comes back with the answer.
    pub(crate) ticket: u64,
    /// The message; none when it could not be decoded. It is only kept while it may have to be run.
    pub(crate) message: Option<C2dMessage>,
    /// The connection on which it came. A message without an id that equals an earlier one of the same connection is
    /// a new message: the hub sends again on another connection only.
    pub(crate) connection: u64,
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
    End(Box<OutcomeReport>),
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
    },
    /// It has ended: finished, or dead where the kind of outcome says so. With `report`, this telemetry report
    /// waits for the hub from now on.
    End {
        number: Number,
        outcome: Box<OutcomeReport>,
        report: Option<Bytes>,
    },
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
}

/// What became of an operation. Once it is told, it is on disk.
#[derive(Debug)]
pub(crate) enum Answer {
    Accepted {
        ticket: u64,
        verdict: Verdict,
    },
    Started(Number),
    Again(Number),
    Ended(Number),
    PinsOn,
    /// Each with its number, the oldest first.
    Reports(Vec<(u64, Bytes)>),
    ReportsDone,
    Reply {
        ticket: u64,
        reply: Reply,
    },
}

/// What the inbox knew of a message that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Nothing: it is recorded as the agent wished.
    New(Number),
    /// It has ended (finished or dead): it is to be completed, and not acted on.
    Ended(Number),
    /// It is accepted or started, and has not ended.
    Unfinished(Number),
    /// There is no room for it: it stays at the hub.
    Full,
}

/// How much there is. Kept in memory, so it costs nothing to tell.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    /// All records.
    pub records: u64,
    /// Accepted and started.
    pub unfinished: u64,
    /// Dead letters.
    pub dead: u64,
    /// Bytes of records, messages and reports, as counted towards `max_size`.
    pub bytes: u64,
    /// Telemetry reports that wait for the hub.
    pub reports: u64,
    /// Reports dropped because too many waited, since the inbox was created.
    pub reports_dropped: u64,
    /// By outcome, since the inbox was created.
    pub totals: Totals,
}

/// What the file held when it was opened for the first time.
#[derive(Debug, Default)]
pub(crate) struct Opened {
    /// In order of acceptance.
    pub(crate) unfinished: Vec<Unfinished>,
    /// The newest ended record of each rule.
    pub(crate) latest: Vec<Record>,
    /// When attempts were begun, by rule, in the last hour (the newest 1,000), the oldest first.
    pub(crate) starts: Vec<(String, SystemTime)>,
    pub(crate) last_received: Option<SystemTime>,
    /// As [`Op::PinsOn`] left it.
    pub(crate) pins_on: BTreeMap<String, SystemTime>,
    pub(crate) counts: Counts,
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

/// The inbox of a running agent. Dropped, what was handed in and not written is lost, as by a crash.
#[derive(Debug)]
pub(crate) struct Inbox {}

impl Inbox {
    /// Begins to open the file, which is created where it is missing. Never fails: trouble is [`News`], and the inbox
    /// tries again by itself.
    pub(crate) fn open(_settings: &InboxSettings, _clock: fn() -> SystemTime) -> Self {
        todo!()
    }

    /// Hands in an operation. Never blocks; the caller bounds how many are under way.
    pub(crate) fn submit(&mut self, _op: Op) {
        todo!()
    }

    /// The next news. Cancel safe.
    pub(crate) async fn next(&mut self) -> News {
        todo!()
    }

    /// Writes what was handed in, closes the file, and tells the answers that were not told. Takes at most a second.
    pub(crate) async fn close(self) -> Vec<Answer> {
        todo!()
    }
}

/// The inbox's file while no agent runs: for the command line.
#[derive(Debug)]
pub(crate) struct InboxFile {}

impl InboxFile {
    /// Opens a file that exists.
    ///
    /// # Errors
    /// [`InboxError::InUse`] while an agent has it, [`InboxError::Missing`], or what is wrong with it.
    pub(crate) fn open(_settings: &InboxSettings) -> Result<Self, InboxError> {
        todo!()
    }

    /// Answers a question, or fulfils a wish; on disk when this returns.
    ///
    /// # Errors
    /// When the disk does not do as it should.
    pub(crate) fn query(&mut self, _query: Query, _now: SystemTime) -> Result<Reply, InboxError> {
        todo!()
    }

    /// How much there is.
    pub(crate) fn counts(&self) -> Counts {
        todo!()
    }
}

/// Why the inbox's file cannot be used. Each sentence names the file and the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InboxError {
    /// Another process has it open.
    #[error("the inbox {0} is in use: an agent runs with it")]
    InUse(String),
    /// There is none.
    #[error("there is no inbox at {0}: it is created when the agent first runs")]
    Missing(String),
}
