//! The environment of a child process: what a program learns of a message.
//!
//! Owns: the names and values of `C2D_…`. Must not know: processes, `PATH`.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::message::{C2dMessage, excerpt};

use super::plan::{MAX_VARIABLES, PlanError};

/// Every `C2D_…` variable, sorted by name. `C2D_MESSAGE_ID` and `C2D_CORRELATION_ID` are left out if the message has
/// none. The variables of properties whose variable names become equal are left out, too.
///
/// # Errors
/// [`PlanError::TooMany`]: each property costs time. [`PlanError::Nul`]: no variable can hold a NUL, and if it were
/// left out, a program could do more than was asked. [`PlanError::Lookalike`]: a property has the variable name of
/// another one that the rule's conditions test (`tested`). The program would then read an untested value, or none.
pub(super) fn of(
    message: &C2dMessage,
    rule: &str,
    device_id: &str,
    tested: &[&str],
) -> Result<Vec<(String, String)>, PlanError> {
    let count = message.application.len();
    if count > MAX_VARIABLES {
        return Err(PlanError::TooMany { count });
    }
    let mut variables: BTreeMap<String, Option<String>> = BTreeMap::new();
    let taken: BTreeMap<String, &str> = tested.iter().map(|name| (variable_name(name), *name)).collect();
    for (name, value) in message.application.iter() {
        let value = value.unwrap_or("").to_owned();
        refuse_nul(name, &value)?;
        let variable = variable_name(name);
        if let Some(tested) = taken.get(&variable).filter(|_| !tested.contains(&name)) {
            let (name, tested) = (excerpt(name), (*tested).to_owned());
            return Err(PlanError::Lookalike { name, variable, tested });
        }
        // If the name exists already, both are left out, so that neither is taken for the other.
        variables.entry(variable).and_modify(|slot| *slot = None).or_insert(Some(value));
    }
    for (name, subject, value) in [
        ("C2D_MESSAGE_ID", "$.mid", message.message_id()),
        ("C2D_CORRELATION_ID", "$.cid", message.correlation_id()),
        ("C2D_RULE", "the rule's name", Some(rule)),
        ("C2D_DEVICE_ID", "the device id", Some(device_id)),
    ] {
        let value = value.map(str::to_owned);
        refuse_nul(subject, value.as_deref().unwrap_or(""))?;
        variables.insert(name.to_owned(), value);
    }
    variables.insert("C2D_PROPERTIES".to_owned(), Some(properties_as_json(message)));
    Ok(variables.into_iter().filter_map(|(name, value)| Some((name, value?))).collect())
}

/// The variable for a property.
pub(crate) fn variable_name(property: &str) -> String {
    let keep = |c: char| if c.is_ascii_alphanumeric() { c.to_ascii_uppercase() } else { '_' };
    format!("C2D_PROPERTY_{}", property.chars().map(keep).collect::<String>())
}

/// The application properties as one JSON object. A key without a value has the empty text. JSON writes a NUL as
/// `\u0000`.
fn properties_as_json(message: &C2dMessage) -> String {
    let text = |value: Option<&str>| Value::String(value.unwrap_or("").to_owned());
    let object = message.application.iter().map(|(name, value)| (name.to_owned(), text(value))).collect();
    Value::Object(object).to_string()
}

fn refuse_nul(name: &str, value: &str) -> Result<(), PlanError> {
    if value.contains('\0') { Err(PlanError::Nul(name.to_owned())) } else { Ok(()) }
}
