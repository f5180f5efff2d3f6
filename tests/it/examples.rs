//! The recipes in `examples/`: each is checked in its place with its own tests. A real agent runs a copy, and gets the
//! messages of the recipe's page.
//!
//! Owns: what each recipe must do. Must not know: how rules, pins and programs work.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::process::Signal;

use crate::harness::{Emulator, Process, binary, run, wait_for_file};
use crate::invoke_method::back_end;

/// All recipes, and how many tests each has.
const EXAMPLES: [(&str, usize); 9] = [
    ("alarm-lamp", 4),
    ("backup", 3),
    ("boiler", 3),
    ("garage-door", 4),
    ("json-body", 4),
    ("relay-pulse", 2),
    ("report-outcomes", 3),
    ("restart-service", 2),
    ("twin-rules", 2),
];

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("examples")
}

/// A copy of an example that an agent of the emulator runs.
struct Example {
    emulator: Emulator,
    agent: Process,
    dir: tempfile::TempDir,
}

impl Example {
    fn start(name: &str) -> Self {
        Self::start_with(name, &[], "")
    }

    /// Starts a copy in which each path of `moved` leads below the copy's own directory. A drop-in has what a test
    /// needs: simulated pins, its own inbox, and `more`.
    fn start_with(name: &str, moved: &[(&str, &str)], more: &str) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        for file in fs::read_dir(folder().join(name)).expect("an example") {
            let file = file.expect("readable").path();
            let mut text = fs::read_to_string(&file).expect("a text");
            for (path, own) in moved {
                assert!(!file.ends_with("config.toml") || text.contains(path), "{name} has no {path}");
                text = text.replace(path, &dir.path().join(own).display().to_string());
            }
            fs::write(dir.path().join(file.file_name().expect("a name")), text).expect("written");
        }
        let drop_in = format!(
            "[inbox]\npath = \"inbox.journal\"\n[gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\n{more}"
        );
        fs::create_dir(dir.path().join("config.d")).expect("a directory");
        fs::write(dir.path().join("config.d/test.toml"), drop_in).expect("written");
        let emulator = Emulator::start_with(&["--device", "pi-01"]);
        let agent =
            Process::spawn(Self::command(&emulator, dir.path(), &["run"]).arg("-c").arg("config.toml"));
        agent.stderr.wait_for("subscribed");
        Self { emulator, agent, dir }
    }

    /// A command with the configuration of the copy.
    fn command(emulator: &Emulator, dir: &Path, arguments: &[&str]) -> Command {
        let mut command = binary();
        command.args(arguments).current_dir(dir);
        command.env("C2D_DEVICE_CONNECTION_STRING", emulator.device_string("pi-01"));
        command.env("C2D_CA_FILE", emulator.ca_file());
        command
    }

    /// Runs the shell blocks of the example's page, as a back end. Returns what they print.
    fn send(&self) -> String {
        let page = fs::read_to_string(self.dir.path().join("README.md")).expect("a page");
        let mut blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().expect("a block"));
        let first = blocks.next().expect("a page says how to send");
        self.shell(&blocks.fold(first.to_owned(), |text, block| text + block))
    }

    fn shell(&self, text: &str) -> String {
        let binary = Path::new(env!("CARGO_BIN_EXE_c2d-agent"));
        let mut path =
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>();
        path.insert(0, binary.parent().expect("a directory").to_owned());
        let mut shell = Command::new("bash");
        shell.args(["-e", "-c", text]).current_dir(self.dir.path()).env_clear();
        shell.env("PATH", std::env::join_paths(path).expect("a path"));
        shell.env("C2D_SERVICE_CONNECTION_STRING", self.emulator.service_string());
        shell.env("C2D_CA_FILE", self.emulator.ca_file());
        shell.env("C2D_HTTPS_PORT", self.emulator.https.port().to_string());
        let output = run(&mut shell);
        let [told, said] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
        assert!(
            output.status.success(),
            "{text}: {:?}\n{told}\n{said}\n{}",
            output.status,
            self.agent.stderr.text()
        );
        format!("{told}{said}")
    }

    /// Waits until the states of the pins contain `part`.
    fn pins(&self, part: &str) {
        wait_for_file(&self.dir.path().join("pins.json"), part);
    }

    /// How the messages ended, as the inbox says.
    fn inbox(&self) -> String {
        let mut list =
            Self::command(&self.emulator, self.dir.path(), &["inbox", "list", "--json", "-c", "config.toml"]);
        String::from_utf8_lossy(&run(&mut list).stdout).into_owned()
    }
}

