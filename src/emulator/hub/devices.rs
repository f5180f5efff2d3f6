//! Devices that are added, changed and removed while the hub runs.
//!
//! Owns: what such a change does to queue, session and feedback; an identity as back ends see it. Must not know: files,
//! HTTP.
//!
//! Source: wire reference 1.4 and 5.1. A choice where it is silent: the queue of a disabled device does not change.

use std::sync::Arc;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use serde_json::{Value, json};

use super::device::DeviceState;
use super::stamps::time;
use super::state::Hub;
use crate::emulator::entra::EntraIssuer;
use crate::emulator::identity;
use crate::emulator::registry::{
    AuthError, BackEndRight, Device, DeviceCredential, Grant, IdentityRecord, KeyPair,
};

/// A device as the registry shows it.
#[derive(Debug, Clone)]
pub struct Identity {
    /// Id and credential.
    pub device: Device,
    /// What else the registry keeps of it.
    pub record: IdentityRecord,
    /// Whether it is connected over a protocol that has connections.
    pub connected: bool,
    /// When it last connected or lost its connection.
    pub connection_updated: Option<SystemTime>,
    /// When the device last signed in, completed or sent something.
    pub last_activity: Option<SystemTime>,
    /// Messages in the device's queue, waiting or locked.
    pub queue_length: usize,
}

impl Identity {
    /// The identity as a back end gets it. Source: the classes Device and Module in Microsoft's Python service SDK. A
    /// module has no status and no capabilities there.
    pub fn show(&self) -> Value {
        let Self { device, record, .. } = self;
        let (primary, secondary) = match &device.credential {
            DeviceCredential::Keys(KeyPair { primary, secondary }) => {
                (Some(primary.expose_base64()), Some(secondary.expose_base64()))
            }
            _ => (None, None),
        };
        let (kind, thumbprints) = device.credential.shown();
        let (device_id, module) = identity::split(&device.id);
        let mut shown = json!({
            "deviceId": device_id,
            "generationId": record.generation,
            "etag": self.etag(),
            "connectionState": self.connection_state(),
            "connectionStateUpdatedTime": time(self.connection_updated),
            "lastActivityTime": time(self.last_activity),
            "cloudToDeviceMessageCount": self.queue_length,
            "authentication": {
                "symmetricKey": { "primaryKey": primary, "secondaryKey": secondary },
                "x509Thumbprint": thumbprints,
                "type": kind,
            },
        });
        match module {
            Some(module) => {
                shown["moduleId"] = module.into();
                shown["managedBy"] = record.managed_by.clone().into();
            }
            None => {
                shown["status"] = self.status().into();
                shown["statusReason"] = record.status_reason.clone().into();
                shown["statusUpdatedTime"] = time(record.status_updated).into();
                self.show_scopes(&mut shown);
            }
        }
        shown
    }

    /// Adds what only devices have: capabilities and scopes. A device without a parent that is no edge device has no
    /// scope.
    pub(super) fn show_scopes(&self, shown: &mut Value) {
        let Self { device, record, .. } = self;
        shown["capabilities"] = json!({ "iotEdge": record.is_edge });
        shown["parentScopes"] = json!(record.parent.iter().collect::<Vec<_>>());
        if let Some(scope) = record.device_scope(&device.id) {
            shown["deviceScope"] = scope.into();
        }
    }

    pub(super) fn status(&self) -> &'static str {
        if self.record.enabled { "enabled" } else { "disabled" }
    }

    pub(super) fn connection_state(&self) -> &'static str {
        if self.connected { "Connected" } else { "Disconnected" }
    }

    /// The etag. It changes with the credential, and with everything that is recorded of the identity.
    pub fn etag(&self) -> String {
        let text = match &self.device.credential {
            DeviceCredential::Keys(keys) => {
                format!("{} {}", keys.primary.expose_base64(), keys.secondary.expose_base64())
            }
            DeviceCredential::Certificate(thumbprint) => thumbprint.to_hex(),
            DeviceCredential::Thumbprints { primary, secondary } => format!("{primary} {secondary:?}"),
            DeviceCredential::Authority => "authority".to_owned(),
            // What the enrolment wants is not shown, so it does not count.
            DeviceCredential::Issued(_) => "issued".to_owned(),
        };
        let hash = digest(&SHA256, format!("{:?} {text}", self.record).as_bytes());
        STANDARD.encode(hash.as_ref().get(..9).unwrap_or_default())
    }
}

