//! Templates: text of the configuration with values of the message in it.
//!
//! Owns: the syntax (`{name}`, `{name:default}`, `{{`, `}}`) and the safety of filled values.
//! Must not know: TOML, what the text is for.

use crate::message::excerpt;

use super::condition::Condition;
use super::plan::PlanError;
use super::values::{Found, Subject, Values};

/// Most bytes that the arguments of a rule have once they are filled in: what a program can take in any case.
pub(super) const MAX_FILLED_BYTES: usize = 128 * 1024;

/// One argument or one value. It is filled after the argument list is already split, so a value never becomes two.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<Part>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Value { subject: Subject, default: Option<String> },
}

/// Why a text is no template.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TemplateError {
    #[error("a {{ has no }}: write {{name}} for a value of the message, or {{{{ for the character itself")]
    Unclosed,
    #[error("a }} has no {{: write }}}} for the character itself")]
    Stray,
    #[error("\"{{{0}}}\" is not a name: write {{name}}, {{name:default}}, {{$.cid}} or {{body.field}}")]
    Name(String),
    #[error("a {{ is inside {{…}}: names and defaults cannot contain braces")]
    Nested,
}

impl Template {
    /// Reads a template; text without braces is a template that is always itself.
    pub(crate) fn parse(text: &str) -> Result<Self, TemplateError> {
        let mut parts = Vec::new();
        let mut literal = String::new();
        let mut rest = text;
        while let Some(at) = rest.find(['{', '}']) {
            literal.push_str(&rest[..at]);
            rest = &rest[at..];
            if let Some(after) = rest.strip_prefix("{{").or_else(|| rest.strip_prefix("}}")) {
                literal.push_str(&rest[..1]);
                rest = after;
                continue;
            }
            let inner = rest.strip_prefix('{').ok_or(TemplateError::Stray)?;
            let (inside, after) = inner.split_once('}').ok_or(TemplateError::Unclosed)?;
            if inside.contains('{') {
                return Err(TemplateError::Nested);
            }
            let (name, default) = match inside.split_once(':') {
                Some((name, default)) => (name, Some(default.to_owned())),
                None => (inside, None),
            };
            let subject = Subject::parse(name).ok_or_else(|| TemplateError::Name(inside.to_owned()))?;
            if !literal.is_empty() {
                parts.push(Part::Literal(std::mem::take(&mut literal)));
            }
            parts.push(Part::Value { subject, default });
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(Part::Literal(literal));
        }
        Ok(Self(parts))
    }

    /// The text, when no message can change it.
    pub(crate) fn literal(&self) -> Option<&str> {
        match self.0.as_slice() {
            [] => Some(""),
            [Part::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// What the template takes and has no default for.
    pub(super) fn needed(&self) -> impl Iterator<Item = &Subject> {
        self.0.iter().filter_map(|part| match part {
            Part::Value { subject, default: None } => Some(subject),
            _ => None,
        })
    }

    /// What the template takes, with a default or without one.
    pub(super) fn subjects(&self) -> impl Iterator<Item = &Subject> {
        self.0.iter().filter_map(|part| match part {
            Part::Value { subject, .. } => Some(subject),
            Part::Literal(_) => None,
        })
    }

    /// What the template takes when it is one value and nothing else.
    pub(super) fn single(&self) -> Option<&Subject> {
        match self.0.as_slice() {
            [Part::Value { subject, .. }] => Some(subject),
            _ => None,
        }
    }

    /// Whether a message that meets the conditions may make this text of it, as far as the configuration alone tells.
    pub(super) fn may_be(&self, text: &str, conditions: &[Condition]) -> bool {
        match self.single() {
            Some(subject) => conditions.iter().all(|condition| condition.allows(subject, text)),
            None => true,
        }
    }

    /// Fills in the message's values.
    ///
    /// # Errors
    /// When a value is missing, is a JSON object or array, makes the text too long, holds control characters, or would make it begin
    /// with `-` and no condition lists it. Text of the configuration itself, defaults included, may begin so.
    pub(super) fn fill(&self, values: &Values<'_>, conditions: &[Condition]) -> Result<String, PlanError> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                Part::Literal(literal) => text.push_str(literal),
                Part::Value { subject, default } => match (values.find(subject), default) {
                    (Found::Text(value), _) => {
                        if text.len() + value.len() > MAX_FILLED_BYTES {
                            return Err(PlanError::TooMuch);
                        }
                        check(subject, &value, text.is_empty(), conditions)?;
                        text.push_str(&value);
                    }
                    (Found::Missing, Some(default)) => text.push_str(default),
                    (Found::Missing, None) => {
                        let remark = values.remark(subject);
                        return Err(PlanError::Missing { name: subject.to_string(), remark });
                    }
                    (Found::Structure, _) => return Err(PlanError::Structure(subject.to_string())),
                },
            }
        }
        Ok(text)
    }
}

fn check(subject: &Subject, value: &str, begins: bool, conditions: &[Condition]) -> Result<(), PlanError> {
    if value.contains(char::is_control) {
        return Err(PlanError::ControlCharacter { name: subject.to_string(), value: excerpt(value) });
    }
    let listed = || conditions.iter().any(|condition| condition.lists(subject, value));
    if begins && value.starts_with('-') && !listed() {
        return Err(PlanError::LooksLikeAnOption { name: subject.to_string(), value: excerpt(value) });
    }
    Ok(())
}
