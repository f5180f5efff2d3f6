//! Each file and each function that ARCHITECTURE.md and CONTRIBUTING.md name exists.
//!
//! Owns: how a document names a file, `src/agent.rs` or `agent.rs`, and an item in it, `agent.rs:step`.
//! Must not know: what any of them does.

use std::path::{Path, PathBuf};

const DOCUMENTS: [&str; 2] = ["ARCHITECTURE.md", "CONTRIBUTING.md"];

/// A path that begins with one of these starts at the root of the repository.
const FOLDERS: [&str; 7] = ["src/", "tests/", "scripts/", "docs/", "packaging/", "fuzz/", ".ci/"];
/// A Rust file that does not exist at its path is looked for here.
const SOURCE: &str = "src";

/// The words that may come before the name of an item.
const KEYWORDS: [&str; 8] = ["fn", "const", "static", "struct", "enum", "type", "trait", "mod"];

/// A file, and perhaps an item, that a document names.
#[derive(Debug, PartialEq, Eq)]
struct Named<'t> {
    /// The line number, from 1.
    line: usize,
    path: &'t str,
    item: Option<&'t str>,
}

#[test]
fn every_file_and_function_that_the_two_documents_name_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut problems = Vec::new();
    for document in DOCUMENTS {
        let text = std::fs::read_to_string(root.join(document)).expect(document);
        let named = named(&text);
        assert!(named.len() > 20, "{document} names only {} files", named.len());
        problems.extend(named.iter().filter_map(|one| problem(document, one, root)));
    }
    assert!(
        problems.is_empty(),
        "{} names lead nowhere: write what is there now\n{}",
        problems.len(),
        problems.join("\n")
    );
}

/// All that a text names, in order.
fn named(text: &str) -> Vec<Named<'_>> {
    let lines = text.lines().enumerate();
    lines.flat_map(|(at, line)| named_in(at + 1, line)).collect()
}

fn named_in(number: usize, line: &str) -> Vec<Named<'_>> {
    let mut found = Vec::new();
    let mut rest = line;
    while let Some(start) = rest.find(is_of_path) {
        let after = &rest[start..];
        let end = after.find(|c| !is_of_path(c)).unwrap_or(after.len());
        let path = after[..end].trim_end_matches('.');
        rest = &after[end..];
        if path.ends_with(".rs") {
            let item = rest.strip_prefix(':').map(word).filter(|item| !item.is_empty());
            found.push(Named { line: number, path, item });
        } else if FOLDERS.iter().any(|folder| path.starts_with(folder)) {
            found.push(Named { line: number, path, item: None });
        }
    }
    found
}

fn is_of_path(c: char) -> bool {
    c.is_ascii_alphanumeric() || "_-./".contains(c)
}

/// The letters, digits and underscores at the beginning of a text.
fn word(text: &str) -> &str {
    &text[..text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len())]
}

/// What is wrong with one name, in a sentence.
fn problem(document: &str, Named { line, path, item }: &Named<'_>, root: &Path) -> Option<String> {
    let Some(file) = find(path, root) else { return Some(format!("{document}:{line}: there is no {path}")) };
    let item = (*item)?;
    let text = std::fs::read_to_string(&file).expect("a readable file");
    (!has_item(&text, item)).then(|| format!("{document}:{line}: {path} has no {item}"))
}

fn find(path: &str, root: &Path) -> Option<PathBuf> {
    let from_root = root.join(path);
    let below_source = root.join(SOURCE).join(path);
    from_root.exists().then_some(from_root).or_else(|| below_source.is_file().then_some(below_source))
}

/// Whether a file has a function or another item of that name.
fn has_item(text: &str, item: &str) -> bool {
    text.match_indices(item).any(|(at, _)| {
        let before = text[..at].strip_suffix(' ').unwrap_or_default();
        let keyword = before.rsplit(|c: char| !c.is_ascii_lowercase()).next().unwrap_or_default();
        KEYWORDS.contains(&keyword) && word(&text[at..]) == item
    })
}

mod its_own_rules {
    use super::*;

    #[test]
    fn files_and_items_are_read_wherever_they_stand() {
        let text =
            "| `agent.rs:step`, `src/rules.rs` |\nSee [it](docs/src/a.md#b), scripts/x.sh.\n`a/b.rs`: text";
        let found: Vec<_> = named(text).iter().map(|one| (one.line, one.path, one.item)).collect();
        assert_eq!(
            found,
            [
                (1, "agent.rs", Some("step")),
                (1, "src/rules.rs", None),
                (2, "docs/src/a.md", None),
                (2, "scripts/x.sh", None),
                (3, "a/b.rs", None),
            ]
        );
        assert_eq!(named("and/or, e.g. cargo test --test it, https://example.com/src/a"), []);
    }

    #[test]
    fn only_what_is_declared_counts_as_there() {
        let text = "pub(crate) const fn step(x: u8) {}\nfn go_on() { other(); }\nconst MOST: u8 = 1;";
        for there in ["step", "go_on", "MOST"] {
            assert!(has_item(text, there), "{there}");
        }
        for missing in ["ste", "on", "other", "go", "x"] {
            assert!(!has_item(text, missing), "{missing}");
        }
    }

    #[test]
    fn what_is_missing_is_told_with_its_place() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let told =
            |text: &str| named(text).iter().filter_map(|one| problem("A.md", one, root)).collect::<Vec<_>>();
        assert_eq!(told("`main.rs:main`, `src/main.rs`, `tests/it/main.rs`"), [""; 0]);
        assert_eq!(
            told("\n`none.rs` `main.rs:none` `src/none/`"),
            ["A.md:2: there is no none.rs", "A.md:2: main.rs has no none", "A.md:2: there is no src/none/"]
        );
    }
}
