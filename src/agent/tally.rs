//! The tally: how many messages ended in which way, and how long actions took, by rule, since this process began.
//!
//! Owns: the counts, and how many rules are counted separately. Pure. Must not know: how they are shown.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use crate::metrics::{Figures, Histogram};
use crate::outcome::OutcomeKind;

/// The outcome of a message that came again after it had ended.
pub(super) const DUPLICATE: &str = "duplicate";

/// Most rules that are counted separately. Further rules are counted together, so that an answer stays small.
const MOST_RULES: usize = 256;
/// Stands for the rule if no rule matched.
const NO_RULE: &str = "none";
/// Stands for the rules above [`MOST_RULES`].
const OTHER_RULES: &str = "other";

/// The possible outcomes of a message that a rule matched. All are shown from the start, as 0: if a counter appears
/// with 1, a scraper does not see that it grew.
const WITH_RULE: [OutcomeKind; 7] = [
    OutcomeKind::Succeeded,
    OutcomeKind::Failed,
    OutcomeKind::TimedOut,
    OutcomeKind::Interrupted,
    OutcomeKind::Refused,
    OutcomeKind::Expired,
    OutcomeKind::Dropped,
];
/// The possible outcomes of a message that no rule matched.
const WITHOUT_RULE: [OutcomeKind; 3] =
    [OutcomeKind::Unmatched, OutcomeKind::Undecodable, OutcomeKind::Expired];

/// The counts by rule.
#[derive(Debug, Default)]
pub(super) struct Tally {
    rules: BTreeMap<String, OfRule>,
}

#[derive(Debug, Default)]
struct OfRule {
    ended: BTreeMap<&'static str, u64>,
    /// The durations of single attempts.
    took: Histogram,
}

impl Tally {
    /// A message has ended, or came again after it had.
    pub(super) fn ended(&mut self, rule: Option<&str>, outcome: &'static str) {
        *self.of(rule.unwrap_or(NO_RULE)).ended.entry(outcome).or_default() += 1;
    }

    /// An attempt at an action has ended.
    pub(super) fn acted(&mut self, rule: &str, took: Duration) {
        self.of(rule).took.observe(took.as_secs_f64());
    }

    fn of(&mut self, rule: &str) -> &mut OfRule {
        let is_told_apart = self.rules.len() < MOST_RULES || self.rules.contains_key(rule);
        self.rules.entry(if is_told_apart { rule } else { OTHER_RULES }.to_owned()).or_default()
    }

    /// Forgets rules that are no longer configured, and makes counts (from 0) for those that are.
    pub(super) fn know<'a>(&mut self, configured: impl Iterator<Item = &'a str>) {
        let configured: BTreeSet<&str> = configured.chain([NO_RULE, OTHER_RULES]).collect();
        self.rules.retain(|rule, _| configured.contains(rule.as_str()));
        self.of(NO_RULE);
        for rule in configured.into_iter().filter(|rule| *rule != OTHER_RULES) {
            let known: &[OutcomeKind] = if rule == NO_RULE { &WITHOUT_RULE } else { &WITH_RULE };
            let of = self.of(rule);
            for outcome in known.iter().map(|kind| kind.as_str()).chain([DUPLICATE]) {
                of.ended.entry(outcome).or_default();
            }
        }
    }

    /// How many messages ended, by rule and outcome.
    pub(super) fn messages(&self) -> Figures {
        let figures = self.rules.iter().flat_map(|(rule, of)| {
            let labels = |outcome: &str| vec![("rule", rule.clone()), ("outcome", outcome.to_owned())];
            of.ended.iter().map(move |(outcome, count)| (labels(outcome), *count))
        });
        Figures::Counter(figures.collect())
    }

    /// How long attempts took, by rule.
    pub(super) fn durations(&self) -> Figures {
        let with_actions = self.rules.iter().filter(|(rule, _)| *rule != NO_RULE);
        let figures = with_actions.map(|(rule, of)| (vec![("rule", rule.clone())], of.took.clone()));
        Figures::Histogram(figures.collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counts(tally: &Tally) -> Vec<(String, String, u64)> {
        let Figures::Counter(all) = tally.messages() else { panic!("counts") };
        all.into_iter().map(|(labels, count)| (labels[0].1.clone(), labels[1].1.clone(), count)).collect()
    }

    #[test]
    fn configured_rules_have_zeros_and_those_that_are_gone_have_nothing() {
        let mut tally = Tally::default();
        tally.ended(Some("gone"), "failed");
        tally.ended(Some("pump"), "failed");
        tally.ended(None, "unmatched");
        tally.know(["pump", "door"].into_iter());
        let all = counts(&tally);
        let count = |rule: &str, outcome: &str| {
            all.iter().find(|(r, o, _)| r == rule && o == outcome).map(|(_, _, count)| *count)
        };
        assert_eq!(count("pump", "failed"), Some(1));
        assert_eq!(count("door", "timed-out"), Some(0));
        assert_eq!(count("none", "unmatched"), Some(1));
        assert_eq!(count("none", "succeeded"), None);
        assert!(all.iter().all(|(rule, ..)| rule != "gone"), "{all:?}");
    }

    #[test]
    fn thousands_of_rules_do_not_make_thousands_of_figures() {
        let mut tally = Tally::default();
        let names: Vec<String> = (0..3_000).map(|n| format!("rule {n:04}")).collect();
        for _ in 0..2 {
            tally.know(names.iter().map(String::as_str));
            names.iter().for_each(|name| tally.ended(Some(name), "succeeded"));
        }
        let all = counts(&tally);
        assert!(all.len() <= (MOST_RULES + 1) * (WITH_RULE.len() + 1), "{}", all.len());
        assert_eq!(all.iter().map(|(_, _, count)| count).sum::<u64>(), 6_000, "none is lost");
        assert!(all.iter().any(|(rule, ..)| rule == OTHER_RULES));
        assert!(all.iter().any(|(rule, ..)| rule == NO_RULE));
    }
}
