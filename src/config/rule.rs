//! Reads the `[[rule]]` tables.
//!
//! Owns: a rule's keys, its limits, and how rules must not affect each other. Must not know: how a rule is run.

use humantime::format_duration;
use std::collections::HashMap;
use std::ops::Range;

use crate::rules::{Door, Policy, ReportTo, Rule, Rules, Subject, Test};

use super::conditions;
use super::field::{Field, Value, shown};
use super::interlock;
use super::key::{Absent, Form, Key, Text};
use super::policy;
use super::report::Report;
use super::rule_texts::RuleText;
use super::settings::{GpioSettings, TwinSettings};
use super::sources::Sources;
use super::steps;
use super::table::Table;

/// A rule that the twin has set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TwinRule {
    /// Its name.
    pub rule: String,
    /// The name of its text, as in `twin:NAME`.
    pub text: String,
}

const MAX_NAME_CHARS: usize = 100;
// These limits are for everything that takes time with each message. Together they keep the choice of a rule below 5
// ms.
/// Most conditions of one rule.
const MAX_CONDITIONS: usize = 100;
/// Most conditions of all rules.
const MAX_ALL_CONDITIONS: usize = 5000;
/// Most patterns of all rules.
const MAX_ALL_PATTERNS: usize = 500;
/// Most steps of one rule.
const MAX_STEPS: usize = 100;
/// Most arguments and message values in the steps of one rule.
const MAX_PIECES: usize = 1000;
pub(super) const NAME: Key<Text> = Key {
    name: "name",
    kind: Text,
    absent: Absent::Refused,
    about: "unique, for the log and for `C2D_RULE`; at most 100 characters",
};
pub(super) const WHEN: Key<Form> = Key {
    name: "when",
    kind: Form("a table of [conditions](#conditions), or `\"any\"`", "when"),
    absent: Absent::Refused,
    about: "the conditions that must all hold",
};
pub(super) const DO: Key<Form> = Key {
    name: "do",
    kind: Form("a list of [steps](#steps)", "steps"),
    absent: Absent::Refused,
    about: "run in order until one fails; pins that earlier steps have set keep their states (`max_on` ends \
            that)",
};
/// How rules are written. `[rule]` is what most people try first.
pub(super) const FORM: &str = "write [[rule]], with two brackets on each side, above the keys of each rule";

/// What rules refer to outside themselves.
pub(super) struct RuleScope<'a> {
    /// The pins that have no problem.
    pub(super) gpio: &'a GpioSettings,
    /// The names of all pins.
    pub(super) pin_names: &'a [String],
    /// Where the outcomes go for rules that do not say it.
    pub(super) reports: ReportTo,
    /// The commands, and what the twin's rules may use.
    pub(super) twin: &'a TwinSettings,
    /// Which texts are the twin's.
    pub(super) sources: &'a Sources,
}

