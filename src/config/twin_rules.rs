//! Rules in the twin's desired properties, and the file that keeps them.
//!
//! Owns: their shape there, their limits, reading and writing the file. Must not know: the language of rules, how the
//! twin is read.
//!
//! A key of the twin has no `.`, `$` or space, but a condition may have one (`"$.method"`, `"body.zone"`). So a rule
//! is not written as JSON there, but as TOML in a text: `{"c2dAgent": {"rules": {"NAME": "[[rule]]\nname = …"}}}`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use rustix::fs::OFlags;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::field::shown;
use super::files;
use crate::trust;

/// The agent's part of the desired properties. The reported ones have a part of that name, too.
const SECTION: &str = "c2dAgent";
/// Most bytes of all texts and their names; the hub keeps no more than this of desired properties.
const MAX_BYTES: usize = 32 * 1024;
/// Most texts.
const MAX_TEXTS: usize = 100;
/// Most bytes of a text's name.
const MAX_NAME: usize = 100;
/// Most keys that are named; the others are counted.
const MAX_NAMED: usize = 20;
/// Most bytes of the file. JSON writes some characters with six bytes.
const MAX_FILE: u64 = 8 * MAX_BYTES as u64;
/// The file, beside the inbox.
const FILE: &str = "twin-rules.json";

/// Rules in the twin's desired properties: texts in TOML that hold only `[[rule]]` tables.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TwinRules {
    /// `$version` of the desired properties that brought them.
    pub version: u64,
    /// The texts by their names. The order of the names is the order of the texts.
    #[serde(rename = "rules")]
    pub texts: BTreeMap<String, String>,
}

impl TwinRules {
    /// The rules in desired properties, as the hub sends them. There is no text if there are no rules.
    ///
    /// # Errors
    /// What has the wrong shape or size, one sentence each; at most a few dozen.
    pub fn from_desired(desired: &Value) -> Result<Self, Vec<String>> {
        let mut rules = Self { version: version_of(desired), texts: BTreeMap::new() };
        let section = match desired.get(SECTION) {
            None | Some(Value::Null) => return Ok(rules),
            Some(Value::Object(section)) => section,
            Some(other) => {
                let needed = format!("{{\"{SECTION}\": {{\"rules\": {{}}}}}}");
                return Err(vec![format!(
                    "{SECTION} is {}, but must be an object, such as {needed}",
                    described(other)
                )]);
            }
        };
        let mut problems: Vec<String> = Vec::new();
        let others = section.keys().filter(|key| key.as_str() != "rules");
        problems.extend(
            others.take(MAX_NAMED).map(|key| {
                format!("{SECTION} has no property \"{}\": the twin can set only rules", shown(key))
            }),
        );
        match section.get("rules") {
            None | Some(Value::Null) => {}
            Some(Value::Object(texts)) => {
                for (name, text) in texts.iter().take(MAX_TEXTS + 1) {
                    match text {
                        Value::String(text) => drop(rules.texts.insert(name.clone(), text.clone())),
                        other if problems.len() < 2 * MAX_NAMED => problems.push(format!(
                            "{SECTION}.rules.{} is {}, but must be a text in TOML",
                            shown(name),
                            described(other)
                        )),
                        _ => {}
                    }
                }
                problems.extend(rules.unfit());
            }
            Some(other) => problems.push(format!(
                "{SECTION}.rules is {}, but must be an object of texts, such as {{\"10-pumps\": \"[[rule]]…\"}}",
                described(other)
            )),
        }
        if problems.is_empty() { Ok(rules) } else { Err(problems) }
    }

    /// Whether there is no text.
    pub fn is_empty(&self) -> bool {
        self.texts.is_empty()
    }

    /// What is too large, or has a name that messages cannot contain.
    fn unfit(&self) -> Option<String> {
        let bytes: usize = self.texts.iter().map(|(name, text)| name.len() + text.len()).sum();
        if self.texts.len() > MAX_TEXTS {
            return Some(format!(
                "there are more than {MAX_TEXTS} texts of rules: combine some of them in one"
            ));
        }
        if bytes > MAX_BYTES {
            return Some(format!(
                "the texts of rules have {bytes} bytes together, but may have at most {MAX_BYTES}"
            ));
        }
        let unfit =
            |name: &&String| name.is_empty() || name.len() > MAX_NAME || name.contains(char::is_control);
        self.texts.keys().find(unfit).map(|name| {
            format!(
                "a text of rules is named \"{}\": a name has 1 to {MAX_NAME} bytes and no control characters",
                shown(name)
            )
        })
    }

    /// The file for an agent with this inbox: beside the inbox.
    pub fn file(inbox: &Path) -> PathBuf {
        inbox.with_file_name(FILE)
    }

    /// Reads the file; `None` if there is none. A file that other users can change is not read, because they would
    /// decide what the agent does. Apart from root and the user who runs this, `owner` may own it.
    ///
    /// # Errors
    /// Why the file cannot be read, in words, without its name.
    pub fn stored(file: &Path, owner: Option<u32>) -> Result<Option<Self>, String> {
        let metadata = match fs::symlink_metadata(file) {
            Ok(found) if !found.is_file() => return Err("it is not a regular file: remove it".to_owned()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            _ => trust::open_plain(file, OFlags::RDONLY).and_then(|file| Ok((file.metadata()?, file))),
        };
        let (metadata, opened) = metadata.map_err(|error| trust::in_words(&error))?;
        let foreign = trust::foreign_in(file, &metadata);
        if let Some(foreign) = foreign.filter(|foreign| foreign.owner().is_none() || foreign.owner() != owner)
        {
            return Err(format!(
                "it {}, so it is not used: remove it, or {}",
                foreign.what(),
                foreign.remedy()
            ));
        }
        let text = files::text_of(opened, MAX_FILE)?;
        let rules: Self = serde_json::from_str(&text).map_err(|error| format!("it is damaged: {error}"))?;
        match rules.unfit() {
            Some(reason) => Err(format!("it is damaged: {reason}")),
            None => Ok(Some(rules)),
        }
    }

    /// Writes the file, or removes it if there is no text. After the return, a power cut does not undo that. May
    /// block.
    ///
    /// # Errors
    /// Why it cannot be written; then the earlier file is still there.
    pub fn store(&self, file: &Path) -> Result<(), String> {
        let failed =
            |error: io::Error| format!("{} cannot be written: {}", file.display(), trust::in_words(&error));
        if self.is_empty() {
            match fs::remove_file(file) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                removed => removed.map_err(failed)?,
            }
        } else {
            let text = serde_json::to_string(self).map_err(|error| failed(error.into()))?;
            trust::replace(file, text.as_bytes()).map_err(failed)?;
        }
        trust::sync_directory(trust::directory_of(file)).map_err(failed)
    }
}

/// `$version` of desired properties; 0 if it is missing.
pub fn version_of(desired: &Value) -> u64 {
    desired.get("$version").and_then(Value::as_u64).unwrap_or_default()
}

fn described(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
