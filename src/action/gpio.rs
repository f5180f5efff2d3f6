//! Pins: outputs that are on or off, on any backend.
//!
//! Owns: the way to change pins; the choice of the backend. The state of each pin, and what is due, is in `bank.rs`;
//! the thread for timed changes is in `guard.rs`. Must not know: rules, processes, chips and registers (each backend
//! knows its own).
//!
//! The rule of this file: a pin that is switched on for a while is always switched off again, whatever happens in
//! between.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::limit::{Cut, Limit};
use crate::config::{GpioBackend, GpioSettings, PinSettings};
use crate::rules::{PinChange, PinState};

mod bank;
#[cfg(feature = "gpio")]
mod cdev;
mod claim;
mod error;
mod guard;
mod outputs;
#[cfg(feature = "gpio")]
mod rppal;
mod simulated;
mod survey;
#[cfg(test)]
mod tests;

use bank::{Bank, WaveShape};
pub use error::GpioError;
pub(super) use guard::leave_in_panic;
use guard::{PinGuard, SharedPins};
use outputs::{ExitStates, Outputs};
pub use survey::{LineUse, Survey, survey};

/// The name under which the kernel lists the holder of the lines.
pub const CONSUMER: &str = "c2d-agent";

/// One way to drive pins. Opening a backend claims every configured pin.
trait PinBackend: Send + Sync {
    /// Whether a pin can be claimed, as far as this is known without touching it.
    fn look_up(&self, pin: &str, settings: &PinSettings) -> Result<(), GpioError>;

    /// Claims a pin. It is in its `initial` state from the first moment.
    fn claim(&mut self, pin: &str, settings: &PinSettings) -> Result<(), GpioError>;

    /// Releases a pin in its present state.
    fn release(&mut self, pin: &str) -> Result<(), GpioError>;

    /// Drives a claimed pin. The backend applies `active`. It holds no lock where it may panic, because in a panic all
    /// pins are driven once more.
    fn drive(&self, pin: &str, state: PinState) -> Result<(), GpioError>;
}

/// The claimed pins. If they are dropped without [`Pins::close`], each still goes into its `on_exit` state.
pub(super) struct Pins {
    shared: Arc<SharedPins>,
    /// Makes timed changes: `max_on`, `on_disconnect`, the ends of pulses and blinks.
    guard: PinGuard,
}

/// Why a change was not made, or not finished.
#[derive(Debug)]
pub(super) enum ChangeError {
    /// The action had to end. The pin is off.
    Cut(Cut),
    /// The pin could not be driven.
    Gpio(GpioError),
}

impl Pins {
    /// Claims the configured pins. `been_on`: see [`super::Actions::open`].
    pub(super) fn open(
        settings: &GpioSettings,
        been_on: &BTreeMap<String, Duration>,
    ) -> Result<Self, GpioError> {
        let settings = bank::claimed_as(settings, been_on);
        Self::with_backend(open_backend(&settings)?, &settings, been_on)
    }

    fn with_backend(
        backend: Box<dyn PinBackend>,
        settings: &GpioSettings,
        been_on: &BTreeMap<String, Duration>,
    ) -> Result<Self, GpioError> {
        let shared = Arc::new(SharedPins::new(Bank::new(backend, settings, been_on)));
        guard::leave_these_in_panic(&shared);
        match PinGuard::start(Arc::clone(&shared)) {
            Ok(guard) => Ok(Self { shared, guard }),
            Err(source) => {
                shared.leave()?;
                Err(GpioError::NoThread { source })
            }
        }
    }

    /// Applies other settings. Pins that stay keep their state. See [`super::Actions::change_settings`].
    pub(super) fn change_settings(&self, settings: &GpioSettings) -> Result<(), Vec<GpioError>> {
        self.shared.change(|bank| {
            // The old settings may not have needed reports that the agent runs. So it reports here, before new pins
            // depend on it.
            bank.alive(Instant::now());
            if bank.is_empty() {
                let backend = open_backend(settings).map_err(|error| vec![error])?;
                bank.begin(backend, settings);
                Ok(())
            } else {
                bank.change_settings(settings)
            }
        })
    }

