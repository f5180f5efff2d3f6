//! The help of every command, as a terminal of 80 columns shows it.
//!
//! Must not know: which commands there are.

use crate::harness::{binary, run};

fn help(command: &[String], columns: usize) -> String {
    let output = run(binary().args(command).arg("--help").env("COLUMNS", columns.to_string()));
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// The program, its commands, their subcommands, and so on.
fn commands(of: Vec<String>) -> Vec<Vec<String>> {
    let text = help(&of, 200);
    let list = text.split_once("\nCommands:\n").and_then(|(_, rest)| rest.split_once("\n\n"));
    let names =
        list.into_iter().flat_map(|(list, _)| list.lines()).filter_map(|line| line.split_whitespace().next());
    let below: Vec<Vec<String>> = names
        .filter(|name| *name != "help")
        .map(|name| [of.as_slice(), &[name.to_owned()]].concat())
        .collect();
    std::iter::once(of).chain(below.into_iter().flat_map(commands)).collect()
}

/// The lines whose breaks are written by hand: indented lines before the usage, and the examples.
fn written(help: &str) -> Vec<&str> {
    let (before, after) = help.split_once("\nUsage: ").expect("a usage");
    let examples = after.split_once("\nExamples:\n").map_or("", |(_, rest)| rest);
    before.lines().chain(examples.lines()).filter(|line| line.starts_with("  ")).collect()
}

#[test]
fn no_line_of_the_help_breaks_where_its_next_word_has_room() {
    for command in commands(Vec::new()) {
        let text = help(&command, 80);
        assert_eq!(
            written(&text),
            written(&help(&command, 200)),
            "an example or a list of {command:?} is too wide"
        );
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.windows(2) {
            let [line, next] = pair else { continue };
            let is_prose = |line: &str| line.starts_with(|c: char| c.is_alphanumeric() || "/'-".contains(c));
            let word = next.split(' ').next().unwrap_or_default();
            // A sentence may begin on a new line, for example after a list.
            let breaks = is_prose(line) && is_prose(next) && !line.ends_with('.');
            assert!(
                !breaks || line.chars().count() + 1 + word.chars().count() > 80,
                "{command:?}: {line}\n{next}"
            );
        }
    }
}
