//! How the present rules treat a dead letter: the rule that matches it, or the nearest rule and why it does not match.
//!
//! Owns: the rules as the configuration has them now, and both shapes of the answer. Must not know: where records come
//! from.

use std::path::Path;

use serde::Serialize;

use crate::config::{self, Remote};
use crate::inbox::Record;
use crate::message::C2dMessage;
use crate::outcome::OutcomeKind;
use crate::rules::Rules;

/// The object `rulesNow` of `inbox show --json`: stable for scripts; fields are added, never renamed.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct RulesNow {
    /// The rule that matches the message.
    #[serde(skip_serializing_if = "Option::is_none")]
    taken_by: Option<String>,
    /// If no rule matches, the nearest one.
    #[serde(skip_serializing_if = "Option::is_none")]
    nearest: Option<String>,
    /// Why the nearest rule does not match.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mismatches: Vec<String>,
    /// The nearest rule and why it does not match, in a sentence.
    #[serde(skip)]
    why_none: String,
}

/// The rules of the configuration and of the twin; `None` if they have problems.
pub(super) fn rules(config: &Path) -> Option<Rules> {
    let (inspection, _twin) = config::inspect_with(config, Remote::Shown, &|name| std::env::var(name).ok());
    inspection.rules
}

impl RulesNow {
    /// `None` if the message still matches the rule that it matched when it came.
    pub(super) fn of(record: &Record, message: &C2dMessage, rules: &Rules) -> Option<Self> {
        let mut now = Self::default();
        match rules.match_message(message) {
            Some(rule) => now.taken_by = Some(rule.name().to_owned()),
            None => {
                now.why_none = rules.why_none(message);
                if let Some(found) = rules.nearest(message) {
                    (now.nearest, now.mismatches) = (Some(found.rule.to_owned()), found.mismatches);
                }
            }
        }
        let is_new = now.taken_by.is_none() || now.taken_by != record.rule || was_unmatched(record);
        is_new.then_some(now)
    }

    /// The answer in a sentence.
    pub(super) fn sentence(&self) -> String {
        match &self.taken_by {
            Some(rule) => format!("rule \"{rule}\" matches it: `inbox retry` runs it"),
            None => format!("no rule matches it: {}", self.why_none),
        }
    }
}

/// Whether no rule matched the message when it came.
pub(super) fn was_unmatched(record: &Record) -> bool {
    record.outcome.as_ref().is_some_and(|outcome| outcome.outcome == OutcomeKind::Unmatched)
}
