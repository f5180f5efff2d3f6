//! Actions: carry out a plan's steps on this machine.
//!
//! Owns: pins and child processes, their deadlines, the outcome in words. Must not know: messages, rules' conditions,
//! sessions. It cannot settle a message.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

mod children;
mod exec;
mod gpio;
mod group;
mod limit;
mod notes;
#[cfg(test)]
mod tests;

use crate::config::GpioSettings;
use crate::rules::{PinState, Plan, PlannedStep};
use exec::{Captured, ExecError, Program};
use gpio::{ChangeError, Pins};
use limit::{Cut, Limit};

pub(crate) use children::{Children, take_over};
pub use gpio::{CONSUMER, GpioError, LineUse, Survey, survey};

/// What plans act on: the claimed pins, and the way to start programs.
///
/// If it is dropped without [`Actions::close`], every pin still goes into its `on_exit` state. For a panic, see
/// [`leave_pins_in_panic`].
pub struct Actions {
    pins: Pins,
    /// Notes which programs run, if the caller has given some.
    children: OnceLock<Children>,
}

/// The result of one plan. Its `Display` is one line for people and logs:
/// `failed: step 2 of 3 (run /usr/bin/backup): exit code 3`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// How it ended.
    pub result: OutcomeResult,
    /// The step that ended the plan early, such as `step 2 of 3 (run /usr/bin/backup)`. None if it succeeded.
    pub step: Option<String>,
    /// The exit code of the last program. None if no program ran, or a signal ended it.
    pub exit_code: Option<i32>,
    /// From the first step's start to the last step's end.
    pub duration: Duration,
    /// The first 4 KiB of what the programs wrote to standard output and standard error, in the order written.
    pub output: Vec<u8>,
    /// The last KiB of the output, if the programs wrote more than that. A program that fails often says why at its
    /// end.
    pub output_end: Vec<u8>,
    /// How many bytes the programs wrote in all, kept or not.
    pub output_bytes: u64,
}

/// How a plan ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OutcomeResult {
    /// Every step was done.
    Succeeded,
    /// A step failed. The sentence names the step and the reason.
    Failed(String),
    /// The plan reached its timeout. Its program was ended, its pin turned off.
    TimedOut,
    /// The agent was stopping. Its program was ended, its pin turned off.
    Interrupted,
}

/// Why actions cannot be opened, or not be closed properly.
#[derive(Debug, thiserror::Error)]
pub enum ActionError {
    /// The pins cannot be claimed, or not all of them were left as `on_exit` says.
    #[error(transparent)]
    Gpio(#[from] GpioError),
}

impl Actions {
    /// Claims every configured pin and puts it into its `initial` state. `been_on` says how long pins were on before
    /// this process began, as [`Actions::pins_on`] reported it. If `initial` leaves such a pin on, its `max_on`
    /// counts from that earlier time.
    ///
    /// # Errors
    ///
    /// The backend is not available, or a pin cannot be claimed. Then nothing is claimed.
    pub fn open(settings: &GpioSettings, been_on: &BTreeMap<String, Duration>) -> Result<Self, ActionError> {
        Ok(Self { pins: Pins::open(settings, been_on)?, children: OnceLock::new() })
    }

    /// Notes from now on which programs run, so that the next agent can end what this one leaves running if it is
    /// killed.
    pub(crate) fn note_children(&self, children: Children) {
        // The notes never change while the agent runs, so there is nothing to do if they are given twice.
        self.children.get_or_init(|| children);
    }

    /// Applies other settings for the pins. A pin that stays keeps its state and its time on. A new pin begins in its
    /// `initial` state. A removed pin goes into its `on_exit` state and is released.
    ///
    /// # Errors
    ///
    /// All objections, one sentence each: a pin cannot be claimed, or a claimed pin cannot change in this way. Then
    /// nothing has changed.
    pub fn change_settings(&self, settings: &GpioSettings) -> Result<(), Vec<GpioError>> {
        self.pins.change_settings(settings)
    }

    /// The hub is away from now on: pins with `on_disconnect` go into that state when their time comes.
    pub fn hub_lost(&self) {
        self.pins.hub_lost();
    }

    /// The hub is back.
    pub fn hub_back(&self) {
        self.pins.hub_back();
    }

    /// The agent is running. It must report this again by [`Actions::next_sign`]. If it does not, its hub counts as
    /// away since the last report, because a blocked agent cannot notice that it is blocked.
    pub fn alive(&self) {
        self.pins.alive();
    }

    /// When [`Actions::alive`] must be called again. None if nothing depends on it.
    pub fn next_sign(&self) -> Option<Instant> {
        self.pins.next_sign()
    }

    /// Waits until a pin with `max_on` was switched. Cancel safe. May return once too often.
    pub async fn switched(&self) {
        self.pins.switched().await;
    }

    /// Waits until any pin may have changed its state. Cancel safe. May return once too often.
    pub async fn moved(&self) {
        self.pins.moved().await;
    }

    /// How long each pin with `max_on` that is on has been on.
    pub fn pins_on(&self) -> BTreeMap<String, Duration> {
        self.pins.pins_on()
    }

    /// The values of [`Actions::pins_on`] after [`Actions::close`]: what the next [`Actions::open`] needs.
    pub fn pins_on_after_exit(&self) -> BTreeMap<String, Duration> {
        self.pins.pins_on_after_exit()
    }

