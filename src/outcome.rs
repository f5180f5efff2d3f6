//! The outcome of one message, as it is recorded, reported to the back end, and read there.
//!
//! Owns: the kinds of outcomes, and the shapes of an outcome report and of the agent's part of the twin, both ways.
//! Must not know: how outcomes come about, how reports are sent.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How a message ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum OutcomeKind {
    /// Every step was done.
    Succeeded,
    /// A step failed, at the last attempt.
    Failed,
    /// The rule's timeout was reached, at the last attempt.
    TimedOut,
    /// The agent stopped, or the power failed, during the action, and the rule says not to run it again.
    Interrupted,
    /// Nothing was done, because a value of the message or a guard of the rule did not allow it.
    Refused,
    /// Nothing was done, because it had expired.
    Expired,
    /// Nothing was done, because no rule matches it.
    Unmatched,
    /// Nothing was done, because its property bag could not be decoded.
    Undecodable,
    /// Nothing was done, or nothing more, because a person dropped it from the inbox.
    Dropped,
    /// Nothing was done, because another message with this id and other content came before, and the id is a key.
    Repeated,
}

impl OutcomeKind {
    /// Whether the message becomes a dead letter, which a person may run again or drop. An unmatched message can run
    /// as soon as a rule matches it.
    pub fn is_dead_letter(self) -> bool {
        matches!(self, Self::Failed | Self::TimedOut | Self::Interrupted | Self::Refused | Self::Unmatched)
    }

    /// Whether a message with this outcome may run if it comes again, because the reason may be gone. A rule may
    /// match it now. If it had expired but the hub still delivers it, the clock was wrong.
    pub fn may_come_to_be_run(self) -> bool {
        matches!(self, Self::Expired | Self::Unmatched)
    }

    /// The name in JSON and in tables.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::TimedOut => "timed-out",
            Self::Interrupted => "interrupted",
            Self::Refused => "refused",
            Self::Expired => "expired",
            Self::Unmatched => "unmatched",
            Self::Undecodable => "undecodable",
            Self::Dropped => "dropped",
            Self::Repeated => "repeated",
        }
    }
}

impl fmt::Display for OutcomeKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// How many messages ended in which way, since the inbox was created.
pub type Totals = BTreeMap<OutcomeKind, u64>;

/// The outcome of one message: the body of the telemetry report, the entry in the twin, the end of an inbox record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OutcomeReport {
    /// The message's id, if its sender gave one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message_id: Option<String>,
    /// The rule that matched it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    /// How it ended.
    pub outcome: OutcomeKind,
    /// The outcome as a sentence, such as `failed: run /usr/bin/backup: exit code 3`.
    pub text: String,
    /// The exit code of the last program.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// How long the last attempt took, in milliseconds. Absent if no attempt was begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub duration_ms: Option<u64>,
    /// Which attempt this was, from 1. 0 if there was none.
    #[serde(default)]
    pub attempt: u32,
    /// When it ended, in RFC 3339.
    pub ended: String,
    /// The first 4 KiB of what its programs wrote, as text.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output: String,
    /// The last KiB of the output, if it is longer than [`OutcomeReport::output`].
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub output_end: String,
    /// How many bytes its programs wrote in all.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub output_bytes: u64,
}

impl OutcomeReport {
    /// A report without an action, or without a further one. `ended` is in RFC 3339.
    pub(crate) fn without_action(kind: OutcomeKind, text: String, ended: String) -> Self {
        Self {
            message_id: None,
            rule: None,
            outcome: kind,
            text,
            exit_code: None,
            duration_ms: None,
            attempt: 0,
            ended,
            output: String::new(),
            output_end: String::new(),
            output_bytes: 0,
        }
    }
}

fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The application property and its value that mark a D2C message as a report of an outcome. The message's
/// correlation id is the id of the C2D message, its body is an [`OutcomeReport`] in JSON.
pub const REPORT_PROPERTY: (&str, &str) = ("c2d-report", "outcome");

/// The name of the agent's part of the twin's reported properties.
pub const TWIN_SECTION: &str = "c2dAgent";

/// Most outcomes in [`TwinReport::recent`].
pub const MAX_TWIN_RECENT: usize = 10;

/// Most rules in [`TwinReport::rules`]. With the other limits, the report stays within the 32 KiB of reported
/// properties that the hub stores.
pub const MAX_TWIN_RULES: usize = 30;

/// Most bytes of [`OutcomeReport::text`] in the twin.
pub const MAX_TWIN_TEXT: usize = 200;

/// Most pins in [`TwinReport::pins`].
pub const MAX_TWIN_PINS: usize = 32;

/// Most sentences in [`DesiredReport::problems`], without the one that counts the rest.
pub const MAX_TWIN_PROBLEMS: usize = 20;

