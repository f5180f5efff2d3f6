//! Runs rule tests, and shows what was expected next to what would happen.
//!
//! Owns: the comparison in words and in JSON. Must not know: how a test is written, how rules match.

use serde::Serialize;
use serde_json::{Value, json};

use crate::cli::shown::{plain, shorten};
use crate::config::{Inspection, RuleTest};
use crate::message::C2dMessage;
use crate::rules::{Expectation, Foreseen, PinChange, PlannedStep, Rule, Rules};

use super::forecast::{Forecast, describe_step};

/// Most failed tests that are shown; the rest are counted.
const MOST_SHOWN: usize = 100;
/// Most characters of a line, because an argument may have thousands.
const LONGEST_LINE: usize = 1000;

/// A test and its result.
pub(super) struct Ran<'a> {
    test: &'a RuleTest,
    forecast: Forecast<'a>,
}

impl<'a> Ran<'a> {
    /// Runs each test against the rules of the files. Rules of the twin do not count.
    pub(super) fn all(tests: &'a [RuleTest], rules: &'a Rules, inspection: &Inspection) -> Vec<Self> {
        let each = tests.iter();
        each.map(|test| Self { test, forecast: Forecast::of(rules, inspection, &test.message) }).collect()
    }

    pub(super) fn passed(&self) -> bool {
        self.forecast.meets(&self.test.expected)
    }

    /// The test's name, or its message if it has no name.
    fn title(&self) -> String {
        match &self.test.name {
            Some(name) => format!("test \"{}\"", plain(name)),
            None => format!("the test of '{}'", shorten(&plain(&self.test.bag), 60)),
        }
    }

    pub(super) fn json(&self) -> Value {
        let mut event = json!({ "event": "test", "place": self.test.place, "message": self.test.bag,
            "passed": self.passed(), "expected": expected_json(&self.test.expected), "found": found_json(&self.forecast) });
        if let Some(name) = &self.test.name {
            event["name"] = name.as_str().into();
        }
        event
    }
}

