//! Reads the `[gpio]` table.
//!
//! Owns: its keys, defaults and limits. Must not know: hardware.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use toml::de::DeValue;

use crate::rules::PinState;

use super::field::{Field, fields, shown};
use super::interlock;
use super::key::{Absent, FilePath, Form, Key, Span, Text, Words};
use super::report::Report;
use super::settings::{ActiveLevel, GpioBackend, GpioSettings, LineName, OnDisconnect, OnExit, PinSettings};
use super::table::Table;

pub(super) const BACKEND: Key<Words<GpioBackend>> = Key {
    name: "backend",
    kind: Words(&[
        ("auto", GpioBackend::Auto),
        ("rppal", GpioBackend::Rppal),
        ("cdev", GpioBackend::Cdev),
        ("simulated", GpioBackend::Simulated),
    ]),
    absent: Absent::Means("auto"),
    about: "what drives the pins: `rppal` (Raspberry Pi registers), `cdev` (the kernel's character device), \
            `simulated` (states in the log; only if set); `auto` takes one of the first two",
};
pub(super) const CHIP: Key<Text> = Key {
    name: "chip",
    kind: Text,
    absent: Absent::Nothing,
    about: "with `cdev`: a path, name or label; else the header's chip is found by its label",
};
pub(super) const STATE_FILE: Key<FilePath> = Key {
    name: "state_file",
    kind: FilePath,
    absent: Absent::Nothing,
    about: "with `simulated`: the states as JSON after every change",
};
pub(super) const PINS: Key<Form> = Key {
    name: "pins",
    kind: Form("a table for each pin, `[gpio.pins.NAME]`", "pins"),
    absent: Absent::Nothing,
    about: "the outputs, each under the name that rules use",
};
pub(super) const INTERLOCK: Key<Form> = Key {
    name: "interlock",
    kind: Form("a list of lists of pins, such as `[[\"open\", \"close\"]]`", "groups"),
    absent: Absent::Nothing,
    about: "groups of pins of which at most one is on at any time. A step that would turn on a second one \
            fails and says so; a pin can always be turned off",
};
pub(super) const LINE: Key<Form> = Key {
    name: "line",
    kind: Form("BCM number, or with `cdev` a line name such as `\"GPIO17\"`", "line"),
    absent: Absent::Refused,
    about: "which line the pin is",
};
pub(super) const ACTIVE: Key<Words<ActiveLevel>> = Key {
    name: "active",
    kind: Words(&[("high", ActiveLevel::High), ("low", ActiveLevel::Low)]),
    absent: Absent::Means("high"),
    about: "the level that means on",
};
const STATES: Words<PinState> = Words(&[("on", PinState::On), ("off", PinState::Off)]);
pub(super) const INITIAL: Key<Words<PinState>> = Key {
    name: "initial",
    kind: STATES,
    absent: Absent::Means("off"),
    about: "the state at start, set when the line is claimed",
};
pub(super) const ON_EXIT: Key<Words<OnExit>> = Key {
    name: "on_exit",
    kind: Words(&[
        ("on", OnExit::Set(PinState::On)),
        ("off", OnExit::Set(PinState::Off)),
        ("keep", OnExit::Keep),
    ]),
    absent: Absent::Means("off"),
    about: "the state at exit",
};
pub(super) const MAX_ON: Key<Span> = Key {
    name: "max_on",
    kind: Span(Duration::from_millis(10), Duration::from_secs(30 * 24 * 60 * 60)),
    absent: Absent::Nothing,
    about: "turned off this long after it was last turned on. With `initial = \"on\"` the time before a restart counts, and a pin \
            whose time is over starts off. A longer pulse is refused",
};
pub(super) const ON_DISCONNECT: Key<Form> = Key {
    name: "on_disconnect",
    kind: Form("`{ state = \"off\", after = \"5m\" }`, with `after` from `1s` to `30days`", "on_disconnect"),
    absent: Absent::Nothing,
    about: "the state that it takes when the hub has been unreachable for this long, once per loss; never \
            against `interlock`. An agent that hangs for this long counts as without a hub. A module's hub is \
            its edgeHub, which may be there while the cloud is not; of a device and a module side by side \
            both must be away",
};
pub(super) const STATE: Key<Words<PinState>> =
    Key { name: "state", kind: STATES, absent: Absent::Refused, about: "the state that the pin takes" };
pub(super) const AFTER: Key<Span> = Key {
    name: "after",
    kind: Span(Duration::from_secs(1), Duration::from_secs(30 * 24 * 60 * 60)),
    absent: Absent::Refused,
    about: "the time without the hub",
};
/// After a token renewal or a short loss, the agent is mostly connected again within this time.
const RECONNECTED: Duration = Duration::from_secs(5);

