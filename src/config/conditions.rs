//! Reads the `when` of a rule.
//!
//! Owns: the kinds of conditions in TOML, and which of them contradict each other. Must not know: messages.

use toml::de::DeValue;

use crate::message::SOURCE;
use crate::rules::{Choices, Condition, Door, Glob, Rule, Subject, Test};

use super::field::{Field, fields, shown};
use super::key::{Absent, Form, Key};
use super::report::Report;

/// The kinds of conditions other than a plain value, and how each is read.
pub(super) static KINDS: [(Key<Form>, ReadTest); 6] = [
    (
        kind("one_of", "a list of values", "values", "`{ one_of = [\"on\", \"off\"] }`: is one of these"),
        read_one_of,
    ),
    (kind("prefix", "a text", "text", "`{ prefix = \"zone-\" }`: begins with this text"), read_prefix),
    (
        kind(
            "glob",
            "a pattern of at most 100 characters",
            "text",
            "`{ glob = \"zone-?\" }`: matches the pattern; a value of more than 512 bytes never does. `*` is any characters, also \
             slashes; `?` is one; `[abc]`, `[a-z]`, `[!a-z]` are one of these, or none of them",
        ),
        read_glob,
    ),
    (
        kind(
            "range",
            "two numbers, the least and the most",
            "range",
            "`{ range = [1, 20] }`: is a number between, both included. Of a text only plain decimals count, such as `7` or \
             `-2.5`; not `1e1`, `+5`, `010`, `\" 5\"` or `inf`, nor a value of more than 64 bytes",
        ),
        read_range,
    ),
    (kind("present", "`true`", "true", "`{ present = true }`: exists"), read_present),
    (kind("absent", "`true`", "true", "`{ absent = true }`: does not exist"), read_absent),
];
type ReadTest = fn(&Field<'_>, &mut Report) -> Option<Test>;

const fn kind(name: &'static str, takes: &'static str, form: &'static str, about: &'static str) -> Key<Form> {
    Key { name, kind: Form(takes, form), absent: Absent::Nothing, about }
}

fn kinds() -> String {
    KINDS.each_ref().map(|(key, _)| key.name).join(", ")
}

const RANGE: &str = "two numbers, [least, most], such as [1, 20]";

/// Reads `when`: a table of conditions, or `"any"` for none. `None` if there was a problem.
pub(super) fn read(field: &Field<'_>, report: &mut Report) -> Option<Vec<Condition>> {
    let needed = "a table of conditions such as { action = \"pump\" }, or \"any\" to match every message";
    match field.value.value {
        DeValue::String(text) if text == "any" => Some(Vec::new()),
        DeValue::Table(table) if table.is_empty() => {
            field.wrong(format!("when has no condition: it must be {needed}"), report)
        }
        DeValue::Table(table) => {
            let read: Vec<_> = fields(table).iter().map(|field| read_condition(field, report)).collect();
            read.into_iter().collect()
        }
        DeValue::String(text) => {
            field.wrong(format!("when is \"{}\", but must be {needed}", shown(text)), report)
        }
        _ => field.wrong_type(needed, report),
    }
}

fn read_condition(field: &Field<'_>, report: &mut Report) -> Option<Condition> {
    let Some(subject) = Subject::parse(field.key) else {
        let message = format!(
            "\"{}\" is not a name: use a property's name, \"$.cid\" or \"body.field\"",
            shown(field.key)
        );
        report.problem(field.key_place.clone(), message);
        return None;
    };
    let test = read_test(field, report)?;
    if field.key == SOURCE {
        check_source(field, &test, report)?;
    }
    Some(Condition { subject, test })
}

/// Whether there is a door of that name. `None` if there was a problem.
fn check_source(field: &Field<'_>, test: &Test, report: &mut Report) -> Option<()> {
    let words = Door::ALL.map(Door::word);
    let is_door = |text: &str| words.contains(&text);
    let [all @ .., last] = words;
    let needed = format!("{} or {last}: a message comes in one of these ways", all.join(", "));
    let unknown = match test {
        Test::Equals(text) => Some(text).filter(|text| !is_door(text)),
        Test::OneOf(texts) => texts.iter().find(|text| !is_door(text)),
        other if words.iter().any(|word| other.takes(word)) => None,
        _ => {
            return field.wrong(format!("no message meets this condition: \"{SOURCE}\" is {needed}"), report);
        }
    };
    match unknown {
        None => Some(()),
        Some(text) => {
            field.wrong(format!("\"{SOURCE}\" is \"{}\", but must be {needed}", shown(text)), report)
        }
    }
}

/// The reason why no message can meet all conditions of a rule; `None` if one can.
pub(super) fn contradiction(rule: &Rule) -> Option<String> {
    if rule.doors().next().is_some() {
        return None;
    }
    let mut asks = Vec::new();
    let mut property = None;
    for condition in rule.conditions() {
        let doors = condition.doors();
        if doors.len() < Door::ALL.len() {
            let words: Vec<_> = doors.into_iter().map(Door::word).collect();
            asks.push(format!("{} asks for {}", shown(&condition.subject.to_string()), words.join(" or ")));
            property = property.or(condition.subject.application());
        }
    }
    let hint = property.map_or(String::new(), |name| {
        format!("; a method call has no properties, so write body.{}", shown(name))
    });
    Some(format!(
        "no message meets all of these conditions, because a message comes in only one way: {}{hint}",
        asks.join(", ")
    ))
}

fn read_test(field: &Field<'_>, report: &mut Report) -> Option<Test> {
    if let Some(text) = field.value.comparable() {
        return Some(Test::Equals(text));
    }
    let DeValue::Table(table) = field.value.value else {
        let needed = match field.value.value {
            DeValue::Array(_) => "one value, or for several { one_of = [\"on\", \"off\"] }".to_owned(),
            _ => format!("a text, a whole number, true, false, or a table with one of {}", kinds()),
        };
        return field.wrong_type(&needed, report);
    };
    let found = fields(table);
    let [kind] = found.as_slice() else {
        let message = format!(
            "{} has {} kinds of condition: it must have one of {}",
            shown(field.key),
            found.len(),
            kinds()
        );
        return field.wrong(message, report);
    };
    if let Some((_, read)) = KINDS.iter().find(|(key, _)| key.name == kind.key) {
        return read(kind, report);
    }
    let quoted = format!("{}.{}", field.key, kind.key);
    let hint = if field.key == "body" || field.key == "$" {
        format!("; for a name with a dot, write it in quotes: \"{}\"", shown(&quoted))
    } else {
        String::new()
    };
    let message = format!("\"{}\" is not a kind of condition: use one of {}{hint}", shown(kind.key), kinds());
    report.problem(kind.key_place.clone(), message);
    None
}

fn read_prefix(field: &Field<'_>, report: &mut Report) -> Option<Test> {
    field.text(report).map(|text| Test::Prefix(text.to_owned()))
}

fn read_glob(field: &Field<'_>, report: &mut Report) -> Option<Test> {
    let text = field.text(report)?;
    match Glob::parse(text) {
        Ok(pattern) => Some(Test::Glob(pattern)),
        Err(error) => field.wrong(format!("the pattern \"{}\" cannot be used: {error}", shown(text)), report),
    }
}

fn read_present(field: &Field<'_>, report: &mut Report) -> Option<Test> {
    read_flag(field, Test::Present, "absent", report)
}

fn read_absent(field: &Field<'_>, report: &mut Report) -> Option<Test> {
    read_flag(field, Test::Absent, "present", report)
}

fn read_one_of(field: &Field<'_>, report: &mut Report) -> Option<Test> {
    let values = field.array("a list, such as [\"on\", \"off\"]", report)?;
    if values.is_empty() {
        return field.wrong("one_of is empty, so that no message could match: list the values", report);
    }
    let mut texts = Vec::with_capacity(values.len());
    for value in &values {
        match value.comparable() {
            Some(text) => texts.push(text),
            None => {
                let needed = "a text, a whole number, true or false";
                return value.named("a value of one_of").wrong_type(needed, report);
            }
        }
    }
    Some(Test::OneOf(Choices::new(texts)))
}

fn read_range(field: &Field<'_>, report: &mut Report) -> Option<Test> {
    let numbers: Option<Vec<f64>> = field.array(RANGE, report)?.iter().map(|value| value.number()).collect();
    let Some([min, max]) = numbers.as_deref() else {
        return field.wrong(format!("range must be {RANGE}"), report);
    };
    if min > max {
        let message = format!(
            "range goes from {min} down to {max}, so that no number could match: write [{max}, {min}]"
        );
        return field.wrong(message, report);
    }
    Some(Test::Range { min: *min, max: *max })
}

fn read_flag(field: &Field<'_>, test: Test, opposite: &str, report: &mut Report) -> Option<Test> {
    match field.value.value {
        DeValue::Boolean(true) => Some(test),
        DeValue::Boolean(false) => {
            field.wrong(format!("{} = false is not a condition: write {opposite} = true", field.key), report)
        }
        _ => field.wrong_type("true", report),
    }
}
