//! `deployment.json`: the manifest keeps IoT Edge's rules, and asks for nothing that the container does not have.
//!
//! Source of the rules: wire reference 6.7 (schema, policies, createOptions as a string, split above 512 bytes).

use std::path::Path;

use rumqttc::mqttbytes::{
    QoS,
    v4::{Packet, Publish},
};
use serde_json::{Map, Value};

use crate::harness::{binary, run};

/// Longer options are split by the tooling into createOptions01 and so on.
const LONGEST_CREATE_OPTIONS: usize = 512;
const RESTART_POLICIES: [&str; 4] = ["never", "on-failure", "on-unhealthy", "always"];

fn read(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn desired(module: &str) -> Value {
    let manifest: Value = serde_json::from_str(&read("deployment.json")).expect("JSON");
    let desired = manifest["modulesContent"][module]["properties.desired"].clone();
    assert!(desired.is_object(), "{module} has no desired properties");
    desired
}

fn object<'v>(value: &'v Value, what: &str) -> &'v Map<String, Value> {
    value.as_object().unwrap_or_else(|| panic!("{what} is no object: {value}"))
}

fn text<'v>(value: &'v Value, what: &str) -> &'v str {
    value.as_str().unwrap_or_else(|| panic!("{what} is no text: {value}"))
}

/// The options of a module. They are JSON in a string of the JSON.
fn create_options(module: &Value) -> Value {
    let options = text(&module["settings"]["createOptions"], "createOptions");
    assert!(options.len() <= LONGEST_CREATE_OPTIONS, "{} bytes must be split: {options}", options.len());
    serde_json::from_str(options).expect("createOptions are JSON")
}

fn agent_module() -> Value {
    desired("$edgeAgent")["modules"]["c2d-agent"].clone()
}

/// The value of an instruction in the Dockerfile's last stage; an array stays JSON.
fn dockerfile(instruction: &str) -> String {
    let text = read("Dockerfile").replace("\\\n", " ");
    let last_stage = text.rfind("\nFROM ").expect("a stage");
    let mut found =
        text[last_stage..].lines().filter_map(|line| line.strip_prefix(&format!("{instruction} ")));
    found.next_back().unwrap_or_else(|| panic!("the Dockerfile has no {instruction}")).trim().to_owned()
}

fn words(array: &Value) -> Vec<String> {
    let array = array.as_array().unwrap_or_else(|| panic!("no array: {array}"));
    array.iter().map(|word| text(word, "a word").to_owned()).collect()
}

#[test]
fn the_manifest_keeps_the_rules_of_its_schema() {
    let agent = desired("$edgeAgent");
    let hub = desired("$edgeHub");
    for desired in [&agent, &hub] {
        assert_eq!(desired["schemaVersion"], "1.1");
    }
    assert_eq!(agent["runtime"]["type"], "docker");
    assert_eq!(agent["runtime"]["settings"]["minDockerVersion"], "v1.25");
    assert!(hub["storeAndForwardConfiguration"]["timeToLiveSecs"].is_u64());
    let system = object(&agent["systemModules"], "systemModules");
    assert_eq!(system.keys().collect::<Vec<_>>(), ["edgeAgent", "edgeHub"]);
    for module in system.values() {
        assert!(text(&module["settings"]["image"], "image").ends_with(":1.6.8"), "{module}");
    }
    let modules = object(&agent["modules"], "modules");
    for (name, module) in system.iter().chain(modules) {
        assert_eq!(module["type"], "docker", "{name}");
        create_options(module);
        if name == "edgeAgent" {
            continue;
        }
        assert_eq!(module["status"], "running", "{name}");
        assert!(RESTART_POLICIES.contains(&text(&module["restartPolicy"], name)), "{name}");
        assert!(module["startupOrder"].is_u64(), "{name}");
    }
    for (name, module) in modules {
        assert!(!text(&module["version"], name).is_empty());
        assert!(["on-create", "never"].contains(&text(&module["imagePullPolicy"], name)), "{name}");
        for (variable, value) in object(&module["env"], "env") {
            assert_eq!(object(value, variable).keys().collect::<Vec<_>>(), ["value"], "{variable}");
        }
    }
}

#[test]
fn one_route_leads_to_an_input_of_the_agent_and_one_from_it_to_the_hub() {
    let hub = desired("$edgeHub");
    let routes = object(&hub["routes"], "routes");
    let (mut into_agent, mut upstream) = (0, 0);
    for (name, route) in routes {
        assert!(
            name.bytes().all(|byte| byte.is_ascii_alphanumeric()),
            "{name}: letters and digits, which every tool takes"
        );
        let words: Vec<&str> = text(route, name).split(' ').collect();
        let [from, source, into, sink] = words[..] else { panic!("{name}: {route}") };
        assert_eq!((from, into), ("FROM", "INTO"), "{name}");
        let own = source.starts_with("/messages/modules/c2d-agent/");
        // Otherwise the agent would get its own messages back.
        assert!(!own || sink == "$upstream", "{name}: {route}");
        into_agent += usize::from(sink.starts_with("BrokeredEndpoint(\"/modules/c2d-agent/inputs/"));
        upstream += usize::from(own);
    }
    assert_eq!((routes.len(), into_agent, upstream), (2, 1, 1), "{routes:?}");
}

