//! `check`: is the configuration valid, and what would a message do?
//!
//! Owns: the explanation. Must not know: how rules match or plans are made; how they are performed.
//! Used by: `cli`.

use std::io::Write as _;
use std::path::PathBuf;

use anyhow::Context as _;
use bytes::Bytes;

use crate::config::{self, GpioSettings, Inspection, Line, counted};
use crate::message::C2dMessage;
use crate::rules::{PinChange, Plan, PlannedStep, Rules};

use super::{DEFAULT_CONFIG, Exit, Failure};

/// Stands for the device id in an explanation when the configuration does not say it.
const UNKNOWN_DEVICE: &str = "DEVICE";

/// Check a configuration, and explain what a message would do. Nothing is run and no pin is touched.
///
/// All problems are reported at once, each with its place. With --message or --data it also says which rule would
/// take the message, why the rules before it do not, and exactly what would be done.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  c2d-agent check -c config.toml\n  \
    c2d-agent check -c config.toml --message 'action=pump&state=on'\n  \
    c2d-agent check --message '$.cid=order-7&zone=north' --data '{\"litres\": 20}'\n\n\
    Exit codes: 0 the configuration is valid, 2 it has problems or the message cannot be read.")]
pub(super) struct Args {
    /// The configuration file.
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Properties of a sample message, as on the wire: name=value pairs with & between them, percent-encoded where
    /// needed; system properties as in '$.mid=m-1'.
    #[arg(long, value_name = "PROPERTIES")]
    message: Option<String>,
    /// Body of the sample message.
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    data: Option<String>,
}

/// Prints the verdict, and the explanation of the sample message when there is one.
///
/// # Errors
/// When the sample message cannot be read, or standard output not be written.
pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let sample = sample(args)?;
    let inspection = config::inspect(&args.config, &|name| std::env::var(name).ok());
    if !inspection.report.is_empty() {
        super::tell(&inspection.report);
    }
    let valid = inspection.report.problems() == 0;
    let mut lines = Vec::new();
    if valid {
        lines.push(verdict(&inspection));
    }
    if let Some(sample) = sample {
        match &inspection.rules {
            Some(rules) => lines.extend(explain(rules, &inspection, &sample)),
            None => super::tell("the message cannot be explained before the rules are right"),
        }
    }
    let text: String = lines.iter().map(|line| format!("{line}\n")).collect();
    std::io::stdout().write_all(text.as_bytes()).context("standard output cannot be written")?;
    Ok(if valid { Exit::Done } else { Exit::Usage })
}

fn sample(args: &Args) -> Result<Option<C2dMessage>, Failure> {
    if args.message.is_none() && args.data.is_none() {
        return Ok(None);
    }
    let body = Bytes::from(args.data.clone().unwrap_or_default());
    let message = C2dMessage::from_bag(args.message.as_deref().unwrap_or_default(), body)
        .context("--message is not a property bag")
        .map_err(Failure::usage)?;
    Ok(Some(message))
}

fn verdict(inspection: &Inspection) -> String {
    let rules = counted(inspection.rules.as_ref().map_or(0, Rules::len), "rule");
    let pins = counted(inspection.gpio.pins.len(), "pin");
    let device = inspection
        .identity
        .as_ref()
        .map_or(String::new(), |identity| format!(", device {} on hub {}", identity.device_id, identity.hub));
    format!("configuration is valid: {rules}, {pins}{device}")
}

fn explain(rules: &Rules, inspection: &Inspection, message: &C2dMessage) -> Vec<String> {
    let mut lines = Vec::new();
    let matched = rules.match_message(message);
    for rule in rules.iter().take_while(|rule| !matched.is_some_and(|matched| std::ptr::eq(matched, *rule))) {
        let mismatches = rule.mismatches(message);
        lines.push(format!("rule \"{}\" does not match: {}", rule.name(), mismatches.join("; ")));
    }
    let Some(rule) = matched else {
        lines.push("no rule matches: the message would be completed and logged, and nothing done".to_owned());
        return lines;
    };
    lines.push(format!("rule \"{}\" matches", rule.name()));
    let device = inspection.identity.as_ref().map_or(UNKNOWN_DEVICE, |identity| &identity.device_id);
    match rule.plan(message, device) {
        Ok(plan) => lines.extend(describe(&plan, &inspection.gpio)),
        Err(error) => lines.push(format!("the action would fail before its first step: {error}")),
    }
    lines
}

fn describe(plan: &Plan, gpio: &GpioSettings) -> Vec<String> {
    if plan.steps.is_empty() {
        return vec!["nothing would be done: the message would be completed and logged".to_owned()];
    }
    let mut lines = vec![format!("steps, within {} together:", humantime::format_duration(plan.timeout))];
    lines.extend(plan.steps.iter().enumerate().map(|(index, step)| {
        let what = match step {
            PlannedStep::Gpio { pin, change } => describe_change(pin, *change, gpio),
            PlannedStep::Run { argv } => format!("run {argv:?}"),
            PlannedStep::Shell { text } => format!("shell {text:?}"),
        };
        format!("  {}. {what}", index + 1)
    }));
    if !plan.environment.is_empty() {
        lines.push("environment, beside a fixed PATH; the body is on standard input:".to_owned());
        lines.extend(plan.environment.iter().map(|(name, value)| format!("  {name}={value:?}")));
    }
    lines
}

fn describe_change(pin: &str, change: PinChange, gpio: &GpioSettings) -> String {
    let line = match gpio.pins.get(pin).map(|settings| &settings.line) {
        Some(Line::Number(number)) => format!(" (line {number})"),
        Some(Line::Name(name)) => format!(" (line {name:?})"),
        None => String::new(),
    };
    let what = match change {
        PinChange::Set(state) => format!("set {state}"),
        PinChange::Toggle => "toggle".to_owned(),
        PinChange::Pulse(duration) => format!("on for {}, then off", humantime::format_duration(duration)),
        PinChange::Blink { times, period } => {
            format!("blink with times = {times}, period = {}", humantime::format_duration(period))
        }
    };
    format!("pin {pin}{line}: {what}")
}
