//! The `[gpio]` table.
//!
//! Owns: its keys, defaults and limits. Must not know: hardware. Used by: `config`.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use toml::de::DeValue;

use crate::rules::PinState;

use super::interlock;
use super::report::Report;
use super::settings::{ActiveLevel, GpioBackend, GpioSettings, Line, OnDisconnect, OnExit, PinSettings};
use super::table::{Field, Table, fields, shown};

const STATES: [(&str, PinState); 2] = [("on", PinState::On), ("off", PinState::Off)];
const DISCONNECTED: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30 * 24 * 60 * 60));
/// Within this time the agent is mostly back after a renewal of its token or a short loss.
const RECONNECTED: Duration = Duration::from_secs(5);
const MAX_ON: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(30 * 24 * 60 * 60));

/// Reads `[gpio]`; relative paths are taken from `directory`. Beside the settings, the names of all pins, those with
/// a problem too: a rule that names one of these is not at fault.
pub(super) fn read(
    field: Option<Field<'_>>,
    directory: &Path,
    report: &mut Report,
) -> (GpioSettings, Vec<String>) {
    let (mut settings, mut names) = (GpioSettings::default(), Vec::new());
    let Some(mut table) = field.and_then(|field| field.table("[gpio]", report)) else {
        return (settings, names);
    };
    let backends = [
        ("auto", GpioBackend::Auto),
        ("rppal", GpioBackend::Rppal),
        ("cdev", GpioBackend::Cdev),
        ("simulated", GpioBackend::Simulated),
    ];
    if let Some(backend) = table.take("backend").and_then(|field| field.word(&backends, report)) {
        settings.backend = backend;
    }
    if let Some(field) = table.take("chip") {
        settings.chip = field.text(report).map(str::to_owned);
        if settings.backend == GpioBackend::Rppal {
            report.problem(
                field.key_place,
                "chip has no use with backend = \"rppal\": remove it, or use \"cdev\"",
            );
        }
    }
    if let Some(field) = table.take("state_file") {
        settings.state_file = field.text(report).map(|path| directory.join(path));
        if settings.backend != GpioBackend::Simulated {
            report.problem(field.key_place, "state_file is for backend = \"simulated\" only: remove it");
        }
    }
    if let Some(field) = table.take("pins") {
        settings.pins = read_pins(&field, settings.backend, &mut names, report);
    }
    if let Some(field) = table.take("interlock") {
        settings.interlocks = interlock::read(&field, &names, &settings.pins, report);
    }
    table.finish(report);
    (settings, names)
}

fn read_pins(
    field: &Field<'_>,
    backend: GpioBackend,
    names: &mut Vec<String>,
    report: &mut Report,
) -> BTreeMap<String, PinSettings> {
    let mut pins = BTreeMap::new();
    let mut lines: Vec<(Line, std::ops::Range<usize>, String)> = Vec::new();
    let DeValue::Table(table) = field.value.value else {
        field.wrong_type::<()>("a table: write [gpio.pins.NAME] for each pin", report);
        return pins;
    };
    for pin in fields(table) {
        let name = pin.key.to_owned();
        if name.is_empty() || name.contains(char::is_control) {
            report.problem(pin.key_place.clone(), "a pin's name is not empty and has no control characters");
        }
        names.push(name.clone());
        let Some(table) = pin.table(format!("[gpio.pins.{}]", shown(&name)), report) else { continue };
        let Some((settings, place)) = read_pin(table, backend, report) else { continue };
        if let Some((line, first, other)) = lines.iter().find(|(line, ..)| *line == settings.line) {
            let message = format!("{} is the line of pin \"{other}\" already", describe(line));
            report.problem_with(place, message, (first.clone(), "it is first used here"));
            continue;
        }
        lines.push((settings.line.clone(), place, name.clone()));
        pins.insert(name, settings);
    }
    pins
}

