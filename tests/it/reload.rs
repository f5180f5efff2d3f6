//! SIGHUP: the agent takes another configuration between two messages, or refuses it and keeps the old one.

use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::harness::{
    Agent, DEADLINE, Emulator, binary, program, run, skip, wait_for_file, wait_for_status, write_config,
};

/// Pin `pump`, and a rule that sets it.
const PUMP: &str = "[gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\n[gpio.pins.pump]\nline = 1\n\
    [[rule]]\nname = \"pump\"\nwhen = { pump = { present = true } }\ndo = [ { gpio = \"pump\", set = \"{pump}\" } ]\n";

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// Sends a message and waits until the agent has said what happened to it.
fn send(emulator: &Emulator, agent: &Agent, id: &str, property: &str) -> String {
    let sent = emulator.send("dev1", &["--message-id", id, "--property", property]);
    assert!(sent.status.success(), "{sent:?}");
    agent.process.stderr.wait_until(id, |lines| {
        let told = format!("message_id=\"{id}\"");
        lines.iter().find(|line| line.contains(&told) && line.contains("outcome=")).cloned()
    })
}

/// Writes another configuration, sends SIGHUP, and waits for the `n`-th line with the result.
fn reload(agent: &Agent, text: &str, n: usize, expected: &str) {
    write_config(&agent.dir, text);
    agent.process.signal(Signal::HUP);
    agent.process.stderr.wait_for_nth(expected, n);
}

const TAKEN: &str = "applied the new configuration";
const REFUSED: &str = "the new configuration was refused: the agent keeps the old one";

fn pins(dir: &Path) -> String {
    std::fs::read_to_string(dir.join("pins.json")).expect("the pins' states")
}

