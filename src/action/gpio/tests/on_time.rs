//! The guard in real time: due changes happen even if the runtime is blocked; and what a panic leaves behind.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{OnceLock, Weak};
use std::thread;

use super::*;
use crate::config::OnDisconnect;

const MS: Duration = Duration::from_millis(1);
/// The promised limit.
const TOLERANCE: u128 = 100;

/// Pins with the thread as their guard, as in a release.
fn started(settings: &GpioSettings) -> (Pins, Changes) {
    let changes = Changes::default();
    let recorder = Recorder { start: Instant::now(), changes: Arc::clone(&changes), broken: None };
    let pins = Pins::with_backend(Box::new(recorder), settings, &BTreeMap::new());
    (pins.unwrap(), changes)
}

#[expect(clippy::disallowed_methods, reason = "to hold the one thread up is what is tested")]
fn hold_up(time: Duration) {
    thread::sleep(time);
}

/// What one pin did. An error if it differs from what was expected, or was late.
fn on_time(changes: &Changes, pin: &str, expected: &[(u128, PinState)]) -> Result<(), String> {
    let all = changes.lock().unwrap();
    let own: Vec<_> =
        all.iter().filter(|(_, name, _)| name == pin).map(|(at, _, state)| (*at, *state)).collect();
    let fits = |((at, state), (due, wanted)): (&(u128, PinState), &(u128, PinState))| {
        state == wanted && at + 1 >= *due && *at <= due + TOLERANCE
    };
    let all_fit = own.len() == expected.len() && own.iter().zip(expected).all(fits);
    if all_fit { Ok(()) } else { Err(format!("{pin}: {own:?}, not {expected:?}")) }
}

async fn held_up_for_two_seconds() -> Result<(), String> {
    let disconnecting = |state| PinSettings {
        on_disconnect: Some(OnDisconnect { state, after: 600 * MS }),
        ..pin(None, OnExit::Set(OFF))
    };
    let named = settings(&[
        ("max_on", pin(Some(300 * MS), OnExit::Set(OFF))),
        ("pulse", pin(None, OnExit::Set(OFF))),
        ("blink", pin(None, OnExit::Set(OFF))),
        ("cut", pin(None, OnExit::Set(OFF))),
        ("lost", disconnecting(ON)),
    ]);
    let (pins, changes) = started(&named);
    let stop = CancellationToken::new();
    let (long, short) = (Limit::new(Duration::from_secs(60), &stop), Limit::new(500 * MS, &stop));
    pins.change("max_on", PinChange::Set(ON), &long).await.unwrap();
    pins.hub_lost();
    let (pulse, blink, cut, ()) = tokio::join!(
        pins.change("pulse", PinChange::Pulse(400 * MS), &long),
        pins.change("blink", PinChange::Blink { times: 2, period: 400 * MS }, &long),
        pins.change("cut", PinChange::Pulse(Duration::from_secs(9)), &short),
        // The loop is blocked, so nothing else on this thread runs.
        async { hold_up(MS * 2000) },
    );
    // The changes were made in time, even if the results are seen late.
    pulse.and(blink).unwrap();
    assert!(matches!(cut, Err(ChangeError::Cut(Cut::TimedOut))));
    assert_eq!(pins.states()["max_on"], OFF);
    on_time(&changes, "max_on", &[(0, ON), (300, OFF)])?;
    on_time(&changes, "pulse", &[(0, ON), (400, OFF)])?;
    on_time(&changes, "blink", &[(0, ON), (200, OFF), (400, ON), (600, OFF)])?;
    on_time(&changes, "cut", &[(0, ON), (500, OFF)])?;
    on_time(&changes, "lost", &[(600, ON)])
}

