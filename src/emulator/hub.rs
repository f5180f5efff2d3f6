//! The hub as a state machine: devices, their C2D queues, sessions, twins and D2C messages, and delivery feedback.
//!
//! Owns: the queue of each device, locks, expiry, one connection per device, persistent
//! subscriptions, feedback batches, twins, calls of methods, jobs, the last D2C messages.
//! Must not know: sockets, tokio, MQTT or AMQP frames, the clock (every `now` is an argument).
//!
//! Semantics: wire reference 1.4 to 1.6, 4.3, 4.4 and 5. The reference is silent on two points. First, a message whose
//! lock lapsed is not offered to the same connection again, only to the device's next one. Second, feedback for a
//! message without a message id has an empty one.
//!
//! - `state` is the hub; `device` is what it has of one device, and `table` all of them.
//! - `queue`, `session`, `feedback`, `events`, `partitions`, `consumers`, `ended`, `calls`, `faults`, `throttle`,
//!   `routes`, `jobs`, `twin`, `stamps` and `document` are its parts. They do not know the hub.
//! - `devices`, `batches`, `purge`, `polling`, `again`, `methods`, `job_work`, `twins`, `inputs`, `readers`,
//!   `decisions`, `metering`, `view`, `moved` and `snapshot` add to what the hub can do. `piece` is what of it is stored, and
//!   `encoding` writes single values of a piece.

mod again;
mod batches;
mod calls;
mod certificate_requests;
mod certificates;
mod consumers;
mod decisions;
mod device;
mod devices;
mod document;
mod encoding;
mod ended;
mod events;
mod faults;
mod feedback;
mod inputs;
mod job_work;
mod jobs;
mod metering;
mod methods;
mod moved;
mod partitions;
mod piece;
mod polling;
mod purge;
mod queue;
mod readers;
mod routes;
mod session;
mod snapshot;
mod stamps;
mod state;
mod table;
mod throttle;
mod twin;
mod twins;
mod view;

pub use again::AgainError;
pub use calls::{
    BackEndCall, CallError, CallId, CallProgress, DeviceAnswer, MAX_CALLS, MAX_METHOD_TIMEOUT, MAX_NAME,
    MAX_PAYLOAD, MIN_RESPONSE_TIMEOUT, MethodRequest,
};
pub use certificate_requests::{CertificateAnswer, Sign, is_request_id};
pub use consumers::{ConsumerError, ConsumerId, MAX_CONSUMERS, MAX_READERS};
pub use device::MAX_DESIRED_CHANGES;
pub use devices::Identity;
pub use document::{
    MAX_DEPTH, MAX_KEY_BYTES, MAX_PROPERTIES_BYTES, MAX_STRING_BYTES, MAX_TAGS_BYTES, TwinError, TwinSection,
};
pub use ended::{Content, Ended, MAX_ENDED, MAX_ENDED_BYTES};
pub use events::{D2cMessage, MAX_EVENT_BYTES, MAX_EVENTS};
pub use faults::{CertificateFault, Fault, FaultError, FaultName, FaultOrder, MAX_DELAY};
pub use feedback::{BATCH_RECORDS, FeedbackLock, FeedbackView, LockedBatch};
pub use inputs::{InputError, SOURCE_DEVICE, input_topic};
pub use job_work::JOBS_IN_FLIGHT;
pub use jobs::{JobAction, JobError, JobOrder, MAX_JOB_BYTES, MAX_JOBS, MAX_RUNNING};
pub use partitions::{
    EventPosition, MAX_PARTITION_BYTES, MAX_PARTITION_EVENTS, PARTITIONS, PartitionEvent, PartitionInfo,
    millis_of, partition_of,
};
pub use piece::Piece;
pub use queue::{
    DEFAULT_TTL, LOCK_TIME, Lock, LockLost, Locked, MAX_DELIVERY_COUNT, MAX_QUEUE, MAX_TTL, QueuedView,
};
pub use routes::{InputRoute, RouteError};
pub use session::{Connected, ConnectionId, MAX_SUBSCRIPTIONS, Subscription};
pub use snapshot::{PieceError, Snapshot, UnknownFormat};
pub use state::{EnqueueError, Hub, QueuedMessage};
pub use throttle::{HubSize, HubSizeError, Metered, Tier, TooSoon};
pub use twin::{DesiredChange, TwinWrite};

#[cfg(test)]
mod tests;
