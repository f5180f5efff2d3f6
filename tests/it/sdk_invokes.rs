//! Microsoft's Python back end calls direct methods of our agent, as a device and as a module.
//!
//! Owns: nothing. Must not know: how the SDK works.

use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{Agent, Emulator, Process, binary, write_config};
use crate::sdk::{emulator, json as parse, python_with_https, script};

const RULES: &str = "[[rule]]\nname = \"greet\"\nwhen = { \"$.method\" = \"greet\", \"body.name\" = { present = true } }\n\
    do = [ { run = [\"/bin/echo\", \"{body.name}\"] } ]\n\
    [[rule]]\nname = \"later\"\nwhen = { \"$.method\" = \"later\" }\nsettle = \"on-accept\"\ndo = [ { run = [\"/bin/true\"] } ]\n\
    [[rule]]\nname = \"fail\"\nwhen = { \"$.method\" = \"fail\" }\ndo = [ { shell = \"echo broken; exit 7\" } ]\n\
    [[rule]]\nname = \"slow\"\nwhen = { \"$.method\" = \"slow\" }\ntimeout = \"100ms\"\ndo = [ { run = [\"/bin/sleep\", \"30\"] } ]\n";

/// The answers that the SDK got for these calls.
fn call(python: &Path, emulator: &Emulator, whom: &[&str], dir: &Path, calls: &[Value]) -> Vec<(u16, Value)> {
    let input = dir.join("calls");
    std::fs::write(&input, calls.iter().map(|call| format!("{call}\n")).collect::<String>())
        .expect("written");
    let mut service = script(python, "service_invokes.py");
    service.args(whom).env("SERVICE_CONNECTION_STRING", emulator.service_string());
    service.env("REQUESTS_CA_BUNDLE", emulator.ca_file()).stdin(std::fs::File::open(input).expect("open"));
    let service = Process::spawn_with_stdin(&mut service);
    assert_eq!(service.wait_exit().code(), Some(0), "{}", service.stderr.text());
    let answers = service.stdout.all();
    answers.iter().map(|line| serde_json::from_value(parse(line)).expect("an answer")).collect()
}

#[test]
fn the_sdks_back_end_calls_methods_of_the_agent_as_a_device_and_as_a_module() {
    let Some(python) = python_with_https("the SDK's back end calls methods of the agent") else { return };
    let dir = tempfile::tempdir().expect("a directory");
    let socket = dir.path().join("workload.sock");
    let arguments =
        ["--device", "dev1", "--module", "edge1/c2d-agent", "--https-port", "443", "--workload-socket"];
    let (emulator, _state) = emulator(&[&arguments[..], &[socket.to_str().expect("UTF-8")]].concat());
    let [as_device, as_module] = ["device", "module"].map(|name| dir.path().join(name));
    for dir in [&as_device, &as_module] {
        std::fs::create_dir(dir).expect("made");
    }
    let device = Agent::start(&emulator, "dev1", &as_device, RULES);
    let environment = emulator.state.join("modules/edge1/c2d-agent.env");
    let environment = std::fs::read_to_string(environment).expect("an environment");
    let mut module = binary();
    module.arg("run").arg("-c").arg(write_config(&as_module, RULES));
    let module = Process::spawn(module.envs(environment.lines().filter_map(|line| line.split_once('='))));
    module.stderr.wait_for("subscribed");

    let calls = [
        json!(["greet", { "name": "wörld" }]),
        json!(["greet", { "name": "--help" }]),
        json!(["greet", null]),
        json!(["later", [1, 2]]),
        json!(["fail", "x"]),
        json!(["slow", null]),
        json!(["none", null]),
    ];
    for (whom, dir) in [(&["dev1"][..], &as_device), (&["edge1", "c2d-agent"], &as_module)] {
        let answers = call(&python, &emulator, whom, dir, &calls);
        let outcomes: Vec<_> = answers
            .iter()
            .map(|(status, answer)| (*status, answer["outcome"].as_str().expect("an outcome")))
            .collect();
        let expected = [
            (200, "succeeded"),
            (400, "refused"),
            (404, "unmatched"),
            (202, "accepted"),
            (500, "failed"),
            (504, "timed-out"),
            (404, "unmatched"),
        ];
        assert_eq!(outcomes, expected, "{whom:?}: {answers:?}");
        let failed = &answers[4].1;
        assert_eq!(failed["exitCode"], 7, "{failed}");
        assert!(failed.to_string().contains("broken"), "{failed}");
    }
    assert_eq!((device.process.terminate(), module.terminate()), (Some(0), Some(0)));
}
