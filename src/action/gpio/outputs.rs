//! The outputs: the backend of the claimed pins, and the state in which each pin must be when the process ends.
//!
//! Owns: the lock around the backend, and what happens to the pins in a panic. Must not know: why a pin is in its
//! state, threads, times.
//!
//! The lock is not that of the bank, because the thread that panics may hold the bank. Only a claim or a release of a
//! pin, or another state at the exit, keeps others out. So a thread that panics while it drives a pin can still drive
//! all pins.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError, RwLock, TryLockError};

use super::{GpioError, PinBackend};
use crate::rules::PinState;

pub(super) struct Outputs {
    claimed: RwLock<Claimed>,
    /// The pins that a panic has begun to drive, and whether it has done so. Held for one look or one change.
    left: Mutex<BTreeMap<String, bool>>,
}

struct Claimed {
    backend: Box<dyn PinBackend>,
    at_exit: ExitStates,
}

/// What happens to the pins at the end of the process.
#[derive(Default)]
pub(super) struct ExitStates {
    /// The pins that do not keep their state.
    pub(super) states: BTreeMap<String, PinState>,
    /// Groups of pins that are never on together.
    pub(super) interlocks: Vec<Vec<String>>,
}

impl Outputs {
    pub(super) fn new(backend: Box<dyn PinBackend>) -> Self {
        let claimed = RwLock::new(Claimed { backend, at_exit: ExitStates::default() });
        Self { claimed, left: Mutex::default() }
    }

    /// Drives a claimed pin.
    pub(super) fn drive(&self, pin: &str, state: PinState) -> Result<(), GpioError> {
        self.claimed.read().unwrap_or_else(PoisonError::into_inner).backend.drive(pin, state)
    }

    /// Says into which state each pin goes if the process ends now.
    pub(super) fn note_exits(&self, at_exit: ExitStates) {
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
        make(&mut self.claimed.write().unwrap_or_else(PoisonError::into_inner))
    }

    /// Drives every pin into its state at the end of the process, the pins that go off first. Waits for no pin. If it
    /// is called again, because driving one pin has panicked, it goes on with the next pin.
    ///
    /// # Errors
    /// One sentence that names each pin that could not be changed.
    pub(super) fn leave_in_panic(&self) -> Result<(), GpioError> {
        let claimed = match self.claimed.try_read() {
            Ok(claimed) => claimed,
            Err(TryLockError::Poisoned(poison)) => poison.into_inner(),
            Err(TryLockError::WouldBlock) => {
                return Err(GpioError::OnExit {
                    problems: "they were just being claimed or released".to_owned(),
                });
            }
        };
        let mut problems = Vec::new();
        for wanted in [PinState::Off, PinState::On] {
            for (pin, state) in claimed.at_exit.states.iter().filter(|(_, state)| **state == wanted) {
                if self.left().contains_key(pin) {
                    continue;
                }
                let barred =
                    claimed.at_exit.partners(pin).find(|other| self.left().get(*other) == Some(&false));
                if let (PinState::On, Some(other)) = (wanted, barred) {
                    let error = GpioError::Interlocked { pin: pin.clone(), other: other.clone() };
                    problems.push(error.to_string());
                    continue;
                }
                self.left().insert(pin.clone(), false);
                match claimed.backend.drive(pin, *state) {
                    Ok(()) => drop(self.left().insert(pin.clone(), true)),
                    Err(error) => problems.push(error.to_string()),
                }
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(GpioError::OnExit { problems: problems.join("; ") }) }
    }

    fn left(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ExitStates {
    /// The other pins of the pin's groups.
    fn partners(&self, pin: &str) -> impl Iterator<Item = &String> {
        let groups = self.interlocks.iter().filter(move |group| group.iter().any(|one| one == pin));
        groups.flatten().filter(move |other| *other != pin)
    }
}
