//! `check`: is the configuration valid, and what would a message do?
//!
//! Owns: the verdict, what goes to which output, the exit code. Must not know: how rules match, how plans are made and
//! performed.

use std::path::PathBuf;

use bytes::Bytes;
use serde_json::json;

use crate::config::{self, Inspection, Provisioning, Remote, Report, TwinPart, TwinRules, counted};
use crate::credentials::{DeviceAuth, DeviceIdentity, Over, Transport};
use crate::message::C2dMessage;
use crate::provisioning::Enrolment;
use crate::rules::{Door, Expectation, Foreseen, OnFailure, Rules, Unmatched};

use super::shown::Output;
use super::{DEFAULT_CONFIG, Exit, Failure};
use explain::explain;
use forecast::Forecast;
use rule_tests::Ran;

mod doors;
mod explain;
mod forecast;
mod rule_tests;

/// Check a configuration, run its rule tests, and explain what a message would do. Starts no program and touches no pin.
///
/// Reports all problems at once, each with its place. Then it runs the rule tests: the [[test]] tables in the configuration
/// and in config.test.toml beside config.toml. With --message or --data it runs no tests, but shows which rule matches the
/// message, why the rules before it do not match, and exactly what would be done. For a direct method it also shows
/// what the caller would get.
#[derive(Debug, clap::Args)]
#[command(group = clap::ArgGroup::new("sample").args(["message", "data"]).multiple(true))]
#[command(after_help = "Examples:\n  c2d-agent check -c config.toml\n  \
    c2d-agent check -c config.toml --message 'action=pump&state=on'\n  \
    c2d-agent check --message '$.cid=order-7&zone=north' --data '{\"litres\": 20}'\n  \
    c2d-agent check --message '$.method=pump' --data '{\"state\": \"on\"}'\n  \
    c2d-agent check --message '$.input=commands&$.cmid=sensor&level=high'\n  \
    c2d-agent check --message 'action=pump&state=on' --expect pump\n\n\
    Exit codes: 0 the configuration is valid, and all is as expected; 2 it or its tests have problems, or the message cannot be \
    read; 3 no rule matches the message, it is not as expected, or a test failed.")]
pub(super) struct CheckArgs {
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
    /// The rule that must match the sample message, and whose action must begin. Otherwise the exit code is 3.
    #[arg(long, value_name = "RULE", requires = "sample", conflicts_with = "expect_none")]
    expect: Option<String>,
    /// The sample message must match no rule. Otherwise the exit code is 3.
    #[arg(long, requires = "sample")]
    expect_none: bool,
    /// Print one JSON object per line: each problem, each test, the sample message, the verdict.
    #[arg(long)]
    json: bool,
}

/// All that may be printed.
struct Findings<'a> {
    inspection: &'a Inspection,
    twin: &'a TwinPart,
    /// Problems and warnings of the tests.
    doubts: &'a Report,
    ran: Vec<Ran<'a>>,
    /// The rules that the tests apply to.
    own_rules: &'a Rules,
    sample: Option<&'a C2dMessage>,
    forecast: Option<Forecast<'a>>,
    expected: Option<Expectation>,
}

/// Prints the verdict, the tests that failed, and the explanation of the sample message when there is one.
///
/// # Errors
/// When the sample message cannot be read, when the expected rule does not exist, or when standard output cannot be
/// written.
pub(super) fn run(args: &CheckArgs) -> Result<Exit, Failure> {
    let sample = sample(args)?;
    let (inspection, twin) =
        config::inspect_with(&args.config, Remote::Shown, &|name| std::env::var(name).ok());
    let (tests, doubts) = config::read_tests(&inspection);
    let own_rules = inspection.own_rules().unwrap_or_default();
    let mut findings = Findings {
        inspection: &inspection,
        twin: &twin,
        doubts: &doubts,
        ran: Vec::new(),
        own_rules: &own_rules,
        sample: sample.as_ref(),
        forecast: None,
        expected: expectation(args, &inspection)?,
    };
    match (&sample, &inspection.rules) {
        (Some(sample), Some(rules)) => findings.forecast = Some(Forecast::of(rules, &inspection, sample)),
        (None, Some(_)) => findings.ran = Ran::all(&tests, &own_rules, &inspection),
        (_, None) => {}
    }
    if args.json {
        findings.print_json()?
    } else {
        findings.print()?
    }
    Ok(findings.exit())
}

