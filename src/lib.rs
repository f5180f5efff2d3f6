//! c2d-agent: Azure IoT Hub cloud-to-device (C2D) messages, mapped onto the outputs and commands of a gateway.
//!
//! # The map
//!
//! The list goes from top to bottom. Imports point down only; `tests/it/layering.rs` enforces it. `ARCHITECTURE.md`
//! follows a message, a `c2d-send` and a method from function to function, and says where to change what.
//!
//! | Layer | Modules | |
//! |---|---|---|
//! | edge | [`cli`] | arguments, logging, runtime, exit codes |
//! | policy | [`agent`] | which message is acted on, in which lane, when it is completed or answered, recovery, reports, reload, rules of the twin, shutdown |
//! | | `fleet` | a run of messages to many devices: its list, its pace, its journal |
//! | | `doctor` | finds out what keeps this gateway from its hub |
//! | mechanism | `session` | one connection to the hub as a device or a module: messages and calls in, completions, answers and publishes out |
//! | | `inbox` | the record of each message on disk: duplicates, dead letters, reports that wait; disk trouble |
//! | | [`action`] | steps: pins and child processes, with their deadlines |
//! | | `systemd` | messages to the service manager: readiness, reloads, the watchdog |
//! | | `metrics` | figures for a scraper, over HTTP |
//! | | `service` | the back end: send and read feedback over AMQP 1.0; twins, feedback and purges over HTTPS |
//! | | `emulator` | the local IoT Hub: `hub` is a pure state machine, the others are listeners |
//! | | [`tls`] | one TLS configuration, PEM files, TLS failures in words |
//! | | `workload` | a module's tokens and roots, from the workload API of its IoT Edge device |
//! | | `websocket` | the way to the hub over a WebSocket and through a proxy; a WebSocket as a stream of bytes |
//! | | `processes` | what the kernel says of a process by its number |
//! | | `amqp_frames` | the guard of every AMQP connection: what the AMQP crate may decode |
//! | vocabulary | [`config`], [`rules`] | TOML to typed rules; a message to a plan |
//! | | [`message`], [`credentials`], [`feedback`], [`outcome`] | what goes over the wire |
//! | | [`provisioning`] | a device's enrolment through the Device Provisioning Service: what is asked and answered |
//! | | [`certificate`] | a device's own certificate: its key, the request for it, the pairs on its disk |
//! | | `trust` | who can change a file, and how to make a file that no other user can change |
//! | | `features` | the parts that a smaller build lacks |
//!
//! Vocabulary has no tokio, no sockets and no clock; time is an argument. The emulator imports only vocabulary, `tls`,
//! `websocket` and `amqp_frames`, because a test double built from the code under test proves nothing. `amqp_frames` is
//! no protocol but a protection: it says which bytes may be decoded, and does not say what they should be.
//!
//! # One message
//!
//! `session` hands a [`message::C2dMessage`] with its receipt to `agent`. [`rules::Rules`] find the rule that matches
//! the message, and make a [`rules::Plan`] of both. `inbox` records the message, unless it is a duplicate. When the
//! message's turn comes, [`action::Actions`] perform the plan, and `inbox` records how it ended. Then `agent` completes
//! the receipt, and `session` sends the PUBACK in order of arrival. The outcome may go to the hub as an
//! [`outcome::OutcomeReport`].
//!
//! # Glossary
//!
//! - *C2D message*: what the back end sends to a device. *System properties* are defined by IoT Hub, *application
//!   properties* by the sender; both travel in the *property bag*.
//! - *Door*: how a message reaches the agent: as a C2D message of a device, by an *input* of a module, or as a *call* of
//!   a *direct method*. A rule sees the door as `"$.source"`. A *module* is a second identity of an IoT Edge device; a
//!   module gets no C2D messages.
//! - *Delivery*: a message as it arrives, with the receipt that settles it. *Settle*: tell the hub what became of it. *Complete* is the only settlement of MQTT;
//!   *abandon* and *reject* exist on other transports.
//! - *Lock*: the minute in which the hub does not deliver the message again.
//! - *Delivery acknowledgement*: which feedback the sender wants (`none`, `positive`, `negative`, `full`). *Feedback
//!   record*: the hub's answer (`Success`, `Expired`, `DeliveryCountExceeded`, `Rejected`, `Purged`).
//! - *Rule*: conditions and an *action*. *Action*: steps in order. *Plan*: an action with one message's values filled in.
//!   *Outcome*: how it ended.
//! - *Inbox*: the record of messages on disk: accepted, started, finished or *dead*. *Dead letter*: a message that
//!   ended badly or that no rule matched, kept whole. *Lane*: a line in which actions run one after the other; lanes
//!   run side by side.

pub mod action;
pub mod agent;
#[cfg(feature = "full")]
#[allow(dead_code)] // Not every feature set uses both ends.
mod amqp_frames;
pub mod certificate;
pub mod cli;
pub mod config;
pub mod credentials;
#[cfg(feature = "full")]
pub mod doctor;
#[cfg(feature = "emulator")]
pub mod emulator;
mod features;
pub mod feedback;
#[cfg(feature = "full")]
mod fleet;
mod inbox;
pub mod message;
mod metrics;
pub mod outcome;
mod processes;
pub mod provisioning;
pub mod rules;
#[cfg(feature = "full")]
pub mod service;
mod session;
mod systemd;
pub mod tls;
mod trust;
#[cfg(not(feature = "full"))]
#[path = "websocket/absent.rs"]
mod websocket;
#[cfg(feature = "full")]
#[allow(dead_code)] // Not every feature set uses both ends.
mod websocket;
#[cfg(not(feature = "full"))]
#[path = "workload/absent.rs"]
mod workload;
#[cfg(feature = "full")]
mod workload;
