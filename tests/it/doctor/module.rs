//! A module of IoT Edge: the workload API, and what is looked at when it signs in alone or beside a device.

use std::path::Path;

use super::{Found, LED, doctor};
use crate::harness::{Emulator, write_config};

/// An edge device whose one module is `edge1/filter`; its socket is `workload.sock` in `dir`.
fn gateway(dir: &Path) -> Emulator {
    let socket = dir.join("workload.sock");
    let arguments = ["--module", "edge1/filter", "--workload-socket", socket.to_str().expect("UTF-8")];
    Emulator::start_in(&dir.join("state"), "0", "0", &arguments)
}

/// `doctor` with the environment that edgeAgent would give the module, and these variables.
fn examined(emulator: &Emulator, dir: &Path, changed: &[(&str, &str)]) -> Found {
    let file = emulator.state.join("modules/edge1/filter.env");
    let text = std::fs::read_to_string(file).expect("an environment");
    let mut command = doctor(&write_config(dir, LED));
    command.envs(text.lines().map(|line| line.split_once('=').expect("a variable")));
    command.env("C2D_HTTPS_PORT", emulator.https.port().to_string());
    Found::by(command.envs(changed.iter().copied()))
}

#[test]
fn a_module_is_examined_with_the_roots_of_its_workload_api() {
    let dir = tempfile::tempdir().expect("a directory");
    let emulator = gateway(dir.path());
    let found = examined(&emulator, dir.path(), &[]);
    found.failed(&[]);
    let by = "module edge1/filter on hub localhost, through the gateway localhost:";
    found.says("identity", "ok", by, "");
    found.says("workload-api", "ok", "workload.sock signs for edge1/filter, and gives 1 root", "");
    found.says("tls", "ok", "or the trust bundle has it", "");
    found.says("clock", "ok", "as the server's", "");
    found.says("sign-in", "ok", "the hub lets edge1/filter in", "");

    let found = examined(&emulator, dir.path(), &[("IOTEDGE_MODULEGENERATIONID", "1")]);
    found.failed(&["workload-api", "sign-in"]);
    found.says("workload-api", "failed", "does not sign for module filter in generation 1", "deployed anew");

    let found = examined(&emulator, dir.path(), &[("IOTEDGE_WORKLOADURI", "unix:///nowhere/workload.sock")]);
    found.failed(&["workload-api", "tls"]);
    found.says("workload-api", "failed", "/nowhere/workload.sock is not there", "mounts the socket");
}

#[test]
fn a_device_beside_a_module_has_a_sign_in_of_its_own() {
    let dir = tempfile::tempdir().expect("a directory");
    let emulator = gateway(dir.path());
    let device = emulator.device_string("edge1");
    let ca_file = emulator.ca_file();
    let changed = [
        ("C2D_DEVICE_CONNECTION_STRING", device.as_str()),
        ("C2D_CA_FILE", ca_file.to_str().expect("UTF-8")),
    ];
    let found = examined(&emulator, dir.path(), &changed);
    found.failed(&[]);
    let of = |check: &str| -> Vec<&str> {
        let all = found.checks.iter().filter(|one| one["check"] == check);
        all.map(|one| one["detail"].as_str().expect("a text")).collect()
    };
    assert_eq!(of("sign-in"), ["the hub lets edge1 in", "the hub lets edge1/filter in"]);
    let identities = of("identity");
    assert!(identities[0].starts_with("device edge1 on hub"), "{identities:?}");
    assert!(identities[1].starts_with("module edge1/filter on hub"), "{identities:?}");
}
