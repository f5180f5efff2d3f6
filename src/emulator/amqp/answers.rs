//! Answers to receivers that settle second: the AMQP crate sends none for a single delivery.
//!
//! Owns: which deliveries are out, which of them their receiver has decided on and waits for, and the frames that tell it.
//! Must not know: what a delivery carries, links.
//!
//! Source: AMQP 1.0, 2.6.12; wire reference 2.6: whatever the outcome, the answer is accepted, unless the lock was lost.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Waker};

use uuid::Uuid;

/// Deliveries of one connection that are remembered; a queue has 50 messages. Of more, the oldest get no answer.
const MAX_DELIVERIES: usize = 1_000;

const ACCEPTED: &[u8] = b"\x00\x53\x24\x45";

/// Shared by the stream of a connection and its links.
#[derive(Clone, Default)]
pub(super) struct Answers(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    /// By lock token.
    deliveries: BTreeMap<Uuid, Delivery>,
    /// The channel that this side uses for a session, by the client's.
    channels: BTreeMap<u16, u16>,
    /// Whole frames.
    ready: Vec<u8>,
    waker: Option<Waker>,
}

struct Delivery {
    channel: u16,
    id: u32,
    /// Whether its receiver waits.
    waits: bool,
}

impl Answers {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A session has begun, on the client's channel and on this side's.
    pub(super) fn begun(&self, theirs: u16, own: u16) {
        self.inner().channels.insert(theirs, own);
    }

    /// The client has ended the session of its channel.
    pub(super) fn ended(&self, theirs: u16) {
        let mut inner = self.inner();
        if let Some(own) = inner.channels.remove(&theirs) {
            inner.deliveries.retain(|_, delivery| delivery.channel != own);
        }
    }

    /// A delivery goes out, on this side's channel.
    pub(super) fn sent(&self, token: Uuid, channel: u16, id: u32) {
        let mut inner = self.inner();
        if inner.deliveries.len() >= MAX_DELIVERIES {
            // Tokens count up.
            inner.deliveries.pop_first();
        }
        inner.deliveries.insert(token, Delivery { channel, id, waits: false });
    }

    /// The client has decided on deliveries; unless it has settled them, it waits for an answer.
    pub(super) fn decided(&self, theirs: u16, ids: RangeInclusive<u32>, settled: bool) {
        let mut inner = self.inner();
        let Some(own) = inner.channels.get(&theirs).copied() else { return };
        let is_one = |delivery: &Delivery| delivery.channel == own && ids.contains(&delivery.id);
        if settled {
            inner.deliveries.retain(|_, delivery| !is_one(delivery));
        } else {
            let waiting = inner.deliveries.values_mut().filter(|delivery| is_one(delivery));
            waiting.for_each(|delivery| delivery.waits = true);
        }
    }

    /// The hub has done as the client decided, or the client has lost its lock.
    pub(super) fn answer(&self, token: Uuid, is_held: bool) {
        let mut inner = self.inner();
        let Some(Delivery { channel, id, waits: true }) = inner.deliveries.remove(&token) else { return };
        let frame = disposition(channel, id, if is_held { ACCEPTED.to_vec() } else { lock_lost() });
        inner.ready.extend(frame);
        if let Some(waker) = inner.waker.take() {
            waker.wake();
        }
    }

    /// Moves what is ready to `out`, and has `context` woken when there is more. Whether there was any.
    pub(super) fn take(&self, context: &Context<'_>, out: &mut Vec<u8>) -> bool {
        let mut inner = self.inner();
        inner.waker = Some(context.waker().clone());
        out.append(&mut inner.ready);
        !out.is_empty()
    }
}

/// A settled disposition of the sender.
fn disposition(channel: u16, id: u32, state: Vec<u8>) -> Vec<u8> {
    let id = [&[0x70][..], &id.to_be_bytes()].concat();
    let list = list(&[vec![0x42], id.clone(), id, vec![0x41], state]);
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

/// A list of values that are encoded already.
pub(super) fn list(fields: &[Vec<u8>]) -> Vec<u8> {
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
