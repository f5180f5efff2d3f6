//! Who gets a message: an id a line, or a JSON object a line.
//!
//! Owns: the syntax of a list, its limits. Must not know: what is sent.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::io::{self, BufRead, Read as _};

use serde::Deserializer as _;
use serde::de::{Error as _, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::credentials::check_device_id;

/// A body of 64 KiB in JSON fits, even if each byte is escaped.
const MAX_LINE: usize = 512 * 1024;
/// As many identities as a hub has at most. Source: azure-docs, iot-hub-devguide-quotas-throttling.
pub(crate) const MAX_ENTRIES: usize = 1_000_000;
/// All lines together; they are kept in memory.
const MAX_LIST: usize = 256 * 1024 * 1024;
/// Most characters of a line that an error repeats.
const MAX_EXCERPT: usize = 100;
/// The column that names the device.
const DEVICE_ID: &str = "deviceId";

/// The columns of a line, each as it was written: no number in it may change.
pub(super) type Columns = BTreeMap<String, Box<RawValue>>;

/// One message of a run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// Counts from 1; the number of its line.
    pub(crate) number: usize,
    /// Who gets it.
    pub(crate) device_id: String,
    /// The JSON object of its line, if it has one.
    pub(crate) row: Option<Box<str>>,
}

/// The entries of a list.
#[derive(Debug)]
pub(crate) struct EntryList {
    /// In order; at least one.
    pub(crate) entries: Vec<Entry>,
}

/// Why a list cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListError {
    /// It cannot be read to its end.
    #[error("{list} cannot be read: {error}")]
    Unreadable { list: String, error: io::Error },
    /// It has no line.
    #[error("{0} is empty: it must have an id or a JSON object on each line")]
    Empty(String),
    /// A line cannot be used.
    #[error("{list}, line {line}: {reason}")]
    Line { list: String, line: usize, reason: String },
    /// There is more than a run can have.
    #[error("{list} has more than {most}: split it")]
    TooLong { list: String, most: String },
}

impl Entry {
    /// Where it is, for an error.
    pub(crate) fn place(&self) -> String {
        format!("line {} ({})", self.number, self.device_id)
    }

    /// The columns of its line.
    ///
    /// # Errors
    /// When the line is no object; [`EntryList`] has checked that.
    pub(super) fn columns(&self) -> Result<Columns, String> {
        self.row.as_deref().map_or_else(|| Ok(Columns::new()), object)
    }
}

impl EntryList {
    /// Reads a list of devices, each with one message. The first line decides whether all are ids or all are objects.
    /// `list` names it in errors.
    ///
    /// # Errors
    /// [`ListError`]. A device that is named twice is one: it would get the message once.
    pub(crate) fn of_devices(reader: impl BufRead, list: &str) -> Result<Self, ListError> {
        let mut seen = HashMap::new();
        let mut is_object = None;
        Self::read(reader, list, |number, line| {
            let own_kind = line.starts_with('{');
            let entry = match (own_kind, *is_object.get_or_insert(own_kind)) {
                (true, true) => {
                    let row = object(line)?;
                    let device_id = row.get(DEVICE_ID).and_then(|own| text(own));
                    let device_id = device_id.ok_or_else(|| {
                        format!("it has no text \"{DEVICE_ID}\": add \"{DEVICE_ID}\": \"…\"")
                    })?;
                    Entry { number, device_id, row: Some(line.into()) }
                }
                (false, _) if line.starts_with('[') => {
                    return Err(
                        "it is a JSON array: put each object on a line of its own (jq -c '.[]' does so)"
                            .to_owned(),
                    );
                }
                (false, false) => Entry { number, device_id: line.to_owned(), row: None },
                _ => {
                    return Err("the first line decides whether all lines are ids or JSON objects".to_owned());
                }
            };
            check_device_id(&entry.device_id).map_err(|error| error.to_string())?;
            match seen.insert(entry.device_id.clone(), number) {
                Some(first) => Err(format!("\"{}\" is on line {first}, too: remove one", entry.device_id)),
                None => Ok(entry),
            }
        })
    }

