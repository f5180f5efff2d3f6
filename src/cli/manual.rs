//! `manual`: man pages and shell completions, for whoever packages the program.
//!
//! Owns: which files there are, and what a page says beside the help of its subcommand. Must not know: what any subcommand does.
//! Used by: `cli`.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Command, CommandFactory as _};
use clap_complete::Shell;
use clap_mangen::Man;

use super::{Exit, Failure};

/// Write man pages and shell completions into a directory: man1/, bash/, zsh/ and fish/.
#[derive(Debug, clap::Args)]
#[command(hide = true)]
pub(super) struct Args {
    /// The directory; it is created when only that is missing.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// What the page of the program itself says beside its help.
const ABOUT_THE_PROGRAM: &str = r".SH FILES
.TP
.I /etc/c2d\-agent/config.toml
The configuration. README.md in /usr/share/doc/c2d\-agent describes each key.
.TP
.I /etc/c2d\-agent/config.d/*.toml
Merged into it in the order of their names.
.TP
.I /var/lib/c2d\-agent/inbox.redb
The record of messages.
.TP
.I /var/lib/c2d\-agent/inbox.sock
Where inbox and status reach the running agent.
.SH ENVIRONMENT
.TP
.B C2D_DEVICE_CONNECTION_STRING
The device connection string, in place of [device].
.TP
.B C2D_SERVICE_CONNECTION_STRING
The service connection string of c2d\-send, c2d\-feedback and c2d\-purge.
.TP
.B C2D_CA_FILE
A PEM file with a private root to trust beside those of the system.
.TP
.B C2D_LOG, C2D_LOG_FORMAT
As \-\-log\-level and \-\-log\-format.
.TP
.B CREDENTIALS_DIRECTORY
Set by systemd: a secret file of [device] that this process may not open is read here under the same name.
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
The page of each subcommand names what else there is.
";

/// Writes all files anew.
///
/// # Errors
/// When one cannot be written.
pub(super) fn run(args: &Args) -> Result<Exit, Failure> {
    let mut program = super::Cli::command().disable_help_subcommand(true);
    program.build(); // gives each subcommand its full name, and the options that all have
    write_pages(&program, &create(&args.directory, "man1")?)?;
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let folder = create(&args.directory, &shell.to_string())?;
        clap_complete::generate_to(shell, &mut super::Cli::command(), "c2d-agent", &folder).with_context(
            || format!("the completion for {shell} cannot be written to {}", folder.display()),
        )?;
    }
    Ok(Exit::Done)
}

fn create(directory: &Path, name: &str) -> Result<PathBuf, anyhow::Error> {
    let folder = directory.join(name);
    std::fs::create_dir_all(&folder).with_context(|| format!("{} cannot be created", folder.display()))?;
    Ok(folder)
}

/// A page for the command and each below it: c2d-agent(1), c2d-agent-run(1), c2d-agent-inbox-list(1).
fn write_pages(command: &Command, folder: &Path) -> Result<(), anyhow::Error> {
    let page = Man::new(command.clone()).source(concat!("c2d-agent ", env!("CARGO_PKG_VERSION")));
    let path = folder.join(page.get_filename());
    std::fs::write(&path, text(&page, command)?)
        .with_context(|| format!("{} cannot be written", path.display()))?;
    command
        .get_subcommands()
        .filter(|below| !below.is_hide_set())
        .try_for_each(|below| write_pages(below, folder))
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
    if command.get_name() == "c2d-agent" {
        text.extend_from_slice(ABOUT_THE_PROGRAM.as_bytes());
    } else {
        let notes = command.get_after_help().map(ToString::to_string).unwrap_or_default();
        text.extend_from_slice(sections(&notes).as_bytes());
        text.extend_from_slice(b".SH SEE ALSO\n.BR c2d\\-agent (1)\n");
    }
    Ok(text)
}

/// The paragraphs that follow a subcommand's help, each as a section of its own.
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
