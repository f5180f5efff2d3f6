//! Pins without hardware: states in memory, every change in the log and, if configured, in a file.
//!
//! Owns: the file's shape (`{"led":"off","pump":"on"}`). Must not know: hardware.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use super::{GpioError, PinBackend};
use crate::config::{GpioSettings, PinSettings};
use crate::rules::PinState;
use crate::trust;

struct Simulated {
    /// Held for one look or one change.
    states: Mutex<BTreeMap<String, PinState>>,
    state_file: Option<PathBuf>,
}

/// Puts every pin into its `initial` state and writes the file for the first time.
pub(super) fn open(settings: &GpioSettings) -> Result<Box<dyn PinBackend>, GpioError> {
    let states = settings.pins.iter().map(|(name, pin)| (name.clone(), pin.initial)).collect();
    let simulated = Simulated { states: Mutex::new(states), state_file: settings.state_file.clone() };
    simulated.write()?;
    Ok(Box::new(simulated))
}

impl PinBackend for Simulated {
    fn look_up(&self, _: &str, _: &PinSettings) -> Result<(), GpioError> {
        Ok(())
    }

    fn claim(&mut self, pin: &str, settings: &PinSettings) -> Result<(), GpioError> {
        self.drive(pin, settings.initial)
    }

    fn release(&mut self, pin: &str) -> Result<(), GpioError> {
        self.states(|states| states.remove(pin));
        self.write()
    }

    fn drive(&self, pin: &str, state: PinState) -> Result<(), GpioError> {
        self.states(|states| states.insert(pin.to_owned(), state));
        tracing::info!(pin, %state, "switched simulated pin");
        self.write()
    }
}

impl Simulated {
    fn states<T>(&self, look: impl FnOnce(&mut BTreeMap<String, PinState>) -> T) -> T {
        look(&mut self.states.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Replaces the file in one step, so that a reader never sees half of it.
    fn write(&self) -> Result<(), GpioError> {
        let Some(path) = &self.state_file else { return Ok(()) };
        let states: serde_json::Map<_, _> = self.states(|states| {
            states.iter().map(|(pin, state)| (pin.clone(), state.to_string().into())).collect()
        });
        let mut beside = path.clone().into_os_string();
        beside.push(".new");
        // The reader of the file may be another user than the agent's.
        let made = trust::create_anew(Path::new(&beside), 0o644);
        let text = serde_json::Value::Object(states).to_string();
        let written = made.and_then(|mut file| file.write_all(text.as_bytes()));
        let replaced = written.and_then(|()| fs::rename(&beside, path));
        replaced.map_err(|source| GpioError::StateFile { path: path.clone(), source })
    }
}