/// Reads `[gpio]`; relative paths start at `directory`. Returns the settings, and the names of all pins, also of those
/// with a problem: a rule that names one of these is not at fault.
pub(super) fn read(
    field: Option<Field<'_>>,
    directory: &Path,
    report: &mut Report,
) -> (GpioSettings, Vec<String>) {
    let (mut settings, mut names) = (GpioSettings::default(), Vec::new());
    let Some(mut table) = field.and_then(|field| field.table("[gpio]", report)) else {
        return (settings, names);
    };
    if let Some(backend) = table.read(&BACKEND, report) {
        settings.backend = backend;
    }
    if let Some(field) = table.take(&CHIP) {
        settings.chip = field.text(report).map(str::to_owned);
        if settings.backend == GpioBackend::Rppal {
            report.problem(
                field.key_place,
                "chip has no effect with backend = \"rppal\": remove it, or use \"cdev\"",
            );
        }
    }
    if let Some(field) = table.take(&STATE_FILE) {
        settings.state_file = field.text(report).map(|path| directory.join(path));
        if settings.backend != GpioBackend::Simulated {
            report.problem(field.key_place, "state_file is for backend = \"simulated\" only: remove it");
        }
    }
    if let Some(field) = table.take(&PINS) {
        settings.pins = read_pins(&field, settings.backend, &mut names, report);
    }
    if let Some(field) = table.take(&INTERLOCK) {
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
    let mut lines: Vec<(LineName, std::ops::Range<usize>, String)> = Vec::new();
    let DeValue::Table(table) = field.value.value else {
        field.wrong_type::<()>("a table: write [gpio.pins.NAME] for each pin", report);
        return pins;
    };
    for pin in fields(table) {
        let name = pin.key.to_owned();
        if name.is_empty() || name.contains(char::is_control) {
            report.problem(
                pin.key_place.clone(),
                "a pin's name must not be empty or contain control characters",
            );
        }
        names.push(name.clone());
        let Some(table) = pin.table(format!("[gpio.pins.{}]", shown(&name)), report) else { continue };
        let Some((settings, place)) = read_pin(table, backend, report) else { continue };
        if let Some((line, first, other)) = lines.iter().find(|(line, ..)| *line == settings.line) {
            let message = format!("{} is already the line of pin \"{other}\"", describe(line));
            report.problem_with(place, message, (first.clone(), "it is used here first"));
            continue;
        }
        lines.push((settings.line.clone(), place, name.clone()));
        pins.insert(name, settings);
    }
    pins
}

/// The pin, and the place of its `line` key.
fn read_pin(
    mut table: Table<'_>,
    backend: GpioBackend,
    report: &mut Report,
) -> Option<(PinSettings, std::ops::Range<usize>)> {
    let remedy = "give the BCM number, such as line = 17";
    let line = table.require(&LINE, remedy, report);
    let place = line.as_ref().map(|field| field.value.place.clone());
    let line = line.and_then(|field| read_line(&field, backend, report));
    let initial = table.read(&INITIAL, report).unwrap_or(PinState::Off);
    let active = table.read(&ACTIVE, report).unwrap_or_default();
    let on_exit = table.read(&ON_EXIT, report).unwrap_or(OnExit::Set(PinState::Off));
    let max_on = table.read(&MAX_ON, report);
    let on_disconnect = table.take(&ON_DISCONNECT).and_then(|field| read_on_disconnect(&field, report));
    table.finish(report);
    Some((PinSettings { line: line?, active, initial, on_exit, max_on, on_disconnect }, place?))
}

fn read_on_disconnect(field: &Field<'_>, report: &mut Report) -> Option<OnDisconnect> {
    let DeValue::Table(_) = field.value.value else {
        return field.wrong_type("a table such as { state = \"off\", after = \"5m\" }", report);
    };
    let mut table = field.table("on_disconnect", report)?;
    let state = table.require(&STATE, "give the state to switch to, such as state = \"off\"", report);
    let after = table.require(
        &AFTER,
        "give the time without the hub after which the pin switches, such as after = \"5m\"",
        report,
    );
    table.finish(report);
    let state = state.and_then(|field| STATE.read(&field, report));
    let place = after.as_ref().map(|field| field.value.place.clone());
    let after = after.and_then(|field| AFTER.read(&field, report));
    if after.is_some_and(|after| after < RECONNECTED) {
        let message = "renewing the connection may take a few seconds, so the pin would switch at each \
                       renewal: set 5s or more";
        report.warning(place, message);
    }
    Some(OnDisconnect { state: state?, after: after? })
}

fn read_line(field: &Field<'_>, backend: GpioBackend, report: &mut Report) -> Option<LineName> {
    match field.value.value {
        DeValue::Integer(_) => match field.value.integer().and_then(|number| u32::try_from(number).ok()) {
            Some(number) => Some(LineName::Number(number)),
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
                    "line is the name \"{name}\", which is an unusual name for a line: for the line of that \
                     number write line = {name}, without quotes"
                );
                report.warning(field.value.place.clone(), message);
            }
            Some(LineName::Name(name))
        }
        _ => field.wrong_type("a line number such as 17, or a line name in quotes", report),
    }
}

fn describe(line: &LineName) -> String {
    match line {
        LineName::Number(number) => format!("line {number}"),
        LineName::Name(name) => format!("line \"{}\"", shown(name)),
    }
}
