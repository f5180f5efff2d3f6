//! Which rule came nearest to a message that none takes, and why it does not take it.
//!
//! Owns: what is nearest, and the sentence, which is bounded whatever the rules and the message hold. Must not know: where it is
//! shown.

use std::cmp::Reverse;
use std::fmt;

use crate::message::C2dMessage;

use super::values::Values;
use super::{Rule, Rules};

/// Conditions of the rule that are named, and characters of each sentence.
const MOST_REASONS: usize = 4;
const LONGEST_REASON: usize = 300;

/// The rule that came nearest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nearest<'r> {
    /// Its name.
    pub rule: &'r str,
    /// A sentence for each of its conditions that do not hold; of many the first ones.
    pub mismatches: Vec<String>,
}

impl Rules {
    /// The rule that came nearest to a message that no rule takes. A rule of which a condition holds goes before one of which none
    /// does; then the rule with the fewest conditions that fail, then the fewest whose value is missing, for another value is more
    /// likely a mistake; then the most that hold, then the first. `None` without rules.
    pub fn nearest(&self, message: &C2dMessage) -> Option<Nearest<'_>> {
        let values = Values::of(message, &self.fields);
        let distance = |rule: &&Rule| {
            let held = rule.conditions.iter().filter(|condition| condition.holds(&values)).count();
            let missing = rule.conditions.iter().filter(|condition| condition.misses(&values)).count();
            (held == 0, rule.conditions.len() - held, missing, Reverse(held))
        };
        let rule = self.rules.iter().min_by_key(distance)?;
        let mismatches = rule.conditions.iter().filter_map(|condition| condition.mismatch(&values));
        let mismatches = mismatches.take(MOST_REASONS).map(shortened).collect();
        Some(Nearest { rule: &rule.name, mismatches })
    }

    /// Why none takes a message that none takes, in one clause.
    pub fn why_none(&self, message: &C2dMessage) -> String {
        self.nearest(message).map_or_else(|| "there are no rules".to_owned(), |nearest| nearest.to_string())
    }
}

fn shortened(reason: String) -> String {
    match reason.char_indices().nth(LONGEST_REASON) {
        None => reason,
        Some(_) => reason.chars().take(LONGEST_REASON).chain(['…']).collect(),
    }
}

impl fmt::Display for Nearest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the nearest match is rule \"{}\", but {}", self.rule, self.mismatches.join("; "))
    }
}
