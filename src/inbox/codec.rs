//! What the journal's frames carry, to bytes and back.
//!
//! Owns: the layouts. Must not know: how frames are checked, where they are.
//!
//! Numbers are little-endian. A text or a body has its length before it (u32). A record begins with what the index
//! needs, at fixed places, so that a file is opened without reading texts. A message is its properties as they are in
//! memory, and the body: it takes less work than the property bag.

use bytes::Bytes;

use super::key::Digest;
use super::record::{Number, Record, Settled, State, to_millis};
use super::sums::{Numbers, Sums};
use crate::message::{C2dMessage, Properties, Sequence, parse_time};
use crate::outcome::{OutcomeKind, OutcomeReport};

/// A record as it is stored.
#[derive(Debug)]
pub(super) struct Stored {
    /// The digest of the whole delivery.
    pub(super) delivery: Digest,
    /// The digest of the id. [`Digest::NONE`] if the message was passed over because another one has its id.
    pub(super) id: Digest,
    pub(super) sequence: Option<Sequence>,
    /// Whether the hub has confirmed the completion.
    pub(super) confirmed: bool,
    pub(super) record: Record,
}

/// What the index needs of a record.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Facts {
    pub(super) number: u64,
    pub(super) delivery: Digest,
    pub(super) id: Digest,
    pub(super) sequence: Option<Sequence>,
    /// When it arrived, or when it ended.
    pub(super) since_ms: u64,
    pub(super) state: State,
    pub(super) settled: Settled,
    pub(super) confirmed: bool,
    /// Whether it is dead because no rule matched it.
    pub(super) unmatched: bool,
}

/// Means that there is none.
pub(super) const NO_SEQUENCE: Sequence = Sequence { number: 0, enqueued_ms: 0 };
const NO_TIME: u64 = u64::MAX;

/// Where the byte of the confirmation is.
const CONFIRMED: usize = 8 + 2 * Digest::LEN + 3 * 8;

/// The codes of states, of settlements and of outcomes: the place in its list. New ones go to the end.
const STATES: [State; 4] = [State::Accepted, State::Started, State::Finished, State::Dead];
const SETTLEMENTS: [Settled; 2] = [Settled::AfterAction, Settled::OnAccept];
const OUTCOMES: [OutcomeKind; 10] = [
    OutcomeKind::Succeeded,
    OutcomeKind::Failed,
    OutcomeKind::TimedOut,
    OutcomeKind::Interrupted,
    OutcomeKind::Refused,
    OutcomeKind::Expired,
    OutcomeKind::Unmatched,
    OutcomeKind::Undecodable,
    OutcomeKind::Dropped,
    OutcomeKind::Repeated,
];
/// No outcome.
const NONE: u8 = u8::MAX;

const RETRY_ON_CRASH: u8 = 1;
const ABANDONED: u8 = 2;
const HAS_ID: u8 = 4;
const HAS_RULE: u8 = 8;
/// The outcome names the id and the rule of its record, as nearly all do.
const SAME_ID: u8 = 16;
const SAME_RULE: u8 = 32;
/// The outcome has an exit code, a duration.
const HAS_CODE: u8 = 64;
const HAS_DURATION: u8 = 128;

/// The code of a value: its place in the list of all.
fn code<T: PartialEq>(all: &[T], value: T) -> u8 {
    all.iter().position(|own| *own == value).and_then(|at| u8::try_from(at).ok()).unwrap_or(NONE)
}

/// When a record got into its present state: when it ended, or if it has not, when it arrived.
fn since_ms(record: &Record) -> u64 {
    let ended = record.outcome.as_ref().and_then(|outcome| parse_time(&outcome.ended));
    ended.map_or(record.received_ms, to_millis)
}

impl Stored {
    pub(super) fn facts(&self) -> Facts {
        let record = &self.record;
        let outcome = record.outcome.as_ref().map(|outcome| outcome.outcome);
        Facts {
            number: record.number.0,
            delivery: self.delivery,
            id: self.id,
            sequence: self.sequence,
            since_ms: since_ms(record),
            state: record.state,
            settled: record.settled,
            confirmed: self.confirmed,
            unmatched: record.state == State::Dead && outcome == Some(OutcomeKind::Unmatched),
        }
    }

