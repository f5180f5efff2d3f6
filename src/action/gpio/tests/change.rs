//! Other settings for claimed pins: what changes, what stays, and what is refused without any effect.

use super::*;
use crate::config::OnDisconnect;

const SECOND: Duration = Duration::from_secs(1);

fn pins(names: &[(&str, u32, PinSettings)]) -> GpioSettings {
    let numbered = names
        .iter()
        .map(|(name, line, pin)| (*name, PinSettings { line: LineName::Number(*line), ..pin.clone() }));
    settings(&numbered.collect::<Vec<_>>())
}

fn off() -> PinSettings {
    pin(None, OnExit::Set(OFF))
}

async fn set(pins: &Pins, name: &str, state: PinState) {
    let stop = CancellationToken::new();
    pins.change(name, PinChange::Set(state), &Limit::new(SECOND * 3600, &stop)).await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn max_on_that_is_new_counts_from_when_the_pin_was_turned_on() {
    let (all, changes) = recorded(&pump(None));
    set(&all, "pump", ON).await;
    sleep(SECOND * 7).await;
    all.change_settings(&pump(Some(SECOND * 10))).unwrap();
    sleep(SECOND * 60).await;
    assert_eq!(times(&changes), [(0, ON), (10_000, OFF)]);
    set(&all, "pump", ON).await;
    sleep(SECOND * 9).await;
    all.change_settings(&pump(None)).unwrap();
    sleep(SECOND * 60).await;
    assert_eq!(times(&changes).len(), 3, "without max_on it stays on");
    // The pin was on for longer than that already.
    all.change_settings(&pump(Some(SECOND))).unwrap();
    sleep(SECOND).await;
    assert_eq!(times(&changes).last().unwrap().1, OFF);
}

#[tokio::test(start_paused = true)]
async fn on_disconnect_that_is_new_counts_from_when_the_hub_was_lost() {
    let (all, changes) = recorded(&pump(None));
    set(&all, "pump", ON).await;
    all.hub_lost();
    sleep(SECOND * 4).await;
    let mut other = pump(None);
    let on_disconnect = Some(OnDisconnect { state: OFF, after: SECOND * 5 });
    other.pins.get_mut("pump").unwrap().on_disconnect = on_disconnect;
    all.change_settings(&other).unwrap();
    sleep(SECOND * 60).await;
    assert_eq!(times(&changes), [(0, ON), (5000, OFF)]);
}

#[tokio::test(start_paused = true)]
async fn pins_come_and_go_around_one_that_stays() {
    let exits_on = pin(None, OnExit::Set(ON));
    let (all, changes) = recorded(&pins(&[("goes", 1, exits_on), ("stays", 2, off())]));
    set(&all, "stays", ON).await;
    let new = PinSettings { initial: ON, ..off() };
    all.change_settings(&pins(&[("stays", 2, off()), ("comes", 3, new)])).unwrap();
    assert_eq!(states_of(&changes), [("stays", ON), ("comes", ON), ("goes", ON)]);
    assert_eq!(
        all.states().into_iter().collect::<Vec<_>>(),
        [("comes".to_owned(), ON), ("stays".to_owned(), ON)]
    );
    all.close().await.unwrap();
    assert_eq!(states_of(&changes)[3..], [("comes", OFF), ("stays", OFF)]);
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_cannot_be_claimed_changes_nothing() {
    let (all, changes) = recorded_with(&pins(&[("stays", 2, off()), ("goes", 1, off())]), Some("zbroken"));
    set(&all, "goes", ON).await;
    let wanted = pins(&[("stays", 2, off()), ("also", 3, off()), ("zbroken", 4, off())]);
    let refused = all.change_settings(&wanted).unwrap_err();
    let refused: Vec<String> = refused.iter().map(ToString::to_string).collect();
    assert_eq!(refused, ["pin zbroken could not be turned off: the wire is cut"]);
    // The pin that was claimed before the error is given back.
    assert_eq!(states_of(&changes), [("goes", ON), ("also", OFF), ("also", OFF)]);
    assert_eq!(all.states().keys().collect::<Vec<_>>(), ["goes", "stays"]);
    set(&all, "goes", OFF).await;
}

#[tokio::test(start_paused = true)]
async fn a_line_that_does_not_exist_is_found_before_any_pin_moves() {
    let (all, changes) = recorded(&pins(&[("stays", 2, off())]));
    let on = PinSettings { initial: ON, ..off() };
    let wanted = pins(&[("stays", 2, off()), ("comes", 3, on), ("wrong", 99, off())]);
    let refused = all.change_settings(&wanted).unwrap_err();
    let refused: Vec<String> = refused.iter().map(ToString::to_string).collect();
    assert_eq!(refused, ["pin wrong: line 99 does not exist on the recorder: compare with `gpioinfo`"]);
    assert_eq!(states_of(&changes), []);
}

#[tokio::test(start_paused = true)]
async fn pins_of_another_backend_are_taken_once_all_are_given_back() {
    let (all, _) = recorded(&pump(None));
    let directory = tempfile::tempdir().unwrap();
    let state_file = Some(directory.path().join("pins.json"));
    let other = GpioSettings { state_file, ..pump(None) };
    let refused = all.change_settings(&other).unwrap_err();
    assert!(refused[0].to_string().contains("restart the agent"), "{refused:?}");
    all.change_settings(&GpioSettings::default()).unwrap();
    all.change_settings(&other).unwrap();
    set(&all, "pump", ON).await;
    let written = std::fs::read_to_string(other.state_file.unwrap()).unwrap();
    assert_eq!(written, r#"{"pump":"on"}"#);
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_goes_in_the_middle_of_a_pulse_is_not_left_on() {
    let goes = pin(None, OnExit::Keep);
    let (all, changes) = recorded(&pins(&[("goes", 1, goes), ("stays", 2, off())]));
    let stop = CancellationToken::new();
    let limit = Limit::new(SECOND * 3600, &stop);
    let pulse = all.change("goes", PinChange::Pulse(SECOND * 60), &limit);
    let reload = async {
        sleep(SECOND).await;
        all.change_settings(&pins(&[("stays", 2, off())])).unwrap();
    };
    let (pulse, ()) = tokio::join!(pulse, reload);
    assert!(matches!(pulse, Err(ChangeError::Gpio(GpioError::UnknownPin { .. }))));
    assert_eq!(states_of(&changes), [("goes", ON), ("goes", OFF)]);
    // If a pin was turned on to stay on, it is kept.
    let kept = pins(&[("goes", 1, pin(None, OnExit::Keep)), ("stays", 2, off())]);
    all.change_settings(&kept).unwrap();
    set(&all, "goes", ON).await;
    all.change_settings(&pins(&[("stays", 2, off())])).unwrap();
    assert_eq!(states_of(&changes)[2..], [("goes", OFF), ("goes", ON)]);
}

#[tokio::test(start_paused = true)]
async fn a_pin_that_goes_is_not_turned_on_beside_one_that_it_is_interlocked_with() {
    let exits_on = pin(None, OnExit::Set(ON));
    let pair = |settings: GpioSettings| {
        let group = settings.pins.keys().cloned().collect();
        GpioSettings { interlocks: vec![group], ..settings }
    };
    let (all, changes) = recorded(&pair(pins(&[("goes", 1, exits_on.clone()), ("stays", 2, off())])));
    set(&all, "stays", ON).await;
    all.change_settings(&pins(&[("stays", 2, off())])).unwrap();
    assert_eq!(states_of(&changes), [("stays", ON)]);
    // Both pins are removed. The one that is on goes off first.
    let (all, changes) = recorded(&pair(pins(&[("goes", 1, exits_on), ("stays", 2, off())])));
    set(&all, "stays", ON).await;
    all.change_settings(&GpioSettings::default()).unwrap();
    assert_eq!(states_of(&changes), [("stays", ON), ("stays", OFF), ("goes", ON)]);
}

#[tokio::test(start_paused = true)]
async fn max_on_of_the_first_pins_is_noted_like_that_of_any_other() {
    let (all, _) = recorded(&settings(&[]));
    let on = PinSettings { initial: ON, ..pin(Some(SECOND * 60), OnExit::Keep) };
    all.change_settings(&settings(&[("pump", on)])).unwrap();
    tokio::time::timeout(SECOND, all.switched()).await.expect("somebody is to note since when it is on");
}

fn states_of(changes: &Changes) -> Vec<(&'static str, PinState)> {
    let known = ["stays", "goes", "comes", "also"];
    let changes = changes.lock().unwrap();
    let named = |name: &String| *known.iter().find(|known| **known == name).unwrap();
    changes.iter().map(|(_, name, state)| (named(name), *state)).collect()
}
