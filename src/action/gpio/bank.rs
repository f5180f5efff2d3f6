//! The bank: the state of every pin, and the timed changes that are due.
//!
//! Owns: states, interlocks, `max_on`, `on_disconnect`, `initial` after a restart, `on_exit`; pulses and blinks are
//! in `waves.rs`. Must not know: tasks, threads, waiting; who asks for a change.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use humantime::format_duration;
use tokio::time::Instant;

use super::{ExitStates, GpioError, Outputs, PinBackend, far};
use crate::config::{GpioSettings, OnExit, PinSettings};
use crate::rules::PinState;

mod change;
mod waves;

pub(super) use waves::WaveShape;
use waves::Waves;

/// How long to wait before a change that the backend refused is tried again.
const RETRY: Duration = Duration::from_secs(1);

/// All pins. Each change of the bank is either complete or was not made.
pub(super) struct Bank {
    outputs: Arc<Outputs>,
    /// The configured settings. Their pins are in `pins`.
    settings: GpioSettings,
    pins: BTreeMap<String, Pin>,
    waves: Waves,
    hub: HubReach,
    /// The pins whose `on_disconnect` has come in the present absence of the hub. The time is when to try again, if
    /// needed.
    disconnected: BTreeMap<String, Option<Instant>>,
    /// Whether a pin with `max_on` was switched since the last query.
    switched: bool,
}

/// Whether the hub can switch pins.
#[derive(Debug, Clone, Copy)]
enum HubReach {
    /// It cannot, since this time.
    Away(Instant),
    /// It could when the agent last reported that it runs. A blocked agent can neither switch a pin for the hub nor
    /// notice that the hub is away. So the hub counts as away since that time. None: the agent does not report yet.
    There(Option<Instant>),
}

struct Pin {
    settings: PinSettings,
    state: PinState,
    /// Whether a pulse or a blink turned it on and will turn it off again.
    lit: bool,
    /// When it was last turned on, and how long it had been on before that in an earlier process.
    on: Option<(Instant, Duration)>,
    /// When `max_on` is over. None while the pin is off.
    off_at: Option<Instant>,
}

/// The settings with which to claim pins. If a pin was on for its whole `max_on` before the restart, it begins off.
pub(super) fn claimed_as<'a>(
    settings: &'a GpioSettings,
    been_on: &BTreeMap<String, Duration>,
) -> Cow<'a, GpioSettings> {
    let mut settings = Cow::Borrowed(settings);
    for (name, been_on) in been_on {
        let pin = settings.pins.get(name).filter(|pin| pin.initial == PinState::On);
        if let Some(max_on) = pin.and_then(|pin| pin.max_on).filter(|max_on| been_on >= max_on) {
            let max_on = format_duration(max_on);
            tracing::warn!(pin = name, %max_on, "pin starts off: it was on for max_on before the restart");
            if let Some(pin) = settings.to_mut().pins.get_mut(name) {
                pin.initial = PinState::Off;
            }
        }
    }
    settings
}

impl Bank {
    /// Makes a bank of pins that the backend has claimed, each in its `initial` state.
    pub(super) fn new(
        backend: Box<dyn PinBackend>,
        settings: &GpioSettings,
        been_on: &BTreeMap<String, Duration>,
    ) -> Self {
        let pins = settings.pins.iter().map(|(name, settings)| {
            (name.clone(), Pin::claimed(settings, been_on.get(name).copied().unwrap_or_default()))
        });
        let switched = settings.pins.values().any(|pin| pin.max_on.is_some());
        let bank = Self {
            outputs: Arc::new(Outputs::new(backend)),
            pins: pins.collect(),
            settings: settings.clone(),
            waves: Waves::default(),
            hub: HubReach::There(None),
            disconnected: BTreeMap::new(),
            switched,
        };
        bank.note_exits();
        bank
    }

    pub(super) fn outputs(&self) -> &Arc<Outputs> {
        &self.outputs
    }

    /// Called whenever a pin has another state at the exit, so that a panic at any time leaves the pins as `on_exit`
    /// says.
    fn note_exits(&self) {
        let states =
            self.pins.iter().filter_map(|(name, pin)| Some((name.clone(), pin.on_exit()?))).collect();
        self.outputs.note_exits(ExitStates { states, interlocks: self.settings.interlocks.clone() });
    }

    /// Puts a pin into a state. Off is always allowed. On is refused while an interlocked pin is on.
    pub(super) fn set(&mut self, name: &str, state: PinState) -> Result<(), GpioError> {
        self.put(name, state, false)
    }

    /// Turns a pin on for a while. The caller must turn it off again.
    fn light(&mut self, name: &str) -> Result<(), GpioError> {
        // Noted first, so that a panic while the pin goes on turns it off.
        let was_lit = self.set_lit(name, true);
        let put = self.put(name, PinState::On, true);
        if put.is_err() {
            self.set_lit(name, was_lit);
        }
        put
    }

