//! `check`: is the configuration valid, and what would a message do?
//!
//! Owns: the explanation. Must not know: how rules match or plans are made; how they are performed.
//! Used by: `cli`.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context as _;
use bytes::Bytes;
use humantime::format_duration;

use crate::agent;
use crate::config::{self, GpioSettings, Inspection, Line, Remote, TwinPart, TwinRules, counted};
use crate::credentials::{DeviceAuth, DeviceIdentity, Over, Transport};
use crate::message::{C2dMessage, Source};
use crate::rules::{
    Door, OnCrash, OnFailure, PinChange, Plan, PlannedStep, Policy, Rules, Settle, Unmatched,
};

use super::{DEFAULT_CONFIG, Exit, Failure};

mod doors;

/// Stands for the device id in an explanation when the configuration does not say it.
const UNKNOWN_DEVICE: &str = "DEVICE";

/// Check a configuration, and explain what a message would do. Runs nothing and touches no pin.
///
/// Reports all problems at once, each with its place. With --message or --data it also shows which rule matches the
/// message, why the rules before it do not match, and exactly what would be done. For a direct method it also shows
/// what the caller would get.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  c2d-agent check -c config.toml\n  \
    c2d-agent check -c config.toml --message 'action=pump&state=on'\n  \
    c2d-agent check --message '$.cid=order-7&zone=north' --data '{\"litres\": 20}'\n  \
    c2d-agent check --message '$.method=pump' --data '{\"state\": \"on\"}'\n  \
    c2d-agent check --message '$.input=commands&$.cmid=sensor&level=high'\n\n\
    Exit codes: 0 the configuration is valid, 2 it has problems or the message cannot be read.")]
