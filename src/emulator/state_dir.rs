//! The emulator's state directory: keys and certificates that survive restarts.
//!
//! Owns: the layout and the permissions of the files. Must not know: listeners, the hub's queues.
//!
//! The emulator reads `secrets.json` and `devices.jsonl`, and `emulator::keeper` reads `hub.jsonl`. The other files are
//! made from the first two, for people and programs. Each start writes those that are not right:
//!
//! - `ca.pem`: the authority that clients must trust
//! - `service.connection-string`: for back ends; `iothubowner.connection-string`: for back ends that also make devices
//! - `events.connection-string`: for back ends that read D2C messages
//! - `page.address`: for a browser; `https.address`: for `emulator::client`
//! - `env`: for a shell, see `environment`
//! - the files of devices and modules, see `client_files`; those of the provisioning service are made by
//!   `provisioning::opening`
//! - `hubs/NAME/`: the same files of a further hub. Its authority is that of the main hub.
//!
//! The server's own certificate is made at every start and never written to disk.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use crate::credentials::{HostPort, SasToken};

use super::certificates::{self, DeviceIssuer, PemPair, ServerIdentity};
use super::entra::{AppOptionError, EntraIssuer, EntraSettings};
use super::identity;
use super::registry::{
    AccessPolicy, Device, DeviceCredential, IdentityRecord, KeyPair, RegistryRight, Thumbprint,
};

mod client_files;
mod disk;
mod environment;
mod known_keys;
mod secrets;

use client_files::ClientFiles;
pub(super) use client_files::{Served, ServedProvisioning, write_into};
pub use disk::StateDirError;
pub(super) use disk::{AUTHORITY, write_private};
use disk::{damaged, lock, make_directory};
pub use environment::STATE_DIR_VARIABLE;
pub use known_keys::WELL_KNOWN_KEYS;
pub(super) use secrets::Registered;
pub(super) use secrets::new_record;
use secrets::{DEVICES, SECRETS, SecretFiles, Secrets, StoredKeys, add_keys, unmade};

/// Name, ServiceConnect, DeviceConnect and registry right of each policy. Source: wire reference 4.2.
const POLICIES: [(&str, bool, bool, RegistryRight); 5] = [
    ("iothubowner", true, true, RegistryRight::Write),
    ("service", true, false, RegistryRight::None),
    ("device", false, true, RegistryRight::None),
    ("registryRead", false, false, RegistryRight::Read),
    ("registryReadWrite", false, false, RegistryRight::Write),
];
const SERVICE_POLICY: &str = "service";
/// The file with the connection string of the Event Hub-compatible endpoint.
const EVENTS: &str = "events.connection-string";
/// The policies whose connection strings are written to files.
const WRITTEN_POLICIES: [&str; 2] = [SERVICE_POLICY, "iothubowner"];
/// The file with the address of the emulator's page.
pub(super) const PAGE_ADDRESS: &str = "page.address";
/// The file with the HTTPS address to dial on this machine. The hub's name may not resolve here.
pub(super) const HTTPS_ADDRESS: &str = "https.address";
/// The folder with the directories of further hubs.
const FURTHER_HUBS: &str = "hubs";
/// How long the token in the page's address is valid; it is made at each start.
const PAGE_LIFETIME: Duration = Duration::from_secs(365 * 24 * 60 * 60);

/// An open state directory.
pub(super) struct StateDir {
    root: PathBuf,
    secrets: Secrets,
    secret_files: SecretFiles,
    policies: Vec<AccessPolicy>,
    /// The devices, and what is recorded of each.
    devices: Vec<(Device, IdentityRecord)>,
    /// The ids that this start was given, in that order.
    named: Vec<String>,
    named_with_certificates: Vec<String>,
    has_known_keys: bool,
    /// The time at this start, from which new certificates are valid.
    started: SystemTime,
    files: ClientFiles,
    _lock: File,
}