/// The tests that failed, then how many passed. Empty without tests.
pub(super) fn describe(ran: &[Ran<'_>], rules: &Rules, inspection: &Inspection) -> Vec<String> {
    let failed: Vec<_> = ran.iter().filter(|ran| !ran.passed()).collect();
    let mut lines = Vec::new();
    for one in failed.iter().take(MOST_SHOWN) {
        lines.push(format!("{}: {} failed", one.test.place, one.title()));
        lines.extend(compare(&one.test.expected, &one.forecast, rules, inspection, &one.test.message));
    }
    if failed.len() > MOST_SHOWN {
        lines.push(format!("… and {} more failed", failed.len() - MOST_SHOWN));
    }
    match (failed.len(), ran.len()) {
        (_, 0) => {}
        (0, 1) => lines.push("1 test passed".to_owned()),
        (0, all) => lines.push(format!("{all} tests passed")),
        (failed, 1) => lines.push(format!("{failed} of 1 test failed")),
        (failed, all) => lines.push(format!("{failed} of {all} tests failed")),
    }
    lines
}

/// Lines that show what was expected and what was found.
pub(super) fn compare(
    expected: &Expectation,
    forecast: &Forecast<'_>,
    rules: &Rules,
    inspection: &Inspection,
    message: &C2dMessage,
) -> Vec<String> {
    let steps = |steps: &[PlannedStep]| -> Vec<String> {
        let each = steps.iter().enumerate();
        let lines = each.map(|(at, step)| format!("{}. {}", at + 1, describe_step(step, &inspection.gpio)));
        if steps.is_empty() { vec!["nothing is done".to_owned()] } else { lines.collect() }
    };
    let mut wanted = vec![headline(expected.rule.as_deref(), expected.outcome, true)];
    wanted.extend(expected.steps.iter().flat_map(|expected| steps(expected)));
    let mut found = vec![headline(forecast.rule.map(Rule::name), forecast.outcome, false)];
    if forecast.plan.is_some() && (expected.steps.is_some() || forecast.outcome == Foreseen::Failed) {
        found.extend(steps(forecast.steps()));
    }
    if !forecast.why.is_empty() && forecast.plan.is_none() {
        found.push(forecast.why.clone());
    }
    found.extend(why_not(expected, forecast, rules, message));
    let column = |label: &str, lines: Vec<String>| -> Vec<String> {
        let each = lines.into_iter().enumerate();
        each.map(|(at, line)| {
            format!("  {:<8}  {}", if at == 0 { label } else { "" }, shorten(&plain(&line), LONGEST_LINE))
        })
        .collect()
    };
    [column("expected", wanted), column("found", found)].concat()
}

/// Which rule matches, in a sentence.
fn headline(rule: Option<&str>, outcome: Foreseen, is_expected: bool) -> String {
    let rule = rule.map_or("a rule".to_owned(), |rule| format!("rule \"{rule}\""));
    let matches = format!("{rule} matches");
    match outcome {
        Foreseen::Begun => matches,
        Foreseen::Failed => format!("{matches}, but a step fails"),
        Foreseen::Refused if is_expected => format!("{matches}, but refuses the message"),
        Foreseen::Refused => format!("{matches}, but refuses the message:"),
        Foreseen::Unmatched => "no rule matches".to_owned(),
        Foreseen::Undecodable if is_expected => "the call cannot be read".to_owned(),
        Foreseen::Undecodable => "the call cannot be read:".to_owned(),
    }
}

/// Why the expected rule does not match. If any rule was expected: why the nearest one does not match.
fn why_not(
    expected: &Expectation,
    forecast: &Forecast<'_>,
    rules: &Rules,
    message: &C2dMessage,
) -> Option<String> {
    let is_unmatched = forecast.outcome == Foreseen::Unmatched;
    let Some(name) = &expected.rule else {
        return (is_unmatched && expected.outcome != Foreseen::Unmatched).then(|| rules.why_none(message));
    };
    let taken_by = forecast.rule.map(Rule::name);
    if taken_by == Some(name) || (taken_by.is_none() && !is_unmatched) {
        return None;
    }
    let mismatches = rules.mismatches(message);
    match mismatches.iter().find(|(rule, _)| rule.name() == name) {
        Some((_, why)) => Some(format!("rule \"{name}\" does not match: {}", why.join("; "))),
        None => Some(format!("rule \"{name}\" comes after rule \"{}\"", taken_by.unwrap_or_default())),
    }
}

/// One side of the comparison: what is expected, or what would happen.
#[derive(Serialize)]
struct Side<'a> {
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<&'a str>,
    outcome: &'static str,
    #[serde(skip_serializing_if = "str::is_empty")]
    text: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    steps: Option<Vec<Value>>,
}

pub(super) fn expected_json(expected: &Expectation) -> Value {
    let steps = expected.steps.as_ref().map(|steps| steps.iter().map(step_json).collect());
    let side = Side { rule: expected.rule.as_deref(), outcome: expected.outcome.as_str(), text: "", steps };
    json!(side)
}

pub(super) fn found_json(forecast: &Forecast<'_>) -> Value {
    let steps = forecast.plan.as_ref().map(|plan| plan.steps.iter().map(step_json).collect());
    let (rule, outcome) = (forecast.rule.map(Rule::name), forecast.outcome.as_str());
    json!(Side { rule, outcome, text: &forecast.why, steps })
}

fn step_json(step: &PlannedStep) -> Value {
    let ms = |duration: &std::time::Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    match step {
        PlannedStep::Run { argv } => json!({ "run": argv }),
        PlannedStep::Shell { text } => json!({ "shell": text }),
        PlannedStep::Gpio { pin, change } => match change {
            PinChange::Set(state) => json!({ "gpio": pin, "set": state.to_string() }),
            PinChange::Toggle => json!({ "gpio": pin, "set": "toggle" }),
            PinChange::Pulse(on) => json!({ "gpio": pin, "pulseMs": ms(on) }),
            PinChange::Blink { times, period } => {
                json!({ "gpio": pin, "blink": { "times": times, "periodMs": ms(period) } })
            }
        },
    }
}