#[test]
fn each_example_is_valid_and_passes_its_own_tests() {
    let mut found: Vec<_> =
        fs::read_dir(folder()).expect("examples").map(|entry| entry.expect("readable").path()).collect();
    found.retain(|path| path.is_dir());
    found.sort();
    let names: Vec<_> = found.iter().filter_map(|path| path.file_name()?.to_str()).collect();
    assert_eq!(names, EXAMPLES.map(|(name, _)| name), "each has a test of its own here");
    for (name, tests) in EXAMPLES {
        let config = folder().join(name).join("config.toml");
        for file in ["config.toml", "config.test.toml"] {
            let text = fs::read_to_string(folder().join(name).join(file)).expect("a file");
            assert!(text.starts_with("#:schema ../../packaging/config.schema.json\n"), "{name}");
        }
        assert!(folder().join(name).join("README.md").is_file(), "{name}");
        let device = "HostName=hub.example;DeviceId=pi-01;SharedAccessKey=AAAA";
        let output =
            run(binary().arg("check").arg("-c").arg(&config).env("C2D_DEVICE_CONNECTION_STRING", device));
        let told = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(told.ends_with(&format!("\n{tests} tests passed\n")), "{name}: {told}");
        assert_eq!(output.status.code(), Some(0), "{name}: {}", String::from_utf8_lossy(&output.stderr));
        // The files of a checkout may have any owner.
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("config.toml:"), "{name}: {said}");
    }
}

#[test]
fn relay_pulse_rings_for_a_moment() {
    let example = Example::start("relay-pulse");
    example.send();
    let log = example.agent.stderr.text();
    assert!(log.contains("pin=\"bell\" state=on") && log.contains("pin=\"bell\" state=off"), "{log}");
    example.pins("\"bell\":\"off\"");
}

#[test]
fn garage_door_never_has_both_directions_on() {
    let example = Example::start("garage-door");
    example.send();
    example.pins("\"open\":\"on\"");
    example.shell("c2d-agent c2d-send --device pi-01 --property door=close --property move=on --wait");
    let list = example.inbox();
    assert!(list.contains("\"outcome\":\"failed\"") && list.contains("interlock"), "{list}");
    example.pins("\"close\":\"off\"");
    example.shell("c2d-agent c2d-send --device pi-01 --property door=stop --wait");
    example.pins("\"open\":\"off\"");
}

#[test]
fn boiler_goes_off_when_the_hub_is_gone() {
    // The test uses the shortest time instead of five minutes.
    let soon = "[gpio.pins.boiler]\non_disconnect = { after = \"5s\" }\n";
    let example = Example::start_with("boiler", &[], soon);
    example.send();
    example.pins("\"boiler\":\"on\"");
    example.emulator.process.kill();
    example.pins("\"boiler\":\"off\"");
}

#[test]
fn alarm_lamp_answers_its_caller() {
    let example = Example::start("alarm-lamp");
    let told = example.send();
    assert!(told.contains("answered lamp with status 200"), "{told}");
    example.pins("\"lamp\":\"on\"");
}

#[test]
fn json_body_opens_a_valve_for_as_long_as_the_body_says() {
    let example = Example::start("json-body");
    example.send();
    let log = example.agent.stderr.text();
    assert!(log.contains("pin=\"north\" state=on") && !log.contains("pin=\"south\""), "{log}");
}

#[test]
fn restart_service_touches_the_file_that_the_path_unit_watches() {
    let example = Example::start_with("restart-service", &[("/var/lib/c2d-agent/", "")], "");
    let watched = example.dir.path().join("restart-web");
    let unit = fs::read_to_string(example.dir.path().join("restart-web.path")).expect("a unit");
    assert!(unit.contains(&format!("PathChanged={}\n", watched.display())), "{unit}");
    assert!(!watched.exists());
    example.send();
    assert!(watched.exists(), "{}", example.agent.stderr.text());
}

#[test]
fn backup_is_completed_at_once_and_its_outcome_reported() {
    let example = Example::start_with("backup", &[("/var/lib/c2d-agent/", ""), ("/srv", "config.d")], "");
    let told = example.send();
    assert!(told.contains("succeeded"), "{told}");
    let list =
        run(Command::new("tar").arg("--list").arg("--file").arg(example.dir.path().join("nightly.tar.gz")));
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    assert!(list.contains("./test.toml"), "{list}");
}

#[test]
fn report_outcomes_tells_the_back_end_in_the_twin() {
    let example = Example::start("report-outcomes");
    let told = example.send();
    assert!(told.contains("succeeded"), "{told}");
    example.shell("c2d-agent c2d-send --device pi-01 --property action=free-space --wait-outcome");
    let twin = run(&mut back_end(&example.emulator, &["twin", "get", "--json", "--device", "pi-01"]));
    let twin: serde_json::Value = serde_json::from_slice(&twin.stdout).expect("JSON");
    let rules = &twin["properties"]["reported"]["c2dAgent"]["rules"];
    for rule in ["kernel", "free_space"] {
        assert_eq!(rules[rule]["outcome"], "succeeded", "{twin}");
    }
}

#[test]
fn twin_rules_are_set_by_the_back_end_and_act() {
    let example = Example::start("twin-rules");
    let page = fs::read_to_string(example.dir.path().join("README.md")).expect("a page");
    let mut blocks = page.split("```sh\n").skip(1).map(|rest| rest.split("```").next().expect("a block"));
    example.shell(blocks.next().expect("sets the rules"));
    example.shell("until c2d-agent twin get --device pi-01 --json | grep -q applied; do sleep 0.1; done");
    example.shell(blocks.next().expect("sends"));
    example.pins("\"north\":\"on\"");
    example.shell("c2d-agent c2d-send --device pi-01 --property action=stop --wait");
    example.pins("\"north\":\"off\"");
    example.agent.signal(Signal::TERM);
    assert_eq!(example.agent.wait_exit().code(), Some(0));
}
