//! What a started emulator says: the `ready` line for programs, and for people what to do with it.
//!
//! Owns: these lines. Must not know: how the emulator was started.

use std::io::Write as _;
use std::path::Path;

use anyhow::Context as _;

use super::{MAX_LINES, entra};
use crate::cli::Failure;
use crate::cli::shown::shell;
use crate::emulator::{Emulator, HTTPS_PORT, Options};
use crate::trust;

/// Prints the `ready` line, and for people what to do with it.
pub(super) fn announce(options: &Options, emulator: &Emulator) -> Result<(), Failure> {
    if !options.bind.is_loopback() {
        tracing::warn!(address = %options.bind, "other machines can connect: the emulator is a test tool");
    }
    let (mqtt, amqp, https) = (emulator.mqtt_address(), emulator.amqp_address(), emulator.https_address());
    let state = emulator.state_dir();
    let mut stdout = std::io::stdout().lock();
    let offset = emulator.hub().clock().1;
    let clock = if offset.is_zero() { String::new() } else { format!(" clock={offset}") };
    let imds = emulator.imds_address().map(|address| format!(" imds={address}")).unwrap_or_default();
    writeln!(stdout, "ready mqtt={mqtt} amqp={amqp} https={https}{imds}{clock} state={}", state.display())
        .and_then(|()| stdout.flush())
        .context("standard output cannot be written")?;
    if options.well_known_keys {
        tracing::warn!("the keys are the well-known ones: every user of this machine can sign in");
    }
    if let Some(foreign) = trust::writable(state).or_else(|| trust::foreign(state)) {
        tracing::warn!(
            "{} {}: another user may know the keys, and decide what a shell runs that sources env; use a directory of \
             your own",
            foreign.place.display(),
            foreign.what()
        );
    }
    let environment = path(state, "env");
    let sourced = shell(&environment);
    tracing::info!("other commands find this hub after: . {sourced}");
    tracing::info!("to see the hub in a browser, open the address in {}", path(state, "page.address"));
    if https.port() != HTTPS_PORT && options.https_port.is_none() {
        let port = https.port();
        tracing::info!(
            "HTTPS is on port {port}, because {HTTPS_PORT} is not available; {environment} tells other \
             commands"
        );
    }
    for id in options.devices.iter().take(MAX_LINES) {
        let file = path(state, &format!("devices/{id}.connection-string"));
        tracing::info!(device_id = id, file, "this device signs in with a key");
    }
    if options.devices.len() > MAX_LINES {
        let (more, folder) = (options.devices.len() - MAX_LINES, path(state, "devices"));
        tracing::info!(folder, "{more} more devices sign in with keys");
    }
    for id in &options.modules {
        let file = path(state, &format!("modules/{id}.connection-string"));
        tracing::info!(module = id, file, "this module signs in with a key");
        if options.workload_socket.is_some() {
            let file = path(state, &format!("modules/{id}.env"));
            tracing::info!(module = id, file, "or with this environment, which edgeAgent would give it");
        }
    }
    for id in &options.x509_devices {
        let certificate = path(state, &format!("devices/{id}.cert.pem"));
        let private_key = path(state, &format!("devices/{id}.key.pem"));
        tracing::info!(device_id = id, certificate, private_key, "this device signs in with a certificate");
    }
    for (hub, dir) in emulator.further_hubs() {
        tracing::info!(hub, "other commands find this further hub after: . {}", shell(&path(&dir, "env")));
    }
    announce_provisioning(options, state);
    entra::announce(options, emulator);
    if let Some(id) = options.devices.iter().chain(&options.x509_devices).next() {
        let id = shell(id);
        tracing::info!("try: . {sourced} && c2d-agent c2d-send --device {id} --data hello");
    }
    Ok(())
}

/// Says who may register, and where the keys are.
fn announce_provisioning(options: &Options, state: &Path) {
    let Some(provisioning) = &options.provisioning else { return };
    let (id_scope, devices, groups) = (&provisioning.id_scope, &provisioning.devices, &provisioning.groups);
    let folder = path(state, "dps");
    let (count, group_count) = (devices.len(), groups.len());
    tracing::info!(
        id_scope,
        folder,
        "the provisioning service has {count} individual enrolments and {group_count} groups of the command line"
    );
    if options.devices.is_empty() && !devices.is_empty() {
        let sourced = shell(&path(state, "env"));
        tracing::info!("to register a device: . {sourced} && c2d-agent run -c config.toml");
    }
}

fn path(state: &Path, name: &str) -> String {
    state.join(name).display().to_string()
}
