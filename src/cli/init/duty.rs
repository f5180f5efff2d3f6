//! What a message does, as the user of `init` says: a pin to switch, or a program to run.
//!
//! Owns: how a pin and a command are given, and which are accepted. Must not know: terminals, files, the rest of the
//! configuration.

use anyhow::anyhow;

use crate::cli::Failure;
use crate::trust;

const MAX_NAME_CHARS: usize = 40;
const MAX_SHOWN: usize = 40;

/// One rule, with its pin or command.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Duty {
    /// The name of the rule and of its pin, and the `action` of the message.
    pub(super) name: String,
    pub(super) what: What,
}

#[derive(Debug, PartialEq, Eq)]
pub(super) enum What {
    /// Switch the pin at this line.
    Pin(u32),
    /// Run a program with these arguments.
    Run(Vec<String>),
}

impl Duty {
    pub(super) fn is_pin(&self) -> bool {
        matches!(self.what, What::Pin(_))
    }

    /// The properties of a message that the rule matches.
    pub(super) fn example(&self) -> Vec<(&str, &str)> {
        let mut properties = vec![("action", self.name.as_str())];
        if self.is_pin() {
            properties.push(("state", "on"));
        }
        properties
    }
}

/// The duties that the options give.
///
/// # Errors
/// A sentence that names the wrong option.
pub(super) fn given(
    pins: &[String],
    command: Option<&str>,
    program: &[String],
) -> Result<Vec<Duty>, Failure> {
    let mut duties = Vec::new();
    for pin in pins {
        let read = read_pin(pin).map_err(|why| Failure::usage(anyhow!("--pin: {why}")))?;
        duties.push(read);
    }
    if let Some(name) = command {
        let wrong = |why: String| Failure::usage(anyhow!("--command: {why}"));
        let name = read_name(name).map_err(wrong)?;
        check_program(program).map_err(wrong)?;
        duties.push(Duty { name, what: What::Run(program.to_vec()) });
    }
    for (at, duty) in duties.iter().enumerate() {
        if duties.iter().take(at).any(|earlier| earlier.name == duty.name) {
            return Err(Failure::usage(anyhow!(
                "the name {} is given twice, and it tells a message what to do: give each pin and command a name of its own",
                duty.name
            )));
        }
    }
    Ok(duties)
}

/// Reads `NAME=LINE`.
fn read_pin(text: &str) -> Result<Duty, String> {
    let (name, line) = text
        .split_once('=')
        .ok_or_else(|| format!("\"{}\" is not NAME=LINE: write it as in pump=17", shown(text)))?;
    Ok(Duty { name: read_name(name)?, what: What::Pin(read_line(line)?) })
}

/// Reads a name that needs no quotes in TOML, in a shell and in a property of a message.
///
/// # Errors
/// A sentence.
pub(super) fn read_name(text: &str) -> Result<String, String> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || "-_".contains(c);
    let begins = text.starts_with(|c: char| c.is_ascii_alphanumeric());
    if begins && text.len() <= MAX_NAME_CHARS && text.chars().all(is_name) {
        return Ok(text.to_owned());
    }
    Err(format!(
        "\"{}\" is not a name that init takes: use 1 to {MAX_NAME_CHARS} letters of ASCII, digits, - and _, such as pump",
        shown(text)
    ))
}

/// Reads the number of a GPIO line.
///
/// # Errors
/// A sentence.
pub(super) fn read_line(text: &str) -> Result<u32, String> {
    text.parse().map_err(|_| {
        format!(
            "\"{}\" is not a line number: give the BCM number or the line of the GPIO chip, such as 17 (the name of a line can be \
             written into the configuration later)",
            shown(text)
        )
    })
}

/// Reads a typed line: a program and its arguments, with spaces between them.
///
/// # Errors
/// A sentence.
pub(super) fn read_command(text: &str) -> Result<Vec<String>, String> {
    if text.contains(['"', '\'', '\\']) {
        return Err("quotes mean nothing here, because no shell reads this: end with Ctrl-C and give --command NAME -- PROGRAM \
                    \"an argument\", or write the argument into the configuration later"
            .to_owned());
    }
    let argv: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
    check_program(&argv)?;
    Ok(argv)
}

fn check_program(argv: &[String]) -> Result<(), String> {
    match argv.first() {
        Some(program) if !program.starts_with('/') => {
            Err(format!("the program \"{}\" is not an absolute path: write it from / on", shown(program)))
        }
        Some(program) => trust::unfit_program(program).map_or(Ok(()), Err),
        None => Err("there is no program: give its absolute path, such as /usr/local/bin/backup".to_owned()),
    }
}

/// The beginning of refused text, cut at the first `=`: a secret that was pasted by mistake comes after one.
pub(super) fn shown(text: &str) -> String {
    let (text, cut) = text.split_once('=').map_or((text, ""), |(before, _)| (before, "=…"));
    let more = if text.chars().count() > MAX_SHOWN { "…" } else { cut };
    let text: String = text.chars().take(MAX_SHOWN).flat_map(char::escape_debug).collect();
    text + more
}