#[test]
fn the_routes_are_those_of_the_emulator_too() {
    let hub = desired("$edgeHub");
    let routes = object(&hub["routes"], "routes").iter();
    let routes: Vec<&str> = routes.flat_map(|(name, route)| ["--route", text(route, name)]).collect();
    let modules = ["--module", "edge1/c2d-agent", "--module", "edge1/sensor"];
    let emulator = crate::harness::Emulator::start_with(&[&modules[..], &routes].concat());
    let mut agent = crate::emulator_modules::module(&emulator, "c2d-agent");
    let mut sensor = crate::emulator_modules::module(&emulator, "sensor");
    agent.subscribe(&[("devices/edge1/modules/c2d-agent/inputs/#", QoS::AtLeastOnce)]);
    sensor.send(Packet::Publish(Publish::new(
        "devices/edge1/modules/sensor/messages/events/%24.on=alarms&%24.mid=m-1/",
        QoS::AtMostOnce,
        "hot",
    )));
    let topic = agent.publish().topic;
    assert!(topic.starts_with("devices/edge1/modules/c2d-agent/inputs/commands/"), "{topic}");
}

/// Everybody who may read twins can read the manifest, so secrets must be in a file.
#[test]
fn the_manifest_names_no_identity_of_its_own() {
    let manifest = read("deployment.json");
    for word in ["ConnectionString", "CONNECTION_STRING", "SharedAccessKey", "IOTEDGE_"] {
        assert!(!manifest.contains(word), "{word}");
    }
}

#[test]
fn the_agent_is_restarted_limited_and_looked_at() {
    let module = agent_module();
    assert_eq!(module["restartPolicy"], "always");
    assert_eq!(module["version"], env!("CARGO_PKG_VERSION"));
    let image = text(&module["settings"]["image"], "image");
    assert!(image.ends_with(&format!("/c2d-agent:{}", env!("CARGO_PKG_VERSION"))), "{image}");
    let host = create_options(&module)["HostConfig"].clone();
    let memory = host["Memory"].as_u64().expect("a memory limit in bytes");
    assert!((32 << 20..=256 << 20).contains(&memory), "{memory}");
    assert_eq!(host["Init"], true, "what a rule leaves behind is to be reaped");
    assert_eq!(words(&host["CapDrop"]), ["ALL"]);
    let device = &host["Devices"][0];
    assert_eq!(device["PathOnHost"], "/dev/gpiochip0");
    assert_eq!(device["PathInContainer"], device["PathOnHost"]);
    let groups = words(&host["GroupAdd"]);
    assert!(
        groups.iter().all(|group| group.parse::<u32>().is_ok()),
        "names mean nothing in the image: {groups:?}"
    );
}

#[test]
fn the_container_has_what_the_manifest_asks_for() {
    let options = create_options(&agent_module());
    let binds = words(&options["HostConfig"]["Binds"]);
    let targets: Vec<&str> = binds.iter().map(|bind| bind.split(':').nth(1).expect("a target")).collect();
    assert!(dockerfile("VOLUME").contains(targets[1]), "{targets:?}");
    assert!(binds[0].ends_with(":ro"), "the configuration is not the agent's to change: {binds:?}");
    // The manifest may leave out the entry point, the command and the user: the image has them.
    let entry: Vec<String> = serde_json::from_str(&dockerfile("ENTRYPOINT")).expect("a list");
    let command: Vec<String> = serde_json::from_str(&dockerfile("CMD")).expect("a list");
    assert_eq!((entry, command), (vec!["c2d-agent".to_owned()], vec!["run".to_owned()]));
    assert!(["Cmd", "Entrypoint", "User"].iter().all(|key| options.get(key).is_none()));
    assert!(
        dockerfile("USER").split(':').all(|id| id.parse::<u32>().is_ok_and(|id| id > 0)),
        "not root, by number"
    );
    let test = words(&options["Healthcheck"]["Test"]);
    let in_image = dockerfile("HEALTHCHECK");
    let in_image = &in_image[in_image.find('[').expect("a list")..];
    assert_eq!(test[0], "CMD");
    assert_eq!(serde_json::from_str::<Vec<String>>(in_image).expect("a list"), test[1..]);
    for time in ["Interval", "Timeout"] {
        let nanoseconds = options["Healthcheck"][time].as_u64().expect("nanoseconds");
        assert!((1_000_000_000..=120_000_000_000).contains(&nanoseconds), "{time}: {nanoseconds}");
    }
}

#[test]
fn the_program_knows_what_the_manifest_says_to_it() {
    let module = agent_module();
    let help = run(binary().args(["run", "--help"]));
    let help = String::from_utf8(help.stdout).expect("text");
    for variable in object(&module["env"], "env").keys() {
        assert!(help.contains(variable.as_str()), "{variable} is not in the help of run:\n{help}");
    }
    // The words of the health check are a command of the program. Without an agent, it only says that none runs.
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config.toml");
    std::fs::write(&config, "[inbox]\npath = \"inbox.journal\"\n").expect("written");
    let test = words(&create_options(&module)["Healthcheck"]["Test"]);
    let checked = run(binary().args(&test[2..]).arg("-c").arg(&config));
    let said = String::from_utf8(checked.stderr).expect("text");
    assert_eq!(checked.status.code(), Some(1), "{said}");
    assert!(said.contains("no agent runs"), "{said}");
    // The manifest mounts the default paths of the program.
    let binds = words(&create_options(&module)["HostConfig"]["Binds"]);
    assert!(help.contains("/etc/c2d-agent/config.toml") && binds[0].contains(":/etc/c2d-agent:"));
    std::fs::write(&config, "").expect("written");
    let checked = run(binary().args(["status", "-c"]).arg(&config));
    let said = [checked.stdout, checked.stderr].map(|text| String::from_utf8(text).expect("text")).concat();
    assert!(said.contains("/var/lib/c2d-agent/inbox") && binds[1].ends_with(":/var/lib/c2d-agent"), "{said}");
}