impl StateDir {
    /// Opens the directory, and makes it if needed, with the keys and certificates for these devices. Keys and
    /// certificates of other devices are kept. With `has_known_keys`, the policies and the devices with keys use the
    /// well-known keys for this start; opening does not write them to the file of secrets.
    ///
    /// # Errors
    /// [`StateDirError`] names the file that is wrong.
    pub(super) fn open(
        root: &Path,
        named: &[String],
        x509_devices: &[String],
        has_known_keys: bool,
        now: SystemTime,
    ) -> Result<Self, StateDirError> {
        Self::open_with(root, None, (named, x509_devices), has_known_keys, now)
    }

    /// Opens the directory of a further hub, in this one. Its authority is that of the main hub, and its devices are
    /// those that back ends have made.
    ///
    /// # Errors
    /// As [`StateDir::open`].
    pub(super) fn open_further(&self, name: &str) -> Result<Self, StateDirError> {
        let (root, authority) = (further(&self.root, name), self.secrets.authority.clone());
        Self::open_with(&root, Some(authority), (&[], &[]), self.has_known_keys, self.started)
    }

    fn open_with(
        root: &Path,
        authority: Option<PemPair>,
        (named, x509_devices): (&[String], &[String]),
        has_known_keys: bool,
        now: SystemTime,
    ) -> Result<Self, StateDirError> {
        make_directory(root)?;
        make_directory(&root.join("devices"))?;
        // Lock before reading, so that another emulator cannot change the files until they are written.
        let lock = lock(root)?;
        let (mut secret_files, mut secrets) = SecretFiles::open(root, authority, now)?;
        for (name, ..) in POLICIES {
            add_keys(&mut secrets.policies, name)?;
        }
        for id in named {
            add_keys(&mut secrets.devices, id)?;
        }
        for id in x509_devices {
            if !secrets.x509_devices.contains_key(id) {
                let made = certificates::make_device(id, now).map_err(|error| unmade(id, &error))?;
                secrets.x509_devices.insert(id.clone(), made);
            }
        }
        if !has_known_keys {
            secrets.forget_known_keys()?;
        }
        add_records(&mut secrets, named, x509_devices)?;
        secret_files.write(&secrets)?;

        let keys_of = |stored: &BTreeMap<String, StoredKeys>, file, name: &str| {
            let own = || stored.get(name).and_then(StoredKeys::read);
            let keys = if has_known_keys { known_keys::pair() } else { own() };
            let reason = || format!("the keys of \"{name}\" are not two base64 texts");
            keys.ok_or_else(|| damaged(&root.join(file), &reason()))
        };
        let path = root.join(DEVICES);
        let policy = |(name, service_connect, device_connect, registry): (&str, _, _, _)| {
            let keys = keys_of(&secrets.policies, SECRETS, name)?;
            Ok(AccessPolicy { name: name.to_owned(), keys, service_connect, device_connect, registry })
        };
        let policies = POLICIES.into_iter().map(policy).collect::<Result<_, StateDirError>>()?;
        let with_keys = |id: &String| {
            let credential = DeviceCredential::Keys(keys_of(&secrets.devices, DEVICES, id)?);
            Ok(Device { id: id.clone(), credential })
        };
        let with_certificate = |id: &String| {
            let pem = secrets.x509_devices.get(id).map(|pair| pair.certificate.as_str());
            let thumbprint = pem
                .and_then(certificate)
                .map(|certificate| Thumbprint::of(&certificate))
                .ok_or_else(|| damaged(&path, &format!("the certificate of \"{id}\" is not PEM")))?;
            Ok(Device { id: id.clone(), credential: DeviceCredential::Certificate(thumbprint) })
        };
        let registered = |(id, stored): (&String, &Registered)| {
            let reason = || damaged(&path, &format!("the device \"{id}\" has neither keys nor thumbprints"));
            let credential = stored.credential().ok_or_else(reason)?;
            Ok(Device { id: id.clone(), credential })
        };
        // If a back end has changed a device, its change takes precedence over the command line.
        let asked = |id: &&String| !secrets.registered.contains_key(*id);
        let with_keys = named.iter().filter(asked).map(with_keys);
        let with_certificates = x509_devices.iter().filter(asked).map(with_certificate);
        let devices = with_keys.chain(with_certificates).chain(secrets.registered.iter().map(registered));
        let recorded = |device: Result<Device, StateDirError>| {
            device.map(|device| {
                let record = secrets.records.get(&device.id).cloned().unwrap_or_default();
                (device, record)
            })
        };
        let devices = devices.map(recorded).collect::<Result<_, StateDirError>>()?;
        let (root, files) = (root.to_owned(), ClientFiles::new(root));
        let (named, named_with_certificates) = (named.to_owned(), x509_devices.to_owned());
        let started = now;
        Ok(Self {
            root,
            secrets,
            secret_files,
            policies,
            devices,
            named,
            named_with_certificates,
            has_known_keys,
            started,
            files,
            _lock: lock,
        })
    }

