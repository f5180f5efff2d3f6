//! A panic anywhere: the pins are in their `on_exit` state, the log says where and why, and the process has ended.
//!
//! The agent runs in this test program, started once more: the shipped program has nothing that panics on purpose. The
//! registers and the character device are tested on the emulated Raspberry Pi, in the device build (tests/pi/).

use std::os::unix::process::ExitStatusExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Process, binary, wait_for_file, write_config};
use crate::log::full_pipe;

/// Where the agent finds its configuration, if this process is the one that panics.
const CONFIG: &str = "TEST_OF_A_PANIC";

/// How soon it must have ended, also on a busy machine.
const MOST: Duration = Duration::from_secs(5);

const PINS: &str = "[gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\n\
    [gpio.pins.pump]\nline = 1\ninitial = \"on\"\n\
    [gpio.pins.lamp]\nline = 2\non_exit = \"on\"\n\
    [gpio.pins.fan]\nline = 3\ninitial = \"on\"\non_exit = \"keep\"\n\
    [[rule]]\nname = \"pump\"\nwhen = { a = \"b\" }\ndo = [ { gpio = \"pump\", set = \"on\" } ]\n";
const AT_START: &str = r#"{"fan":"on","lamp":"off","pump":"on"}"#;
const AT_EXIT: &str = r#"{"fan":"on","lamp":"on","pump":"off"}"#;

#[test]
#[ignore = "the process that panics, which the other tests start"]
fn the_agent_that_panics() {
    let Some(config) = std::env::var_os(CONFIG) else { return };
    let defective = std::thread::Builder::new().name("defective".to_owned()).spawn(|| {
        std::io::stdin().read_line(&mut String::new()).expect("a line");
        panic!("a panic on purpose\x1b[31m");
    });
    defective.expect("a thread");
    c2d_agent::cli::run(["c2d-agent".into(), "run".into(), "-c".into(), config]);
}

/// An agent that panics when it is told. Its hub is away.
fn agent(dir: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("this program"));
    command.args(["--exact", "panics::the_agent_that_panics", "--ignored", "--nocapture"]);
    for (name, value) in binary().get_envs() {
        match value {
            Some(value) => command.env(name, value),
            None => command.env_remove(name),
        };
    }
    let hub = "HostName=localhost:1;DeviceId=d;SharedAccessKey=AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    command.env(CONFIG, write_config(dir, PINS)).env("C2D_DEVICE_CONNECTION_STRING", hub);
    command.stdin(Stdio::piped());
    command
}

fn panics(agent: &Process, dir: &Path) {
    let pins = dir.join("pins.json");
    wait_for_file(&pins, AT_START);
    let told = Instant::now();
    agent.tell("now");
    assert_eq!(agent.wait_exit().signal(), Some(Signal::ABORT.as_raw()));
    assert!(told.elapsed() < MOST, "the agent took {:?} to end", told.elapsed());
    assert_eq!(std::fs::read_to_string(pins).expect("written"), AT_EXIT);
}

#[test]
fn a_panic_leaves_the_pins_as_on_exit_says_and_tells_its_place_and_message() {
    let dir = tempfile::tempdir().expect("a directory");
    let agent = Process::spawn_with_stdin(&mut agent(dir.path()));
    panics(&agent, dir.path());
    let last_words = "c2d-agent: thread defective panicked at tests/it/panics.rs:";
    let told = agent.stderr.wait_for(last_words);
    assert!(told.contains(": a panic on purpose\\u{1b}[31m (a defect: the program ends"), "{told}");
    assert_eq!(agent.stderr.count("could not leave the pins"), 0);
}

#[test]
fn a_log_that_nobody_reads_holds_up_neither_the_pins_nor_the_end() {
    let dir = tempfile::tempdir().expect("a directory");
    let (_reader, full) = full_pipe();
    panics(&Process::spawn_with_stdin_and_stderr(&mut agent(dir.path()), full), dir.path());
}
