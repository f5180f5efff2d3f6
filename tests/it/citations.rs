//! Every citation of the wire reference leads to a section of `docs/wire.md`.
//!
//! Owns: how a citation is written, and which files may have one. Must not know: what any section says.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::Path;

/// The wire reference. It names its own sections as `§1.4`.
const REFERENCE: &str = "docs/wire.md";
/// The tests at the end of this file cite sections that do not exist.
const THIS_FILE: &str = "tests/it/citations.rs";

const FOLDERS: [&str; 4] = ["src", "tests", "fuzz", "docs"];
/// The endings of files that people write. A corpus has only bytes.
const WRITTEN: [&str; 7] = ["rs", "md", "toml", "py", "sh", "js", "html"];
/// The folders that a build makes.
const BUILT: [&str; 2] = ["target", "book"];

/// How a citation begins, in any letter case; sections follow: `1.4`, `1.4, 1.5 and 1.7`, `2.1 to 2.4, 2.7`.
const WORDS: &str = "wire reference";
/// The chapter whose lines can also be cited: `8 (line 25)`, `8 (lines 11 and 13 to 20)`.
const CHECKLIST: Number = (8, 0);

/// Chapter and section. A whole chapter has section 0, and so has a line of the checklist.
type Number = (u32, u32);

/// The sections and lines that can be cited.
#[derive(Default)]
struct Reference {
    sections: BTreeSet<Number>,
    /// Lines of the checklist.
    lines: BTreeSet<Number>,
}

/// One citation.
struct Citation {
    /// The line where the citation begins, from 1.
    line: usize,
    sections: Vec<Number>,
    /// Lines of the checklist.
    lines: Vec<Number>,
}

#[test]
fn every_citation_of_the_wire_reference_leads_to_a_section() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(root.join(REFERENCE)).expect("the wire reference");
    let reference = Reference::read(&text).expect("sections whose numbers are unique");
    let mut files = Vec::new();
    for folder in FOLDERS {
        collect(&root.join(folder), root, &mut files);
    }
    let (mut cited, mut found) = (0, Vec::new());
    for (path, text) in files.iter().filter(|(path, _)| path != THIS_FILE) {
        cited += citations(path, text).len();
        found.extend(problems(path, text, &reference));
    }
    assert!(cited > 100, "only {cited} citations were found below {}", root.display());
    assert!(found.is_empty(), "{} citations lead nowhere:\n{}", found.len(), found.join("\n"));
}

impl Reference {
    /// Reads the headings that begin with a number, and the numbered lines of the checklist.
    fn read(text: &str) -> Result<Self, String> {
        let mut reference = Self::default();
        let mut chapter = None;
        for line in text.lines() {
            let heading = line.trim_start_matches('#');
            if heading.len() < line.len() {
                chapter = number(heading.trim_start()).map(|(section, _)| section);
                if let Some(section) = chapter
                    && !reference.sections.insert(section)
                {
                    return Err(format!("{REFERENCE}: two sections have the number {}", shown(section)));
                }
            } else if chapter == Some(CHECKLIST)
                && let Some((item, rest)) = digits(line)
                && rest.starts_with(". ")
            {
                reference.lines.insert((item, 0));
            }
        }
        Ok(reference)
    }
}

/// Collects every file below `folder` that people write: its path from `root` and its text.
fn collect(folder: &Path, root: &Path, files: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            if !is_one_of(&BUILT, path.file_name()) {
                collect(&path, root, files);
            }
        } else if is_one_of(&WRITTEN, path.extension()) {
            let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
            let bytes = std::fs::read(&path).expect("a readable file");
            files.push((name, String::from_utf8_lossy(&bytes).into_owned()));
        }
    }
}

fn is_one_of(names: &[&str], name: Option<&OsStr>) -> bool {
    name.and_then(OsStr::to_str).is_some_and(|name| names.contains(&name))
}

