//! The Device Provisioning Service (DPS) beside the hubs: a device that knows only its ID scope, its registration id and
//! one proof asks which hub it belongs to.
//!
//! Owns: enrolments, registrations and operations; what is done at the hubs for a registration; which file keeps all of
//! it. Must not know: MQTT, AMQP, HTTP; `crate::provisioning`, which is the client's side: a double built from the code
//! under test proves nothing.
//!
//! Source: wire reference 12. What it marks as not verified is a choice here.
//!
//! - `reception` is the door, and `claim` who asks there. `attestation` judges the proof.
//! - `enrolment` is who may register, in the words of the service API; `allocation` chooses a hub.
//! - `book` is the state machine, pure. `registration` is what it keeps of a device, `operations` are the registrations
//!   under way. `faults` are errors on purpose.
//! - `request` and `answer` are the bodies. `issuing` is where a certificate would be issued.
//! - `desk` joins the book with the hubs, `assigning` changes them, and `store` is its file. `service` is what back ends
//!   do. `settings` are the options of the command line, and `opening` what follows from them at the start.

mod allocation;
mod answer;
mod assigning;
mod attestation;
mod book;
mod claim;
mod desk;
mod enrolment;
mod faults;
mod issuing;
mod opening;
mod operations;
mod reception;
mod registration;
mod request;
mod service;
mod settings;
mod store;

pub(super) use answer::{DpsAnswer, DpsRefusal};
pub(super) use attestation::EnrolmentKind;
pub(super) use claim::{DoorError, DpsUserName, RegistrationClaim};
pub(super) use desk::ProvisioningDesk;
pub use faults::{DpsFault, DpsFaultError, DpsFaultName, DpsFaultOrder};
pub use opening::ProvisioningError;
pub(super) use opening::{OpenedProvisioning, open};
pub(super) use reception::Reception;
pub(super) use request::MAX_REQUEST;
pub use settings::{DEFAULT_ID_SCOPE, EnrolmentOption, EnrolmentOptionError, ProvisioningSettings};