    /// Whether the pin is on for a while only. Returns what was so before.
    fn set_lit(&mut self, name: &str, lit: bool) -> bool {
        let Some(pin) = self.pins.get_mut(name) else { return false };
        let before = pin.on_exit();
        let was_lit = std::mem::replace(&mut pin.lit, lit);
        if pin.on_exit() != before {
            self.note_exits();
        }
        was_lit
    }

    fn put(&mut self, name: &str, state: PinState, lit: bool) -> Result<(), GpioError> {
        let pin = self.pins.get(name).ok_or_else(|| GpioError::UnknownPin { pin: name.to_owned() })?;
        let has_max_on = pin.settings.max_on.is_some();
        if state == PinState::On
            && let Some(other) = self.held_off_by(name)
        {
            return Err(GpioError::Interlocked { pin: name.to_owned(), other });
        }
        self.outputs.drive(name, state)?;
        self.switched |= has_max_on;
        if let Some(pin) = self.pins.get_mut(name) {
            pin.remember(state, Duration::ZERO);
            self.set_lit(name, lit);
        }
        Ok(())
    }

    /// Puts a pin into the other state.
    pub(super) fn toggle(&mut self, name: &str) -> Result<(), GpioError> {
        let state = match self.pins.get(name).map(|pin| pin.state) {
            Some(PinState::On) => PinState::Off,
            Some(PinState::Off) | None => PinState::On,
        };
        self.set(name, state)
    }

    /// Refuses a pulse that is longer than `max_on`, because `max_on` would cut it short without an error.
    pub(super) fn check_pulse(&self, name: &str, on: Duration) -> Result<(), GpioError> {
        match self.pins.get(name).and_then(|pin| pin.settings.max_on) {
            Some(max_on) if on > max_on => Err(GpioError::TooLong { pin: name.to_owned(), on, max_on }),
            _ => Ok(()),
        }
    }

    /// The interlocked pin that is on, if there is one.
    fn held_off_by(&self, name: &str) -> Option<String> {
        let groups = self.settings.interlocks.iter().filter(|group| group.iter().any(|one| one == name));
        let mut others = groups.flatten().filter(|other| *other != name);
        others.find(|other| self.pins.get(*other).is_some_and(|pin| pin.state == PinState::On)).cloned()
    }

    /// The hub is away since `now`, unless it was away before.
    pub(super) fn hub_lost(&mut self, now: Instant) {
        if let HubReach::There(_) = self.hub {
            self.hub = HubReach::Away(now);
            self.disconnected.clear();
        }
    }

    /// The hub is back.
    pub(super) fn hub_back(&mut self) {
        self.hub = HubReach::There(None);
        self.disconnected.clear();
    }

    /// The agent runs, and would have noticed if the hub were away.
    pub(super) fn alive(&mut self, now: Instant) {
        if let HubReach::There(seen) = &mut self.hub {
            *seen = Some(now);
            self.disconnected.clear();
        }
    }

    /// When the agent must report again that it runs: well before the first pin would treat it as blocked.
    pub(super) fn next_sign(&self) -> Option<Instant> {
        let HubReach::There(Some(seen)) = self.hub else { return None };
        let after =
            self.pins.values().filter_map(|pin| pin.settings.on_disconnect).map(|own| own.after).min()?;
        Some(far(seen, after / 10))
    }

    /// Does what is due by `now`, and returns when the next thing is due.
    pub(super) fn keep_guard(&mut self, now: Instant) -> Option<Instant> {
        self.wave_overdue(now);
        self.turn_off_overdue(now);
        self.disconnect_overdue(now);
        self.next()
    }

    /// When the next thing is due.
    pub(super) fn next(&self) -> Option<Instant> {
        let each = self.pins.iter().flat_map(|(name, pin)| [pin.off_at, self.disconnect_at(name, pin)]);
        each.flatten().chain(self.waves.next()).min()
    }

    /// When `on_disconnect` is due. None while the hub is connected, and after it was done.
    fn disconnect_at(&self, name: &str, pin: &Pin) -> Option<Instant> {
        let own = pin.settings.on_disconnect?;
        match (self.disconnected.get(name), self.hub) {
            (Some(retry), _) => *retry,
            (None, HubReach::Away(since) | HubReach::There(Some(since))) => Some(far(since, own.after)),
            (None, HubReach::There(None)) => None,
        }
    }

    /// Turns off each pin whose `max_on` has passed.
    fn turn_off_overdue(&mut self, now: Instant) {
        for name in self.due(now, |_, pin| pin.off_at) {
            let set = self.set(&name, PinState::Off);
            let Some(pin) = self.pins.get_mut(&name) else { continue };
            match set {
                Ok(()) => {
                    let max_on = format_duration(pin.settings.max_on.unwrap_or_default());
                    tracing::warn!(pin = name, %max_on, "turned pin off: it was on for max_on");
                }
                Err(error) => {
                    tracing::error!(pin = name, %error, "could not turn pin off after max_on, trying again");
                    pin.off_at = Some(now + RETRY);
                }
            }
        }
    }