    /// Reads the messages of one device, an object each.
    ///
    /// # Errors
    /// [`ListError`].
    pub(crate) fn of_messages(reader: impl BufRead, list: &str, device_id: &str) -> Result<Self, ListError> {
        Self::read(reader, list, |number, line| {
            let row = object(line)?;
            match row.get(DEVICE_ID) {
                Some(own) if text(own).as_deref() != Some(device_id) => {
                    let own = excerpt(own.get());
                    Err(format!("its deviceId is {own}, but --device is \"{device_id}\""))
                }
                _ => Ok(Entry { number, device_id: device_id.to_owned(), row: Some(line.into()) }),
            }
        })
    }

    /// `count` messages to one device, without columns.
    pub(crate) fn numbered(device_id: &str, count: usize) -> Self {
        let entry = |number| Entry { number, device_id: device_id.to_owned(), row: None };
        Self { entries: (1..=count).map(entry).collect() }
    }

    fn read(
        mut reader: impl BufRead,
        list: &str,
        mut entry: impl FnMut(usize, &str) -> Result<Entry, String>,
    ) -> Result<Self, ListError> {
        let of_line = |line, reason: String| ListError::Line { list: list.to_owned(), line, reason };
        let too_long = |most: String| ListError::TooLong { list: list.to_owned(), most };
        let (mut entries, mut size, mut empty) = (Vec::new(), 0, None);
        let mut line = Vec::new();
        for number in 1.. {
            line.clear();
            let most = MAX_LINE as u64 + 1;
            let read = reader.by_ref().take(most).read_until(b'\n', &mut line);
            let read = read.map_err(|error| ListError::Unreadable { list: list.to_owned(), error })?;
            if read == 0 {
                break;
            }
            if line.len() > MAX_LINE {
                return Err(of_line(number, format!("it has more than {} KiB", MAX_LINE / 1024)));
            }
            size += line.len();
            let text =
                std::str::from_utf8(&line).map_err(|_| of_line(number, "it is not UTF-8".to_owned()))?;
            let text = if number == 1 { text.trim_start_matches('\u{feff}') } else { text }.trim();
            if text.is_empty() {
                empty.get_or_insert(number);
                continue;
            }
            // At the end, empty lines mean nothing; elsewhere, an id may be missing.
            if let Some(empty) = empty {
                return Err(of_line(
                    empty,
                    "it is empty: remove it, or add the id that is missing".to_owned(),
                ));
            }
            if entries.len() == MAX_ENTRIES {
                return Err(too_long(format!("{MAX_ENTRIES} lines")));
            }
            if size > MAX_LIST {
                return Err(too_long(format!("{} MiB", MAX_LIST / 1024 / 1024)));
            }
            entries.push(entry(number, text).map_err(|reason| of_line(number, reason))?);
        }
        if entries.is_empty() { Err(ListError::Empty(list.to_owned())) } else { Ok(Self { entries }) }
    }
}

/// The text that a JSON string stands for.
pub(super) fn text(value: &RawValue) -> Option<String> {
    serde_json::from_str(value.get()).ok()
}

/// Reads an object whose names differ: of two values with one name, only one could be meant.
pub(super) fn distinct_columns(text: &str) -> serde_json::Result<Columns> {
    struct Distinct;
    impl<'de> Visitor<'de> for Distinct {
        type Value = Columns;

        fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
            formatter.write_str("a map")
        }

        fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Columns, M::Error> {
            let mut columns = Columns::new();
            while let Some((name, value)) = map.next_entry::<String, Box<RawValue>>()? {
                if columns.contains_key(&name) {
                    return Err(M::Error::custom(format!("it has \"{name}\" twice")));
                }
                columns.insert(name, value);
            }
            Ok(columns)
        }
    }
    let mut reader = serde_json::Deserializer::from_str(text);
    let columns = reader.deserialize_map(Distinct)?;
    reader.end()?;
    Ok(columns)
}

fn object(line: &str) -> Result<Columns, String> {
    distinct_columns(line).map_err(|error| {
        // The crate counts lines, too, and this one is always its first.
        let (text, column) = (error.to_string(), error.column());
        let reason = text.rsplit_once(" at line ").map_or(text.as_str(), |(reason, _)| reason);
        format!("it is no JSON object: {} (column {column})", excerpt(reason))
    })
}

