//! The questions of `init` at a terminal.
//!
//! Owns: prompts, hidden input of a secret, asking again. Must not know: how the answers are used.
//!
//! A wrong answer is asked for again, with the reason. The end of standard input ends `init`.

use std::io::{self, BufRead as _, Read as _, Write as _};
use std::path::PathBuf;

use anyhow::{Context as _, anyhow};
use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};

use super::device::{self, DeviceProof, Named};
use super::duty::{self, Duty, What};
use crate::cli::{Failure, tell};

/// Longer than any line that a terminal passes on.
const MAX_LINE_BYTES: u64 = 16 * 1024;

/// The present settings of the terminal.
pub(super) fn terminal() -> Option<Termios> {
    tcgetattr(io::stdin()).ok()
}

/// Restores the settings of the terminal.
pub(super) fn restore(saved: Option<Termios>) {
    let restored = saved.map_or(Ok(()), |saved| tcsetattr(io::stdin(), OptionalActions::Now, &saved));
    if let Err(error) = restored {
        tracing::debug!(%error, "the terminal is gone");
    }
}

/// Asks for the identity of the device.
pub(super) fn device() -> Result<Named, Failure> {
    tell("The device connection string is in the portal: Devices, the device, Primary connection string.");
    let prompt = "Device connection string (not shown; only Enter for a certificate): ";
    let named = until(
        || hidden(prompt),
        |text| if text.is_empty() { Ok(None) } else { Named::parse(text).map(Some) },
    )?;
    if let Some(named) = named {
        tell(format_args!("  {}", named.told()));
        return Ok(named);
    }
    let hub = until(|| line("Host name of the IoT Hub: "), device::host)?;
    let id = until(|| line("Device id: "), device::device_id)?;
    Ok(Named::new(hub, id))
}

/// Asks for the certificate of the device.
pub(super) fn certificate() -> Result<DeviceProof, Failure> {
    let file = |text: &str| match PathBuf::from(text) {
        path if path.is_file() => Ok(path),
        path => Err(format!("there is no file \"{}\"", duty::shown(&path.to_string_lossy()))),
    };
    let certificate = until(|| line("PEM file of the certificate: "), file)?;
    let private_key = until(|| line("PEM file of its private key: "), file)?;
    Ok(DeviceProof::Certificate { certificate, private_key })
}

/// Asks what a message does.
pub(super) fn duty() -> Result<Duty, Failure> {
    let name = |text: &str| if text.is_empty() { Ok(None) } else { duty::read_name(text).map(Some) };
    loop {
        if let Some(name) = until(|| line("Name of an output, such as pump (only Enter for none): "), name)? {
            let at = "Its line (on a Raspberry Pi the BCM number, such as 17): ";
            let what = What::Pin(until(|| line(at), duty::read_line)?);
            return Ok(Duty { name, what });
        }
        if let Some(name) = until(|| line("Name of a command, such as backup (only Enter for none): "), name)?
        {
            let program = "Its program and arguments, such as /usr/local/bin/backup --full: ";
            let what = What::Run(until(|| line(program), duty::read_command)?);
            return Ok(Duty { name, what });
        }
        tell("  A message needs something to do: name an output or a command.");
    }
}

/// Asks until the answer is valid.
fn until<T>(
    ask: impl Fn() -> Result<String, Failure>,
    read: impl Fn(&str) -> Result<T, String>,
) -> Result<T, Failure> {
    loop {
        match read(ask()?.trim()) {
            Ok(value) => return Ok(value),
            Err(why) => tell(format_args!("  {why}")),
        }
    }
}

/// Reads a line that the terminal does not show.
fn hidden(prompt: &str) -> Result<String, Failure> {
    let saved = terminal();
    if let Some(saved) = &saved {
        let mut quiet = saved.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        quiet.local_modes.insert(LocalModes::ECHONL);
        tcsetattr(io::stdin(), OptionalActions::Now, &quiet)
            .context("the terminal cannot be kept from showing what is typed")?;
    }
    let answer = line(prompt);
    restore(saved);
    answer
}

fn line(prompt: &str) -> Result<String, Failure> {
    let mut error = io::stderr();
    // If the prompt cannot be shown, the answer is still read.
    drop(write!(error, "{prompt}").and_then(|()| error.flush()));
    let mut text = String::new();
    let read = io::stdin().lock().take(MAX_LINE_BYTES).read_line(&mut text);
    match read.context("the answer cannot be read")? {
        0 => {
            tell("");
            Err(Failure::usage(anyhow!("standard input ended before the last answer: nothing was written")))
        }
        _ => Ok(text),
    }
}
