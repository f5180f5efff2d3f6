//! Pins through the kernel's GPIO character device: works on any board, and beside other programs.
//!
//! Owns: everything that names the `gpiocdev` crate; finding the chip and the line. Must not know: timers, rules.
//!
//! Each line is held, as consumer `c2d-agent`, until the process ends, because the kernel decides what a released
//! line does.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use gpiocdev::Request;
use gpiocdev::chip::{Chip, chips};
use gpiocdev::line::{Offset, Value};
use rustix::io::Errno;

use super::{CONSUMER, GpioError, LineUse, PinBackend, Survey, claim};
use crate::config::{ActiveLevel, GpioSettings, LineName, PinSettings};
use crate::rules::PinState;

/// Chips of the Raspberry Pi's header, newest first. The number of the device file has changed between kernel
/// versions.
const HEADER_LABELS: [&str; 3] = ["pinctrl-rp1", "pinctrl-bcm2711", "pinctrl-bcm2835"];
/// The chip to use if there is no such header.
const FIRST_CHIP: &str = "/dev/gpiochip0";

struct Cdev {
    /// The chip, as the configuration names it.
    chip: Option<String>,
    lines: BTreeMap<String, (Request, Offset)>,
}

/// Whether there is any chip, readable or not.
pub(super) fn any_chip() -> bool {
    chips().is_ok_and(|chips| !chips.is_empty())
}

/// Claims every pin.
pub(super) fn open(settings: &GpioSettings) -> Result<Box<dyn PinBackend>, GpioError> {
    let mut cdev = Cdev { chip: settings.chip.clone(), lines: BTreeMap::new() };
    claim::all(&mut cdev, settings.pins.iter())?;
    Ok(Box::new(cdev))
}

/// Looks at the chip and at who holds each line.
pub(super) fn survey(settings: &GpioSettings) -> Result<Survey, GpioError> {
    let number = settings.pins.values().any(|pin| matches!(pin.line, LineName::Number(_)));
    let found = match &settings.chip {
        Some(chip) => in_words(&configured_chip(chip)?)?,
        None if number => in_words(&header_chip()?)?,
        None => "the chips that have lines of these names".to_owned(),
    };
    let look = |name, line| {
        let (chip, offset) = find_line(settings.chip.as_deref(), name, line)?;
        line_use(&chip, offset)
    };
    let pins = settings.pins.iter().map(|(name, pin)| (name.clone(), look(name, &pin.line))).collect();
    Ok(Survey { backend: "cdev", found, second_choice: None, pins })
}

/// Who holds a line of the header, if the kernel knows.
pub(super) fn header_line_use(line: &LineName) -> Option<LineUse> {
    let LineName::Number(offset) = line else { return None };
    let chip = labelled_header_chip().ok()??;
    line_use(&chip, *offset).ok()
}

fn line_use(chip: &Chip, offset: Offset) -> Result<LineUse, GpioError> {
    let info = chip.line_info(offset).map_err(|error| opening(chip.path(), &error))?;
    Ok(if info.used { LineUse::Held(info.consumer) } else { LineUse::Free })
}

fn in_words(chip: &Chip) -> Result<String, GpioError> {
    let info = chip.info().map_err(|error| opening(chip.path(), &error))?;
    let path = chip.path();
    let group = path.metadata().map_or(0, |metadata| metadata.gid());
    let (path, label, lines) = (path.display(), info.label, info.num_lines);
    Ok(format!("{path} ({label}, {lines} lines), which belongs to group {group}"))
}

impl PinBackend for Cdev {
    fn look_up(&self, pin: &str, settings: &PinSettings) -> Result<(), GpioError> {
        let (chip, offset) = find_line(self.chip.as_deref(), pin, &settings.line)?;
        match line_use(&chip, offset)? {
            LineUse::Held(consumer) => Err(busy(pin, spelled(&settings.line), chip.name(), &consumer)),
            LineUse::Free | LineUse::Untold => Ok(()),
        }
    }

