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
fn the_usage_of_a_command_says_what_stands_for_what_also_below_an_error() {
    let one = "<--device <ID>|--devices-from <FILE>|--query <SQL>>";
    let send = "<--device <ID>|--devices-from <FILE>|--query <SQL>|--resume <JOURNAL>>";
    let others = ["--device <ID>", "--devices-from <FILE>", "--query <SQL>"];
    let of_send = [&others[..], &["--resume <JOURNAL>"]].concat();
    for (command, fixed, alternatives, needed) in [
        ("c2d-send", "", &of_send[..], vec![send]),
        ("invoke-method", " --method <NAME>", &others, vec!["--method <NAME>", one]),
        ("twin patch", "", &others, vec![one]),
    ] {
        let line = |alternative: &&str| format!("c2d-agent {command} [OPTIONS]{fixed} {alternative}");
        let lines: Vec<_> = alternatives.iter().map(line).collect();
        let usage = format!("\nUsage: {}\n\n", lines.join("\n       "));
        let command: Vec<_> = command.split(' ').map(str::to_owned).collect();
        let help = help(&command, 80);
        assert!(help.contains(&usage), "{help}");
        // The port was not given on the command line.
        let refused = run(binary().args(&command).env("C2D_HTTPS_PORT", "443"));
        let needed: String = needed.iter().map(|needed| format!("  {needed}\n")).collect();
        let words = format!("error: the following required arguments were not provided:\n{needed}{usage}");
        let said = String::from_utf8(refused.stderr).expect("UTF-8");
        assert!(said.starts_with(&words), "{said}");
    }
    let refused = run(binary().args(["c2d-send", "--device", "a", "--query", "b"]));
    let said = String::from_utf8(refused.stderr).expect("UTF-8");
    let words = "error: the argument '--device <ID>' cannot be used with '--query <SQL>'\n\nUsage: c2d-agent c2d-send";
    assert!(said.starts_with(words) && said.contains(" --resume <JOURNAL>\n"), "{said}");
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

#[test]
fn the_help_of_the_program_ends_with_where_to_begin_and_names_only_commands_that_there_are() {
    let text = help(&[], 80);
    let (_, end) = text.split_once("\nWhere to begin:\n").expect("where to begin");
    let names = end.split("c2d-agent ").skip(1).filter_map(|rest| rest.split([' ', ',', ':', '\n']).next());
    let top: Vec<_> = commands(Vec::new()).into_iter().filter(|path| path.len() == 1).flatten().collect();
    let names: Vec<_> = names.collect();
    assert_eq!(names.first(), Some(&"demo"), "{end}");
    names.iter().for_each(|name| assert!(top.iter().any(|command| command == name), "{name}: {end}"));
}
