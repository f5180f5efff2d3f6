//! The rule that came nearest to a message that no rule matches, and why it does not match.
//!
//! Owns: what counts as nearest, and the sentence, which always has a limited length. Must not know: where it is
//! shown.

use std::cmp::Reverse;
use std::fmt;

use crate::message::C2dMessage;

use super::values::Values;
use super::{Rule, Rules};

/// Most conditions of the rule that are named, and most characters of each sentence.
const MOST_REASONS: usize = 4;
const LONGEST_REASON: usize = 300;

/// The rule that came nearest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Nearest<'r> {
    /// Its name.
    pub rule: &'r str,
    /// A sentence for each of its conditions that do not hold, but not more than the limit.
    pub mismatches: Vec<String>,
}

impl Rules {
    /// The rule that came nearest to a message that no rule matches. These decide, in this order: at least one
    /// condition holds; the fewest conditions fail; the fewest values are missing, because a wrong value is more
    /// likely a mistake; the most conditions hold; the first rule. `None` if there are no rules.
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

    /// Why no rule matches the message, in one clause.
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
