//! The report: every problem of a configuration, with its place and its line.
//!
//! Owns: positions, excerpts with carets, hiding secrets that a configuration holds by mistake.
//! Must not know: the schema.

use std::fmt::{self, Write as _};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use super::sources::Sources;

/// Most problems that are printed; the others are counted.
const MAX_PRINTED: usize = 100;
/// Most characters of a line that are printed on each side of the place.
const MAX_SIDE: usize = 100;

/// What is wrong with a configuration (problems) and what is doubtful (warnings), in the order of its files.
///
/// Its text has `file:line:column: message` for each, the line with a caret below it, and the count at the end.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Report {
    sources: Arc<Sources>,
    findings: Vec<Remark>,
}

impl std::error::Error for Report {}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Remark {
    is_problem: bool,
    place: Place,
    message: String,
    /// Another place that belongs to the finding, and what is there.
    related: Option<(Range<usize>, &'static str)>,
}

/// What a finding is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Place {
    /// The environment; the message names the variable.
    Environment,
    /// The configuration as a whole. The main file is named.
    Whole,
    /// A file or directory as a whole.
    File(PathBuf),
    /// A part of the texts.
    Text(Range<usize>),
}

impl From<Range<usize>> for Place {
    fn from(place: Range<usize>) -> Self {
        Self::Text(place)
    }
}

impl From<Option<Range<usize>>> for Place {
    fn from(place: Option<Range<usize>>) -> Self {
        place.map_or(Self::Whole, Self::Text)
    }
}

impl Report {
    /// Sets the texts that the places of the findings refer to.
    pub(super) fn set_sources(&mut self, sources: Arc<Sources>) {
        self.sources = sources;
    }

    /// Adds something that is wrong.
    pub(super) fn problem(&mut self, place: impl Into<Place>, message: impl Into<String>) {
        let finding =
            Remark { is_problem: true, place: place.into(), message: message.into(), related: None };
        self.findings.push(finding);
    }

    /// Adds something that is wrong together with another place.
    pub(super) fn problem_with(
        &mut self,
        place: Range<usize>,
        message: impl Into<String>,
        related: (Range<usize>, &'static str),
    ) {
        self.problem(place, message);
        if let Some(last) = self.findings.last_mut() {
            last.related = Some(related);
        }
    }

    /// Adds something that is doubtful.
    pub(super) fn warning(&mut self, place: impl Into<Place>, message: impl Into<String>) {
        self.problem(place, message);
        if let Some(last) = self.findings.last_mut() {
            last.is_problem = false;
        }
    }

    /// Sorts the findings in the order of the files. Findings without a place in a text come first.
    pub(super) fn sort(&mut self) {
        self.findings.sort_by_key(|finding| match &finding.place {
            Place::Text(place) => Some(place.start),
            Place::Environment | Place::Whole | Place::File(_) => None,
        });
    }

    /// Keeps only findings about texts of the twin.
    pub(super) fn only_of_the_twin(&mut self) {
        let sources = &self.sources;
        self.findings.retain(|finding| match &finding.place {
            Place::Text(place) => sources.remote(place).is_some(),
            Place::Environment | Place::Whole | Place::File(_) => false,
        });
    }

    /// How many problems there are, without the warnings.
    pub fn problems(&self) -> usize {
        self.findings.iter().filter(|finding| finding.is_problem).count()
    }

    /// Each problem, as a line.
    pub fn problem_lines(&self) -> impl Iterator<Item = String> {
        let problems = self.findings.iter().filter(|finding| finding.is_problem);
        problems.map(|finding| self.line(finding))
    }

    /// Each warning, as a line without the word "warning", so that the caller can log it as one.
    pub fn warning_lines(&self) -> impl Iterator<Item = String> {
        let warnings = self.findings.iter().filter(|finding| !finding.is_problem);
        warnings.map(|finding| self.line(finding))
    }

    /// The first problem, as a line.
    pub fn first_problem(&self) -> Option<String> {
        self.problem_after(0)
    }

    /// The first warning, as a line.
    pub fn first_warning(&self) -> Option<String> {
        self.warning_lines().next()
    }

    /// The first problem after the first `count` problems, as a line.
    pub(super) fn problem_after(&self, count: usize) -> Option<String> {
        self.problem_lines().nth(count)
    }

    /// Whether there is neither a problem nor a warning.
    pub fn is_empty(&self) -> bool {
        self.findings.is_empty()
    }

    /// `file:line:column: message`.
    fn line(&self, finding: &Remark) -> String {
        format!("{}{}", self.place(finding), finding.message)
    }

    fn place(&self, finding: &Remark) -> String {
        match &finding.place {
            Place::Environment => String::new(),
            Place::Whole => self.sources.main().map_or(String::new(), |main| format!("{}: ", main.display())),
            Place::File(path) => format!("{}: ", path.display()),
            Place::Text(place) => format!("{}: ", position(&self.sources, place)),
        }
    }

    fn excerpt(&self, f: &mut fmt::Formatter<'_>, place: &Range<usize>) -> fmt::Result {
        match self.sources.find(place) {
            Some((source, place)) => write!(f, "{}", Excerpt::of(&source.text, &place)),
            None => Ok(()),
        }
    }
}

/// `file:line:column`.
pub(super) fn position(sources: &Sources, place: &Range<usize>) -> String {
    let Some((source, place)) = sources.find(place) else { return String::new() };
    let Excerpt { line, column, .. } = Excerpt::of(&source.text, &place);
    format!("{}:{line}:{column}", source.path.display())
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for finding in self.findings.iter().take(MAX_PRINTED) {
            let kind = if finding.is_problem { "" } else { "warning: " };
            writeln!(f, "{}{kind}{}", self.place(finding), finding.message)?;
            if let Place::Text(place) = &finding.place {
                self.excerpt(f, place)?;
            }
            if let Some((place, what)) = &finding.related {
                writeln!(f, "{}: {what}", position(&self.sources, place))?;
                self.excerpt(f, place)?;
            }
        }
        if self.findings.len() > MAX_PRINTED {
            writeln!(f, "… and {} more", self.findings.len() - MAX_PRINTED)?;
        }
        let (problems, warnings) = (self.problems(), self.findings.len() - self.problems());
        match (problems, warnings) {
            (_, 0) => f.write_str(&counted(problems, "problem")),
            (0, _) => f.write_str(&counted(warnings, "warning")),
            _ => write!(f, "{}, {}", counted(problems, "problem"), counted(warnings, "warning")),
        }
    }
}

