//! The guards of outputs: interlocks, `max_on` across restarts and against long pulses, `on_disconnect`.
//!
//! Owns: nothing that ships. Must not know: rules, processes.

use std::time::Duration;

use proptest::prelude::*;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use super::super::WaveShape;
use super::*;
use crate::config::OnDisconnect;

const SECOND: Duration = Duration::from_secs(1);

/// `open` and `close` are interlocked, `lamp` is not.
fn gate() -> GpioSettings {
    let plain = || pin(None, OnExit::Set(OFF));
    let mut settings = settings(&[("open", plain()), ("close", plain()), ("lamp", plain())]);
    settings.interlocks = vec![vec!["open".to_owned(), "close".to_owned()]];
    settings
}

async fn try_change(pins: &Pins, pin: &str, change: PinChange) -> Result<(), String> {
    let stop = CancellationToken::new();
    match pins.change(pin, change, &Limit::new(Duration::from_secs(3600), &stop)).await {
        Ok(()) => Ok(()),
        Err(ChangeError::Gpio(error)) => Err(error.to_string()),
        Err(ChangeError::Cut(cut)) => panic!("{cut:?}"),
    }
}

fn states(changes: &Changes) -> Vec<(u128, String, PinState)> {
    changes.lock().unwrap().clone()
}

fn on(time: u128, pin: &str) -> (u128, String, PinState) {
    (time, pin.to_owned(), ON)
}

fn off(time: u128, pin: &str) -> (u128, String, PinState) {
    (time, pin.to_owned(), OFF)
}

#[tokio::test(start_paused = true)]
async fn interlocked_pins_are_never_on_together() {
    let (pins, changes) = recorded(&gate());
    try_change(&pins, "open", PinChange::Set(ON)).await.unwrap();
    for change in [
        PinChange::Set(ON),
        PinChange::Toggle,
        PinChange::Pulse(SECOND),
        PinChange::Blink { times: 2, period: SECOND },
    ] {
        assert_eq!(
            try_change(&pins, "close", change).await.unwrap_err(),
            "pin close cannot be turned on while pin open is: they are interlocked, so turn open off first"
        );
    }
    // A pin that is on may be turned on again, off is always allowed, and other pins are not affected.
    try_change(&pins, "open", PinChange::Set(ON)).await.unwrap();
    try_change(&pins, "close", PinChange::Set(OFF)).await.unwrap();
    try_change(&pins, "lamp", PinChange::Toggle).await.unwrap();
    try_change(&pins, "open", PinChange::Toggle).await.unwrap();
    try_change(&pins, "close", PinChange::Toggle).await.unwrap();
    assert_eq!(
        states(&changes),
        [on(0, "open"), on(0, "open"), off(0, "close"), on(0, "lamp"), off(0, "open"), on(0, "close")]
    );
}

#[tokio::test(start_paused = true)]
async fn a_pulse_holds_off_the_other_pin_until_it_ends() {
    let (pins, changes) = recorded(&gate());
    let late = async {
        sleep(SECOND / 2).await;
        try_change(&pins, "close", PinChange::Set(ON)).await.unwrap_err();
        sleep(SECOND).await;
        try_change(&pins, "close", PinChange::Set(ON)).await.unwrap();
    };
    let (pulse, ()) = tokio::join!(try_change(&pins, "open", PinChange::Pulse(SECOND)), late);
    pulse.unwrap();
    assert_eq!(states(&changes), [on(0, "open"), off(1000, "open"), on(1500, "close")]);
}