/// A blocked agent does not notice that its hub has gone.
async fn held_up_before_the_hub_is_lost() -> Result<(), String> {
    let on_disconnect = Some(OnDisconnect { state: OFF, after: 600 * MS });
    let (pins, changes) =
        started(&settings(&[("pump", PinSettings { on_disconnect, ..pin(None, OnExit::Keep) })]));
    let begin = Instant::now();
    change(&pins, PinChange::Set(ON)).await;
    // The guard waits, and nothing is due yet: the first sign of life must wake it.
    sleep(50 * MS).await;
    // The agent runs for longer than that, and nothing happens.
    for _ in 0..10 {
        pins.alive();
        assert!(pins.next_sign().unwrap() <= Instant::now() + 60 * MS);
        sleep(100 * MS).await;
    }
    let due = begin.elapsed().as_millis() + 600;
    pins.alive();
    hold_up(MS * 1000);
    on_time(&changes, "pump", &[(0, ON), (due, OFF)])?;
    // The agent runs again and is blocked again, so the time counts from the start.
    pins.alive();
    change(&pins, PinChange::Set(ON)).await;
    hold_up(MS * 1000);
    assert_eq!(pins.states()["pump"], OFF);
    Ok(())
}

/// Other programs may block this whole process, so one of three attempts must be on time.
async fn once_in_three(attempt: impl AsyncFn() -> Result<(), String>) {
    let mut late = Vec::new();
    for _ in 0..3 {
        match attempt().await {
            Ok(()) => return,
            Err(problem) => late.push(problem),
        }
    }
    panic!("{late:#?}");
}

#[tokio::test]
async fn what_is_due_happens_on_time_although_the_loop_is_held_up() {
    once_in_three(held_up_for_two_seconds).await;
}

#[tokio::test]
async fn the_hub_counts_as_away_while_the_loop_is_held_up() {
    once_in_three(held_up_before_the_hub_is_lost).await;
}

#[tokio::test]
async fn on_disconnect_that_is_new_does_not_count_the_time_before() {
    let on_disconnect = Some(OnDisconnect { state: OFF, after: 300 * MS });
    let with =
        |on_disconnect| settings(&[("pump", PinSettings { on_disconnect, ..pin(None, OnExit::Keep) })]);
    let (pins, changes) = started(&with(None));
    change(&pins, PinChange::Set(ON)).await;
    pins.alive();
    assert_eq!(pins.next_sign(), None);
    sleep(500 * MS).await;
    pins.change_settings(&with(on_disconnect)).unwrap();
    assert!(pins.next_sign().is_some());
    sleep(100 * MS).await;
    pins.alive();
    assert_eq!(times(&changes).len(), 1);
}

/// Does what the hook of a panic does, at the first request to turn a pin off: its thread holds the bank then.
struct Defect {
    changes: Changes,
    pins: OnceLock<Weak<SharedPins>>,
    left: SyncSender<()>,
}

impl PinBackend for Arc<Defect> {
    fn look_up(&self, _: &str, _: &PinSettings) -> Result<(), GpioError> {
        Ok(())
    }

    fn claim(&mut self, _: &str, _: &PinSettings) -> Result<(), GpioError> {
        Ok(())
    }

    fn release(&mut self, _: &str) -> Result<(), GpioError> {
        Ok(())
    }

