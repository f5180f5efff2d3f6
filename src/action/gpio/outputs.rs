//! The outputs: the backend of the claimed pins, and the state in which each pin must be when the process ends.
//!
//! Owns: the lock around the backend, and what happens to the pins in a panic. Must not know: why a pin is in its
//! state, threads, times.
//!
//! The lock is not that of the bank, because the thread that panics may hold the bank. Only a claim or a release of a
//! pin keeps others out. So a thread that panics while it drives a pin can still drive all pins.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, TryLockError};

use super::{GpioError, PinBackend};
use crate::rules::PinState;

pub(super) struct Outputs(RwLock<Claimed>);

struct Claimed {
    backend: Box<dyn PinBackend>,
    /// The pins that do not keep their state at the end of the process.
    at_exit: BTreeMap<String, PinState>,
}

impl Outputs {
    pub(super) fn new(backend: Box<dyn PinBackend>) -> Self {
        Self(RwLock::new(Claimed { backend, at_exit: BTreeMap::new() }))
    }

    /// Drives a claimed pin.
    pub(super) fn drive(&self, pin: &str, state: PinState) -> Result<(), GpioError> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).backend.drive(pin, state)
    }

    /// Says into which state each pin goes if the process ends now.
    pub(super) fn note_exits(&self, at_exit: BTreeMap<String, PinState>) {
        self.change(|claimed| claimed.at_exit = at_exit);
    }

    /// Claims or releases pins.
    pub(super) fn claim<T>(&self, make: impl FnOnce(&mut dyn PinBackend) -> T) -> T {
        self.change(|claimed| make(claimed.backend.as_mut()))
    }

    /// Goes on with another backend.
    pub(super) fn replace(&self, backend: Box<dyn PinBackend>) {
        self.change(|claimed| claimed.backend = backend);
    }

    fn change<T>(&self, make: impl FnOnce(&mut Claimed) -> T) -> T {
        make(&mut self.0.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Drives every pin into its state at the end of the process. Waits for no lock.
    ///
    /// # Errors
    /// One sentence that names each pin that could not be changed.
    pub(super) fn leave_in_panic(&self) -> Result<(), GpioError> {
        let claimed = match self.0.try_read() {
            Ok(claimed) => claimed,
            Err(TryLockError::Poisoned(poison)) => poison.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(GpioError::OnExit {
                    problems: "they were just being claimed or released".to_owned(),
                });
            }
        };
        let mut problems = Vec::new();
        for state in [PinState::Off, PinState::On] {
            // If a pin cannot be turned off, none is turned on, because the two may be interlocked.
            if !problems.is_empty() {
                break;
            }
            let pins = claimed.at_exit.iter().filter(|(_, at_exit)| **at_exit == state);
            let failed = pins.filter_map(|(pin, state)| claimed.backend.drive(pin, *state).err());
            problems.extend(failed.map(|error| error.to_string()));
        }
        if problems.is_empty() { Ok(()) } else { Err(GpioError::OnExit { problems: problems.join("; ") }) }
    }
}