/// All problems with the citations of one file, a sentence each.
fn problems(path: &str, text: &str, reference: &Reference) -> Vec<String> {
    let mut found = Vec::new();
    for Citation { line, sections, lines } in citations(path, text) {
        // A document may mean the whole reference. In a comment, that would leave the reader 800 lines to search.
        if sections.is_empty() && !path.ends_with(".md") {
            found.push(format!("{path}:{line}: name the section, as in \"{WORDS} 1.4\""));
        }
        for section in sections.into_iter().filter(|section| !reference.sections.contains(section)) {
            let section = shown(section);
            found.push(format!(
                "{path}:{line}: {REFERENCE} has no section {section}: cite the one that says it, or write it"
            ));
        }
        for item in lines.into_iter().filter(|item| !reference.lines.contains(item)) {
            let (chapter, item) = (shown(CHECKLIST), shown(item));
            found.push(format!(
                "{path}:{line}: section {chapter} of {REFERENCE} has no line {item}: cite another line"
            ));
        }
    }
    found
}

/// The citations of one file, also those that continue on the next line.
fn citations(path: &str, text: &str) -> Vec<Citation> {
    let (text, starts) = joined(text);
    let mark = if path == REFERENCE { "§" } else { WORDS };
    let cited = text.match_indices(mark).map(|(at, mark)| {
        let (sections, rest) = list(text[at + mark.len()..].trim_start());
        let inner = rest.strip_prefix(" (line ").or_else(|| rest.strip_prefix(" (lines "));
        let lines = match inner {
            Some(inner) if sections.last() == Some(&CHECKLIST) => list(inner).0,
            _ => Vec::new(),
        };
        Citation { line: starts.partition_point(|start| *start <= at), sections, lines }
    });
    cited.collect()
}

/// A text as one line in lower case, without the marks of comments; and the place where each of its lines begins.
fn joined(text: &str) -> (String, Vec<usize>) {
    let (mut all, mut starts) = (String::new(), Vec::new());
    for line in text.lines() {
        starts.push(all.len());
        all.push_str(line.trim_start().trim_start_matches(['/', '!', '#', '*', '>']).trim());
        all.push(' ');
    }
    all.make_ascii_lowercase();
    (all, starts)
}

/// The numbers at the beginning of a text, and the rest.
fn list(text: &str) -> (Vec<Number>, &str) {
    let mut found = Vec::new();
    let mut rest = text;
    while let Some((first, after)) = number(rest) {
        let range = after.strip_prefix(" to ").and_then(number);
        let (last, after) = range.unwrap_or((first, after));
        found.extend(between(first, last));
        rest = after;
        let next = [", and ", ", ", " and "].iter().find_map(|joint| after.strip_prefix(*joint));
        let Some(next) = next.filter(|next| number(next).is_some()) else { break };
        rest = next;
    }
    (found, rest)
}

/// Both numbers and all between them, within a chapter or among chapters.
fn between(first: Number, last: Number) -> Vec<Number> {
    match (first, last) {
        ((first, 0), (last, 0)) => (first..=last).map(|chapter| (chapter, 0)).collect(),
        ((chapter, first), (same, last)) if chapter == same => {
            (first..=last).map(|section| (chapter, section)).collect()
        }
        _ => vec![first, last],
    }
}

/// The number at the beginning of a text, and the rest.
fn number(text: &str) -> Option<(Number, &str)> {
    let (chapter, rest) = digits(text)?;
    Some(match rest.strip_prefix('.').and_then(digits) {
        Some((section, rest)) => ((chapter, section), rest),
        None => ((chapter, 0), rest),
    })
}

fn digits(text: &str) -> Option<(u32, &str)> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    Some((text[..end].parse().ok()?, &text[end..]))
}

fn shown((chapter, section): Number) -> String {
    if section == 0 { chapter.to_string() } else { format!("{chapter}.{section}") }
}

mod its_own_rules {
    use super::*;

