//! The explanation of a sample message: which rule matches it, and all that would be done.
//!
//! Owns: its sentences. Must not know: how rules match or plans are made; how they are performed.

use std::collections::BTreeSet;

use humantime::format_duration;

use crate::config::{GpioSettings, Inspection};
use crate::credentials::Transport;
use crate::message::{C2dMessage, Source};
use crate::rules::{Foreseen, OnCrash, OnFailure, Plan, PlannedStep, Policy, Rules, Settle, Unmatched};

use super::doors;
use super::forecast::{Forecast, describe_step};

/// Which rule matches the message, why the rules before it do not, and exactly what would be done.
pub(super) fn explain(
    rules: &Rules,
    inspection: &Inspection,
    message: &C2dMessage,
    forecast: &Forecast<'_>,
) -> Vec<String> {
    let mut lines: Vec<_> = doors::arrival(message, inspection).into_iter().collect();
    let why = &forecast.why;
    if forecast.outcome == Foreseen::Undecodable {
        lines.push(format!("the caller would get 400, and nothing would be done: {why}"));
        return lines;
    }
    let is_call = matches!(message.source(), Source::Method(_));
    let transport = match message.source() {
        Source::C2d => inspection.transport,
        Source::Input(_) | Source::Method(_) => Transport::Mqtt,
    };
    for (rule, mismatches) in rules.mismatches(message) {
        lines.push(format!("rule \"{}\" does not match: {}", rule.name(), mismatches.join("; ")));
    }
    let Some(rule) = forecast.rule else {
        let how = match inspection.unmatched {
            Unmatched::Complete => "completed",
            Unmatched::Reject if transport == Transport::Amqp => "rejected",
            Unmatched::Reject => "completed (MQTT cannot reject it)",
        };
        lines.push(if is_call {
            "no rule matches: the caller would get 404, and nothing would be done".to_owned()
        } else {
            format!(
                "no rule matches: the message would be {how}, logged and kept in the inbox; nothing else \
                 would be done"
            )
        });
        lines.extend((!is_call).then(|| doors::contents(message)).into_iter().flatten());
        return lines;
    };
    let set = inspection.twin_rules.iter().find(|set| set.rule == rule.name());
    let origin = set.map_or(String::new(), |set| format!(" of {}", set.text));
    lines.push(format!("rule \"{}\"{origin} matches", rule.name()));
    match &forecast.plan {
        Some(plan) => {
            let policy = rule.policy();
            if plan.steps.is_empty() && is_call {
                let status = if policy.settle == Settle::OnAccept { 202 } else { 200 };
                lines.push(format!("nothing would be done: the caller would get {status}"));
                return lines;
            }
            lines.extend(describe(plan, &inspection.gpio));
            if !plan.steps.is_empty() {
                lines.push("around the action:".to_owned());
                lines.extend(around(policy, plan, &inspection.gpio, transport, is_call));
            }
        }
        None if is_call => lines.push(format!("the caller would get 400, and nothing would be done: {why}")),
        None => lines.push(format!("the action would fail before its first step: {why}")),
    }
    lines
}

fn describe(plan: &Plan, gpio: &GpioSettings) -> Vec<String> {
    if plan.steps.is_empty() {
        return vec!["nothing would be done: the message would be completed and logged".to_owned()];
    }
    let mut lines = vec![format!("steps, within {} together:", format_duration(plan.timeout))];
    lines.extend(
        plan.steps
            .iter()
            .enumerate()
            .map(|(index, step)| format!("  {}. {}", index + 1, describe_step(step, gpio))),
    );
    if !plan.environment.is_empty() {
        lines.push("environment, beside a fixed PATH; the body is on standard input:".to_owned());
        lines.extend(plan.environment.iter().map(|(name, value)| format!("  {name}={value:?}")));
    }
    lines
}

