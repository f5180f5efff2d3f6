//! Reads the `[twin]` and `[allow]` tables: whether the twin may set rules, and what these may do.
//!
//! Owns: their keys. Must not know: what the twin says.
//!
//! Everyone with a key of the hub can write the twin. So its rules switch only pins that the owner of the device has
//! listed, and run only whole commands that the owner has written. A message fills in values only where the owner
//! wants them. A list of programs would not be safe enough: the arguments of a program often choose what it runs.

use std::ops::Range;

use toml::de::DeValue;

use super::field::{Field, fields};
use super::key::{Absent, Form, Key};
use super::pin_names::unknown_pin;
use super::report::Report;
use super::settings::TwinSettings;
use super::steps;

pub(super) const ACCEPT: Key<Form> = Key {
    name: "accept",
    kind: Form("`[\"rules\"]`", "accept"),
    absent: Absent::Nothing,
    about: "rules are taken from the twin's desired properties; nothing otherwise. See [Rules from the \
            twin](../guides/twin-rules.md)",
};
pub(super) const PINS: Key<Form> = Key {
    name: "pins",
    kind: Form("a list of names of pins", "names"),
    absent: Absent::Nothing,
    about: "the pins that such rules may switch",
};
pub(super) const COMMANDS: Key<Form> = Key {
    name: "commands",
    kind: Form("a table, `[allow.commands]`; each key names a whole command, written as `run`", "commands"),
    absent: Absent::Nothing,
    about: "`backup = [\"/usr/local/bin/backup\", \"--label\", \"{label}\"]`; such rules say `{ command = \"backup\" }`. \
            Local rules may, too",
};

/// What the two tables say.
pub(super) struct ReadTwin {
    pub(super) settings: TwinSettings,
    /// `[allow]`, if no rules are taken from the twin, so that it limits nothing. Local rules may use its commands
    /// nevertheless.
    pub(super) idle: Option<Range<usize>>,
}

/// Reads `[twin]` and `[allow]`. `pin_names` has all pins; `max_children` programs run at once.
pub(super) fn read(
    twin: Option<Field<'_>>,
    allow: Option<Field<'_>>,
    pin_names: &[String],
    max_children: usize,
    report: &mut Report,
) -> ReadTwin {
    let (twin_place, allow_place) = (
        twin.as_ref().map(|field| field.key_place.clone()),
        allow.as_ref().map(|field| field.key_place.clone()),
    );
    let mut settings = TwinSettings::default();
    if let Some(mut table) = twin.and_then(|field| field.table("[twin]", report)) {
        if let Some(accept) = table.take(&ACCEPT) {
            let words = accept.array("a list: write accept = [\"rules\"]", report).unwrap_or_default();
            let words =
                words.iter().map(|word| word.named("a word of accept").word(&[("rules", ())], report));
            settings.accepts_rules = words.flatten().count() > 0;
        }
        table.finish(report);
    }
    if let Some(mut table) = allow.and_then(|field| field.table("[allow]", report)) {
        if let Some(commands) = table.take(&COMMANDS) {
            read_commands(&commands, &mut settings, report);
            if settings.accepts_rules && max_children == 1 {
                let message = "one of [actions] max_children is reserved for local rules, so with 1 the \
                               rules of the twin cannot run commands: set it to 2 or more, or remove \
                               [allow.commands]";
                report.problem(commands.key_place.clone(), message);
            }
        }
        if let Some(programs) = table.take_unlisted("programs") {
            let message = "[allow] no longer lists programs, but commands: write each one with its \
                           arguments, as in [allow.commands] backup = [\"/usr/local/bin/backup\", \
                           \"--label\", \"{label}\"], and { command = \"backup\" } in rules of the twin";
            report.problem(programs.key_place, message);
        }
        if let Some(pins) = table.take(&PINS) {
            let pins = pins.array("a list, such as [\"pump\"]", report).unwrap_or_default();
            let pins = pins.iter().map(|pin| read_pin(&pin.named("a pin of [allow]"), pin_names, report));
            settings.pins = pins.flatten().collect();
        }
        table.finish(report);
    }
    if settings.accepts_rules && allow_place.is_none() {
        let message = "rules of the twin may not run commands or switch pins, because there is no [allow]: \
                       list there what they may use, such as pins = [\"pump\"]";
        report.warning(twin_place, message);
    }
    let idle = allow_place.filter(|_| !settings.accepts_rules);
    ReadTwin { settings, idle }
}

/// Warns that `[allow]` has no effect.
pub(super) fn warn_of_idle(place: Range<usize>, report: &mut Report) {
    let message = "[allow] has no effect, because the agent takes nothing from the twin: write [twin] accept \
                   = [\"rules\"], or remove [allow]";
    report.warning(place, message);
}

fn read_commands(field: &Field<'_>, settings: &mut TwinSettings, report: &mut Report) {
    let DeValue::Table(table) = field.value.value else {
        field.wrong_type::<()>("a table of commands, such as backup = [\"/usr/local/bin/backup\"]", report);
        return;
    };
    let commands = fields(table);
    let read = commands.iter().map(|field| (field.key.to_owned(), steps::read_run(field, true, report)));
    settings.commands = read.collect();
}

fn read_pin(field: &Field<'_>, pin_names: &[String], report: &mut Report) -> Option<String> {
    let name = field.text(report)?;
    if pin_names.iter().any(|pin| pin == name) {
        return Some(name.to_owned());
    }
    field.wrong(unknown_pin(name, pin_names), report)
}
