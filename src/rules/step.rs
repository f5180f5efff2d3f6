//! Steps: what a rule does, before the values of a message are filled in.
//!
//! Owns: the kinds of steps, and which values a pin step accepts. Must not know: TOML, how a step is done.

use std::time::Duration;

use crate::message::excerpt;

use super::condition::{Condition, Test};
use super::plan::{PinChange, PinState, PlanError, PlannedStep};
use super::subject::Subject;
use super::template::Template;
use super::values::Values;

/// Most repetitions of one blink.
const MAX_TIMES: u32 = 1000;
/// Shortest period of a blink, because a relay cannot follow faster.
const MIN_PERIOD: Duration = Duration::from_millis(20);
/// Shortest pulse.
const MIN_PULSE: Duration = Duration::from_millis(1);

/// One step of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    /// Change a pin.
    Gpio { pin: String, change: GpioStep },
    /// Run a program. Its path is literal, but the arguments may use values. `is_command`: the rule only names a
    /// command, and its author may not be the owner. So a condition of the rule cannot allow a value that begins with
    /// `-`.
    Run { program: String, arguments: Vec<Template>, is_command: bool },
    /// Run the configuration's own text with `/bin/sh -c`.
    Shell { text: String },
}

/// What a step does with its pin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GpioStep {
    /// On, off or toggle.
    Set(Setting<PinChange>),
    /// On for this long, then off.
    Pulse(Setting<Duration>),
    /// On and off again.
    Blink { times: Setting<u32>, period: Setting<Duration> },
}

/// A value from the configuration, or from a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Setting<T> {
    Fixed(T),
    Filled(Template),
}

/// Reads `set`. The error says what is required.
pub(crate) fn read_set(text: &str) -> Result<PinChange, &'static str> {
    match text {
        "on" => Ok(PinChange::Set(PinState::On)),
        "off" => Ok(PinChange::Set(PinState::Off)),
        "toggle" => Ok(PinChange::Toggle),
        _ => Err("on, off or toggle"),
    }
}

/// Reads `pulse`. The error says what is required.
pub(crate) fn read_pulse(text: &str) -> Result<Duration, &'static str> {
    let long_enough = |duration: &Duration| *duration >= MIN_PULSE;
    humantime::parse_duration(text)
        .ok()
        .filter(long_enough)
        .ok_or("a duration of 1ms or more, such as 500ms or 2s")
}

/// Reads `times` of a blink. The error says what is required.
pub(crate) fn read_times(text: &str) -> Result<u32, &'static str> {
    let allowed = |times: &u32| (1..=MAX_TIMES).contains(times);
    text.parse().ok().filter(allowed).ok_or("a whole number from 1 to 1000")
}

/// Reads `period` of a blink. The error says what is required.
pub(crate) fn read_period(text: &str) -> Result<Duration, &'static str> {
    let long_enough = |duration: &Duration| *duration >= MIN_PERIOD;
    humantime::parse_duration(text)
        .ok()
        .filter(long_enough)
        .ok_or("a duration of 20ms or more, such as 400ms")
}

impl Step {
    pub(super) fn plan(
        &self,
        values: &Values<'_>,
        conditions: &[Condition],
        room: &mut usize,
    ) -> Result<PlannedStep, PlanError> {
        Ok(match self {
            Self::Shell { text } => PlannedStep::Shell { text: text.clone() },
            Self::Run { program, arguments, is_command } => {
                let mut argv = Vec::with_capacity(1 + arguments.len());
                argv.push(program.clone());
                for argument in arguments {
                    let filled = match is_command {
                        false => argument.fill(values, conditions)?,
                        true => argument.fill(values, &[]).map_err(PlanError::of_command)?,
                    };
                    *room = room.checked_sub(filled.len()).ok_or(PlanError::TooMuch)?;
                    argv.push(filled);
                }
                PlannedStep::Run { argv }
            }
            Self::Gpio { pin, change } => {
                let change = match change {
                    GpioStep::Set(set) => set.plan("set", read_set, values, conditions)?,
                    GpioStep::Pulse(pulse) => {
                        PinChange::Pulse(pulse.plan("pulse", read_pulse, values, conditions)?)
                    }
                    GpioStep::Blink { times, period } => PinChange::Blink {
                        times: times.plan("times", read_times, values, conditions)?,
                        period: period.plan("period", read_period, values, conditions)?,
                    },
                };
                PlannedStep::Gpio { pin: pin.clone(), change }
            }
        })
    }

    /// The values that the step's templates use and that have no default.
    pub(super) fn needed(&self) -> impl Iterator<Item = &Subject> {
        self.templates().into_iter().flat_map(Template::needed)
    }

