//! The machine: what actions run on, and the record of the pins that are on.
//!
//! Owns: the pins and the signal that ends every action; when the inbox is told which pins are on. Must not know:
//! messages, files.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use tokio_util::sync::CancellationToken;

use crate::action::Actions;
use crate::inbox::{Inbox, News, Op};

/// What actions run on. Every running action shares it.
pub(super) struct Machine {
    pub(super) actions: Actions,
    /// Ends every action.
    pub(super) stop: CancellationToken,
}

/// The state of the record of the pins that are on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum PinsNoted {
    Yes,
    UnderWay,
    /// A write is under way, but it is out of date already, so another one follows.
    Again,
}

impl Machine {
    pub(super) fn new(actions: Actions) -> Self {
        Self { actions, stop: CancellationToken::new() }
    }

    /// The state of every pin in words, by name.
    pub(super) fn pins(&self) -> impl Iterator<Item = (String, String)> {
        self.actions.pin_states().into_iter().map(|(pin, state)| (pin, state.to_string()))
    }
}

impl PinsNoted {
    /// Records since when pins are on, so that their `max_on` holds across a restart.
    pub(super) fn note(&mut self, machine: &Machine, inbox: &mut Inbox, now: SystemTime) {
        if *self != Self::Yes {
            *self = Self::Again;
            return;
        }
        inbox.submit(on_since(machine.actions.pins_on(), now));
        *self = Self::UnderWay;
    }

    /// The inbox has recorded them.
    pub(super) fn recorded(&mut self, machine: &Machine, inbox: &mut Inbox, now: SystemTime) {
        if std::mem::replace(self, Self::Yes) == Self::Again {
            self.note(machine, inbox, now);
        }
    }
}

/// Records that these pins have been on for so long.
pub(super) fn on_since(on: BTreeMap<String, Duration>, now: SystemTime) -> Op {
    let since = |on: Duration| now.checked_sub(on).unwrap_or(SystemTime::UNIX_EPOCH);
    Op::PinsOn(on.into_iter().map(|(pin, on)| (pin, since(on))).collect())
}

/// How long pins were on before this process began, as the inbox recorded it.
pub(super) fn been_on(first: Option<&News>, now: SystemTime) -> BTreeMap<String, Duration> {
    let Some(News::Opened(opened)) = first else { return BTreeMap::new() };
    let on = |since: &SystemTime| now.duration_since(*since).unwrap_or_default();
    opened.pins_on.iter().map(|(pin, since)| (pin.clone(), on(since))).collect()
}
