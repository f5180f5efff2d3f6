//! No files of `src/` import each other in a circle.
//!
//! Owns: what a circle is. Must not know: which file may import which.
//!
//! A file is part of its parent (`a/b.rs` of `a.rs`), and may use what stands there: that alone makes no circle.

use std::collections::{BTreeMap, BTreeSet};

use super::imports::{imported, shipped_files};

type Imports<'f> = BTreeMap<&'f str, BTreeSet<&'f str>>;

#[test]
fn no_files_import_each_other_in_a_circle() {
    let files = shipped_files();
    let names: Vec<&str> = files.iter().map(|(file, _)| file.as_str()).collect();
    let imports: Imports<'_> = files
        .iter()
        .map(|(file, code)| {
            let is_part_of =
                |parent: &str| file.strip_prefix(parent).is_some_and(|rest| rest.starts_with('/'));
            let mut others = imported(file, code, &names);
            others.retain(|other| !is_part_of(other));
            (file.as_str(), others.into_iter().collect())
        })
        .collect();
    let circles: Vec<_> = circles(&imports).iter().map(|circle| circle.join(", ")).collect();
    assert!(
        circles.is_empty(),
        "{} groups of files import each other in a circle: move what they share into a file below them\n{}",
        circles.len(),
        circles.join("\n")
    );
}

/// Files that reach each other, in groups of at least two.
fn circles<'f>(imports: &Imports<'f>) -> BTreeSet<Vec<&'f str>> {
    let reach: Imports<'_> = imports.keys().map(|file| (*file, reachable(file, imports))).collect();
    let group = |(file, reached): (&&str, &BTreeSet<&'f str>)| -> Vec<&'f str> {
        let back = |other: &&&str| reach.get(**other).is_some_and(|reached| reached.contains(file));
        reached.iter().filter(back).copied().collect()
    };
    reach.iter().map(group).filter(|group| group.len() > 1).collect()
}

fn reachable<'f>(from: &str, imports: &Imports<'f>) -> BTreeSet<&'f str> {
    let mut found = BTreeSet::new();
    let mut open: Vec<&str> = imports.get(from).into_iter().flatten().copied().collect();
    while let Some(file) = open.pop() {
        if found.insert(file) {
            open.extend(imports.get(file).into_iter().flatten());
        }
    }
    found
}

#[test]
fn a_circle_is_found_by_way_of_others() {
    let imports: Imports<'_> = [("a", "b"), ("b", "c"), ("c", "a"), ("d", "a")]
        .map(|(from, to)| (from, BTreeSet::from([to])))
        .into();
    assert_eq!(circles(&imports), BTreeSet::from([vec!["a", "b", "c"]]));
}
