//! The texts of single rules: a file of many rules is read rule by rule, not as a whole.
//!
//! Owns: where a rule begins and ends in its file, and which files can be read in this way. Must not know: what a rule
//! says.
//!
//! The tree of a text takes thirty times the memory of the text, and the allocator keeps this memory when the tree has
//! gone. So each rule is parsed when it is read, and its tree is dropped before the next one.

use std::ops::Range;

use toml::de::{DeArray, DeTable, DeValue};

use super::sources::SourceFile;
use super::syntax;

/// The list of rules, and what begins each of its tables.
pub(super) const RULES: &str = super::RULE.name;
const HEADER: &str = "[[rule]]";

/// A file in parts.
pub(super) struct SplitText<'t> {
    /// The tree of what stands before the first rule.
    pub(super) head: DeTable<'t>,
    pub(super) rules: Vec<RuleText<'t>>,
}

/// The text of one rule.
pub(super) struct RuleText<'t> {
    source: &'t SourceFile,
    range: Range<usize>,
}

impl<'t> SplitText<'t> {
    /// Splits a file before each `[[rule]]` that begins a line. `None` if it must be parsed as a whole: it has a
    /// mistake, or something else than rules stands behind the first rule.
    ///
    /// What only looks like such a line, as in a text of several lines, leaves a part before it that is not valid.
    pub(super) fn of(source: &'t SourceFile) -> Option<Self> {
        let text = &source.text;
        let starts = starts(text, |c| c == ' ' || c == '\t');
        let ends = starts.iter().copied().skip(1).chain([text.len()]);
        let ranges = starts.iter().zip(ends).map(|(start, end)| *start..end);
        let rules: Vec<_> = ranges.map(|range| RuleText { source, range }).collect();
        let head = syntax::parse_part(source, 0..starts.first().copied().unwrap_or(text.len()))?;
        let is_sound = !head.contains_key(RULES) && rules.iter().all(|rule| rule.tables().is_some());
        is_sound.then_some(Self { head, rules })
    }
}

/// Where a line begins with a header. Only the blanks before each header are looked at, because one line may have as
/// many headers as the file has room for.
fn starts(text: &str, is_blank: impl Fn(char) -> bool) -> Vec<usize> {
    let begins_line = |at: &usize| {
        let before = text[..*at].trim_end_matches(&is_blank);
        before.is_empty() || before.ends_with('\n')
    };
    text.match_indices(HEADER).map(|(at, _)| at).filter(begins_line).collect()
}

impl<'t> RuleText<'t> {
    /// The tables of the rule: one, or two if their headers are written in different ways. `None` if there is anything
    /// else, which is found when the file is split.
    pub(super) fn tables(&self) -> Option<DeArray<'t>> {
        let mut entries = syntax::parse_part(self.source, self.range.clone())?.into_iter();
        match (entries.next().map(|(_, value)| value.into_inner()), entries.next()) {
            (Some(DeValue::Array(rules)), None) => Some(rules),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::report::Report;
    use crate::config::sources::Sources;

    fn sources(text: &str) -> Sources {
        let mut sources = Sources::default();
        sources.push("first.toml", "x = 1\n");
        sources.push("second.toml", text);
        sources
    }

    #[test]
    fn the_parts_of_a_file_are_those_of_the_whole_at_the_same_places() {
        for (text, rules) in [
            ("", 0),
            ("[a]\nb = 1\n", 0),
            ("[[rule]]\nname = \"x\"\n", 1),
            (
                "a = 1\r\n[[rule]]\r\nname = 'x'\r\n  [[rule]] # two\r\nname = 'y'\r\n[rule.when]\r\na = 'é'\r\n",
                2,
            ),
            (
                "[a]\n# [[rule]]\nb = \"[[rule]]\"\n[[rule]]\ndo = [{ shell = \"\"\"\n[[ ]]\n\"\"\" }]\n[[ rule ]]\n",
                2,
            ),
        ] {
            let sources = sources(text);
            let source = sources.iter().last().expect("a file");
            let split = SplitText::of(source).expect(text);
            let parts: Vec<_> = split.rules.iter().filter_map(RuleText::tables).flatten().collect();
            let mut whole = syntax::parse(source, &mut Report::default());
            let in_whole = whole.remove(RULES).map(|rules| rules.into_inner());
            let in_whole = in_whole.iter().filter_map(DeValue::as_array).flat_map(|rules| rules.iter());
            assert_eq!(format!("{parts:?}"), format!("{:?}", in_whole.collect::<Vec<_>>()), "{text}");
            assert_eq!((format!("{:?}", split.head), parts.len()), (format!("{whole:?}"), rules), "{text}");
        }
    }

    #[test]
    fn a_line_of_many_headers_is_not_searched_again_for_each_of_them() {
        let text = format!("# {}\n \t[[rule]]\n", "[[rule]] ".repeat(100_000));
        let looks = std::cell::Cell::new(0);
        let is_blank = |c| {
            looks.set(looks.get() + 1);
            c == ' ' || c == '\t'
        };
        assert_eq!(starts(&text, is_blank), [text.len() - "[[rule]]\n".len()]);
        assert!(looks.get() < text.len(), "{} looks in {} bytes", looks.get(), text.len());
    }

    #[test]
    fn a_file_with_a_mistake_or_with_more_than_rules_behind_them_is_not_split() {
        for text in [
            "a = \n[[rule]]\n",
            "[[rule]]\nname = \n[[rule]]\n",
            "a = 1\na = 2\n[[rule]]\n",
            "[[rule]]\nname = 1\n[[test]]\n",
            "[[rule]]\n[a]\n[[rule]]\n[a]\n",
            "rule = []\n[[rule]]\n",
            "[rule]\n[[rule]]\n",
            "a = \"\"\"\n[[rule]]\n\"\"\"\n",
            "a = [\n[[rule]]\n]\n",
        ] {
            let sources = sources(text);
            assert!(SplitText::of(sources.iter().last().expect("a file")).is_none(), "{text}");
        }
    }
}
