//! How a rule's messages are treated around its action: when and how they are settled, tried again, held back,
//! reported.
//!
//! Owns: the shapes and their defaults. Must not know: TOML, how any of this is done.

use std::time::Duration;

use super::plan::{PinChange, Plan, PlannedStep};

/// How long all rules of the twin together may delay a message for a rule of the owner's.
pub(crate) const TWIN_WAIT: Duration = Duration::from_secs(50);

/// All settings of a rule except its conditions and steps.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// When a message is completed at the hub.
    pub settle: Settle,
    /// How to settle a message whose action did not succeed. None: see [`Policy::on_failure`].
    pub on_failure: Option<OnFailure>,
    /// What happens to a message whose action was interrupted by a crash. None: see [`Policy::on_crash`].
    pub on_crash: Option<OnCrash>,
    /// How often the action is tried; at least 1.
    pub attempts: u32,
    /// How long to wait before the second attempt. It doubles for each further one.
    pub backoff: Duration,
    /// The lanes in which the rule's actions wait; at least one. Two rules that share a lane never run at once.
    pub lanes: Vec<String>,
    /// The shortest time from the start of one action to the start of the next. A message that comes earlier is
    /// refused.
    pub min_interval: Option<Duration>,
    /// How many actions may begin within a time. Further messages are refused.
    pub rate: Option<Rate>,
    /// Where outcomes are reported.
    pub reports: ReportTo,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            settle: Settle::AfterAction,
            on_failure: None,
            on_crash: None,
            attempts: 1,
            backoff: Duration::from_secs(1),
            lanes: Vec::new(),
            min_interval: None,
            rate: None,
            reports: ReportTo::default(),
        }
    }
}

impl Policy {
    /// How to settle a message whose action did not succeed. By default it is rejected, so that its sender is not
    /// told of a success.
    pub fn on_failure(&self) -> OnFailure {
        self.on_failure.unwrap_or(OnFailure::Reject)
    }

    /// What happens to a message whose action was interrupted by a crash. By default, a plan that only sets pins on
    /// or off runs again, because that changes nothing. Any other plan is given up.
    pub fn on_crash(&self, plan: &Plan) -> OnCrash {
        let harmless =
            |step: &PlannedStep| matches!(step, PlannedStep::Gpio { change: PinChange::Set(_), .. });
        match self.on_crash {
            Some(on_crash) => on_crash,
            None if plan.steps.iter().all(harmless) => OnCrash::Retry,
            None => OnCrash::GiveUp,
        }
    }

    /// Whether a message may be refused because of the times of other messages.
    pub fn is_guarded(&self) -> bool {
        self.min_interval.is_some() || self.rate.is_some()
    }

    /// How long all attempts and the pauses between them may take, if each attempt takes `timeout`.
    pub(crate) fn longest(&self, timeout: Duration) -> Duration {
        timeout.saturating_mul(self.attempts).saturating_add(self.pauses())
    }

    /// How long all pauses between the attempts take together.
    pub(crate) fn pauses(&self) -> Duration {
        (1..self.attempts).fold(Duration::ZERO, |sum, n| sum.saturating_add(self.backoff_after(n)))
    }

    /// How long to wait after attempt number `attempt` (from 1) failed.
    pub fn backoff_after(&self, attempt: u32) -> Duration {
        const LONGEST: Duration = Duration::from_secs(3600);
        self.backoff
            .saturating_mul(1u32.checked_shl(attempt.saturating_sub(1)).unwrap_or(u32::MAX))
            .min(LONGEST)
    }
}

/// When a message is completed at the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Settle {
    /// When its action has ended.
    AfterAction,
    /// When it is recorded in the inbox. It then runs from there.
    OnAccept,
}

/// How to settle the message of an action that did not succeed, if the transport can do more than complete it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// Reject it: the hub tells its sender, if the sender asked for that.
    Reject,
    /// Abandon it: the hub sends it again, up to its limit of deliveries, and each time it runs again.
    Abandon,
    /// Complete it, as if it had succeeded.
    Complete,
}

/// How to settle a message that no rule matches, if the transport can do more than complete it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Unmatched {
    /// Complete it.
    #[default]
    Complete,
    /// Reject it.
    Reject,
}

/// What happens to a message whose action was interrupted by a crash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnCrash {
    /// It runs again.
    Retry,
    /// It becomes a dead letter, interrupted.
    GiveUp,
}

/// At most `count` starts within `per`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// How many; from 1 to 1,000.
    pub count: u32,
    /// The time; at most an hour.
    pub per: Duration,
}

/// Where outcomes are reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ReportTo {
    /// As a D2C message.
    pub telemetry: bool,
    /// In the twin's reported properties.
    pub twin: bool,
}
