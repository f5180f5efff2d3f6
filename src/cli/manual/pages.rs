//! The generated parts of the documents: tables of commands, options and keys, made from the code that parses them.
//!
//! In a page, a part stands between `<!-- generated: NAME -->` and `<!-- end -->`. `C2D_WRITE_FIXTURES=1` makes all
//! parts again.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use clap::{Arg, Command};

use crate::config::reference::{ALL, Section};

use super::shown;

const PAGES: [&str; 2] = ["docs/src/reference/configuration.md", "docs/src/reference/command-line.md"];

/// Every generated part by its name.
fn parts() -> BTreeMap<String, String> {
    let mut parts: BTreeMap<_, _> =
        ALL.iter().map(|section| (section.header.to_owned(), keys(section))).collect();
    let mut program = shown().disable_help_subcommand(true);
    program.build();
    parts.insert("commands".to_owned(), commands(&program));
    add_options(&program, &[], &mut parts);
    parts
}

fn keys(section: &Section) -> String {
    let rows = section
        .keys
        .iter()
        .map(|key| format!("| `{}` | {} | {} |\n", key.name(), key.takes_in_full(), key.about()));
    format!("| Key | Takes | Meaning |\n|---|---|---|\n{}", rows.collect::<String>())
}

fn commands(program: &Command) -> String {
    let rows = program.get_subcommands().map(|command| {
        let about = command.get_about().map(ToString::to_string).unwrap_or_default();
        format!("| `c2d-agent {}` | {} |\n", command.get_name(), cell(&about))
    });
    format!("| Command | What it does |\n|---|---|\n{}", rows.collect::<String>())
}

/// Adds the options of a command and of its subcommands, each under its full name. It leaves out the options in
/// `above`, which a parent command already lists.
fn add_options(command: &Command, above: &[&str], parts: &mut BTreeMap<String, String>) {
    let name = command.get_bin_name().unwrap_or(command.get_name()).to_owned();
    let is_told = |argument: &Arg| above.contains(&argument.get_id().as_str());
    let own: Vec<_> = command.get_arguments().filter(|one| !one.is_hide_set() && !is_told(one)).collect();
    if !own.is_empty() {
        let rows: String = own.iter().map(|argument| row(argument)).collect();
        parts.insert(name, format!("| Option | Meaning |\n|---|---|\n{rows}"));
    }
    let for_all = own.iter().filter(|one| one.is_global_set()).map(|one| one.get_id().as_str());
    let told: Vec<_> = above.iter().copied().chain(["help", "version"]).chain(for_all).collect();
    command.get_subcommands().for_each(|below| add_options(below, &told, parts));
}

fn row(argument: &Arg) -> String {
    let values = argument.get_value_names().unwrap_or_default().join(" ");
    let takes = argument.get_action().takes_values();
    let value = if takes { format!(" {values}") } else { String::new() };
    let written = match (argument.get_short(), argument.get_long()) {
        (Some(short), Some(long)) => format!("`-{short}`, `--{long}{value}`"),
        (None, Some(long)) => format!("`--{long}{value}`"),
        (Some(short), None) => format!("`-{short}{value}`"),
        (None, None) => format!("`{values}`"),
    };
    let help = argument.get_long_help().or(argument.get_help()).map(ToString::to_string).unwrap_or_default();
    let mut meaning = cell(&help);
    let quoted =
        |texts: Vec<String>| texts.iter().map(|text| format!("`{text}`")).collect::<Vec<_>>().join(", ");
    let possible = argument.get_possible_values();
    let possible: Vec<_> = possible.iter().filter(|one| takes && !one.is_hide_set()).collect();
    if !possible.is_empty() {
        meaning +=
            &format!("; one of {}", quoted(possible.iter().map(|one| one.get_name().to_owned()).collect()));
    }
    let defaults =
        argument.get_default_values().iter().map(|value| value.display().to_string()).collect::<Vec<_>>();
    if takes && !defaults.is_empty() {
        meaning += &format!("; default {}", quoted(defaults));
    }
    if let Some(variable) = argument.get_env() {
        meaning += &format!("; also `{}`", variable.display());
    }
    format!("| {written} | {meaning} |\n")
}

/// A text for a cell of a table: on one line, with `|` and `<` escaped, without its last full stop.
fn cell(text: &str) -> String {
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    text.trim_end_matches('.').replace('|', "\\|").replace('<', "&lt;")
}

/// The page with each of its parts made again. Names of parts that do not exist are added to `unknown`.
fn generated(page: &str, parts: &BTreeMap<String, String>, unknown: &mut Vec<String>) -> String {
    let mut pieces = page.split("<!-- generated: ");
    let mut made = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (name, rest) = piece.split_once(" -->").expect("the end of a mark");
        let (_, after) = rest.split_once("<!-- end -->").expect("<!-- end -->");
        let part = parts.get(name).cloned().unwrap_or_else(|| {
            unknown.push(name.to_owned());
            String::new()
        });
        made += &format!("<!-- generated: {name} -->\n\n{part}\n<!-- end -->{after}");
    }
    made
}

#[test]
fn the_reference_pages_say_what_the_parsers_take() {
    let (parts, mut unknown, mut pages) = (parts(), Vec::new(), String::new());
    for path in PAGES {
        let path = Path::new(path);
        let page = fs::read_to_string(path).expect("the page");
        let made = generated(&page, &parts, &mut unknown);
        if std::env::var_os("C2D_WRITE_FIXTURES").is_some() {
            fs::write(path, &made).expect("written");
        }
        assert!(
            made == page || std::env::var_os("C2D_WRITE_FIXTURES").is_some(),
            "{} is old: make it again with C2D_WRITE_FIXTURES=1",
            path.display()
        );
        pages += &page;
    }
    assert!(unknown.is_empty(), "no command and no table is called {unknown:?}");
    let missing: Vec<_> =
        parts.keys().filter(|name| !pages.contains(&format!("<!-- generated: {name} -->"))).collect();
    assert!(missing.is_empty(), "no page has {missing:?}");
}
