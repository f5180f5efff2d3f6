//! The file `env`: a shell sources it, so that later commands find the emulator without options.
//!
//! Owns: its variables, which device and policy they belong to, and their quoting. Must not know: what a program does
//! with them.

use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use super::client_files::Served;
use super::disk::{AUTHORITY, StateDirError, write_private};
use crate::emulator::registry::AccessPolicy;

/// The file's name.
const FILE: &str = "env";
/// The variable with the state directory, for commands that ask a running emulator.
pub const STATE_DIR_VARIABLE: &str = "C2D_EMULATOR_STATE_DIR";

/// Writes the file, for the first device with a key and the policy of back ends.
pub(super) fn write(
    root: &Path,
    served: &Served,
    device: Option<&(String, String)>,
    service: Option<&AccessPolicy>,
) -> Result<(), StateDirError> {
    let state_dir = std::path::absolute(root).unwrap_or_else(|_| root.to_owned());
    let about_device = match device {
        Some((id, _)) => {
            format!("C2D_DEVICE_CONNECTION_STRING is that of {id}, the first device with a key.")
        }
        None => "No device of this start has a key, so there is no C2D_DEVICE_CONNECTION_STRING.".to_owned(),
    };
    let mut file = Lines(Vec::new());
    file.comment(
        "How clients find this emulator. It writes this file anew at each start. Source it: . DIR/env",
    );
    file.comment("It has keys, so treat it like a connection string.");
    file.comment(&about_device);
    file.comment("The connection strings of all devices are in devices/, those of modules in modules/.");
    file.path(STATE_DIR_VARIABLE, &state_dir);
    match device {
        Some((id, key)) => file.export("C2D_DEVICE_CONNECTION_STRING", &served.device_string(id, key)),
        // A shell may have sourced the file of another emulator, so remove its device.
        None => file.0.extend(b"unset C2D_DEVICE_CONNECTION_STRING\n"),
    }
    // A shell may have sourced the file of another emulator. An agent has one identity, and an ID scope is one.
    file.0.extend(b"unset C2D_PROVISIONING_ID_SCOPE C2D_PROVISIONING_REGISTRATION_ID C2D_PROVISIONING_KEY\n");
    if let Some(provisioning) = &served.provisioning {
        let scope = &provisioning.id_scope;
        file.comment(&format!(
            "The provisioning service has the ID scope {scope}; the keys of enrolments are in dps/."
        ));
        file.export("C2D_PROVISIONING_ENDPOINT", &served.provisioning_endpoint().to_string());
        if device.is_none() {
            file.export("C2D_PROVISIONING_ID_SCOPE", scope);
            if let Some((id, key)) = &provisioning.first {
                file.export("C2D_PROVISIONING_REGISTRATION_ID", id);
                file.export("C2D_PROVISIONING_KEY", key);
            }
        }
    }
    if let Some(policy) = service {
        file.export("C2D_SERVICE_CONNECTION_STRING", &served.policy_string(policy));
        file.export("C2D_EVENTHUB_CONNECTION_STRING", &served.events_string(policy));
    }
    file.path("C2D_CA_FILE", &state_dir.join(AUTHORITY));
    file.export("C2D_HTTPS_PORT", &served.https.port().to_string());
    file.export("C2D_EMULATOR_MQTT_PORT", &served.mqtt_port.to_string());
    file.export("C2D_EMULATOR_AMQP_PORT", &served.amqp_port.to_string());
    write_private(&root.join(FILE), &file.0)
}

/// Lines for a POSIX shell.
struct Lines(Vec<u8>);

impl Lines {
    fn comment(&mut self, text: &str) {
        self.0.extend(b"# ");
        self.0.extend(text.as_bytes());
        self.0.push(b'\n');
    }

    fn export(&mut self, name: &str, value: &str) {
        self.export_bytes(name, value.as_bytes());
    }

    fn path(&mut self, name: &str, value: &Path) {
        self.export_bytes(name, value.as_os_str().as_bytes());
    }

    /// Quotes a value: between single quotes a POSIX shell changes nothing, and only the quote itself needs an escape.
    fn export_bytes(&mut self, name: &str, value: &[u8]) {
        self.0.extend(format!("export {name}='").as_bytes());
        for byte in value {
            match byte {
                b'\'' => self.0.extend(br"'\''"),
                byte => self.0.push(*byte),
            }
        }
        self.0.extend(b"'\n");
    }
}
