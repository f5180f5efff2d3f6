//! The configuration: TOML text to a typed, checked [`Config`], every problem with its position.
//!
//! Owns: the file's schema, its defaults and limits. Must not know: tokio, sockets, pins' hardware.
//! Used by: `agent`, `action` (pin settings), `cli`.

mod settings;

pub use settings::{ActiveLevel, GpioBackend, GpioSettings, Line, OnExit, PinSettings};
