//! Wishes: what people ask for through the control socket.
//!
//! Owns: how many questions may be open, and what an answer changes for the messages in hand. Must not know: sockets,
//! what the inbox makes of a question. Used by: `agent`.

use crate::inbox::{Op, Query, Reply};
use crate::message::excerpt;
use crate::outcome::OutcomeKind;

use super::Agent;
use super::control::Request;
use super::hand::Entry;
use super::lanes::Ticket;

/// Questions that the inbox has not answered, at most. Clients ask fewer at once, but may give up waiting.
const MOST_QUERIES: usize = 16;

impl Agent {
    pub(super) fn request(&mut self, request: Request) {
        match request {
            Request::Status(answer) => {
                // An asker that has gone needs no answer.
                drop(answer.send(self.status()));
            }
            Request::Query(query, answer) => {
                // What nobody waits for any more would gather behind a disk that does not answer.
                let reply = match (self.objection(&query), &self.board.trouble) {
                    (Some(objection), _) => Reply::Refused(objection),
                    (None, Some(trouble)) => Reply::Unavailable(trouble.clone()),
                    (None, None) if self.queries.len() >= MOST_QUERIES => Reply::Unavailable(
                        "the inbox has not answered earlier questions yet: try again in a moment".to_owned(),
                    ),
                    (None, None) => {
                        let ticket = self.hand.next_ticket();
                        self.queries.insert(ticket, answer);
                        return self.inbox.submit(Op::Query { ticket, query });
                    }
                };
                drop(answer.send(reply));
            }
        }
    }

    /// Why a wish is not to be put to the inbox, which does not know of every beginning: an action under way must not be
    /// dropped.
    fn objection(&self, wish: &Query) -> Option<String> {
        let Query::Drop(selector) = wish else { return None };
        let meant = |entry: &&Entry| {
            let number = entry.number.is_some_and(|number| selector.0 == format!("#{}", number.0));
            number || entry.message.message_id() == Some(selector.0.as_str())
        };
        self.hand.entries().find(meant).filter(|entry| entry.is_running()).map(under_way)
    }

    /// Somebody's wish has been fulfilled: what it changes for the messages in hand.
    pub(super) fn reply(&mut self, ticket: Ticket, mut reply: Reply) {
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
                // It is not to be awaited from the hub any more; if it comes, it is completed.
                self.hand.held.remove(&record.number);
                let ticket = self.hand.ticket_of(record.number);
                let running =
                    ticket.and_then(|ticket| self.hand.get(ticket)).filter(|entry| entry.is_running());
                if let Some(entry) = running {
                    // It began while the inbox was asked. It keeps its lanes until it ends.
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
        if let Some(waiting) = self.queries.remove(&ticket) {
            // Whoever asked may have gone.
            drop(waiting.send(reply));
        }
    }
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
