//! A dispatch loop that is held up: pins are still switched in time.
//!
//! The agent runs in this process, so that the test can hold up its only thread. The exact times are tested beside the
//! guard (`action::gpio::tests::on_time`). This test shows that the whole agent keeps them, to the second.

use std::path::PathBuf;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant, SystemTime};

use c2d_agent::agent::{self, AgentEvent};
use c2d_agent::config::{self, TwinPart};
use tokio_util::sync::CancellationToken;

use crate::harness::{Emulator, wait_for_file, write_config};

const PINS: &str = "[gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\n\
    [gpio.pins.door]\nline = 1\n\
    [gpio.pins.heater]\nline = 2\ninitial = \"on\"\non_disconnect = { state = \"off\", after = \"1s\" }\n\
    [gpio.pins.pump]\nline = 3\nmax_on = \"2s\"\n\
    [[rule]]\nname = \"both\"\nwhen = \"any\"\n\
    do = [{ gpio = \"pump\", set = \"on\" }, { gpio = \"door\", pulse = \"2s\" }]\n";
/// How long the loop is held up.
const HELD_UP: Duration = Duration::from_secs(6);

/// The channels between the test and the agent's thread.
struct Asked {
    subscribed: mpsc::SyncSender<()>,
    hold: tokio::sync::oneshot::Receiver<()>,
    stop: CancellationToken,
}

#[expect(clippy::disallowed_methods, reason = "to hold the one thread up is what is tested")]
fn hold_up() {
    thread::sleep(HELD_UP);
}

/// Runs an agent on this thread, and holds the thread up when asked to.
fn run(config: PathBuf, string: &str, ca_file: &str, asked: Asked) {
    let env = |name: &str| match name {
        "C2D_DEVICE_CONNECTION_STRING" => Some(string.to_owned()),
        "C2D_CA_FILE" => Some(ca_file.to_owned()),
        _ => None,
    };
    let config = config::load(&config, &env).expect("a valid configuration");
    let (observer, mut events) = tokio::sync::mpsc::channel(100);
    let settings = agent::AgentSettings {
        config,
        twin: TwinPart::Absent,
        clock: SystemTime::now,
        hurry: CancellationToken::new(),
        reload: None,
        observer: Some(observer),
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let hold = async {
        while !matches!(events.recv().await, Some(AgentEvent::Subscribed)) {}
        asked.subscribed.send(()).expect("the test waits");
        asked.hold.await.expect("the test asks");
        hold_up();
    };
    let (ended, ()) =
        runtime.block_on(async { tokio::join!(agent::run(settings, asked.stop.cancelled()), hold) });
    ended.expect("an end in good order");
}

#[test]
fn pins_are_switched_in_time_although_the_loop_is_held_up_and_the_hub_is_lost_meanwhile() {
    let emulator = Emulator::start();
    let dir = tempfile::tempdir().expect("a directory");
    let config = write_config(dir.path(), PINS);
    let (string, ca_file) = (emulator.device_string("dev1"), emulator.ca_file());
    // The channel carries one word.
    let (told, subscribed) = mpsc::sync_channel(1);
    let (hold_now, hold) = tokio::sync::oneshot::channel();
    let stop = CancellationToken::new();
    let asked = Asked { subscribed: told, hold, stop: stop.clone() };
    let agent = thread::spawn(move || run(config, &string, &ca_file.display().to_string(), asked));
    subscribed.recv_timeout(Duration::from_secs(60)).expect("a subscription");
    let file = dir.path().join("pins.json");
    emulator.send("dev1", &[]);
    wait_for_file(&file, r#"{"door":"on","heater":"on","pump":"on"}"#);
    hold_now.send(()).expect("the agent waits");
    let begin = Instant::now();
    emulator.process.kill();
    for state in [r#""door":"off""#, r#""pump":"off""#, r#""heater":"off""#] {
        wait_for_file(&file, state);
    }
    let took = begin.elapsed();
    assert!(took < HELD_UP - Duration::from_secs(1), "the pins were switched after {took:?}");
    stop.cancel();
    agent.join().expect("an agent");
}
