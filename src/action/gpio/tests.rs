//! Tests of pins over time, with a backend that records every change, and of the errors of each backend.
//!
//! Owns: nothing that ships. Must not know: rules, processes.

use std::collections::BTreeMap;
use std::fs;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tokio_util::sync::CancellationToken;

use super::bank::{WaveShape, claimed_as};
use super::{Bank, ChangeError, Cut, GpioError, Limit, PinBackend, PinGuard, Pins, SharedPins};
use crate::config::{ActiveLevel, GpioBackend, GpioSettings, LineName, OnExit, PinSettings};
use crate::rules::{PinChange, PinState};

mod change;
mod guards;
mod on_time;

const OFF: PinState = PinState::Off;
const ON: PinState = PinState::On;

/// Every change, in milliseconds since the start.
type Changes = Arc<Mutex<Vec<(u128, String, PinState)>>>;

struct Recorder {
    start: Instant,
    changes: Changes,
    /// The pin that it refuses to drive.
    broken: Option<&'static str>,
}

impl PinBackend for Recorder {
    /// The recorder has 54 lines.
    fn look_up(&self, pin: &str, settings: &PinSettings) -> Result<(), GpioError> {
        match settings.line {
            LineName::Number(number) if number >= 54 => {
                let chip = "the recorder".to_owned();
                Err(GpioError::NoLine { pin: pin.to_owned(), line: number.to_string(), chip })
            }
            _ => Ok(()),
        }
    }

    fn claim(&mut self, pin: &str, settings: &PinSettings) -> Result<(), GpioError> {
        self.drive(pin, settings.initial)
    }

    fn release(&mut self, _: &str) -> Result<(), GpioError> {
        Ok(())
    }

    fn drive(&self, pin: &str, state: PinState) -> Result<(), GpioError> {
        if self.broken == Some(pin) {
            return Err(GpioError::Drive {
                pin: pin.to_owned(),
                state,
                reason: "the wire is cut".to_owned(),
            });
        }
        self.changes.lock().unwrap().push((self.start.elapsed().as_millis(), pin.to_owned(), state));
        Ok(())
    }
}

fn pin(max_on: Option<Duration>, on_exit: OnExit) -> PinSettings {
    PinSettings {
        line: LineName::Number(17),
        active: ActiveLevel::High,
        initial: OFF,
        on_exit,
        max_on,
        on_disconnect: None,
    }
}

fn settings(pins: &[(&str, PinSettings)]) -> GpioSettings {
    let pins: BTreeMap<_, _> = pins.iter().map(|(name, pin)| ((*name).to_owned(), pin.clone())).collect();
    GpioSettings {
        backend: GpioBackend::Simulated,
        chip: None,
        state_file: None,
        pins,
        interlocks: Vec::new(),
    }
}

fn recorded(settings: &GpioSettings) -> (Pins, Changes) {
    recorded_with(settings, None)
}

fn recorded_with(settings: &GpioSettings, broken: Option<&'static str>) -> (Pins, Changes) {
    let changes = Changes::default();
    let recorder = Recorder { start: Instant::now(), changes: Arc::clone(&changes), broken };
    (in_test_time(recorder, settings, &BTreeMap::new()), changes)
}

/// Pins whose guard uses the clock of the test. `on_time.rs` tests the guard with its own thread.
fn in_test_time(recorder: Recorder, settings: &GpioSettings, been_on: &BTreeMap<String, Duration>) -> Pins {
    let shared = Arc::new(SharedPins::new(Bank::new(Box::new(recorder), settings, been_on)));
    let guard = PinGuard::start_in_test(Arc::clone(&shared));
    Pins { shared, guard }
}

fn pump(max_on: Option<Duration>) -> GpioSettings {
    settings(&[("pump", pin(max_on, OnExit::Set(OFF)))])
}

async fn change(pins: &Pins, change: PinChange) {
    let stop = CancellationToken::new();
    pins.change("pump", change, &Limit::new(Duration::from_secs(3600), &stop)).await.unwrap();
}

/// The times and states of `pump`.
fn times(changes: &Changes) -> Vec<(u128, PinState)> {
    changes.lock().unwrap().iter().map(|(time, _, state)| (*time, *state)).collect()
}

#[tokio::test(start_paused = true)]
async fn toggle_goes_by_the_remembered_state() {
    let (pins, changes) = recorded(&pump(None));
    for _ in 0..3 {
        change(&pins, PinChange::Toggle).await;
    }
    assert_eq!(times(&changes), [(0, ON), (0, OFF), (0, ON)]);
}

