//! What is registered of a device, and what is done at the hubs for it.
//!
//! Owns: their form in the file of the service, and what a client sees of a registration. Must not know: who may
//! register, hubs.
//!
//! Source: wire reference 12.3.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::credentials::HostPort;
use crate::emulator::registry::DeviceCredential;
use crate::message::format_time;

/// A device that has a hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(in crate::emulator) struct RegistrationRecord {
    /// As the client wrote it at first.
    pub(in crate::emulator) registration_id: String,
    /// The enrolment group; `None` for an individual enrolment.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(in crate::emulator) group: Option<String>,
    /// The hub's own name.
    pub(in crate::emulator) hub: String,
    pub(in crate::emulator) device_id: String,
    pub(in crate::emulator) substatus: Substatus,
    pub(in crate::emulator) created: SystemTime,
    pub(in crate::emulator) updated: SystemTime,
}

/// What the last registration did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(in crate::emulator) enum Substatus {
    InitialAssignment,
    DeviceDataMigrated,
    DeviceDataReset,
}

/// What is to be done at the hubs for a registration. The file of the service keeps it until it is done.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Allotment {
    pub(super) record: RegistrationRecord,
    #[serde(with = "stored_credential")]
    pub(super) credential: DeviceCredential,
    pub(super) is_edge: bool,
    /// Tags and desired properties of a device that is new at its hub.
    pub(super) initial_twin: Option<Value>,
    /// The hub and the device id that the device leaves.
    pub(super) leaves: Option<(String, String)>,
    /// Whether the device is new at its hub; known when the work begins.
    pub(super) is_new: bool,
    pub(super) echoes: bool,
}

impl RegistrationRecord {
    /// The registration in JSON.
    pub(in crate::emulator) fn show(&self, port: Option<u16>) -> Value {
        let hub = match port {
            Some(port) => HostPort { name: self.hub.clone(), port: Some(port) }.to_string(),
            None => self.hub.clone(),
        };
        json!({
            "registrationId": self.registration_id,
            "createdDateTimeUtc": format_time(self.created),
            "assignedHub": hub,
            "deviceId": self.device_id,
            "status": "assigned",
            "substatus": self.substatus,
            "lastUpdatedDateTimeUtc": format_time(self.updated),
            "etag": self.etag(),
        })
    }

    /// Changes with each registration.
    pub(in crate::emulator) fn etag(&self) -> String {
        use base64::Engine as _;
        let hash = ring::digest::digest(&ring::digest::SHA256, format!("{self:?}").as_bytes());
        base64::engine::general_purpose::STANDARD.encode(hash.as_ref().get(..9).unwrap_or_default())
    }
}

/// A credential as the file of devices has it.
mod stored_credential {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use crate::emulator::registry::DeviceCredential;
    use crate::emulator::state_dir::Registered;

    pub(super) fn serialize<S: Serializer>(own: &DeviceCredential, to: S) -> Result<S::Ok, S::Error> {
        Registered::new(own).serialize(to)
    }

    pub(super) fn deserialize<'d, D: Deserializer<'d>>(from: D) -> Result<DeviceCredential, D::Error> {
        let stored = Registered::deserialize(from)?;
        stored.credential().ok_or_else(|| D::Error::custom("neither keys nor thumbprints"))
    }
}