#[test]
fn new_rules_and_pins_count_from_the_next_message_and_pins_keep_their_state() {
    let (emulator, dir) = (Emulator::start(), dir());
    let agent = Agent::start(&emulator, "dev1", dir.path(), PUMP);
    send(&emulator, &agent, "1", "pump=on");
    let switched = agent.process.stderr.count("switched simulated pin");
    let more = PUMP.replace(
        "line = 1\n",
        "line = 1\non_exit = \"keep\"\n[gpio.pins.lamp]\nline = 2\ninitial = \"on\"\n",
    ) + "[[rule]]\nname = \"lamp\"\nwhen = { lamp = { present = true } }\ndo = [ { gpio = \"lamp\", set = \"{lamp}\" } ]\n";
    assert!(send(&emulator, &agent, "2", "lamp=off").contains("unmatched"));
    reload(&agent, &more, 1, TAKEN);
    assert_eq!(pins(dir.path()), r#"{"lamp":"on","pump":"on"}"#);
    assert_eq!(
        agent.process.stderr.count("switched simulated pin"),
        switched + 1,
        "only the lamp was switched"
    );
    assert!(send(&emulator, &agent, "3", "lamp=off").contains("succeeded"));
    assert_eq!(pins(dir.path()), r#"{"lamp":"off","pump":"on"}"#);
    // A removed pin goes into its on_exit state, and its line is released.
    let fewer = more.replace("[gpio.pins.lamp]\nline = 2\ninitial = \"on\"\n", "");
    let fewer = &fewer[..fewer.find("[[rule]]\nname = \"lamp\"").expect("the rule")];
    reload(&agent, fewer, 2, TAKEN);
    assert_eq!(pins(dir.path()), r#"{"pump":"on"}"#);
    assert!(send(&emulator, &agent, "4", "lamp=off").contains("unmatched"));
    assert_eq!(agent.process.stderr.count("subscribed"), 1, "the connection was not touched");
    assert_eq!(agent.process.terminate(), Some(0));
    assert_eq!(pins(dir.path()), r#"{"pump":"on"}"#, "on_exit = \"keep\" was taken up");
}

#[test]
fn a_configuration_with_problems_is_refused_with_all_of_them() {
    let (emulator, dir) = (Emulator::start(), dir());
    let agent = Agent::start(&emulator, "dev1", dir.path(), PUMP);
    send(&emulator, &agent, "1", "pump=on");
    let wrong = PUMP.replace("line = 1", "line = -1").replace("when = {", "whenn = {");
    reload(&agent, &wrong, 1, REFUSED);
    let log = agent.process.stderr.text();
    for problem in ["config.toml:5:8: line is not a line number", "did you mean when?"] {
        assert!(log.contains(problem), "{problem} is not in:\n{log}");
    }
    assert!(send(&emulator, &agent, "2", "pump=toggle").contains("succeeded"));
    assert_eq!(pins(dir.path()), r#"{"pump":"off"}"#);
    let status = run(binary().arg("status").arg("-c").arg(write_config(dir.path(), PUMP)));
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(status.contains("the last one was refused"), "{status}");
    reload(&agent, PUMP, 1, TAKEN);
    let status = run(binary().arg("status").arg("-c").arg(write_config(dir.path(), PUMP)));
    let status = String::from_utf8_lossy(&status.stdout).into_owned();
    assert!(!status.contains("refused") && status.contains("while running"), "{status}");
}

#[test]
fn what_cannot_change_while_the_agent_runs_is_refused_whole() {
    let (emulator, dir) = (Emulator::start(), dir());
    let agent = Agent::start(&emulator, "dev1", dir.path(), PUMP);
    send(&emulator, &agent, "1", "pump=on");
    let cases = [
        (
            PUMP.to_owned() + "[inbox]\npath = \"inbox.journal\"\nkeep = \"1h\"\n",
            "[inbox] cannot be changed while the agent runs",
        ),
        (PUMP.replace("line = 1", "line = 3"), "pin pump is claimed with another line or active level"),
        (PUMP.replace("pump]", "motor]").replace("gpio = \"pump\"", "gpio = \"motor\""), "its line is claimed as pin pump"),
        (PUMP.replace("pins.json", "others.json"), "backend, chip and state_file in [gpio] cannot be changed"),
        (
            PUMP.replace("[gpio.pins.pump]", "interlock = [[\"pump\", \"lamp\"]]\n[gpio.pins.lamp]\nline = 2\ninitial = \"on\"\n[gpio.pins.pump]"),
            "pins pump and lamp are both on",
        ),
    ];
    for (n, (text, sentence)) in cases.iter().enumerate() {
        let text = text.replace("name = \"pump\"", "name = \"renamed\"");
        reload(&agent, &text, n + 1, REFUSED);
        assert!(agent.process.stderr.text().contains(sentence), "{}", agent.process.stderr.text());
    }
    assert_eq!(pins(dir.path()), r#"{"pump":"on"}"#);
    let line = send(&emulator, &agent, "2", "pump=off");
    assert!(line.contains("rule=\"pump\"") && line.contains("succeeded"), "{line}");
}

/// A rule whose program waits for the file `go`, and writes the version of its rules.
fn waiting(version: &str, lane: &str) -> String {
    format!(
        "[[rule]]\nname = \"wait\"\nlane = \"{lane}\"\nwhen = {{ wait = {{ present = true }} }}\n\
         do = [ {{ shell = '''cd \"$C2D_PROPERTY_WAIT\"; echo \"began $C2D_MESSAGE_ID {version}\" >> log; \
         while [ ! -e go ]; do sleep 0.02; done; echo \"ended $C2D_MESSAGE_ID {version}\" >> log''' }} ]\n"
    )
}

#[test]
fn a_reload_in_the_middle_of_an_action_lets_it_end_and_plans_what_waits_anew() {
    let (emulator, dir) = (Emulator::start(), dir());
    let agent = Agent::start(&emulator, "dev1", dir.path(), &waiting("old", "one"));
    let property = format!("wait={}", dir.path().display());
    let ids = ["1", "2", "3"];
    for id in ids {
        emulator.send("dev1", &["--message-id", id, "--property", &property]);
    }
    wait_for_file(&dir.path().join("log"), "began 1 old");
    // The agent has all three messages.
    wait_for_status(dir.path(), "1 running, 2 waiting");
    reload(&agent, &waiting("new", "other"), 1, TAKEN);
    agent.process.stderr.wait_for("planned_anew=2");
    // The other lane is free, so the second message begins beside the first.
    wait_for_file(&dir.path().join("log"), "began 2 new");
    std::fs::write(dir.path().join("go"), "").expect("written");
    // Each message must end; the first one may be slower than the others.
    agent.process.stderr.wait_until("three outcomes", |lines| {
        (lines.iter().filter(|line| line.contains("outcome=succeeded")).count() == 3).then_some(())
    });
    let log = std::fs::read_to_string(dir.path().join("log")).expect("the log");
    let mut lines: Vec<&str> = log.lines().collect();
    let place = |line: &str| lines.iter().position(|found| *found == line);
    assert!(place("ended 2 new") < place("began 3 new"), "one after the other in their lane: {log}");
    lines.sort_unstable();
    let expected = ["began 1 old", "began 2 new", "began 3 new", "ended 1 old", "ended 2 new", "ended 3 new"];
    assert_eq!(lines, expected);
}

#[test]
fn a_message_whose_rule_has_gone_is_not_lost() {
    let (emulator, dir) = (Emulator::start(), dir());
    let late = waiting("old", "one").replace("wait = {", "late = {").replace("\"wait\"", "\"late\"");
    let both = late.replace("lane =", "settle = \"on-accept\"\nlane =") + &waiting("old", "one");
    let agent = Agent::start(&emulator, "dev1", dir.path(), &both);
    let property = format!("wait={}", dir.path().display());
    emulator.send("dev1", &["--message-id", "1", "--property", &property]);
    wait_for_file(&dir.path().join("log"), "began 1 old");
    emulator.send("dev1", &["--message-id", "2", "--property", &property]);
    emulator.send("dev1", &["--message-id", "3", "--property", "late=1", "--property", &property]);
    let config = dir.path().join("config.toml");
    let list = || {
        let listed = run(binary().arg("inbox").arg("list").arg("--json").arg("-c").arg(&config));
        String::from_utf8_lossy(&listed.stdout).into_owned()
    };
    let end = Instant::now() + DEADLINE;
    while !list().contains("\"3\"") {
        assert!(Instant::now() < end, "{}", list());
    }
    reload(&agent, PUMP, 1, TAKEN);
    let told = |id: &str, what: &str| {
        agent.process.stderr.wait_until(what, |lines| {
            let id = format!("message_id=\"{id}\"");
            lines.iter().find(|line| line.contains(&id) && line.contains(what)).cloned()
        })
    };
    told("2", "unmatched: no rule matches it");
    // The message was completed at the hub when it was accepted, so only the inbox has it.
    told("3", "no rule matches it any more");
    std::fs::write(dir.path().join("go"), "").expect("written");
    told("1", "outcome=succeeded");
    reload(&agent, &both, 2, TAKEN);
    let retried = run(binary().args(["inbox", "retry", "3"]).arg("-c").arg(&config));
    assert!(retried.status.success(), "{retried:?}");
    told("3", "outcome=succeeded");
}

#[test]
fn a_reload_starts_no_more_programs_than_there_may_be() {
    let (emulator, dir) = (Emulator::start(), dir());
    let fails_first = "cd \"$C2D_PROPERTY_AGAIN\"; echo attempt >> log; [ -e failed ] && exit; \
        while [ ! -e fail ]; do sleep 0.02; done; touch failed; exit 1";
    let text = format!(
        "[actions]\nmax_children = 1\n[[rule]]\nname = \"again\"\nattempts = 2\ntimeout = \"10s\"\nbackoff = \"10ms\"\n\
         when = {{ again = {{ present = true }} }}\ndo = [ {{ shell = '''{fails_first}''' }} ]\n{}",
        waiting("old", "one")
    );
    let agent = Agent::start(&emulator, "dev1", dir.path(), &text);
    let here = dir.path().display();
    for (id, property) in [("1", "again"), ("2", "wait")] {
        emulator.send("dev1", &["--message-id", id, "--property", &format!("{property}={here}")]);
    }
    wait_for_status(dir.path(), "1 running, 1 waiting");
    std::fs::write(dir.path().join("fail"), "").expect("written");
    // This message has the only place while the first one waits for its next attempt, which soon needs the place.
    wait_for_file(&dir.path().join("log"), "began 2 old");
    for n in 1..=10 {
        reload(&agent, &text, n, TAKEN);
    }
    let log = std::fs::read_to_string(dir.path().join("log")).expect("a log");
    assert_eq!(log, "attempt\nbegan 2 old\n", "the second attempt waits for a place");
    std::fs::write(dir.path().join("go"), "").expect("written");
    let log = wait_for_file(&dir.path().join("log"), "old\nattempt");
    assert_eq!(log, "attempt\nbegan 2 old\nended 2 old\nattempt\n");
}

#[test]
fn reloads_in_a_stream_of_messages_neither_lose_nor_repeat_one() {
    let (emulator, dir) = (Emulator::start(), dir());
    let rules = |version: u32| {
        format!(
            "[[rule]]\nname = \"count\"\nlane = \"lane{}\"\nwhen = {{ n = {{ present = true }} }}\n\
             do = [ {{ shell = '''echo \"$C2D_PROPERTY_N\" >> {}''' }} ]\n",
            version % 2,
            dir.path().join("counted").display()
        )
    };
    let agent = Agent::start(&emulator, "dev1", dir.path(), &rules(0));
    for round in 1..=20 {
        for n in 0..2 {
            let property = format!("n={round}-{n}");
            let sent = emulator.send("dev1", &["--property", &property]);
            assert!(sent.status.success(), "{sent:?}");
        }
        write_config(dir.path(), &rules(round));
        agent.process.signal(Signal::HUP);
    }
    agent.process.stderr.wait_until("40 outcomes", |lines| {
        (lines.iter().filter(|line| line.contains("outcome=succeeded")).count() == 40).then_some(())
    });
    let counted = std::fs::read_to_string(dir.path().join("counted")).expect("counted");
    let mut counted: Vec<&str> = counted.lines().collect();
    counted.sort_unstable();
    let all = counted.len();
    counted.dedup();
    assert_eq!((all, counted.len()), (40, 40), "each message was acted on once");
    assert_eq!(agent.process.stderr.count("subscribed"), 1);
}

/// Starts the agent with its connection string in a file.
fn start_with_file(emulator: &Emulator, dir: &Path, connection_string: &str) -> Agent {
    std::fs::write(dir.join("secret"), connection_string).expect("written");
    let text = format!("[device]\nconnection_string_file = \"secret\"\n{PUMP}");
    let config = write_config(dir, &text);
    let mut command = binary();
    command.arg("run").arg("-c").arg(&config).env("C2D_CA_FILE", emulator.ca_file());
    Agent { process: crate::harness::Process::spawn(&mut command), dir: dir.to_owned() }
}

#[test]
fn a_new_secret_is_signed_in_with_and_a_wrong_one_does_not_end_the_agent() {
    let (emulator, dir) = (Emulator::start(), dir());
    let right = emulator.device_string("dev1");
    let agent = start_with_file(&emulator, dir.path(), &right);
    agent.process.stderr.wait_for("subscribed");
    // The secret is the same, so there is no reason to sign in again.
    agent.process.signal(Signal::HUP);
    agent.process.stderr.wait_for("signs_in_anew=false");
    let key = right.rfind("SharedAccessKey=").expect("a key");
    std::fs::write(dir.path().join("secret"), format!("{}SharedAccessKey=AAAA", &right[..key]))
        .expect("written");
    agent.process.signal(Signal::HUP);
    agent.process.stderr.wait_for("signs_in_anew=true");
    agent.process.stderr.wait_for("not connected");
    // The agent waits for its next attempt. A reload with the right secret ends the wait.
    std::fs::write(dir.path().join("secret"), &right).expect("written");
    agent.process.signal(Signal::HUP);
    agent.process.stderr.wait_for_nth("subscribed", 2);
    assert!(send(&emulator, &agent, "1", "pump=on").contains("succeeded"));
    // A missing secret is refused like any other problem.
    std::fs::remove_file(dir.path().join("secret")).expect("removed");
    agent.process.signal(Signal::HUP);
    agent.process.stderr.wait_for(REFUSED);
    assert!(agent.process.stderr.text().contains("there is no such file"), "{}", agent.process.stderr.text());
    assert!(send(&emulator, &agent, "2", "pump=off").contains("succeeded"));
}

#[test]
fn metrics_come_go_and_move_with_a_reload() {
    let (emulator, dir) = (Emulator::start(), dir());
    let agent = Agent::start(&emulator, "dev1", dir.path(), PUMP);
    let metrics = |port: &str| format!("{PUMP}[metrics]\nlisten = \"127.0.0.1:{port}\"\n");
    reload(&agent, &metrics("0"), 1, TAKEN);
    let line = agent.process.stderr.wait_for("metrics are served");
    let address = line.split("address=").nth(1).expect("an address").trim();
    std::net::TcpStream::connect(address).expect("metrics are served");
    reload(&agent, PUMP, 2, TAKEN);
    let end = Instant::now() + DEADLINE;
    while std::net::TcpStream::connect(address).is_ok() {
        assert!(Instant::now() < end, "the port stays open");
        std::thread::park_timeout(Duration::from_millis(5)); // a port that is closed has no event: poll
    }
    assert!(send(&emulator, &agent, "1", "pump=on").contains("succeeded"));
}

#[test]
fn a_terminal_that_is_closed_ends_the_agent_with_pins_safe() {
    let Some(python) = program("python3") else {
        return skip("a closed terminal ends the agent", "python3 is not installed");
    };
    let (emulator, dir) = (Emulator::start(), dir());
    let config = write_config(dir.path(), &PUMP.replace("line = 1\n", "line = 1\ninitial = \"on\"\n"));
    // The agent leads the session of its own terminal. The terminal's last open end is closed after pins are claimed.
    let script = "import os, pty, sys, time\n\
        pid, terminal = pty.fork()\n\
        if pid == 0: os.execv(sys.argv[1], [sys.argv[1], 'run', '-c', sys.argv[2]])\n\
        seen = b''\n\
        while b'subscribed' not in seen: seen += os.read(terminal, 4096)\n\
        os.close(terminal)\n\
        sys.exit(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))\n";
    let begin = Instant::now();
    let mut command = std::process::Command::new(python);
    command.arg("-c").arg(script).arg(env!("CARGO_BIN_EXE_c2d-agent")).arg(&config);
    command.env("C2D_DEVICE_CONNECTION_STRING", emulator.device_string("dev1"));
    command.env("C2D_CA_FILE", emulator.ca_file());
    let ended = run(&mut command);
    assert_eq!(ended.status.code(), Some(0), "{ended:?}");
    assert!(begin.elapsed() < Duration::from_secs(15), "it took {:?}", begin.elapsed());
    assert_eq!(pins(dir.path()), r#"{"pump":"off"}"#);
}
