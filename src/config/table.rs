//! Reads TOML, one table at a time, and reports every mistake at its place.
//!
//! Owns: unknown and missing keys. Must not know: what the keys mean.

use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::field::{Field, fields, shown};
use super::key::{Key, ValueKind};
use super::report::Report;

/// A table. Every key must be asked for, because `finish` reports the others.
pub(super) struct Table<'t> {
    /// Its name in messages: `[device]`, `this rule`.
    what: String,
    /// Where the table begins, for messages about missing keys.
    pub(super) place: Range<usize>,
    fields: Vec<Field<'t>>,
    asked: Vec<&'static str>,
}

impl<'t> Table<'t> {
    pub(super) fn new(what: impl Into<String>, place: Range<usize>, table: &'t DeTable<'t>) -> Self {
        Self { what: what.into(), place, fields: fields(table), asked: Vec::new() }
    }

    /// A table that is not there, for keys that the environment may have in their place.
    pub(super) fn absent(what: impl Into<String>) -> Self {
        Self { what: what.into(), place: 0..0, fields: Vec::new(), asked: Vec::new() }
    }

    /// Removes `keys` from the list that a message about an unknown key offers: they do not fit to a key that is
    /// there.
    pub(super) fn unlist(&mut self, keys: &[&str]) {
        self.asked.retain(|asked| !keys.contains(asked));
    }

    /// Changes the name of the table in later messages.
    pub(super) fn rename(&mut self, what: impl Into<String>) {
        self.what = what.into();
    }

    /// The field of `key`, if it is there. A message about an unknown key lists `key`.
    pub(super) fn take<K>(&mut self, key: &Key<K>) -> Option<Field<'t>> {
        self.asked.push(key.name);
        self.take_unlisted(key.name)
    }

    /// The value of `key`; `None` if it is absent, and after a problem was reported.
    pub(super) fn read<K: ValueKind>(&mut self, key: &Key<K>, report: &mut Report) -> Option<K::Value> {
        self.take(key).and_then(|field| key.read(&field, report))
    }

    /// The field `name`. A message about an unknown key does not list it, because it has a message of its own.
    pub(super) fn take_unlisted(&mut self, name: &str) -> Option<Field<'t>> {
        let at = self.fields.iter().position(|field| field.key == name)?;
        Some(self.fields.remove(at))
    }

    /// The field `key`. Its absence is a problem.
    pub(super) fn require<K>(
        &mut self,
        key: &Key<K>,
        remedy: &str,
        report: &mut Report,
    ) -> Option<Field<'t>> {
        let found = self.take(key);
        if found.is_none() {
            report.problem(self.place.clone(), format!("{} lacks {}: {remedy}", self.what, key.name));
        }
        found
    }

    /// Reports every key that was not asked for.
    pub(super) fn finish(self, report: &mut Report) {
        for field in &self.fields {
            let nearest = self.asked.iter().max_by(|a, b| {
                let near = |known: &str| strsim::jaro_winkler(field.key, known);
                near(a).total_cmp(&near(b))
            });
            let guess = nearest
                .filter(|known| strsim::jaro_winkler(field.key, known) > 0.8)
                .map_or(String::new(), |known| format!("; did you mean {known}?"));
            let message = format!(
                "{} has no key \"{}\"{guess} (its keys are {})",
                self.what,
                shown(field.key),
                self.asked.join(", ")
            );
            report.problem(field.key_place.clone(), message);
        }
    }
}

impl<'t> Field<'t> {
    /// The value as a table. Messages call it `header`, which is `[…]`.
    pub(super) fn table(&self, header: impl Into<String>, report: &mut Report) -> Option<Table<'t>> {
        let header = header.into();
        let needed = format!("a table: write {header}, and its keys below it");
        self.table_such_as(header, &needed, report)
    }

    /// The value as a table. `needed` says what it should look like.
    pub(super) fn table_such_as(
        &self,
        what: impl Into<String>,
        needed: &str,
        report: &mut Report,
    ) -> Option<Table<'t>> {
        match self.value.value {
            DeValue::Table(table) => Some(Table::new(what, self.key_place.clone(), table)),
            _ => self.wrong_type(needed, report),
        }
    }
}
