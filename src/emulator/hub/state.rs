//! The hub: its devices, and what every protocol does to their queues, sessions and feedback.
//!
//! Owns: one connection per device, persistent subscriptions, what each settlement leads to.
//! Must not know: sockets, the clock (every `now` is an argument); the files that add to [`Hub`].

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use super::consumers::Consumers;
use super::device::DeviceState;
use super::ended::Ended;
use super::faults::Faults;
use super::feedback::FeedbackQueue;
use super::jobs::Jobs;
use super::partitions::Partitions;
use super::piece::DeviceSnapshot;
use super::queue::{DEFAULT_TTL, Finished, Lock, LockLost, Locked, MAX_QUEUE, MAX_TTL, QueueArrival};
use super::routes::InputRoute;
use super::session::{Connected, ConnectionId, Subscription};
use super::table::DeviceTable;
use super::throttle::Throttle;
use crate::emulator::hub_names::HubNames;
use crate::emulator::identity;
use crate::emulator::registry::{AuthError, Grant, Registry, Thumbprint};
use crate::feedback::{DeliveryAck, FeedbackRecord, FeedbackStatus};
use crate::message::{self, C2dMessage, Properties};

/// A message that a back end sends to a device.
#[derive(Debug, Clone)]
pub struct QueuedMessage {
    /// The device that gets the message.
    pub device_id: String,
    /// Properties and body as the device gets them. The hub adds `$.to` if it is missing, and `$.exp` if `expiry` is
    /// set.
    pub message: C2dMessage,
    /// The outcomes that the sender wants feedback on.
    pub ack: DeliveryAck,
    /// When the message expires. If `None`, it expires after [`DEFAULT_TTL`].
    pub expiry: Option<SystemTime>,
}

/// Why a message was not queued.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EnqueueError {
    /// Hub code 404001.
    #[error("the hub has no device \"{0}\"")]
    UnknownDevice(String),
    /// Hub code 403004.
    #[error(
        "the queue of device \"{0}\" already holds {MAX_QUEUE} messages: wait until the device takes some"
    )]
    QueueFull(String),
    /// Hub code 429001. Only a [`super::Fault`] causes it.
    #[error("the hub is throttling messages to device \"{0}\": try again later")]
    Throttled(String),
    /// Hub code 400003.
    #[error(
        "the property \"{0}\" has other characters than printable ASCII in its name or value: encode them, for \
         example as %C3%A9"
    )]
    PropertyText(String),
    /// Hub code 413001.
    #[error("the message is {0} bytes with its properties, more than {max}", max = message::MAX_C2D_BYTES)]
    TooLarge(usize),
    /// Hub code 403009.
    #[error("the message's expiry {0} is in the past")]
    ExpiryPast(String),
    /// Hub code 403009.
    #[error("the message's expiry {0} is more than two days ahead")]
    ExpiryTooFar(String),
}

/// The whole hub. It holds the devices it was given. For each device it holds at most [`MAX_QUEUE`] messages and one
/// session. The number of feedback records is limited.
#[derive(Debug)]
pub struct Hub {
    pub(super) registry: Registry,
    pub(super) devices: DeviceTable,
    /// Snapshots of devices that an earlier hub had and this one does not have.
    pub(super) absent: BTreeMap<String, DeviceSnapshot>,
    pub(super) feedback: FeedbackQueue,
    pub(super) jobs: Jobs,
    /// The faults that each new device starts with.
    pub(super) faults_of_all: Faults,
    pub(super) throttle: Throttle,
    pub(super) input_routes: Vec<InputRoute>,
    pub(super) partitions: Partitions,
    pub(super) consumers: Consumers,
    pub(super) last_id: u64,
    /// Rises with every change that a listener may have to act on. For a change of a device, see [`Hub::wake`].
    pub(super) version: u64,
    /// The devices whose links may have work.
    woken: BTreeSet<String>,
    /// Changes that only viewers need to see; see [`Hub::changes`].
    pub(super) quiet_changes: u64,
}

impl Hub {
    /// A hub without devices. `feedback_interval` is the time from one feedback batch to the next, unless a batch is
    /// full; the real hub's is 15 seconds.
    pub fn new(registry: Registry, feedback_interval: Duration) -> Self {
        let devices = DeviceTable::of(registry.device_ids());
        Self {
            registry,
            devices,
            absent: BTreeMap::new(),
            feedback: FeedbackQueue::new(feedback_interval),
            jobs: Jobs::default(),
            faults_of_all: Faults::default(),
            throttle: Throttle::default(),
            input_routes: Vec::new(),
            partitions: Partitions::new(),
            consumers: Consumers::default(),
            last_id: 0,
            version: 0,
            woken: BTreeSet::new(),
            quiet_changes: 0,
        }
    }

