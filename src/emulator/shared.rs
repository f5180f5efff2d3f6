//! The hub as all listeners share it: one lock, one clock, and a counter that wakes the listeners.
//!
//! Owns: the lock around [`Hub`], and the timer that tells the hub the time.
//! Must not know: MQTT, AMQP.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::hub::Hub;

/// The timer handles changes within this time as one change, because it looks at every queue.
const TIMER_REST: Duration = Duration::from_millis(20);

/// The source of the emulator's time.
pub type Clock = fn() -> SystemTime;

/// The shared hub. All clones are one hub.
#[derive(Clone)]
pub struct SharedHub(Arc<HubAndClock>);

struct HubAndClock {
    hub: Mutex<Hub>,
    version: watch::Sender<u64>,
    /// The value of [`Hub::changes`].
    changes: watch::Sender<u64>,
    clock: Clock,
}

impl SharedHub {
    /// Shares a hub. `clock` gives its time.
    pub fn new(mut hub: Hub, clock: Clock) -> Self {
        hub.number_from(clock());
        let (version, changes) = (watch::Sender::new(hub.version()), watch::Sender::new(hub.changes()));
        Self(Arc::new(HubAndClock { hub: Mutex::new(hub), version, changes, clock }))
    }

    /// Runs `act` on the hub with the present time. If `act` changes anything that listeners must know, it wakes them.
    /// The closure must be short, and must not call `with` again.
    pub fn with<T>(&self, act: impl FnOnce(&mut Hub, SystemTime) -> T) -> T {
        let now = self.now();
        // A panic elsewhere under this lock leaves the hub usable, because every operation is complete within one call.
        let mut hub = self.0.hub.lock().unwrap_or_else(PoisonError::into_inner);
        let result = act(&mut hub, now);
        let update = |sender: &watch::Sender<u64>, now| {
            sender.send_if_modified(|seen| std::mem::replace(seen, now) != now);
        };
        update(&self.0.version, hub.version());
        update(&self.0.changes, hub.changes());
        result
    }

    /// A counter that changes when a listener may have work.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// A counter that changes with everything that a viewer can see; see [`Hub::changes`].
    pub fn watch_changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// The time by the emulator's clock.
    pub fn now(&self) -> SystemTime {
        (self.0.clock)()
    }

    /// The time until `deadline`; zero if it has passed.
    pub fn until(&self, deadline: SystemTime) -> Duration {
        deadline.duration_since(self.now()).unwrap_or_default()
    }

    /// Applies the passing of time to the hub, for ever. Cancel safe.
    pub(super) async fn run_timer(&self) {
        let mut changed = self.watch();
        loop {
            let deadline = self.with(|hub, _| hub.next_deadline());
            let due = async {
                match deadline {
                    Some(deadline) => tokio::time::sleep(self.until(deadline)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => self.with(|hub, now| hub.tick(now)),
                // `self` holds the sender, so this cannot fail.
                _changed = changed.changed() => tokio::time::sleep(TIMER_REST).await,
            }
        }
    }
}
