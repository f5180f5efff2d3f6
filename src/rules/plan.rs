//! The plan: a rule's steps with every value of one message filled in and checked.
//!
//! Owns: the shape that `action` carries out and `check` prints. Must not know: how either does it.

use std::time::Duration;

/// Most application properties of a message for which a program gets variables.
pub(super) const MAX_VARIABLES: usize = 1000;
/// Most bytes of a rule's arguments after they are filled in. A program can always take this much.
pub(super) const MAX_FILLED_BYTES: usize = 128 * 1024;

/// What one message makes one rule do: steps in order, all within one deadline.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The rule's name.
    pub rule: String,
    /// The steps, in the order in which they are done. The first that fails ends the action.
    pub steps: Vec<PlannedStep>,
    /// Every `C2D_…` variable of a child process, sorted by name, without `PATH`. Empty if no step has a child.
    pub environment: Vec<(String, String)>,
    /// How long all steps together may take.
    pub timeout: Duration,
}

/// One step, ready to be done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PlannedStep {
    /// Change a configured pin.
    Gpio {
        /// The pin's name in the configuration.
        pin: String,
        /// What to do with it.
        change: PinChange,
    },
    /// Run a program. The first element is its absolute path. It never goes through a shell.
    Run {
        /// Program and arguments.
        argv: Vec<String>,
    },
    /// Run the configuration's own text with `/bin/sh -c`. Message data is only in the environment.
    Shell {
        /// The text, exactly as configured.
        text: String,
    },
}

impl PlannedStep {
    /// How long the step uses its pin.
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
    /// On and off again, `times` times. Each period is half on, half off.
    Blink {
        /// How many times; at least 1.
        times: u32,
        /// On and off together.
        period: Duration,
    },
}

/// The logical state of a pin. `active` in the configuration says which level is on.
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

/// Why a rule cannot act on a message. The text is the action's outcome. Nothing has been done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlanError {
    /// A template uses a value that the message does not have.
    #[error("the message has no {name}{remark}, which the rule needs, and there is no default")]
    Missing {
        /// The property or body field.
        name: String,
        /// More about a missing body field, or empty.
        remark: String,
    },
    /// A template uses a JSON object or array.
    #[error("{0} is a JSON object or array, but the rule needs a text, a number, true or false")]
    Structure(String),
    /// A program could read a value as an option.
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
    /// A program could read a value as an option, and the rule only names the command.
    #[error("{name} is \"{value}\", which a program could read as an option, and a command accepts none")]
    OptionOfCommand {
        /// The property or body field.
        name: String,
        /// Its value, shortened.
        value: String,
    },
    /// A value has a control character, such as a line break or NUL.
    #[error("{name} is \"{value}\", and control characters are not allowed")]
    ControlCharacter {
        /// The property or body field.
        name: String,
        /// Its value, shortened and escaped.
        value: String,
    },
    /// The values are too long for arguments of programs.
    #[error(
        "with the values of the message the arguments would have more than {} KiB: fill in less, or let the \
         program read the environment or the body", MAX_FILLED_BYTES / 1024
    )]
    TooMuch,
    /// The message has more properties than the environment of a program may have.
    #[error(
        "the message has {count} properties, but a program gets at most {MAX_VARIABLES}: send fewer, or use \
         the body"
    )]
    TooMany {
        /// How many the message has.
        count: usize,
    },
    /// A pin step cannot use a value.
    #[error("{setting} would be \"{value}\", but must be {needs}")]
    Unusable {
        /// `set`, `pulse`, `times` or `period`.
        setting: &'static str,
        /// The filled value, shortened.
        value: String,
        /// What it must be.
        needs: &'static str,
    },
    /// The deadline would cut off the pulses and blinks.
    #[error(
        "the pulses and blinks would take {}, but the rule's timeout is {}",
        humantime::format_duration(*needed), humantime::format_duration(*timeout)
    )]
    TooLong {
        /// The time for all of them together.
        needed: Duration,
        /// The rule's timeout.
        timeout: Duration,
    },
    /// A program would read a property as another one that the rule's conditions test.
    #[error(
        "the property \"{name}\" would set ${variable} for a program, but ${variable} is for \"{tested}\", \
         which the rule's conditions test"
    )]
    Lookalike {
        /// The property, shortened.
        name: String,
        /// The variable's name.
        variable: String,
        /// The property that a condition tests.
        tested: String,
    },
    /// An environment variable cannot hold a value.
    #[error("{0} contains a NUL, which a program cannot receive")]
    Nul(String),
}

impl PlanError {
    /// Changes the error for a command, because no condition can allow the value there.
    pub(super) fn of_command(self) -> Self {
        match self {
            Self::LooksLikeAnOption { name, value } => Self::OptionOfCommand { name, value },
            other => other,
        }
    }
}
