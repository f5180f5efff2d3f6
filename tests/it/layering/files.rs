//! Inside a module: which file may import which.
//!
//! Owns: the order of the files of a module, and how an import is traced to its file. Must not know: what any file
//! does.

use super::{collect, shipped_code};
use std::path::Path;

/// For each module that has an order: its files below `src/`, without `.rs`, from bottom to top. A file may import
/// only files of its module that stand before it, so no circle can come about.
const ORDER: &[(&str, &[&str])] = &[("agent", AGENT)];

const AGENT: &[&str] = &[
    // What all others may name.
    "agent/error",
    "agent/alone",
    "agent/status",
    "agent/tally",
    "agent/report",
    "agent/sessions",
    // The control socket.
    "agent/control/view",
    "agent/control/wire",
    "agent/control/socket",
    "agent/control/serve",
    "agent/control/client",
    "agent/control",
    // The parts of the desk.
    "agent/message/reason",
    "agent/message/life",
    "agent/message/lanes",
    "agent/message/guards",
    "agent/rulebook",
    "agent/message/in_hand",
    "agent/machine",
    "agent/board",
    "agent/supervision",
    "agent/scrape",
    "agent/watch",
    "agent/reports",
    "agent/desk",
    // The way of a message, from its end to its arrival.
    "agent/message/calls",
    "agent/message/end",
    "agent/message/act",
    "agent/message/arrive",
    // What starts or changes the way.
    "agent/recovery",
    "agent/requests",
    "agent/message/recorded",
    "agent/message",
    "agent/new_rules",
    "agent/twin",
    "agent/reload",
    "agent/hub_events",
    "agent/stopping",
    "agent",
];

#[test]
fn a_file_imports_only_files_below_it() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&root.join("src"), root, &mut files);
    let files: Vec<(String, String)> = files
        .into_iter()
        .filter(|(path, _)| !path.ends_with("/tests.rs") && !path.contains("/tests/"))
        .map(|(path, text)| (path["src/".len()..path.len() - ".rs".len()].to_owned(), shipped_code(&text)))
        .collect();
    let problems: Vec<String> =
        ORDER.iter().flat_map(|(module, order)| problems(module, order, &files)).collect();
    assert!(problems.is_empty(), "{} imports point up:\n{}", problems.len(), problems.join("\n"));
}

/// What is wrong in one module, a sentence each.
fn problems(module: &str, order: &[&str], files: &[(String, String)]) -> Vec<String> {
    let below = format!("{module}/");
    let own: Vec<&(String, String)> =
        files.iter().filter(|(file, _)| file == module || file.starts_with(&below)).collect();
    let names: Vec<&str> = own.iter().map(|(file, _)| file.as_str()).collect();
    let mut found = Vec::new();
    for gone in order.iter().filter(|file| !names.contains(file)) {
        found.push(format!("src/{gone}.rs is in the list of {} and does not exist: take it out", file!()));
    }
    for (file, code) in own {
        let Some(place) = order.iter().position(|known| known == file) else {
            found.push(format!(
                "src/{file}.rs is not in the list of {}: add it after the last file that it imports",
                file!()
            ));
            continue;
        };
        let mut up: Vec<&str> = imported(file, code, &names);
        up.retain(|other| order.iter().position(|known| known == other).is_some_and(|at| at > place));
        up.dedup();
        found.extend(up.iter().map(|other| {
            format!(
                "src/{file}.rs may not import src/{other}.rs, which stands above it in the list of {}: take a \
                 value as an argument, or move what both need to a file below both; or move this file up in \
                 the list, if no file between them imports it",
                file!()
            )
        }));
    }
    found
}

/// The other files of `names` that the code of a file names in a path.
fn imported<'n>(file: &str, code: &str, names: &[&'n str]) -> Vec<&'n str> {
    let own: Vec<&str> = file.split('/').collect();
    let code = without_inner_modules(code);
    let mut found = Vec::new();
    for path in paths(&code) {
        let (mut module, mut rest) = (own.clone(), path.as_slice());
        if rest.first() == Some(&"crate") {
            (module, rest) = (Vec::new(), &rest[1..]);
        }
        while let Some((first, after)) = rest.split_first().filter(|(first, _)| **first == "super") {
            debug_assert_eq!(*first, "super");
            module.pop();
            rest = after;
        }
        for segment in rest {
            let deeper = [module.as_slice(), &[*segment]].concat();
            let is_folder = names.iter().any(|name| *name == deeper.join("/"));
            if !is_folder {
                break;
            }
            module = deeper;
        }
        let module = module.join("/");
        found.extend(names.iter().find(|name| **name == module && module != file));
    }
    found
}

