//! Which rule came nearest to a message that none takes, and why it does not take it.
//!
//! Owns: what is nearest, and the sentence, which is bounded whatever the rules and the message hold. Must not know: where it is
//! shown. Used by: `agent` (the log, `inbox retry`), `cli` (check, `inbox show` and `retry`).

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
    /// Of a message that no rule takes, the rule that came nearest: one of whose conditions some hold before one of which none
    /// does, then that with the fewest that do not hold, the most that do, and the first. `None` without rules.
    pub fn nearest(&self, message: &C2dMessage) -> Option<Nearest<'_>> {
        let values = Values::of(message, &self.fields);
        let distance = |rule: &&Rule| {
            let held = rule.conditions.iter().filter(|condition| condition.holds(&values)).count();
            (held == 0, rule.conditions.len() - held, Reverse(held))
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
        write!(f, "rule \"{}\" comes nearest, but {}", self.rule, self.mismatches.join("; "))
    }
}