#[tokio::test(start_paused = true)]
async fn at_exit_pins_go_off_before_interlocked_ones_go_on() {
    let mut settings = gate();
    settings.pins.get_mut("close").unwrap().on_exit = OnExit::Set(ON);
    let (pins, changes) = recorded(&settings);
    try_change(&pins, "open", PinChange::Set(ON)).await.unwrap();
    pins.close().await.unwrap();
    assert_eq!(states(&changes), [on(0, "open"), off(0, "lamp"), off(0, "open"), on(0, "close")]);

    // If one cannot be turned off, the other one may not go on.
    let (mut settings, broken) = (gate(), Some("open"));
    settings.pins.get_mut("open").unwrap().initial = ON;
    settings.pins.get_mut("close").unwrap().on_exit = OnExit::Set(ON);
    let (pins, changes) = recorded_with(&settings, broken);
    assert_eq!(
        pins.close().await.unwrap_err().to_string(),
        "not every pin was left as on_exit says: pin open could not be turned off: the wire is cut; pin close cannot be \
         turned on while pin open is: they are interlocked, so turn open off first"
    );
    assert_eq!(states(&changes), [off(0, "lamp")]);
}

#[tokio::test(start_paused = true)]
async fn a_pulse_or_blink_longer_than_max_on_is_refused_before_it_begins() {
    let (pins, changes) = recorded(&pump(Some(SECOND)));
    for long in [
        PinChange::Pulse(Duration::from_millis(1001)),
        PinChange::Blink { times: 1, period: Duration::from_millis(2002) },
    ] {
        assert_eq!(
            try_change(&pins, "pump", long).await.unwrap_err(),
            "pin pump would be on for 1s 1ms, but its max_on is 1s: ask for less, or set a longer max_on"
        );
    }
    assert_eq!(times(&changes), []);
    try_change(&pins, "pump", PinChange::Pulse(SECOND)).await.unwrap();
    try_change(&pins, "pump", PinChange::Blink { times: 1, period: SECOND * 2 }).await.unwrap();
    assert_eq!(times(&changes).last(), Some(&(2000, OFF)));
}

/// `pump` with `initial = "on"`, and a `max_on` of ten seconds.
fn on_at_start() -> GpioSettings {
    let mut settings = pump(Some(SECOND * 10));
    settings.pins.get_mut("pump").unwrap().initial = ON;
    settings
}

fn restarted(settings: &GpioSettings, been_on: Duration) -> (Pins, Changes) {
    let changes = Changes::default();
    let been_on = BTreeMap::from([("pump".to_owned(), been_on), ("gone".to_owned(), SECOND)]);
    let settings = claimed_as(settings, &been_on);
    let recorder = Recorder { start: Instant::now(), changes: Arc::clone(&changes), broken: None };
    (in_test_time(recorder, &settings, &been_on), changes)
}

#[tokio::test(start_paused = true)]
async fn max_on_counts_on_after_a_restart() {
    let (pins, changes) = restarted(&on_at_start(), SECOND * 4);
    assert_eq!(pins.pins_on(), BTreeMap::from([("pump".to_owned(), SECOND * 4)]));
    sleep(SECOND).await;
    assert_eq!(pins.pins_on(), BTreeMap::from([("pump".to_owned(), SECOND * 5)]));
    sleep(SECOND * 60).await;
    assert_eq!(times(&changes), [(6000, OFF)]);
    assert_eq!(pins.pins_on(), BTreeMap::new());
    // If it is turned on again, it gets the full time.
    change(&pins, PinChange::Set(ON)).await;
    sleep(SECOND * 60).await;
    assert_eq!(times(&changes)[1..], [(61_000, ON), (71_000, OFF)]);
}

#[tokio::test]
async fn a_pin_that_was_on_for_all_of_max_on_starts_off() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("pins.json");
    let mut settings = on_at_start();
    settings.state_file = Some(path.clone());
    for (been_on, state) in [(SECOND * 10, "off"), (SECOND * 1000, "off"), (SECOND * 9, "on")] {
        let pins = Pins::open(&settings, &BTreeMap::from([("pump".to_owned(), been_on)])).unwrap();
        // The file shows how the backend claimed the pin, before anything else happened.
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{{\"pump\":\"{state}\"}}"));
        assert_eq!(pins.states()["pump"].to_string(), state);
    }
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_starts_off_has_all_of_max_on_at_its_first_on() {
    let (pins, changes) = restarted(&pump(Some(SECOND * 10)), SECOND * 9);
    assert_eq!(pins.pins_on(), BTreeMap::new());
    change(&pins, PinChange::Set(ON)).await;
    sleep(SECOND * 60).await;
    assert_eq!(times(&changes), [(0, ON), (10_000, OFF)]);
}

