//! What the configuration can hold, table by table. It is made of the keys that the parsers read.
//!
//! Owns: which keys stand in which table, for the reference, the manual page and the schema. Must not know: how a
//! value is read.

use super::conditions::KINDS;
use super::field::format_size;
pub(crate) use super::key::Absent;
use super::key::{FilePath, Flag, Form, Key, Size, Span, Text, Whole, Words};
use super::{device, gpio, inbox, metrics, policy, provisioning, rule, rule_tests, steps, transport, twin};

/// A table and its keys.
pub(crate) struct Section {
    /// The header as a file has it.
    pub(crate) header: &'static str,
    /// A few words.
    pub(crate) about: &'static str,
    /// Its keys, in the order of the reference.
    pub(crate) keys: &'static [&'static dyn Described],
}

/// A key, for the texts that describe it. All texts are Markdown.
pub(crate) trait Described: Sync {
    fn name(&self) -> &'static str;
    fn about(&self) -> &'static str;
    fn absent(&self) -> Absent;
    /// Its possible values.
    fn takes(&self) -> String;
    /// Its value in the schema.
    fn shape(&self) -> Shape;
}

impl dyn Described + '_ {
    /// What values it takes, and what its absence means, in Markdown.
    pub(crate) fn takes_in_full(&self) -> String {
        match self.absent() {
            Absent::Means(value) => format!("{}; default `{value}`", self.takes()),
            Absent::Nothing => self.takes(),
            Absent::Refused => format!("{}; required", self.takes()),
        }
    }
}

/// What a schema can say of a value.
pub(crate) enum Shape {
    Text,
    /// A path, not the secret itself.
    Path,
    Flag,
    Words(Vec<&'static str>),
    Duration,
    Size,
    Whole(u64, u64),
    /// The definition with this name.
    Defined(&'static str),
}

/// The possible values of a kind, in words and for the schema.
pub(crate) trait Takes: Sync {
    fn takes(&self) -> String;
    fn shape(&self) -> Shape;
}

impl<K: Takes> Described for Key<K> {
    fn name(&self) -> &'static str {
        self.name
    }
    fn about(&self) -> &'static str {
        self.about
    }
    fn absent(&self) -> Absent {
        self.absent
    }
    fn takes(&self) -> String {
        self.kind.takes()
    }
    fn shape(&self) -> Shape {
        self.kind.shape()
    }
}

impl Takes for Text {
    fn takes(&self) -> String {
        "a text".to_owned()
    }
    fn shape(&self) -> Shape {
        Shape::Text
    }
}

impl Takes for FilePath {
    fn takes(&self) -> String {
        "a path".to_owned()
    }
    fn shape(&self) -> Shape {
        Shape::Path
    }
}

impl Takes for Flag {
    fn takes(&self) -> String {
        "`true` or `false`".to_owned()
    }
    fn shape(&self) -> Shape {
        Shape::Flag
    }
}

impl<T: Sync> Takes for Words<T> {
    fn takes(&self) -> String {
        self.0.iter().map(|(word, _)| format!("`\"{word}\"`")).collect::<Vec<_>>().join(", ")
    }
    fn shape(&self) -> Shape {
        Shape::Words(self.0.iter().map(|(word, _)| *word).collect())
    }
}

impl Takes for Span {
    fn takes(&self) -> String {
        let [least, most] = [self.0, self.1].map(humantime::format_duration);
        format!("a duration, `{least}` to `{most}`")
    }
    fn shape(&self) -> Shape {
        Shape::Duration
    }
}

impl Takes for Whole {
    fn takes(&self) -> String {
        format!("a whole number, {} to {}", self.0, self.1)
    }
    fn shape(&self) -> Shape {
        Shape::Whole(self.0, self.1)
    }
}

impl Takes for Size {
    fn takes(&self) -> String {
        format!("bytes, `\"{}\"` to `\"{}\"`", format_size(self.0), format_size(self.1))
    }
    fn shape(&self) -> Shape {
        Shape::Size
    }
}

impl Takes for Form {
    fn takes(&self) -> String {
        self.0.to_owned()
    }
    fn shape(&self) -> Shape {
        Shape::Defined(self.1)
    }
}

pub(crate) const TOP: Section =
    Section { header: "the top, before all tables", about: "for all messages", keys: &[&policy::UNMATCHED] };
