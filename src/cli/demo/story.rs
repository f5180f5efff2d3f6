//! The layout of the demo's story: 80 columns, aligned, with colour on a terminal.
//!
//! Owns: the lines of the story. Must not know: where the facts come from.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::Context as _;

use crate::config::Config;
use crate::emulator::Emulator;
use crate::feedback::FeedbackStatus;
use crate::message::{C2dMessage, Properties};
use crate::rules::{PinChange, PlannedStep};

/// The column where values begin.
const INDENT: usize = 15;
const WIDTH: usize = 80;

const BOLD: &str = "\x1b[1m";
const DIM: &str = "\x1b[2m";
const GREEN: &str = "\x1b[32m";
const YELLOW: &str = "\x1b[33m";
const PLAIN: &str = "\x1b[0m";

/// Prints to standard output.
pub(super) struct Story {
    colour: bool,
}

/// Everything about one message.
pub(super) struct Chapter<'a> {
    pub(super) number: usize,
    pub(super) title: &'a str,
    pub(super) message: &'a C2dMessage,
    pub(super) rule: Option<&'a str>,
    /// The steps that the rule made of the message.
    pub(super) steps: &'a [String],
    pub(super) outcome: &'a str,
    /// The output of programs.
    pub(super) output: &'a [u8],
    /// The states of all pins.
    pub(super) pins: &'a str,
    pub(super) feedback: FeedbackStatus,
    /// From sending to the feedback.
    pub(super) after: Duration,
    pub(super) totals: &'a StoryTotals,
}

/// Counts over all messages so far.
#[derive(Debug, Default)]
pub(super) struct StoryTotals {
    received: usize,
    bytes: usize,
    acted_on: usize,
    confirmed: usize,
}

impl StoryTotals {
    /// Counts one more message. `acted_on`: its action succeeded. `confirmed`: the hub says that it was delivered.
    pub(super) fn add(&mut self, message: &C2dMessage, acted_on: bool, confirmed: bool) {
        self.received += 1;
        self.bytes += message.body.len();
        self.acted_on += usize::from(acted_on);
        self.confirmed += usize::from(confirmed);
    }
}

impl Story {
    pub(super) fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colour: wanted && std::io::stdout().is_terminal() }
    }

    pub(super) fn opening(&self, hub: &Emulator, config: &Config) -> anyhow::Result<()> {
        let (mqtt, amqp) = (hub.mqtt_address(), hub.amqp_address());
        let pins: Vec<&str> = config.gpio.pins.keys().map(String::as_str).collect();
        let rules: Vec<&str> = config.rules.iter().map(crate::rules::Rule::name).collect();
        self.print(&[
            self.paint(BOLD, "c2d-agent demo: hub, device and back end in one process, without Azure"),
            String::new(),
            self.field("hub", &format!("emulator, MQTT on {mqtt}, AMQP on {amqp}")),
            self.field(
                "device",
                &format!(
                    "{}, with the simulated pins {}",
                    config.identities.first().device_id,
                    pins.join(" and ")
                ),
            ),
            self.field("rules", &rules.join(", ")),
        ])
    }

    pub(super) fn chapter(&self, chapter: &Chapter<'_>) -> anyhow::Result<()> {
        let message = chapter.message;
        let id = message.message_id().unwrap_or("none");
        let mut lines = vec![
            String::new(),
            self.paint(BOLD, &format!("{}. {}", chapter.number, chapter.title)),
            self.field(
                "received",
                &format!("{} ({}), message id {id}", data(message), bytes(message.body.len())),
            ),
            self.field("properties", &properties(&message.application)),
        ];
        let done = match (chapter.rule, chapter.steps) {
            (None, _) => format!("none, {}", chapter.outcome),
            (Some(rule), []) => format!("rule {rule}, {}", chapter.outcome),
            (Some(rule), steps) => format!("rule {rule}, {}: {}", steps.join(", then "), chapter.outcome),
        };
        let colour = if chapter.outcome == "succeeded" { GREEN } else { YELLOW };
        lines.push(self.painted_field("action", &done, colour));
        if !chapter.output.is_empty() {
            let text = String::from_utf8_lossy(chapter.output);
            lines.push(self.field("output", &text.trim_end().escape_debug().to_string()));
        }
        lines.push(self.field("pins", chapter.pins));
        let mut feedback = format!("{} after {} ms", chapter.feedback, chapter.after.as_millis());
        if chapter.feedback == FeedbackStatus::Success && chapter.outcome != "succeeded" {
            feedback.push_str(": it was delivered, and MQTT cannot reject");
        }
        let colour = if chapter.feedback == FeedbackStatus::Success { GREEN } else { YELLOW };
        lines.push(self.painted_field("feedback", &feedback, colour));
        let totals = chapter.totals;
        lines.push(
            self.field(
                "so far",
                &format!("{}, {}", counted(totals.received, "message"), bytes(totals.bytes)),
            ),
        );
        self.print(&lines)
    }

    pub(super) fn ending(&self, totals: &StoryTotals, pins: &str, took: Duration) -> anyhow::Result<()> {
        let StoryTotals { received, acted_on, confirmed, .. } = totals;
        self.print(&[
            String::new(),
            self.paint(BOLD, &format!("Done in {:.1} s", took.as_secs_f64())),
            self.field(
                "messages",
                &format!("{received} received, {acted_on} acted on, {confirmed} confirmed to the sender"),
            ),
            self.field("pins", &format!("{pins}: left as on_exit says")),
            self.field("next", "c2d-agent emulator, run, c2d-send: the same one by one (--help)"),
        ])
    }

    fn field(&self, label: &str, value: &str) -> String {
        self.painted_field(label, value, "")
    }

    /// The label, and beside it the value on as many lines as it needs.
    fn painted_field(&self, label: &str, value: &str, colour: &str) -> String {
        let label = self.paint(DIM, &format!("   {label:width$}", width = INDENT - 3));
        let lines: Vec<String> =
            wrapped(value, WIDTH - INDENT).iter().map(|line| self.paint(colour, line)).collect();
        format!("{label}{}", lines.join(&format!("\n{}", " ".repeat(INDENT))))
    }

    fn paint(&self, colour: &str, text: &str) -> String {
        if self.colour && !colour.is_empty() { format!("{colour}{text}{PLAIN}") } else { text.to_owned() }
    }

    fn print(&self, lines: &[String]) -> anyhow::Result<()> {
        let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
        std::io::stdout().write_all(text.as_bytes()).context("standard output cannot be written")
    }
}

