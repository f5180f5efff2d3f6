//! Pins: outputs that are on or off, whoever drives them.
//!
//! Owns: pulses and blinking; the one task that does what is due by itself; the choice of the backend. What each pin is,
//! and what is due, is in `bank.rs`.
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
use crate::config::{GpioBackend, GpioSettings, PinSettings};
use crate::rules::{PinChange, PinState};

mod bank;
#[cfg(feature = "gpio")]
mod cdev;
mod claim;
mod error;
#[cfg(feature = "gpio")]
mod rppal;
mod simulated;
mod survey;
#[cfg(test)]
mod tests;

use bank::Bank;
pub use error::GpioError;
pub use survey::{LineUse, Survey, survey};

/// Under this name the kernel knows who has the lines.
pub const CONSUMER: &str = "c2d-agent";

/// One way of driving pins. Opening a backend claims every configured pin.
trait PinBackend: Send {
    /// Whether a pin can be claimed, as far as that can be told without touching it.
    fn look_up(&self, pin: &str, settings: &PinSettings) -> Result<(), GpioError>;

    /// Claims a pin, in its `initial` state from the first moment.
    fn claim(&mut self, pin: &str, settings: &PinSettings) -> Result<(), GpioError>;

    /// Gives a pin back, in the state that it has.
    fn release(&mut self, pin: &str) -> Result<(), GpioError>;

    /// Drives a pin that was claimed; `active` is the backend's business.
    fn drive(&mut self, pin: &str, state: PinState) -> Result<(), GpioError>;
}

/// The claimed pins. Dropping them without [`Pins::close`] still puts each into its `on_exit` state.
pub(super) struct Pins {
    shared: Arc<Shared>,
    /// The one task that does what is due by itself: `max_on`, `on_disconnect`.
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
    /// Something may be due at another time than before.
    changed: Notify,
    /// A pin with `max_on` was switched.
    switched: Notify,
    /// Any pin may have another state than before.
    moved: Notify,
}

impl Pins {
    /// Claims the configured pins. Must be called within the runtime. `been_on`: see [`super::Actions::open`].
    pub(super) fn open(
        settings: &GpioSettings,
        been_on: &BTreeMap<String, Duration>,
    ) -> Result<Self, GpioError> {
        let settings = bank::claimed_as(settings, been_on);
        Ok(Self::with_backend(open_backend(&settings)?, &settings, been_on))
    }

    fn with_backend(
        backend: Box<dyn PinBackend>,
        settings: &GpioSettings,
        been_on: &BTreeMap<String, Duration>,
    ) -> Self {
        let bank = Mutex::new(Bank::new(backend, settings, been_on));
        let notify = Notify::new;
        let shared = Arc::new(Shared { bank, changed: notify(), switched: notify(), moved: notify() });
        let mut guard = JoinSet::new();
        guard.spawn(keep_guard(Arc::clone(&shared)));
        Self { shared, guard }
    }

    /// Takes other settings up: pins that stay keep their state. See [`super::Actions::change_settings`].
    pub(super) fn change_settings(&self, settings: &GpioSettings) -> Result<(), Vec<GpioError>> {
        self.shared.change(|bank| {
            if bank.is_empty() {
                let backend = open_backend(settings).map_err(|error| vec![error])?;
                bank.begin(backend, settings);
                Ok(())
            } else {
                bank.change_settings(settings)
            }
        })
    }

    /// Makes one change, to its end. A pulse or a blink that is cut off, or whose future is dropped, leaves the pin off.
    pub(super) async fn change(
        &self,
        pin: &str,
        change: PinChange,
        limit: &Limit<'_>,
    ) -> Result<(), ChangeError> {
        limit.check()?;
        let on = match change {
            PinChange::Set(_) | PinChange::Toggle => Duration::ZERO,
            PinChange::Pulse(duration) => duration,
            PinChange::Blink { period, .. } => period / 2,
        };
        self.shared.lock().check_pulse(pin, on)?;
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

    /// The hub is away, since now.
    pub(super) fn hub_lost(&self) {
        self.shared.change(|bank| bank.hub_lost(Instant::now()));
    }

    /// The hub is back.
    pub(super) fn hub_back(&self) {
        self.shared.change(Bank::hub_back);
    }

    /// Waits until a pin with `max_on` was switched. Cancel safe.
    pub(super) async fn switched(&self) {
        self.shared.switched.notified().await;
    }

    /// Waits until any pin may have another state. Cancel safe.
    pub(super) async fn moved(&self) {
        self.shared.moved.notified().await;
    }

    /// For how long each pin with `max_on` that is on has been on.
    pub(super) fn pins_on(&self) -> BTreeMap<String, Duration> {
        self.shared.lock().pins_on(Instant::now())
    }

    /// The same after [`Pins::close`].
    pub(super) fn pins_on_after_exit(&self) -> BTreeMap<String, Duration> {
        self.shared.lock().pins_on_after_exit(Instant::now())
    }

    /// The state of every pin.
    pub(super) fn states(&self) -> BTreeMap<String, PinState> {
        self.shared.lock().states()
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
        self.change(|bank| bank.set(pin, state))
    }

    fn toggle(&self, pin: &str) -> Result<(), GpioError> {
        self.change(|bank| bank.toggle(pin))
    }

    /// Makes a change, and tells those who wait for one.
    fn change<T>(&self, make: impl FnOnce(&mut Bank) -> T) -> T {
        let mut bank = self.lock();
        let made = make(&mut bank);
        if bank.take_switched() {
            self.switched.notify_one();
        }
        self.changed.notify_one();
        self.moved.notify_one();
        made
    }

    /// The bank stays usable after a panic: each change of it is complete or was not made.
    fn lock(&self) -> MutexGuard<'_, Bank> {
        self.bank.lock().unwrap_or_else(PoisonError::into_inner)
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
        shared.change(|bank| bank.light(pin))?;
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
        match self.on.then(|| self.shared.set(self.pin, PinState::Off)) {
            // A reload has taken the pin away, and turned it off.
            None | Some(Ok(()) | Err(GpioError::UnknownPin { .. })) => {}
            Some(Err(error)) => tracing::error!(pin = self.pin, %error, "could not turn pin off"),
        }
    }
}