    /// Puts each pin whose time without the hub is over into its `on_disconnect` state. Pins that go off come first,
    /// because others may be interlocked with them.
    fn disconnect_overdue(&mut self, now: Instant) {
        let target = |pin: &Pin| pin.settings.on_disconnect.map(|own| own.state);
        for state in [PinState::Off, PinState::On] {
            let when =
                |name: &str, pin: &Pin| self.disconnect_at(name, pin).filter(|_| target(pin) == Some(state));
            for name in self.due(now, when) {
                self.disconnect(&name, state, now);
            }
        }
    }

    fn disconnect(&mut self, name: &str, state: PinState, now: Instant) {
        let is_so = self.pins.get(name).is_some_and(|pin| pin.state == state);
        let set = if is_so { Ok(()) } else { self.set(name, state) };
        let Some(pin) = self.pins.get(name) else { return };
        let after = format_duration(pin.settings.on_disconnect.map_or(Duration::ZERO, |own| own.after));
        let mut retry = None;
        match set {
            Ok(()) if is_so => {}
            Ok(()) if matches!(self.hub, HubReach::There(_)) => {
                let why = "the agent was blocked, so the hub counts as unreachable";
                tracing::warn!(pin = name, %state, %after, "switched pin: {why}");
            }
            Ok(()) => tracing::warn!(pin = name, %state, %after, "switched pin: the hub is unreachable"),
            Err(error @ GpioError::Interlocked { .. }) => {
                tracing::warn!(pin = name, %after, %error, "left pin unchanged, although the hub is unreachable");
            }
            Err(error) => {
                tracing::error!(pin = name, %error, "could not switch pin while the hub is unreachable, trying again");
                retry = Some(now + RETRY);
            }
        }
        self.disconnected.insert(name.to_owned(), retry);
    }

    fn due(&self, now: Instant, when: impl Fn(&str, &Pin) -> Option<Instant>) -> Vec<String> {
        let due = self.pins.iter().filter(|(name, pin)| when(name, pin).is_some_and(|when| when <= now));
        due.map(|(name, _)| name.clone()).collect()
    }

    /// Whether a pin with `max_on` was switched since the last call.
    pub(super) fn take_switched(&mut self) -> bool {
        std::mem::take(&mut self.switched)
    }

    /// How long each pin with `max_on` that is on at `now` has been on.
    pub(super) fn pins_on(&self, now: Instant) -> BTreeMap<String, Duration> {
        let on = self.pins.iter().filter_map(|(name, pin)| {
            let left = pin.off_at?.saturating_duration_since(now);
            Some((name.clone(), pin.settings.max_on?.saturating_sub(left)))
        });
        on.collect()
    }

    /// The values of [`Bank::pins_on`] after `on_exit`. A pin that `on_exit` turns on counts from zero.
    pub(super) fn pins_on_after_exit(&self, now: Instant) -> BTreeMap<String, Duration> {
        let mut on = self.pins_on(now);
        for (name, pin) in &self.pins {
            match pin.settings.on_exit {
                OnExit::Set(PinState::Off) => drop(on.remove(name)),
                OnExit::Set(PinState::On) if pin.settings.max_on.is_some() => {
                    on.entry(name.clone()).or_default();
                }
                OnExit::Set(PinState::On) | OnExit::Keep => {}
            }
        }
        on
    }

    /// The state of every pin.
    pub(super) fn states(&self) -> BTreeMap<String, PinState> {
        self.pins.iter().map(|(name, pin)| (name.clone(), pin.state)).collect()
    }

    /// Puts every pin into its `on_exit` state and forgets it, so that a second call does nothing. Pins that go off
    /// come first, so that interlocked pins are never on together.
    pub(super) fn leave(&mut self) -> Result<(), GpioError> {
        let mut problems = Vec::new();
        self.waves = Waves::default();
        for state in [PinState::Off, PinState::On] {
            let to_state = self.pins.iter().filter(|(_, pin)| pin.on_exit() == Some(state));
            let names: Vec<String> = to_state.map(|(name, _)| name.clone()).collect();
            problems.extend(names.iter().filter_map(|name| self.set(name, state).err()));
        }
        self.pins.clear();
        self.note_exits();
        if problems.is_empty() {
            return Ok(());
        }
        let problems: Vec<String> = problems.iter().map(GpioError::to_string).collect();
        Err(GpioError::OnExit { problems: problems.join("; ") })
    }
}

impl Pin {
    /// A pin at the moment when it was claimed.
    fn claimed(settings: &PinSettings, been_on: Duration) -> Self {
        let mut pin =
            Self { settings: settings.clone(), state: PinState::Off, lit: false, on: None, off_at: None };
        pin.remember(settings.initial, been_on);
        pin
    }

    /// Stores the state. Each on starts `max_on` again, less the time that the pin has `been_on`. Off ends it.
    fn remember(&mut self, state: PinState, been_on: Duration) {
        (self.state, self.lit) = (state, false);
        self.on = (state == PinState::On).then(|| (Instant::now(), been_on));
        self.off_at = self.max_on_end();
    }

    /// When `max_on` is over.
    fn max_on_end(&self) -> Option<Instant> {
        let ((on, been_on), max_on) = (self.on?, self.settings.max_on?);
        Some(far(on, max_on.saturating_sub(been_on)))
    }
}
