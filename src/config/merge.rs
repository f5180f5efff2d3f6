//! Merges several TOML texts into one tree: later files add to earlier ones, or replace single values.
//!
//! Owns: what merging means, and the places in a tree of several files. Must not know: keys, except that rules and
//! tests are lists that grow.

use std::ops::Range;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::field::shown;
use super::report::{Report, position};
use super::rule;
use super::rule_tests;
use super::rule_texts::{RULES, RuleText, SplitText};
use super::sources::Sources;
use super::syntax;

/// The list of tests. Each file adds to it, and to the list of rules.
const TESTS: &str = super::TEST.name;
/// Most replaced values that are named; the others are counted.
const MAX_NAMED: usize = 20;

/// What all files say together.
pub(super) struct Merged<'t> {
    /// Without the rules, if they are in `rules`.
    pub(super) root: DeTable<'t>,
    /// All rules, if every file could be split.
    pub(super) rules: Vec<RuleText<'t>>,
    /// A sentence for each value that a later file replaced.
    pub(super) replaced: Vec<String>,
}

/// Parses all files and merges them in their order.
///
/// Tables are merged key by key, in any notation. The list of rules grows. Anything else is replaced as a whole. A
/// table and a value under one key are a problem, and so is everything that TOML does not allow.
pub(super) fn read<'t>(sources: &'t Sources, report: &mut Report) -> Merged<'t> {
    let (mut root, mut merge) = (DeTable::new(), Merge { sources, report, named: Vec::new(), more: 0 });
    let split: Option<Vec<SplitText<'_>>> = sources.iter().map(SplitText::of).collect();
    let mut split = split.map(Vec::into_iter);
    let mut rules = Vec::new();
    for source in sources.iter() {
        let mut parsed = match split.as_mut().and_then(Iterator::next) {
            Some(text) => {
                rules.extend(text.rules);
                text.head
            }
            None => syntax::parse(source, merge.report),
        };
        if source.is_remote {
            parsed = only_rules(parsed, merge.report);
        }
        merge.tables(&mut root, parsed, &mut Vec::new());
    }
    let Merge { named: mut replaced, more, .. } = merge;
    if more > 0 {
        replaced.push(format!("… and {more} more values are replaced"));
    }
    Merged { root, rules, replaced }
}

/// The rules of a text of the twin; anything else in it is a problem.
fn only_rules<'t>(parsed: DeTable<'t>, report: &mut Report) -> DeTable<'t> {
    let mut rules = DeTable::new();
    for (key, value) in parsed {
        if key.get_ref() == RULES {
            rules.insert(key, value);
            continue;
        }
        let message = format!(
            "the twin may set only rules: its texts can contain only [[rule]] tables, not \"{}\"",
            shown(key.get_ref())
        );
        report.problem(key.span(), message);
    }
    rules
}

struct Merge<'t, 'r> {
    sources: &'t Sources,
    report: &'r mut Report,
    named: Vec<String>,
    more: usize,
}

impl<'t> Merge<'t, '_> {
    /// Merges `later` into `earlier`; `path` has the keys that lead to both.
    fn tables(&mut self, earlier: &mut DeTable<'t>, later: DeTable<'t>, path: &mut Vec<String>) {
        for (key, value) in later {
            let name = key.get_ref().to_string();
            let Some((first_key, first)) = earlier.remove_entry(name.as_str()) else {
                earlier.insert(key, value);
                continue;
            };
            let is_list = path.is_empty() && [RULES, TESTS].contains(&name.as_str());
            let (place, second_place) = (first.span(), value.span());
            let (key, value) = match (first.into_inner(), value.into_inner()) {
                (DeValue::Table(mut first), DeValue::Table(second)) => {
                    path.push(name);
                    self.tables(&mut first, second, path);
                    path.pop();
                    (first_key, Spanned::new(place, DeValue::Table(first)))
                }
                (DeValue::Array(first), DeValue::Array(second)) if is_list => {
                    let both = first.into_iter().chain(second).collect();
                    (first_key, Spanned::new(place, DeValue::Array(both)))
                }
                (first, second) if is_mixed(&first, &second, is_list) => {
                    let message = format!(
                        "{} is of type {} here, but of type {} in an earlier file, and these cannot be merged: {}",
                        named(path, &name),
                        second.type_str(),
                        first.type_str(),
                        match name.as_str() {
                            RULES if is_list => rule::FORM,
                            TESTS if is_list => rule_tests::FORM,
                            _ => "remove one of them",
                        }
                    );
                    let earlier = (first_key.span(), "it is here first");
                    self.report.problem_with(key.span(), message, earlier);
                    (first_key, Spanned::new(place, first))
                }
                (_, second) => {
                    self.note(&key.span(), &first_key.span(), path, &name);
                    (key, Spanned::new(second_place, second))
                }
            };
            earlier.insert(key, value);
        }
    }

    fn note(&mut self, later: &Range<usize>, earlier: &Range<usize>, path: &[String], name: &str) {
        if self.named.len() == MAX_NAMED {
            self.more += 1;
            return;
        }
        let [later, earlier] = [later, earlier].map(|place| position(self.sources, place));
        self.named.push(format!("{later} replaces {earlier}: {}", named(path, name)));
    }
}

/// Whether only one is a table; or, for a list that grows, whether only one is a list.
fn is_mixed(first: &DeValue<'_>, second: &DeValue<'_>, is_list: bool) -> bool {
    first.is_table() != second.is_table() || (is_list && first.is_array() != second.is_array())
}

/// `[gpio.pins.pump] line`; a key at the top has no header.
fn named(path: &[String], name: &str) -> String {
    let name = shown(name);
    if path.is_empty() {
        return name;
    }
    let path: Vec<_> = path.iter().map(|key| shown(key)).collect();
    format!("[{}] {name}", path.join("."))
}
