//! What the device publishes: how it gets to the current connection, and what is in flight there.
//!
//! Owns: how many publishes may be unanswered, when a publish is done, and that each one is reported exactly once.
//! Must not know: MQTT packets, topics, reconnecting.
//!
//! A publish goes into the client's request channel; rumqttc then gives it a packet id. Requests leave in the order in
//! which they went in, so the n-th packet id belongs to the n-th publish. A publish holds one of [`UNDER_WAY`] places
//! until its PUBACK, because rumqttc keeps it as long. More than that would stop rumqttc's request channel, which also
//! carries our PUBACKs. Over AMQP the reader gives the number (`amqp/links.rs`), and the outcome stands for the PUBACK.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

use super::upstream::{PublishError, Upstream};

/// How many publishes may wait for their PUBACK on one connection.
pub(super) const UNDER_WAY: usize = 8;
/// A publish without an answer for this long counts as lost.
const LOST_AFTER: Duration = Duration::from_secs(30);
/// A connection without a PUBACK for this long is of no use for publishing. The limit is long, because the connection
/// may still bring C2D messages: a hub that throttles D2C messages delays its PUBACKs.
pub(super) const UNACKNOWLEDGED_LIMIT: Duration = Duration::from_secs(5 * 60);

/// The status of a twin request on a connection that could not subscribe to the twin's answers: forbidden.
const NO_TWIN: u16 = 403;

/// The result of a publish, by its ticket.
type PublishResult = (u64, Result<Bytes, PublishError>);

/// The session's end: publishes on the current connection, and hears the results.
#[derive(Default)]
pub(super) struct Publisher {
    in_flight: Mutex<Option<Arc<InFlight>>>,
    /// Results that the session has not read yet; at most one per publish.
    told: Mutex<VecDeque<PublishResult>>,
    changed: Notify,
    last_request: AtomicU64,
}

impl Publisher {
    /// Publishes something, or reports at once that it cannot be sent. Never blocks.
    pub(super) fn publish(&self, ticket: u64, upstream: Upstream) {
        let in_flight = lock(&self.in_flight).clone();
        let published = match in_flight {
            Some(in_flight) => in_flight.publish(ticket, upstream),
            None => Err(PublishError::Lost),
        };
        if let Err(error) = published {
            self.tell(ticket, Err(error));
        }
    }

    /// The next result of a publish. Cancel safe.
    pub(super) async fn next(&self) -> PublishResult {
        loop {
            if let Some(told) = lock(&self.told).pop_front() {
                return told;
            }
            self.changed.notified().await;
        }
    }

    /// From now on publishes go to this connection.
    pub(super) fn use_connection(&self, in_flight: &Arc<InFlight>) {
        *lock(&self.in_flight) = Some(Arc::clone(in_flight));
    }

    fn tell(&self, ticket: u64, result: Result<Bytes, PublishError>) {
        lock(&self.told).push_back((ticket, result));
        self.changed.notify_one();
    }

