//! The files that a device or a module needs to sign in.
//!
//! Owns: their layout and content. Must not know: which devices exist, the hub.
//!
//! - `devices/ID.connection-string`: for a device with keys
//! - `devices/ID.cert.pem`, `devices/ID.key.pem`: for a device with a certificate; `modules/DEVICE/MODULE.cert.pem` and
//!   `.key.pem` for a module
//! - `leaf/ID.connection-string`: for a device with keys behind the gateway, if the gateway has its own name
//! - `modules/DEVICE/MODULE.connection-string`: for a module
//! - `modules/DEVICE/MODULE.env`: the environment that edgeAgent would give the module, if there is a workload socket

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use super::disk::{StateDirError, make_directory, write_derived};
use crate::credentials::HostPort;
use crate::emulator::certificates::PemPair;
use crate::emulator::event_hub::EventHub;
use crate::emulator::identity;
use crate::emulator::listener::{AMQP_PORT, MQTT_PORT};
use crate::emulator::registry::{AccessPolicy, Device, DeviceCredential};

/// The version of the workload API in a module's environment.
const WORKLOAD_VERSION: &str = "2021-12-07";

/// Where clients find the emulator.
pub(in crate::emulator) struct Served {
    /// The hub's name, as user names and tokens contain it.
    pub(in crate::emulator) hostname: String,
    /// The name that modules and leaf devices dial, if it differs from the hub's.
    pub(in crate::emulator) gateway: Option<String>,
    pub(in crate::emulator) mqtt_port: u16,
    pub(in crate::emulator) amqp_port: u16,
    /// The HTTPS address to dial on this machine.
    pub(in crate::emulator) https: SocketAddr,
    /// The edge device, and the socket of its modules.
    pub(in crate::emulator) workload: Option<(String, PathBuf)>,
    /// The provisioning service, if there is one.
    pub(in crate::emulator) provisioning: Option<ServedProvisioning>,
}

/// How clients find the provisioning service.
pub(in crate::emulator) struct ServedProvisioning {
    pub(in crate::emulator) id_scope: String,
    /// The first registration id of the command line that has a key, and that key.
    pub(in crate::emulator) first: Option<(String, String)>,
}

impl Served {
    /// The connection string of a back end.
    pub(super) fn policy_string(&self, policy: &AccessPolicy) -> String {
        let (hub, name) = (self.hub(self.amqp_port, AMQP_PORT), &policy.name);
        let key = policy.keys.primary.expose_base64();
        format!("HostName={hub};SharedAccessKeyName={name};SharedAccessKey={key}")
    }

    /// The connection string of the Event Hub-compatible endpoint.
    pub(super) fn events_string(&self, policy: &AccessPolicy) -> String {
        let key = policy.keys.primary.expose_base64();
        EventHub::new(&self.hostname, self.amqp_port).connection_string(&policy.name, &key)
    }

    /// The connection string of a device that dials the hub.
    pub(super) fn device_string(&self, device: &str, key: &str) -> String {
        let hub = self.hub(self.mqtt_port, MQTT_PORT);
        format!("HostName={hub};DeviceId={device};SharedAccessKey={key}")
    }

    /// Where devices ask the provisioning service.
    pub(super) fn provisioning_endpoint(&self) -> HostPort {
        self.hub(self.mqtt_port, MQTT_PORT)
    }

    /// The hub's name, with the port if it is not the standard one.
    fn hub(&self, port: u16, standard: u16) -> HostPort {
        HostPort { name: self.hostname.clone(), port: (port != standard).then_some(port) }
    }

    /// The gateway, if it has its own name, with the MQTT port if it is not the standard one.
    fn gateway(&self) -> Option<HostPort> {
        let port = (self.mqtt_port != MQTT_PORT).then_some(self.mqtt_port);
        self.gateway.clone().map(|name| HostPort { name, port })
    }
}

/// The files of devices and modules.
pub(super) struct ClientFiles {
    root: PathBuf,
    served: Option<Served>,
}

impl ClientFiles {
    /// The files below `root`.
    pub(super) fn new(root: &Path) -> Self {
        Self { root: root.to_owned(), served: None }
    }

    /// Sets the places that the files name. Before this call nothing is written.
    pub(super) fn serve(&mut self, served: Served) {
        self.served = Some(served);
    }

    /// The places that [`ClientFiles::serve`] has set.
    pub(super) fn served(&self) -> Option<&Served> {
        self.served.as_ref()
    }

    /// Writes the files of a device or a module. `own` is its certificate, if the emulator made one.
    pub(super) fn write(
        &self,
        Device { id, credential }: &Device,
        generation: &str,
        own: Option<&PemPair>,
    ) -> Result<(), StateDirError> {
        match (credential, &self.served) {
            (DeviceCredential::Issued(enrolled), _) => {
                self.write(&Device { id: id.clone(), credential: (**enrolled).clone() }, generation, own)
            }
            (DeviceCredential::Keys(keys), Some(served)) => {
                self.write_strings(served, id, &keys.primary.expose_base64())?;
                self.write_environment(served, id, generation)
            }
            (DeviceCredential::Certificate(_), _) => {
                own.map_or(Ok(()), |pair| self.write_certificate(id, pair))
            }
            // The emulator does not have the device's certificate and key.
            (DeviceCredential::Thumbprints { .. } | DeviceCredential::Authority, _) | (_, None) => Ok(()),
        }
    }

