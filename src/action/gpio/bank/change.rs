//! Other settings for claimed pins, after the configuration was read again.
//!
//! Owns: which settings can change while pins are held, and in which order pins are claimed and released. Must not
//! know: files, signals.
//!
//! A pin that stays is not touched: its level, its state and its time on remain. So its line cannot change. New pins
//! are claimed first. Only if that succeeds, removed pins go into their `on_exit` state.

use std::time::Duration;

use super::{Bank, Pin};
use crate::action::gpio::{GpioError, PinBackend, claim};
use crate::config::{GpioSettings, OnExit, PinSettings};
use crate::rules::PinState;

impl Bank {
    /// Whether no pin is claimed. Then there may be no hardware behind it.
    pub(in crate::action::gpio) fn is_empty(&self) -> bool {
        self.pins.is_empty()
    }

    /// Goes on with a backend that has claimed other pins.
    pub(in crate::action::gpio) fn begin(&mut self, backend: Box<dyn PinBackend>, settings: &GpioSettings) {
        self.outputs.replace(backend);
        for (name, pin) in &settings.pins {
            self.add(name, pin);
        }
        self.settings = settings.clone();
        self.note_exits();
        self.switched = true;
    }

    /// Applies other settings.
    ///
    /// # Errors
    /// All objections. Nothing has changed then.
    pub(in crate::action::gpio) fn change_settings(
        &mut self,
        settings: &GpioSettings,
    ) -> Result<(), Vec<GpioError>> {
        let objections = self.objections(settings);
        if !objections.is_empty() {
            return Err(objections);
        }
        let new = settings.pins.iter().filter(|(name, _)| !self.pins.contains_key(*name));
        self.outputs.claim(|backend| claim::all(backend, new)).map_err(|error| vec![error])?;
        let mut gone: Vec<String> =
            self.pins.keys().filter(|name| !settings.pins.contains_key(*name)).cloned().collect();
        // Pins that go on come last, because the others may be interlocked with them.
        gone.sort_by_key(|name| self.pins.get(name).is_some_and(|pin| pin.on_exit() == Some(PinState::On)));
        for name in gone {
            self.give_back(&name);
        }
        for (name, new) in &settings.pins {
            let Some(pin) = self.pins.get_mut(name) else {
                self.add(name, new);
                continue;
            };
            let old = std::mem::replace(&mut pin.settings, new.clone());
            if old.max_on != new.max_on {
                pin.off_at = pin.max_on_end();
            }
            if old.on_disconnect != new.on_disconnect {
                self.disconnected.remove(name);
            }
        }
        self.settings = settings.clone();
        self.note_exits();
        self.switched = true;
        Ok(())
    }

    fn objections(&self, settings: &GpioSettings) -> Vec<GpioError> {
        let mut found = Vec::new();
        let own = &self.settings;
        let other = (own.backend, &own.chip, &own.state_file)
            != (settings.backend, &settings.chip, &settings.state_file);
        if other && !settings.pins.is_empty() {
            found.push(GpioError::OtherBackend);
        }
        for (name, new) in &settings.pins {
            let here = self.pins.get(name).map(|pin| &pin.settings);
            if here.is_some_and(|old| (&old.line, old.active) != (&new.line, new.active)) {
                found.push(GpioError::Claimed { pin: name.clone() });
            }
            let other = self.pins.iter().find(|(other, pin)| *other != name && pin.settings.line == new.line);
            if let (None, Some((other, _))) = (here, other) {
                found.push(GpioError::ClaimedAs { pin: name.clone(), other: other.clone() });
            }
        }
        for group in &settings.interlocks {
            let state = |name: &str| match self.pins.get(name) {
                Some(pin) => Some(pin.state),
                None => settings.pins.get(name).map(|pin| pin.initial),
            };
            let mut on = group.iter().filter(|name| state(name) == Some(PinState::On));
            if let (Some(one), Some(other)) = (on.next(), on.next()) {
                found.push(GpioError::BothOn { one: one.clone(), other: other.clone() });
            }
        }
        found
    }

    fn add(&mut self, name: &str, settings: &PinSettings) {
        self.pins.insert(name.to_owned(), Pin::claimed(settings, Duration::ZERO));
    }

    /// Puts a pin into its `on_exit` state, unless an interlocked pin prevents it, and releases it.
    fn give_back(&mut self, name: &str) {
        let Some(on_exit) = self.pins.get(name).map(Pin::on_exit) else { return };
        let set = on_exit.map_or(Ok(()), |state| self.set(name, state));
        self.pins.remove(name);
        self.disconnected.remove(name);
        self.note_exits();
        self.outputs.claim(|backend| claim::release(backend, name, set));
    }
}

impl Pin {
    /// The state into which a released pin goes. None if it keeps its state. A pulse is not kept, because the pin
    /// would stay on for ever.
    pub(super) fn on_exit(&self) -> Option<PinState> {
        match self.settings.on_exit {
            OnExit::Set(state) => Some(state),
            OnExit::Keep => self.lit.then_some(PinState::Off),
        }
    }
}