    /// The devices and modules that the command line of this start names.
    pub(super) fn named(&self) -> impl Iterator<Item = &String> {
        self.named.iter().chain(&self.named_with_certificates)
    }

    /// The directory.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// The shared access policies.
    pub(super) fn policies(&self) -> Vec<AccessPolicy> {
        self.policies.clone()
    }

    /// Signs certificates that devices ask for, as the authority. They are valid for `lifetime`.
    pub(super) fn issuer(&self, lifetime: Duration) -> DeviceIssuer {
        DeviceIssuer::new(self.secrets.authority.clone(), lifetime)
    }

    /// The authority that clients must trust, as PEM.
    pub(super) fn authority(&self) -> &str {
        &self.secrets.authority.certificate
    }

    /// The same in DER.
    ///
    /// # Errors
    /// Fails if the authority in the file of secrets is damaged.
    pub(super) fn authority_certificate(&self) -> Result<CertificateDer<'static>, StateDirError> {
        certificate(self.authority())
            .ok_or_else(|| damaged(&self.root.join(SECRETS), &"the authority's certificate is not PEM"))
    }

    /// The issuer of tokens of Entra, which signs with the authority's key.
    ///
    /// # Errors
    /// [`AppOptionError`].
    pub(super) fn entra_issuer(&self, settings: &EntraSettings) -> Result<EntraIssuer, AppOptionError> {
        EntraIssuer::new(settings, &self.secrets.authority.private_key)
    }

    /// The devices of the command line and those that back ends have made, and what is recorded of each.
    pub(super) fn devices(&self) -> &[(Device, IdentityRecord)] {
        &self.devices
    }

    /// A new certificate for the server, for all its names.
    ///
    /// # Errors
    /// Fails if the authority in the file of secrets is damaged.
    pub(super) fn make_server_identity(
        &self,
        names: &[String],
        now: SystemTime,
    ) -> Result<ServerIdentity, StateDirError> {
        certificates::make_server(&self.secrets.authority, names, now)
            .map_err(|error| damaged(&self.root.join(SECRETS), &format!("the authority: {error}")))
    }

    /// Writes the files for clients. This must wait until the ports of the listeners are known.
    ///
    /// # Errors
    /// Fails if a file cannot be written.
    pub(super) fn write_client_files(
        &mut self,
        served: Served,
        now: SystemTime,
    ) -> Result<(), StateDirError> {
        write_private(&self.root.join(AUTHORITY), self.secrets.authority.certificate.as_bytes())?;
        for policy in self.policies.iter().filter(|policy| WRITTEN_POLICIES.contains(&policy.name.as_str())) {
            let text = format!("{}\n", served.policy_string(policy));
            let name = format!("{}.connection-string", policy.name);
            write_private(&self.root.join(name), text.as_bytes())?;
        }
        if let Some(policy) = self.service_policy() {
            let text = format!("{}\n", served.events_string(policy));
            write_private(&self.root.join(EVENTS), text.as_bytes())?;
        }
        self.write_page_address(&served, now)?;
        write_private(&self.root.join(HTTPS_ADDRESS), format!("{}\n", served.https).as_bytes())?;
        self.files.serve(served);
        self.devices.iter().try_for_each(|(device, _)| self.write_files_of(device))?;
        self.write_environment()
    }

    /// Stores a device that a back end has made or changed, and writes its files.
    ///
    /// # Errors
    /// Fails if a file cannot be written. In this case the device is stored as before.
    pub(super) fn register(&mut self, device: &Device, record: &IdentityRecord) -> Result<(), StateDirError> {
        let (id, Secrets { registered, records, .. }) = (&device.id, &mut self.secrets);
        let before = (
            registered.insert(id.clone(), Registered::new(&device.credential)),
            records.insert(id.clone(), record.clone()),
        );
        let before_credential = before.0.as_ref().and_then(Registered::credential);
        let was_by_authority = matches!(before_credential, Some(DeviceCredential::Authority));
        if let Err(error) = self.store(device, was_by_authority) {
            let is_new = before.1.is_none();
            let Secrets { registered, records, .. } = &mut self.secrets;
            registered.remove(id);
            records.remove(id);
            registered.extend(before.0.map(|stored| (id.clone(), stored)));
            records.extend(before.1.map(|record| (id.clone(), record)));
            self.take_back_files(id, before_credential, is_new);
            return Err(error);
        }
        Ok(())
    }

    /// Writes the files first: the line in the file of devices is what counts, so nothing may fail after it.
    fn store(&mut self, device: &Device, was_by_authority: bool) -> Result<(), StateDirError> {
        if was_by_authority != matches!(device.credential, DeviceCredential::Authority) {
            // The files of the other credential would be taken for those of this one.
            self.files.remove(&device.id)?;
        }
        self.write_files_of(device)?;
        self.write_environment()?;
        self.secret_files.write_device(&self.secrets, &device.id)
    }

    /// Makes the files for clients as they were before a change that failed. Each start makes them anew, too.
    fn take_back_files(&self, id: &str, credential: Option<DeviceCredential>, is_new: bool) {
        let credential =
            credential.or_else(|| self.secrets.devices.get(id)?.read().map(DeviceCredential::Keys));
        let restored = match credential {
            _ if is_new => self.files.remove(id),
            Some(credential) => self.write_files_of(&Device { id: id.to_owned(), credential }),
            None => Ok(()),
        };
        if let Err(error) = restored.and_then(|()| self.write_environment()) {
            tracing::warn!(
                device_id = id,
                "the files of a device that was not changed may be wrong: {error}"
            );
        }
    }

    /// Removes a device and everything about it, including its files.
    ///
    /// # Errors
    /// Fails if the file of devices cannot be written. In this case nothing has changed.
    pub(super) fn forget(&mut self, device_id: &str) -> Result<(), StateDirError> {
        let Secrets { devices, x509_devices, registered, records, .. } = &mut self.secrets;
        let before = (
            devices.remove(device_id),
            x509_devices.remove(device_id),
            registered.remove(device_id),
            records.remove(device_id),
        );
        if let Err(error) = self.secret_files.write_device(&self.secrets, device_id) {
            let Secrets { devices, x509_devices, registered, records, .. } = &mut self.secrets;
            devices.extend(before.0.map(|stored| (device_id.to_owned(), stored)));
            x509_devices.extend(before.1.map(|stored| (device_id.to_owned(), stored)));
            registered.extend(before.2.map(|stored| (device_id.to_owned(), stored)));
            records.extend(before.3.map(|record| (device_id.to_owned(), record)));
            return Err(error);
        }
        // The device is gone, whatever becomes of its files.
        if let Err(error) = self.files.remove(device_id).and_then(|()| self.write_environment()) {
            tracing::warn!(device_id, "files of a device that was deleted are left: {error}");
        }
        Ok(())
    }

    /// Writes the file `env`. Before the places of the emulator are known, nothing is written.
    fn write_environment(&self) -> Result<(), StateDirError> {
        let Some(served) = self.files.served() else { return Ok(()) };
        environment::write(&self.root, served, self.first_device().as_ref(), self.service_policy())
    }

    fn service_policy(&self) -> Option<&AccessPolicy> {
        self.policies.iter().find(|policy| policy.name == SERVICE_POLICY)
    }

    /// The first device of this start that has a key, and that key.
    fn first_device(&self) -> Option<(String, String)> {
        let devices = self.named.iter().filter(|id| !identity::is_module(id));
        devices.into_iter().find_map(|id| Some((id.clone(), self.key_of(id)?)))
    }

    /// The primary key of a device. If a back end has changed the device, its change takes precedence.
    fn key_of(&self, id: &str) -> Option<String> {
        let stored = match self.secrets.registered.get(id) {
            Some(Registered { keys, .. }) => keys.as_ref(),
            None => self.secrets.devices.get(id),
        };
        let known = self.has_known_keys && !self.secrets.registered.contains_key(id);
        let keys = stored.and_then(|own| if known { known_keys::pair() } else { own.read() });
        keys.map(|keys| keys.primary.expose_base64())
    }

    fn write_files_of(&self, device: &Device) -> Result<(), StateDirError> {
        if matches!(device.credential, DeviceCredential::Authority) {
            return self.write_certificate_of(&device.id);
        }
        let generation = self.secrets.records.get(&device.id).map(|record| record.generation.as_str());
        self.files.write(device, generation.unwrap_or_default(), self.secrets.x509_devices.get(&device.id))
    }

    /// Writes a certificate that the authority signs, unless there is one. For an id that is no common name, none can be
    /// made.
    fn write_certificate_of(&self, id: &str) -> Result<(), StateDirError> {
        if self.files.has_certificate(id) || id.len() > certificates::MAX_COMMON_NAME {
            return Ok(());
        }
        let own = certificates::make_vouched_device(&self.secrets.authority, id, self.started)
            .map_err(|error| unmade(id, &error))?;
        self.files.write_certificate(id, &own)
    }

    /// Writes the address of the emulator's page. It ends with a token of the service policy that is valid for a year.
    fn write_page_address(&self, served: &Served, now: SystemTime) -> Result<(), StateDirError> {
        let host = HostPort { name: served.hostname.clone(), port: Some(served.https.port()) };
        let Some(policy) = self.service_policy() else { return Ok(()) };
        let expiry = now + PAGE_LIFETIME;
        let token = SasToken::sign(&policy.keys.primary, &served.hostname, Some(SERVICE_POLICY), expiry);
        let token = utf8_percent_encode(token.expose(), NON_ALPHANUMERIC);
        write_private(&self.root.join(PAGE_ADDRESS), format!("https://{host}/#{token}\n").as_bytes())
    }
}

