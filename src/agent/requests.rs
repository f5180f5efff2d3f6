//! Requests of people through the control socket.
//!
//! Owns: how many questions may be open, what an answer changes for the messages in hand, and which dead letters may
//! be run again. Must not know: sockets, how the inbox answers a question.

use std::collections::HashMap;
use std::path::Path;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::inbox::{Op, Query, Record, Reply, Selector, State};
use crate::message::{C2dMessage, excerpt};
use crate::outcome::OutcomeKind;
use crate::rules::Rules;

use super::control::{Control, ControlRequest};
use super::desk::Desk;
use super::message::end;
use super::message::in_hand::MessageEntry;
use super::recovery;

/// Most questions that the inbox has not answered. Clients ask fewer at once, but they may give up waiting.
const MOST_QUERIES: usize = 16;
/// The shortest time between two attempts to open the control socket.
const CONTROL_RETRY: Duration = Duration::from_secs(30);

/// The control socket, and what its clients asked.
#[derive(Default)]
pub(super) struct Requests {
    control: Option<Control>,
    control_retry: Option<Instant>,
    /// Questions that the inbox has not answered.
    asked: HashMap<QueryId, PendingQuery>,
    last: QueryId,
}

/// One question to the inbox.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
struct QueryId(u64);

/// A question that the inbox has not answered.
struct PendingQuery {
    answer: oneshot::Sender<Reply>,
    /// Whether this is a request to run a dead letter again. If so, the inbox was only asked to show it so far.
    retry: bool,
}

impl Requests {
    /// Opens the control socket. If that fails, the agent runs without it and tries again later.
    pub(super) fn open(&mut self, socket: &Path) {
        if self.control.is_some() {
            return;
        }
        match Control::open(socket) {
            Ok(control) => (self.control, self.control_retry) = (Some(control), None),
            Err(error) => {
                // Logged only once: if their directory is at fault, the inbox says so itself.
                if self.control_retry.is_none() {
                    tracing::warn!(%error, "`inbox` and `status` cannot reach this agent");
                }
                self.control_retry = Some(Instant::now() + CONTROL_RETRY);
            }
        }
    }

    /// When to try again to open the control socket.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.control_retry
    }

    /// The next request. Without a control socket it never resolves. Cancel safe.
    pub(super) async fn next(&mut self) -> ControlRequest {
        match &mut self.control {
            Some(control) => control.next().await,
            None => std::future::pending().await,
        }
    }

    /// Passes a question on to the inbox, or answers it at once.
    pub(super) fn ask(&mut self, desk: &mut Desk, query: Query, answer: oneshot::Sender<Reply>) {
        // The limit is needed because clients may give up, and their questions would pile up behind a disk that
        // hangs.
        let reply = match (objection(desk, &query), &desk.watch.board.trouble) {
            (Some(objection), _) => Reply::Refused(objection),
            (None, Some(trouble)) => Reply::Unavailable(trouble.clone()),
            (None, None) if self.asked.len() >= MOST_QUERIES => Reply::Unavailable(
                "the inbox has not answered earlier requests yet: try again in a moment".to_owned(),
            ),
            (None, None) => {
                let (query, retry) = match query {
                    // First look whether a rule matches the message, before anything is changed.
                    Query::Retry(selector) => (Query::Show(selector), true),
                    query => (query, false),
                };
                self.last.0 += 1;
                self.asked.insert(self.last, PendingQuery { answer, retry });
                return desk.inbox.submit(Op::Query { ticket: self.last.0, query });
            }
        };
        // If the client has gone, it needs no answer.
        drop(answer.send(reply));
    }

    /// The inbox has answered a question. Applies what that changes for the messages in hand.
    pub(super) fn answered(&mut self, desk: &mut Desk, ticket: u64, mut reply: Reply) {
        let id = QueryId(ticket);
        if self.asked.get_mut(&id).is_some_and(|asked| std::mem::take(&mut asked.retry))
            && let Reply::Record { record, message } = &reply
        {
            let rules = &desk.rules.config().rules;
            match message.as_ref().and_then(|message| not_to_retry(record, message, rules)) {
                Some(refusal) => reply = Reply::Refused(refusal),
                None => {
                    let query = Query::Retry(Selector::from(record.number));
                    return desk.inbox.submit(Op::Query { ticket, query });
                }
            }
        }
        match &reply {
            Reply::Retried(unfinished) if !desk.in_hand.stopping => {
                let Record { number, message_id, .. } = &unfinished.record;
                tracing::info!(number = number.0, message_id, "a dead letter is run again");
                recovery::resume(desk, (**unfinished).clone());
            }
            Reply::Dropped(record) => {
                if let Some(refusal) = dropped(desk, record) {
                    reply = Reply::Refused(refusal);
                }
            }
            _ => {}
        }
        if let Some(PendingQuery { answer, .. }) = self.asked.remove(&id) {
            // The client may have gone.
            drop(answer.send(reply));
        }
    }
}

/// Why a request is not passed to the inbox. An action that runs must not be dropped, and the inbox does not know of
/// every start.
fn objection(desk: &Desk, query: &Query) -> Option<String> {
    let Query::Drop(selector) = query else { return None };
    let meant = |entry: &&MessageEntry| {
        let number = entry.number.is_some_and(|number| selector.0 == format!("#{}", number.0));
        number || entry.message.message_id() == Some(selector.0.as_str())
    };
    desk.in_hand.entries().find(meant).filter(|entry| entry.is_running()).map(under_way)
}

/// The inbox has dropped a record. Says why not, if its action began while the inbox was asked.
fn dropped(desk: &mut Desk, record: &Record) -> Option<String> {
    let Record { number, message_id, rule, .. } = record;
    tracing::info!(number = number.0, message_id, "dropped from the inbox");
    desk.watch.scraper.tally.ended(rule.as_deref(), OutcomeKind::Dropped.as_str());
    // The agent no longer waits for the hub to send it. If it comes, it is completed.
    desk.in_hand.held.remove(number);
    let id = desk.in_hand.id_of(*number)?;
    let entry = desk.in_hand.get(id)?;
    if entry.is_running() {
        // The entry keeps its lanes until it ends.
        return Some(under_way(entry));
    }
    desk.in_hand.lanes.leave(id);
    let mut entry = desk.in_hand.remove(id)?;
    end::dropped(desk, &mut entry);
    None
}

/// Why a dead letter is not run again now: no rule matches it, so it would end in the same way. It stays as it is.
pub(crate) fn not_to_retry(record: &Record, message: &C2dMessage, rules: &Rules) -> Option<String> {
    if record.state != State::Dead || rules.match_message(message).is_some() {
        return None;
    }
    Some(format!(
        "{} is not run again, because no rule matches it: {}; change the rules (and reload a running agent), \
         or drop the message",
        record.name(),
        rules.why_none(message)
    ))
}

fn under_way(entry: &MessageEntry) -> String {
    let number = entry.number.map_or(0, |number| number.0);
    let name = match entry.message.message_id() {
        Some(id) => format!("message \"{}\" (#{number})", excerpt(id)),
        None => format!("message #{number}"),
    };
    format!(
        "{name} is being acted on: only a dead letter, or a message that waits for its turn, can be dropped"
    )
}
