//! The plan: a rule's steps with every value of one message filled in and checked.
//!
//! Owns: the shape that `action` performs and `check` prints. Must not know: how either does it.

use std::time::Duration;

use super::environment::MAX_VARIABLES;
use super::template::MAX_FILLED_BYTES;

/// What one message makes one rule do: steps in order, all within one deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The rule's name.
    pub rule: String,
    /// The steps, to be performed in this order; the first that fails ends the action.
    pub steps: Vec<PlannedStep>,
    /// Every `C2D_…` variable of a child process, sorted by name; empty when no step has one. `PATH` is not among
    /// them.
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

impl PlannedStep {
    /// How long the step occupies its pin.
    pub(super) fn pin_time(&self) -> Duration {
        match self {
            Self::Gpio { change: PinChange::Pulse(duration), .. } => *duration,
            Self::Gpio { change: PinChange::Blink { times, period }, .. } => period.saturating_mul(*times),
            _ => Duration::ZERO,
        }
    }
}

/// A change of a pin.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
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

/// Why a rule cannot act on a message. The text is the action's outcome; nothing has been done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A template takes a value that the message does not have.
    #[error("the message has no {name}{remark}, which the rule needs, and there is no default")]
    Missing {
        /// The property or body field.
        name: String,
        /// More about a missing body field, or empty.
        remark: String,
    },
    /// A template takes a JSON object or array.
    #[error("{0} is a JSON object or array, but the rule needs a text, a number, true or false")]
    Structure(String),
    /// A value could be taken for an option of a program.
    #[error(
        "{name} is \"{value}\", which a program could read as an option: if you want to allow it, list this \
         exact value in a condition of the rule"
    )]
    LooksLikeAnOption {
        /// The property or body field.
        name: String,
        /// Its value, shortened.
        value: String,
    },
    /// The same, of a command that the rule only names.
    #[error("{name} is \"{value}\", which a program could read as an option, and a command accepts none")]
    OptionOfCommand {
        /// The property or body field.
        name: String,
        /// Its value, shortened.
        value: String,
    },
    /// A value holds a control character, such as a line break or NUL.
    #[error("{name} is \"{value}\", and control characters are not allowed")]
    ControlCharacter {
        /// The property or body field.
        name: String,
        /// Its value, shortened and escaped.
        value: String,
    },
    /// Values that are too long to be given to programs.
    #[error(
        "with the values of the message the arguments would have more than {} KiB: fill in less, or let the \
         program read the environment or the body", MAX_FILLED_BYTES / 1024
    )]
    TooMuch,
    /// More properties than the environment of a program is made for.
    #[error(
        "the message has {count} properties, but a program gets at most {MAX_VARIABLES}: send fewer, or use \
         the body"
    )]
    TooMany {
        /// How many the message has.
        count: usize,
    },
    /// A value that a pin step cannot use.
    #[error("{setting} would be \"{value}\", but must be {needs}")]
    Unusable {
        /// `set`, `pulse`, `times` or `period`.
        setting: &'static str,
        /// The filled value, shortened.
        value: String,
        /// What it must be.
        needs: &'static str,
    },
    /// Pulses and blinks that the deadline would cut off.
    #[error(
        "the pulses and blinks would take {}, but the rule's timeout is {}",
        humantime::format_duration(*needed), humantime::format_duration(*timeout)
    )]
    TooLong {
        /// All of them together.
        needed: Duration,
        /// The rule's.
        timeout: Duration,
    },
    /// A property that would pass for one of the rule's conditions in a program's environment.
    #[error(
        "the property \"{name}\" would set ${variable} for a program, but ${variable} is for \"{tested}\", \
         which the rule's conditions test"
    )]
    Lookalike {
        /// The property, shortened.
        name: String,
        /// The variable's name.
        variable: String,
        /// The property that a condition is about.
        tested: String,
    },
    /// A value that no environment variable can hold.
    #[error("{0} contains a NUL, which a program cannot receive")]
    Nul(String),
}

impl PlanError {
    /// Why a value cannot be filled into a command: there no condition helps.
    pub(super) fn of_command(self) -> Self {
        match self {
            Self::LooksLikeAnOption { name, value } => Self::OptionOfCommand { name, value },
            other => other,
        }
    }
}
