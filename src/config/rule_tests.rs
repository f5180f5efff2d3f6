//! Reads the `[[test]]` tables: a message, and what the rules should do with it.
//!
//! Owns: a test's keys and limits, and which file beside the configuration has tests. Must not know: how a test is
//! run.
//!
//! An agent reads no tests, so that a mistake in a test does not stop a gateway.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use toml::de::DeValue;

use crate::message::C2dMessage;
use crate::rules::{Expectation, Foreseen, Rules, literal_steps};

use super::field::{Field, Value, shown};
use super::files;
use super::key::{Absent, Form, Key, Text, Words};
use super::report::{Place, Report, position};
use super::steps;
use super::syntax;
use super::table::Table;
use super::{Inspection, TEST, TwinSettings};

/// How tests are written.
pub(super) const FORM: &str = "write [[test]], with two brackets on each side, above the keys of each test";
/// The name of the file with tests ends with this, in place of the configuration's ending.
const ENDING: &str = "test.toml";
/// Most tests of a configuration.
const MAX_TESTS: usize = 1000;
/// The largest file of tests.
const MAX_BYTES: u64 = 1024 * 1024;
pub(super) const NAME: Key<Text> = Key {
    name: "name",
    kind: Text,
    absent: Absent::Nothing,
    about: "what the test is called; without it, the message stands for it",
};
pub(super) const MESSAGE: Key<Form> = Key {
    name: "message",
    kind: Form("properties, as `check --message` takes them", "any_text"),
    absent: Absent::Nothing,
    about: "the message, such as `action=pump&state=on`; it may be left out where `data` is there",
};
pub(super) const DATA: Key<Form> = Key {
    name: "data",
    kind: Form("a text", "any_text"),
    absent: Absent::Nothing,
    about: "the message's body",
};
pub(super) const RULE: Key<Text> = Key {
    name: "rule",
    kind: Text,
    absent: Absent::Nothing,
    about: "the rule that matches the message; at least one of `rule`, `do` and `outcome` is needed",
};
pub(super) const DO: Key<Form> = Key {
    name: "do",
    kind: Form("a list of [steps](#steps)", "steps"),
    absent: Absent::Nothing,
    about: "all steps in their order, with the values filled in; a `command` as the `run` that it stands for",
};
pub(super) const OUTCOME: Key<Words<Foreseen>> = Key {
    name: "outcome",
    kind: Words(&[
        ("unmatched", Foreseen::Unmatched),
        ("refused", Foreseen::Refused),
        ("failed", Foreseen::Failed),
        ("undecodable", Foreseen::Undecodable),
    ]),
    absent: Absent::Nothing,
    about: "what is [known before anything is run](../guides/rule-tests.md#what-is-expected); without it the action must \
            begin",
};

/// One test.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleTest {
    /// Its name. A test without one is named by its message.
    pub name: Option<String>,
    /// Its place: `file:line:column`.
    pub place: String,
    /// The property bag, as written.
    pub bag: String,
    /// The message.
    pub message: C2dMessage,
    /// What should happen to the message.
    pub expected: Expectation,
}

/// What tests refer to.
struct TestScope<'a> {
    rules: &'a Rules,
    pin_names: Vec<String>,
    twin: &'a TwinSettings,
}

/// Reads the tests of a configuration whose rules have no problem: first those in its files, then those in the file
/// beside it. Also returns all problems; if there are any, there are no tests.
pub fn read_tests(inspection: &Inspection) -> (Vec<RuleTest>, Report) {
    let mut report = Report::default();
    let Some(rules) = inspection.own_rules() else { return (Vec::new(), report) };
    let mut sources = inspection.texts.0.local();
    let beside = inspection.files.first().map(|main| beside(main));
    if let Some(path) = beside.as_ref().filter(|path| files::is_there(path)) {
        match files::read_text(path, MAX_BYTES) {
            Ok(text) => sources.push(path, text),
            Err(reason) => {
                report.problem(Place::File(path.clone()), format!("the rule tests cannot be read: {reason}"))
            }
        }
    }
    let sources = Arc::new(sources);
    report.set_sources(Arc::clone(&sources));
    let pin_names = inspection.gpio.pins.keys().cloned().collect();
    let scope = TestScope { rules: &rules, pin_names, twin: &inspection.twin };
    let mut tests = Vec::new();
    for source in sources.iter() {
        let root = syntax::parse(source, &mut report);
        let mut root = Table::new("a file of rule tests", source.base..source.base, &root);
        let field = root.take(&TEST);
        if beside.as_ref() == Some(&source.path) {
            root.finish(&mut report);
        }
        for value in field.and_then(|field| list(&field, &mut report)).into_iter().flatten() {
            if tests.len() == MAX_TESTS {
                report.problem(value.place, format!("there are more than {MAX_TESTS} tests: leave some out"));
                break;
            }
            let place = position(&sources, &value.place);
            tests.extend(read_test(&value, place, &scope, &mut report));
        }
    }
    report.sort();
    if report.problems() > 0 { (Vec::new(), report) } else { (tests, report) }
}