    /// Direction and `initial` are set in one request, so that no other level is ever driven.
    fn claim(&mut self, pin: &str, settings: &PinSettings) -> Result<(), GpioError> {
        let (chip, offset) = find_line(self.chip.as_deref(), pin, &settings.line)?;
        self.lines.insert(pin.to_owned(), (request(&chip, offset, pin, settings)?, offset));
        Ok(())
    }

    fn release(&mut self, pin: &str) -> Result<(), GpioError> {
        self.lines.remove(pin);
        Ok(())
    }

    fn drive(&self, pin: &str, state: PinState) -> Result<(), GpioError> {
        let (request, offset) =
            self.lines.get(pin).ok_or_else(|| GpioError::UnknownPin { pin: pin.to_owned() })?;
        request.set_value(*offset, value(state)).map(|_| ()).map_err(|error| GpioError::Drive {
            pin: pin.to_owned(),
            state,
            reason: error.to_string(),
        })
    }
}

fn value(state: PinState) -> Value {
    match state {
        PinState::On => Value::Active,
        PinState::Off => Value::Inactive,
    }
}

fn request(chip: &Chip, offset: Offset, name: &str, pin: &PinSettings) -> Result<Request, GpioError> {
    let mut builder = Request::builder();
    builder.on_chip(chip.path()).with_consumer(CONSUMER).with_line(offset).as_output(value(pin.initial));
    if pin.active == ActiveLevel::Low {
        builder.as_active_low();
    }
    builder.request().map_err(|error| {
        let line = spelled(&pin.line);
        match chip.line_info(offset) {
            Ok(info) if info.used => busy(name, line, chip.name(), &info.consumer),
            _ => GpioError::Claim { pin: name.to_owned(), line, reason: error.to_string() },
        }
    })
}

/// The chip and the offset of a pin's line.
fn find_line(chip: Option<&str>, pin: &str, line: &LineName) -> Result<(Chip, Offset), GpioError> {
    let no_line = |chip: String| GpioError::NoLine { pin: pin.to_owned(), line: spelled(line), chip };
    match (line, chip) {
        (LineName::Number(offset), chip) => {
            let chip = match chip {
                Some(chip) => configured_chip(chip)?,
                None => header_chip()?,
            };
            let info = chip.info().map_err(|error| opening(chip.path(), &error))?;
            if *offset < info.num_lines { Ok((chip, *offset)) } else { Err(no_line(info.label)) }
        }
        (LineName::Name(name), Some(chip)) => {
            let chip = configured_chip(chip)?;
            match chip.find_line_info(name) {
                Some(info) => Ok((chip, info.offset)),
                None => Err(no_line(chip.name())),
            }
        }
        (LineName::Name(name), None) => {
            let found = search(|chip| Ok(chip.find_line_info(name).map(|info| info.offset)))?;
            found.ok_or_else(|| no_line("any GPIO chip".to_owned()))
        }
    }
}

/// Finds the chip by path, by name (`gpiochip0`) or by label (`pinctrl-rp1`).
fn configured_chip(chip: &str) -> Result<Chip, GpioError> {
    let path = if chip.contains('/') { PathBuf::from(chip) } else { Path::new("/dev").join(chip) };
    if chip.contains('/') || path.exists() {
        return Chip::from_path(&path).map_err(|error| opening(&path, &error));
    }
    let found = search(|candidate| Ok((candidate.info()?.label == chip).then_some(())))?;
    found.map(|(chip, ())| chip).ok_or_else(|| GpioError::NoChip { chip: chip.to_owned() })
}

/// The chip with the header's lines, or else the first one.
fn header_chip() -> Result<Chip, GpioError> {
    match labelled_header_chip()? {
        Some(chip) => Ok(chip),
        None => Chip::from_path(FIRST_CHIP).map_err(|error| opening(Path::new(FIRST_CHIP), &error)),
    }
}

