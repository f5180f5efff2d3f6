//! Templates: text of the configuration that contains values of the message.
//!
//! Owns: the syntax (`{name}`, `{name:default}`, `{{`, `}}`) and the safety of filled values. Must not know: TOML,
//! the use of the text.

use crate::message::excerpt;

use super::condition::Condition;
use super::plan::{MAX_FILLED_BYTES, PlanError};
use super::subject::Subject;
use super::values::{Found, Values};

/// One argument or one value. It is filled in after the argument list was split, so one value never becomes two
/// arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Template(Vec<TemplatePart>);

#[derive(Debug, Clone, PartialEq, Eq)]
enum TemplatePart {
    Literal(String),
    Value { subject: Subject, default: Option<String> },
}

/// Why a text is not a template.
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
    /// Reads a template. Text without braces gives a template that is always itself.
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
                parts.push(TemplatePart::Literal(std::mem::take(&mut literal)));
            }
            parts.push(TemplatePart::Value { subject, default });
            rest = after;
        }
        literal.push_str(rest);
        if !literal.is_empty() {
            parts.push(TemplatePart::Literal(literal));
        }
        Ok(Self(parts))
    }

    /// The text, if no message can change it.
    pub(crate) fn literal(&self) -> Option<&str> {
        match self.0.as_slice() {
            [] => Some(""),
            [TemplatePart::Literal(text)] => Some(text),
            _ => None,
        }
    }

    /// The values that the template uses and that have no default.
    pub(super) fn needed(&self) -> impl Iterator<Item = &Subject> {
        self.0.iter().filter_map(|part| match part {
            TemplatePart::Value { subject, default: None } => Some(subject),
            _ => None,
        })
    }

    /// The values that the template uses, with or without a default.
    pub(super) fn subjects(&self) -> impl Iterator<Item = &Subject> {
        self.0.iter().filter_map(|part| match part {
            TemplatePart::Value { subject, .. } => Some(subject),
            TemplatePart::Literal(_) => None,
        })
    }

    /// The value that the template uses, if it is one value and nothing else.
    pub(super) fn single(&self) -> Option<&Subject> {
        match self.0.as_slice() {
            [TemplatePart::Value { subject, .. }] => Some(subject),
            _ => None,
        }
    }

    /// Whether a message that meets the conditions can fill the template to this text, as far as the configuration
    /// alone shows.
    pub(super) fn may_be(&self, text: &str, conditions: &[Condition]) -> bool {
        match self.single() {
            Some(subject) => conditions.iter().all(|condition| condition.allows(subject, text)),
            None => true,
        }
    }

    /// Fills in the message's values.
    ///
    /// # Errors
    /// When a value is missing, is a JSON object or array, makes the text too long, or has control characters; or
    /// when it would make the text begin with `-` and no condition lists it. Text of the configuration itself, with
    /// its defaults, may begin with `-`.
    pub(super) fn fill(&self, values: &Values<'_>, conditions: &[Condition]) -> Result<String, PlanError> {
        let mut text = String::new();
        for part in &self.0 {
            match part {
                TemplatePart::Literal(literal) => text.push_str(literal),
                TemplatePart::Value { subject, default } => match (values.find(subject), default) {
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
