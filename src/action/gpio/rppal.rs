//! Pins of a Raspberry Pi through its registers.
//!
//! Owns: everything that names the `rppal` crate. Must not know: timers, rules. Used by: `action::gpio`.
//!
//! Lines are BCM numbers. The registers know no owner: a line that another program uses is not noticed.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use rppal::gpio::{Error, Gpio, Level, OutputPin};
use rppal::system::DeviceInfo;

use super::{GpioError, PinBackend};
use crate::config::{ActiveLevel, GpioSettings, Line};
use crate::rules::PinState;

struct Rppal {
    pins: BTreeMap<String, (OutputPin, ActiveLevel)>,
}

/// Whether this is a Raspberry Pi that `rppal` knows.
pub(super) fn knows_this_board() -> bool {
    DeviceInfo::new().is_ok()
}

/// Claims every pin; the level is set before the direction, so that no other level is ever driven.
pub(super) fn open(settings: &GpioSettings) -> Result<Box<dyn PinBackend>, GpioError> {
    let gpio = Gpio::new().map_err(opening)?;
    let mut pins = BTreeMap::new();
    for (name, pin) in &settings.pins {
        let number = match &pin.line {
            Line::Number(number) => *number,
            Line::Name(line) => return Err(GpioError::NeedsNumber { pin: name.clone(), line: line.clone() }),
        };
        let no_line = || GpioError::NoLine {
            pin: name.clone(),
            line: number.to_string(),
            chip: "the Raspberry Pi's header".to_owned(),
        };
        let claimed =
            gpio.get(u8::try_from(number).map_err(|_| no_line())?).map_err(|error| match error {
                Error::PinNotAvailable(_) => no_line(),
                Error::PinUsed(_) => GpioError::Busy {
                    pin: name.clone(),
                    line: number.to_string(),
                    chip: "the Raspberry Pi's header".to_owned(),
                    consumer: "another pin of this configuration".to_owned(),
                },
                other => GpioError::Claim {
                    pin: name.clone(),
                    line: number.to_string(),
                    reason: other.to_string(),
                },
            })?;
        let mut output = match level(pin.initial, pin.active) {
            Level::High => claimed.into_output_high(),
            Level::Low => claimed.into_output_low(),
        };
        // The default turns the pin into an input when it is dropped, and a relay board's input then floats: `on_exit` decides.
        output.set_reset_on_drop(false);
        pins.insert(name.clone(), (output, pin.active));
    }
    Ok(Box::new(Rppal { pins }))
}

impl PinBackend for Rppal {
    fn drive(&mut self, pin: &str, state: PinState) -> Result<(), GpioError> {
        let (output, active) =
            self.pins.get_mut(pin).ok_or_else(|| GpioError::UnknownPin { pin: pin.to_owned() })?;
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
        assert_eq!(
            opening(Error::UnknownModel).to_string(),
            "rppal does not know this board: set backend = \"cdev\" in [gpio]"
        );
    }
}
