//! Everything that a hub holds except keys, in a form that can be stored in a file: queues, sessions, twins, D2C
//! messages, feedback, jobs.
//!
//! Owns: that form, its version, and what a restart changes: connections and locks are gone, the rest is unchanged.
//! Must not know: files.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::device::DeviceSnapshot;
use super::jobs::ScheduledJob;
use super::state::Hub;
use crate::feedback::FeedbackRecord;

/// The version of the form. A file with another version is refused, because guessing could lose data.
const FORMAT: u32 = 1;

/// What a hub holds at one moment.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    format: u32,
    devices: BTreeMap<String, DeviceSnapshot>,
    /// Feedback records that no back end has accepted, oldest first, and since when each waits.
    feedback: Vec<(SystemTime, FeedbackRecord)>,
    /// Jobs, oldest first.
    #[serde(default)]
    jobs: Vec<ScheduledJob>,
}

/// The snapshot was written by another version of this program.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("it has format {0}, and this version of c2d-agent knows format {FORMAT}")]
pub struct UnknownFormat(u32);

impl Hub {
    /// A snapshot of the hub. It shares the messages and does not copy them.
    pub fn snapshot(&self) -> Snapshot {
        let devices = self.devices.iter().map(|(id, state)| (id.clone(), state.snapshot()));
        let absent = self.absent.iter().map(|(id, kept)| (id.clone(), kept.clone()));
        Snapshot {
            format: FORMAT,
            devices: absent.chain(devices).collect(),
            feedback: self.feedback.snapshot(),
            jobs: self.jobs.snapshot(),
        }
    }

    /// Loads what an earlier hub held. Data of devices that this hub does not have is kept for a later hub.
    ///
    /// # Errors
    /// [`UnknownFormat`]; in this case nothing has changed.
    pub fn restore(&mut self, snapshot: Snapshot) -> Result<(), UnknownFormat> {
        if snapshot.format != FORMAT {
            return Err(UnknownFormat(snapshot.format));
        }
        for (id, kept) in snapshot.devices {
            match self.devices.get_mut(&id) {
                Some(state) => state.restore(kept),
                None => drop(self.absent.insert(id, kept)),
            }
        }
        self.feedback.restore(snapshot.feedback);
        self.jobs.restore(snapshot.jobs);
        self.version += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NOW, after, connect, device, hub, next_id, send};
    use super::*;
    use crate::emulator::registry::Registry;
    use crate::feedback::DeliveryAck;
    use crate::message::Properties;
    use bytes::Bytes;
    use serde_json::json;

    /// Restarts a hub with its snapshot, which passes through JSON as in the file.
    fn restarted(hub: &Hub) -> Hub {
        let text = serde_json::to_string(&hub.snapshot()).expect("JSON");
        let mut next = super::super::tests::hub();
        next.restore(serde_json::from_str(&text).expect("a snapshot")).expect("its format");
        next
    }

    #[test]
    fn a_restart_loses_connections_and_locks_and_nothing_else() {
        let mut hub = hub();
        for id in ["m1", "m2", "m3"] {
            send(&mut hub, id, DeliveryAck::Full);
        }
        let connection = connect(&mut hub, false);
        let first = hub.next_delivery("dev1", connection, NOW).expect("a message");
        hub.complete("dev1", first.lock, NOW).expect("locked");
        let second = hub.next_delivery("dev1", connection, NOW).expect("a message");
        hub.abandon("dev1", second.lock, NOW).expect("locked");
        assert_eq!(next_id(&mut hub, connection, NOW).as_deref(), Some("m2"));
        hub.patch_reported("dev1", &json!({ "led": "on" }), after(9)).expect("patched");
        hub.set_model_id("dev1", "dtmi:a;1".to_owned());
        let properties = Properties::decode("%24.cid=m%201&flag").expect("a bag");
        hub.record_event("dev1", properties, Bytes::from_static(b"\xff\x00"), NOW);
        let batch = hub.next_feedback_batch(NOW).expect("one for m1");
        assert_eq!(batch.records.len(), 1);

        let mut next = restarted(&hub);
        let twins = [&next, &hub].map(|hub| hub.twin("dev1").expect("a twin"));
        for part in ["properties", "modelId", "lastActivityTime"] {
            assert_eq!(twins[0][part], twins[1][part]);
        }
        let events = |hub: &Hub| hub.events("dev1").expect("a device").cloned().collect::<Vec<_>>();
        assert_eq!(events(&next), events(&hub));
        let kept = next.ended("dev1").next().expect("m1");
        let content = kept.content.as_ref().expect("its content");
        assert_eq!((kept.sequence_number, content.message.message_id()), (1, Some("m1")));
        assert_eq!(next.next_feedback_batch(NOW).expect("m1 again").records, batch.records);
        // The session was restored, so messages come without a new subscription, in the old order and with their
        // counts.
        let connected = next.connect("dev1", false, NOW).expect("a device");
        assert!(connected.session_present);
        let again = next.next_delivery("dev1", connected.connection, NOW).expect("m2");
        assert_eq!(
            (again.message.message_id(), again.delivery_count, again.redelivered),
            (Some("m2"), 1, true)
        );
        assert_eq!(again.sequence_number, 2);
        assert_eq!(next_id(&mut next, connected.connection, NOW).as_deref(), Some("m3"));
        // Messages also expire while no hub runs.
        let mut next = restarted(&hub);
        next.tick(after(3_601));
        assert_eq!((next.queue_length("dev1"), next.ended("dev1").count()), (Some(0), 3));
    }

    #[test]
    fn devices_that_are_not_there_this_time_are_kept_for_the_next() {
        let mut with = hub();
        send(&mut with, "m1", DeliveryAck::None);
        let mut without =
            Hub::new(Registry::new("hub.local.test", Vec::new()), std::time::Duration::from_secs(15));
        without.restore(with.snapshot()).expect("its format");
        assert_eq!(without.queue_length("dev1"), None);
        let again = restarted(&without);
        assert_eq!(again.queue_length("dev1"), Some(1));
        // The data also returns when the device is made again while the hub runs.
        without.add_device(device("dev1"));
        assert_eq!(without.queue_length("dev1"), Some(1));
    }

    #[test]
    fn another_format_is_refused() {
        let snapshot =
            Snapshot { format: 2, devices: BTreeMap::new(), feedback: Vec::new(), jobs: Vec::new() };
        let refused = hub().restore(snapshot).expect_err("another format");
        assert_eq!(refused.to_string(), "it has format 2, and this version of c2d-agent knows format 1");
    }
}