/// Reads all `[[rule]]` tables, which are in the field or, one by one, in the texts; `None` if one of them has a problem.
/// Also returns which rules are the twin's.
pub(super) fn read(
    field: Option<Field<'_>>,
    texts: &[RuleText<'_>],
    scope: &RuleScope<'_>,
    report: &mut Report,
) -> Option<(Rules, Vec<TwinRule>)> {
    let before = report.problems();
    let mut read = ReadRules::default();
    let tables = match field {
        Some(field) => field.array(&format!("a list of tables: {FORM}"), report)?,
        None => Vec::new(),
    };
    tables.iter().for_each(|value| read.add(value, scope, report));
    for text in texts {
        text.tables()
            .iter()
            .flat_map(|tables| tables.iter())
            .for_each(|value| read.add(&Value::of(value), scope, report));
    }
    let ReadRules { mut rules, places, twin_rules, .. } = read;
    rules.shrink_to_fit();
    warn_of_hidden(&rules, &places, report);
    check_work(&rules, &places, report);
    policy::check_waits(&rules, &places, report);
    policy::check_remote_waits(&rules, &places, |place| scope.sources.remote(place).is_some(), report);
    (report.problems() == before).then(|| (Rules::new(rules), twin_rules))
}

/// The rules that were read so far.
#[derive(Default)]
struct ReadRules {
    /// Each name, and where it is used first.
    names: HashMap<String, Range<usize>>,
    rules: Vec<Rule>,
    places: Vec<Range<usize>>,
    twin_rules: Vec<TwinRule>,
}

impl ReadRules {
    fn add(&mut self, value: &Value<'_>, scope: &RuleScope<'_>, report: &mut Report) {
        let field = value.named("a rule");
        let Some(mut table) = field.table_such_as("a rule", &format!("a table: {FORM}"), report) else {
            return;
        };
        let place = table.place.clone();
        let name = read_name(&mut table, &mut self.names, report);
        if let Some(name) = &name {
            table.rename(format!("rule \"{}\"", shown(name)));
        }
        let Some(rule) = read_rule(table, name, scope, report) else { return };
        if let Some(text) = scope.sources.remote(&place) {
            self.twin_rules.push(TwinRule { rule: rule.name().to_owned(), text });
        }
        self.rules.push(rule);
        self.places.push(place);
    }
}

/// Warns of each rule that never runs because of an earlier one.
fn warn_of_hidden(rules: &[Rule], places: &[Range<usize>], report: &mut Report) {
    // All conditions of a rule that hides another one are conditions of the other one, also its first.
    let mut by_first: HashMap<Option<(&Subject, &[String])>, Vec<&Rule>> = HashMap::new();
    let mut earliest = HashMap::new();
    for (rule, place) in rules.iter().zip(places) {
        let keys = rule.conditions().iter().map(|one| Some((&one.subject, one.test.texts()))).chain([None]);
        let candidates = keys.filter_map(|key| by_first.get(&key)).flatten();
        let hiding = candidates.filter(|earlier| earlier.hides(rule));
        if let Some(earlier) = hiding.min_by_key(|earlier| earliest.get(earlier.name())) {
            let message = format!(
                "rule \"{}\" never runs: rule \"{}\" before it matches every message that this rule matches",
                shown(rule.name()),
                shown(earlier.name())
            );
            report.warning(place.clone(), message);
            // What this rule hides, the earlier one hides, too.
            continue;
        }
        earliest.insert(rule.name(), place.start);
        let first = rule.conditions().first().map(|one| (&one.subject, one.test.texts()));
        by_first.entry(first).or_default().push(rule);
    }
}

/// Refuses rules that would make the check of a message slow, whatever the message is.
fn check_work(rules: &[Rule], places: &[Range<usize>], report: &mut Report) {
    let (mut conditions, mut patterns) = (0, 0);
    for (rule, place) in rules.iter().zip(places) {
        let (own, steps, pieces) = (rule.conditions().len(), rule.steps(), rule.pieces());
        let globs =
            rule.conditions().iter().filter(|condition| matches!(condition.test, Test::Glob(_))).count();
        conditions += own;
        patterns += globs;
        let name = shown(rule.name());
        let message = if own > MAX_CONDITIONS {
            format!(
                "rule \"{name}\" has {own} conditions, but may have at most {MAX_CONDITIONS}: make several \
                 rules of it"
            )
        } else if steps > MAX_STEPS {
            format!(
                "rule \"{name}\" has {steps} steps, but may have at most {MAX_STEPS}: let one program do \
                 several of them"
            )
        } else if pieces > MAX_PIECES {
            format!(
                "the steps of rule \"{name}\" have {pieces} arguments and values of messages, but may have \
                 at most {MAX_PIECES}: let a program read them from its environment or the body"
            )
        } else if conditions > MAX_ALL_CONDITIONS && conditions - own <= MAX_ALL_CONDITIONS {
            format!(
                "with rule \"{name}\" the rules have more than {MAX_ALL_CONDITIONS} conditions together: use \
                 one_of in place of several rules"
            )
        } else if patterns > MAX_ALL_PATTERNS && patterns - globs <= MAX_ALL_PATTERNS {
            format!(
                "with rule \"{name}\" the rules have more than {MAX_ALL_PATTERNS} globs together: use prefix \
                 or one_of in place of some"
            )
        } else {
            continue;
        };
        report.problem(place.clone(), message);
    }
}

fn read_name(
    table: &mut Table<'_>,
    names: &mut HashMap<String, Range<usize>>,
    report: &mut Report,
) -> Option<String> {
    let field =
        table.require(&NAME, "give every rule a name of its own, for the log and for C2D_RULE", report)?;
    let name = field.text(report)?;
    if name.chars().count() > MAX_NAME_CHARS {
        return field.wrong(format!("name has more than {MAX_NAME_CHARS} characters"), report);
    }
    if let Some(first) = names.get(name) {
        let message = format!("there is already a rule named \"{}\": rename one of them", shown(name));
        report.problem_with(field.value.place, message, (first.clone(), "it is used here first"));
    } else {
        names.insert(name.to_owned(), field.value.place);
    }
    Some(name.to_owned())
}

fn read_rule(
    mut table: Table<'_>,
    name: Option<String>,
    scope: &RuleScope<'_>,
    report: &mut Report,
) -> Option<Rule> {
    let remedy = "name the conditions, such as when = { action = \"pump\" }, or write when = \"any\"";
    let when = table.require(&WHEN, remedy, report);
    let conditions = when.as_ref().and_then(|field| conditions::read(field, report));
    let steps_field =
        table.require(&DO, "list the steps, such as do = [ { gpio = \"pump\", set = \"on\" } ]", report);
    let is_remote = scope.sources.remote(&table.place).is_some();
    let means = steps::Means { pins: scope.pin_names, twin: scope.twin, is_remote };
    let steps = steps_field.as_ref().and_then(|field| steps::read(field, means, report));
    let read = policy::read(&mut table, scope.reports, report);
    table.finish(report);
    let (name, steps, timeout) = (name?, steps?, read.timeout?);
    let Field { key_place: place, value, .. } = steps_field?;
    if let Some((on, pin)) = interlock::always_fails(&steps, &scope.gpio.interlocks) {
        let message = format!(
            "pin \"{}\" is still on when pin \"{}\" turns on, and they are interlocked, so this always \
             fails: add an earlier step that turns the first pin off",
            shown(on),
            shown(pin)
        );
        report.problem(place.clone(), message);
    }
    let lanes = policy::lanes(&name, read.lane.as_deref(), &steps, scope.gpio);
    let rule = Rule::new(name, conditions?, steps, timeout, Policy { lanes, ..read.policy.clone() });
    read.check_repeats(&rule, report);
    check_max_on(&rule, scope.gpio, &place, report);
    let needed = rule.longest_pin_time();
    if needed >= timeout {
        let message = format!(
            "the pulses and blinks may take {}, but the rule's timeout is {}: shorten them, or set a longer timeout \
             (up to 50s, or 24h with settle = \"on-accept\")",
            format_duration(needed),
            format_duration(timeout),
        );
        report.problem(place.clone(), message);
        return None;
    }
    // A method call is answered, so a rule that only takes calls does something without steps.
    if rule.steps() == 0 && rule.doors().any(|door| door != Door::Method) {
        let message = "do = [] does nothing: the agent only completes a message that matches this rule; if \
                       you want an action, list steps such as { gpio = \"pump\", set = \"on\" }";
        report.warning(value.place, message);
    }
    if let (Some(message), Some(when)) = (conditions::contradiction(&rule), &when) {
        report.warning(when.value.place.clone(), message);
    }
    for subject in rule.unguaranteed() {
        let message = format!(
            "no condition requires {subject}, and a message without it fails: add the condition {{ present = \
             true }}, or a default as in {{{subject}:default}}"
        );
        report.warning(place.clone(), message);
    }
    Some(rule)
}

/// Refuses a pulse that its pin's `max_on` would cut short: the message would still count as done.
fn check_max_on(rule: &Rule, gpio: &GpioSettings, place: &Range<usize>, report: &mut Report) {
    for (pin, longest) in rule.longest_on() {
        let Some(max_on) = gpio.pins.get(pin).and_then(|pin| pin.max_on).filter(|max_on| longest > *max_on)
        else {
            continue;
        };
        let message = format!(
            "pin \"{}\" may be on for {} here, but its max_on is {}: shorten the pulse or blink, or set a longer max_on",
            shown(pin),
            format_duration(longest),
            format_duration(max_on)
        );
        report.problem(place.clone(), message);
    }
}
