//! Which files a file of `src/` imports from.
//!
//! Owns: how a path in the code is traced to its file. Must not know: which file may import which.

use std::path::Path;

use super::{collect, shipped_code};

/// All files of `src/` that ship, without `src/` and `.rs`, each with its code.
pub(super) fn shipped_files() -> Vec<(String, String)> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&root.join("src"), root, &mut files);
    assert!(files.len() > 200, "only {} files were found", files.len());
    let ships = |path: &str| !path.contains("/tests/") && !path.ends_with("/tests.rs");
    let shipped = files.into_iter().filter(|(path, _)| ships(path));
    shipped
        .map(|(path, text)| (path["src/".len()..path.len() - ".rs".len()].to_owned(), shipped_code(&text)))
        .collect()
}

/// The other files of `names` that the code of a file imports from, in the order of the code.
pub(super) fn imported<'n>(file: &str, code: &str, names: &[&'n str]) -> Vec<&'n str> {
    let own: Vec<&str> = file.split('/').collect();
    let code = without_inner_modules(code);
    let find = |module: &[&str]| names.iter().find(|name| **name == module.join("/")).copied();
    let mut found = Vec::new();
    for path in paths(&code) {
        let (mut module, mut rest) = match path.split_first() {
            Some((&"crate", rest)) => (Vec::new(), rest),
            Some((&"super", _)) => (own.clone(), path.as_slice()),
            // A module that stands below this file.
            Some((child, _)) if find(&[own.as_slice(), &[*child]].concat()).is_some() => {
                (own.clone(), path.as_slice())
            }
            _ => continue,
        };
        while let Some((&"super", after)) = rest.split_first() {
            module.pop();
            rest = after;
        }
        for segment in rest {
            let deeper = [module.as_slice(), &[*segment]].concat();
            if find(&deeper).is_none() {
                break;
            }
            module = deeper;
        }
        found.extend(find(&module).filter(|name| *name != file));
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

fn is_name(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// All paths with `::` in a text, each as its names; a group `a::{b, c::d}` gives one path for each of its ends.
fn paths(code: &str) -> Vec<Vec<&str>> {
    let mut found = Vec::new();
    let mut rest = code;
    while let Some(start) = rest.find(is_name) {
        rest = path(&rest[start..], &[], &mut found);
    }
    found.retain(|names| names.len() > 1);
    found
}

/// Reads one path, or the paths of a group. Returns what follows.
fn path<'t>(text: &'t str, before: &[&'t str], found: &mut Vec<Vec<&'t str>>) -> &'t str {
    let (name, after) = text.split_at(text.find(|c| !is_name(c)).unwrap_or(text.len()));
    let names = [before, &[name]].concat();
    let Some(inside) = after.strip_prefix("::") else {
        found.push(names);
        return after;
    };
    if inside.starts_with(is_name) {
        return path(inside, &names, found);
    }
    // What follows `::` is a group, or such as `<T>` or `*`, which end the path.
    let Some(mut group) = inside.strip_prefix('{') else {
        found.push(names);
        return inside;
    };
    loop {
        group = group.trim_start_matches(|c: char| c.is_whitespace() || c == ',');
        if !group.starts_with(is_name) {
            return group.strip_prefix('}').unwrap_or(group);
        }
        group = path(group, &names, found);
        if let Some(alias) = group.trim_start().strip_prefix("as ") {
            group = alias.trim_start_matches(is_name);
        }
    }
}

mod its_own_rules {
    use super::imported;

    const FILES: [&str; 4] = ["a", "a/b", "a/c", "d"];

    #[test]
    fn an_import_leads_to_the_file_of_its_last_module() {
        for (file, code, expected) in [
            ("a/b", "use super::c::X;", &["a/c"][..]),
            ("a/b", "use super::{X, c::{Y, Z as W}};", &["a", "a/c", "a/c"]),
            ("a/b", "fn f() { crate::d::g(super::super::a::X) }", &["d", "a"]),
            ("a", "mod b;\nfn f() { b::g::<T>() }", &["a/b"]),
            ("a", "mod b;\nuse std::b::X;", &[]),
            ("d", "use crate::a::{self, b::X};", &["a", "a/b"]),
        ] {
            assert_eq!(imported(file, code, &FILES), expected, "{code}");
        }
    }
}