    /// The hub's own host name.
    pub fn hostname(&self) -> &str {
        self.registry.names().own()
    }

    /// The hub's host names; user names and tokens must contain one of them.
    pub fn names(&self) -> &HubNames {
        self.registry.names()
    }

    /// Checks whether a device may sign in with `token`, or without one, with the certificate of its TLS connection.
    ///
    /// # Errors
    /// [`AuthError`] gives the reason for the log. Each protocol decides what the client is told.
    pub fn authenticate_device(
        &self,
        device_id: &str,
        token: Option<&str>,
        certificate: Option<&Thumbprint>,
        now: SystemTime,
    ) -> Result<Grant, AuthError> {
        self.registry.authenticate_device(device_id, token, certificate, now)
    }

    /// Makes a connection the device's only one. It displaces the earlier connection: the locks of that one return to
    /// the queue, and [`Hub::is_current`] tells it to close. With `clean`, the stored session is deleted now and at the
    /// end of this connection. `None` if there is no such device.
    pub fn connect(&mut self, device_id: &str, clean: bool, now: SystemTime) -> Option<Connected> {
        let connection = ConnectionId(self.next_id());
        let state = self.devices.get_mut(device_id)?;
        let connected = state.session.connect(connection, clean);
        (state.last_activity, state.connection_updated) = (Some(now), Some(now));
        state.desired_changes.clear();
        if let Some(displaced) = connected.displaced {
            state.queue.release(displaced);
        }
        self.wake(device_id);
        Some(connected)
    }

    /// Ends a connection. The messages that it had not settled return to the queue at once, in their old order. If
    /// another connection has replaced it, nothing happens.
    pub fn disconnect(&mut self, device_id: &str, connection: ConnectionId, now: SystemTime) {
        if !self.is_current(device_id, connection) {
            return;
        }
        let Some(state) = self.devices.get_mut(device_id) else { return };
        if state.session.disconnect(connection) {
            state.connection_updated = Some(now);
            state.queue.release(connection);
            state.desired_changes.clear();
            self.wake(device_id);
        }
    }

    /// Whether `connection` is still the device's connection.
    pub fn is_current(&self, device_id: &str, connection: ConnectionId) -> bool {
        self.devices.get(device_id).is_some_and(|state| state.session.is_current(connection))
    }

    /// Stores a subscription of the device's session, or changes its quality of service. Returns whether there was
    /// room: a session holds [`super::MAX_SUBSCRIPTIONS`].
    pub fn subscribe(
        &mut self,
        device_id: &str,
        connection: ConnectionId,
        subscription: Subscription,
        qos: u8,
    ) -> bool {
        self.wake(device_id);
        self.current(device_id, connection).is_some_and(|state| state.session.subscribe(subscription, qos))
    }

    /// Removes a subscription. If the session does not have it, nothing happens.
    pub fn unsubscribe(&mut self, device_id: &str, connection: ConnectionId, subscription: Subscription) {
        if let Some(state) = self.current(device_id, connection) {
            state.session.unsubscribe(subscription);
            if subscription == Subscription::DesiredProperties {
                state.desired_changes.clear();
            }
        }
    }

    /// The quality of service granted for a subscription; `None` if the session does not have it.
    pub fn granted(
        &self,
        device_id: &str,
        connection: ConnectionId,
        subscription: Subscription,
    ) -> Option<u8> {
        let state = self.devices.get(device_id)?;
        state.session.is_current(connection).then(|| state.granted(subscription)).flatten()
    }

    /// Puts a message at the end of its device's queue.
    ///
    /// All properties must be printable ASCII. The hub's documents name fewer characters (wire reference 5.1), but hubs
    /// take others, such as the slash (Azure/azure-iot-sdk-java#14). Which ones is UNVERIFIED.
    ///
    /// # Errors
    /// [`EnqueueError`]; the order of checks is: device, properties, size, expiry, room.
    pub fn enqueue(&mut self, queued: QueuedMessage, now: SystemTime) -> Result<(), EnqueueError> {
        // The queue of a module only holds messages for its inputs.
        if !self.devices.contains(&queued.device_id) || identity::is_module(&queued.device_id) {
            return Err(EnqueueError::UnknownDevice(queued.device_id.chars().take(128).collect()));
        }
        let QueuedMessage { message: C2dMessage { system, application, .. }, .. } = &queued;
        let is_printable = |text: &str| text.bytes().all(|byte| matches!(byte, b' '..=b'~'));
        let wrong = |(name, value): &(&str, Option<&str>)| {
            !is_printable(name) || value.is_some_and(|value| !is_printable(value))
        };
        if let Some((name, _)) = system.iter().chain(application.iter()).find(wrong) {
            return Err(EnqueueError::PropertyText(message::excerpt(name)));
        }
        self.push(queued, now)
    }