    /// `facts` are [`Stored::facts`]. The caller needs them as well, and to make them parses a time.
    pub(super) fn encode(&self, facts: &Facts, out: &mut Vec<u8>) {
        let record = &self.record;
        put_u64(out, record.number.0);
        out.extend_from_slice(self.delivery.as_bytes());
        out.extend_from_slice(self.id.as_bytes());
        let Sequence { number, enqueued_ms } = self.sequence.unwrap_or(NO_SEQUENCE);
        put_u64(out, number);
        out.extend_from_slice(&enqueued_ms.to_le_bytes());
        put_u64(out, facts.since_ms);
        out.push(u8::from(self.confirmed));
        out.push(code(&STATES, record.state));
        out.push(code(&SETTLEMENTS, record.settled));
        let outcome = record.outcome.as_ref();
        out.push(outcome.map_or(NONE, |outcome| code(&OUTCOMES, outcome.outcome)));
        let same_id = outcome.is_some_and(|outcome| outcome.message_id == record.message_id);
        let same_rule = outcome.is_some_and(|outcome| outcome.rule == record.rule);
        let has_code = outcome.is_some_and(|outcome| outcome.exit_code.is_some());
        let has_duration = outcome.is_some_and(|outcome| outcome.duration_ms.is_some());
        let flags = [
            (RETRY_ON_CRASH, record.retry_on_crash),
            (ABANDONED, record.abandoned),
            (HAS_ID, record.message_id.is_some()),
            (HAS_RULE, record.rule.is_some()),
            (SAME_ID, same_id),
            (SAME_RULE, same_rule),
            (HAS_CODE, has_code),
            (HAS_DURATION, has_duration),
        ];
        out.push(flags.iter().filter(|(_, is_set)| *is_set).map(|(flag, _)| flag).sum());
        put_u64(out, record.received_ms);
        put_u64(out, record.started_ms.unwrap_or(NO_TIME));
        out.extend_from_slice(&record.attempts.to_le_bytes());
        put_optional(out, record.message_id.as_deref());
        put_optional(out, record.rule.as_deref());
        let Some(outcome) = outcome else { return };
        if !same_id {
            put_whether(out, outcome.message_id.as_deref());
        }
        if !same_rule {
            put_whether(out, outcome.rule.as_deref());
        }
        if let Some(code) = outcome.exit_code {
            out.extend_from_slice(&code.to_le_bytes());
        }
        if let Some(duration) = outcome.duration_ms {
            put_u64(out, duration);
        }
        out.extend_from_slice(&outcome.attempt.to_le_bytes());
        put_u64(out, outcome.output_bytes);
        for text in [&outcome.ended, &outcome.text, &outcome.output, &outcome.output_end] {
            put_text(out, text);
        }
    }

    /// An error is a reason for a sentence about a damaged file.
    pub(super) fn decode(payload: &[u8]) -> Result<Self, String> {
        let facts = facts(payload)?;
        let broken = || format!("record {} cannot be read", facts.number);
        decode_rest(facts, payload.get(CONFIRMED + 1..).unwrap_or_default()).ok_or_else(broken)
    }
}

/// Decodes what comes after the facts.
fn decode_rest(facts: Facts, mut from: &[u8]) -> Option<Stored> {
    let from = &mut from;
    let [_state, _settled, outcome, flags] = take(from)?;
    let has = |flag: u8| flags & flag != 0;
    let received_ms = take_u64(from)?;
    let started_ms = Some(take_u64(from)?).filter(|at| *at != NO_TIME);
    let attempts = take_u32(from)?;
    let message_id = if has(HAS_ID) { Some(take_text(from)?) } else { None };
    let rule = if has(HAS_RULE) { Some(take_text(from)?) } else { None };
    let outcome = match outcome {
        NONE => None,
        kind => {
            let outcome = *OUTCOMES.get(usize::from(kind))?;
            let id = if has(SAME_ID) { message_id.clone() } else { take_whether(from)? };
            let own_rule = if has(SAME_RULE) { rule.clone() } else { take_whether(from)? };
            let exit_code = if has(HAS_CODE) { Some(take_u32(from)?.cast_signed()) } else { None };
            let duration_ms = if has(HAS_DURATION) { Some(take_u64(from)?) } else { None };
            let (attempt, output_bytes) = (take_u32(from)?, take_u64(from)?);
            Some(OutcomeReport {
                message_id: id,
                rule: own_rule,
                outcome,
                exit_code,
                duration_ms,
                attempt,
                output_bytes,
                ended: take_text(from)?,
                text: take_text(from)?,
                output: take_text(from)?,
                output_end: take_text(from)?,
            })
        }
    };
    let record = Record {
        number: Number(facts.number),
        message_id,
        rule,
        state: facts.state,
        settled: facts.settled,
        received_ms,
        attempts,
        started_ms,
        retry_on_crash: has(RETRY_ON_CRASH),
        abandoned: has(ABANDONED),
        outcome,
    };
    let Facts { delivery, id, sequence, confirmed, .. } = facts;
    from.is_empty().then_some(Stored { delivery, id, sequence, confirmed, record })
}

