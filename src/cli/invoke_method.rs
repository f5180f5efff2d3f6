//! `c2d-agent invoke-method`: calls a direct method of a device or a module, or of many, and prints the answers.
//!
//! Owns: its arguments, what is printed, the exit code. Must not know: HTTP.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use serde::Serialize;
use serde_json::value::RawValue;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

use super::back_end::{self, HubArgs, OutputArgs, print};
use super::many_devices::outcomes::{self, CallEnd, ToldCall};
use super::many_devices::{self, ManyCalls, ManyDevicesArgs, OneOrManyArgs, job};
use super::shown::{json, plain, shorten, without_controls};
use super::{Exit, Failure, sentence, transport};
use crate::service::{
    Addressee, HttpsService, JobWork, MAX_METHOD_PAYLOAD, MethodAnswer, MethodCall, ServiceError,
    TOKEN_LIFETIME,
};

/// The response timeouts that the hub accepts. Source: Microsoft's page on direct methods.
const SHORTEST: Duration = Duration::from_secs(5);
const LONGEST: Duration = Duration::from_secs(300);

/// Most characters of a payload in the line about one of many devices; --json has all.
const MOST_SHOWN: usize = 200;

/// Call a direct method of a device or of many, and print the answers.
///
/// The device must be connected and accept methods; the hub does not keep calls for later. The answer comes from the
/// device: a status, and JSON. With --devices-from or --query, ten devices are called at a time, each once.
///
/// The service connection string comes from --connection-string-file or from the variable
/// C2D_SERVICE_CONNECTION_STRING, never from an argument.
#[derive(Debug, clap::Args)]
#[command(override_usage = "c2d-agent invoke-method [OPTIONS] --method <NAME> --device <ID>
       c2d-agent invoke-method [OPTIONS] --method <NAME> --devices-from <FILE>
       c2d-agent invoke-method [OPTIONS] --method <NAME> --query <SQL>")]
#[command(after_help = "Examples:
  c2d-agent invoke-method --device pi-01 --method reboot
  c2d-agent invoke-method --device pi-01 --method relay --data '{\"value\": \"on\"}'
  c2d-agent invoke-method --device pi-01 --method backup --timeout 2m
  c2d-agent invoke-method --device edge --module relay --method ping
  c2d-agent invoke-method --query \"tags.site = '12'\" --method ping

Exit codes: 0 the device's status is 200 to 299; 1 an error; 2 the arguments are wrong; 3 the device is not connected, \
or takes no methods (of many: some have not answered so); 4 no answer in time; 5 the device has another status.", mut_arg("transport", |argument| transport::only(argument, transport::OF_REST)))]
pub(super) struct InvokeArgs {
    #[command(flatten)]
    target: OneOrManyArgs,
    /// The method's name.
    #[arg(long, value_name = "NAME")]
    method: String,
    /// The payload, as JSON; null without --data and --file.
    #[arg(long, value_name = "JSON", conflicts_with = "file")]
    data: Option<String>,
    /// The payload, from a file; - is standard input.
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// How long the device may take to answer, 5s to 5m.
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = response_timeout)]
    timeout: Duration,
    /// How long to wait for a device that is not connected, at most 5m.
    #[arg(long, value_name = "DURATION", default_value = "0s", value_parser = connect_timeout)]
    connect_timeout: Duration,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    hub: HubArgs,
    #[command(flatten)]
    many: ManyDevicesArgs,
}

/// The objects of `--json`: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
enum InvokeLine<'a> {
    Answered {
        #[serde(flatten)]
        call: CalledMethod<'a>,
        status: i64,
        payload: &'a Option<Box<RawValue>>,
        duration_ms: u64,
    },
    Failed {
        #[serde(flatten)]
        call: CalledMethod<'a>,
        error: String,
    },
}

/// The method that was called, and where.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CalledMethod<'a> {
    device_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    module_id: Option<&'a str>,
    method: &'a str,
}

/// Calls the method once, at each device that is meant.
///
/// # Errors
/// When the hub cannot be reached or refuses, or the one device does not answer.
pub(super) fn run(args: &InvokeArgs) -> Result<Exit, Failure> {
    let one = args.target.one().map_err(Failure::usage)?;
    args.many.check_stdin("--file", args.file.as_deref()).map_err(Failure::usage)?;
    let method = args.call().map_err(Failure::usage)?;
    let Some(target) = one else { return call_many(args, &method) };
    let lifetime = TOKEN_LIFETIME + args.timeout + args.connect_timeout;
    let rest = args.hub.rest().map_err(Failure::usage)?;
    let as_json = args.output.json;
    super::block_on(async {
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
        let started = Instant::now();
        let invoke = async { anyhow::Ok(rest.service(lifetime)?.invoke_method(&target, &method).await?) };
        let answered = tokio::select! {
            answered = invoke => answered,
            Some(_signal) = signals.next() => Err(anyhow!("interrupted by a signal: the device may or may not run {}", method.name)),
        };
        let call = CalledMethod {
            device_id: target.device_id(),
            module_id: target.module_id(),
            method: &method.name,
        };
        match answered {
            Ok(answer) => {
                let took = started.elapsed();
                let MethodAnswer { status, payload } = &answer;
                if as_json {
                    let duration_ms = took.as_millis().try_into().unwrap_or(u64::MAX);
                    print(&json(&InvokeLine::Answered { call, status: *status, payload, duration_ms })?)?;
                } else {
                    print(&told(&target, &method.name, &answer, took))?;
                }
                Ok(if (200..300).contains(status) { Exit::Done } else { Exit::ActionFailed })
            }
            Err(error) => {
                if as_json {
                    print(&json(&InvokeLine::Failed { call, error: sentence(&error) })?)?;
                }
                Err(failed(error))
            }
        }
    })
}