pub(super) struct Args {
    /// The configuration file; files of config.d beside it whose names end in .toml are read after it.
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Properties of a sample message, as on the wire: name=value pairs with & between them, percent-encoded where
    /// needed; system properties as in '$.mid=m-1'. '$.method=NAME' makes it a call of that direct method, with the
    /// values in --data. '$.input=NAME' makes it a message to that input of the module. Otherwise it is a C2D message.
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
    let (inspection, twin) =
        config::inspect_with(&args.config, Remote::Shown, &|name| std::env::var(name).ok());
    if !inspection.report.is_empty() {
        super::tell(&inspection.report);
    }
    if let Some(doubt) = doubtful_twin(&twin, &inspection) {
        super::tell(doubt);
    }
    let valid = inspection.report.problems() == 0;
    let mut lines = drop_ins(&inspection);
    if valid {
        lines.push(verdict(&inspection));
        lines.extend(twin_lines(&twin, &inspection));
        lines.extend(without_effect(&inspection));
        lines.extend(doubtful_certificate(&inspection));
        lines.extend(inspection.rules.iter().flat_map(|rules| doors::closed(rules, &inspection)));
    }
    if let Some(sample) = sample {
        match &inspection.rules {
            Some(rules) => lines.extend(explain(rules, &inspection, &sample)),
            None => super::tell(
                "correct the rules first: the message cannot be explained while they have problems",
            ),
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
    let message = doors::sample(args.message.as_deref().unwrap_or_default(), body).map_err(Failure::usage)?;
    Ok(Some(message))
}

/// Which files were read when there is more than one, and which values of earlier ones do not count.
fn drop_ins(inspection: &Inspection) -> Vec<String> {
    let Some((main, drop_ins @ [_, ..])) = inspection.files.split_first() else { return Vec::new() };
    let mut lines = vec![format!("{} and {}:", main.display(), counted(drop_ins.len(), "drop-in"))];
    lines.extend(drop_ins.iter().map(|path| format!("  {}", path.display())));
    lines.extend(inspection.replaced.iter().cloned());
    lines
}

/// What is wrong with the rules of the twin that an agent would find at its start: it would go on without them.
fn doubtful_twin(twin: &TwinPart, inspection: &Inspection) -> Option<String> {
    let file = |inbox: &config::InboxSettings| TwinRules::file(&inbox.path).display().to_string();
    let file = inspection.inbox.as_ref().map(file).unwrap_or_default();
    match twin {
        TwinPart::Used { warnings, .. } if !warnings.is_empty() => Some(warnings.to_string()),
        TwinPart::Absent | TwinPart::Used { .. } => None,
        TwinPart::Refused { report, .. } => {
            Some(format!("{file}: warning: none of the rules of the twin is used:\n{report}"))
        }
        TwinPart::Unreadable { file, reason } => Some(format!(
            "{}: warning: the rules of the twin cannot be read: {reason}; the agent runs without them until \
             it has read its twin",
            file.display()
        )),
    }
}

/// What the twin may set, and what it has set.
fn twin_lines(twin: &TwinPart, inspection: &Inspection) -> Vec<String> {
    let mut lines = Vec::new();
    let settings = &inspection.twin;
    if settings.accepts_rules {
        let list = |what: &str, list: &[&str]| match list {
            [] => format!("no {what}"),
            [one] => format!("{what} {one}"),
            many => format!("{what}s {}", many.join(", ")),
        };
        let commands: Vec<&str> = settings.commands().collect();
        let pins: Vec<&str> = settings.pins.iter().map(String::as_str).collect();
        lines.push(format!(
            "the twin may set rules, with {} and {}",
            list("command", &commands),
            list("pin", &pins)
        ));
    }
    if let TwinPart::Used { rules, .. } = twin {
        let what = counted(inspection.twin_rules.len(), "rule");
        lines.push(format!("{what} of the twin, with version {} of its desired properties:", rules.version));
        let each = inspection.twin_rules.iter();
        lines.extend(each.map(|rule| format!("  rule \"{}\" in {}", rule.rule, rule.text)));
    }
    lines
}

fn verdict(inspection: &Inspection) -> String {
    let rules = counted(inspection.rules.as_ref().map_or(0, Rules::len), "rule");
    let pins = counted(inspection.gpio.pins.len(), "pin");
    let device = inspection
        .identity
        .as_ref()
        .map_or(String::new(), |identity| format!(", device {} on hub {}", identity.device_id, identity.hub));
    let module = inspection.module.as_ref().map_or(String::new(), |module| {
        format!(", module {} by {}", module.identity.client_id(), module.identity.dialled())
    });
    let way = match (inspection.transport, inspection.route.over) {
        _ if is_module_alone(inspection) => String::new(),
        (Transport::Mqtt, Over::Tls) => String::new(),
        (Transport::Mqtt, _) => format!(", MQTT {}", inspection.route),
        (Transport::Amqp, _) => format!(", AMQP {}", inspection.route),
    };
    format!("configuration is valid: {rules}, {pins}{device}{way}{module}")
}

/// A module speaks MQTT with its gateway, whatever `[device]` says.
fn is_module_alone(inspection: &Inspection) -> bool {
    inspection.identity.is_none() && inspection.module.is_some()
}

/// Which words of the configuration the transport cannot follow.
fn without_effect(inspection: &Inspection) -> Option<String> {
    let other = |on_failure: &OnFailure| *on_failure != OnFailure::Complete;
    let rules = inspection.rules.iter().flat_map(Rules::iter);
    let has_choice = inspection.transport == Transport::Amqp && !is_module_alone(inspection);
    let rules = rules.filter(|rule| !has_choice || rule.doors().all(|door| door != Door::C2d));
    let named = rules.filter(|rule| rule.policy().on_failure.as_ref().is_some_and(other));
    let mut keys: Vec<String> = named.map(|rule| format!("on_failure of rule \"{}\"", rule.name())).collect();
    keys.extend((inspection.unmatched == Unmatched::Reject && !has_choice).then(|| "unmatched".to_owned()));
    if keys.is_empty() {
        return None;
    }
    let (keys, has) = (keys.join(", "), if keys.len() == 1 { "has" } else { "have" });
    if has_choice {
        return Some(format!(
            "only a C2D message can be refused or given back: {keys} {has} no effect, because a message to \
             an input is always completed, and a call always answered"
        ));
    }
    let who = if is_module_alone(inspection) { "module" } else { "device" };
    Some(format!(
        "over MQTT a {who} can only complete a message: {keys} {has} no effect; a message that fails is \
         completed, kept as a dead letter and reported as the configuration says"
    ))
}

/// What is known of client certificates over WebSockets.
fn doubtful_certificate(inspection: &Inspection) -> Option<String> {
    let certificate = |identity: &DeviceIdentity| matches!(identity.auth, DeviceAuth::Certificate { .. });
    let doubtful =
        inspection.route.over != Over::Tls && inspection.identity.as_ref().is_some_and(certificate);
    doubtful.then(|| {
        "some hubs have refused client certificates over WebSockets: if the hub refuses the device, use \
         \"mqtt\" or \"amqp\", or a key"
            .to_owned()
    })
}

fn explain(rules: &Rules, inspection: &Inspection, message: &C2dMessage) -> Vec<String> {
    let mut lines: Vec<_> = doors::arrival(message, inspection).into_iter().collect();
    if let Err(why) = agent::check_payload(message) {
        lines.push(format!("the caller would get 400, and nothing would be done: {why}"));
        return lines;
    }
    let is_call = matches!(message.source(), Source::Method(_));
    let transport = match message.source() {
        Source::C2d => inspection.transport,
        Source::Input(_) | Source::Method(_) => Transport::Mqtt,
    };
    let matched = rules.match_message(message);
    for (rule, mismatches) in rules.mismatches(message) {
        lines.push(format!("rule \"{}\" does not match: {}", rule.name(), mismatches.join("; ")));
    }
    let Some(rule) = matched else {
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
    let identities = inspection.identities();
    let device = identities.as_ref().map_or(UNKNOWN_DEVICE, |identities| &identities.first().device_id);
    match rule.plan(message, device) {
        Ok(plan) => {
            let policy = rule.policy();
            if plan.steps.is_empty() && is_call {
                let status = if policy.settle == Settle::OnAccept { 202 } else { 200 };
                lines.push(format!("nothing would be done: the caller would get {status}"));
                return lines;
            }
            lines.extend(describe(&plan, &inspection.gpio));
            if !plan.steps.is_empty() {
                lines.push("around the action:".to_owned());
                lines.extend(around(policy, &plan, &inspection.gpio, transport, is_call));
            }
        }
        Err(error) if is_call => {
            lines.push(format!("the caller would get 400, and nothing would be done: {error}"))
        }
        Err(error) => lines.push(format!("the action would fail before its first step: {error}")),
    }
    lines
}

fn describe(plan: &Plan, gpio: &GpioSettings) -> Vec<String> {
    if plan.steps.is_empty() {
        return vec!["nothing would be done: the message would be completed and logged".to_owned()];
    }
    let mut lines = vec![format!("steps, within {} together:", format_duration(plan.timeout))];
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
    let settings = gpio.pins.get(pin);
    let line = match settings.map(|settings| &settings.line) {
        Some(Line::Number(number)) => format!(" (line {number})"),
        Some(Line::Name(name)) => format!(" (line {name:?})"),
        None => String::new(),
    };
    let (what, on) = match change {
        PinChange::Set(state) => (format!("set {state}"), Duration::ZERO),
        PinChange::Toggle => ("toggle".to_owned(), Duration::ZERO),
        PinChange::Pulse(on) => (format!("on for {}, then off", format_duration(on)), on),
        PinChange::Blink { times, period } => {
            (format!("blink with times = {times}, period = {}", format_duration(period)), period / 2)
        }
    };
    let max_on = settings.and_then(|settings| settings.max_on).filter(|max_on| on > *max_on);
    let fails = max_on
        .map_or(String::new(), |max_on| format!(", which fails: its max_on is {}", format_duration(max_on)));
    format!("pin {pin}{line}: {what}{fails}")
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

/// How a message is settled whose action failed; over MQTT, where there is no choice, when somebody has said it.
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

/// What a pin does by itself, or does not do.
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