#[tokio::test(start_paused = true)]
async fn every_switch_of_a_pin_with_max_on_is_told() {
    let settings = settings(&[
        ("pump", pin(Some(SECOND * 10), OnExit::Set(OFF))),
        ("lamp", pin(None, OnExit::Set(OFF))),
    ]);
    let (pins, _) = recorded(&settings);
    // It is reported once at the start, so that the record of an earlier run is replaced.
    pins.switched().await;
    let quiet = || tokio::time::timeout(SECOND, pins.switched());
    try_change(&pins, "lamp", PinChange::Set(ON)).await.unwrap();
    quiet().await.unwrap_err();
    change(&pins, PinChange::Set(ON)).await;
    quiet().await.unwrap();
    quiet().await.unwrap_err();
    // A switch by `max_on` is reported, too.
    pins.switched().await;
    assert_eq!(pins.pins_on(), BTreeMap::new());
    let expected = BTreeMap::from([("lamp".to_owned(), ON), ("pump".to_owned(), OFF)]);
    assert_eq!(pins.states(), expected);
}

#[tokio::test(start_paused = true)]
async fn what_is_on_after_exit_is_known_before() {
    let ten = Some(SECOND * 10);
    let settings = settings(&[
        ("begins", pin(ten, OnExit::Set(ON))),
        ("ends", pin(ten, OnExit::Set(OFF))),
        ("free", pin(None, OnExit::Set(ON))),
        ("kept", pin(ten, OnExit::Keep)),
        ("off", pin(ten, OnExit::Keep)),
    ]);
    let (pins, _) = recorded(&settings);
    for name in ["ends", "kept"] {
        try_change(&pins, name, PinChange::Set(ON)).await.unwrap();
    }
    sleep(SECOND * 3).await;
    let on = |name: &str, seconds| (name.to_owned(), SECOND * seconds);
    assert_eq!(pins.pins_on(), BTreeMap::from([on("ends", 3), on("kept", 3)]));
    assert_eq!(pins.pins_on_after_exit(), BTreeMap::from([on("begins", 0), on("kept", 3)]));
}

fn disconnecting(state: PinState, seconds: u64) -> PinSettings {
    let on_disconnect = Some(OnDisconnect { state, after: Duration::from_secs(seconds) });
    PinSettings { on_disconnect, ..pin(None, OnExit::Set(OFF)) }
}

#[tokio::test(start_paused = true)]
async fn pins_take_their_state_when_the_hub_is_away_for_long_once_per_loss() {
    let settings = settings(&[("alarm", disconnecting(ON, 10)), ("pump", disconnecting(OFF, 5))]);
    let (pins, changes) = recorded(&settings);
    change(&pins, PinChange::Set(ON)).await;
    pins.hub_lost();
    sleep(SECOND * 2).await;
    // If it is told twice, the first time counts.
    pins.hub_lost();
    sleep(SECOND * 20).await;
    assert_eq!(states(&changes), [on(0, "pump"), off(5000, "pump"), on(10_000, "alarm")]);
    // If the pin is switched afterwards, it stays so until the next loss.
    change(&pins, PinChange::Set(ON)).await;
    sleep(SECOND * 60).await;
    assert_eq!(states(&changes)[3..], [on(22_000, "pump")]);
    pins.hub_back();
    pins.hub_lost();
    sleep(SECOND * 60).await;
    // The alarm is on already.
    assert_eq!(states(&changes)[4..], [off(87_000, "pump")]);
}