/// If a chip cannot be read, that is an error only if no other one is the header's.
fn labelled_header_chip() -> Result<Option<Chip>, GpioError> {
    let mut first_problem = None;
    for label in HEADER_LABELS {
        match search(|candidate| Ok((candidate.info()?.label == label).then_some(()))) {
            Ok(Some((chip, ()))) => return Ok(Some(chip)),
            Ok(None) => {}
            Err(error) => first_problem = first_problem.or(Some(error)),
        }
    }
    first_problem.map_or(Ok(None), Err)
}

/// The first chip for which `wanted` returns a value. If a chip cannot be read, that is an error only if no other one
/// matches, because it may be the right one.
fn search<T>(
    wanted: impl Fn(&Chip) -> Result<Option<T>, gpiocdev::Error>,
) -> Result<Option<(Chip, T)>, GpioError> {
    let mut first_problem = None;
    let paths = chips().map_err(|error| opening(Path::new("/dev"), &error))?;
    for path in paths {
        match Chip::from_path(&path).and_then(|chip| Ok(wanted(&chip)?.map(|answer| (chip, answer)))) {
            Ok(Some(found)) => return Ok(Some(found)),
            Ok(None) => {}
            Err(error) => first_problem = first_problem.or(Some(opening(&path, &error))),
        }
    }
    first_problem.map_or(Ok(None), Err)
}

fn opening(path: &Path, error: &gpiocdev::Error) -> GpioError {
    let chip = path.display().to_string();
    match error {
        gpiocdev::Error::Os(errno) if errno.0 == Errno::NOENT.raw_os_error() => GpioError::NoChip { chip },
        gpiocdev::Error::Os(errno)
            if [Errno::ACCESS, Errno::PERM].map(Errno::raw_os_error).contains(&errno.0) =>
        {
            let group = path.metadata().map_or(0, |metadata| metadata.gid());
            GpioError::Denied { path: path.to_owned(), group }
        }
        gpiocdev::Error::GpioChip(..) => GpioError::NotAChip { chip },
        other => GpioError::Open { what: chip, reason: other.to_string() },
    }
}

fn busy(pin: &str, line: String, chip: String, consumer: &str) -> GpioError {
    let consumer =
        if consumer.is_empty() { "a program that gives no name".to_owned() } else { format!("{consumer:?}") };
    GpioError::Busy { pin: pin.to_owned(), line, chip, consumer }
}

fn spelled(line: &LineName) -> String {
    match line {
        LineName::Number(number) => number.to_string(),
        LineName::Name(name) => name.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(path: &str, errno: Errno) -> String {
        opening(Path::new(path), &std::io::Error::from(errno).into()).to_string()
    }

    #[test]
    fn a_chip_that_may_not_be_opened_names_the_group_and_the_container_options() {
        for errno in [Errno::ACCESS, Errno::PERM] {
            assert_eq!(
                sentence("/dev/null", errno),
                "permission denied on /dev/null: add the service's user to group 0 (on Raspberry Pi OS `usermod -aG \
                 gpio USER`); in a container pass --device /dev/null --group-add 0"
            );
        }
    }

    #[test]
    fn other_errors_keep_the_systems_words() {
        assert!(
            sentence("/dev/gpiochip0", Errno::NOENT).starts_with("GPIO chip /dev/gpiochip0 does not exist: ")
        );
        assert!(sentence("/dev/gpiochip0", Errno::IO).starts_with("cannot open /dev/gpiochip0: "));
    }

    #[test]
    fn a_busy_line_names_its_consumer() {
        let line = spelled(&LineName::Number(17));
        assert_eq!(
            busy("pump", line.clone(), "gpiochip0".to_owned(), "spi0 CS0").to_string(),
            "pin pump: line 17 of gpiochip0 is in use by \"spi0 CS0\": stop that program or choose another line"
        );
        assert_eq!(
            busy("pump", line, "gpiochip0".to_owned(), "").to_string(),
            "pin pump: line 17 of gpiochip0 is in use by a program that gives no name: stop that program or choose \
             another line"
        );
    }
}
