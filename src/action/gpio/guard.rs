//! The guard: makes timed changes of pins, on a separate thread.
//!
//! Owns: the lock around the bank, the notices of changes, that thread, and which pins a panic concerns. Must not know:
//! what is due.
//!
//! It is a thread and not a task of the agent's runtime. So even if the agent hangs, no pin stays on longer than it
//! may. The thread does not feed the watchdog, so an agent that hangs is still restarted.

use std::io;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

use super::bank::Bank;
use super::{GpioError, Outputs};

/// Large enough to write a line of the log.
const STACK: usize = 256 * 1024;
/// How long a panic waits for the bank: much longer than any change of a pin takes.
const PANIC_PATIENCE: Duration = Duration::from_millis(100);
const PANIC_PAUSE: Duration = Duration::from_millis(1);
/// How long a panic waits for all pins, also where driving one of them hangs.
const PANIC_LIMIT: Duration = Duration::from_millis(500);
/// How long one thread may take, more than [`PANIC_PATIENCE`].
const PANIC_PART: Duration = Duration::from_millis(160);

/// The pins of this process, for the hook of a panic, which is one for the process.
static OF_THIS_PROCESS: Mutex<Weak<SharedPins>> = Mutex::new(Weak::new());

/// The pins, shared by the guard and all others.
pub(super) struct SharedPins {
    /// Held for one change of one pin, never across a wait.
    held: Mutex<GuardedPins>,
    /// Those of the bank.
    outputs: Arc<Outputs>,
    /// Signals that something is due earlier than the guard knows.
    sooner: Condvar,
    /// Signals that a pin with `max_on` was switched.
    pub(super) switched: Notify,
    /// Signals that any pin may have changed its state.
    pub(super) moved: Notify,
    /// Like `sooner`, for the guard of tests with their own clock.
    #[cfg(test)]
    sooner_in_test: Notify,
}

struct GuardedPins {
    bank: Bank,
    /// When the guard wakes up by itself.
    wakes: Option<Instant>,
    /// Whether the guard must end.
    is_closing: bool,
}

/// The thread. It ends only through [`PinGuard::end`].
pub(super) enum PinGuard {
    Thread(Option<JoinHandle<()>>),
    /// Does the work of the thread in the time of a test.
    #[cfg(test)]
    Task(tokio::task::JoinSet<()>),
}

impl SharedPins {
    pub(super) fn new(bank: Bank) -> Self {
        Self {
            outputs: Arc::clone(bank.outputs()),
            held: Mutex::new(GuardedPins { bank, wakes: None, is_closing: false }),
            sooner: Condvar::new(),
            switched: Notify::new(),
            moved: Notify::new(),
            #[cfg(test)]
            sooner_in_test: Notify::new(),
        }
    }

    /// Reads the bank, or changes it in a way that makes nothing due earlier.
    pub(super) fn look<T>(&self, look: impl FnOnce(&mut Bank) -> T) -> T {
        look(&mut self.lock().bank)
    }

    /// Makes a change, and notifies those that wait for one.
    pub(super) fn change<T>(&self, make: impl FnOnce(&mut Bank) -> T) -> T {
        let mut held = self.lock();
        let made = make(&mut held.bank);
        self.tell(&mut held.bank);
        self.wake_if_sooner(&held);
        made
    }

    /// Makes a change that moves no pin.
    pub(super) fn change_quietly(&self, make: impl FnOnce(&mut Bank)) {
        let mut held = self.lock();
        make(&mut held.bank);
        self.wake_if_sooner(&held);
    }

    fn wake_if_sooner(&self, held: &GuardedPins) {
        let is_sooner = |next| held.wakes.is_none_or(|wakes| next < wakes);
        if held.bank.next().is_some_and(is_sooner) {
            self.wake();
        }
    }

    /// Puts every pin into its `on_exit` state.
    pub(super) fn leave(&self) -> Result<(), GpioError> {
        self.look(Bank::leave)
    }

    /// Does what is due.
    fn turn(&self, held: &mut GuardedPins) -> Option<Instant> {
        held.wakes = held.bank.keep_guard(Instant::now());
        self.tell(&mut held.bank);
        held.wakes
    }

    fn tell(&self, bank: &mut Bank) {
        if bank.take_switched() {
            self.switched.notify_one();
        }
        self.moved.notify_one();
    }

