//! The gate of a connection: whether it still takes and settles what arrives, and how its reading task hears of that.
//!
//! Owns: the phase, the meaning of each settlement, the wait until everything taken is settled, waking the reading
//! task. Must not know: transports.
//!
//! Three bookkeepers are a gate with books of their own: PUBACKs over MQTT (`mqtt/link.rs`), settlements over AMQP
//! (`amqp/settlements.rs`), and calls over both (`calls.rs`). Receipts write into the books, and the reading task takes
//! what is ready ([`Gate::take`]). A reading task that cannot listen to [`Gate::changed`], because it is inside
//! `poll()`, parks: then the first thing that becomes ready goes through the client's request channel, which wakes the
//! task ([`GateState::ring`]). Until that one is on the wire ([`Gate::woken`]), nothing else goes that way.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use tokio::sync::Notify;

use super::confirmations::Mark;

/// The place of a message among those that arrived on one connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct ArrivalNo(pub(super) u64);

/// Where a connection is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Messages and calls are taken and settled.
    Open,
    /// Nothing new is taken; what was taken is still settled.
    Draining,
    /// Gone: settling does nothing, so that a late settlement cannot reach a newer connection.
    Closed,
}

/// What a device may say about a message. Not every transport can say all of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Settlement {
    /// Done: the hub forgets it, and reports `Success` to a sender who asked for that.
    Complete,
    /// Given back: the hub counts a delivery and sends it again, or drops it after the last allowed delivery.
    Abandon,
    /// Refused: the hub drops it, and reports `Rejected` to a sender who asked for that.
    Reject,
}

/// Settles messages of one connection. No method blocks. The returned phase tells whether the settlement can still
/// leave.
pub(super) trait Settles: Send + Sync {
    fn phase(&self) -> Phase;
    /// Settles a message, as far as the transport can. A mark is reported when the hub is known to have the completion.
    fn settle(&self, arrival: ArrivalNo, settlement: Settlement, mark: Option<Mark>) -> Phase;
    /// Leaves a message at the hub, which sends it again on a later connection.
    fn leave(&self, arrival: ArrivalNo) -> Phase;
}

/// Answers calls of one connection. No method blocks. The returned phase tells whether the answer can still leave.
pub(super) trait Answers: Send + Sync {
    fn phase(&self) -> Phase;
    fn answer(&self, id: &str, status: u16, payload: Bytes) -> Phase;
    /// Answers a call that the agent does not take: 503.
    fn leave(&self, id: &str) -> Phase;
}

/// A gate without its books: what the keeper of connections does with it.
pub(super) trait Ends: Send + Sync {
    /// From now on nothing new is taken.
    fn stop_taking(&self);
    /// Waits until everything that was taken is settled. Cancel safe.
    fn drained(&self) -> BoxFuture<'_, ()>;
    /// The connection is gone.
    fn close(&self);
}

/// What a bookkeeper keeps.
pub(super) trait Books: Send {
    /// How many of those that were taken are not settled.
    fn open(&self) -> usize;
    /// Whether something may leave.
    fn is_ready(&mut self) -> bool;
    /// The connection is gone: forgets what may leave.
    fn close(&mut self);
}

/// The state that one connection's reading task shares with the receipts.
pub(super) struct Gate<B> {
    state: Mutex<GateState<B>>,
    /// Something may leave, or the phase changed: for the reading task.
    changed: Notify,
    /// Something was settled while draining: for [`Ends::drained`].
    settled: Notify,
}

/// What a gate keeps behind its lock.
pub(super) struct GateState<B> {
    pub(super) phase: Phase,
    pub(super) books: B,
    /// The reading task is in `poll()`, where only the client's request channel reaches it.
    parked: bool,
    /// What woke the reading task is not on the wire yet.
    waking: bool,
}

impl<B> GateState<B> {
    /// Wakes a parked reading task, unless it is being woken. `hand_over` puts into the request channel what may leave;
    /// false if it could not.
    pub(super) fn ring(&mut self, hand_over: impl FnOnce(&mut B) -> bool) -> bool {
        let rang = self.parked && !self.waking && hand_over(&mut self.books);
        self.waking |= rang;
        rang
    }

    /// Whether what woke the reading task is not on the wire yet.
    pub(super) fn is_waking(&self) -> bool {
        self.waking
    }
}

impl<B: Books> Gate<B> {
    pub(super) fn with_books(books: B) -> Self {
        let state = GateState { phase: Phase::Open, books, parked: false, waking: false };
        Self { state: Mutex::new(state), changed: Notify::new(), settled: Notify::new() }
    }

    pub(super) fn phase(&self) -> Phase {
        self.lock().phase
    }

    /// Looks into the books, or writes what no other task waits for.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut GateState<B>) -> T) -> T {
        act(&mut self.lock())
    }

    /// Writes into the books, and tells the tasks that wait.
    pub(super) fn change(&self, act: impl FnOnce(&mut GateState<B>)) -> Phase {
        let mut state = self.lock();
        act(&mut state);
        let phase = state.phase;
        drop(state);
        self.changed.notify_one();
        if phase != Phase::Open {
            self.settled.notify_one();
        }
        phase
    }

    /// For the reading task between two polls: takes what may leave.
    pub(super) fn take<T>(&self, take: impl FnOnce(&mut GateState<B>) -> T) -> T {
        let mut state = self.lock();
        state.parked = false;
        take(&mut state)
    }

    /// For the reading task before `poll()`. False if something became ready since [`Gate::take`].
    pub(super) fn park(&self) -> bool {
        let mut state = self.lock();
        state.parked = state.waking || !state.books.is_ready();
        state.parked
    }

    /// For the reading task after `poll()`.
    pub(super) fn unpark(&self) {
        self.lock().parked = false;
    }

    /// Whether what woke the reading task is not on the wire yet.
    pub(super) fn is_waking(&self) -> bool {
        self.lock().waking
    }

    /// What woke the reading task is on the wire.
    pub(super) fn woken(&self) {
        self.lock().waking = false;
    }

    /// Waits until something may leave or the phase changed. May return early. Cancel safe.
    pub(super) async fn changed(&self) {
        self.changed.notified().await;
    }

    /// Nothing here can panic while the lock is held, so a poisoned lock holds a sound state.
    fn lock(&self) -> MutexGuard<'_, GateState<B>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<B: Books> Ends for Gate<B> {
    fn stop_taking(&self) {
        self.change(|state| {
            if state.phase == Phase::Open {
                state.phase = Phase::Draining;
            }
        });
    }

    fn drained(&self) -> BoxFuture<'_, ()> {
        Box::pin(async {
            while self.lock().books.open() > 0 {
                self.settled.notified().await;
            }
        })
    }

    fn close(&self) {
        self.change(|state| {
            state.phase = Phase::Closed;
            state.books.close();
        });
    }
}
