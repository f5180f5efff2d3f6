//! Rules: which message selects which action.
//!
//! Owns: rules, their conditions, and the plan: what a rule would do with a message. Must not know: files, TOML,
//! processes, pins' hardware, clocks.

use std::time::Duration;

use crate::message::C2dMessage;

mod body;
mod condition;
mod doors;
mod environment;
mod expectation;
mod glob;
mod index;
mod nearest;
mod plan;
mod policy;
mod step;
mod subject;
mod template;
mod values;

use body::BodyFields;
pub(crate) use condition::{Choices, Condition, Test};
pub use doors::Door;
pub(crate) use environment::variable_name;
pub(crate) use expectation::literal_steps;
pub use expectation::{Expectation, Foreseen};
pub(crate) use glob::Glob;
use index::RuleIndex;
pub use nearest::Nearest;
pub use plan::{PinChange, PinState, Plan, PlanError, PlannedStep};
pub(crate) use policy::TWIN_WAIT;
pub use policy::{OnCrash, OnFailure, Policy, Rate, ReportTo, Settle, Unmatched};
pub(crate) use step::{GpioStep, Setting, Step, read_period, read_pulse, read_set, read_times};
pub(crate) use subject::Subject;
pub(crate) use template::Template;
use values::Values;

/// The rules of a configuration, in its order.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Rules {
    rules: Vec<Rule>,
    index: RuleIndex,
    /// The body fields that conditions look at.
    fields: BodyFields,
}

impl Rules {
    pub(crate) fn new(rules: Vec<Rule>) -> Self {
        let conditions = rules.iter().flat_map(|rule| &rule.conditions);
        let fields = BodyFields::of(conditions.map(|condition| &condition.subject));
        Self { index: RuleIndex::of(&rules), rules, fields }
    }

    /// The first rule whose conditions all hold. `None` if no rule matches the message.
    ///
    /// A JSON body is parsed at most once, and not at all if no rule is found by a body field and no condition of a
    /// rule that was found comes to one.
    pub fn match_message(&self, message: &C2dMessage) -> Option<&Rule> {
        let values = Values::of(message, &self.fields);
        let candidates = self.index.candidates(&self.rules, &values).into_iter();
        let mut rules = candidates.filter_map(|position| self.rules.get(position as usize));
        rules.find(|rule| rule.matches(&values))
    }

    /// The rules before the first one that matches the message, in the configuration's order. Each has one sentence
    /// for each condition that does not hold. If no rule matches, these are all rules.
    pub fn mismatches(&self, message: &C2dMessage) -> Vec<(&Rule, Vec<String>)> {
        let values = Values::of(message, &self.fields);
        let why = |rule: &Rule| -> Vec<String> {
            rule.conditions.iter().filter_map(|condition| condition.mismatch(&values)).collect()
        };
        let each = self.rules.iter().map(|rule| (rule, why(rule)));
        each.take_while(|(_, why)| !why.is_empty()).collect()
    }

    /// The rule with this name.
    pub fn get(&self, name: &str) -> Option<&Rule> {
        self.rules.iter().find(|rule| rule.name == name)
    }

    /// The rules in the configuration's order.
    pub fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter()
    }

    /// How many rules there are.
    pub fn len(&self) -> usize {
        self.rules.len()
    }

    /// Whether there are no rules.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }
}

/// One rule: its conditions and what it does.
#[derive(Debug, Clone, PartialEq)]
pub struct Rule {
    name: String,
    conditions: Vec<Condition>,
    steps: Vec<Step>,
    timeout: Duration,
    policy: Policy,
    /// The body fields that its steps use.
    fields: BodyFields,
}

impl Rule {
    pub(crate) fn new(
        name: String,
        mut conditions: Vec<Condition>,
        mut steps: Vec<Step>,
        timeout: Duration,
        mut policy: Policy,
    ) -> Self {
        // A list that grew has room for three more, and there may be thousands of rules.
        conditions.shrink_to_fit();
        steps.shrink_to_fit();
        policy.lanes.shrink_to_fit();
        let fields = BodyFields::of(steps.iter().flat_map(Step::subjects));
        Self { name, conditions, steps, timeout, policy, fields }
    }

    fn matches(&self, values: &Values<'_>) -> bool {
        self.conditions.iter().all(|condition| condition.holds(values))
    }

    /// How its messages are treated around the action.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Whether one of its steps starts a program.
    pub fn has_child(&self) -> bool {
        self.steps.iter().any(|step| !matches!(step, Step::Gpio { .. }))
    }