    /// The state of every pin, by name.
    pub fn pin_states(&self) -> BTreeMap<String, PinState> {
        self.pins.states()
    }

    /// Carries out the steps in order. The first step that fails, or that the deadline or `stop` cuts off, ends the
    /// plan. Each program gets `body` on its standard input.
    ///
    /// # Cancel safety
    ///
    /// If the future is dropped, the running program's process group is killed and a pulsing or blinking pin is
    /// turned off, but the outcome is lost. Cancel `stop` instead.
    pub async fn perform(&self, plan: &Plan, body: Bytes, stop: &CancellationToken) -> Outcome {
        let started = Instant::now();
        let limit = Limit::new(plan.timeout, stop);
        let mut output = Captured::default();
        let mut exit_code = None;
        let mut ended = (OutcomeResult::Succeeded, None);
        for (index, step) in plan.steps.iter().enumerate() {
            let done = match step {
                PlannedStep::Gpio { pin, change } => {
                    self.pins.change(pin, *change, &limit).await.map_err(StepEnd::from)
                }
                PlannedStep::Run { argv } => {
                    self.run(argv, plan, &body, &limit, &mut output, &mut exit_code).await
                }
                PlannedStep::Shell { text } => {
                    let argv = ["/bin/sh".to_owned(), "-c".to_owned(), text.clone()];
                    self.run(&argv, plan, &body, &limit, &mut output, &mut exit_code).await
                }
            };
            if let Err(end) = done {
                let name = step_name(index, plan.steps.len(), step);
                ended = (end.into_result(&name), Some(name));
                break;
            }
        }
        let (result, step) = ended;
        let (output, output_end, output_bytes) = output.into_parts();
        Outcome { result, step, exit_code, duration: started.elapsed(), output, output_end, output_bytes }
    }

    /// Runs one program. Any end except exit code 0 is a failure.
    async fn run(
        &self,
        argv: &[String],
        plan: &Plan,
        body: &[u8],
        limit: &Limit<'_>,
        output: &mut Captured,
        exit_code: &mut Option<i32>,
    ) -> Result<(), StepEnd> {
        *exit_code = None;
        let program = Program { argv, environment: &plan.environment, body, owner: &plan.rule };
        let status = exec::run(&program, limit, self.children.get(), output).await?;
        *exit_code = status.code();
        if status.success() { Ok(()) } else { Err(StepEnd::Failed(exec::describe(status))) }
    }

    /// Puts every pin into its `on_exit` state and releases it. If one pin fails, the others are still done.
    ///
    /// # Errors
    ///
    /// One sentence that names each pin that could not be changed.
    pub async fn close(self) -> Result<(), ActionError> {
        Ok(self.pins.close().await?)
    }
}

/// For the hook of a panic: puts the pins of this process into their `on_exit` state, although the thread that panics may
/// hold any lock. No pin changes any more after that. A pin that fails is logged. Takes at most half a second, also if a
/// pin hangs. If driving a pin panics once more, the hook calls this again, and it goes on with the other pins.
pub fn leave_pins_in_panic() {
    gpio::leave_in_panic();
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let step = self.step.as_deref().unwrap_or("the action");
        match &self.result {
            OutcomeResult::Succeeded => f.write_str("succeeded"),
            OutcomeResult::Failed(sentence) => write!(f, "failed: {sentence}"),
            OutcomeResult::TimedOut => {
                let after =
                    Duration::from_millis(u64::try_from(self.duration.as_millis()).unwrap_or(u64::MAX));
                write!(f, "timed out: {step} was stopped after {}", humantime::format_duration(after))
            }
            OutcomeResult::Interrupted => {
                write!(f, "interrupted: {step} was stopped because the agent is stopping")
            }
        }
    }
}

/// Why a step was the last one.
enum StepEnd {
    Failed(String),
    Cut(Cut),
}

impl StepEnd {
    fn into_result(self, step: &str) -> OutcomeResult {
        match self {
            Self::Failed(reason) => OutcomeResult::Failed(format!("{step}: {reason}")),
            Self::Cut(Cut::TimedOut) => OutcomeResult::TimedOut,
            Self::Cut(Cut::Interrupted) => OutcomeResult::Interrupted,
        }
    }
}

impl From<ChangeError> for StepEnd {
    fn from(error: ChangeError) -> Self {
        match error {
            ChangeError::Cut(cut) => Self::Cut(cut),
            ChangeError::Gpio(error) => Self::Failed(error.to_string()),
        }
    }
}

impl From<ExecError> for StepEnd {
    fn from(error: ExecError) -> Self {
        match error {
            ExecError::Cut(cut) => Self::Cut(cut),
            error => Self::Failed(error.to_string()),
        }
    }
}

/// `run /usr/bin/backup`; in a plan of several steps, `step 2 of 3 (run /usr/bin/backup)`.
fn step_name(index: usize, total: usize, step: &PlannedStep) -> String {
    let what = match step {
        PlannedStep::Gpio { pin, .. } => format!("gpio {pin}"),
        PlannedStep::Run { argv } => format!("run {}", argv.first().map_or("", String::as_str)),
        PlannedStep::Shell { .. } => "shell".to_owned(),
    };
    if total == 1 { what } else { format!("step {} of {total} ({what})", index + 1) }
}