#[tokio::test(start_paused = true)]
async fn a_pulse_is_on_for_its_duration() {
    let (pins, changes) = recorded(&pump(None));
    change(&pins, PinChange::Pulse(Duration::from_secs(5))).await;
    assert_eq!(times(&changes), [(0, ON), (5000, OFF)]);
}

#[tokio::test(start_paused = true)]
async fn a_blink_is_half_on_half_off_and_ends_off() {
    let (pins, changes) = recorded(&pump(None));
    change(&pins, PinChange::Blink { times: 2, period: Duration::from_millis(400) }).await;
    change(&pins, PinChange::Set(ON)).await;
    assert_eq!(times(&changes), [(0, ON), (200, OFF), (400, ON), (600, OFF), (800, ON)]);
}

#[tokio::test(start_paused = true)]
async fn a_pulse_and_a_blink_that_are_cut_off_leave_the_pin_off() {
    for long in [
        PinChange::Pulse(Duration::from_secs(60)),
        PinChange::Blink { times: 100, period: Duration::from_secs(60) },
    ] {
        let (pins, changes) = recorded(&pump(None));
        let stop = CancellationToken::new();
        let ended = pins.change("pump", long, &Limit::new(Duration::from_secs(1), &stop)).await;
        assert!(matches!(ended, Err(ChangeError::Cut(Cut::TimedOut))));
        let cancel = async {
            sleep(Duration::from_secs(2)).await;
            stop.cancel();
        };
        let limit = Limit::new(Duration::from_secs(60), &stop);
        let (ended, ()) = tokio::join!(pins.change("pump", long, &limit), cancel);
        assert!(matches!(ended, Err(ChangeError::Cut(Cut::Interrupted))));
        assert_eq!(times(&changes), [(0, ON), (1000, OFF), (1000, ON), (3000, OFF)]);
    }
}

#[tokio::test(start_paused = true)]
async fn max_on_turns_the_pin_off_by_itself_and_starts_anew_with_every_on() {
    let (pins, changes) = recorded(&pump(Some(Duration::from_secs(10))));
    change(&pins, PinChange::Set(ON)).await;
    sleep(Duration::from_secs(7)).await;
    change(&pins, PinChange::Set(ON)).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(times(&changes), [(0, ON), (7000, ON), (17_000, OFF)]);
    change(&pins, PinChange::Toggle).await;
    assert_eq!(times(&changes)[3], (67_000, ON));
}

#[tokio::test(start_paused = true)]
async fn off_ends_max_on() {
    let (pins, changes) = recorded(&pump(Some(Duration::from_secs(10))));
    change(&pins, PinChange::Set(ON)).await;
    sleep(Duration::from_secs(7)).await;
    change(&pins, PinChange::Set(OFF)).await;
    sleep(Duration::from_secs(1)).await;
    change(&pins, PinChange::Set(ON)).await;
    sleep(Duration::from_secs(60)).await;
    assert_eq!(times(&changes), [(0, ON), (7000, OFF), (8000, ON), (18_000, OFF)]);
}

#[tokio::test(start_paused = true)]
async fn max_on_ends_an_initial_on() {
    let mut on_at_start = pump(Some(Duration::from_secs(10)));
    on_at_start.pins.get_mut("pump").unwrap().initial = ON;
    let (pins, changes) = recorded(&on_at_start);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(times(&changes), [(10_000, OFF)]);
    drop(pins);
}

#[tokio::test(start_paused = true)]
async fn closing_leaves_each_pin_as_on_exit_says_and_names_those_that_failed() {
    let on_exit = settings(&[
        ("broken", pin(None, OnExit::Set(OFF))),
        ("fan", pin(None, OnExit::Set(ON))),
        ("kept", pin(None, OnExit::Keep)),
        ("pump", pin(None, OnExit::Set(OFF))),
    ]);
    let (pins, changes) = recorded_with(&on_exit, Some("broken"));
    change(&pins, PinChange::Set(ON)).await;
    let error = pins.close().await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "not every pin was left as on_exit says: pin broken could not be turned off: the wire is cut"
    );
    let expected = [(0, "pump".to_owned(), ON), (0, "pump".to_owned(), OFF), (0, "fan".to_owned(), ON)];
    assert_eq!(*changes.lock().unwrap(), expected);
}

#[tokio::test(start_paused = true)]
async fn pins_that_are_dropped_without_closing_are_left_as_on_exit_says() {
    let (pins, changes) = recorded(&pump(Some(Duration::from_secs(10))));
    change(&pins, PinChange::Set(ON)).await;
    drop(pins);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(times(&changes), [(0, ON), (0, OFF)]);
}

