//! Reads `interlock` of the `[gpio]` table: pins that are never on together.
//!
//! Owns: what a group needs, and which settings of its pins and which rules would break it. Must not know: how it is
//! enforced.

use std::collections::BTreeMap;

use toml::de::DeValue;

use crate::rules::{GpioStep, PinChange, PinState, Setting, Step};

use super::field::{Field, Value, shown};
use super::report::Report;
use super::settings::{OnExit, PinSettings};

/// Reads the groups. `names` has all pins, `pins` those without a problem.
pub(super) fn read(
    field: &Field<'_>,
    names: &[String],
    pins: &BTreeMap<String, PinSettings>,
    report: &mut Report,
) -> Vec<Vec<String>> {
    let mut groups: Vec<Vec<String>> = Vec::new();
    let is_array = |value: &Value<'_>| matches!(value.value, DeValue::Array(_));
    if !is_array(&field.value)
        || !field.array("a list", report).is_some_and(|values| values.iter().all(is_array))
    {
        field
            .wrong::<()>("interlock must be a list of groups of pins: write [[\"open\", \"close\"]]", report);
        return groups;
    }
    for value in field.array("a list", report).unwrap_or_default() {
        let place = value.place.clone();
        let Some(members) = value.named("a group").array("a list", report) else { continue };
        let many = members.len() >= 2;
        if !many {
            report.problem(
                place.clone(),
                "a group of interlock needs two pins or more, such as [\"open\", \"close\"]",
            );
        }
        let group: Vec<Option<String>> =
            members.iter().map(|member| read_member(member, names, &groups, report)).collect();
        let Some(group) = group.into_iter().collect::<Option<Vec<_>>>().filter(|_| many) else { continue };
        if let Some(twice) = group.iter().enumerate().find(|(at, pin)| group[..*at].contains(pin)) {
            report.problem(place, format!("pin \"{}\" is in this group twice", shown(twice.1)));
            continue;
        }
        if let Some(message) = conflict(&group, pins) {
            report.problem(place, message);
        }
        groups.push(group);
    }
    groups
}

fn read_member(
    value: &Value<'_>,
    names: &[String],
    groups: &[Vec<String>],
    report: &mut Report,
) -> Option<String> {
    let field = value.named("a pin of interlock");
    let name = field.text(report)?;
    if !names.iter().any(|known| known == name) {
        return field.wrong(super::pin_names::unknown_pin(name, names), report);
    }
    if groups.iter().flatten().any(|other| other == name) {
        let message = format!("pin \"{}\" is already in another group: make one group of both", shown(name));
        return field.wrong(message, report);
    }
    Some(name.to_owned())
}

/// Why the settings of the group's pins would turn on two of them.
fn conflict(group: &[String], pins: &BTreeMap<String, PinSettings>) -> Option<String> {
    let members: Vec<_> = group.iter().filter_map(|name| Some((name, pins.get(name)?))).collect();
    let having = |wanted: &dyn Fn(&PinSettings) -> bool| -> Vec<String> {
        members
            .iter()
            .filter(|(_, pin)| wanted(pin))
            .map(|(name, _)| format!("\"{}\"", shown(name)))
            .collect()
    };
    let initial = having(&|pin| pin.initial == PinState::On);
    let exit = having(&|pin| pin.on_exit == OnExit::Set(PinState::On));
    let kept = having(&|pin| pin.on_exit == OnExit::Keep);
    let away = having(&|pin| pin.on_disconnect.is_some_and(|away| away.state == PinState::On));
    for (what, pins) in [("initial", &initial), ("on_exit", &exit), ("on_disconnect", &away)] {
        if let [first, second, ..] = pins.as_slice() {
            return Some(format!(
                "{what} would turn pins {first} and {second} on together: choose \"off\" for all pins of the \
                 group but one"
            ));
        }
    }
    let (first, second) = (exit.first()?, kept.first()?);
    Some(format!(
        "on_exit would turn pin {first} on and keep pin {second}, which may be on: choose \"off\" for one of them"
    ))
}

/// Finds a step that turns an interlocked pin on while an earlier step has left another pin of its group on: that step
/// always fails. Returns the earlier pin and the later one. It looks only at fixed values, not at those that a message
/// fills in.
pub(super) fn always_fails<'a>(steps: &'a [Step], interlocks: &[Vec<String>]) -> Option<(&'a str, &'a str)> {
    let share = |a: &str, b: &str| {
        let among = |group: &&Vec<String>, pin: &str| group.iter().any(|one| one == pin);
        a != b && interlocks.iter().any(|group| among(&group, a) && among(&group, b))
    };
    let mut on: Vec<&str> = Vec::new();
    for step in steps {
        let Step::Gpio { pin, change } = step else { continue };
        let turns_on = match change {
            GpioStep::Set(Setting::Fixed(PinChange::Set(state))) => *state == PinState::On,
            GpioStep::Set(_) => false,
            GpioStep::Pulse(_) | GpioStep::Blink { .. } => true,
        };
        if turns_on && let Some(other) = on.iter().find(|other| share(other, pin)) {
            return Some((other, pin));
        }
        on.retain(|other| other != pin);
        if turns_on && matches!(change, GpioStep::Set(_)) {
            on.push(pin);
        }
    }
    None
}