    fn wake(&self) {
        self.sooner.notify_one();
        #[cfg(test)]
        self.sooner_in_test.notify_one();
    }

    /// As [`leave_in_panic`].
    ///
    /// It has threads of its own. If driving a pin panics there, too, that thread comes here again and goes on with the
    /// next pin, and this one still comes back. If a pin hangs, another thread goes on with the next pin.
    pub(super) fn leave_in_panic(self: &Arc<Self>) {
        let end = std::time::Instant::now() + PANIC_LIMIT;
        while std::time::Instant::now() < end {
            let (done, left) = sync_channel(1);
            let own = Arc::clone(self);
            let thread = thread::Builder::new().name("leave-pins".to_owned()).stack_size(STACK);
            let spawned = thread.spawn(move || {
                own.leave_on_this_thread();
                done.send(()).unwrap_or_default(); // after PANIC_PART, the hook no longer listens
            });
            if spawned.is_err() {
                return self.leave_on_this_thread();
            }
            if left.recv_timeout(PANIC_PART).is_ok() {
                return;
            }
        }
        tracing::error!("could not leave the pins as on_exit says within {PANIC_LIMIT:?}");
    }

    fn leave_on_this_thread(&self) {
        let end = std::time::Instant::now() + PANIC_PATIENCE;
        let mut held = self.held.try_lock();
        // Another thread gives it back soon; this one does not.
        while held.is_err() && std::time::Instant::now() < end {
            thread::park_timeout(PANIC_PAUSE);
            held = self.held.try_lock();
        }
        // It is never given back, so that no other thread changes a pin until the process has ended.
        std::mem::forget(held);
        if let Err(error) = self.outputs.leave_in_panic() {
            tracing::error!(%error, "could not leave the pins as on_exit says");
        }
    }

    /// A panic ends the process, so poison is seen in tests only.
    fn lock(&self) -> MutexGuard<'_, GuardedPins> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs until it must end. It sleeps until the next thing is due, or until something becomes due sooner.
    fn keep(&self) {
        let mut held = self.lock();
        while !held.is_closing {
            held = match self.turn(&mut held) {
                None => self.sooner.wait(held).unwrap_or_else(PoisonError::into_inner),
                Some(next) => {
                    let pause = next.saturating_duration_since(Instant::now());
                    let woken = self.sooner.wait_timeout(held, pause);
                    woken.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }
}

/// From now on these are the pins that [`leave_in_panic`] leaves.
pub(super) fn leave_these_in_panic(shared: &Arc<SharedPins>) {
    *OF_THIS_PROCESS.lock().unwrap_or_else(PoisonError::into_inner) = Arc::downgrade(shared);
}

/// See [`crate::action::leave_pins_in_panic`].
pub(in crate::action) fn leave_in_panic() {
    let pins = OF_THIS_PROCESS.lock().unwrap_or_else(PoisonError::into_inner).upgrade();
    if let Some(pins) = pins {
        pins.leave_in_panic();
    }
}

impl PinGuard {
    /// Starts the thread.
    ///
    /// # Errors
    /// When the system cannot start another thread.
    pub(super) fn start(shared: Arc<SharedPins>) -> io::Result<Self> {
        let thread = thread::Builder::new().name("pins".to_owned()).stack_size(STACK);
        Ok(Self::Thread(Some(thread.spawn(move || shared.keep())?)))
    }

    /// Does the work of the thread as a task of a test's runtime, whose clock may stand still.
    #[cfg(test)]
    pub(super) fn start_in_test(shared: Arc<SharedPins>) -> Self {
        let mut task = tokio::task::JoinSet::new();
        task.spawn(async move {
            loop {
                let next = shared.turn(&mut shared.lock());
                let due = async {
                    match next {
                        Some(next) => tokio::time::sleep_until(next).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = due => {}
                    () = shared.sooner_in_test.notified() => {}
                }
            }
        });
        Self::Task(task)
    }

    /// Ends the guard, so that no timed changes happen any more. Waits for at most one change of a pin.
    pub(super) fn end(&mut self, shared: &SharedPins) {
        match self {
            Self::Thread(thread) => {
                shared.lock().is_closing = true;
                shared.wake();
                drop(thread.take().map(JoinHandle::join));
            }
            #[cfg(test)]
            Self::Task(task) => task.abort_all(),
        }
    }
}
