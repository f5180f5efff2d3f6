//! Waves: a pin that goes on and off by itself, once for a pulse, several times for a blink.
//!
//! Owns: what each wave does next, and that it ends with the pin off. Must not know: tasks, threads, waiting.

use std::collections::BTreeMap;
use std::time::Duration;

use tokio::sync::oneshot;
use tokio::time::Instant;

use super::{Bank, RETRY, far};
use crate::action::gpio::{ChangeError, Cut, GpioError};
use crate::rules::PinState;

/// The pattern in which a pin goes on and off.
#[derive(Debug, Clone, Copy)]
pub(in crate::action::gpio) struct WaveShape {
    times: u32,
    on: Duration,
    off: Duration,
}

/// Waves under way, in the order in which they began.
#[derive(Default)]
pub(super) struct Waves {
    begun: u64,
    all: BTreeMap<u64, Wave>,
}

struct Wave {
    pin: String,
    shape: WaveShape,
    /// How many times it still goes on.
    left: u32,
    is_on: bool,
    /// When it changes next.
    next: Instant,
    /// When it is cut off.
    deadline: Instant,
    /// The caller that waits for its end. None if the caller was told, but the pin could not be turned off.
    waits: Option<oneshot::Sender<Result<(), ChangeError>>>,
}

impl WaveShape {
    pub(in crate::action::gpio) fn pulse(on: Duration) -> Self {
        Self { times: 1, on, off: Duration::ZERO }
    }

    pub(in crate::action::gpio) fn blink(times: u32, period: Duration) -> Self {
        Self { times, on: period / 2, off: period / 2 }
    }
}

impl Waves {
    /// When the next wave has something to do.
    pub(super) fn next(&self) -> Option<Instant> {
        self.all.values().map(Wave::due).min()
    }

    fn first_due(&self, now: Instant) -> Option<u64> {
        self.all.iter().find(|(_, wave)| wave.due() <= now).map(|(number, _)| *number)
    }
}

impl Wave {
    fn due(&self) -> Instant {
        if self.waits.is_some() { self.next.min(self.deadline) } else { self.next }
    }

    /// Sets the time of the next change. If this change came much too late, the rest is delayed, so that a relay does
    /// not chatter.
    fn go_on(&mut self, now: Instant, phase: Duration) {
        let late = now.saturating_duration_since(self.next);
        self.next = far(if late < phase { self.next } else { now }, phase);
    }
}

impl Bank {
    /// Turns a pin on, and off again at the right time. Returns the wave's number, and a channel that reports its
    /// end.
    pub(in crate::action::gpio) fn begin_wave(
        &mut self,
        pin: &str,
        shape: WaveShape,
        now: Instant,
        deadline: Instant,
    ) -> Result<(u64, oneshot::Receiver<Result<(), ChangeError>>), GpioError> {
        self.light(pin)?;
        let (waits, ended) = oneshot::channel();
        let (pin, left, waits) = (pin.to_owned(), shape.times.saturating_sub(1), Some(waits));
        let wave = Wave { pin, shape, left, is_on: true, next: far(now, shape.on), deadline, waits };
        self.waves.begun += 1;
        self.waves.all.insert(self.waves.begun, wave);
        Ok((self.waves.begun, ended))
    }

    /// Ends a wave early, if it has not ended.
    pub(in crate::action::gpio) fn end_wave(&mut self, number: u64, now: Instant) {
        if let Some(mut wave) = self.waves.all.remove(&number) {
            // The wave has ended, but the pin could not be turned off yet. The next attempt comes at its own time.
            if wave.waits.take().is_none() {
                self.waves.all.insert(number, wave);
            } else {
                self.end(number, wave, Ok(()), now);
            }
        }
    }

    /// Does what waves have to do by `now`.
    pub(super) fn wave_overdue(&mut self, now: Instant) {
        // The loop ends, because each step either moves the next one past `now` or ends the wave. If a step comes
        // late, the wave's deadline may be over, too.
        while let Some(number) = self.waves.first_due(now) {
            let Some(mut wave) = self.waves.all.remove(&number) else { continue };
            if wave.waits.is_none() {
                // If the pin was switched since then, that was intended, so leave it.
                if self.pins.get(&wave.pin).is_some_and(|pin| pin.lit) {
                    self.end(number, wave, Ok(()), now);
                }
            } else if wave.deadline <= wave.next {
                self.end(number, wave, Err(Cut::TimedOut.into()), now);
            } else if wave.is_on && wave.left == 0 && wave.shape.off.is_zero() {
                // A pulse ends with its on time. A blink also waits for its last off time.
                self.end(number, wave, Ok(()), now);
            } else if wave.is_on {
                match self.set(&wave.pin, PinState::Off) {
                    Ok(()) => {
                        wave.is_on = false;
                        wave.go_on(now, wave.shape.off);
                        self.waves.all.insert(number, wave);
                    }
                    Err(error) => self.end(number, wave, Err(error.into()), now),
                }
            } else if wave.left == 0 {
                self.end(number, wave, Ok(()), now);
            } else {
                match self.light(&wave.pin) {
                    Ok(()) => {
                        (wave.is_on, wave.left) = (true, wave.left - 1);
                        wave.go_on(now, wave.shape.on);
                        self.waves.all.insert(number, wave);
                    }
                    Err(error) => self.end(number, wave, Err(error.into()), now),
                }
            }
        }
    }

    /// Turns the pin off, if the wave has turned it on, and reports the end. If the pin cannot be turned off, tries
    /// again.
    fn end(&mut self, number: u64, mut wave: Wave, mut result: Result<(), ChangeError>, now: Instant) {
        if wave.is_on
            && let Err(error) = self.set(&wave.pin, PinState::Off)
        {
            // If a reload has removed the pin, it has turned the pin off.
            let is_gone = matches!(error, GpioError::UnknownPin { .. });
            if !is_gone {
                tracing::error!(pin = wave.pin, %error, "could not turn pin off, trying again");
            }
            result = result.and(Err(error.into()));
            if !is_gone {
                let waits = wave.waits.take();
                wave.next = now + RETRY;
                self.waves.all.insert(number, wave);
                return tell(waits, result);
            }
        }
        tell(wave.waits, result);
    }
}

/// A caller that no longer waits has ended the wave itself, so a failed send does not matter.
fn tell(waits: Option<oneshot::Sender<Result<(), ChangeError>>>, result: Result<(), ChangeError>) {
    drop(waits.map(|waits| waits.send(result)));
}
