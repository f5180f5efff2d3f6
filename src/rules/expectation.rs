//! What a rule test expects of a message, and whether that would happen.
//!
//! Owns: the words for what is known of a message before anything runs, the comparison, the sentence for a missing
//! rule. Must not know: TOML, pins' limits, where a test is written.

use std::fmt;

use crate::message::{C2dMessage, excerpt};

use super::body::BodyFields;
use super::plan;
use super::plan::{PlanError, PlannedStep};
use super::step::Step;
use super::values::Values;
use super::{Rule, Rules};

/// Most rules that are named if one is missing.
const MOST_NAMED: usize = 10;

/// What is known of a message's outcome before anything runs. The words are those of outcomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Foreseen {
    /// The action begins. Its end is not known.
    Begun,
    /// The action begins, but one of its steps cannot succeed.
    Failed,
    /// A rule matches the message, but nothing is done, because a value of the message is not allowed.
    Refused,
    /// No rule matches the message.
    Unmatched,
    /// It is a call whose payload is not JSON, so no rule is tried.
    Undecodable,
}

impl Foreseen {
    /// The word in a configuration and in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Begun => "begun",
            Self::Failed => "failed",
            Self::Refused => "refused",
            Self::Unmatched => "unmatched",
            Self::Undecodable => "undecodable",
        }
    }
}

impl fmt::Display for Foreseen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a test expects of a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Expectation {
    /// The rule that should match. Absent: any rule, or none if the outcome says so.
    pub rule: Option<String>,
    /// The outcome, as far as it can be foreseen.
    pub outcome: Foreseen,
    /// All steps in their order. Absent: any steps.
    pub steps: Option<Vec<PlannedStep>>,
}

impl Expectation {
    /// Whether the expectation is met.
    pub fn is_met(&self, rule: Option<&str>, outcome: Foreseen, steps: &[PlannedStep]) -> bool {
        let is_rule = self.rule.is_none() || self.rule.as_deref() == rule;
        is_rule && self.outcome == outcome && self.steps.as_deref().is_none_or(|expected| expected == steps)
    }
}

/// Why steps cannot be expected.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum StepError {
    /// They use a value of a message.
    #[error(
        "a test expects values, but {{{0}}} is a placeholder: write the value itself; for a command write what it runs, as in \
         run = [ … ]"
    )]
    Placeholder(String),
    /// They cannot be done.
    #[error(transparent)]
    Plan(#[from] PlanError),
}

/// The planned form of steps that use no value of a message.
///
/// # Errors
/// When they use one.
pub(crate) fn literal_steps(steps: &[Step]) -> Result<Vec<PlannedStep>, StepError> {
    if let Some(subject) = steps.iter().flat_map(Step::subjects).next() {
        return Err(StepError::Placeholder(excerpt(&subject.to_string())));
    }
    let (nothing, fields) = (C2dMessage::default(), BodyFields::default());
    let values = Values::of(&nothing, &fields);
    let mut room = plan::MAX_FILLED_BYTES;
    Ok(steps.iter().map(|step| step.plan(&values, &[], &mut room)).collect::<Result<_, _>>()?)
}

impl Rules {
    /// The sentence for a missing rule of this name.
    pub(crate) fn lacks(&self, name: &str) -> String {
        let near = |rule: &&Rule| strsim::jaro_winkler(rule.name(), name);
        let nearest = self.iter().max_by(|a, b| near(a).total_cmp(&near(b)));
        let hint = match nearest.filter(|rule| near(rule) > 0.8) {
            Some(rule) => format!("; did you mean \"{}\"?", excerpt(rule.name())),
            None if self.is_empty() => ": the configuration has no rules".to_owned(),
            None => {
                let names = self.iter().take(MOST_NAMED).map(|rule| format!("\"{}\"", excerpt(rule.name())));
                let more = if self.len() > MOST_NAMED { ", …" } else { "" };
                format!(" (the rules are {}{more})", names.collect::<Vec<_>>().join(", "))
            }
        };
        format!("there is no rule \"{}\"{hint}", excerpt(name))
    }
}
