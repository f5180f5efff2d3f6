//! Wishes: requests of people through the control socket.
//!
//! Owns: how many questions may be open, what an answer changes for the messages in hand, and which dead letters may
//! be run again. Must not know: sockets, how the inbox answers a question.

use tokio::sync::oneshot;

use crate::inbox::{Op, Query, Record, Reply, Selector, State};
use crate::message::{C2dMessage, excerpt};
use crate::outcome::OutcomeKind;
use crate::rules::Rules;

use super::Agent;
use super::control::Request;
use super::message::in_hand::Entry;
use super::message::lanes::Ticket;

/// Most questions that the inbox has not answered. Clients ask fewer at once, but they may give up waiting.
const MOST_QUERIES: usize = 16;

/// A question that the inbox has not answered.
pub(super) struct Asked {
    answer: oneshot::Sender<Reply>,
    /// Whether this is a request to run a dead letter again. If so, the inbox was only asked to show it so far.
    retry: bool,
}

impl Agent {
    pub(super) fn request(&mut self, request: Request) {
        match request {
            Request::Status(answer) => {
                // If the client has gone, it needs no answer.
                drop(answer.send(self.status()));
            }
            Request::Query(query, answer) => {
                // The limit is needed because clients may give up, and their questions would pile up behind a disk
                // that hangs.
                let reply = match (self.objection(&query), &self.board.trouble) {
                    (Some(objection), _) => Reply::Refused(objection),
                    (None, Some(trouble)) => Reply::Unavailable(trouble.clone()),
                    (None, None) if self.queries.len() >= MOST_QUERIES => Reply::Unavailable(
                        "the inbox has not answered earlier requests yet: try again in a moment".to_owned(),
                    ),
                    (None, None) => {
                        let ticket = self.hand.next_ticket();
                        let (query, retry) = match query {
                            // First look whether a rule matches the message, before anything is changed.
                            Query::Retry(selector) => (Query::Show(selector), true),
                            query => (query, false),
                        };
                        self.queries.insert(ticket, Asked { answer, retry });
                        return self.inbox.submit(Op::Query { ticket, query });
                    }
                };
                drop(answer.send(reply));
            }
        }
    }

    /// Why a request is not passed to the inbox. An action that runs must not be dropped, and the inbox does not know
    /// of every start.
    fn objection(&self, wish: &Query) -> Option<String> {
        let Query::Drop(selector) = wish else { return None };
        let meant = |entry: &&Entry| {
            let number = entry.number.is_some_and(|number| selector.0 == format!("#{}", number.0));
            number || entry.message.message_id() == Some(selector.0.as_str())
        };
        self.hand.entries().find(meant).filter(|entry| entry.is_running()).map(under_way)
    }

    /// The inbox has answered a request. Applies what that changes for the messages in hand.
    pub(super) fn reply(&mut self, ticket: Ticket, mut reply: Reply) {
        if self.queries.get_mut(&ticket).is_some_and(|asked| std::mem::take(&mut asked.retry))
            && let Reply::Record { record, message } = &reply
        {
            match message.as_ref().and_then(|message| not_to_retry(record, message, &self.config.rules)) {
                Some(refusal) => reply = Reply::Refused(refusal),
                None => {
                    let query = Query::Retry(Selector::from(record.number));
                    return self.inbox.submit(Op::Query { ticket, query });
                }
            }
        }
        match &reply {
            Reply::Retried(unfinished) if !self.stopping => {
                let number = unfinished.record.number;
                tracing::info!(
                    number = number.0,
                    message_id = unfinished.record.message_id,
                    "a dead letter is run again"
                );
                self.resume((**unfinished).clone());
            }
            Reply::Dropped(record) => {
                tracing::info!(
                    number = record.number.0,
                    message_id = record.message_id,
                    "dropped from the inbox"
                );
                self.scraper.tally.ended(record.rule.as_deref(), OutcomeKind::Dropped.as_str());
                // The agent no longer waits for the hub to send it. If it comes, it is completed.
                self.hand.held.remove(&record.number);
                let ticket = self.hand.ticket_of(record.number);
                let running =
                    ticket.and_then(|ticket| self.hand.get(ticket)).filter(|entry| entry.is_running());
                if let Some(entry) = running {
                    // The action began while the inbox was asked. The entry keeps its lanes until it ends.
                    reply = Reply::Refused(under_way(entry));
                } else if let Some(ticket) = ticket {
                    self.lanes.leave(ticket);
                    if let Some(mut entry) = self.hand.remove(ticket) {
                        let role = self.role_of(&entry.message);
                        entry.settle(self.settlement(OutcomeKind::Dropped, record.rule.as_deref(), role));
                    }
                }
            }
            _ => {}
        }
        if let Some(Asked { answer, .. }) = self.queries.remove(&ticket) {
            // The client may have gone.
            drop(answer.send(reply));
        }
    }
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

fn under_way(entry: &Entry) -> String {
    let number = entry.number.map_or(0, |number| number.0);
    let name = match entry.message.message_id() {
        Some(id) => format!("message \"{}\" (#{number})", excerpt(id)),
        None => format!("message #{number}"),
    };
    format!(
        "{name} is being acted on: only a dead letter, or a message that waits for its turn, can be dropped"
    )
}
