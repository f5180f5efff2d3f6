//! What the device publishes: the way to the connection that there is, and what is not answered yet.
//!
//! Owns: how much may be under way, when a publish is done, and that each is told of exactly once.
//! Must not know: MQTT packets, topics, reconnecting.
//!
//! A publish goes into the client's request channel, behind which rumqttc gives it a packet id. Requests leave in the
//! order in which they went in, so the n-th packet id belongs to the n-th publish. It holds one of [`UNDER_WAY`]
//! places until its PUBACK: rumqttc keeps it as long, and more than that would stop its request channel, through
//! which PUBACKs of ours go, too.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::topics::TwinAnswer;
use super::{PublishError, Upstream};

/// Publishes that may wait for their PUBACK on one connection.
pub(super) const UNDER_WAY: usize = 8;
/// After so long without an answer a publish counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(30);
/// After so long without a PUBACK the connection is of no use for publishing. Long, because it may still bring C2D
/// messages: a hub that throttles D2C messages delays its PUBACKs.
pub(super) const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(5 * 60);

/// The status of a twin request where the twin's answers cannot be subscribed to: forbidden.
const NO_TWIN: u16 = 403;

/// What became of a publish.
type Told = (u64, Result<Bytes, PublishError>);

/// The session's end: publishes on the connection that there is, and hears what became of it.
#[derive(Default)]
pub(super) struct Publisher {
    outbox: Mutex<Option<Arc<Outbox>>>,
    /// As many as were published and not looked at yet.
    told: Mutex<VecDeque<Told>>,
    changed: Notify,
    last_request: AtomicU64,
}

impl Publisher {
    /// Publishes something, or tells at once that it cannot be. Never blocks.
    pub(super) fn publish(&self, ticket: u64, upstream: Upstream) {
        let outbox = lock(&self.outbox).clone();
        let published = match outbox {
            Some(outbox) => outbox.publish(ticket, upstream),
            None => Err(PublishError::Lost),
        };
        if let Err(error) = published {
            self.tell(ticket, Err(error));
        }
    }

    /// What became of the next publish. Cancel safe.
    pub(super) async fn next(&self) -> Told {
        loop {
            if let Some(told) = lock(&self.told).pop_front() {
                return told;
            }
            self.changed.notified().await;
        }
    }

    /// From now on publishes go to this connection.
    pub(super) fn use_outbox(&self, outbox: &Arc<Outbox>) {
        *lock(&self.outbox) = Some(Arc::clone(outbox));
    }

    fn tell(&self, ticket: u64, result: Result<Bytes, PublishError>) {
        lock(&self.told).push_back((ticket, result));
        self.changed.notify_one();
    }