/// The directory of a further hub in that of the emulator.
pub(super) fn further(root: &Path, hub: &str) -> PathBuf {
    root.join(FURTHER_HUBS).join(hub.to_ascii_lowercase())
}

/// Makes two random keys.
///
/// # Errors
/// Fails if the system gives no random numbers.
pub(super) fn make_keys() -> Result<KeyPair, StateDirError> {
    let made = StoredKeys::make()?;
    made.read().ok_or_else(|| StateDirError::Certificate {
        name: "a shared access key".to_owned(),
        reason: "it cannot be read back".to_owned(),
    })
}

/// Gives every identity a record. A device whose modules this start names is an edge device, unless a back end has said
/// otherwise.
fn add_records(
    secrets: &mut Secrets,
    named: &[String],
    x509_devices: &[String],
) -> Result<(), StateDirError> {
    let Secrets { registered, records, .. } = secrets;
    for id in named.iter().chain(x509_devices).chain(registered.keys()) {
        if !records.contains_key(id) {
            let enabled = registered.get(id).and_then(|stored| stored.enabled).unwrap_or(true);
            records.insert(id.clone(), IdentityRecord { enabled, ..new_record()? });
        }
    }
    for id in named.iter().filter(|id| identity::is_module(id)) {
        let device = identity::split(id).0;
        if let Some(record) = records.get_mut(device).filter(|_| !registered.contains_key(device)) {
            record.is_edge = true;
        }
    }
    Ok(())
}

fn certificate(pem: &str) -> Option<CertificateDer<'static>> {
    CertificateDer::from_pem_slice(pem.as_bytes()).ok()
}

#[cfg(test)]
mod tests;