/// In a module that is written in the file, `super` is the file itself.
fn without_inner_modules(code: &str) -> String {
    let mut inside = false;
    let lines = code.lines().map(|line| {
        inside = (inside || (line.contains("mod ") && line.ends_with('{') && !line.starts_with(' ')))
            && line != "}";
        if inside { line.replacen("super::", "self::", 1) } else { line.to_owned() }
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// Every path that begins with `crate`, `super`, or with a name after `use`. A group is split: `a::{b, c::d}`.
fn paths(code: &str) -> Vec<Vec<&str>> {
    let mut found = Vec::new();
    for start in ["crate::", "super::", "use "] {
        for (at, _) in code.match_indices(start) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let text = if start == "use " { &code[at + start.len()..] } else { &code[at..] };
            if start == "use " && ["crate::", "super::", "std::"].iter().any(|root| text.starts_with(root)) {
                continue;
            }
            split(text, &mut Vec::new(), &mut found);
        }
    }
    found
}

/// Reads one path or group, and returns what comes after it.
fn split<'c>(text: &'c str, before: &mut Vec<&'c str>, found: &mut Vec<Vec<&'c str>>) -> &'c str {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, mut rest) = text.split_at(end);
    let depth = before.len();
    before.push(name);
    if let Some(group) = rest.strip_prefix("::{") {
        rest = group;
        loop {
            rest = split(rest.trim_start(), before, found).trim_start();
            match rest.strip_prefix(',') {
                Some(more) if !more.trim_start().starts_with('}') => rest = more,
                _ => break,
            }
        }
        rest = rest.trim_start_matches(',').trim_start();
        rest = rest.strip_prefix('}').unwrap_or(rest);
    } else if let Some(more) = rest.strip_prefix("::").filter(|more| more.starts_with(char::is_alphabetic)) {
        rest = split(more, before, found);
    } else {
        found.push(before.clone());
    }
    before.truncate(depth);
    rest
}

mod its_own_rules {
    use super::problems;

    const LIST: &[&str] = &["a/low", "a/deep/one", "a/deep", "a/high", "a"];

    fn found(file: &str, code: &str) -> Vec<String> {
        let text =
            |name: &&str| (name.to_string(), if *name == file { code.to_owned() } else { String::new() });
        problems("a", LIST, &LIST.iter().map(text).collect::<Vec<_>>())
    }

    #[test]
    fn an_import_that_points_up_is_found_however_it_is_written() {
        for (file, code, up) in [
            ("a/low", "use super::high::X;", "a/high"),
            ("a/low", "use super::Top;", "a"),
            ("a/low", "use crate::{b::B, a::{deep::{one::X, Y}, Z}};", "a/deep/one"),
            ("a/low", "fn f() { crate::a::high::run(); }", "a/high"),
            ("a/deep/one", "use super::Y;", "a/deep"),
            ("a/deep/one", "use super::super::{low::X, high};", "a/high"),
            ("a/deep", "pub(crate) use super::high::X;", "a/high"),
        ] {
            let found = found(file, code);
            let sentence = format!("src/{file}.rs may not import src/{up}.rs,");
            assert!(found.iter().any(|problem| problem.starts_with(&sentence)), "{code}: {found:?}");
        }
    }

    #[test]
    fn imports_that_point_down_or_stay_inside_are_fine() {
        for (file, code) in [
            ("a", "use deep::one::X;\nuse low::Y;"),
            ("a/high", "use super::deep::{self, one::{X, Y}};\nuse super::low;"),
            ("a/deep", "mod one;\nuse one::X;\nuse crate::b::high::Y;"),
            ("a/low", "mod inner {\n    use super::X;\n}"),
        ] {
            assert_eq!(found(file, code), [""; 0], "{code}");
        }
    }

    #[test]
    fn a_file_that_is_new_or_gone_is_found() {
        let files =
            ["a/low", "a/new", "a/deep/one", "a/deep", "a"].map(|name| (name.to_owned(), String::new()));
        let found = problems("a", LIST, &files);
        assert!(found[0].starts_with("src/a/high.rs is in the list of"), "{found:?}");
        assert!(found[1].starts_with("src/a/new.rs is not in the list of"), "{found:?}");
    }
}
