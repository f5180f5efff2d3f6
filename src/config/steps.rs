//! Reads the `do` of a rule.
//!
//! Owns: the kinds of steps in TOML. Must not know: messages, processes, hardware.

use toml::de::DeValue;

use crate::rules::{
    GpioStep, Setting, Step, Subject, Template, read_period, read_pulse, read_set, read_times, variable_name,
};

use super::field::{Field, Value, shown};
use super::key::{Absent, Form, Key, Text};
use super::pin_names;
use super::report::Report;
use super::settings::TwinSettings;
use super::shells;
use super::table::Table;
use crate::trust;

pub(super) const GPIO: Key<Text> = Key {
    name: "gpio",
    kind: Text,
    absent: Absent::Nothing,
    about: "the pin, with one of `set`, `pulse` and `blink` in the same table",
};
pub(super) const SET: Key<Form> = Key {
    name: "set",
    kind: Form("`\"on\"`, `\"off\"` or `\"toggle\"`", "set"),
    absent: Absent::Nothing,
    about: "`{ gpio = \"pump\", set = \"on\" }`: the pin's new state",
};
pub(super) const PULSE: Key<Form> = Key {
    name: "pulse",
    kind: Form("a duration, `1ms` or more", "time"),
    absent: Absent::Nothing,
    about: "`{ gpio = \"door\", pulse = \"500ms\" }`: on for this long, then off",
};
pub(super) const BLINK: Key<Form> = Key {
    name: "blink",
    kind: Form("a table of `times` (1 to 1000) and `period` (`20ms` or more)", "blink"),
    absent: Absent::Nothing,
    about: "`{ gpio = \"led\", blink = { times = 3, period = \"400ms\" } }`: half of each period on, half off; ends off",
};
pub(super) const TIMES: Key<Form> = Key {
    name: "times",
    kind: Form("a whole number, 1 to 1000", "count"),
    absent: Absent::Refused,
    about: "how often it is on",
};
pub(super) const PERIOD: Key<Form> = Key {
    name: "period",
    kind: Form("a duration, `20ms` or more", "time"),
    absent: Absent::Refused,
    about: "from one beginning to the next",
};
pub(super) const RUN: Key<Form> = Key {
    name: "run",
    kind: Form("a list: the program's absolute path, and its arguments", "command"),
    absent: Absent::Nothing,
    about: "`{ run = [\"/usr/local/bin/backup\", \"--label\", \"{label}\"] }`: runs a program, no shell",
};
pub(super) const SHELL: Key<Form> = Key {
    name: "shell",
    kind: Form("a fixed text", "script"),
    absent: Absent::Nothing,
    about: "`{ shell = \"logger -t c2d -- \\\"$C2D_PROPERTY_TEXT\\\"\" }`: gives this text to `/bin/sh`; message data is only in \
            the environment",
};
pub(super) const COMMAND: Key<Text> = Key {
    name: "command",
    kind: Text,
    absent: Absent::Nothing,
    about: "`{ command = \"backup\" }`: runs this command of `[allow.commands]`, no shell. A value for it never begins with `-`, \
            whatever the rule's conditions list",
};
const KINDS: &str = "gpio, run, shell or command";

/// What steps may use.
#[derive(Clone, Copy)]
pub(super) struct Means<'a> {
    /// The names of all pins.
    pub(super) pins: &'a [String],
    /// The commands, and what the twin's rules may use.
    pub(super) twin: &'a TwinSettings,
    /// The rule is the twin's.
    pub(super) is_remote: bool,
}

/// Reads `do`: an array of steps, which may be empty. `None` if there was a problem.
pub(super) fn read(field: &Field<'_>, means: Means<'_>, report: &mut Report) -> Option<Vec<Step>> {
    let needed = "a list of steps, with brackets around it: do = [ { gpio = \"pump\", set = \"on\" } ]";
    let values = field.array(needed, report)?;
    let steps: Vec<_> = values.iter().map(|value| read_step(value, means, report)).collect();
    steps.into_iter().collect()
}