/// What the index needs of a stored record.
pub(super) fn facts(payload: &[u8]) -> Result<Facts, String> {
    let read = |mut from: &[u8]| {
        let number = take_u64(&mut from).and_then(|number| valid(number).ok())?;
        let (delivery, id) = (Digest::from_bytes(take(&mut from)?), Digest::from_bytes(take(&mut from)?));
        let sequence =
            Sequence { number: take_u64(&mut from)?, enqueued_ms: i64::from_le_bytes(take(&mut from)?) };
        let since_ms = take_u64(&mut from)?;
        let [confirmed, state, settled, outcome] = take(&mut from)?;
        let state = *STATES.get(usize::from(state))?;
        let unmatched =
            state == State::Dead && OUTCOMES.get(usize::from(outcome)) == Some(&OutcomeKind::Unmatched);
        Some(Facts {
            number,
            delivery,
            id,
            sequence: Some(sequence).filter(|sequence| *sequence != NO_SEQUENCE),
            since_ms,
            state,
            settled: *SETTLEMENTS.get(usize::from(settled))?,
            confirmed: confirmed != 0,
            unmatched,
        })
    };
    read(payload).ok_or_else(|| "a record cannot be read".to_owned())
}

/// Marks the completion in a stored record as confirmed.
pub(super) fn confirm(payload: &mut [u8]) {
    payload.get_mut(CONFIRMED).into_iter().for_each(|confirmed| *confirmed = 1);
}

pub(super) fn encode_message(out: &mut Vec<u8>, number: u64, message: &C2dMessage) {
    put_u64(out, number);
    for properties in [&message.system, &message.application] {
        out.extend_from_slice(&length(properties.len()).to_le_bytes());
        for (name, value) in properties.iter() {
            put_text(out, name);
            put_whether(out, value);
        }
    }
    out.extend_from_slice(&message.body);
}

/// An error is a reason for a sentence about a damaged file.
pub(super) fn decode_message(payload: &Bytes) -> Result<C2dMessage, String> {
    let mut from = payload.get(8..).unwrap_or_default();
    let mut properties = || {
        let count = take_u32(&mut from)?;
        let pairs = (0..count).map(|_| Some((take_text(&mut from)?, take_whether(&mut from)?)));
        pairs.collect::<Option<Properties>>()
    };
    let read = properties().and_then(|system| Some((system, properties()?)));
    let (system, application) =
        read.ok_or_else(|| format!("the message of record {} cannot be read", number(payload)))?;
    Ok(C2dMessage { system, application, body: payload.slice_ref(from) })
}

/// A number that a record or a report may have. Numbers count up from 1, and never come near the end.
pub(super) fn valid(number: u64) -> Result<u64, String> {
    if (1..u64::MAX / 2).contains(&number) { Ok(number) } else { Err(format!("a number is {number}")) }
}

/// The number at the beginning of a record, a message or a report.
pub(super) fn number(payload: &[u8]) -> u64 {
    payload.first_chunk().map(|bytes| u64::from_le_bytes(*bytes)).unwrap_or_default()
}

pub(super) fn encode_report(out: &mut Vec<u8>, number: u64, report: &[u8]) {
    put_u64(out, number);
    out.extend_from_slice(report);
}

pub(super) fn decode_report(payload: &Bytes) -> Bytes {
    payload.slice(payload.len().min(8)..)
}

