//! Claiming pins, either all of them or none, and giving a pin back.
//!
//! Owns: the check that all pins can be claimed before one moves. Must not know: how a backend does it.

use super::{GpioError, PinBackend};
use crate::config::{OnExit, PinSettings};

/// Claims the pins. If one cannot be claimed, none has moved. The exception: a line may be lost between the check and
/// the claim. Then the pins before it are in their `on_exit` state.
pub(super) fn all<'a>(
    backend: &mut dyn PinBackend,
    pins: impl Iterator<Item = (&'a String, &'a PinSettings)> + Clone,
) -> Result<(), GpioError> {
    for (name, pin) in pins.clone() {
        backend.look_up(name, pin)?;
    }
    let mut claimed = Vec::new();
    for (name, pin) in pins {
        if let Err(error) = backend.claim(name, pin) {
            for (name, pin) in claimed {
                give_back(backend, name, pin);
            }
            return Err(error);
        }
        claimed.push((name, pin));
    }
    Ok(())
}

/// Puts a pin into its `on_exit` state and releases it.
fn give_back(backend: &mut dyn PinBackend, name: &str, settings: &PinSettings) {
    let set = match settings.on_exit {
        OnExit::Set(state) => backend.drive(name, state),
        OnExit::Keep => Ok(()),
    };
    release(backend, name, set);
}

/// Releases a pin after `set`, the result of its change for the exit. If either fails, nothing more can be done, so
/// it is logged.
pub(super) fn release(backend: &mut dyn PinBackend, name: &str, set: Result<(), GpioError>) {
    // Release it even if `set` failed: a line that is held could not be claimed again.
    let released = backend.release(name);
    if let Err(error) = set.and(released) {
        tracing::error!(pin = name, %error, "could not give the pin back as on_exit says");
    }
}
