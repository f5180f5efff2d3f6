//! Names of types: a reader who meets a name must know which type it is.
//!
//! Owns: how many types may share their name with another one. Must not know: what any type is.

use std::collections::BTreeMap;
use std::path::Path;

use crate::layering::collect;

/// Of 100 types, this many may share their name with another one.
const MOST_SHARED: usize = 15;

/// The words that declare a type.
const KEYWORDS: [&str; 4] = ["struct", "enum", "trait", "type"];

#[test]
fn few_types_share_their_name_with_another_one() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    collect(&root.join("src"), root, &mut files);
    files.retain(|(path, _)| !path.contains("/tests/") && !path.ends_with("/tests.rs"));
    let mut places: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (path, text) in &files {
        declared(text).for_each(|name| places.entry(name).or_default().push(path));
    }
    let all: usize = places.values().map(Vec::len).sum();
    assert!(all > 300, "only {all} types were found under {}", root.display());
    let mut shared: Vec<_> = places.into_iter().filter(|(_, places)| places.len() > 1).collect();
    shared.sort_by_key(|(_, places)| std::cmp::Reverse(places.len()));
    let count: usize = shared.iter().map(|(_, places)| places.len()).sum();
    let list = shared.iter().map(|(name, places)| format!("{name}: {}\n", places.join(", ")));
    assert!(
        count * 100 <= all * MOST_SHARED,
        "{count} of {all} types share their name with another one, more than {MOST_SHARED} in 100: rename some to say \
         of what they are, as `DeviceTwin` for the emulator's `Twin`\n{}",
        list.collect::<String>()
    );
}

/// The names of the types that the text of a file declares outside functions and outside its tests.
fn declared(text: &str) -> impl Iterator<Item = &str> {
    let lines = text.lines().take_while(|line| !line.starts_with("mod tests {"));
    lines.filter_map(|line| {
        let mut words = line.split([' ', '<', '(', '{', ';', ':', '=']).filter(|word| !word.is_empty());
        let mut first = words.next()?;
        // What follows `pub`, perhaps in brackets, is `crate)`, `super)`, or `in` and a path.
        if first == "pub" {
            first = words.find(|word| KEYWORDS.contains(word) || *word == "fn" || *word == "const")?;
        }
        (KEYWORDS.contains(&first) && !line.starts_with(' ')).then(|| words.next()).flatten()
    })
}

#[test]
fn declarations_are_found_however_visible_they_are() {
    let text = "struct A;\npub enum B<'a> {\n    C,\n}\npub(crate) trait D: E {}\npub(in crate::x) struct F(G);\n\
                type H = I;\nimpl J {}\n    struct InFunction;\npub fn k() -> type_of {}\npub mod l;\n\
                #[cfg(test)]\nmod tests {\nstruct M;\n}\n";
    assert_eq!(declared(text).collect::<Vec<_>>(), ["A", "B", "D", "F", "H"]);
}
