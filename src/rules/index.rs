//! The index: which rules a message can match, found without a look at each rule.
//!
//! Owns: under which text each rule is found. Must not know: TOML, steps, whether a rule matches.
//!
//! Most rules require that a value is one text, or one of a list. Such a rule can only match a message that has one of
//! these texts there. Sorted by text, thousands of rules are searched in a few comparisons.

use std::collections::HashMap;

use super::Rule;
use super::condition::Condition;
use super::subject::Subject;
use super::values::{Found, Values};

/// Where each rule is found. No text is stored twice: an entry says where in the rules its text stands.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct RuleIndex {
    /// The positions of the rules that require no text.
    always: Vec<u32>,
    /// The entries of the other rules by subject. Those of a subject are in the order of their texts.
    groups: Vec<Vec<IndexEntry>>,
}

/// One text of one condition of one rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct IndexEntry {
    rule: u32,
    condition: u32,
    text: u32,
}

impl IndexEntry {
    fn condition(self, rules: &[Rule]) -> Option<&Condition> {
        rules.get(self.rule as usize)?.conditions.get(self.condition as usize)
    }

    fn text(self, rules: &[Rule]) -> Option<&str> {
        self.condition(rules)?.test.texts().get(self.text as usize).map(String::as_str)
    }
}

impl RuleIndex {
    pub(super) fn of(rules: &[Rule]) -> Self {
        let shared = how_many_share(rules);
        let mut index = Self::default();
        let mut groups: HashMap<&Subject, Vec<IndexEntry>> = HashMap::new();
        for (rule, position) in rules.iter().zip(0..) {
            match condition_to_find_by(rule, &shared) {
                Some((at, condition)) => {
                    let entries = (0..condition.test.texts().len()).map(|text| IndexEntry {
                        rule: position,
                        condition: narrow(at),
                        text: narrow(text),
                    });
                    groups.entry(&condition.subject).or_default().extend(entries);
                }
                None => index.always.push(position),
            }
        }
        index.groups = groups.into_values().collect();
        for group in &mut index.groups {
            // The sort is stable, so the rules of one text stay in their order.
            group.sort_by_key(|entry| entry.text(rules));
            group.shrink_to_fit();
        }
        // Only so that equal rules have equal indexes.
        index.groups.sort_by_key(|group| group.first().map(|entry| (entry.rule, entry.condition)));
        index
    }

    /// The positions of all rules that can match the message, in their order. All other rules do not match it.
    pub(super) fn candidates(&self, rules: &[Rule], values: &Values<'_>) -> Vec<u32> {
        let mut found = self.always.clone();
        for group in &self.groups {
            let subject = group.first().and_then(|entry| entry.condition(rules)).map(|own| &own.subject);
            let Some(Found::Text(text)) = subject.map(|subject| values.find(subject)) else { continue };
            let wanted = Some(text.as_ref());
            let begin = group.partition_point(|entry| entry.text(rules) < wanted);
            let same = group.iter().skip(begin).take_while(|entry| entry.text(rules) == wanted);
            found.extend(same.map(|entry| entry.rule));
        }
        found.sort_unstable();
        found.dedup();
        found
    }
}

/// How many rules require each text of each subject.
fn how_many_share(rules: &[Rule]) -> HashMap<(&Subject, &str), usize> {
    let mut shared = HashMap::new();
    for condition in rules.iter().flat_map(|rule| &rule.conditions) {
        for text in condition.test.texts() {
            *shared.entry((&condition.subject, text.as_str())).or_default() += 1;
        }
    }
    shared
}

/// The condition by which a rule is found: the one that requires a text which the fewest rules require. Where many
/// rules have `action = "set"` and each has another `pin`, this is the pin. Of two equal ones it is the property,
/// because for a body field the body of each message must be parsed.
fn condition_to_find_by<'r>(
    rule: &'r Rule,
    shared: &HashMap<(&Subject, &str), usize>,
) -> Option<(usize, &'r Condition)> {
    let most_shared = |condition: &Condition| {
        let each = condition.test.texts().iter().map(|text| shared.get(&(&condition.subject, text.as_str())));
        each.flatten().copied().max()
    };
    let all = rule.conditions.iter().enumerate().filter(|(_, condition)| !condition.test.texts().is_empty());
    all.min_by_key(|(_, condition)| (most_shared(condition), matches!(condition.subject, Subject::Body(_))))
}