    /// Never used twice in a session, so that a late answer on a newer connection cannot be mistaken.
    fn next_request(&self) -> u64 {
        self.last_request.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Hands a publish to the client; the number is that of a twin request.
pub(super) type Hand = Box<dyn Fn(Upstream, u64) -> Result<(), PublishError> + Send + Sync>;

/// What was published on one connection.
pub(super) struct Outbox {
    state: Mutex<State>,
    hand: Hand,
    publisher: Arc<Publisher>,
    /// A deadline came or went: for [`Outbox::overdue`].
    changed: Notify,
}

struct State {
    phase: Phase,
    /// In the order in which they were handed over; at most [`UNDER_WAY`].
    entries: Vec<Entry>,
    /// Nothing is read at present, so that no answer can come: no time passes.
    held: bool,
    /// How many were unanswered when the connection ended.
    lost: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    /// Not subscribed yet, or about to end.
    Shut,
    Open {
        /// Whether answers of the twin can come.
        twin: bool,
    },
    Closed,
}

struct Entry {
    ticket: u64,
    /// The number of a twin request, whose answer is awaited beyond the PUBACK.
    request: Option<u64>,
    /// Whether the body of its answer is what it is for.
    reads: bool,
    /// Known once it is on the wire.
    packet_id: Option<u16>,
    acknowledged: bool,
    /// Told of already: only the PUBACK is missing.
    told: bool,
    since: Instant,
}

impl Outbox {
    pub(super) fn new(hand: Hand, publisher: Arc<Publisher>) -> Self {
        let state = State { phase: Phase::Shut, entries: Vec::new(), held: false, lost: 0 };
        Self { state: Mutex::new(state), hand, publisher, changed: Notify::new() }
    }

    /// The hub has taken the subscriptions: things can be published.
    pub(super) fn open(&self, twin: bool) {
        let mut state = lock(&self.state);
        if state.phase == Phase::Shut {
            state.phase = Phase::Open { twin };
        }
    }

    /// Takes nothing new; what is under way is still answered.
    pub(super) fn shut(&self) {
        let mut state = lock(&self.state);
        if state.phase != Phase::Closed {
            state.phase = Phase::Shut;
        }
    }

    /// The connection has gone: whatever is under way is lost. Does nothing the second time.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.phase = Phase::Closed;
        for entry in std::mem::take(&mut state.entries).iter().filter(|entry| !entry.told) {
            state.lost += 1;
            self.publisher.tell(entry.ticket, Err(PublishError::Lost));
        }
    }

    /// How many were unanswered when the connection ended.
    pub(super) fn lost(&self) -> usize {
        lock(&self.state).lost
    }

    fn publish(&self, ticket: u64, upstream: Upstream) -> Result<(), PublishError> {
        let mut state = lock(&self.state);
        let Phase::Open { twin } = state.phase else { return Err(PublishError::Lost) };
        let reads = upstream == Upstream::ReadTwin;
        let is_twin = reads || matches!(upstream, Upstream::Reported { .. });
        if is_twin && !twin {
            return Err(PublishError::Refused(NO_TWIN));
        }
        if state.entries.len() >= UNDER_WAY {
            return Err(PublishError::Lost);
        }
        let request = if is_twin { self.publisher.next_request() } else { 0 };
        // Under the lock: the order of entries is that of the client's channel.
        (self.hand)(upstream, request)?;
        let entry = Entry {
            ticket,
            request: is_twin.then_some(request),
            reads,
            packet_id: None,
            acknowledged: false,
            told: false,
            since: Instant::now(),
        };
        state.entries.push(entry);
        self.changed.notify_one();
        Ok(())
    }

    /// The next publish is on the wire, with this packet id.
    pub(super) fn sent(&self, packet_id: u16) {
        let mut state = lock(&self.state);
        if let Some(entry) = state.entries.iter_mut().find(|entry| entry.packet_id.is_none()) {
            entry.packet_id = Some(packet_id);
        }
    }

    /// The hub's PUBACK. That of a twin request only says that it arrived.
    pub(super) fn acknowledged(&self, packet_id: u16) {
        let mut state = lock(&self.state);
        let Some(entry) = state.entries.iter_mut().find(|entry| entry.packet_id == Some(packet_id)) else {
            return;
        };
        entry.acknowledged = true;
        if entry.request.is_none() && !entry.told {
            entry.told = true;
            self.publisher.tell(entry.ticket, Ok(Bytes::new()));
        }
        state.tidy();
    }

    /// The hub did not accept a D2C message.
    #[allow(dead_code)] // AMQP is a feature.
    pub(super) fn refused(&self, packet_id: u16, error: PublishError) {
        let mut state = lock(&self.state);
        let Some(entry) = state.entries.iter_mut().find(|entry| entry.packet_id == Some(packet_id)) else {
            return;
        };
        entry.acknowledged = true;
        if !std::mem::replace(&mut entry.told, true) {
            self.publisher.tell(entry.ticket, Err(error));
        }
        state.tidy();
    }

    /// The answer to a twin request. False when it is not awaited, or not any more.
    pub(super) fn answered(&self, answer: TwinAnswer, body: Bytes) -> bool {
        let mut state = lock(&self.state);
        let mut open = state.entries.iter_mut().filter(|entry| !entry.told);
        let Some(entry) = open.find(|entry| entry.request == Some(answer.request)) else { return false };
        entry.told = true;
        self.publisher.tell(
            entry.ticket,
            match answer.status {
                200..300 if entry.reads => Ok(body),
                200..300 => Ok(Bytes::new()),
                429 | 500.. => Err(PublishError::Busy(answer.status)),
                status => Err(PublishError::Refused(status)),
            },
        );
        state.tidy();
        true
    }

    /// Nothing is read from here to [`Outbox::go_on`]: the silence is ours, not the hub's.
    pub(super) fn hold(&self) {
        lock(&self.state).held = true;
        self.changed.notify_one();
    }

    /// What is under way has its full time again.
    pub(super) fn go_on(&self) {
        let mut state = lock(&self.state);
        state.held = false;
        let now = Instant::now();
        state.entries.iter_mut().for_each(|entry| entry.since = now);
        self.changed.notify_one();
    }

    /// Waits, and tells of publishes that stayed without an answer for too long. Ends when the connection should.
    /// Cancel safe.
    pub(super) async fn overdue(&self) {
        loop {
            let deadline = lock(&self.state).next_deadline();
            match deadline {
                Some(deadline) => {
                    tokio::select! {
                        () = sleep_until(deadline) => {
                            if self.expire() {
                                return;
                            }
                        }
                        () = self.changed.notified() => {}
                    }
                }
                None => self.changed.notified().await,
            }
        }
    }

    /// Tells of what is lost by now. True when a PUBACK is missing for so long that the connection is of no use.
    fn expire(&self) -> bool {
        let mut state = lock(&self.state);
        let now = Instant::now();
        if state.held {
            return false;
        }
        for entry in state.entries.iter_mut().filter(|entry| !entry.told && entry.since + LOST_AFTER <= now) {
            entry.told = true;
            let (ticket, acknowledged) = (entry.ticket, entry.acknowledged);
            let waited_s = LOST_AFTER.as_secs();
            tracing::debug!(ticket, acknowledged, waited_s, "the hub did not answer what was published");
            self.publisher.tell(ticket, Err(PublishError::Lost));
        }
        state.tidy();
        state.entries.iter().any(|entry| !entry.acknowledged && entry.since + UNACKNOWLEDGED_LIMIT <= now)
    }
}

impl State {
    /// Gives up the places of those that nothing is awaited for.
    fn tidy(&mut self) {
        self.entries.retain(|entry| !(entry.told && entry.acknowledged));
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.held {
            return None;
        }
        let limit = |entry: &Entry| if entry.told { UNACKNOWLEDGED_LIMIT } else { LOST_AFTER };
        self.entries.iter().map(|entry| entry.since + limit(entry)).min()
    }
}

/// Nothing here can panic while a lock is held, so a poisoned lock holds a sound state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
