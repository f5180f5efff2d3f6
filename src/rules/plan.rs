//! The plan: a rule's steps with every value of one message filled in and checked.
//!
//! Owns: the shape that `action` performs and `check` prints. Must not know: how either does it.
//! Used by: `rules`, `action`, `agent`, `cli::check`.

use std::time::Duration;

/// What one message makes one rule do: steps in order, all within one deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The rule's name.
    pub rule: String,
    /// The steps, to be performed in this order; the first that fails ends the action.
    pub steps: Vec<PlannedStep>,
    /// Every `C2D_…` variable of a child process, sorted by name. `PATH` is not among them.
    pub environment: Vec<(String, String)>,
    /// How long all steps together may take.
    pub timeout: Duration,
}

/// One step, ready to be performed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlannedStep {
    /// Change a configured pin.
    Gpio {
        /// The pin's name in the configuration.
        pin: String,
        /// What to do with it.
        change: PinChange,
    },
    /// Run a program: the first element is its absolute path. Never given to a shell.
    Run {
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// Run the configuration's own text with `/bin/sh -c`; message data is only in the environment.
    Shell {
        /// The text, exactly as configured.
        text: String,
    },
}

/// A change of a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinChange {
    /// Put it into a state.
    Set(PinState),
    /// Put it into the other state.
    Toggle,
    /// On for this long, then off.
    Pulse(Duration),
    /// On and off again, `times` times; each period is half on, half off.
    Blink {
        /// How many times; at least 1.
        times: u32,
        /// On and off together.
        period: Duration,
    },
}

/// The logical state of a pin; `active` in the configuration says which level is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinState {
    /// Energised.
    On,
    /// Not energised.
    Off,
}

impl std::fmt::Display for PinState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::On => "on",
            Self::Off => "off",
        })
    }
}