impl Findings<'_> {
    fn is_valid(&self) -> bool {
        self.inspection.report.problems() == 0 && self.doubts.problems() == 0
    }

    /// Whether the sample message is as expected; without an expectation, whether a rule matches.
    fn is_as_expected(&self) -> bool {
        match (&self.forecast, &self.expected) {
            (Some(forecast), Some(expected)) => forecast.meets(expected),
            (Some(forecast), None) => forecast.rule.is_some(),
            (None, _) => true,
        }
    }

    fn exit(&self) -> Exit {
        match () {
            () if !self.is_valid() => Exit::Usage,
            () if self.is_as_expected() && self.ran.iter().all(Ran::passed) => Exit::Done,
            () => Exit::NegativeFeedback,
        }
    }

    fn print(&self) -> Result<(), Failure> {
        let inspection = self.inspection;
        for report in [&inspection.report, self.doubts].into_iter().filter(|report| !report.is_empty()) {
            super::tell(report);
        }
        if let Some(doubt) = doubtful_twin(self.twin, inspection) {
            super::tell(doubt);
        }
        let mut lines = drop_ins(inspection);
        if self.is_valid() {
            lines.push(verdict(inspection));
            lines.extend(twin_lines(self.twin, inspection));
            lines.extend(without_effect(inspection));
            lines.extend(doubtful_certificate(inspection));
            lines.extend(inspection.rules.iter().flat_map(|rules| doors::closed(rules, inspection)));
        }
        lines.extend(rule_tests::describe(&self.ran, self.own_rules, inspection));
        match (self.sample, &inspection.rules, &self.forecast) {
            (Some(sample), Some(rules), Some(forecast)) => {
                lines.extend(explain(rules, inspection, sample, forecast));
                let expected = self.expected.as_ref().filter(|expected| !forecast.meets(expected));
                let compared = |expected| rule_tests::compare(expected, forecast, rules, inspection, sample);
                lines.extend(expected.into_iter().flat_map(compared));
            }
            (Some(_), ..) => super::tell(
                "correct the rules first: the message cannot be explained while they have problems",
            ),
            (None, ..) => {}
        }
        let mut out = Output::new();
        for line in lines {
            out.line(&line)?;
        }
        Ok(out.flush()?)
    }

    fn print_json(&self) -> Result<(), Failure> {
        let (inspection, mut out) = (self.inspection, Output::new());
        for report in [&inspection.report, self.doubts] {
            for text in report.problem_lines() {
                out.json(&json!({ "event": "problem", "text": text }))?;
            }
            for text in report.warning_lines() {
                out.json(&json!({ "event": "warning", "text": text }))?;
            }
        }
        if let Some(text) = doubtful_twin(self.twin, inspection) {
            out.json(&json!({ "event": "warning", "text": text }))?;
        }
        for ran in &self.ran {
            out.json(&ran.json())?;
        }
        if let Some(forecast) = &self.forecast {
            let mut event = json!({ "event": "message", "found": rule_tests::found_json(forecast) });
            if let Some(expected) = &self.expected {
                event["expected"] = rule_tests::expected_json(expected);
                event["passed"] = self.is_as_expected().into();
            }
            out.json(&event)?;
        }
        let failed = self.ran.iter().filter(|ran| !ran.passed()).count();
        let mut event = json!({ "event": "checked", "valid": self.is_valid(), "pins": inspection.gpio.pins.len(),
            "tests": self.ran.len(), "failedTests": failed });
        if let Some(rules) = &inspection.rules {
            event["rules"] = rules.len().into();
        }
        out.json(&event)?;
        Ok(out.flush()?)
    }
}

/// What the command line expects of the sample message.
fn expectation(args: &CheckArgs, inspection: &Inspection) -> Result<Option<Expectation>, Failure> {
    if let (Some(name), Some(rules)) = (&args.expect, &inspection.rules)
        && rules.get(name).is_none()
    {
        return Err(Failure::usage(anyhow::anyhow!("--expect: {}", rules.lacks(name))));
    }
    let outcome = match &args.expect {
        Some(_) => Foreseen::Begun,
        None if args.expect_none => Foreseen::Unmatched,
        None => return Ok(None),
    };
    Ok(Some(Expectation { rule: args.expect.clone(), outcome, steps: None }))
}

fn sample(args: &CheckArgs) -> Result<Option<C2dMessage>, Failure> {
    if args.message.is_none() && args.data.is_none() {
        return Ok(None);
    }
    let body = Bytes::from(args.data.clone().unwrap_or_default());
    let message = C2dMessage::sample(args.message.as_deref().unwrap_or_default(), body);
    let message = message.map_err(Failure::usage)?;
    Ok(Some(message))
}

/// The files that were read, if more than one, and the values of earlier files that later files replace.
fn drop_ins(inspection: &Inspection) -> Vec<String> {
    let Some((main, drop_ins @ [_, ..])) = inspection.files.split_first() else { return Vec::new() };
    let mut lines = vec![format!("{} and {}:", main.display(), counted(drop_ins.len(), "drop-in"))];
    lines.extend(drop_ins.iter().map(|path| format!("  {}", path.display())));
    lines.extend(inspection.replaced.iter().cloned());
    lines
}

/// What is wrong with the stored rules of the twin. An agent that starts now would run without them.
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

/// What the twin may set, and the rules that it has set.
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
    let device = match (&inspection.provisioning, &inspection.identity) {
        (Some(Provisioning { enrolment, assigned: None, .. }), _) => {
            let Enrolment { registration_id, endpoint, .. } = enrolment;
            format!(", registration {registration_id}, for which {endpoint} has not assigned a hub yet")
        }
        (_, Some(identity)) => format!(", device {} on hub {}", identity.device_id, identity.hub),
        (_, None) => String::new(),
    };
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

/// Whether only a module signs in. It speaks MQTT with its gateway, whatever `[device]` says.
fn is_module_alone(inspection: &Inspection) -> bool {
    inspection.identity.is_none() && inspection.module.is_some()
}

/// The settings that have no effect with this transport.
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