/// Foreign text in an error: short, and safe for a terminal.
fn excerpt(text: &str) -> String {
    let mut short = String::new();
    for c in text.chars().take(MAX_EXCERPT) {
        match c {
            ' '..='~' => short.push(c),
            c => short.extend(c.escape_debug()),
        }
    }
    if text.chars().nth(MAX_EXCERPT).is_some() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    fn devices(text: &str) -> Result<Vec<Entry>, String> {
        let list = EntryList::of_devices(text.as_bytes(), "pumps.txt");
        list.map(|list| list.entries).map_err(|error| error.to_string())
    }

    #[test]
    fn ids_and_objects_are_read() {
        let ids: Vec<_> = devices("\u{feff}a\r\n b \nc:1\n\n\n").expect("a list");
        let ids: Vec<_> = ids.iter().map(|entry| (entry.number, entry.device_id.as_str())).collect();
        assert_eq!(ids, [(1, "a"), (2, "b"), (3, "c:1")]);
        let rows = devices("{\"deviceId\":\"a\",\"x\":1}\n{\"x\":2,\"deviceId\":\"b\"}").expect("a list");
        assert_eq!(rows[1].device_id, "b");
        assert_eq!(rows[1].columns().expect("columns")["x"].get(), "2");
    }

    #[test]
    fn a_list_that_cannot_be_meant_is_refused_with_its_line() {
        for (text, said) in [
            ("", "pumps.txt is empty: it must have an id or a JSON object on each line"),
            ("\n\n", "pumps.txt is empty: it must have an id or a JSON object on each line"),
            ("a\nb\na\n", "pumps.txt, line 3: \"a\" is on line 1, too: remove one"),
            ("a\n\nb\n", "pumps.txt, line 2: it is empty: remove it, or add the id that is missing"),
            ("{\"x\":1}", "pumps.txt, line 1: it has no text \"deviceId\": add \"deviceId\": \"…\""),
            ("{\"deviceId\":1}", "pumps.txt, line 1: it has no text \"deviceId\": add \"deviceId\": \"…\""),
            (
                "a\n{\"deviceId\":\"b\"}",
                "pumps.txt, line 2: the first line decides whether all lines are ids or JSON objects",
            ),
        ] {
            assert_eq!(devices(text).expect_err("refused"), said);
        }
        let twice = devices("{\"deviceId\":\"a\",\"deviceId\":\"b\"}").expect_err("twice");
        assert!(twice.contains("line 1: it is no JSON object: it has \"deviceId\" twice"), "{twice}");
        assert!(devices("a/b").expect_err("a slash").contains("line 1: "));
        assert!(devices("{\"deviceId\":").expect_err("cut").contains("it is no JSON object"));
        let text = "\u{9b}31m".repeat(1000);
        let error = EntryList::of_messages(format!("{{\"a\":1}}\n\"{text}\"").as_bytes(), "m", "a")
            .expect_err("no object");
        let error = error.to_string();
        assert!(
            error.starts_with("m, line 2: it is no JSON object: invalid type: string \"\\u{9b}31m"),
            "{error}"
        );
        assert!(error.contains("… (column ") && error.len() < 300, "{error}");
        let long = format!("{{\"deviceId\":\"a\",\"x\":\"{}\"}}", "x".repeat(MAX_LINE));
        assert_eq!(devices(&long).expect_err("long"), "pumps.txt, line 1: it has more than 512 KiB");
        let text = EntryList::of_devices(&b"a\n\xff\n"[..], "pumps.txt").expect_err("not UTF-8").to_string();
        assert_eq!(text, "pumps.txt, line 2: it is not UTF-8");
    }

    #[test]
    fn the_messages_of_one_device_may_name_it() {
        let of =
            |text: &str| EntryList::of_messages(text.as_bytes(), "m", "a").map_err(|error| error.to_string());
        assert_eq!(of("{\"body\":1}\n{\"deviceId\":\"a\"}").expect("a list").entries.len(), 2);
        assert_eq!(
            of("{\"deviceId\":\"b\"}").expect_err("another"),
            "m, line 1: its deviceId is \"b\", but --device is \"a\""
        );
    }
}
