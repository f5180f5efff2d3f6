//! The `do` of a rule.
//!
//! Owns: the kinds of steps in TOML. Must not know: messages, processes, hardware. Used by: `config::rule`.

use std::path::Path;

use toml::de::DeValue;

use crate::rules::{GpioStep, Setting, Step, Template, read_period, read_pulse, read_set, read_times};

use super::files;
use super::gpio;
use super::report::Report;
use super::settings::TwinSettings;
use super::table::{Field, Table, Value, shown};

const KINDS: &str = "gpio, run or shell";
/// By the last part of their paths.
const SHELLS: [&str; 6] = ["sh", "bash", "dash", "ash", "ksh", "zsh"];

/// Reads `do`: an array of steps, empty for none. `allow` limits the steps of a rule of the twin. `None` when there was a
/// problem.
pub(super) fn read(
    field: &Field<'_>,
    pins: &[String],
    allow: Option<&TwinSettings>,
    report: &mut Report,
) -> Option<Vec<Step>> {
    let values = field.array(report)?;
    let steps: Vec<_> = values.iter().map(|value| read_step(value, pins, allow, report)).collect();
    steps.into_iter().collect()
}

fn read_step(
    value: &Value<'_>,
    pins: &[String],
    allow: Option<&TwinSettings>,
    report: &mut Report,
) -> Option<Step> {
    let before = report.problems();
    let mut table = value.named("a step").table("a step", report)?;
    let (gpio, run, shell) = (table.take("gpio"), table.take("run"), table.take("shell"));
    let step = match (gpio, run, shell) {
        (Some(pin), None, None) => {
            table.rename("a gpio step");
            table.unlist(&["run", "shell"]);
            let change = read_change(&mut table, report);
            let pin = read_pin(&pin, pins, allow, report);
            Some(Step::Gpio { pin: pin?, change: change? })
        }
        (None, Some(run), None) => read_run(&run, allow, report),
        (None, None, Some(shell)) if allow.is_some() => {
            let message = "a rule of the twin cannot have shell: use run, with a program that [allow] programs of the device's \
                           configuration lists";
            shell.wrong(message, report)
        }
        (None, None, Some(shell)) => read_shell(&shell, report),
        (None, None, None) => {
            report.problem(value.place.clone(), format!("a step must have one of {KINDS}"));
            return None;
        }
        _ => {
            report.problem(
                value.place.clone(),
                format!("a step has only one of {KINDS}: make two steps of it"),
            );
            return None;
        }
    };
    table.finish(report);
    step.filter(|_| report.problems() == before)
}

fn read_pin(
    field: &Field<'_>,
    pins: &[String],
    allow: Option<&TwinSettings>,
    report: &mut Report,
) -> Option<String> {
    let name = field.text(report)?;
    if !pins.iter().any(|pin| pin == name) {
        return field.wrong(gpio::unknown_pin(name, pins), report);
    }
    if allow.is_some_and(|allow| !allow.pins.iter().any(|pin| pin == name)) {
        let message = format!(
            "a rule of the twin may not switch pin \"{}\": [allow] pins of the device's configuration does not list it",
            shown(name)
        );
        return field.wrong(message, report);
    }
    Some(name.to_owned())
}

fn read_change(table: &mut Table<'_>, report: &mut Report) -> Option<GpioStep> {
    let place = table.place.clone();
    match (table.take("set"), table.take("pulse"), table.take("blink")) {
        (Some(set), None, None) => Some(GpioStep::Set(read_setting(&set, read_set, report)?)),
        (None, Some(pulse), None) => Some(GpioStep::Pulse(read_setting(&pulse, read_pulse, report)?)),
        (None, None, Some(blink)) => {
            let mut blink = blink.table("blink", report)?;
            let times = blink.require("times", "give the number, such as times = 3", report);
            let period = blink.require("period", "give a duration, such as period = \"400ms\"", report);
            blink.finish(report);
            let times = times.and_then(|field| read_setting(&field, read_times, report));
            let period = period.and_then(|field| read_setting(&field, read_period, report));
            Some(GpioStep::Blink { times: times?, period: period? })
        }
        _ => {
            report.problem(place, "a gpio step must have one of set, pulse or blink");
            None
        }
    }
}