/// What happens to the message before and after its steps, a line for each part.
fn around(
    policy: &Policy,
    plan: &Plan,
    gpio: &GpioSettings,
    transport: Transport,
    is_call: bool,
) -> Vec<String> {
    let completed = match policy.settle {
        Settle::AfterAction => "after the action",
        Settle::OnAccept => "as soon as it is recorded, before the action",
    };
    let settled = match is_call {
        true => ("answered".to_owned(), doors::answered(policy, plan)),
        false => ("completed".to_owned(), completed.to_owned()),
    };
    let crash = match policy.on_crash(plan) {
        _ if is_call && policy.settle == Settle::AfterAction => {
            "not run again: no caller waits for the answer any more"
        }
        OnCrash::Retry => "run again",
        OnCrash::GiveUp => "not run again: the message becomes a dead letter",
    };
    let pauses = (1..policy.attempts).map(|n| format_duration(policy.backoff_after(n)).to_string());
    let attempts = match pauses.collect::<Vec<_>>().join(", ") {
        pauses if pauses.is_empty() => "1".to_owned(),
        pauses => format!("{}, with pauses of {pauses}", policy.attempts),
    };
    let lanes: Vec<_> = policy.lanes.iter().map(|lane| describe_lane(lane, gpio)).collect();
    let reported = match (policy.reports.telemetry, policy.reports.twin) {
        (true, true) => "as telemetry, in the twin",
        (true, false) => "as telemetry",
        (false, true) => "in the twin",
        (false, false) => "only in the log",
    };
    let mut parts = vec![
        settled,
        ("on a crash".to_owned(), crash.to_owned()),
        ("attempts".to_owned(), attempts),
        ("lanes".to_owned(), lanes.join("; ")),
    ];
    if !is_call {
        parts.extend(on_failure(policy, transport).map(|what| ("on failure".to_owned(), what)));
    }
    parts.extend(limits(policy, is_call).map(|limits| ("limits".to_owned(), limits)));
    let pins: BTreeSet<&str> = plan.steps.iter().filter_map(pin_of).collect();
    parts.extend(pins.into_iter().filter_map(|pin| Some((format!("pin {pin}"), pin_guards(pin, gpio)?))));
    parts.push(("reported".to_owned(), reported.to_owned()));
    parts.iter().map(|(part, what)| format!("  {part:<10}  {what}")).collect()
}

/// How a message is settled when its action failed. MQTT leaves no choice: then `None`, unless the configuration asks
/// for one.
fn on_failure(policy: &Policy, transport: Transport) -> Option<String> {
    if transport == Transport::Amqp {
        let how = match (policy.settle, policy.on_failure()) {
            (Settle::OnAccept, _) => return None,
            (_, OnFailure::Reject) => "rejected",
            (_, OnFailure::Abandon) => "given back: the hub sends it again, and the agent runs it again",
            (_, OnFailure::Complete) => "completed",
        };
        return Some(how.to_owned());
    }
    let cannot = match policy.on_failure? {
        OnFailure::Reject => ", because MQTT cannot reject it",
        OnFailure::Abandon => ", because MQTT cannot give it back",
        OnFailure::Complete => "",
    };
    Some(format!("completed{cannot}"))
}

fn pin_of(step: &PlannedStep) -> Option<&str> {
    match step {
        PlannedStep::Gpio { pin, .. } => Some(pin),
        PlannedStep::Run { .. } | PlannedStep::Shell { .. } => None,
    }
}

fn describe_lane(lane: &str, gpio: &GpioSettings) -> String {
    match lane.split_once(':') {
        Some(("interlock", first)) => {
            let group = gpio.interlocks.iter().find(|group| group.first().is_some_and(|one| one == first));
            format!("pins {}", group.map_or(first.to_owned(), |group| group.join(", ")))
        }
        Some(("pin", pin)) => format!("pin {pin}"),
        Some(("lane", name)) => format!("\"{name}\""),
        _ => "its own".to_owned(),
    }
}

fn limits(policy: &Policy, is_call: bool) -> Option<String> {
    let interval = policy.min_interval.map(|interval| format!("one in {}", format_duration(interval)));
    let rate = policy.rate.map(|rate| format!("{} in {}", rate.count, format_duration(rate.per)));
    let limits: Vec<_> = interval.into_iter().chain(rate).collect();
    let beyond = if is_call { "further callers get 429" } else { "further messages are refused" };
    (!limits.is_empty()).then(|| format!("at most {}; {beyond}", limits.join(", ")))
}

/// The guards of a pin: what the pin does by itself, and what it refuses.
fn pin_guards(pin: &str, gpio: &GpioSettings) -> Option<String> {
    let settings = gpio.pins.get(pin)?;
    let max_on = settings.max_on.map(|max_on| format!("off after {} on", format_duration(max_on)));
    let away = settings.on_disconnect;
    let away =
        away.map(|away| format!("{} after {} without the hub", away.state, format_duration(away.after)));
    let groups = gpio.interlocks.iter().filter(|group| group.iter().any(|one| one == pin));
    let others: Vec<&str> = groups.flatten().map(String::as_str).filter(|other| *other != pin).collect();
    let interlock = (!others.is_empty()).then(|| format!("never on together with {}", others.join(", ")));
    let guards: Vec<_> = [max_on, away, interlock].into_iter().flatten().collect();
    (!guards.is_empty()).then(|| guards.join("; "))
}
