//! The configuration as a JSON Schema, for editors.
//!
//! Owns: the shapes of values with a parser of their own. Must not know: how a value is read.
//!
//! Draft 7 is what the editors' TOML tools support. A schema sees one file. It cannot limit durations or relate values
//! to each other, so only `check` is complete.

use serde_json::{Map, Value, json};

use super::key::Absent;
use super::reference::{self, Described, Section, Shape, without_links};

/// The form of a duration: one or more numbers, each with its unit.
const DURATION: &str = "^\\s*([0-9]+\\s*[a-zA-Zµ]+\\s*)+$";
/// The form of a text that a message fills in.
const TEMPLATE: &str = "\\{[^{}]+\\}";

/// The schema. Its keys are in alphabetical order.
pub(crate) fn schema() -> Value {
    let mut properties = properties(&reference::TOP);
    for section in reference::ALL.iter().filter(|section| !section.header.contains('.')) {
        if let Some(name) = section.header.strip_prefix("[[").and_then(|rest| rest.strip_suffix("]]")) {
            properties.insert(name.to_owned(), json!({ "type": "array", "items": table(section) }));
        } else if let Some(name) = section.header.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            properties.insert(name.to_owned(), table(section));
        }
    }
    json!({
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "c2d-agent",
        "description": "The configuration of c2d-agent: Azure IoT Hub cloud-to-device messages to GPIO outputs and commands.",
        "type": "object",
        "additionalProperties": false,
        "properties": properties,
        "definitions": definitions(),
    })
}

/// How keys of a table relate to each other, as far as a schema can say it.
fn together(section: &Section) -> Value {
    match section.header {
        "[device]" => json!([{ "not": { "required": ["connection_string_file", "hub"] } }]),
        "[gpio]" => {
            let rppal = json!({ "properties": { "backend": { "const": "rppal" } }, "required": ["backend"] });
            json!([{ "if": rppal, "then": { "not": { "required": ["chip"] } } }])
        }
        "[[test]]" => {
            let one_of = |keys: &[&str]| {
                let each: Vec<_> = keys.iter().map(|key| json!({ "required": [key] })).collect();
                json!({ "anyOf": each })
            };
            json!([one_of(&["message", "data"]), one_of(&["rule", "do", "outcome"])])
        }
        _ => json!([true]),
    }
}

/// A table that has the keys of `section` and no others.
fn table(section: &Section) -> Value {
    let required: Vec<_> = section
        .keys
        .iter()
        .filter(|key| matches!(key.absent(), Absent::Refused))
        .map(|key| key.name())
        .collect();
    json!({
        "type": "object",
        "description": section.about,
        "additionalProperties": false,
        "properties": properties(section),
        "required": required,
        "allOf": together(section),
    })
}

fn properties(section: &Section) -> Map<String, Value> {
    section.keys.iter().map(|key| (key.name().to_owned(), property(*key))).collect()
}

fn property(key: &dyn Described) -> Value {
    let mut value = match key.shape() {
        Shape::Text => json!({ "type": "string", "minLength": 1 }),
        Shape::Path => {
            json!({ "type": "string", "minLength": 1, "not": { "pattern": "SharedAccess|-----BEGIN" } })
        }
        Shape::Flag => json!({ "type": "boolean" }),
        Shape::Words(words) => json!({ "enum": words }),
        Shape::Duration => json!({ "type": "string", "pattern": DURATION }),
        Shape::Size => json!({ "type": ["string", "integer"], "pattern": "^[0-9]+ *([GMK]iB)?$" }),
        Shape::Whole(least, most) => json!({ "type": "integer", "minimum": least, "maximum": most }),
        // In draft 7 a reference hides all keys beside it, so it stands in a list of one.
        Shape::Defined(name) => json!({ "allOf": [{ "$ref": format!("#/definitions/{name}") }] }),
    };
    value["description"] =
        without_links(&format!("{}: {}", key.takes_in_full(), key.about())).replace('`', "").into();
    if let Absent::Means(default) = key.absent() {
        let is_bare = matches!(key.shape(), Shape::Whole(..) | Shape::Flag);
        let bare = is_bare.then(|| default.parse().ok()).flatten();
        value["default"] = bare.unwrap_or_else(|| default.into());
    }
    value
}

/// The shapes of values that have a parser of their own.
fn definitions() -> Value {
    let plain_value = json!({ "type": ["string", "integer", "boolean"] });
    let argument = json!({ "type": "string" });
    let step = |keys: &[&str]| {
        let mut properties = properties(&reference::STEPS);
        properties.retain(|name, _| keys.contains(&name.as_str()));
        json!({ "type": "object", "additionalProperties": false, "properties": properties, "required": keys })
    };
    let mut condition = table(&reference::CONDITIONS);
    condition["minProperties"] = 1.into();
    condition["maxProperties"] = 1.into();
    json!({
        "text": { "type": "string", "minLength": 1 },
        "any_text": { "type": "string" },
        "script": { "type": "string", "pattern": "\\S" },
        "true": { "enum": [true] },
        "names": { "type": "array", "items": { "type": "string", "minLength": 1 } },
        "accept": { "type": "array", "items": { "enum": ["rules"] } },
        "reports": {
            "anyOf": [
                { "enum": ["none", "telemetry", "twin"] },
                { "type": "array", "items": { "enum": ["telemetry", "twin"] } },
            ],
        },
        "pins": { "type": "object", "additionalProperties": table(&reference::PIN) },
        "groups": { "type": "array", "items": { "type": "array", "minItems": 2, "items": { "type": "string" } } },
        "line": { "type": ["integer", "string"], "minimum": 0, "minLength": 1 },
        "on_disconnect": table(&reference::DISCONNECTED),
        "command": {
            "type": "array",
            "minItems": 1,
            "items": [{ "type": "string", "pattern": "^/[^{}]*$" }],
            "additionalItems": argument,
        },
        "commands": { "type": "object", "additionalProperties": { "$ref": "#/definitions/command" } },
        "when": {
            "anyOf": [
                { "enum": ["any"] },
                {
                    "type": "object",
                    "minProperties": 1,
                    "additionalProperties": { "anyOf": [plain_value, condition] },
                },
            ],
        },
        "values": { "type": "array", "minItems": 1, "items": plain_value },
        "range": { "type": "array", "minItems": 2, "maxItems": 2, "items": { "type": "number" } },
        "steps": {
            "type": "array",
            "items": {
                "anyOf": [
                    step(&["gpio", "set"]),
                    step(&["gpio", "pulse"]),
                    step(&["gpio", "blink"]),
                    step(&["run"]),
                    step(&["command"]),
                    step(&["shell"]),
                ],
            },
        },
        "set": { "anyOf": [{ "enum": ["on", "off", "toggle"] }, { "type": "string", "pattern": TEMPLATE }] },
        "time": {
            "anyOf": [{ "type": "string", "pattern": DURATION }, { "type": "string", "pattern": TEMPLATE }],
        },
        "count": {
            "anyOf": [
                { "type": "integer", "minimum": 1, "maximum": 1000 },
                { "type": "string", "pattern": format!("{TEMPLATE}|^[0-9]+$") },
            ],
        },
        "blink": table(&reference::WAVE),
    })
}