    /// The programs that its steps run, without the shells of `shell` steps.
    pub fn programs(&self) -> impl Iterator<Item = &str> {
        self.steps.iter().filter_map(Step::program)
    }

    /// Whether one of its steps names a command of `[allow.commands]`.
    pub fn has_command(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Run { is_command: true, .. }))
    }

    /// Whether one of its steps needs a shell.
    pub fn has_shell(&self) -> bool {
        self.steps.iter().any(|step| matches!(step, Step::Shell { .. }))
    }

    /// The rule's name, unique in its configuration.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What the rule does with this message: every value is filled in and checked, but nothing is done yet.
    ///
    /// # Errors
    /// [`PlanError`] if the message lacks a value or has one that must not be used. Its text is the outcome's
    /// sentence.
    pub fn plan(&self, message: &C2dMessage, device_id: &str) -> Result<Plan, PlanError> {
        let values = Values::of(message, &self.fields);
        let mut room = plan::MAX_FILLED_BYTES;
        let each = self.steps.iter().map(|step| step.plan(&values, &self.conditions, &mut room));
        let steps: Vec<PlannedStep> = each.collect::<Result<_, _>>()?;
        let on_pins = steps.iter().fold(Duration::ZERO, |total, step| total.saturating_add(step.pin_time()));
        if on_pins >= self.timeout {
            return Err(PlanError::TooLong { needed: on_pins, timeout: self.timeout });
        }
        let has_child = steps.iter().any(|step| !matches!(step, PlannedStep::Gpio { .. }));
        let tested: Vec<&str> = self.conditions.iter().filter_map(|one| one.subject.application()).collect();
        let environment =
            if has_child { environment::of(message, &self.name, device_id, &tested)? } else { Vec::new() };
        Ok(Plan { rule: self.name.clone(), steps, environment, timeout: self.timeout })
    }

    /// The doors through which a message can come that the rule matches. None if its conditions exclude each other.
    pub fn doors(&self) -> impl Iterator<Item = Door> {
        let opens = |door: &Door| self.conditions.iter().all(|condition| condition.doors().contains(door));
        Door::ALL.into_iter().filter(opens)
    }

    /// How long its action may take, with all attempts and the pauses between them.
    pub(crate) fn longest(&self) -> Duration {
        self.policy.longest(self.timeout)
    }

    /// How many arguments and values its steps make from a message.
    pub(crate) fn pieces(&self) -> usize {
        self.steps.iter().map(Step::pieces).sum()
    }

    /// How many steps it has.
    pub(crate) fn steps(&self) -> usize {
        self.steps.len()
    }

    /// The steps that leave a pin in another state if they are done twice: the step's index, the pin, and what is
    /// done with it.
    pub(crate) fn moves(&self) -> Vec<(usize, &str, &'static str)> {
        let each = self.steps.iter().enumerate();
        each.filter_map(|(index, step)| Some((index, step.pin()?, step.moves(&self.conditions)?))).collect()
    }

    /// Each pin that a pulse or a blink turns on for a while, and the longest time without a break, as far as the
    /// configuration alone shows.
    pub(crate) fn longest_on(&self) -> impl Iterator<Item = (&str, Duration)> {
        self.steps.iter().filter_map(|step| Some((step.pin()?, step.longest_on(&self.conditions)?)))
    }

    /// How long the pulses and blinks take at most, as far as the configuration alone shows.
    pub(crate) fn longest_pin_time(&self) -> Duration {
        let each = self.steps.iter().map(|step| step.longest_pin_time(&self.conditions));
        each.fold(Duration::ZERO, |total, one| total.saturating_add(one))
    }

    /// Its conditions, in the configuration's order.
    pub(crate) fn conditions(&self) -> &[Condition] {
        &self.conditions
    }

    /// The values that templates use, but that no condition guarantees.
    pub(crate) fn unguaranteed(&self) -> Vec<&Subject> {
        let needed = self.steps.iter().flat_map(Step::needed);
        let sure = |subject: &Subject| self.conditions.iter().any(|condition| condition.guarantees(subject));
        needed.filter(|subject| !sure(subject)).fold(Vec::new(), |mut subjects, subject| {
            if !subjects.contains(&subject) {
                subjects.push(subject);
            }
            subjects
        })
    }

    /// Whether this rule matches every message that `later` matches, because all its conditions are conditions of
    /// `later`.
    pub(crate) fn hides(&self, later: &Self) -> bool {
        self.conditions.iter().all(|condition| later.conditions.contains(condition))
    }
}

#[cfg(test)]
mod tests;