pub(crate) const DEVICE: Section = Section {
    header: "[device]",
    about: "who signs in",
    keys: &[
        &device::STRING_FILE,
        &device::HUB,
        &device::DEVICE_ID,
        &device::CERTIFICATE,
        &device::PRIVATE_KEY,
        &device::GATEWAY,
        &device::CA_FILE,
        &transport::TRANSPORT,
        &device::KEEP_ALIVE,
        &device::TOKEN_LIFETIME,
    ],
};
pub(crate) const PROVISIONING: Section = Section {
    header: "[provisioning]",
    about: "who asks the Device Provisioning Service for a hub",
    keys: &[
        &provisioning::ID_SCOPE,
        &provisioning::REGISTRATION_ID,
        &provisioning::KEY_FILE,
        &provisioning::CERTIFICATE,
        &provisioning::PRIVATE_KEY,
        &provisioning::ENDPOINT,
        &provisioning::PAYLOAD,
        &provisioning::REQUEST_CERTIFICATE,
        &provisioning::GROUP_KEY_FILE,
    ],
};
pub(crate) const INBOX: Section = Section {
    header: "[inbox]",
    about: "the record of messages",
    keys: &[
        &inbox::PATH,
        &inbox::SOCKET,
        &inbox::KEEP,
        &inbox::KEEP_AT_LEAST,
        &inbox::MAX_SIZE,
        &inbox::KNOWN_BY,
        &inbox::DIGEST_WINDOW,
        &inbox::MAX_REPORTS,
    ],
};
pub(crate) const REPORT: Section =
    Section { header: "[report]", about: "where outcomes go", keys: &[&policy::OUTCOMES] };
pub(crate) const ACTIONS: Section =
    Section { header: "[actions]", about: "limits for all actions", keys: &[&inbox::MAX_CHILDREN] };
pub(crate) const TWIN: Section =
    Section { header: "[twin]", about: "whether the twin may set rules", keys: &[&twin::ACCEPT] };
pub(crate) const ALLOW: Section = Section {
    header: "[allow]",
    about: "what rules of the twin may use",
    keys: &[&twin::PINS, &twin::COMMANDS],
};
pub(crate) const METRICS: Section =
    Section { header: "[metrics]", about: "numbers for a scraper", keys: &[&metrics::LISTEN] };
pub(crate) const GPIO: Section = Section {
    header: "[gpio]",
    about: "outputs",
    keys: &[&gpio::BACKEND, &gpio::CHIP, &gpio::STATE_FILE, &gpio::INTERLOCK, &gpio::PINS],
};
pub(crate) const PIN: Section = Section {
    header: "[gpio.pins.NAME]",
    about: "one output",
    keys: &[&gpio::LINE, &gpio::ACTIVE, &gpio::INITIAL, &gpio::ON_EXIT, &gpio::MAX_ON, &gpio::ON_DISCONNECT],
};
/// Not in [`ALL`], because the key `on_disconnect` describes it.
pub(crate) const DISCONNECTED: Section =
    Section { header: "on_disconnect", about: "", keys: &[&gpio::STATE, &gpio::AFTER] };
pub(crate) const RULE: Section = Section {
    header: "[[rule]]",
    about: "what a message does",
    keys: &[
        &rule::NAME,
        &rule::WHEN,
        &rule::DO,
        &policy::TIMEOUT,
        &policy::SETTLE,
        &policy::ON_FAILURE,
        &policy::ON_CRASH,
        &policy::ATTEMPTS,
        &policy::BACKOFF,
        &policy::LANE,
        &policy::MIN_INTERVAL,
        &policy::RATE,
        &policy::REPORT,
    ],
};
pub(crate) const CONDITIONS: Section = Section {
    header: "when",
    about: "the conditions of a rule",
    keys: &[&KINDS[0].0, &KINDS[1].0, &KINDS[2].0, &KINDS[3].0, &KINDS[4].0, &KINDS[5].0],
};
pub(crate) const STEPS: Section = Section {
    header: "do",
    about: "the steps of a rule",
    keys: &[
        &steps::GPIO,
        &steps::SET,
        &steps::PULSE,
        &steps::BLINK,
        &steps::RUN,
        &steps::COMMAND,
        &steps::SHELL,
    ],
};
/// Not in [`ALL`], because the key `blink` describes it.
pub(crate) const WAVE: Section =
    Section { header: "blink", about: "", keys: &[&steps::TIMES, &steps::PERIOD] };

pub(crate) const TEST: Section = Section {
    header: "[[test]]",
    about: "what should become of a message",
    keys: &[
        &rule_tests::NAME,
        &rule_tests::MESSAGE,
        &rule_tests::DATA,
        &rule_tests::RULE,
        &rule_tests::DO,
        &rule_tests::OUTCOME,
    ],
};

/// Every table of the reference, in its order.
pub(crate) const ALL: [&Section; 15] = [
    &TOP,
    &DEVICE,
    &PROVISIONING,
    &INBOX,
    &REPORT,
    &ACTIONS,
    &TWIN,
    &ALLOW,
    &METRICS,
    &GPIO,
    &PIN,
    &RULE,
    &CONDITIONS,
    &STEPS,
    &TEST,
];

/// Markdown with only the texts of its links, and without a last sentence that only refers to another page.
pub(crate) fn without_links(markdown: &str) -> String {
    let (mut text, mut rest) = (String::new(), markdown.split(". See [").next().unwrap_or_default());
    while let Some((before, after)) = rest.split_once("](") {
        let (before, link) = before.rsplit_once('[').unwrap_or((before, ""));
        text.extend([before, link]);
        rest = after.split_once(')').map_or("", |(_, after)| after);
    }
    text + rest
}

#[cfg(test)]
mod tests;