impl Hub {
    /// Adds a device. If it exists, it gets the new credential; its queue and session stay.
    pub fn add_device(&mut self, device: Device) {
        if !self.devices.contains(&device.id) {
            let mut state = DeviceState { faults: self.faults_of_all.clone(), ..DeviceState::default() };
            if let Some(kept) = self.absent.remove(&device.id) {
                state.restore(kept);
            }
            self.devices.insert(&device.id, state);
        }
        self.wake(&device.id);
        self.registry.add_device(device);
    }

    /// Removes a device with its queue, twin, D2C messages and feedback, and ends its connection. If it does not exist,
    /// nothing happens.
    pub fn remove_device(&mut self, device_id: &str) {
        self.devices.remove(device_id);
        let kept = self.absent.remove(device_id);
        self.devices.forget(kept.iter().flat_map(|kept| kept.keys(device_id)));
        self.registry.remove_device(device_id);
        self.feedback.forget(device_id);
        self.wake(device_id);
    }

    /// Sets what is recorded of a device. Disabling it ends its connection.
    pub fn set_record(&mut self, device_id: &str, record: IdentityRecord, now: SystemTime) {
        let connection = self.devices.get(device_id).and_then(|state| state.session.current());
        if let (Some(connection), false) = (connection, record.enabled) {
            self.disconnect(device_id, connection, now);
        }
        self.registry.set_record(device_id, record);
        self.wake(device_id);
    }

    /// The device with this id; `None` if it does not exist.
    pub fn identity(&self, device_id: &str) -> Option<Identity> {
        let (device, record) = self.registry.device(device_id)?;
        let state = self.devices.get(device_id)?;
        Some(Identity {
            device: device.clone(),
            record: record.clone(),
            connected: state.session.is_connected(),
            connection_updated: state.connection_updated,
            last_activity: state.last_activity,
            queue_length: state.queue.len(),
        })
    }

    /// Checks whether a back end has the right `right`.
    ///
    /// # Errors
    /// [`AuthError`] gives the reason.
    pub fn authenticate_back_end(
        &self,
        token: &str,
        right: BackEndRight,
        now: SystemTime,
    ) -> Result<Grant, AuthError> {
        self.registry.authenticate_back_end(token, right, now)
    }

    /// The issuer of tokens of Entra, if there is one.
    pub fn issuer(&self) -> Option<Arc<EntraIssuer>> {
        self.registry.issuer().cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::super::Subscription;
    use super::super::tests::{NOW, after, connect, hub, id_of, send};
    use crate::emulator::registry::IdentityRecord;
    use crate::feedback::DeliveryAck;

    #[test]
    fn a_removed_device_leaves_nothing_behind() {
        let mut hub = hub();
        let connection = connect(&mut hub, false);
        send(&mut hub, "m1", DeliveryAck::Full);
        send(&mut hub, "m2", DeliveryAck::Full);
        let locked = hub.next_delivery("dev1", connection, NOW).expect("waiting");
        hub.complete("dev1", locked.lock, NOW).expect("locked");
        let device = hub.identity("dev1").expect("there").device;
        hub.remove_device("dev1");
        assert!(hub.identity("dev1").is_none() && !hub.is_current("dev1", connection));
        assert!(hub.next_feedback_batch(after(100)).is_none());
        // A device made again under its old id is another device.
        hub.add_device(device);
        let connected = hub.connect("dev1", false, NOW).expect("a device");
        assert!(!connected.session_present);
        assert!(hub.subscribe("dev1", connected.connection, Subscription::DeviceBound, 1));
        assert!(hub.next_delivery("dev1", connected.connection, NOW).is_none());
    }

    #[test]
    fn a_disabled_device_loses_its_connection_and_keeps_its_queue() {
        let mut hub = hub();
        let connection = connect(&mut hub, false);
        send(&mut hub, "m1", DeliveryAck::Full);
        let record = |enabled| IdentityRecord { enabled, ..IdentityRecord::default() };
        hub.set_record("dev1", record(false), NOW);
        assert!(!hub.is_current("dev1", connection));
        assert!(hub.identity("dev1").is_some_and(|shown| !shown.record.enabled && !shown.connected));
        hub.set_record("dev1", record(true), NOW);
        let connection = connect(&mut hub, false);
        let locked = hub.next_delivery("dev1", connection, NOW).expect("still waiting");
        assert_eq!(id_of(&locked), "m1");
    }
}