/// Calls the method at many devices.
fn call_many(args: &InvokeArgs, method: &MethodCall) -> Result<Exit, Failure> {
    let bytes = method.payload.get().len();
    let calls = ManyCalls {
        many: &args.many,
        module: args.target.module(),
        hub: &args.hub,
        json: args.output.json,
        doing: format!("calling {}", plain(&method.name)),
        per_minute: &|tier, units| tier.methods_per_minute(units, bytes),
        longest: args.timeout + args.connect_timeout,
    };
    if args.many.is_job() {
        return job::run(&calls, JobWork::Method(method));
    }
    let call = async |service: &mut HttpsService, target: &Addressee| {
        let started = Instant::now();
        Ok((service.invoke_method(target, method).await?, started.elapsed()))
    };
    many_devices::run(&calls, call, |target, result| told_of_many(args.output.json, target, method, result))
}

/// A line about one of many devices.
fn told_of_many(
    as_json: bool,
    target: &Addressee,
    method: &MethodCall,
    result: &Result<(MethodAnswer, Duration), ServiceError>,
) -> anyhow::Result<ToldCall> {
    let call =
        CalledMethod { device_id: target.device_id(), module_id: target.module_id(), method: &method.name };
    Ok(match result {
        Ok((MethodAnswer { status, payload }, took)) => {
            let line = if as_json {
                let duration_ms = took.as_millis().try_into().unwrap_or(u64::MAX);
                json(&InvokeLine::Answered { call, status: *status, payload, duration_ms })?
            } else {
                let payload = payload.as_ref().map_or("null", |payload| payload.get());
                let payload = without_controls(&shorten(payload, MOST_SHOWN));
                format!("{}  {status}  {payload}", target.device_id())
            };
            let outcome = format!("answered with status {status}");
            let end = if (200..300).contains(status) { CallEnd::Done } else { CallEnd::Failed };
            ToldCall { line, outcome, end }
        }
        Err(error) => {
            let (outcome, sentence) = (outcomes::kind(error).to_owned(), outcomes::sentence(error));
            let end = outcomes::end(error);
            let line = match as_json {
                true => json(&InvokeLine::Failed { call, error: sentence })?,
                false => format!("{}  failed: {sentence}", target.device_id()),
            };
            ToldCall { line, outcome, end }
        }
    })
}

/// One line about the answer, and below it the payload.
fn told(target: &Addressee, method: &str, answer: &MethodAnswer, took: Duration) -> String {
    let status = answer.status;
    let line = format!("{target} answered {method} with status {status} after {:.2} s", took.as_secs_f64());
    match &answer.payload {
        None => line,
        Some(payload) => {
            let lines = payload.get().lines().map(without_controls);
            std::iter::once(line).chain(lines).collect::<Vec<_>>().join("\n")
        }
    }
}

fn failed(error: anyhow::Error) -> Failure {
    let exit = match error.downcast_ref() {
        Some(ServiceError::NotOnline { .. }) => Exit::NegativeFeedback,
        Some(ServiceError::NoMethodAnswer { .. }) => Exit::NoFeedback,
        _ => return back_end::failed(error),
    };
    Failure { exit, error }
}

impl InvokeArgs {
    fn call(&self) -> anyhow::Result<MethodCall> {
        let text =
            back_end::text_of("payload", self.data.as_deref(), self.file.as_deref(), MAX_METHOD_PAYLOAD)?;
        let hint = "the payload is not JSON: text needs quotes of its own, as in --data '\"on\"'";
        let payload = RawValue::from_string(if text.trim().is_empty() { "null".to_owned() } else { text });
        let payload = payload.context(hint)?;
        if self.method.is_empty() {
            return Err(anyhow!("--method is empty: give the method's name"));
        }
        Ok(MethodCall {
            name: self.method.clone(),
            payload,
            response_timeout: self.timeout,
            connect_timeout: self.connect_timeout,
        })
    }
}

fn response_timeout(text: &str) -> Result<Duration, String> {
    whole_seconds(text, SHORTEST)
}

fn connect_timeout(text: &str) -> Result<Duration, String> {
    whole_seconds(text, Duration::ZERO)
}

fn whole_seconds(text: &str, least: Duration) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(time) if (least..=LONGEST).contains(&time) && time.subsec_nanos() == 0 => Ok(time),
        Ok(_) => Err(format!("must be whole seconds, from {}s to {}s", least.as_secs(), LONGEST.as_secs())),
        Err(_) => Err("use a number with a unit, such as 30s or 2m".to_owned()),
    }
}
