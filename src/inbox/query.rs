//! Questions and requests of people: list, show, retry, drop.
//!
//! Owns: which record a selector means, and the sentences of refusals. Must not know: sockets, tables for the
//! terminal.

use super::apply::{Work, finish};
use super::codec::{self, Stored};
use super::key::Digest;
use super::operation::{Query, Reply, Selector};
use super::record::{Number, Settled, State, Unfinished, from_millis};
use super::trouble::Trouble;
use crate::message::{C2dMessage, excerpt, format_time};
use crate::outcome::{OutcomeKind, OutcomeReport};

/// How many records are searched for the id of a message to an input. Older ones can be found by their number.
const MOST_LOOKED_AT: usize = 10_000;

impl Work<'_> {
    pub(super) fn query(&mut self, query: &Query) -> Result<Reply, Trouble> {
        match query {
            Query::List { state, after, limit } => self.list(*state, *after, *limit),
            Query::Show(selector) => match self.select(selector)? {
                Ok(stored) => {
                    Ok(Reply::Record { message: self.message(stored.record.number)?, record: stored.record })
                }
                Err(refusal) => Ok(Reply::Refused(refusal)),
            },
            Query::Retry(selector) => match self.select(selector)? {
                Ok(stored) => self.retry(stored),
                Err(refusal) => Ok(Reply::Refused(refusal)),
            },
            Query::Drop(selector) => match self.select(selector)? {
                Ok(stored) => self.drop_by_hand(stored),
                Err(refusal) => Ok(Reply::Refused(refusal)),
            },
        }
    }

    fn list(&self, state: Option<State>, after: u64, limit: usize) -> Result<Reply, Trouble> {
        let wanted = |own: State| state.is_none_or(|state| state == own);
        let mut records = Vec::new();
        let entries = self.index.ledger.entries.after(after).filter(|(_, entry)| wanted(entry.state));
        for (number, _) in entries.take(limit) {
            records.extend(self.load(Number(number))?.map(|stored| stored.record));
        }
        Ok(Reply::Records(records))
    }

    fn select(&self, selector: &Selector) -> Result<Result<Stored, String>, Trouble> {
        let text = selector.0.as_str();
        let by_number = text.strip_prefix('#').and_then(|number| number.parse().ok());
        let number = match by_number.or_else(|| self.index.ledger.find(Digest::of_id(text))) {
            None => self.find_input(text)?,
            found => found,
        };
        let found = match number {
            Some(number) => self.load(Number(number))?,
            None => None,
        };
        Ok(found.ok_or_else(|| {
            format!(
                "the inbox has no record of \"{}\": give a message id, or # and a number, as `c2d-agent inbox list` \
                 shows them",
                excerpt(text)
            )
        }))
    }

    /// The newest record with this id among the last ones. A message to an input needs this search, because its key
    /// covers more than the id.
    fn find_input(&self, id: &str) -> Result<Option<u64>, Trouble> {
        for number in self.index.ledger.numbers_with_id().take(MOST_LOOKED_AT) {
            let stored = self.load(Number(number))?;
            if stored.is_some_and(|stored| stored.record.message_id.as_deref() == Some(id)) {
                return Ok(Some(number));
            }
        }
        Ok(None)
    }

    pub(super) fn message(&self, number: Number) -> Result<Option<C2dMessage>, Trouble> {
        let place = self.index.ledger.get(number.0).map(|entry| entry.message);
        let Some(place) = place.filter(|place| place.is_some()) else { return Ok(None) };
        let decoded = codec::decode_message(&self.journal.read(place)?);
        Ok(decoded.inspect_err(|reason| tracing::warn!("{reason}")).ok())
    }

    fn retry(&mut self, mut stored: Stored) -> Result<Reply, Trouble> {
        let name = stored.record.name();
        if stored.record.state != State::Dead {
            let is = describe(stored.record.state);
            return Ok(Reply::Refused(format!("{name} {is}: only a dead letter can be run again")));
        }
        let Some(message) = self.message(stored.record.number)? else {
            return Ok(Reply::Refused(format!(
                "{name} was recorded without its message: it cannot be run again"
            )));
        };
        let [received, now] = [stored.record.received_ms, self.circumstances.now_ms].map(from_millis);
        if let Some(expiry) = message.expired_since(received, now) {
            return Ok(Reply::Refused(format!(
                "{name} expired at {}: it is not run any more; send a new message, or drop this one",
                format_time(expiry)
            )));
        }
        stored.record.state = State::Accepted;
        stored.record.settled = Settled::OnAccept;
        stored.record.attempts = 0;
        stored.record.abandoned = false;
        stored.record.outcome = None;
        let record = stored.record.clone();
        self.store(&stored);
        Ok(Reply::Retried(Box::new(Unfinished { record, message })))
    }

    fn drop_by_hand(&mut self, mut stored: Stored) -> Result<Reply, Trouble> {
        if matches!(stored.record.state, State::Started | State::Finished) {
            let (name, is) = (stored.record.name(), describe(stored.record.state));
            return Ok(Reply::Refused(format!(
                "{name} {is}: only a dead letter, or a message that waits for its turn, can be dropped"
            )));
        }
        let before = stored.record.outcome.take();
        let text = match &before {
            Some(before) => format!("dropped from the inbox; before that {}", before.text),
            None => "dropped from the inbox before its turn came".to_owned(),
        };
        let now = format_time(from_millis(self.circumstances.now_ms));
        let outcome = OutcomeReport {
            message_id: stored.record.message_id.clone(),
            rule: stored.record.rule.clone(),
            exit_code: before.as_ref().and_then(|before| before.exit_code),
            duration_ms: before.as_ref().and_then(|before| before.duration_ms),
            attempt: stored.record.attempts,
            ..OutcomeReport::without_action(OutcomeKind::Dropped, text, now)
        };
        self.count(outcome.outcome);
        stored.record.abandoned = false;
        finish(&mut stored.record, outcome, true);
        let record = stored.record.clone();
        self.store(&stored);
        Ok(Reply::Dropped(record))
    }
}

fn describe(state: State) -> &'static str {
    match state {
        State::Accepted => "waits for its turn",
        State::Started => "is being acted on",
        State::Finished => "is finished",
        State::Dead => "is a dead letter",
    }
}