    /// Like [`Hub::enqueue`], but the queue must exist.
    pub(super) fn push(&mut self, queued: QueuedMessage, now: SystemTime) -> Result<(), EnqueueError> {
        let QueuedMessage { device_id, mut message, ack, expiry } = queued;
        if !message.system.contains(message::TO) {
            message.system.set(message::TO, format!("/devices/{device_id}/messages/devicebound"));
        }
        if let Some(expiry) = expiry {
            let text = message::format_time(expiry);
            if expiry <= now {
                return Err(EnqueueError::ExpiryPast(text));
            }
            if expiry > now + MAX_TTL {
                return Err(EnqueueError::ExpiryTooFar(text));
            }
            message.system.set(message::EXPIRY, text);
        }
        let size = message.wire_size();
        if size > message::MAX_C2D_BYTES {
            return Err(EnqueueError::TooLarge(size));
        }
        // Expired messages must not count against the limit of the queue.
        self.expire(&device_id, now);
        let expires = expiry.unwrap_or(now + DEFAULT_TTL);
        let Some(state) = self.devices.get_mut(&device_id) else {
            return Err(EnqueueError::UnknownDevice(device_id));
        };
        if state.faults.is_throttled() {
            return Err(EnqueueError::Throttled(device_id));
        }
        let arrival = QueueArrival { enqueued: now, sequence_number: state.queued + 1, expires };
        if state.faults.queue_is_full() || !state.queue.push(Arc::new(message), ack, arrival) {
            return Err(EnqueueError::QueueFull(device_id));
        }
        state.queued += 1;
        self.wake(&device_id);
        Ok(())
    }

    /// Locks the device's oldest waiting message for `connection`. `None` if no message waits, if the device has not
    /// subscribed, or if `connection` is no longer its connection.
    pub fn next_delivery(
        &mut self,
        device_id: &str,
        connection: ConnectionId,
        now: SystemTime,
    ) -> Option<Locked> {
        if !self.devices.get(device_id)?.has_messages() {
            return None;
        }
        self.expire(device_id, now);
        let lock = Lock(self.next_id());
        let state = self.current(device_id, connection)?;
        state.granted(Subscription::DeviceBound)?;
        let (locked, changed) = state.lock_next(lock, connection, false, now);
        self.version += u64::from(changed);
        self.quiet_changes += u64::from(locked.is_some());
        locked
    }

    /// The device has accepted the message. The sender gets feedback `Success` if it asked for it.
    ///
    /// # Errors
    /// [`LockLost`]; in this case nothing has changed.
    pub fn complete(&mut self, device_id: &str, lock: Lock, now: SystemTime) -> Result<(), LockLost> {
        self.finish(device_id, lock, FeedbackStatus::Success, now)
    }

    /// The device refuses the message for good. The sender gets feedback `Rejected` if it asked for it.
    ///
    /// # Errors
    /// [`LockLost`]; in this case nothing has changed.
    pub fn reject(&mut self, device_id: &str, lock: Lock, now: SystemTime) -> Result<(), LockLost> {
        self.finish(device_id, lock, FeedbackStatus::Rejected, now)
    }

    /// The device gives the message back, and its delivery count rises. At [`super::MAX_DELIVERY_COUNT`] the message is
    /// dead lettered, with feedback `DeliveryCountExceeded` if the sender asked for it. Below that, the message waits
    /// again in its old place.
    ///
    /// # Errors
    /// [`LockLost`]; in this case nothing has changed.
    pub fn abandon(&mut self, device_id: &str, lock: Lock, now: SystemTime) -> Result<(), LockLost> {
        self.expire(device_id, now);
        let state = self.devices.get_mut(device_id).ok_or(LockLost)?;
        let exceeded = state.queue.abandon(lock)?;
        self.wake(device_id);
        if let Some(finished) = exceeded {
            self.record(device_id, &finished, FeedbackStatus::DeliveryCountExceeded, now);
        }
        Ok(())
    }

    /// How many messages are in the queue, waiting or locked; `None` if there is no such device.
    pub fn queue_length(&self, device_id: &str) -> Option<usize> {
        self.devices.get(device_id).map(|state| state.queue.len())
    }

    /// Records that the device has just been active.
    pub fn touch(&mut self, device_id: &str, now: SystemTime) {
        if let Some(state) = self.devices.get_mut(device_id) {
            state.last_activity = Some(now);
            self.quiet_changes += 1;
        }
    }

