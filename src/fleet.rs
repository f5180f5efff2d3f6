//! A run: one message to many devices, or many messages to one. And calls of the hub for many devices.
//!
//! Owns: what a run is. Must not know: the command line, AMQP, terminals.
//!
//! - `list` reads who gets a message, `template` makes it, `estimate` says how long it takes and what share of the quota.
//! - `pace` says when the next message may go; `journal` keeps the run on disk; `sending` sends it.
//! - `calls` is for what has no journal: methods and twins.
//!
//! A run can be resumed: the ids of its messages follow from the run, so a message that is sent again has the same id,
//! and an agent acts on it once.

mod calls;
mod estimate;
mod journal;
mod list;
mod pace;
mod sending;
mod template;

pub(crate) use calls::{CallProgress, CallsError, call_each};
pub(crate) use estimate::{Estimate, PresentRate, Tier};
pub(crate) use journal::{JournalError, RunJournal, Settlement};
pub(crate) use list::{Entry, EntryList, ListError, MAX_ENTRIES};
pub(crate) use pace::Pace;
pub(crate) use sending::{Progress, RunError, Sending, SendingLimits};
pub(crate) use template::{MessageTemplate, check_message, check_text};

use serde::{Deserialize, Serialize};

/// What is sent, and to whom.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Run {
    /// A UUID.
    pub(crate) id: String,
    /// The hub's host name.
    pub(crate) hub: String,
    /// What the ids of its messages end with.
    pub(crate) naming: Naming,
    /// What all messages have in common.
    pub(crate) template: MessageTemplate,
    /// In order; at least one.
    pub(crate) entries: Vec<Entry>,
}

/// What tells the messages of a run apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Naming {
    /// Each device has one message, whose id is RUN-DEVICE.
    ByDevice,
    /// One device has all messages. Their ids are RUN-NUMBER.
    ByNumber,
}