/// The file with tests for a configuration: `config.test.toml` beside `config.toml`.
fn beside(main: &Path) -> PathBuf {
    main.with_extension(ENDING)
}

fn list<'t>(field: &Field<'t>, report: &mut Report) -> Option<Vec<Value<'t>>> {
    field.array(&format!("a list of tables: {FORM}"), report)
}

fn read_test(
    value: &Value<'_>,
    place: String,
    scope: &TestScope<'_>,
    report: &mut Report,
) -> Option<RuleTest> {
    let mut table = value.named("a test").table_such_as("this test", &format!("a table: {FORM}"), report)?;
    let at = table.place.clone();
    let name = table.read(&NAME, report);
    if let Some(name) = &name {
        table.rename(format!("test \"{}\"", shown(name)));
    }
    let (bag, data) = (table.take(&MESSAGE), table.take(&DATA));
    let (rule, steps, outcome) = (table.take(&RULE), table.take(&DO), table.take(&OUTCOME));
    if bag.is_none() && data.is_none() {
        let message =
            "a test needs a message: message = \"action=pump&state=on\" has its properties, data its body";
        report.problem(at.clone(), message);
    }
    if rule.is_none() && steps.is_none() && outcome.is_none() {
        let message = "a test needs something to expect: rule = \"NAME\", do = [ … ], or outcome = \"unmatched\" where no rule \
                       matches";
        report.problem(at.clone(), message);
    }
    table.finish(report);
    let body = data.as_ref().map_or(Some(Bytes::new()), |field| {
        let text = whole_text(field, report)?;
        Some(Bytes::copy_from_slice(text.as_bytes()))
    });
    let text = bag.as_ref().map_or(Some(""), |field| whole_text(field, report));
    let message = text.zip(body).and_then(|(text, body)| match C2dMessage::sample(text, body) {
        Ok(message) => Some(message),
        Err(error) => {
            let place = bag.as_ref().map_or(at.clone(), |field| field.value.place.clone());
            report.problem(place, error.to_string());
            None
        }
    });
    let expected = read_expectation(rule, steps, outcome, scope, report);
    Some(RuleTest { name, place, bag: text?.to_owned(), message: message?, expected: expected? })
}

fn read_expectation(
    rule: Option<Field<'_>>,
    steps: Option<Field<'_>>,
    outcome: Option<Field<'_>>,
    scope: &TestScope<'_>,
    report: &mut Report,
) -> Option<Expectation> {
    let before = report.problems();
    let outcome = match outcome {
        Some(field) => OUTCOME.read(&field, report),
        None => Some(Foreseen::Begun),
    };
    if let (Some(outcome @ (Foreseen::Unmatched | Foreseen::Undecodable)), Some(rule)) = (outcome, &rule) {
        let message = format!("no rule matches a message that is {outcome}: leave out rule or outcome");
        report.problem(rule.key_place.clone(), message);
    }
    let rule = rule.and_then(|field| {
        let name = field.text(report)?;
        match scope.rules.get(name) {
            Some(_) => Some(name.to_owned()),
            None => field.wrong(scope.rules.lacks(name), report),
        }
    });
    if let (Some(outcome), Some(steps)) = (outcome, &steps)
        && !matches!(outcome, Foreseen::Begun | Foreseen::Failed)
    {
        let message = format!("nothing is done with a message that is {outcome}: leave out do or outcome");
        report.problem(steps.key_place.clone(), message);
    }
    let steps = steps.and_then(|field| {
        let means = steps::Means { pins: &scope.pin_names, twin: scope.twin, is_remote: false };
        let steps = steps::read(&field, means, report)?;
        literal_steps(&steps).map_or_else(|error| field.wrong(error.to_string(), report), Some)
    });
    let expected = Expectation { rule, outcome: outcome?, steps };
    (report.problems() == before).then_some(expected)
}

/// A text that may be empty and have several lines, as a body may.
fn whole_text<'t>(field: &Field<'t>, report: &mut Report) -> Option<&'t str> {
    match field.value.value {
        DeValue::String(text) => Some(text),
        _ => field.wrong_type("a text in quotes", report),
    }
}