    /// Writes a certificate and its key.
    pub(super) fn write_certificate(&self, id: &str, pair: &PemPair) -> Result<(), StateDirError> {
        write_into(&self.path(id, "cert.pem"), &pair.certificate)?;
        write_into(&self.path(id, "key.pem"), &pair.private_key)
    }

    /// Whether there is a certificate with its key. A power cut can leave empty files.
    pub(super) fn has_certificate(&self, id: &str) -> bool {
        let has_text = |suffix| fs::metadata(self.path(id, suffix)).is_ok_and(|found| found.len() > 0);
        has_text("cert.pem") && has_text("key.pem")
    }

    /// Removes all files of a device or a module.
    pub(super) fn remove(&self, id: &str) -> Result<(), StateDirError> {
        let own = ["connection-string", "cert.pem", "key.pem", "env"].map(|suffix| self.path(id, suffix));
        for path in own.into_iter().chain((!identity::is_module(id)).then(|| self.leaf(id))) {
            match fs::remove_file(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(reason) => return Err(StateDirError::Io { verb: "remove", path, reason }),
                Ok(()) => {}
            }
        }
        Ok(())
    }

    /// Writes the connection strings. A module dials the gateway. A device dials the hub, and as a leaf device the
    /// gateway.
    fn write_strings(&self, served: &Served, id: &str, key: &str) -> Result<(), StateDirError> {
        let (device, module) = identity::split(id);
        let hub = served.hub(served.mqtt_port, MQTT_PORT);
        let behind = served.gateway().map(|gateway| format!(";GatewayHostName={gateway}"));
        let text = match (module, &behind) {
            (Some(module), behind) => {
                let behind = behind.as_deref().unwrap_or_default();
                format!("HostName={hub};DeviceId={device};ModuleId={module}{behind};SharedAccessKey={key}\n")
            }
            (None, _) => format!("{}\n", served.device_string(device, key)),
        };
        write_into(&self.path(id, "connection-string"), &text)?;
        if let (None, Some(behind)) = (module, behind) {
            // No client dials the hub with this string, so it needs no port.
            let hub = &served.hostname;
            let text = format!("HostName={hub};DeviceId={device}{behind};SharedAccessKey={key}\n");
            write_into(&self.leaf(id), &text)?;
        }
        Ok(())
    }

    /// Source: wire reference 6.4.
    fn write_environment(&self, served: &Served, id: &str, generation: &str) -> Result<(), StateDirError> {
        let (Some((edge, socket)), (device, Some(module))) = (&served.workload, identity::split(id)) else {
            return Ok(());
        };
        if edge != device {
            return Ok(());
        }
        let gateway = served.gateway().unwrap_or_else(|| served.hub(served.mqtt_port, MQTT_PORT));
        let lines = [
            ("IOTEDGE_WORKLOADURI", format!("unix://{}", socket.display())),
            ("IOTEDGE_AUTHSCHEME", "sasToken".to_owned()),
            ("IOTEDGE_APIVERSION", WORKLOAD_VERSION.to_owned()),
            ("IOTEDGE_IOTHUBHOSTNAME", served.hostname.clone()),
            ("IOTEDGE_GATEWAYHOSTNAME", gateway.to_string()),
            ("IOTEDGE_DEVICEID", device.to_owned()),
            ("IOTEDGE_MODULEID", module.to_owned()),
            ("IOTEDGE_MODULEGENERATIONID", generation.to_owned()),
        ];
        let text: String = lines.iter().map(|(name, value)| format!("{name}={value}\n")).collect();
        write_into(&self.path(id, "env"), &text)
    }

    fn path(&self, id: &str, suffix: &str) -> PathBuf {
        let (folder, name) = match identity::split(id) {
            (device, None) => (self.root.join("devices"), device),
            // These two ids would lead out of the folder.
            (".", Some(module)) => (self.root.join("modules").join("%2E"), module),
            ("..", Some(module)) => (self.root.join("modules").join("%2E%2E"), module),
            (device, Some(module)) => (self.root.join("modules").join(device), module),
        };
        folder.join(format!("{name}.{suffix}"))
    }

    fn leaf(&self, device_id: &str) -> PathBuf {
        self.root.join("leaf").join(format!("{device_id}.connection-string"))
    }
}

/// Writes a file, and creates its folder if needed.
pub(in crate::emulator) fn write_into(path: &Path, text: &str) -> Result<(), StateDirError> {
    path.parent().map_or(Ok(()), make_directory)?;
    write_derived(path, text.as_bytes())
}
