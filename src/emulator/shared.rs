//! The hub as all listeners share it: one lock, one clock, and a counter that wakes the listeners.
//!
//! Owns: the lock around [`Hub`], who signs its devices' certificates, who is woken by a change, the clock and its
//! moves, and the timer that tells the hub the time. Must not know: MQTT, AMQP.
//!
//! A change of a device only wakes the links of that device: with ten thousand devices, waking all of them for each
//! message would take longer than the message.
//!
//! Whatever waits for a time of the hub waits with [`SharedHub::reached`] or [`SharedHub::passed`], or wakes with
//! [`SharedHub::watch`] or [`SharedHub::watch_device`] and asks again: a moved clock wakes all of these. Waits for a
//! peer, such as the keep-alive of MQTT, are waits for the real time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, SystemTime};

use tokio::sync::watch;

use super::certificates::DeviceIssuer;
use super::clock::{ClockError, ClockOffset, ClockSetting};
use super::hub::Hub;
use crate::message::format_time;

/// The timer handles changes within this time as one change.
const TIMER_REST: Duration = Duration::from_millis(20);

/// The source of the real time, from which the emulator's clock may differ.
pub type Clock = fn() -> SystemTime;

/// The shared hub. All clones are one hub.
#[derive(Clone)]
pub struct SharedHub(Arc<HubAndClock>);

struct HubAndClock {
    hub: Mutex<Hub>,
    version: watch::Sender<u64>,
    /// The value of [`Hub::changes`].
    changes: watch::Sender<u64>,
    /// The value of [`Hub::event_version`].
    events: watch::Sender<u64>,
    /// A counter for each device that somebody waits for.
    devices: Mutex<HashMap<String, watch::Sender<u64>>>,
    clock: Clock,
    offset: watch::Sender<ClockOffset>,
    /// Who signs certificates of devices.
    issuer: OnceLock<DeviceIssuer>,
}

impl SharedHub {
    /// Shares a hub. `clock` gives the real time.
    pub fn new(mut hub: Hub, clock: Clock) -> Self {
        // The real time, so that a clock that was set back does not lead to numbers of an earlier hub.
        hub.number_from(clock());
        let (version, changes) = (watch::Sender::new(hub.version()), watch::Sender::new(hub.changes()));
        let (events, offset) = (watch::Sender::new(hub.event_version()), watch::Sender::default());
        let (hub, devices) = (Mutex::new(hub), Mutex::default());
        Self(Arc::new(HubAndClock {
            hub,
            version,
            changes,
            events,
            devices,
            clock,
            offset,
            issuer: OnceLock::new(),
        }))
    }

    /// From now on devices can ask for certificates, which `issuer` signs. Only the first one counts.
    pub(super) fn issue_certificates(&self, issuer: DeviceIssuer) {
        drop(self.0.issuer.set(issuer));
    }

    /// Who signs certificates of devices.
    pub(super) fn issuer(&self) -> Option<&DeviceIssuer> {
        self.0.issuer.get()
    }

    /// Runs `act` on the hub with the present time. If `act` changes anything that listeners must know, it wakes them.
    /// The closure must be short, and must not call `with` again.
    pub fn with<T>(&self, act: impl FnOnce(&mut Hub, SystemTime) -> T) -> T {
        // A panic elsewhere under this lock leaves the hub usable, because every operation is complete within one call.
        let mut hub = self.0.hub.lock().unwrap_or_else(PoisonError::into_inner);
        // The clock is only moved under the lock, so this is the time for all of `act`.
        let now = self.now();
        let result = act(&mut hub, now);
        let update = |sender: &watch::Sender<u64>, now| {
            sender.send_if_modified(|seen| std::mem::replace(seen, now) != now);
        };
        update(&self.0.version, hub.version());
        update(&self.0.changes, hub.changes());
        update(&self.0.events, hub.event_version());
        let woken = hub.take_woken();
        if !woken.is_empty() {
            let devices = self.0.devices.lock().unwrap_or_else(PoisonError::into_inner);
            for sender in woken.iter().filter_map(|id| devices.get(id)) {
                sender.send_modify(|count| *count += 1);
            }
        }
        result
    }

    /// A counter that changes when a link of this device may have work.
    pub fn watch_device(&self, device_id: &str) -> watch::Receiver<u64> {
        let mut devices = self.0.devices.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = devices.get(device_id) {
            return sender.subscribe();
        }
        // From time to time, forget the devices that no task waits for any more.
        if devices.len().is_power_of_two() {
            devices.retain(|_, sender| sender.receiver_count() > 0);
        }
        devices.entry(device_id.to_owned()).or_default().subscribe()
    }