#[tokio::test]
async fn a_failed_change_is_not_remembered() {
    let (pins, _) = recorded_with(&pump(None), Some("pump"));
    let stop = CancellationToken::new();
    let limit = Limit::new(Duration::from_secs(10), &stop);
    for _ in 0..2 {
        match pins.change("pump", PinChange::Toggle, &limit).await {
            Err(ChangeError::Gpio(error)) => {
                assert_eq!(error.to_string(), "pin pump could not be turned on: the wire is cut");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn the_simulated_backend_writes_every_state_to_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pins.json");
    let mut settings = settings(&[("pump", pin(None, OnExit::Set(OFF))), ("led", pin(None, OnExit::Keep))]);
    settings.state_file = Some(path.clone());
    let pins = Pins::open(&settings, &BTreeMap::new()).unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), r#"{"led":"off","pump":"off"}"#);
    change(&pins, PinChange::Set(ON)).await;
    assert_eq!(fs::read_to_string(&path).unwrap(), r#"{"led":"off","pump":"on"}"#);
    pins.close().await.unwrap();
    assert_eq!(fs::read_to_string(&path).unwrap(), r#"{"led":"off","pump":"off"}"#);
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[tokio::test]
async fn a_state_file_that_cannot_be_written_is_an_error_and_not_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pins").join("pins.json");
    fs::create_dir(path.parent().unwrap()).unwrap();
    let mut settings = pump(None);
    settings.state_file = Some(path.clone());
    let pins = Pins::open(&settings, &BTreeMap::new()).unwrap();
    fs::remove_dir_all(path.parent().unwrap()).unwrap();
    let stop = CancellationToken::new();
    let limit = Limit::new(Duration::from_secs(10), &stop);
    let error = pins.change("pump", PinChange::Set(ON), &limit).await.unwrap_err();
    let ChangeError::Gpio(error) = error else { panic!("{error:?}") };
    assert_eq!(
        error.to_string(),
        format!(
            "cannot write the pins' states to {}: No such file or directory (os error 2); check `state_file` in [gpio]",
            path.display()
        )
    );
    assert!(Pins::open(&settings, &BTreeMap::new()).is_err());
}

fn refusal(backend: GpioBackend, chip: Option<&str>) -> String {
    let mut settings = pump(None);
    settings.backend = backend;
    settings.chip = chip.map(str::to_owned);
    match Pins::open(&settings, &BTreeMap::new()) {
        Ok(_) => panic!("it opened"),
        Err(error) => error.to_string(),
    }
}

#[cfg(not(feature = "gpio"))]
#[tokio::test]
async fn without_the_hardware_backends_only_the_simulated_one_opens() {
    for backend in [GpioBackend::Auto, GpioBackend::Rppal, GpioBackend::Cdev] {
        assert_eq!(
            refusal(backend, None),
            "this c2d-agent was built without GPIO hardware support: install a build with the cargo feature \"gpio\", \
             or set backend = \"simulated\" in [gpio]"
        );
    }
}

#[cfg(feature = "gpio")]
mod hardware {
    use super::*;

    #[tokio::test]
    async fn a_chip_that_is_missing_or_something_else_is_named() {
        assert_eq!(
            refusal(GpioBackend::Cdev, Some("/dev/does-not-exist")),
            "GPIO chip /dev/does-not-exist does not exist: check `chip` in [gpio] against `gpiodetect`, or map the \
             device into the container with --device"
        );
        assert_eq!(
            refusal(GpioBackend::Cdev, Some("no-such-label")),
            "GPIO chip no-such-label does not exist: check `chip` in [gpio] against `gpiodetect`, or map the device \
             into the container with --device"
        );
        assert_eq!(
            refusal(GpioBackend::Cdev, Some("/dev/null")),
            "/dev/null is not a GPIO chip: check `chip` in [gpio] against `gpiodetect`"
        );
    }

    #[tokio::test]
    async fn a_machine_without_gpio_is_told_what_to_do() {
        if std::path::Path::new("/dev/gpiochip0").exists() {
            eprintln!("skipped: this machine has GPIO");
            return;
        }
        assert_eq!(
            refusal(GpioBackend::Auto, None),
            "no GPIO found: run on a board with /dev/gpiochip0, map it into the container with --device \
             /dev/gpiochip0, or set backend = \"simulated\" in [gpio] to try without"
        );
        assert_eq!(
            refusal(GpioBackend::Rppal, None),
            "rppal does not know this board: set backend = \"cdev\" in [gpio]"
        );
    }

    #[tokio::test]
    async fn without_pins_no_hardware_is_needed() {
        let settings = GpioSettings { backend: GpioBackend::Cdev, ..GpioSettings::default() };
        Pins::open(&settings, &BTreeMap::new()).unwrap().close().await.unwrap();
    }
}