fn read_step(value: &Value<'_>, means: Means<'_>, report: &mut Report) -> Option<Step> {
    let before = report.problems();
    let needed =
        "a table, such as { gpio = \"pump\", set = \"on\" } or { run = [\"/usr/bin/logger\", \"{text}\"] }";
    let mut table = value.named("a step").table_such_as("a step", needed, report)?;
    let (gpio, run) = (table.take(&GPIO), table.take(&RUN));
    let (shell, command) = (table.take(&SHELL), table.take(&COMMAND));
    let step = match (gpio, run, shell, command) {
        (Some(pin), None, None, None) => {
            table.rename("a gpio step");
            table.unlist(&["run", "shell", "command"]);
            let change = read_change(&mut table, report);
            let pin = read_pin(&pin, means, report);
            Some(Step::Gpio { pin: pin?, change: change? })
        }
        (None, Some(own), None, None) | (None, None, Some(own), None) if means.is_remote => {
            let message = format!(
                "a rule of the twin cannot have {}, only a command of the device's configuration, as in {{ \
                 command = \"backup\" }}; {}",
                own.key,
                listed(means.twin)
            );
            report.problem(own.key_place, message);
            None
        }
        (None, Some(run), None, None) => read_run(&run, false, report),
        (None, None, Some(shell), None) => read_shell(&shell, report),
        (None, None, None, Some(command)) => read_command(&command, means.twin, report),
        (None, None, None, None) => {
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

fn read_pin(field: &Field<'_>, means: Means<'_>, report: &mut Report) -> Option<String> {
    let DeValue::String(_) = field.value.value else {
        let needed = format!("the name of a pin in quotes ({})", pin_names::known_pins(means.pins));
        return field.wrong_type(&needed, report);
    };
    let name = field.text(report)?;
    if !means.pins.iter().any(|pin| pin == name) {
        return field.wrong(pin_names::unknown_pin(name, means.pins), report);
    }
    if means.is_remote && !means.twin.pins.iter().any(|pin| pin == name) {
        let message = format!(
            "a rule of the twin may not switch pin \"{}\": [allow] pins of the device's configuration does \
             not list it",
            shown(name)
        );
        return field.wrong(message, report);
    }
    Some(name.to_owned())
}

fn read_change(table: &mut Table<'_>, report: &mut Report) -> Option<GpioStep> {
    let place = table.place.clone();
    match (table.take(&SET), table.take(&PULSE), table.take(&BLINK)) {
        (Some(set), None, None) => Some(GpioStep::Set(read_setting(&set, read_set, report)?)),
        (None, Some(pulse), None) => Some(GpioStep::Pulse(read_setting(&pulse, read_pulse, report)?)),
        (None, None, Some(blink)) => {
            let mut blink =
                blink.table_such_as("blink", "a table, such as { times = 3, period = \"400ms\" }", report)?;
            let times = blink.require(&TIMES, "give the number, such as times = 3", report);
            let period = blink.require(&PERIOD, "give a duration, such as period = \"400ms\"", report);
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
        _ => {
            let needed = match field.key {
                "set" => "\"on\", \"off\" or \"toggle\", or a placeholder such as \"{state}\"",
                "times" => "a whole number, or a placeholder such as \"{times}\"",
                _ => "a duration in quotes, such as \"400ms\", or a placeholder such as \"{time}\"",
            };
            return field.wrong_type(needed, report);
        }
    };
    let template = read_template(field, &text, report)?;
    match template.literal().map(|literal| read(literal).map_err(|needs| unusable(&text, needs))) {
        Some(Ok(value)) => Some(Setting::Fixed(value)),
        Some(Err(message)) => field.wrong(message, report),
        None => Some(Setting::Filled(template)),
    }
}

/// The command of `[allow.commands]` that the rule names.
fn read_command(field: &Field<'_>, twin: &TwinSettings, report: &mut Report) -> Option<Step> {
    let name = field.text(report)?;
    match twin.commands.get(name) {
        Some(step) => step.clone(),
        None => field.wrong(format!("there is no command \"{}\": {}", shown(name), listed(twin)), report),
    }
}

/// The commands that exist, for a sentence.
fn listed(twin: &TwinSettings) -> String {
    let names: Vec<_> = twin.commands().map(shown).collect();
    let has = if names.is_empty() { "none".to_owned() } else { names.join(", ") };
    format!("[allow.commands] has {has}")
}

/// A program and its arguments: of a step, or of `[allow.commands]` if `is_command`.
pub(super) fn read_run(field: &Field<'_>, is_command: bool, report: &mut Report) -> Option<Step> {
    let mut needed =
        "a list of the program's absolute path and its arguments, such as [\"/usr/bin/logger\", \"{text}\"]"
            .to_owned();
    if !is_command {
        needed += "; for a shell command write shell = \"…\"";
    }
    let values = field.array(&needed, report)?;
    let Some((program, arguments)) = values.split_first() else {
        let message = format!(
            "{} is empty: it lists the program's absolute path and then its arguments",
            shown(field.key)
        );
        return field.wrong(message, report);
    };
    let program = read_program(&program.named("the program"), report);
    let mut read = Vec::with_capacity(arguments.len());
    for argument in arguments {
        let argument = argument.named("an argument");
        read.push(match argument.value.value {
            DeValue::String(text) if text.contains('\0') => {
                argument.wrong("an argument cannot contain a NUL", report)
            }
            DeValue::String(text) => read_template(&argument, text, report),
            _ => argument.wrong_type("a text in quotes", report),
        });
    }
    let (program, read): (_, Vec<Template>) = (program?, read.into_iter().collect::<Option<_>>()?);
    if let Some(misuse) = shells::misuse(&program, &read) {
        let at = misuse.argument.and_then(|at| arguments.get(at));
        report.problem(at.unwrap_or(&field.value).place.clone(), misuse.message);
        return None;
    }
    Some(Step::Run { program, arguments: read, is_command })
}

/// The program's path. It is absolute and fixed, because a message must not choose what is run.
fn read_program(field: &Field<'_>, report: &mut Report) -> Option<String> {
    let path = field.text(report)?;
    if path.contains(['{', '}']) {
        let message =
            "the program must be a fixed path: a message can fill in arguments, but not choose the program";
        return field.wrong(message, report);
    }
    if !path.starts_with('/') {
        let message = format!("the program \"{}\" is not an absolute path: begin it with /", shown(path));
        return field.wrong(message, report);
    }
    match trust::unfit_program(path) {
        Some(reason) => field.wrong(reason, report),
        None => Some(path.to_owned()),
    }
}

/// Reads a text for a shell unchanged, including braces: they belong to the shell, and message data is only in the
/// environment.
fn read_shell(field: &Field<'_>, report: &mut Report) -> Option<Step> {
    if let DeValue::String(text) = field.value.value
        && let Some(name) = template_in(text)
    {
        let instead = match Subject::parse(name).as_ref().and_then(Subject::application) {
            Some(property) => format!("write \"${}\"", variable_name(property)),
            None => "use run, where a message can fill in arguments,".to_owned(),
        };
        let message = format!(
            "shell has {{{name}}}, which stays as it is, because a message fills in nothing here: {instead} \
             for the value, or put a space after the brace if you want the text itself",
            name = shown(name)
        );
        report.warning(field.value.place.clone(), message);
    }
    match field.value.value {
        DeValue::String(text) if text.trim().is_empty() => field.wrong("shell is empty", report),
        DeValue::String(text) if text.contains('\0') => field.wrong("shell cannot contain a NUL", report),
        DeValue::String(text) => Some(Step::Shell { text: text.to_string() }),
        _ => field.wrong_type("one text in quotes; for a list of arguments write run = [ … ]", report),
    }
}

/// The name in the first `{name}` of a text for a shell. `${name}`, and braces with a blank, a comma or dots, do not
/// count.
fn template_in(text: &str) -> Option<&str> {
    text.match_indices('{').filter(|(at, _)| !text[..*at].ends_with(['$', '{'])).find_map(|(at, _)| {
        let (inside, _) = text[at + 1..].split_once('}')?;
        let name = inside.split(':').next().unwrap_or_default();
        let is_name = |c: char| c.is_alphanumeric() || matches!(c, '_' | '-' | '$' | '.');
        let is_one = !name.starts_with(|c: char| c.is_ascii_digit())
            && !name.is_empty()
            && name.chars().all(is_name)
            && !name.contains("..");
        is_one.then_some(name)
    })
}

fn read_template(field: &Field<'_>, text: &str, report: &mut Report) -> Option<Template> {
    match Template::parse(text) {
        Ok(template) => Some(template),
        Err(error) => field.wrong(format!("in \"{}\", {error}", shown(text)), report),
    }
}