    /// A counter that changes when a listener that serves no device may have work.
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.0.version.subscribe()
    }

    /// A counter that changes with everything that a viewer can see; see [`Hub::changes`].
    pub fn watch_changes(&self) -> watch::Receiver<u64> {
        self.0.changes.subscribe()
    }

    /// A counter that changes when a reader of D2C messages may have work.
    pub fn watch_events(&self) -> watch::Receiver<u64> {
        self.0.events.subscribe()
    }

    /// The time by the emulator's clock.
    pub fn now(&self) -> SystemTime {
        let (real, offset) = self.clock();
        offset.of(real)
    }

    /// The real time, and by how much the emulator's clock differs from it.
    pub fn clock(&self) -> (SystemTime, ClockOffset) {
        let offset = *self.0.offset.borrow();
        ((self.0.clock)(), offset)
    }

    /// Moves the emulator's clock. When this returns, the hub has done what is due by then, and all that waits for a
    /// time of the hub is awake.
    ///
    /// # Errors
    /// [`ClockError::OutOfBounds`]; in this case nothing has changed.
    pub fn move_clock(&self, setting: ClockSetting) -> Result<(), ClockError> {
        self.with(|hub, _| {
            let (real, present) = self.clock();
            let offset = setting.offset(present, real)?;
            let now = offset.of(real);
            self.0.offset.send_replace(offset);
            hub.clock_moved(offset, now);
            if offset != present {
                tracing::info!(
                    "the clock was moved: it is {} now, {offset} from the real time",
                    format_time(now)
                );
            }
            Ok(())
        })
    }

    /// The time until `deadline`; zero if it has passed.
    pub fn until(&self, deadline: SystemTime) -> Duration {
        deadline.duration_since(self.now()).unwrap_or_default()
    }

    /// Returns when the emulator's clock reaches `deadline`, whether by itself or because it is moved; never if there is
    /// none. The runtime's clock may be a little ahead of the emulator's, so the caller must look at the time. Cancel
    /// safe.
    pub async fn reached(&self, deadline: Option<SystemTime>) {
        let Some(deadline) = deadline else { return std::future::pending().await };
        let mut moved = self.0.offset.subscribe();
        loop {
            tokio::select! {
                () = tokio::time::sleep(self.until(deadline)) => return,
                // `self` holds the sender, so this cannot fail.
                _moved = moved.changed() => {}
            }
        }
    }

    /// Returns when so much time has passed by the emulator's clock. If the clock is set back, the time begins anew at
    /// most. Cancel safe.
    pub async fn passed(&self, time: Duration) {
        let mut moved = self.0.offset.subscribe();
        let mut deadline = self.now() + time;
        loop {
            deadline = deadline.min(self.now() + time);
            tokio::select! {
                () = tokio::time::sleep(self.until(deadline)) => return,
                // `self` holds the sender, so this cannot fail.
                _moved = moved.changed() => {}
            }
        }
    }

    /// Applies the passing of time to the hub, for ever. Cancel safe.
    pub(super) async fn run_timer(&self) {
        let mut changed = self.watch();
        loop {
            let deadline = self.with(|hub, _| hub.next_deadline());
            tokio::select! {
                () = self.reached(deadline) => self.with(|hub, now| hub.tick(now)),
                // `self` holds the sender, so this cannot fail.
                _changed = changed.changed() => tokio::time::sleep(TIMER_REST).await,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::emulator::hub::QueuedMessage;
    use crate::emulator::registry::{Device, DeviceCredential, Registry};
    use crate::feedback::DeliveryAck;
    use crate::message::C2dMessage;

    fn hub(devices: usize) -> SharedHub {
        let mut registry = Registry::new("hub.test", Vec::new());
        for number in 0..devices {
            let credential = DeviceCredential::Thumbprints { primary: String::new(), secondary: None };
            registry.add_device(Device { id: format!("dev{number}"), credential });
        }
        SharedHub::new(Hub::new(registry, Duration::ZERO), || SystemTime::UNIX_EPOCH)
    }

    fn send(hub: &SharedHub, id: &str) {
        let (message, ack) = (C2dMessage::default(), DeliveryAck::None);
        let queued = QueuedMessage { device_id: id.to_owned(), message, ack, expiry: None };
        hub.with(|hub, now| hub.enqueue(queued, now)).expect("room");
    }

    #[test]
    fn a_message_wakes_the_links_of_its_device_and_no_others() {
        let hub = hub(3);
        let mut links = ["dev0", "dev0", "dev1"].map(|id| hub.watch_device(id));
        let mut changed = || {
            links.each_mut().map(|link| {
                let changed = link.has_changed().expect("the hub has the sender");
                link.mark_unchanged();
                changed
            })
        };
        assert_eq!(changed(), [false; 3]);
        send(&hub, "dev0");
        assert_eq!(changed(), [true, true, false]);
        send(&hub, "dev2");
        assert_eq!(changed(), [false; 3]);
        hub.with(|hub, _| hub.remove_device("dev1"));
        assert_eq!(changed(), [false, false, true]);
    }

    #[test]
    fn devices_that_no_task_waits_for_any_more_are_forgotten() {
        let hub = hub(1);
        for number in 0..5_000 {
            drop(hub.watch_device(&format!("gone{number}")));
        }
        assert!(hub.0.devices.lock().expect("no panic").len() < 10);
    }
}