/// Most bytes of one of these sentences, and of all of them.
pub const MAX_TWIN_PROBLEM: (usize, usize) = (400, 4096);

/// The agent's part of the reported properties, under [`TWIN_SECTION`]. The agent writes it with
/// [`TwinReport::patch`], and a back end reads it with [`TwinReport::read`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct TwinReport {
    /// The version of the agent's program.
    pub version: Option<String>,
    /// Digits that change with the configuration in force.
    pub configuration: Option<String>,
    /// How the agent is connected.
    pub connection: Option<TwinConnection>,
    /// `on` or `off`, under the pin's name as [`twin_key`] writes it.
    pub pins: BTreeMap<String, String>,
    /// The result of the desired properties. Absent if the agent does not look at them.
    pub desired: Option<DesiredReport>,
    /// The certificate of the device. It stands beside the agent's part, where Microsoft asks devices to report it.
    /// Source: wire reference 12.6.
    #[serde(skip)]
    pub certificate: Option<TwinCertificate>,
    /// The message that came last.
    pub last_message: Option<LastMessage>,
    /// How many messages ended in which way.
    pub totals: Totals,
    /// The last outcome of each rule, under the rule's name as [`twin_key`] writes it.
    pub rules: BTreeMap<String, OutcomeReport>,
    /// The last outcomes, newest first.
    pub recent: Vec<OutcomeReport>,
    /// Earlier rules and pins that the hub still has and must forget.
    #[serde(skip)]
    pub gone: Gone,
}

/// Keys of the twin that no longer exist.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Gone {
    /// Keys of [`TwinReport::rules`].
    pub rules: BTreeSet<String>,
    /// Keys of [`TwinReport::pins`].
    pub pins: BTreeSet<String>,
}

/// How the agent is connected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TwinConnection {
    /// `connected`, when the report was written. The hub knows whether that is still true.
    pub state: String,
    /// The transport, as the configuration names it.
    pub transport: Option<String>,
    /// Since when, in RFC 3339.
    pub since: String,
}

/// When a certificate is valid, in RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TwinCertificate {
    /// From when on.
    pub valid_from: String,
    /// Until when.
    pub valid_until: String,
}

/// The result of the desired properties.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct DesiredReport {
    /// Their `$version`.
    pub version: u64,
    /// Whether the agent applies them.
    pub status: DesiredStatus,
    /// Why not, one sentence each. The last one counts those that had no room.
    #[serde(default)]
    pub problems: Vec<String>,
}

/// Whether the agent applies the desired properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum DesiredStatus {
    /// It applies all of them.
    Applied,
    /// It applies none of them. The earlier rules stay in force.
    Refused,
}

impl DesiredReport {
    /// A report that they are in force.
    pub fn applied(version: u64) -> Self {
        Self { version, status: DesiredStatus::Applied, problems: Vec::new() }
    }

    /// A report that they are refused, with as many problems as the twin has room for, cut short.
    pub fn refused(version: u64, problems: impl IntoIterator<Item = String>) -> Self {
        let (longest, mut room) = MAX_TWIN_PROBLEM;
        let (mut named, mut more) = (Vec::new(), 0_usize);
        for problem in problems {
            let short = cut(&problem, longest);
            if more > 0 || named.len() == MAX_TWIN_PROBLEMS || short.len() > room {
                more += 1;
                continue;
            }
            room -= short.len();
            named.push(short);
        }
        if more > 0 {
            named.push(format!("… and {more} more"));
        }
        Self { version, status: DesiredStatus::Refused, problems: named }
    }
}

/// The beginning of a text, at most `most` bytes.
fn cut(text: &str, most: usize) -> String {
    let fits = |(at, c): &(usize, char)| at + c.len_utf8() <= most;
    text.char_indices().take_while(fits).map(|(_, c)| c).collect()
}

/// The message that came last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LastMessage {
    /// Its id, if its sender gave one.
    #[serde(default)]
    pub message_id: Option<String>,
    /// When it came, in RFC 3339.
    pub received: String,
}

impl TwinReport {
    /// Adds one outcome, without output and with a shortened text. The caller updates the totals.
    pub fn record(&mut self, report: &OutcomeReport) {
        let text = cut(&report.text, MAX_TWIN_TEXT);
        let short = OutcomeReport {
            text,
            output: String::new(),
            output_end: String::new(),
            output_bytes: 0,
            ..report.clone()
        };
        if let Some(key) = short.rule.as_deref().map(twin_key)
            && (self.rules.len() < MAX_TWIN_RULES || self.rules.contains_key(&key))
        {
            self.rules.insert(key, short.clone());
        }
        self.recent.insert(0, short);
        self.recent.truncate(MAX_TWIN_RECENT);
    }