    /// The values that the step's templates use, each as often as it is used.
    pub(super) fn subjects(&self) -> impl Iterator<Item = &Subject> {
        self.templates().into_iter().flat_map(Template::subjects)
    }

    /// How many arguments and values the step makes from a message.
    pub(super) fn pieces(&self) -> usize {
        self.templates().into_iter().map(|template| template.subjects().count().max(1)).sum()
    }

    fn templates(&self) -> Vec<&Template> {
        match self {
            Self::Shell { .. } => Vec::new(),
            Self::Run { arguments, .. } => arguments.iter().collect(),
            Self::Gpio { change, .. } => match change {
                GpioStep::Set(set) => set.template().into_iter().collect(),
                GpioStep::Pulse(pulse) => pulse.template().into_iter().collect(),
                GpioStep::Blink { times, period } => {
                    times.template().into_iter().chain(period.template()).collect()
                }
            },
        }
    }

    /// The program that the step runs. None if it runs `/bin/sh` for a text.
    pub(crate) fn program(&self) -> Option<&str> {
        match self {
            Self::Run { program, .. } => Some(program),
            Self::Gpio { .. } | Self::Shell { .. } => None,
        }
    }

    /// The pin that the step changes.
    pub(crate) fn pin(&self) -> Option<&str> {
        match self {
            Self::Gpio { pin, .. } => Some(pin),
            Self::Run { .. } | Self::Shell { .. } => None,
        }
    }

    /// What the step does with its pin, if doing it twice differs from doing it once.
    pub(super) fn moves(&self, conditions: &[Condition]) -> Option<&'static str> {
        let Self::Gpio { change, .. } = self else { return None };
        match change {
            GpioStep::Set(Setting::Fixed(PinChange::Toggle)) => Some("toggle"),
            GpioStep::Set(Setting::Fixed(_)) => None,
            GpioStep::Set(Setting::Filled(template)) => {
                template.may_be("toggle", conditions).then_some("toggle")
            }
            GpioStep::Pulse(_) => Some("pulse"),
            GpioStep::Blink { .. } => Some("blink"),
        }
    }

    /// How long a pulse or a blink turns its pin on without a break, as far as the configuration alone shows.
    pub(super) fn longest_on(&self, conditions: &[Condition]) -> Option<Duration> {
        let Self::Gpio { change, .. } = self else { return None };
        match change {
            GpioStep::Set(_) => None,
            GpioStep::Pulse(pulse) => pulse.largest(read_pulse, conditions),
            GpioStep::Blink { period, .. } => Some(period.largest(read_period, conditions)? / 2),
        }
    }

    /// How long the step uses its pin at most, as far as the configuration alone shows. Zero if it does not.
    pub(super) fn longest_pin_time(&self, conditions: &[Condition]) -> Duration {
        let Self::Gpio { change, .. } = self else { return Duration::ZERO };
        match change {
            GpioStep::Set(_) => Duration::ZERO,
            GpioStep::Pulse(pulse) => pulse.largest(read_pulse, conditions).unwrap_or_default(),
            GpioStep::Blink { times, period } => {
                let times = times.largest(read_times, conditions).unwrap_or(1);
                period.largest(read_period, conditions).unwrap_or(MIN_PERIOD).saturating_mul(times)
            }
        }
    }
}

impl<T: Copy + Ord> Setting<T> {
    fn template(&self) -> Option<&Template> {
        match self {
            Self::Fixed(_) => None,
            Self::Filled(template) => Some(template),
        }
    }

    fn plan(
        &self,
        setting: &'static str,
        read: fn(&str) -> Result<T, &'static str>,
        values: &Values<'_>,
        conditions: &[Condition],
    ) -> Result<T, PlanError> {
        match self {
            Self::Fixed(value) => Ok(*value),
            Self::Filled(template) => {
                let text = template.fill(values, conditions)?;
                read(&text).map_err(|needs| PlanError::Unusable { setting, value: excerpt(&text), needs })
            }
        }
    }

    /// The largest value that the conditions allow, if they limit it.
    fn largest(&self, read: fn(&str) -> Result<T, &'static str>, conditions: &[Condition]) -> Option<T> {
        let subject = match self {
            Self::Fixed(value) => return Some(*value),
            Self::Filled(template) => template.single()?,
        };
        let own = conditions.iter().filter(|condition| condition.subject == *subject);
        own.filter_map(|condition| match &condition.test {
            Test::Equals(text) => read(text).ok(),
            Test::OneOf(texts) => texts.iter().filter_map(|text| read(text).ok()).max(),
            Test::Range { max, .. } => read(&max.floor().to_string()).ok(),
            _ => None,
        })
        .min()
    }
}