/// A value of a pin step: fixed, or a template that a message fills in.
fn read_setting<T>(
    field: &Field<'_>,
    read: fn(&str) -> Result<T, &'static str>,
    report: &mut Report,
) -> Option<Setting<T>> {
    let unusable =
        |text: &str, needs: &str| format!("{} is \"{}\", but must be {needs}", field.key, shown(text));
    let text = match (field.value.value, field.value.integer()) {
        (DeValue::String(text), _) => text.to_string(),
        (_, Some(number)) => number.to_string(),
        _ => return field.wrong_type("a text in quotes, or a number", report),
    };
    let template = read_template(field, &text, report)?;
    match template.literal().map(|literal| read(literal).map_err(|needs| unusable(&text, needs))) {
        Some(Ok(value)) => Some(Setting::Fixed(value)),
        Some(Err(message)) => field.wrong(message, report),
        None => Some(Setting::Filled(template)),
    }
}

fn read_run(field: &Field<'_>, allow: Option<&TwinSettings>, report: &mut Report) -> Option<Step> {
    let values = field.array(report)?;
    let Some((program, arguments)) = values.split_first() else {
        return field
            .wrong("run is empty: it lists the program's absolute path and then its arguments", report);
    };
    let program = read_program(&program.named("the program of run"), allow, report);
    let mut read = Vec::with_capacity(arguments.len());
    for argument in arguments {
        let argument = argument.named("an argument of run");
        read.push(match argument.value.value {
            DeValue::String(text) if text.contains('\0') => {
                argument.wrong("an argument cannot hold a NUL", report)
            }
            DeValue::String(text) => read_template(&argument, text, report),
            _ => argument.wrong_type("a text in quotes", report),
        });
    }
    let (program, read): (_, Vec<Template>) = (program?, read.into_iter().collect::<Option<_>>()?);
    if let Some(at) = filled_command(&program, &read) {
        let message = "a message would write the commands of a shell here: write shell = \"…\" instead, and take the \
                       value from its environment, as in \"$C2D_PROPERTY_NAME\"";
        report.problem(arguments.get(at).map(|argument| argument.place.clone()), message);
        return None;
    }
    Some(Step::Run { program, arguments: read })
}

/// The argument that a shell would run or take for its script, where a message fills it in: the first one that is no
/// option, and the one after `-c`. Arguments behind these are data to a shell as well.
fn filled_command(program: &str, arguments: &[Template]) -> Option<usize> {
    let name = Path::new(program).file_name()?.to_str()?;
    if !SHELLS.contains(&name) {
        return None;
    }
    let is_option = |argument: &Template| argument.literal().is_some_and(|text| text.starts_with(['-', '+']));
    let takes_commands = |argument: &Template| {
        argument
            .literal()
            .is_some_and(|text| text.starts_with('-') && !text.starts_with("--") && text.contains('c'))
    };
    let script = arguments.iter().position(|argument| !is_option(argument));
    let commands = arguments.iter().position(takes_commands).map(|at| at + 1);
    let filled = |at: &usize| arguments.get(*at).is_some_and(|argument| argument.literal().is_none());
    [script, commands].into_iter().flatten().find(filled)
}

/// The program's path: absolute and literal, because a message must not choose what is run.
fn read_program(field: &Field<'_>, allow: Option<&TwinSettings>, report: &mut Report) -> Option<String> {
    let path = field.text(report)?;
    if path.contains(['{', '}']) {
        let message = "the program of run is a fixed path: a message fills in arguments, it does not choose the program";
        return field.wrong(message, report);
    }
    if !path.starts_with('/') {
        let message = format!("the program \"{}\" is not an absolute path: write it from / on", shown(path));
        return field.wrong(message, report);
    }
    match allow.map(|allow| allow.programs.iter().any(|program| program == path)) {
        // It was looked at in [allow].
        Some(true) => return Some(path.to_owned()),
        Some(false) => {
            let message = format!(
                "a rule of the twin may not run \"{}\": [allow] programs of the device's configuration does not list it",
                shown(path)
            );
            return field.wrong(message, report);
        }
        None => {}
    }
    match files::unfit_program(path) {
        Some(reason) => field.wrong(reason, report),
        None => Some(path.to_owned()),
    }
}

/// The text stays as it is, braces too: they are the shell's own, and message data is only in the environment.
fn read_shell(field: &Field<'_>, report: &mut Report) -> Option<Step> {
    match field.value.value {
        DeValue::String(text) if text.trim().is_empty() => field.wrong("shell is empty", report),
        DeValue::String(text) if text.contains('\0') => field.wrong("shell cannot hold a NUL", report),
        DeValue::String(text) => Some(Step::Shell { text: text.to_string() }),
        _ => field.wrong_type("a text in quotes", report),
    }
}

fn read_template(field: &Field<'_>, text: &str, report: &mut Report) -> Option<Template> {
    match Template::parse(text) {
        Ok(template) => Some(template),
        Err(error) => field.wrong(format!("in \"{}\", {error}", shown(text)), report),
    }
}