/// The pin, and the place of its line.
fn read_pin(
    mut table: Table<'_>,
    backend: GpioBackend,
    report: &mut Report,
) -> Option<(PinSettings, std::ops::Range<usize>)> {
    let levels = [("high", ActiveLevel::High), ("low", ActiveLevel::Low)];
    let exits =
        [("on", OnExit::Set(PinState::On)), ("off", OnExit::Set(PinState::Off)), ("keep", OnExit::Keep)];
    let remedy = "give the BCM number, such as line = 17";
    let line = table.require("line", remedy, report);
    let place = line.as_ref().map(|field| field.value.place.clone());
    let line = line.and_then(|field| read_line(&field, backend, report));
    let mut word = |key, words: &[(&str, PinState)]| {
        table.take(key).and_then(|field| field.word(words, report)).unwrap_or(PinState::Off)
    };
    let initial = word("initial", &STATES);
    let active = table.take("active").and_then(|field| field.word(&levels, report)).unwrap_or_default();
    let on_exit = table.take("on_exit").and_then(|field| field.word(&exits, report));
    let max_on = table.take("max_on").and_then(|field| field.duration(MAX_ON, report));
    let on_disconnect = table.take("on_disconnect").and_then(|field| read_on_disconnect(&field, report));
    table.finish(report);
    let on_exit = on_exit.unwrap_or(OnExit::Set(PinState::Off));
    Some((PinSettings { line: line?, active, initial, on_exit, max_on, on_disconnect }, place?))
}

fn read_on_disconnect(field: &Field<'_>, report: &mut Report) -> Option<OnDisconnect> {
    let DeValue::Table(_) = field.value.value else {
        return field.wrong_type("a table such as { state = \"off\", after = \"5m\" }", report);
    };
    let mut table = field.table("on_disconnect", report)?;
    let state = table.require("state", "give the state that the pin takes, such as state = \"off\"", report);
    let after = table.require("after", "give the time without the hub, such as after = \"5m\"", report);
    table.finish(report);
    let state = state.and_then(|field| field.word(&STATES, report));
    let place = after.as_ref().map(|field| field.value.place.clone());
    let after = after.and_then(|field| field.duration(DISCONNECTED, report));
    if after.is_some_and(|after| after < RECONNECTED) {
        let message = "a connection that is renewed may take a few seconds, and the pin would switch each time: wait 5s or \
                       more";
        report.warning(place, message);
    }
    Some(OnDisconnect { state: state?, after: after? })
}

/// The sentence for a name that no pin has.
pub(super) fn unknown_pin(name: &str, names: &[String]) -> String {
    let (name, known) = (shown(name), known_pins(names));
    let remedy = match name.parse::<u32>() {
        Ok(_) => "name the pin, and not its line".to_owned(),
        Err(_) => format!("add [gpio.pins.{name}]"),
    };
    format!("there is no pin \"{name}\" ({known}): {remedy}")
}

/// Which names there are.
pub(super) fn known_pins(names: &[String]) -> String {
    if names.is_empty() {
        return "no pin is configured".to_owned();
    }
    format!("the pins are {}", names.iter().map(|pin| shown(pin)).collect::<Vec<_>>().join(", "))
}

fn read_line(field: &Field<'_>, backend: GpioBackend, report: &mut Report) -> Option<Line> {
    match field.value.value {
        DeValue::Integer(_) => match field.value.integer().and_then(|number| u32::try_from(number).ok()) {
            Some(number) => Some(Line::Number(number)),
            None => field.wrong("line is not a line number: use 0 or more, such as 17", report),
        },
        DeValue::String(_) => {
            let name = field.text(report)?.to_owned();
            if backend == GpioBackend::Rppal {
                let message =
                    "line is a name, but backend = \"rppal\" knows BCM numbers only, such as line = 17";
                return field.wrong(message, report);
            }
            if name.parse::<u32>().is_ok() {
                let message = format!(
                    "line is the name \"{name}\", which a line seldom has: write line = {name}, without quotes, for the line \
                     of that number"
                );
                report.warning(field.value.place.clone(), message);
            }
            Some(Line::Name(name))
        }
        _ => field.wrong_type("a line number such as 17, or a line name in quotes", report),
    }
}

fn describe(line: &Line) -> String {
    match line {
        Line::Number(number) => format!("line {number}"),
        Line::Name(name) => format!("line \"{}\"", shown(name)),
    }
}