#[tokio::test(start_paused = true)]
async fn a_hub_that_is_back_in_time_changes_nothing() {
    let (pins, changes) = recorded(&settings(&[("pump", disconnecting(OFF, 5))]));
    change(&pins, PinChange::Set(ON)).await;
    for _ in 0..3 {
        pins.hub_lost();
        sleep(SECOND * 4).await;
        pins.hub_back();
        sleep(SECOND * 4).await;
    }
    assert_eq!(states(&changes), [on(0, "pump")]);
}

#[tokio::test(start_paused = true)]
async fn on_disconnect_keeps_to_interlocks() {
    let mut settings = gate();
    settings.pins.insert("close".to_owned(), disconnecting(ON, 5));
    let (pins, changes) = recorded(&settings);
    try_change(&pins, "open", PinChange::Set(ON)).await.unwrap();
    pins.hub_lost();
    sleep(SECOND * 60).await;
    assert_eq!(states(&changes), [on(0, "open")]);

    // If both are due at once, the one that goes off comes first.
    settings.pins.insert("open".to_owned(), disconnecting(OFF, 5));
    let (pins, changes) = recorded(&settings);
    try_change(&pins, "open", PinChange::Set(ON)).await.unwrap();
    pins.hub_lost();
    sleep(SECOND * 60).await;
    assert_eq!(states(&changes), [on(0, "open"), off(5000, "open"), on(5000, "close")]);
}

#[tokio::test(start_paused = true)]
async fn max_on_goes_on_while_the_hub_is_away() {
    let pump = PinSettings { max_on: Some(SECOND * 10), ..disconnecting(ON, 5) };
    let (pins, changes) = recorded(&settings(&[("pump", pump)]));
    pins.hub_lost();
    sleep(SECOND * 60).await;
    assert_eq!(states(&changes), [on(5000, "pump"), off(15_000, "pump")]);
}

#[tokio::test(start_paused = true)]
async fn one_pin_in_two_hands_ends_off_and_two_pins_go_their_own_ways() {
    let (pins, changes) = recorded(&gate());
    let (first, second, other) = tokio::join!(
        try_change(&pins, "open", PinChange::Pulse(SECOND * 2)),
        try_change(&pins, "open", PinChange::Blink { times: 2, period: SECOND * 2 }),
        try_change(&pins, "lamp", PinChange::Pulse(SECOND * 3)),
    );
    first.and(second).and(other).unwrap();
    let of = |name: &str| {
        let all = states(&changes);
        all.into_iter()
            .filter(|(_, pin, _)| pin == name)
            .map(|(time, _, state)| (time, state))
            .collect::<Vec<_>>()
    };
    assert_eq!(of("lamp"), [(0, ON), (3000, OFF)]);
    assert_eq!(of("open").last(), Some(&(3000, OFF)));
    assert_eq!(pins.states()["open"], OFF);
}

/// An event for the bank, from a caller or from time.
#[derive(Debug, Clone, Copy)]
enum Event {
    Set(usize, PinState),
    Toggle(usize),
    Lost,
    Back,
    Wait(u64),
    Pulse(usize, u64),
    Blink(usize, u64),
    /// The newest pulse or blink is cut off.
    CutOff,
    /// From now on this pin cannot be driven. With none, all pins work.
    Break(Option<usize>),
}

fn event() -> impl Strategy<Value = Event> {
    let pin = 0..NAMES.len();
    prop_oneof![
        4 => (pin.clone(), prop::sample::select(vec![ON, OFF])).prop_map(|(pin, state)| Event::Set(pin, state)),
        2 => pin.clone().prop_map(Event::Toggle),
        1 => Just(Event::Lost),
        1 => Just(Event::Back),
        3 => (1..15u64).prop_map(Event::Wait),
        2 => (pin.clone(), 1..9u64).prop_map(|(pin, seconds)| Event::Pulse(pin, seconds)),
        1 => (pin.clone(), 2..5u64).prop_map(|(pin, seconds)| Event::Blink(pin, seconds)),
        1 => Just(Event::CutOff),
        1 => prop::option::of(pin).prop_map(Event::Break),
    ]
}

const NAMES: [&str; 4] = ["a", "b", "c", "d"];

