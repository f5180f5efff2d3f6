//! c2d-agent: Azure IoT Hub cloud-to-device (C2D) messages, mapped onto the outputs and commands of a gateway.
//!
//! The map, top down; imports point down only, and `tests/it/layering.rs` enforces it:
//!
//! - edge: `cli` (arguments, logging, runtime, exit code)
//! - policy: [`agent`]
//! - mechanism: `session`, `action`, `service`, [`emulator`], [`tls`]
//! - vocabulary: [`config`], [`rules`], [`message`], [`credentials`], [`feedback`]

pub mod action;
pub mod agent;
pub mod cli;
pub mod config;
pub mod credentials;
#[cfg(feature = "emulator")]
pub mod emulator;
pub mod feedback;
pub mod message;
pub mod rules;
#[cfg(feature = "service")]
pub mod service;
mod session;
pub mod tls;
