//! Rules: which message selects which action.
//!
//! Owns: rules, their conditions, and what a rule would do with a message (its plan).
//! Must not know: files, TOML, processes, pins' hardware, clocks.
//! Used by: `config` (builds rules), `agent` and `cli::check` (match and plan), `action` (performs a plan).

mod plan;

pub use plan::{PinChange, PinState, Plan, PlannedStep};
