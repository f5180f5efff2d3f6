//! `c2d-agent healthcheck`, as a container engine runs it.

use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{Agent, DEADLINE, Emulator, binary, run, wait_for_status};

const RULE: &str = "[[rule]]\nname = \"any\"\nwhen = \"any\"\ndo = [ { run = [\"/bin/true\"] } ]\n";

fn check(dir: &Path, arguments: &[&str]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } =
        run(binary().arg("healthcheck").arg("-c").arg(dir.join("config.toml")).args(arguments));
    (status.code(), [stdout, stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat())
}

#[test]
fn an_agent_is_healthy_while_its_loop_answers_with_a_hub_or_without() {
    let dir = tempfile::tempdir().expect("a directory");
    let emulator = Emulator::start();
    let agent = Agent::start(&emulator, "dev1", dir.path(), RULE);
    wait_for_status(dir.path(), " connected ");
    assert_eq!(check(dir.path(), &[]), (Some(0), "healthy: connected\n".to_owned()));
    drop(emulator);
    wait_for_status(dir.path(), "NOT CONNECTED");
    assert_eq!(check(dir.path(), &[]), (Some(0), "healthy: not connected, trying again\n".to_owned()));
    let (code, said) = check(dir.path(), &["--max-offline", "1ms"]);
    assert_eq!(code, Some(1));
    assert!(said.contains("not healthy: no connection to the hub"), "{said}");
    assert_eq!(check(dir.path(), &["--max-offline", "1h"]).0, Some(0));

    agent.process.signal(Signal::STOP);
    let begin = Instant::now();
    let (code, said) = check(dir.path(), &["--timeout", "300ms"]);
    assert_eq!(
        (code, said.as_str()),
        (Some(1), "c2d-agent: not healthy: the agent did not answer within 300ms\n")
    );
    assert!(begin.elapsed() < DEADLINE / 3, "it took {:?}", begin.elapsed());
    agent.process.signal(Signal::CONT);
    assert_eq!(agent.process.terminate(), Some(0));
    let (code, said) = check(dir.path(), &[]);
    assert_eq!(code, Some(1));
    assert!(said.contains("no agent runs"), "{said}");
}

#[test]
fn a_configuration_that_cannot_be_read_is_told_apart() {
    let dir = tempfile::tempdir().expect("a directory");
    let begin = Instant::now();
    let (code, said) = check(dir.path(), &[]);
    assert_eq!(code, Some(2), "{said}");
    assert!(begin.elapsed() < Duration::from_secs(5));
}
