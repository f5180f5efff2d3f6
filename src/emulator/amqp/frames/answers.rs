//! Answers to receivers that settle second. The AMQP crate sends none for a single delivery.
//!
//! Owns: which deliveries are out, which of them wait for an answer to the receiver's decision, and the answer's
//! frames.
//! Must not know: what a delivery carries, links.
//!
//! Source: AMQP 1.0, 2.6.12; wire reference 2.6. For every outcome the answer is accepted, unless the lock was lost.

use std::borrow::Borrow;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use uuid::Uuid;

/// Most deliveries of one connection that are remembered; a queue has 50 messages. Beyond that, the oldest get no
/// answer.
const MAX_DELIVERIES: usize = 1_000;

const ACCEPTED: &[u8] = b"\x00\x53\x24\x45";

/// The answers of one connection. The connection's stream and its links share them.
#[derive(Clone, Default)]
pub(in super::super) struct Answers(Arc<Mutex<AnswerQueue>>);

#[derive(Default)]
struct AnswerQueue {
    /// Deliveries by lock token.
    deliveries: BTreeMap<Uuid, SentDelivery>,
    /// The channels of the sessions: the client's channel, then this side's.
    channels: BTreeMap<u16, u16>,
    /// Complete frames that can be sent.
    ready: Vec<u8>,
    waker: Option<Waker>,
}

struct SentDelivery {
    channel: u16,
    id: u32,
    /// Whether the receiver waits for an answer.
    waits: bool,
}

impl Answers {
    fn inner(&self) -> MutexGuard<'_, AnswerQueue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that a session has begun, with the client's channel and this side's.
    pub(super) fn begun(&self, theirs: u16, own: u16) {
        self.inner().channels.insert(theirs, own);
    }

    /// Notes that the client has ended the session on its channel.
    pub(super) fn ended(&self, theirs: u16) {
        let mut inner = self.inner();
        if let Some(own) = inner.channels.remove(&theirs) {
            inner.deliveries.retain(|_, delivery| delivery.channel != own);
        }
    }

    /// Notes that a delivery is sent, on this side's channel.
    pub(super) fn sent(&self, token: Uuid, channel: u16, id: u32) {
        let mut inner = self.inner();
        if inner.deliveries.len() >= MAX_DELIVERIES {
            // Tokens count up, so the first one is the oldest.
            inner.deliveries.pop_first();
        }
        inner.deliveries.insert(token, SentDelivery { channel, id, waits: false });
    }

    /// Notes that the client has decided on deliveries. If it has not settled them, it waits for an answer.
    pub(super) fn decided(&self, theirs: u16, ids: RangeInclusive<u32>, settled: bool) {
        let mut inner = self.inner();
        let Some(own) = inner.channels.get(&theirs).copied() else { return };
        let is_one = |delivery: &SentDelivery| delivery.channel == own && ids.contains(&delivery.id);
        if settled {
            inner.deliveries.retain(|_, delivery| !is_one(delivery));
        } else {
            let waiting = inner.deliveries.values_mut().filter(|delivery| is_one(delivery));
            waiting.for_each(|delivery| delivery.waits = true);
        }
    }

    /// Prepares the answer: the hub has carried out the client's decision, or the client has lost its lock.
    pub(in super::super) fn answer(&self, token: Uuid, is_held: bool) {
        let mut inner = self.inner();
        let Some(SentDelivery { channel, id, waits: true }) = inner.deliveries.remove(&token) else { return };
        let frame = disposition(channel, id, if is_held { ACCEPTED.to_vec() } else { lock_lost() });
        inner.ready.extend(frame);
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
    }

    /// Moves the ready frames to `out`, and registers `context` to be woken for more. Returns whether there were any.
    pub(super) fn take(&self, context: &Context<'_>, out: &mut Vec<u8>) -> bool {
        let mut inner = self.inner();
        inner.waker = Some(context.waker().clone());
        out.append(&mut inner.ready);
        !out.is_empty()
    }
}

/// A settled disposition from the sender.
fn disposition(channel: u16, id: u32, state: Vec<u8>) -> Vec<u8> {
    let id = [&[0x70][..], &id.to_be_bytes()].concat();
    let list = list(&[vec![0x42], id.clone(), id, vec![0x41], state, vec![0x40]]);
    let body = [b"\x00\x53\x15", &list[..]].concat();
    let size = u32::try_from(8 + body.len()).unwrap_or(u32::MAX);
    [&size.to_be_bytes()[..], &[2, 0], &channel.to_be_bytes(), &body].concat()
}

fn lock_lost() -> Vec<u8> {
    let short = |code: u8, text: &str| {
        [&[code, u8::try_from(text.len()).unwrap_or(u8::MAX)][..], text.as_bytes()].concat()
    };
    let error = list(&[
        short(0xa3, "com.microsoft:message-lock-lost"),
        short(0xa1, "the lock on the message has expired: the hub delivers it again"),
    ]);
    [&b"\x00\x53\x25"[..], &list(&[[b"\x00\x53\x1d", &error[..]].concat()])].concat()
}

/// An AMQP list of values that are already encoded.
pub(super) fn list<T: Borrow<[u8]>>(fields: &[T]) -> Vec<u8> {
    let inside = fields.concat();
    match (u8::try_from(inside.len() + 1), u8::try_from(fields.len())) {
        (Ok(size), Ok(count)) => [&[0xc0, size, count][..], &inside].concat(),
        _ => {
            let size = u32::try_from(inside.len() + 4).unwrap_or(u32::MAX).to_be_bytes();
            let count = u32::try_from(fields.len()).unwrap_or(u32::MAX).to_be_bytes();
            [&[0xd0][..], &size, &count, &inside].concat()
        }
    }
}