/// There are far fewer rules, conditions and texts than this, because a configuration has a limited size.
fn narrow(position: usize) -> u32 {
    u32::try_from(position).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::C2dMessage;
    use crate::rules::{Choices, Glob, Policy, Rules, Test};
    use proptest::prelude::*;
    use std::time::Duration;

    fn rules(conditions: Vec<Vec<Condition>>) -> Rules {
        let named = conditions.into_iter().enumerate();
        let rule = |(number, conditions): (usize, Vec<Condition>)| {
            Rule::new(number.to_string(), conditions, Vec::new(), Duration::from_secs(1), Policy::default())
        };
        Rules::new(named.map(rule).collect())
    }

    fn equals(name: &str, text: &str) -> Condition {
        Condition { subject: Subject::parse(name).expect("a name"), test: Test::Equals(text.into()) }
    }

    fn message(bag: &str, body: &str) -> C2dMessage {
        C2dMessage::from_bag(bag, body.to_owned().into()).expect("a bag")
    }

    /// The candidates among rules that each have these conditions.
    fn candidates(conditions: Vec<Vec<Condition>>, bag: &str) -> Vec<u32> {
        let (rules, message) = (rules(conditions), message(bag, ""));
        rules.index.candidates(&rules.rules, &Values::of(&message, &rules.fields))
    }

    #[test]
    fn a_message_meets_only_the_rules_with_its_rarest_text() {
        let each = |pin: u32| vec![equals("action", "set"), equals("pin", &pin.to_string())];
        assert_eq!(candidates((0..1000).map(each).collect(), "action=set&pin=617"), [617]);
        let each = |pin: u32| vec![equals("pin", &pin.to_string()), equals("action", "set")];
        assert_eq!(candidates((0..1000).map(each).collect(), "action=set&pin=1000"), [0_u32; 0]);
    }

    #[test]
    fn a_property_is_preferred_to_a_body_field_so_that_the_body_need_not_be_parsed() {
        let found_by = |conditions: Vec<Condition>| {
            let rules = rules(vec![conditions]);
            let entry = rules.index.groups[0][0];
            entry.condition(&rules.rules).expect("a condition").subject.to_string()
        };
        assert_eq!(found_by(vec![equals("body.zone", "7"), equals("pin", "7")]), "pin");
        assert_eq!(found_by(vec![equals("pin", "7"), equals("body.zone", "7")]), "pin");
        // A rarer text still counts for more.
        let rules = rules(
            (0..2).map(|zone| vec![equals("a", "b"), equals("body.zone", &zone.to_string())]).collect(),
        );
        assert_eq!(rules.index.groups.len(), 1);
        assert_eq!(rules.index.groups[0][0].condition, 1);
    }

    #[test]
    fn a_rule_without_a_text_is_always_a_candidate_and_stays_in_its_order() {
        let when = |test| vec![Condition { subject: Subject::parse("a").expect("a name"), test }];
        let twice = Choices::new(["1", "1", "2"].map(str::to_owned).to_vec());
        let conditions = vec![
            when(Test::Present),
            vec![equals("a", "1")],
            vec![],
            when(Test::OneOf(twice)),
            vec![equals("a", "2")],
        ];
        assert_eq!(candidates(conditions, "a=1"), [0, 1, 2, 3]);
    }

    fn text() -> impl Strategy<Value = String> {
        prop::sample::select(vec!["", "1", "2", "3", "12", "-1"]).prop_map(str::to_owned)
    }

    fn condition() -> impl Strategy<Value = Condition> {
        let test = prop_oneof![
            4 => text().prop_map(Test::Equals),
            2 => prop::collection::vec(text(), 1..5).prop_map(|texts| Test::OneOf(Choices::new(texts))),
            1 => text().prop_map(Test::Prefix),
            1 => Just(Test::Glob(Glob::parse("?").expect("a pattern"))),
            1 => Just(Test::Range { min: 0.0, max: 2.0 }),
            1 => Just(Test::Present),
            1 => Just(Test::Absent),
        ];
        let name = prop::sample::select(vec!["a", "b", "$.cid", "$.source", "body.a", "body.b.c"]);
        (name, test)
            .prop_map(|(name, test)| Condition { subject: Subject::parse(name).expect("a name"), test })
    }

    proptest! {
        #[test]
        fn the_index_finds_the_rule_that_a_walk_over_all_rules_finds(
            conditions in prop::collection::vec(prop::collection::vec(condition(), 0..4), 0..40),
            values in prop::collection::vec(prop::option::of(text()), 5),
        ) {
            let rules = rules(conditions);
            let pair = |name: &str, value: &Option<String>| value.as_ref().map(|value| format!("{name}={value}"));
            let names = ["a", "b", "%24.cid"].iter().zip(&values);
            let bag: Vec<String> = names.filter_map(|(name, value)| pair(name, value)).collect();
            let body = serde_json::json!({ "a": values[3], "b": { "c": values[4] } }).to_string();
            let message = message(&bag.join("&"), &body);
            let walked = Values::of(&message, &rules.fields);
            let walked = rules.rules.iter().find(|rule| rule.matches(&walked));
            prop_assert_eq!(rules.match_message(&message).map(Rule::name), walked.map(Rule::name));
        }
    }
}