    /// Sets the pins to show, with `on` or `off` for each, and removes all others. True if that changes anything.
    pub fn set_pins(&mut self, pins: impl IntoIterator<Item = (String, String)>) -> bool {
        let pins =
            pins.into_iter().take(MAX_TWIN_PINS).map(|(name, state)| (twin_key(&name), state)).collect();
        let earlier = std::mem::replace(&mut self.pins, pins);
        self.gone.pins.extend(earlier.keys().filter(|key| !self.pins.contains_key(*key)).cloned());
        self.pins != earlier
    }

    /// Removes rules that `is_known` rejects (names as [`twin_key`] writes them), and pins that are not shown. It
    /// removes them here and from what the hub has: `reported`, all reported properties. True if there are any.
    pub fn keep_known(&mut self, is_known: impl Fn(&str) -> bool, reported: &Value) -> bool {
        self.gone.rules.extend(self.rules.keys().filter(|key| !is_known(key)).cloned());
        self.rules.retain(|key, _| is_known(key));
        let section = reported.get(TWIN_SECTION);
        let keys =
            |part: &str| section.and_then(|section| section.get(part)?.as_object()).into_iter().flatten();
        self.gone.rules.extend(keys("rules").map(|(key, _)| key).filter(|key| !is_known(key)).cloned());
        let shown = |key: &String| self.pins.contains_key(key);
        self.gone.pins.extend(keys("pins").map(|(key, _)| key).filter(|key| !shown(key)).cloned());
        self.gone != Gone::default()
    }

    /// The whole report as a merge patch of the reported properties. Absent fields are written as null if the hub
    /// would otherwise keep an earlier value. This is not needed in `recent`, which is replaced as a whole.
    pub fn patch(&self) -> Value {
        let mut section = serde_json::to_value(self).unwrap_or_default();
        let entries = section.get_mut("rules").and_then(Value::as_object_mut).into_iter().flatten();
        for (_, entry) in entries {
            for absent in ["messageId", "exitCode", "durationMs"] {
                if entry.get(absent).is_none() {
                    entry[absent] = Value::Null;
                }
            }
        }
        for (part, gone) in [("rules", &self.gone.rules), ("pins", &self.gone.pins)] {
            let Some(entries) = section.get_mut(part).and_then(Value::as_object_mut) else { continue };
            for key in gone {
                entries.entry(key.clone()).or_insert(Value::Null);
            }
        }
        let mut patch = json!({ TWIN_SECTION: section });
        if let Some(certificate) = &self.certificate {
            patch["certificate"] = serde_json::to_value(certificate).unwrap_or_default();
        }
        patch
    }

    /// Reads the agent's part of reported properties, without parts that this program does not understand. `None` if
    /// there is no such part.
    pub fn read(reported: &Value) -> Option<Self> {
        let section = reported.get(TWIN_SECTION)?.as_object()?;
        let part = |name: &str| section.get(name).cloned().unwrap_or_default();
        let text = |name: &str| part(name).as_str().map(str::to_owned);
        let report = |entry: &Value| OutcomeReport::deserialize(entry).ok();
        let rules = part("rules");
        let rules = rules.as_object().into_iter().flatten();
        let recent = part("recent");
        let recent = recent.as_array().into_iter().flatten();
        let pins = part("pins");
        let pins = pins.as_object().into_iter().flatten();
        Some(Self {
            version: text("version"),
            configuration: text("configuration"),
            connection: TwinConnection::deserialize(part("connection")).ok(),
            pins: pins.filter_map(|(pin, state)| Some((pin.clone(), state.as_str()?.to_owned()))).collect(),
            desired: DesiredReport::deserialize(part("desired")).ok(),
            certificate: reported.get("certificate").and_then(|it| TwinCertificate::deserialize(it).ok()),
            last_message: LastMessage::deserialize(part("lastMessage")).ok(),
            totals: Totals::deserialize(part("totals")).unwrap_or_default(),
            rules: rules.filter_map(|(key, entry)| Some((key.clone(), report(entry)?))).collect(),
            recent: recent.filter_map(report).collect(),
            gone: Gone::default(),
        })
    }

    /// The outcomes of one message that the twin shows.
    pub fn outcomes_of<'a>(&'a self, message_id: &'a str) -> impl Iterator<Item = &'a OutcomeReport> {
        let all = self.recent.iter().chain(self.rules.values());
        all.filter(move |report| report.message_id.as_deref() == Some(message_id))
    }
}

/// A name as a key of the twin. Control characters, `.`, `$` and spaces are not allowed there, so they become `_`.
pub fn twin_key(name: &str) -> String {
    let forbidden = |c: char| c.is_control() || matches!(c, '.' | '$' | ' ');
    name.chars().map(|c| if forbidden(c) { '_' } else { c }).collect()
}

#[cfg(test)]
mod tests;