    const SECTIONS: &str =
        "# Title\n## 1 A\n### 1.1 B\n### 1.2 C\n### 1.3 D\n## 2 E\n## 8 F\n\n1. One.\n2. Two.\n## 11 G\n";

    fn found_in(path: &str, text: &str) -> Vec<String> {
        problems(path, text, &Reference::read(SECTIONS).expect("unique numbers"))
    }

    #[track_caller]
    fn accepts(text: &str) {
        assert_eq!(found_in("src/a.rs", text), Vec::<String>::new());
    }

    #[track_caller]
    fn finds(text: &str, parts: &[&str]) {
        let found = found_in("src/a.rs", text);
        assert_eq!(found.len(), parts.len(), "{found:?}");
        for (problem, part) in found.iter().zip(parts) {
            assert!(problem.contains(part), "nothing says \"{part}\" in {found:?}");
        }
    }

    #[test]
    fn citations_of_each_form_are_read() {
        accepts("/// Source: wire reference 1.1.");
        accepts("//! Wire reference 2. With a key: no SASL.");
        accepts(
            "//! Sources: wire reference 1.1 and 1.2 (path, protocols), RFC 9110 9.3.6 (CONNECT), RFC 6455 4.1.",
        );
        accepts("//! Wire reference 1.1 to 1.3, 2, and 8 (lines 1 and 2). Modules are not served.");
        accepts("//! Source: wire reference 1.1, and Microsoft's page.\n// Test vectors: wire reference 11.");
        accepts("//! The reference says nothing about it.");
        finds("// wire reference 1.1, 1.4 and 1.5.", &["no section 1.4", "no section 1.5"]);
        finds("// wire reference 1.1 to 1.4, and 3", &["no section 1.4", "no section 3"]);
        finds("// wire reference 8 (line 3).", &["section 8 of docs/wire.md has no line 3"]);
        finds("// wire reference 1.1 and 8 (lines 1 to 3).", &["has no line 3"]);
    }

    #[test]
    fn a_citation_of_a_section_with_another_number_now_is_named_with_its_place() {
        let renamed = SECTIONS.replace("### 1.2 C", "### 1.9 C");
        let reference = Reference::read(&renamed).expect("unique numbers");
        let found =
            problems("src/a.rs", "//! A.\n\n/// Source: wire reference 1.2.\nfn f() {}\n", &reference);
        assert_eq!(
            found,
            ["src/a.rs:3: docs/wire.md has no section 1.2: cite the one that says it, or write it"]
        );
    }

    #[test]
    fn a_citation_may_go_over_the_end_of_a_line() {
        finds("//! A.\n    /// in any case. Source: wire\n    /// reference 1.4.", &["src/a.rs:2: "]);
        finds(
            "//! Source: wire reference 1.1,\n//! 1.4 and\n//! 1.5.",
            &["no section 1.4", "no section 1.5"],
        );
    }

    #[test]
    fn code_names_the_section_and_a_document_need_not() {
        finds("// As the wire reference says.", &["src/a.rs:1: name the section"]);
        finds("// Source: wire reference, 1.1.", &["src/a.rs:1: name the section"]);
        assert_eq!(found_in("docs/src/a.md", "The wire reference is `docs/wire.md`."), Vec::<String>::new());
        assert_eq!(found_in("docs/src/a.md", "See wire reference 1.4.").len(), 1);
    }

    #[test]
    fn the_reference_itself_is_held_to_its_numbers() {
        assert_eq!(found_in(REFERENCE, "See §1.1, then §1.4.\n"), found_in(REFERENCE, "As §1.4 says."));
        assert_eq!(found_in(REFERENCE, "See §1.1, then §1.4.\n").len(), 1);
        let twice = Reference::read("## 1 A\n### 1.1 B\n### 1.1 C\n").err();
        assert_eq!(twice.as_deref(), Some("docs/wire.md: two sections have the number 1.1"));
    }
}