/// The lines themselves, and the pin that cannot be driven.
type Lines = Arc<Mutex<(BTreeMap<String, PinState>, Option<&'static str>)>>;

struct Hardware(Lines);

impl PinBackend for Hardware {
    fn look_up(&self, _: &str, _: &PinSettings) -> Result<(), GpioError> {
        Ok(())
    }

    fn claim(&mut self, pin: &str, settings: &PinSettings) -> Result<(), GpioError> {
        self.drive(pin, settings.initial)
    }

    fn release(&mut self, pin: &str) -> Result<(), GpioError> {
        self.0.lock().unwrap().0.remove(pin);
        Ok(())
    }

    fn drive(&self, pin: &str, state: PinState) -> Result<(), GpioError> {
        let mut lines = self.0.lock().unwrap();
        if lines.1 == Some(pin) {
            return Err(GpioError::Drive { pin: pin.to_owned(), state, reason: "broken".to_owned() });
        }
        lines.0.insert(pin.to_owned(), state);
        Ok(())
    }
}

proptest! {
    #[test]
    fn whatever_happens_no_two_pins_of_a_group_are_on_and_the_states_are_those_of_the_lines(
        events in proptest::collection::vec(event(), 0..60)
    ) {
        let mut settings = settings(&[
            ("a", PinSettings { max_on: Some(SECOND * 7), initial: ON, ..disconnecting(OFF, 9) }),
            ("b", disconnecting(ON, 5)),
            ("c", PinSettings { max_on: Some(SECOND * 3), ..disconnecting(OFF, 5) }),
            ("d", pin(None, OnExit::Set(ON))),
        ]);
        settings.interlocks = vec![vec!["a".to_owned(), "b".to_owned(), "d".to_owned()]];
        let lines = Lines::default();
        lines.lock().unwrap().0 = settings.pins.iter().map(|(name, pin)| (name.clone(), pin.initial)).collect();
        let mut bank = Bank::new(Box::new(Hardware(Arc::clone(&lines))), &settings, &BTreeMap::new());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        let check = |states: Option<BTreeMap<String, PinState>>| {
            let lines = lines.lock().unwrap();
            let on = ["a", "b", "d"].iter().filter(|name| lines.0[**name] == ON).count();
            prop_assert!(on <= 1, "{:?}", lines.0);
            if let Some(states) = states {
                prop_assert_eq!(&states, &lines.0);
            }
            Ok(())
        };
        runtime.block_on(async {
            let mut waits = Vec::new();
            for event in events {
                // A refusal must change nothing, which is checked below.
                match event {
                    Event::Set(pin, state) => drop(bank.set(NAMES[pin], state)),
                    Event::Toggle(pin) => drop(bank.toggle(NAMES[pin])),
                    Event::Lost => bank.hub_lost(Instant::now()),
                    Event::Back => bank.hub_back(),
                    Event::Wait(seconds) => tokio::time::advance(SECOND * u32::try_from(seconds).unwrap()).await,
                    Event::Pulse(pin, seconds) => {
                        let shape = WaveShape::pulse(Duration::from_secs(seconds));
                        waits.extend(bank.begin_wave(NAMES[pin], shape, Instant::now(), Instant::now() + SECOND * 7));
                    }
                    Event::Blink(pin, seconds) => {
                        let shape = WaveShape::blink(3, Duration::from_secs(seconds));
                        waits.extend(bank.begin_wave(NAMES[pin], shape, Instant::now(), Instant::now() + SECOND * 7));
                    }
                    Event::CutOff => {
                        waits.pop().into_iter().for_each(|(number, _)| bank.end_wave(number, Instant::now()));
                    }
                    Event::Break(pin) => lines.lock().unwrap().1 = pin.map(|pin| NAMES[pin]),
                }
                let next = bank.keep_guard(Instant::now());
                prop_assert!(next.is_none_or(|next| next > Instant::now()), "the guard would spin");
                check(Some(bank.states()))?;
            }
            drop(bank.leave());
            check(None)
        })?;
    }
}