/// `1 rule`, `2 rules`.
pub(crate) fn counted(count: usize, what: &str) -> String {
    format!("{count} {what}{}", if count == 1 { "" } else { "s" })
}

/// A place in the text, and the part of its line to print.
struct Excerpt<'t> {
    /// Counted from 1.
    line: usize,
    /// In characters, counted from 1.
    column: usize,
    before: &'t str,
    marked: &'t str,
    after: &'t str,
}

impl<'t> Excerpt<'t> {
    fn of(text: &'t str, place: &Range<usize>) -> Self {
        let start = floor_boundary(text, place.start);
        let head = &text[..start];
        let line_start = head.rfind('\n').map_or(0, |at| at + 1);
        let line_end = text[start..].find('\n').map_or(text.len(), |at| start + at);
        let end = floor_boundary(text, place.end).clamp(start, line_end);
        Self {
            line: head.matches('\n').count() + 1,
            column: text[line_start..start].chars().count() + 1,
            before: &text[line_start..start],
            marked: &text[start..end],
            after: text[end..line_end].trim_end_matches('\r'),
        }
    }
}

impl fmt::Display for Excerpt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if holds_a_secret(&format!("{}{}{}", self.before, self.marked, self.after)) {
            return writeln!(f, "{:>4} | (not shown: this line holds a secret)", self.line);
        }
        let skipped = self.before.chars().count().saturating_sub(MAX_SIDE);
        let before: String = self.before.chars().skip(skipped).collect();
        let marked: String = self.marked.chars().take(MAX_SIDE).collect();
        let after: String = self.after.chars().take(MAX_SIDE).collect();
        let cut_after = marked.len() < self.marked.len() || after.len() < self.after.len();
        // The text may be foreign, and must not move the cursor of a terminal.
        let [before, marked, after] = [before, marked, after]
            .map(|text| text.replace(|c: char| c.is_control() && c != '\t', "\u{fffd}"));
        let more = |cut: bool| if cut { "…" } else { "" };
        let lead = more(skipped > 0);
        writeln!(f, "{:>4} | {lead}{before}{marked}{after}{}", self.line, more(cut_after))?;
        write!(f, "     | ")?;
        for c in lead.chars().chain(before.chars()) {
            // A tab stays a tab, so that the caret is below its column with any tab width.
            if c == '\t' { f.write_char('\t')? } else { pad(f, ' ', c)? }
        }
        match marked.chars().next() {
            None => f.write_char('^')?,
            Some(_) => marked.chars().try_for_each(|c| pad(f, '^', c))?,
        }
        writeln!(f)
    }
}

/// A key of 16 bytes in base64.
const SHORTEST_KEY: usize = 24;

/// Whether text of a configuration looks like a pasted secret: a connection string, a token, a private key in PEM, or a
/// shared access key in base64.
pub(crate) fn holds_a_secret(text: &str) -> bool {
    let bare = text.replace(['_', '-'], "").to_ascii_lowercase();
    // Keys have 32 or 64 bytes, so their base64 ends with `=`, which no path does.
    let mut runs = text.split(|c: char| !c.is_ascii_alphanumeric() && !"+/=".contains(c));
    let is_key = |run: &str| run.ends_with('=') && run.len() >= SHORTEST_KEY && run.len().is_multiple_of(4);
    bare.contains("sharedaccess") || text.contains("PRIVATE KEY") || runs.any(is_key)
}

/// Writes `fill` as often as `c` is columns wide on a terminal: never for combining marks, twice for East Asian wide
/// characters and emoji, otherwise once.
fn pad(f: &mut fmt::Formatter<'_>, fill: char, c: char) -> fmt::Result {
    let columns = match u32::from(c) {
        0x300..=0x36f | 0x200b..=0x200f | 0xfe00..=0xfe0f => 0,
        0x1100..=0x115f | 0x2e80..=0xa4cf | 0xac00..=0xd7a3 | 0xf900..=0xfaff | 0xfe30..=0xfe6f => 2,
        0xff00..=0xff60 | 0xffe0..=0xffe6 | 0x1f300..=0x1faff | 0x20000..=0x3fffd => 2,
        _ => 1,
    };
    (0..columns).try_for_each(|_| f.write_char(fill))
}

fn floor_boundary(text: &str, at: usize) -> usize {
    (0..=at.min(text.len())).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0)
}