pub(super) fn encode_numbers(out: &mut Vec<u8>, numbers: &[u64]) {
    numbers.iter().for_each(|number| put_u64(out, *number));
}

pub(super) fn decode_numbers(payload: &[u8]) -> impl Iterator<Item = u64> {
    payload.as_chunks::<8>().0.iter().map(|bytes| u64::from_le_bytes(*bytes))
}

/// A name with a number: a pin, and since when it is on; an origin, and its first record.
pub(super) fn encode_named(out: &mut Vec<u8>, name: &str, number: u64) {
    put_text(out, name);
    put_u64(out, number);
}

/// Names with their numbers, which are `what`. An error is a reason for a sentence about a damaged file.
pub(super) fn decode_named(mut from: &[u8], what: &str) -> Result<Vec<(String, u64)>, String> {
    let mut all = Vec::new();
    while !from.is_empty() {
        let named = take_text(&mut from).and_then(|name| Some((name, take_u64(&mut from)?)));
        all.push(named.ok_or_else(|| format!("{what} cannot be read"))?);
    }
    Ok(all)
}

/// What the last frame of a batch says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct BatchEnd {
    /// How many frames are before it in the batch.
    pub(super) frames: u32,
    /// The length of the file. One that is shorter was cut off.
    pub(super) length: u64,
    pub(super) sums: Sums,
}

pub(super) fn encode_end(out: &mut Vec<u8>, frames: u32, length: u64, sums: &Sums) {
    out.extend_from_slice(&frames.to_le_bytes());
    put_u64(out, length);
    put_u64(out, sums.numbers.last_record);
    put_u64(out, sums.numbers.last_report);
    put_u64(out, sums.reports_dropped);
    for (outcome, count) in &sums.totals {
        out.push(code(&OUTCOMES, *outcome));
        put_u64(out, *count);
    }
}

pub(super) fn decode_end(mut payload: &[u8]) -> Option<BatchEnd> {
    let (frames, length) = (take_u32(&mut payload)?, take_u64(&mut payload)?);
    let (last_record, last_report) = (take_u64(&mut payload)?, take_u64(&mut payload)?);
    if last_record.max(last_report) > u64::MAX / 2 {
        return None;
    }
    let mut sums = Sums {
        numbers: Numbers { last_record, last_report },
        reports_dropped: take_u64(&mut payload)?,
        ..Sums::default()
    };
    while !payload.is_empty() {
        let [outcome] = take(&mut payload)?;
        sums.totals.insert(*OUTCOMES.get(usize::from(outcome))?, take_u64(&mut payload)?);
    }
    Some(BatchEnd { frames, length, sums })
}

/// A length that fits, because a frame carries less than 4 GiB.
fn length(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

fn put_u64(out: &mut Vec<u8>, number: u64) {
    out.extend_from_slice(&number.to_le_bytes());
}

fn put_text(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&length(text.len()).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// A text, if there is one. That there is one is told elsewhere.
fn put_optional(out: &mut Vec<u8>, text: Option<&str>) {
    text.into_iter().for_each(|text| put_text(out, text));
}

fn put_whether(out: &mut Vec<u8>, text: Option<&str>) {
    out.push(u8::from(text.is_some()));
    put_optional(out, text);
}

fn take<const N: usize>(from: &mut &[u8]) -> Option<[u8; N]> {
    let (taken, rest) = from.split_first_chunk::<N>()?;
    *from = rest;
    Some(*taken)
}

fn take_u32(from: &mut &[u8]) -> Option<u32> {
    take(from).map(u32::from_le_bytes)
}

fn take_u64(from: &mut &[u8]) -> Option<u64> {
    take(from).map(u64::from_le_bytes)
}

fn take_text(from: &mut &[u8]) -> Option<String> {
    let len = usize::try_from(take_u32(from)?).ok()?;
    let (text, rest) = from.split_at_checked(len)?;
    *from = rest;
    Some(std::str::from_utf8(text).ok()?.to_owned())
}

fn take_whether(from: &mut &[u8]) -> Option<Option<String>> {
    let [is_there] = take(from)?;
    if is_there == 0 { Some(None) } else { take_text(from).map(Some) }
}