    /// Makes one change, up to its end. If a pulse or a blink is cut off, or its future is dropped, the pin is off.
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
        self.shared.look(|bank| bank.check_pulse(pin, on))?;
        match change {
            PinChange::Set(state) => Ok(self.shared.change(|bank| bank.set(pin, state))?),
            PinChange::Toggle => Ok(self.shared.change(|bank| bank.toggle(pin))?),
            PinChange::Pulse(duration) => self.wave(pin, WaveShape::pulse(duration), limit).await,
            PinChange::Blink { times, period } => {
                self.wave(pin, WaveShape::blink(times, period), limit).await
            }
        }
    }

    async fn wave(&self, pin: &str, shape: WaveShape, limit: &Limit<'_>) -> Result<(), ChangeError> {
        let begin = |bank: &mut Bank| bank.begin_wave(pin, shape, Instant::now(), limit.deadline());
        let (number, ended) = self.shared.change(begin)?;
        let _under_way = UnderWay { shared: &self.shared, number };
        tokio::select! {
            biased;
            ended = ended => ended.unwrap_or(Err(ChangeError::Cut(Cut::Interrupted))),
            cut = limit.reached() => Err(cut.into()),
        }
    }

    /// The hub is away from now on.
    pub(super) fn hub_lost(&self) {
        self.shared.change(|bank| bank.hub_lost(Instant::now()));
    }

    /// The hub is back.
    pub(super) fn hub_back(&self) {
        self.shared.change(Bank::hub_back);
    }

    /// The agent is running.
    pub(super) fn alive(&self) {
        self.shared.change_quietly(|bank| bank.alive(Instant::now()));
    }

    /// When [`Pins::alive`] must be called again.
    pub(super) fn next_sign(&self) -> Option<Instant> {
        self.shared.look(|bank| bank.next_sign())
    }

    /// Waits until a pin with `max_on` was switched. Cancel safe.
    pub(super) async fn switched(&self) {
        self.shared.switched.notified().await;
    }

    /// Waits until any pin may have another state. Cancel safe.
    pub(super) async fn moved(&self) {
        self.shared.moved.notified().await;
    }

    /// How long each pin with `max_on` that is on has been on.
    pub(super) fn pins_on(&self) -> BTreeMap<String, Duration> {
        self.shared.look(|bank| bank.pins_on(Instant::now()))
    }

    /// The values of [`Pins::pins_on`] after [`Pins::close`].
    pub(super) fn pins_on_after_exit(&self) -> BTreeMap<String, Duration> {
        self.shared.look(|bank| bank.pins_on_after_exit(Instant::now()))
    }

    /// The state of every pin.
    pub(super) fn states(&self) -> BTreeMap<String, PinState> {
        self.shared.look(|bank| bank.states())
    }

    /// Puts every pin into its `on_exit` state and releases it. If one fails, the others are still done.
    pub(super) async fn close(mut self) -> Result<(), GpioError> {
        self.guard.end(&self.shared);
        self.shared.leave()
    }
}

impl Drop for Pins {
    fn drop(&mut self) {
        self.guard.end(&self.shared);
        if let Err(error) = self.shared.leave() {
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

/// A pulse or a blink under way. When it is dropped, the wave ends with the pin off.
struct UnderWay<'a> {
    shared: &'a SharedPins,
    number: u64,
}

impl Drop for UnderWay<'_> {
    fn drop(&mut self) {
        self.shared.change(|bank| bank.end_wave(self.number, Instant::now()));
    }
}

/// `Instant + Duration` that cannot overflow, because it waits at most a century.
fn far(from: Instant, wait: Duration) -> Instant {
    const CENTURY: Duration = Duration::from_secs(100 * 365 * 24 * 3600);
    from + wait.min(CENTURY)
}

/// What each backend does with given settings.
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
        tracing::warn!(%error, "using backend cdev because rppal could not be opened");
    }
    Ok(backend)
}

/// Calls the configured backend. Also returns why it is not the first choice. Without pins there is nothing to drive,
/// so no hardware is needed.
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

/// Chooses `rppal` on a Raspberry Pi that it knows, if its registers can be used and all pins are numbers of the
/// header. Otherwise chooses the character device.
#[cfg(feature = "gpio")]
fn choose_auto<T>(
    settings: &GpioSettings,
    backends: &Backends<T>,
) -> Result<(T, Option<GpioError>), GpioError> {
    use crate::config::LineName;
    let numbers = settings.pins.values().all(|pin| matches!(pin.line, LineName::Number(_)));
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