/// Runs as long as the pins are open: sleeps until the next thing is due, or something has changed.
async fn keep_guard(shared: Arc<Shared>) {
    loop {
        let next = {
            let mut bank = shared.lock();
            let next = bank.keep_guard(Instant::now());
            if bank.take_switched() {
                shared.switched.notify_one();
            }
            shared.moved.notify_one();
            next
        };
        let due = async {
            match next {
                Some(next) => sleep_until(next).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = due => {}
            () = shared.changed.notified() => {}
        }
    }
}

/// `Instant + Duration` that cannot overflow: nobody waits longer than a century.
fn far(from: Instant, wait: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    from + wait.min(CENTURY)
}

/// What each backend does with the same settings.
struct Backends<T> {
    simulated: fn(&GpioSettings) -> Result<T, GpioError>,
    rppal: fn(&GpioSettings) -> Result<T, GpioError>,
    cdev: fn(&GpioSettings) -> Result<T, GpioError>,
}

#[cfg(feature = "gpio")]
const OPEN: Backends<Box<dyn PinBackend>> =
    Backends { simulated: simulated::open, rppal: rppal::open, cdev: cdev::open };
#[cfg(feature = "gpio")]
const SURVEY: Backends<Survey> =
    Backends { simulated: survey::simulated, rppal: rppal::survey, cdev: cdev::survey };
#[cfg(not(feature = "gpio"))]
const OPEN: Backends<Box<dyn PinBackend>> =
    Backends { simulated: simulated::open, rppal: not_built, cdev: not_built };
#[cfg(not(feature = "gpio"))]
const SURVEY: Backends<Survey> = Backends { simulated: survey::simulated, rppal: not_built, cdev: not_built };

#[cfg(not(feature = "gpio"))]
fn not_built<T>(_: &GpioSettings) -> Result<T, GpioError> {
    Err(GpioError::NotBuilt)
}

/// Opens the configured backend.
fn open_backend(settings: &GpioSettings) -> Result<Box<dyn PinBackend>, GpioError> {
    let (backend, refused) = choose(settings, &OPEN)?;
    if let Some(error) = refused {
        tracing::warn!(%error, "took backend cdev because rppal could not be opened");
    }
    Ok(backend)
}

/// Has the configured backend do it; beside that, why it is not the first choice. Without pins there is nothing to drive,
/// and no hardware is needed.
fn choose<T>(settings: &GpioSettings, backends: &Backends<T>) -> Result<(T, Option<GpioError>), GpioError> {
    let first = |made| (made, None);
    match settings.backend {
        GpioBackend::Simulated => (backends.simulated)(settings).map(first),
        _ if settings.pins.is_empty() => (backends.simulated)(settings).map(first),
        GpioBackend::Rppal => (backends.rppal)(settings).map(first),
        GpioBackend::Cdev => (backends.cdev)(settings).map(first),
        #[cfg(feature = "gpio")]
        GpioBackend::Auto => choose_auto(settings, backends),
        #[cfg(not(feature = "gpio"))]
        GpioBackend::Auto => Err(GpioError::NotBuilt),
    }
}

/// `rppal` on a Raspberry Pi that it knows, where its registers can be reached and the pins are numbers of the header;
/// otherwise the character device.
#[cfg(feature = "gpio")]
fn choose_auto<T>(
    settings: &GpioSettings,
    backends: &Backends<T>,
) -> Result<(T, Option<GpioError>), GpioError> {
    use crate::config::Line;
    let numbers = settings.pins.values().all(|pin| matches!(pin.line, Line::Number(_)));
    let has_chip = cdev::any_chip();
    let mut refused = None;
    if numbers && settings.chip.is_none() && rppal::knows_this_board() {
        match (backends.rppal)(settings) {
            Err(error) if has_chip => refused = Some(error),
            made => return made.map(|made| (made, None)),
        }
    }
    if has_chip { (backends.cdev)(settings).map(|made| (made, refused)) } else { Err(GpioError::NoGpio) }
}