/// One step of a plan in a few words.
pub(super) fn describe(step: &PlannedStep) -> String {
    match step {
        PlannedStep::Gpio { pin, change: PinChange::Set(state) } => format!("turn {pin} {state}"),
        PlannedStep::Gpio { pin, change: PinChange::Toggle } => format!("toggle {pin}"),
        PlannedStep::Gpio { pin, change: PinChange::Pulse(duration) } => {
            format!("turn {pin} on for {}", humantime::format_duration(*duration))
        }
        PlannedStep::Gpio { pin, change: PinChange::Blink { times, .. } } => {
            format!("blink {pin} {times} times")
        }
        PlannedStep::Run { argv } => format!("run {}", argv.join(" ")),
        PlannedStep::Shell { text } => format!("run the shell text {text:?}"),
    }
}

fn data(message: &C2dMessage) -> String {
    format!("{:?}", String::from_utf8_lossy(&message.body))
}

fn properties(properties: &Properties) -> String {
    let pairs = properties.iter().map(|(name, value)| match value {
        Some(value) => format!("{name}={value}"),
        None => name.to_owned(),
    });
    pairs.collect::<Vec<_>>().join(", ")
}

fn bytes(number: usize) -> String {
    counted(number, "byte")
}

fn counted(number: usize, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

/// The text in lines of at most `width` characters, broken at spaces if there are any.
fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        let used = lines.last().map_or(0, |line| line.chars().count());
        if used > 0 && used + 1 + word.chars().count() > width {
            lines.push(word.to_owned());
        } else if let Some(line) = lines.last_mut() {
            if used > 0 {
                line.push(' ');
            }
            line.push_str(word);
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_values_continue_below_their_beginning() {
        let story = Story { colour: false };
        let value = "word ".repeat(20);
        let field = story.field("action", value.trim_end());
        let lines: Vec<&str> = field.lines().collect();
        assert_eq!(lines[0], format!("   action      {}", "word ".repeat(13).trim_end()));
        assert_eq!(lines[1], format!("               {}", "word ".repeat(7).trim_end()));
    }

    #[test]
    fn colour_is_only_for_terminals() {
        assert_eq!(Story { colour: false }.paint(BOLD, "x"), "x");
        assert_eq!(Story { colour: true }.paint(BOLD, "x"), "\x1b[1mx\x1b[0m");
    }
}
