//! The agent over each transport of the hub.
//!
//! Owns: which transports this build has, where the emulator serves each, an agent that uses one of them.
//! Must not know: what a single test shows.
#![allow(dead_code)] // Not every feature set uses every part.

use std::net::SocketAddr;
use std::path::Path;
use std::process::Command;

use crate::harness::{Agent, Emulator, Process, binary, write_config};

/// All transports of the agent in this build.
pub(crate) const TRANSPORTS: &[&str] = &["mqtt", "mqtt-ws", "amqp", "amqp-ws"];

/// The transports over a WebSocket.
pub(crate) const WEBSOCKETS: &[&str] = &["mqtt-ws", "amqp-ws"];

/// The address where the emulator serves a transport.
pub(crate) fn address(emulator: &Emulator, transport: &str) -> SocketAddr {
    match transport {
        "mqtt" => emulator.mqtt,
        "amqp" => emulator.amqp,
        _ => emulator.https,
    }
}

/// The connection string of a device with this port in it.
pub(crate) fn device_string(emulator: &Emulator, device: &str, port: u16) -> String {
    let (own, other) = (format!(":{}", emulator.mqtt.port()), format!(":{port}"));
    emulator.device_string(device).replace(&own, &other)
}

/// `c2d-agent run` as `dev1` over a transport at `port`. `device` has more keys of `[device]`, and `rest` begins with a
/// table.
pub(crate) fn command(
    emulator: &Emulator,
    transport: &str,
    port: u16,
    dir: &Path,
    [device, rest]: [&str; 2],
) -> Command {
    let config = write_config(dir, &format!("[device]\ntransport = \"{transport}\"\n{device}\n{rest}"));
    let mut command = binary();
    command.arg("run").arg("-c").arg(config);
    command
        .env("C2D_DEVICE_CONNECTION_STRING", device_string(emulator, "dev1", port))
        .env("C2D_CA_FILE", emulator.ca_file())
        .env("C2D_HTTPS_PORT", port.to_string());
    command
}

/// Starts the agent of [`command`].
pub(crate) fn spawn(emulator: &Emulator, transport: &str, port: u16, dir: &Path, text: [&str; 2]) -> Agent {
    let process = Process::spawn(&mut command(emulator, transport, port, dir, text));
    Agent { process, dir: dir.to_owned() }
}

/// Starts the agent without a proxy in between, and waits until it has subscribed.
pub(crate) fn start(emulator: &Emulator, transport: &str, dir: &Path, rest: &str) -> Agent {
    let port = address(emulator, transport).port();
    let agent = spawn(emulator, transport, port, dir, ["", rest]);
    agent.process.stderr.wait_for("subscribed");
    agent
}

/// Runs a test over all transports at the same time.
pub(crate) fn each(test: impl Fn(&str) + Sync) {
    std::thread::scope(|scope| {
        for transport in TRANSPORTS {
            let test = &test;
            let thread = std::thread::Builder::new().name((*transport).to_owned());
            thread.spawn_scoped(scope, move || test(transport)).expect("a thread");
        }
    });
}