    /// No number is used twice in a session, so that a late answer on a newer connection cannot be mistaken for
    /// another.
    fn next_request(&self) -> u64 {
        self.last_request.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// The answer to a twin request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct TwinAnswer {
    pub(super) request: u64,
    /// As in HTTP.
    pub(super) status: u16,
}

/// Hands a publish to the client; the number is that of the twin request.
pub(super) type PublishHandOver = Box<dyn Fn(Upstream, u64) -> Result<(), PublishError> + Send + Sync>;

/// What is in flight on one connection: publishes without an answer.
pub(super) struct InFlight {
    state: Mutex<InFlightState>,
    hand_over: PublishHandOver,
    publisher: Arc<Publisher>,
    /// A deadline was added or removed: for [`InFlight::overdue`].
    changed: Notify,
}

struct InFlightState {
    phase: PublishPhase,
    /// In the order in which they were handed to the client; at most [`UNDER_WAY`].
    entries: Vec<Unanswered>,
    /// The reader reads nothing now, so no answer can come and no deadline runs.
    held: bool,
    /// How many were unanswered when the connection ended.
    lost: usize,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PublishPhase {
    /// Not subscribed yet, or soon to end.
    Shut,
    Open {
        /// Whether the twin can answer.
        twin: bool,
    },
    Closed,
}

struct Unanswered {
    ticket: u64,
    /// The number of a twin request, whose answer is awaited after the PUBACK.
    request: Option<u64>,
    /// Whether the request reads the twin, so that its result is the body of the answer.
    reads: bool,
    /// Known when the publish is on the wire.
    packet_id: Option<u16>,
    acknowledged: bool,
    /// The result was reported: only the PUBACK is missing.
    told: bool,
    since: Instant,
}

impl InFlight {
    pub(super) fn new(hand_over: PublishHandOver, publisher: Arc<Publisher>) -> Self {
        let state = InFlightState { phase: PublishPhase::Shut, entries: Vec::new(), held: false, lost: 0 };
        Self { state: Mutex::new(state), hand_over, publisher, changed: Notify::new() }
    }

    /// The hub has accepted the subscriptions: publishes can be sent.
    pub(super) fn open(&self, twin: bool) {
        let mut state = lock(&self.state);
        if state.phase == PublishPhase::Shut {
            state.phase = PublishPhase::Open { twin };
        }
    }

    /// Accepts no new publish; the hub still answers the earlier ones.
    pub(super) fn shut(&self) {
        let mut state = lock(&self.state);
        if state.phase != PublishPhase::Closed {
            state.phase = PublishPhase::Shut;
        }
    }

    /// The connection has gone: all unanswered publishes are lost. A second call does nothing.
    pub(super) fn close(&self) {
        let mut state = lock(&self.state);
        state.phase = PublishPhase::Closed;
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
        let PublishPhase::Open { twin } = state.phase else { return Err(PublishError::Lost) };
        let reads = upstream == Upstream::ReadTwin;
        let is_twin = reads || matches!(upstream, Upstream::Reported { .. });
        if is_twin && !twin {
            return Err(PublishError::Refused(NO_TWIN));
        }
        if state.entries.len() >= UNDER_WAY {
            return Err(PublishError::Lost);
        }
        let request = if is_twin { self.publisher.next_request() } else { 0 };
        // The lock is held, so that entries have the order of the client's channel.
        (self.hand_over)(upstream, request)?;
        let entry = Unanswered {
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

    /// The hub's PUBACK. For a twin request it only says that the request arrived.
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
    #[allow(dead_code)] // Only AMQP uses it, which needs the feature `full`.
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

    /// The answer to a twin request. False if no request waits for it.
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

    /// The reader reads nothing until [`InFlight::go_on`]: a silence of that time is not the hub's.
    pub(super) fn hold(&self) {
        lock(&self.state).held = true;
        self.changed.notify_one();
    }

    /// The reader reads again: every unanswered publish gets its full time again.
    pub(super) fn go_on(&self) {
        let mut state = lock(&self.state);
        state.held = false;
        let now = Instant::now();
        state.entries.iter_mut().for_each(|entry| entry.since = now);
        self.changed.notify_one();
    }

    /// Reports publishes that had no answer for too long, as time passes. Returns when the connection should end.
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

    /// Reports what is lost by now. True if a PUBACK is missing for so long that the connection is of no use.
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

impl InFlightState {
    /// Frees the places of publishes that wait for nothing more.
    fn tidy(&mut self) {
        self.entries.retain(|entry| !(entry.told && entry.acknowledged));
    }

    fn next_deadline(&self) -> Option<Instant> {
        if self.held {
            return None;
        }
        let limit = |entry: &Unanswered| if entry.told { UNACKNOWLEDGED_LIMIT } else { LOST_AFTER };
        self.entries.iter().map(|entry| entry.since + limit(entry)).min()
    }
}

/// Nothing here can panic while a lock is held, so a poisoned lock holds a sound state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
