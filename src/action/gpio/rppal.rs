//! Pins of a Raspberry Pi through its registers.
//!
//! Owns: everything that names the `rppal` crate. Must not know: timers, rules.
//!
//! Lines are BCM numbers. The registers have no owners, so a line that another program uses is not noticed.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};

use rppal::gpio::{Error, Gpio, Level, OutputPin, Pin};
use rppal::system::DeviceInfo;

use super::{GpioError, LineUse, PinBackend, Survey, cdev, claim};
use crate::config::{ActiveLevel, GpioSettings, LineName, PinSettings};
use crate::rules::PinState;

struct Rppal {
    gpio: Gpio,
    pins: BTreeMap<String, (Mutex<OutputPin>, ActiveLevel)>,
}

/// Whether this is a Raspberry Pi that `rppal` knows.
pub(super) fn knows_this_board() -> bool {
    DeviceInfo::new().is_ok()
}

/// Claims every pin.
pub(super) fn open(settings: &GpioSettings) -> Result<Box<dyn PinBackend>, GpioError> {
    let mut rppal = Rppal { gpio: Gpio::new().map_err(opening)?, pins: BTreeMap::new() };
    claim::all(&mut rppal, settings.pins.iter())?;
    Ok(Box::new(rppal))
}

/// Looks without claiming. The registers have no owners, but if the kernel has a chip for the header, that chip knows
/// them.
pub(super) fn survey(settings: &GpioSettings) -> Result<Survey, GpioError> {
    let board = DeviceInfo::new().map_err(|_| GpioError::NotARaspberryPi)?;
    let gpio = Gpio::new().map_err(opening)?;
    let owner = |line: &LineName| cdev::header_line_use(line).unwrap_or(LineUse::Untold);
    let look = |name, line: &LineName| take(&gpio, name, line).map(|_untouched| owner(line));
    let pins = settings.pins.iter().map(|(name, pin)| (name.clone(), look(name, &pin.line))).collect();
    let found = format!("the registers of a {}", board.model());
    Ok(Survey { backend: "rppal", found, second_choice: None, pins })
}

/// Takes the pin, which stays as it is until it is made an output.
fn take(gpio: &Gpio, name: &str, line: &LineName) -> Result<Pin, GpioError> {
    let pin = name.to_owned();
    let number = match line {
        LineName::Number(number) => *number,
        LineName::Name(line) => return Err(GpioError::NeedsNumber { pin, line: line.clone() }),
    };
    let (line, chip) = (number.to_string(), "the Raspberry Pi's header".to_owned());
    match u8::try_from(number).map(|number| gpio.get(number)) {
        Ok(Ok(taken)) => Ok(taken),
        Err(_) | Ok(Err(Error::PinNotAvailable(_))) => Err(GpioError::NoLine { pin, line, chip }),
        Ok(Err(Error::PinUsed(_))) => {
            let consumer = "another pin of this configuration".to_owned();
            Err(GpioError::Busy { pin, line, chip, consumer })
        }
        Ok(Err(other)) => Err(GpioError::Claim { pin, line, reason: other.to_string() }),
    }
}

impl PinBackend for Rppal {
    fn look_up(&self, pin: &str, settings: &PinSettings) -> Result<(), GpioError> {
        take(&self.gpio, pin, &settings.line).map(drop)
    }

    /// The level is set before the direction, so that no other level is ever driven.
    fn claim(&mut self, pin: &str, settings: &PinSettings) -> Result<(), GpioError> {
        let line = take(&self.gpio, pin, &settings.line)?;
        let mut output = match level(settings.initial, settings.active) {
            Level::High => line.into_output_high(),
            Level::Low => line.into_output_low(),
        };
        // By default the pin becomes an input when it is dropped, and a relay board's input then floats. `on_exit`
        // must decide instead.
        output.set_reset_on_drop(false);
        self.pins.insert(pin.to_owned(), (Mutex::new(output), settings.active));
        Ok(())
    }

    fn release(&mut self, pin: &str) -> Result<(), GpioError> {
        self.pins.remove(pin);
        Ok(())
    }

    fn drive(&self, pin: &str, state: PinState) -> Result<(), GpioError> {
        let (output, active) =
            self.pins.get(pin).ok_or_else(|| GpioError::UnknownPin { pin: pin.to_owned() })?;
        // Held for one write to a register, which cannot panic.
        let mut output = output.lock().unwrap_or_else(PoisonError::into_inner);
        output.write(level(state, *active));
        Ok(())
    }
}

fn level(state: PinState, active: ActiveLevel) -> Level {
    match (state, active) {
        (PinState::On, ActiveLevel::High) | (PinState::Off, ActiveLevel::Low) => Level::High,
        (PinState::On, ActiveLevel::Low) | (PinState::Off, ActiveLevel::High) => Level::Low,
    }
}

fn opening(error: Error) -> GpioError {
    match error {
        Error::UnknownModel => GpioError::NotARaspberryPi,
        // rppal tries this if there is no /dev/gpiomem. No group helps, because only root may use it, and only on a
        // kernel that allows it.
        Error::PermissionDenied(path) if path == "/dev/mem" => GpioError::NoRegisters,
        Error::Io(error) if error.kind() == ErrorKind::NotFound => GpioError::NoRegisters,
        Error::PermissionDenied(path) => {
            let path = PathBuf::from(path);
            let group = path.metadata().map_or(0, |metadata| metadata.gid());
            GpioError::Denied { path, group }
        }
        other => GpioError::Open {
            what: "the Raspberry Pi's GPIO registers".to_owned(),
            reason: other.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn active_low_turns_the_level_round() {
        use ActiveLevel as Active;
        assert_eq!(level(PinState::On, Active::High), Level::High);
        assert_eq!(level(PinState::Off, Active::High), Level::Low);
        assert_eq!(level(PinState::On, Active::Low), Level::Low);
        assert_eq!(level(PinState::Off, Active::Low), Level::High);
    }

    #[test]
    fn registers_that_cannot_be_opened_say_what_to_do() {
        assert_eq!(
            opening(Error::PermissionDenied("/dev/null".to_owned())).to_string(),
            "permission denied on /dev/null: add the service's user to group 0 (on Raspberry Pi OS `usermod -aG gpio \
             USER`); in a container pass --device /dev/null --group-add 0"
        );
        let missing = std::io::Error::from(ErrorKind::NotFound);
        for error in [Error::PermissionDenied("/dev/mem".to_owned()), Error::Io(missing)] {
            assert_eq!(
                opening(error).to_string(),
                "rppal needs /dev/gpiomem (/dev/gpiomem0 on a Raspberry Pi 5) and /dev/gpiochip0, and one of them is not \
                 there: in a container pass both with --device; where the kernel has no /dev/gpiomem set backend = \
                 \"cdev\" in [gpio]"
            );
        }
        assert_eq!(
            opening(Error::UnknownModel).to_string(),
            "rppal does not know this board: set backend = \"cdev\" in [gpio]"
        );
    }
}
