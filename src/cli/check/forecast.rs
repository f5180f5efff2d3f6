//! What would happen to a message, as far as that is known without running anything.
//!
//! Owns: the forecast, and steps in words. Must not know: how rules match, how steps are performed, where a message stands.

use std::time::Duration;

use humantime::format_duration;

use crate::agent;
use crate::config::{GpioSettings, Inspection, LineName};
use crate::message::C2dMessage;
use crate::rules::{Expectation, Foreseen, PinChange, Plan, PlannedStep, Rule, Rules};

/// Stands for the device id when the configuration has none.
const UNKNOWN_DEVICE: &str = "DEVICE";

/// What would happen to a message.
pub(super) struct Forecast<'r> {
    /// The rule that matches the message.
    pub(super) rule: Option<&'r Rule>,
    pub(super) outcome: Foreseen,
    /// The steps that would be run; absent when no step would begin.
    pub(super) plan: Option<Plan>,
    /// Why the action would not succeed; empty when no reason is known, and when no rule matches.
    pub(super) why: String,
}

impl<'r> Forecast<'r> {
    pub(super) fn of(rules: &'r Rules, inspection: &Inspection, message: &C2dMessage) -> Self {
        let nothing = |rule, outcome, why: String| -> Self { Self { rule, outcome, plan: None, why } };
        if let Err(why) = agent::check_payload(message) {
            return nothing(None, Foreseen::Undecodable, why);
        }
        let Some(rule) = rules.match_message(message) else {
            return nothing(None, Foreseen::Unmatched, String::new());
        };
        let identities = inspection.identities();
        let device = identities.as_ref().map_or(UNKNOWN_DEVICE, |identities| &identities.first().device_id);
        let plan = match rule.plan(message, device) {
            Ok(plan) => plan,
            Err(error) => return nothing(Some(rule), Foreseen::Refused, error.to_string()),
        };
        let mut limits = plan.steps.iter().filter_map(|step| Some((step, too_long(step, &inspection.gpio)?)));
        let why = limits.next().map(|(step, _)| describe_step(step, &inspection.gpio));
        let outcome = if why.is_some() { Foreseen::Failed } else { Foreseen::Begun };
        Self { rule: Some(rule), outcome, plan: Some(plan), why: why.unwrap_or_default() }
    }

    pub(super) fn steps(&self) -> &[PlannedStep] {
        self.plan.as_ref().map_or(&[], |plan| &plan.steps)
    }

    pub(super) fn meets(&self, expected: &Expectation) -> bool {
        expected.is_met(self.rule.map(Rule::name), self.outcome, self.steps())
    }
}

/// The `max_on` of a pin that a step would keep on for longer without a break: such a step fails.
fn too_long(step: &PlannedStep, gpio: &GpioSettings) -> Option<Duration> {
    let PlannedStep::Gpio { pin, change } = step else { return None };
    let on = match change {
        PinChange::Set(_) | PinChange::Toggle => return None,
        PinChange::Pulse(on) => *on,
        PinChange::Blink { period, .. } => *period / 2,
    };
    gpio.pins.get(pin)?.max_on.filter(|max_on| on > *max_on)
}

/// A step in words.
pub(super) fn describe_step(step: &PlannedStep, gpio: &GpioSettings) -> String {
    let (pin, change) = match step {
        PlannedStep::Gpio { pin, change } => (pin, change),
        PlannedStep::Run { argv } => return format!("run {argv:?}"),
        PlannedStep::Shell { text } => return format!("shell {text:?}"),
    };
    let line = match gpio.pins.get(pin).map(|settings| &settings.line) {
        Some(LineName::Number(number)) => format!(" (line {number})"),
        Some(LineName::Name(name)) => format!(" (line {name:?})"),
        None => String::new(),
    };
    let what = match change {
        PinChange::Set(state) => format!("set {state}"),
        PinChange::Toggle => "toggle".to_owned(),
        PinChange::Pulse(on) => format!("on for {}, then off", format_duration(*on)),
        PinChange::Blink { times, period } => {
            format!("blink with times = {times}, period = {}", format_duration(*period))
        }
    };
    let fails = too_long(step, gpio)
        .map_or(String::new(), |max_on| format!(", which fails: its max_on is {}", format_duration(max_on)));
    format!("pin {pin}{line}: {what}{fails}")
}