    /// Stores a D2C message, for viewers and for back ends. Each device keeps the last [`super::MAX_EVENTS`], with at
    /// most [`super::MAX_EVENT_BYTES`] in all. If the device does not exist, nothing happens. The routes also pass on
    /// what a module sends.
    pub fn record_event(&mut self, device_id: &str, properties: Properties, body: Bytes, now: SystemTime) {
        self.route(device_id, &properties, &body, now);
        let Some(state) = self.devices.get_mut(device_id) else { return };
        state.events.push(properties.clone(), body.clone(), now);
        state.last_activity = Some(now);
        self.version += 1;
        self.add_to_partition(device_id, properties, body, now);
    }

    /// Applies the passing of time: messages expire, locks lapse, feedback becomes due or too old.
    pub fn tick(&mut self, now: SystemTime) {
        for id in self.devices.due(now) {
            self.expire(&id, now);
            if self.devices.passing_mut(&id).is_some_and(|state| state.faults.pass_time(now)) {
                self.wake(&id);
            }
        }
        if self.feedback.tick(now) {
            self.version += 1;
        }
    }

    /// When [`Hub::tick`] has its next work; `None` if nothing waits.
    pub fn next_deadline(&mut self) -> Option<SystemTime> {
        self.devices.next_deadline().into_iter().chain(self.feedback.next_deadline()).min()
    }

    /// Rises with every change that a listener may have to act on.
    pub fn version(&self) -> u64 {
        self.version
    }

    /// The devices whose links may have work since the last call.
    pub fn take_woken(&mut self) -> BTreeSet<String> {
        std::mem::take(&mut self.woken)
    }

    /// Notes a change that the links of a device may have to act on.
    pub(super) fn wake(&mut self, device_id: &str) {
        self.version += 1;
        if !self.woken.contains(device_id) {
            self.woken.insert(device_id.to_owned());
        }
    }

    /// The device, if `connection` is still its connection. It counts as changed.
    pub(super) fn current(&mut self, device_id: &str, connection: ConnectionId) -> Option<&mut DeviceState> {
        if !self.is_current(device_id, connection) {
            return None;
        }
        self.devices.get_mut(device_id)
    }

    /// Like [`Hub::current`], to change only what ends with the process.
    pub(super) fn current_passing(
        &mut self,
        device_id: &str,
        connection: ConnectionId,
    ) -> Option<&mut DeviceState> {
        self.devices.passing_mut(device_id).filter(|state| state.session.is_current(connection))
    }

    fn finish(
        &mut self,
        device_id: &str,
        lock: Lock,
        status: FeedbackStatus,
        now: SystemTime,
    ) -> Result<(), LockLost> {
        self.expire(device_id, now);
        let state = self.devices.get_mut(device_id).ok_or(LockLost)?;
        let finished = state.queue.remove(lock)?;
        state.last_activity = Some(now);
        self.record(device_id, &finished, status, now);
        Ok(())
    }

    /// Applies the passing of time to one queue.
    pub(super) fn expire(&mut self, device_id: &str, now: SystemTime) {
        let waits = |state: &DeviceState| state.queue.next_deadline().is_none_or(|due| due > now);
        if self.devices.get(device_id).is_none_or(waits) {
            return;
        }
        let Some(state) = self.devices.get_mut(device_id) else { return };
        let passed = state.queue.pass_time(now);
        if passed.unlocked {
            self.wake(device_id);
        }
        for finished in passed.expired {
            tracing::info!(device_id, message_id = finished.message.message_id(), "expired a C2D message");
            self.record(device_id, &finished, FeedbackStatus::Expired, now);
        }
    }

    /// Records the end of a message: for viewers, and as feedback if its sender asked for it.
    pub(super) fn record(
        &mut self,
        device_id: &str,
        finished: &Finished,
        status: FeedbackStatus,
        now: SystemTime,
    ) {
        self.quiet_changes += 1;
        if let Some(state) = self.devices.get_mut(device_id) {
            state.ended.push(Ended::of(finished, status, now));
        }
        if !finished.ack.reports(status) {
            return;
        }
        let record = FeedbackRecord {
            original_message_id: finished.message.message_id().unwrap_or_default().to_owned(),
            description: status.as_str().to_owned(),
            device_generation_id: self.registry.generation(device_id).unwrap_or_default().to_owned(),
            device_id: device_id.to_owned(),
            enqueued_time_utc: message::format_time(now),
            status_code: status,
        };
        self.feedback.push(record, now);
        self.version += 1;
    }

    /// An id that this hub has not used.
    pub(super) fn next_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }
}
