//! Pins: outputs that are on or off, whoever drives them.
//!
//! Owns: each pin's state, pulses, blinking, `max_on`, `initial` and `on_exit`; the choice of the backend.
//! Must not know: rules, processes, chips and registers (each backend knows its own). Used by: `action`.
//!
//! The rule of this file: a pin that is switched on for a while is switched off again, whatever happens in between.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until};

use super::limit::{Cut, Limit};
use crate::config::{GpioBackend, GpioSettings, OnExit, PinSettings};
use crate::rules::{PinChange, PinState};

#[cfg(feature = "gpio")]
mod cdev;
mod error;
#[cfg(feature = "gpio")]
mod rppal;
mod simulated;
#[cfg(test)]
mod tests;

pub use error::GpioError;

/// How long to wait before trying again to turn off a pin whose `max_on` has passed.
const RETRY_OFF: Duration = Duration::from_secs(1);

/// One way of driving pins. Opening a backend claims every configured pin, in its `initial` state from the first moment.
trait PinBackend: Send {
    /// Drives a pin that was claimed; `active` is the backend's business.
    fn drive(&mut self, pin: &str, state: PinState) -> Result<(), GpioError>;
}

/// The claimed pins. Dropping them without [`Pins::close`] still puts each into its `on_exit` state.
pub(super) struct Pins {
    shared: Arc<Shared>,
    /// The one task that turns pins off when their `max_on` has passed.
    guard: JoinSet<()>,
}

/// Why a change was not made, or not to its end.
#[derive(Debug)]
pub(super) enum ChangeError {
    /// The action had to end; the pin is off.
    Cut(Cut),
    /// The pin could not be driven.
    Gpio(GpioError),
}

struct Shared {
    /// Held for one change of one pin, never across a wait.
    bank: Mutex<Bank>,
    /// A pin with `max_on` was switched.
    switched: Notify,
}

struct Bank {
    backend: Box<dyn PinBackend>,
    pins: BTreeMap<String, Pin>,
}

struct Pin {
    settings: PinSettings,
    state: PinState,
    /// When `max_on` will have passed; none while the pin is off.
    off_at: Option<Instant>,
}

impl Pins {
    /// Claims the configured pins. Must be called within the runtime.
    pub(super) fn open(settings: &GpioSettings) -> Result<Self, GpioError> {
        Ok(Self::with_backend(open_backend(settings)?, settings))
    }

    fn with_backend(backend: Box<dyn PinBackend>, settings: &GpioSettings) -> Self {
        let pins = settings.pins.iter().map(|(name, settings)| {
            let mut pin = Pin { settings: settings.clone(), state: PinState::Off, off_at: None };
            pin.remember(settings.initial);
            (name.clone(), pin)
        });
        let bank = Mutex::new(Bank { backend, pins: pins.collect() });
        let shared = Arc::new(Shared { bank, switched: Notify::new() });
        let mut guard = JoinSet::new();
        if settings.pins.values().any(|pin| pin.max_on.is_some()) {
            guard.spawn(turn_off_in_time(Arc::clone(&shared)));
        }
        Self { shared, guard }
    }

    /// Makes one change, to its end. A pulse or a blink that is cut off, or whose future is dropped, leaves the pin off.
    pub(super) async fn change(
        &self,
        pin: &str,
        change: PinChange,
        limit: &Limit<'_>,
    ) -> Result<(), ChangeError> {
        limit.check()?;
        match change {
            PinChange::Set(state) => self.shared.set(pin, state)?,
            PinChange::Toggle => self.shared.toggle(pin)?,
            PinChange::Pulse(duration) => {
                let lit = Lit::new(&self.shared, pin)?;
                let pause = limit.pause_until(far(Instant::now(), duration)).await;
                lit.off()?;
                pause?;
            }
            PinChange::Blink { times, period } => {
                let mut next = Instant::now();
                for _ in 0..times {
                    let lit = Lit::new(&self.shared, pin)?;
                    next = far(next, period / 2);
                    let pause = limit.pause_until(next).await;
                    lit.off()?;
                    pause?;
                    next = far(next, period / 2);
                    limit.pause_until(next).await?;
                }
            }
        }
        Ok(())
    }

    /// Puts every pin into its `on_exit` state, all of them even if one fails, and releases them.
    pub(super) async fn close(mut self) -> Result<(), GpioError> {
        self.guard.shutdown().await;
        self.shared.lock().leave()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        if let Err(error) = self.shared.lock().leave() {
            tracing::error!(%error, "could not leave the pins as on_exit says");
        }
    }
}

impl From<Cut> for ChangeError {
    fn from(cut: Cut) -> Self {
        Self::Cut(cut)
    }
}

impl From<GpioError> for ChangeError {
    fn from(error: GpioError) -> Self {
        Self::Gpio(error)
    }
}

impl Shared {
    fn set(&self, pin: &str, state: PinState) -> Result<(), GpioError> {
        self.lock().set(pin, state)?;
        self.switched.notify_one();
        Ok(())
    }

    fn toggle(&self, pin: &str) -> Result<(), GpioError> {
        self.lock().toggle(pin)?;
        self.switched.notify_one();
        Ok(())
    }

