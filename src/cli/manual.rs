//! `manual`: man pages and shell completions, for packagers of the program.
//!
//! Owns: the list of files, and what a page says in addition to the help of its subcommand. Must not know: what any
//! subcommand does.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_complete::{Generator as _, Shell};
use clap_mangen::Man;

use super::{Exit, Failure};

mod configuration;
// The pages describe all features of the packages, so only a build with all of them can make the pages.
#[cfg(all(test, feature = "emulator"))]
mod pages;

const NAME: &str = "c2d-agent";

/// Write man pages and shell completions into a directory: man1/, man5/, bash/, zsh/ and fish/.
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(super) struct ManualArgs {
    /// The directory; it is created if only its last part is missing.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// What the page of the program itself says in addition to its help.
const ABOUT_THE_PROGRAM: &str = r".SH FILES
.TP
.I /etc/c2d\-agent/config.toml
The configuration:
.BR c2d\-agent.toml (5).
.TP
.I /etc/c2d\-agent/config.d/*.toml
Files that are merged into it, in the order of their names.
.TP
.I /var/lib/c2d\-agent/inbox.journal
The record of messages.
.TP
.I /var/lib/c2d\-agent/inbox.sock
The socket where inbox and status reach the running agent.
.SH ENVIRONMENT
.TP
.B C2D_DEVICE_CONNECTION_STRING
The device connection string, in place of [device].
.TP
.B C2D_SERVICE_CONNECTION_STRING
The service connection string of the commands of the back end.
.TP
.B C2D_CA_FILE
A PEM file with a private root to trust, in addition to the system's roots.
.TP
.B C2D_LOG, C2D_LOG_FORMAT
As \-\-log\-level and \-\-log\-format.
.TP
.B CREDENTIALS_DIRECTORY
Set by systemd: if this process may not open a secret file of [device], it reads the file of that name here.
.SH EXIT STATUS
.TP
.B 0
Done.
.TP
.B 1
It failed; the sentence on standard error says why.
.TP
.B 2
The command line or the configuration is wrong.
.PP
The page of each subcommand lists more.
";

/// Writes all files again.
///
/// # Errors
/// When a file cannot be written.
pub(super) fn run(args: &ManualArgs) -> Result<Exit, Failure> {
    let mut pages = shown().disable_help_subcommand(true);
    pages.build(); // gives each subcommand its full name and the global options
    write_pages(&pages, &create(&args.directory, "man1")?)?;
    let path = create(&args.directory, "man5")?.join(configuration::FILE);
    std::fs::write(&path, configuration::page())
        .with_context(|| format!("{} cannot be written", path.display()))?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let path = create(&args.directory, &shell.to_string())?.join(shell.file_name(NAME));
        std::fs::write(&path, completion(shell))
            .with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(Exit::Done)
}

/// The command line without hidden subcommands, because clap_complete would also offer these.
fn shown() -> Command {
    let program = super::Cli::command();
    Command::new(NAME)
        .version(env!("CARGO_PKG_VERSION"))
        .propagate_version(true)
        .about(program.get_about().cloned().unwrap_or_default())
        .args(program.get_arguments().cloned())
        .subcommands(program.get_subcommands().filter(|below| !below.is_hide_set()).cloned())
}

fn completion(shell: Shell) -> String {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut shown(), NAME, &mut text);
    // For bash, clap_complete 4.6 writes the hyphen of a program's name in two ways, so that it finds no subcommand.
    String::from_utf8_lossy(&text).replace("c2d__subcmd__agent", "c2d__agent")
}

fn create(directory: &Path, name: &str) -> Result<PathBuf, anyhow::Error> {
    let folder = directory.join(name);
    std::fs::create_dir_all(&folder).with_context(|| format!("{} cannot be created", folder.display()))?;
    Ok(folder)
}

/// Writes a page for the command and for each subcommand: c2d-agent(1), c2d-agent-run(1), c2d-agent-inbox-list(1).
fn write_pages(command: &Command, folder: &Path) -> Result<(), anyhow::Error> {
    let page = Man::new(command.clone()).source(concat!("c2d-agent ", env!("CARGO_PKG_VERSION")));
    let path = folder.join(page.get_filename());
    std::fs::write(&path, text(&page, command)?)
        .with_context(|| format!("{} cannot be written", path.display()))?;
    command.get_subcommands().try_for_each(|below| write_pages(below, folder))
}

fn text(page: &Man, command: &Command) -> Result<Vec<u8>, anyhow::Error> {
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    page.render_synopsis_section(&mut text)?;
    page.render_description_section(&mut text)?;
    page.render_options_section(&mut text)?;
    if command.has_subcommands() {
        page.render_subcommands_section(&mut text)?;
    }
    if command.get_name() == NAME {
        text.extend_from_slice(ABOUT_THE_PROGRAM.as_bytes());
    } else {
        let notes = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        text.extend_from_slice(sections(&notes).as_bytes());
        text.extend_from_slice(b".SH SEE ALSO\n.BR c2d\\-agent (1)\n");
    }
    Ok(text)
}

/// The paragraphs after a subcommand's help, each as its own section.
fn sections(notes: &str) -> String {
    let section = |paragraph: &str| {
        if let Some(lines) = paragraph.strip_prefix("Examples:\n") {
            let lines: Vec<_> = lines.lines().map(|line| escaped(line.trim_start())).collect();
            format!(".SH EXAMPLES\n.nf\n{}\n.fi\n", lines.join("\n"))
        } else if let Some(codes) = paragraph.strip_prefix("Exit codes: ") {
            format!(".SH EXIT STATUS\n{}\n", escaped(codes))
        } else {
            format!(".SH NOTES\n{}\n", escaped(paragraph))
        }
    };
    notes.split("\n\n").filter(|paragraph| !paragraph.is_empty()).map(section).collect()
}

/// Text that roff prints as it is: no escapes, no requests, hyphens and quotes that can be copied to a shell.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', r"\e").replace('-', r"\-").replace('\'', r"\(aq");
    if text.starts_with('.') { format!(r"\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;
    use std::process::Stdio;

    /// The output of a shell that runs a script from standard input, with the completion in a file.
    fn said(shell: Shell, arguments: &[&str], script: &str) -> Option<String> {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("completion");
        std::fs::write(&path, completion(shell)).expect("written");
        let mut command = std::process::Command::new(shell.to_string());
        let command =
            command.args(arguments).env("COMPLETION", &path).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = match command.spawn() {
            Err(_) if shell != Shell::Bash => return None, // bash is on every machine that runs the tests
            child => child.expect("a shell"),
        };
        child.stdin.take().expect("piped").write_all(script.as_bytes()).expect("written");
        let output = child.wait_with_output().expect("it ends");
        assert!(output.status.success(), "{shell}: {output:?}");
        Some(String::from_utf8(output.stdout).expect("UTF-8"))
    }

    /// The words that bash offers for the last word of a line.
    fn offered(line: &str) -> Vec<String> {
        let script = format!(
            r#"source "$COMPLETION"
            complete -p c2d-agent >/dev/null && line='{line}' COMP_WORDS=({line}) || exit 1
            [[ $line != *" " ]] || COMP_WORDS+=("")
            COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1))
            function=$(complete -p c2d-agent | sed 's/.*-F \([^ ]*\).*/\1/')
            "$function" c2d-agent "${{COMP_WORDS[COMP_CWORD]}}" "${{COMP_WORDS[COMP_CWORD - 1]}}"
            printf '%s\n' "${{COMPREPLY[@]}}"
            "#
        );
        let said = said(Shell::Bash, &["--norc"], &script).expect("bash");
        said.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect()
    }

    #[test]
    fn bash_completes_options_and_values_of_every_subcommand() {
        assert_eq!(offered("c2d-agent inbox list --state "), ["accepted", "started", "finished", "dead"]);
        assert_eq!(offered("c2d-agent inbox --config x list --li"), ["--limit"]);
        assert_eq!(offered("c2d-agent --log-level debug check --me"), ["--message"]);
        if cfg!(feature = "full") {
            assert_eq!(offered("c2d-agent c2d-send --p"), ["--property"]);
            assert_eq!(offered("c2d-agent c2d-send --transport amqp"), ["amqp", "amqp-ws"]);
            assert_eq!(offered("c2d-agent invoke-method --m"), ["--module", "--method"]);
            assert_eq!(offered("c2d-agent twin patch --desired-"), ["--desired-file"]);
        }
    }

    #[test]
    fn no_shell_is_offered_a_command_that_the_help_does_not_show() {
        let commands: Vec<_> =
            shown().get_subcommands().map(|command| command.get_name().to_owned()).collect();
        let offered: Vec<_> =
            offered("c2d-agent ").into_iter().filter(|word| !word.starts_with('-')).collect();
        assert_eq!(offered, [commands.as_slice(), &["help".to_owned()]].concat());
        for (command, is_built) in [
            ("c2d-send", cfg!(feature = "full")),
            ("invoke-method", cfg!(feature = "full")),
            ("manual", false),
        ] {
            for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
                let names = completion(shell)
                    .split(|c: char| !c.is_alphanumeric() && c != '-')
                    .any(|word| word == command);
                assert_eq!(names, is_built, "{command} for {shell}");
            }
        }
    }

    #[test]
    fn each_shell_can_read_its_completion() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            said(shell, &["-n"], &completion(shell));
        }
    }
}
