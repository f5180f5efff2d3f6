//! Rows: what SELECT makes of the documents for which the condition holds.
//!
//! Owns: collections, columns, groups. Must not know: the text of a query, paging.
//!
//! Source: the page about twin queries, and programs of others for what it leaves open. A column without `AS` has the
//! last name of its path, as programs of Microsoft read it (`select deviceId, properties.reported.thief.runTime` is
//! read by `runTime`). A property that the document does not have makes no column. `COUNT()` without `AS` is `$1`, as in
//! Azure Cosmos DB (UNVERIFIED).

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::expression::Expression;
use super::path::PropertyPath;

/// Most bytes of the values by which documents are grouped. A choice.
pub(in crate::emulator) const MAX_GROUP_BYTES: usize = 16 * 1024 * 1024;

/// The name of a count without `AS`.
const COUNT_NAME: &str = "$1";

/// What a query goes through.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::emulator) enum Collection {
    /// The twins of devices.
    Devices,
    /// The twins of modules.
    Modules,
    /// What jobs did with devices.
    Jobs,
}

impl Collection {
    /// The words that a path of this collection may begin with.
    pub(super) fn words(self) -> &'static [&'static str] {
        match self {
            Self::Devices => &["devices"],
            Self::Modules => &["devices", "modules"],
            Self::Jobs => &["devices", "jobs"],
        }
    }
}

/// A whole query.
#[derive(Debug, Clone)]
pub(in crate::emulator) struct TwinQuery {
    pub(super) collection: Collection,
    pub(super) top: Option<usize>,
    pub(super) selection: Selection,
    pub(super) condition: Option<Expression>,
}

#[derive(Debug, Clone)]
pub(super) enum Selection {
    /// `*`.
    Documents,
    Columns(Vec<PropertyColumn>),
    /// One row for each group. Without `GROUP BY`, all documents are one group.
    Groups(Vec<GroupColumn>),
}

#[derive(Debug, Clone)]
pub(super) struct PropertyColumn {
    pub(super) path: PropertyPath,
    pub(super) alias: Option<String>,
}

#[derive(Debug, Clone)]
pub(super) enum GroupColumn {
    Count {
        alias: Option<String>,
    },
    /// A property that is the same in the whole group.
    Key(PropertyColumn),
    /// The same, but not in the row.
    HiddenKey(PropertyPath),
}

/// The groups of a query that has found some documents.
#[derive(Debug, Default)]
pub(in crate::emulator) struct RowGroups {
    /// The rows by the values that are the same in the group, and how many documents each has.
    rows: BTreeMap<String, (Map<String, Value>, u64)>,
    /// Bytes of all keys; rows hold as much again.
    bytes: usize,
}

impl RowGroups {
    /// Whether they take more memory than a query may.
    pub(in crate::emulator) fn are_too_large(&self) -> bool {
        self.bytes > MAX_GROUP_BYTES
    }
}

impl TwinQuery {
    /// What the query goes through.
    pub(in crate::emulator) fn collection(&self) -> Collection {
        self.collection
    }

    /// The most rows of the whole answer, if the query limits them.
    pub(in crate::emulator) fn top(&self) -> Option<usize> {
        self.top
    }

    /// The type of the rows, for `x-ms-item-type`. The C# SDK reads it with its case (`QueryResult.cs`), and the Java
    /// SDK refuses an answer with another type than the one it expects.
    pub(in crate::emulator) fn item_type(&self) -> &'static str {
        match (&self.selection, self.collection) {
            (Selection::Documents, Collection::Jobs) => "DeviceJob",
            (Selection::Documents, _) => "Twin",
            _ => "Raw",
        }
    }

    /// Whether the rows are groups: use [`TwinQuery::count`], not [`TwinQuery::row`].
    pub(in crate::emulator) fn has_groups(&self) -> bool {
        matches!(self.selection, Selection::Groups(_))
    }

    /// The row of a document; `None` if the condition does not hold for it.
    pub(in crate::emulator) fn row(&self, document: Value) -> Option<Value> {
        if self.condition.as_ref().is_some_and(|condition| !condition.holds(&document)) {
            return None;
        }
        match &self.selection {
            Selection::Columns(columns) => {
                let cells = columns.iter().filter_map(|column| column.cell(&document));
                Some(Value::Object(cells.collect()))
            }
            Selection::Documents | Selection::Groups(_) => Some(document),
        }
    }

    /// Counts a document in its group.
    pub(in crate::emulator) fn count(&self, document: Value, groups: &mut RowGroups) {
        let (Selection::Groups(columns), Some(document)) = (&self.selection, self.row(document)) else {
            return;
        };
        let mut row = Map::new();
        let mut key = Vec::new();
        for column in columns {
            let (path, shown) = match column {
                GroupColumn::Count { .. } => continue,
                GroupColumn::Key(column) => (&column.path, column.cell(&document)),
                GroupColumn::HiddenKey(path) => (path, None),
            };
            key.push(path.find(&document).map(|(_, value)| value.to_string()).unwrap_or_default());
            row.extend(shown);
        }
        let key = key.join("\n");
        let length = key.len();
        let (_, count) = groups.rows.entry(key).or_insert_with(|| {
            groups.bytes += length;
            (row, 0)
        });
        *count += 1;
    }

    /// The rows of the groups. A query that counts all documents has one row, if it found none, too.
    pub(in crate::emulator) fn group_rows(&self, mut groups: RowGroups) -> Vec<Value> {
        let Selection::Groups(columns) = &self.selection else { return Vec::new() };
        if columns.iter().all(|column| matches!(column, GroupColumn::Count { .. })) {
            groups.rows.entry(String::new()).or_default();
        }
        let counts = || {
            columns.iter().filter_map(|column| match column {
                GroupColumn::Count { alias } => Some(alias.as_deref().unwrap_or(COUNT_NAME)),
                _ => None,
            })
        };
        let rows = groups.rows.into_values().map(|(mut row, count)| {
            row.extend(counts().map(|name| (name.to_owned(), count.into())));
            Value::Object(row)
        });
        rows.collect()
    }
}

impl PropertyColumn {
    fn cell(&self, document: &Value) -> Option<(String, Value)> {
        let (name, value) = self.path.find(document)?;
        Some((self.alias.as_deref().unwrap_or(name).to_owned(), value.clone()))
    }
}