    /// The bank stays usable after a panic: each change of it is complete or was not made.
    fn lock(&self) -> MutexGuard<'_, Bank> {
        self.bank.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Bank {
    fn set(&mut self, name: &str, state: PinState) -> Result<(), GpioError> {
        let pin = self.pins.get_mut(name).ok_or_else(|| GpioError::UnknownPin { pin: name.to_owned() })?;
        self.backend.drive(name, state)?;
        pin.remember(state);
        Ok(())
    }

    fn toggle(&mut self, name: &str) -> Result<(), GpioError> {
        let state = match self.pins.get(name).map(|pin| pin.state) {
            Some(PinState::On) => PinState::Off,
            Some(PinState::Off) | None => PinState::On,
        };
        self.set(name, state)
    }

    /// Turns off each pin whose `max_on` has passed, and answers when the next one's will.
    fn turn_off_overdue(&mut self, now: Instant) -> Option<Instant> {
        for (name, pin) in &mut self.pins {
            if pin.off_at.is_none_or(|off_at| off_at > now) {
                continue;
            }
            match self.backend.drive(name, PinState::Off) {
                Ok(()) => {
                    let max_on = humantime::format_duration(pin.settings.max_on.unwrap_or_default());
                    tracing::warn!(pin = %name, %max_on, "turned pin off: it was on for max_on");
                    pin.remember(PinState::Off);
                }
                Err(error) => {
                    tracing::error!(pin = %name, %error, "could not turn pin off after max_on, trying again");
                    pin.off_at = Some(now + RETRY_OFF);
                }
            }
        }
        self.pins.values().filter_map(|pin| pin.off_at).min()
    }

    /// Puts every pin into its `on_exit` state and forgets it, so that a second call does nothing.
    fn leave(&mut self) -> Result<(), GpioError> {
        let mut problems = Vec::new();
        for (name, pin) in std::mem::take(&mut self.pins) {
            if let OnExit::Set(state) = pin.settings.on_exit
                && let Err(error) = self.backend.drive(&name, state)
            {
                problems.push(error.to_string());
            }
        }
        if problems.is_empty() { Ok(()) } else { Err(GpioError::OnExit { problems: problems.join("; ") }) }
    }
}

impl Pin {
    /// Every on starts `max_on` anew; off ends it.
    fn remember(&mut self, state: PinState) {
        self.state = state;
        self.off_at = match state {
            PinState::On => self.settings.max_on.map(|max_on| far(Instant::now(), max_on)),
            PinState::Off => None,
        };
    }
}

/// A pin that is on for a while; dropping it turns the pin off.
struct Lit<'a> {
    shared: &'a Shared,
    pin: &'a str,
    on: bool,
}

impl<'a> Lit<'a> {
    fn new(shared: &'a Shared, pin: &'a str) -> Result<Self, GpioError> {
        shared.set(pin, PinState::On)?;
        Ok(Self { shared, pin, on: true })
    }

    fn off(mut self) -> Result<(), GpioError> {
        self.shared.set(self.pin, PinState::Off)?;
        self.on = false;
        Ok(())
    }
}

impl Drop for Lit<'_> {
    fn drop(&mut self) {
        if self.on
            && let Err(error) = self.shared.set(self.pin, PinState::Off)
        {
            tracing::error!(pin = self.pin, %error, "could not turn pin off");
        }
    }
}

/// Runs as long as the pins are open: sleeps until the next `max_on` passes, or a pin is switched.
async fn turn_off_in_time(shared: Arc<Shared>) {
    loop {
        let next = shared.lock().turn_off_overdue(Instant::now());
        let overdue = async {
            match next {
                Some(next) => sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = overdue => {}
            () = shared.switched.notified() => {}
        }
    }
}

/// `Instant + Duration` that cannot overflow: nobody waits longer than a century.
fn far(from: Instant, wait: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    from + wait.min(CENTURY)
}

/// Opens the configured backend. Without pins there is nothing to drive, and no hardware is needed.
fn open_backend(settings: &GpioSettings) -> Result<Box<dyn PinBackend>, GpioError> {
    match settings.backend {
        GpioBackend::Simulated => simulated::open(settings),
        _ if settings.pins.is_empty() => simulated::open(settings),
        #[cfg(feature = "gpio")]
        GpioBackend::Rppal => rppal::open(settings),
        #[cfg(feature = "gpio")]
        GpioBackend::Cdev => cdev::open(settings),
        #[cfg(feature = "gpio")]
        GpioBackend::Auto => open_auto(settings),
        #[cfg(not(feature = "gpio"))]
        GpioBackend::Rppal | GpioBackend::Cdev | GpioBackend::Auto => Err(GpioError::NotBuilt),
    }
}

/// `rppal` on a Raspberry Pi that it knows, where its registers can be reached and the pins are numbers of the header;
/// otherwise the character device.
#[cfg(feature = "gpio")]
fn open_auto(settings: &GpioSettings) -> Result<Box<dyn PinBackend>, GpioError> {
    use crate::config::Line;
    let numbers = settings.pins.values().all(|pin| matches!(pin.line, Line::Number(_)));
    let has_chip = cdev::any_chip();
    if numbers && settings.chip.is_none() && rppal::knows_this_board() {
        match rppal::open(settings) {
            Err(error) if has_chip => {
                tracing::warn!(%error, "took backend cdev because rppal could not be opened")
            }
            opened => return opened,
        }
    }
    if has_chip { cdev::open(settings) } else { Err(GpioError::NoGpio) }
}