    fn drive(&self, pin: &str, state: PinState) -> Result<(), GpioError> {
        self.changes.lock().unwrap().push((0, pin.to_owned(), state));
        if state == OFF && self.changes.lock().unwrap().len() == 3 {
            self.pins.get().unwrap().upgrade().unwrap().leave_in_panic();
            self.left.send(()).unwrap();
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_panic_of_the_thread_that_holds_the_pins_leaves_all_of_them_as_on_exit_says() {
    let (left, has_left) = sync_channel(1);
    let named =
        settings(&[("lamp", pin(None, OnExit::Set(OFF))), ("pump", pin(Some(50 * MS), OnExit::Set(OFF)))]);
    let defect = Arc::new(Defect { changes: Changes::default(), pins: OnceLock::new(), left });
    let pins = Pins::with_backend(Box::new(Arc::clone(&defect)), &named, &BTreeMap::new()).unwrap();
    defect.pins.set(Arc::downgrade(&pins.shared)).unwrap();
    let stop = CancellationToken::new();
    let limit = Limit::new(Duration::from_secs(60), &stop);
    for name in ["lamp", "pump"] {
        pins.change(name, PinChange::Set(ON), &limit).await.unwrap();
    }
    has_left.recv_timeout(Duration::from_secs(10)).unwrap();
    assert_eq!(
        without_times(&defect.changes)[2..],
        [("pump".to_owned(), OFF), ("lamp".to_owned(), OFF), ("pump".to_owned(), OFF)]
    );
    pins.close().await.unwrap();
}

#[tokio::test]
async fn a_panic_turns_pins_off_before_others_go_on_keeps_no_pulse_and_lets_no_pin_change_any_more() {
    let settings = settings(&[
        ("blinks", pin(None, OnExit::Keep)),
        ("goes_on", pin(None, OnExit::Set(ON))),
        ("kept", pin(None, OnExit::Keep)),
        ("pump", pin(None, OnExit::Set(OFF))),
    ]);
    let (pins, changes) = recorded(&settings);
    let stop = CancellationToken::new();
    let limit = Limit::new(Duration::from_secs(60), &stop);
    for name in ["kept", "pump"] {
        pins.change(name, PinChange::Set(ON), &limit).await.unwrap();
    }
    let (now, hour) = (Instant::now(), Duration::from_secs(3600));
    let begun =
        pins.shared.change(|bank| bank.begin_wave("blinks", WaveShape::pulse(hour), now, now + 2 * hour));
    let _under_way = begun.unwrap();
    changes.lock().unwrap().clear();
    pins.shared.leave_in_panic();
    assert_eq!(
        without_times(&changes),
        [("blinks".to_owned(), OFF), ("pump".to_owned(), OFF), ("goes_on".to_owned(), ON)]
    );
    let shared = Arc::clone(&pins.shared);
    let (done, other) = sync_channel(1);
    thread::spawn(move || done.send(shared.change(|bank| bank.set("pump", ON))));
    assert!(other.recv_timeout(200 * MS).is_err(), "another thread has switched a pin after the panic");
    // The process would end here. Closing the pins would wait for ever.
    std::mem::forget(pins);
}

/// Two pins that go on at the exit. One of them is interlocked with `pump`, which goes off.
fn interlocked_with_pump() -> GpioSettings {
    let mut settings = settings(&[
        ("lamp", pin(None, OnExit::Set(ON))),
        ("pump", pin(None, OnExit::Set(OFF))),
        ("valve", pin(None, OnExit::Set(ON))),
        ("zone", pin(None, OnExit::Set(OFF))),
    ]);
    settings.interlocks = vec![vec!["pump".to_owned(), "valve".to_owned()]];
    settings
}

fn without_times(changes: &Changes) -> Vec<(String, PinState)> {
    changes.lock().unwrap().iter().map(|(_, pin, state)| (pin.clone(), *state)).collect()
}

#[tokio::test]
async fn a_pin_that_a_panic_cannot_turn_off_keeps_only_its_interlocked_pins_off() {
    let (pins, changes) = recorded_with(&interlocked_with_pump(), Some("pump"));
    pins.shared.leave_in_panic();
    assert_eq!(without_times(&changes), [("zone".to_owned(), OFF), ("lamp".to_owned(), ON)]);
    std::mem::forget(pins);
}

/// Does what the hook of a panic does whenever `pump` is to go off, and ends there, as that hook does. Or it only hangs.
struct DefectivePump {
    panics: bool,
    changes: Changes,
    pins: OnceLock<Weak<SharedPins>>,
}

impl PinBackend for Arc<DefectivePump> {
    fn look_up(&self, _: &str, _: &PinSettings) -> Result<(), GpioError> {
        Ok(())
    }

    fn claim(&mut self, _: &str, _: &PinSettings) -> Result<(), GpioError> {
        Ok(())
    }

    fn release(&mut self, _: &str) -> Result<(), GpioError> {
        Ok(())
    }

    fn drive(&self, pin: &str, state: PinState) -> Result<(), GpioError> {
        if pin == "pump" {
            if self.panics {
                self.pins.get().unwrap().upgrade().unwrap().leave_in_panic();
            }
            loop {
                thread::park();
            }
        }
        self.changes.lock().unwrap().push((0, pin.to_owned(), state));
        Ok(())
    }
}

#[tokio::test]
async fn a_pin_that_panics_once_more_or_hangs_holds_up_neither_the_other_pins_nor_the_end() {
    for panics in [true, false] {
        let defect = Arc::new(DefectivePump { panics, changes: Changes::default(), pins: OnceLock::new() });
        let settings = interlocked_with_pump();
        let bank = Bank::new(Box::new(Arc::clone(&defect)), &settings, &BTreeMap::new());
        let shared = Arc::new(SharedPins::new(bank));
        defect.pins.set(Arc::downgrade(&shared)).unwrap();
        let (done, left) = sync_channel(1);
        let own = Arc::clone(&shared);
        thread::spawn(move || {
            own.leave_in_panic();
            done.send(()).unwrap();
        });
        left.recv_timeout(Duration::from_secs(5)).expect("the last words can be written");
        let expected = [("zone".to_owned(), OFF), ("lamp".to_owned(), ON)];
        assert_eq!(without_times(&defect.changes), expected, "{panics}");
        std::mem::forget(shared);
    }
}

/// Turning `slow` on ends when the test says so.
struct Slow {
    begun: SyncSender<()>,
    go_on: Mutex<Receiver<()>>,
}

impl PinBackend for Slow {
    fn look_up(&self, _: &str, _: &PinSettings) -> Result<(), GpioError> {
        Ok(())
    }

    fn claim(&mut self, _: &str, _: &PinSettings) -> Result<(), GpioError> {
        Ok(())
    }

    fn release(&mut self, _: &str) -> Result<(), GpioError> {
        Ok(())
    }

    fn drive(&self, pin: &str, _: PinState) -> Result<(), GpioError> {
        if pin == "slow" {
            self.begun.send(()).unwrap();
            self.go_on.lock().unwrap().recv().unwrap();
        }
        Ok(())
    }
}

#[test]
fn a_change_without_a_pulse_locks_no_other_pin_out() {
    let ((begin, begun), (tell, go_on)) = (sync_channel(1), sync_channel(1));
    let slow = Slow { begun: begin, go_on: Mutex::new(go_on) };
    let settings = settings(&[("pump", pin(None, OnExit::Keep)), ("slow", pin(None, OnExit::Keep))]);
    let mut bank = Bank::new(Box::new(slow), &settings, &BTreeMap::new());
    let outputs = Arc::clone(bank.outputs());
    thread::spawn(move || outputs.drive("slow", ON));
    begun.recv_timeout(Duration::from_secs(10)).unwrap();
    let (done, changed) = sync_channel(1);
    thread::spawn(move || done.send(bank.set("pump", ON).is_ok()));
    assert!(changed.recv_timeout(Duration::from_secs(5)).expect("a change that waits for nothing"));
    tell.send(()).unwrap();
}

#[tokio::test]
async fn the_thread_ends_with_the_pins() {
    let settings = pump(Some(Duration::from_secs(3600)));
    let (pins, changes) = started(&settings);
    change(&pins, PinChange::Set(ON)).await;
    // Both calls wait for the thread. If it did not end, this test would hang.
    pins.close().await.unwrap();
    assert_eq!(times(&changes).last().unwrap().1, OFF);
    let (pins, changes) = started(&settings);
    change(&pins, PinChange::Set(ON)).await;
    drop(pins);
    assert_eq!(times(&changes).last().unwrap().1, OFF);
}
