//! Reads who the device is: the `[device]` table, and the environment.
//!
//! Owns: its keys, and which source of the identity is used. Must not know: tokens, sockets.
//!
//! The identity comes from one place only. Two places are a problem, because the wrong one could be used unnoticed.

use std::path::{Path, PathBuf};
use std::time::Duration;

use toml::de::DeValue;

use crate::credentials::{
    CredentialError, DeviceAuth, DeviceConnectionString, DeviceIdentity, DeviceSecret, HostPort, Route,
    Transport, check_device_host, check_device_id,
};
use crate::tls::{self, ClientCertificate};

use super::field::{Field, shown};
use super::files;
use super::key::{Absent, FilePath, Key, Span, Text};
use super::report::{Place, Report, holds_a_secret};
use super::secret_files::{Places, check_file, read_pair, read_secret_path, warn_if_world_readable};
use super::table::Table;
use super::transport;

/// The credential that names the device if the configuration and the environment do not.
const CONNECTION_STRING_CREDENTIAL: &str = "device.connection-string";
/// Holds a device connection string.
pub(super) const CONNECTION_STRING_VARIABLE: &str = "C2D_DEVICE_CONNECTION_STRING";
/// Names the file of a private root; takes precedence over `ca_file`.
pub(super) const CA_FILE_VARIABLE: &str = "C2D_CA_FILE";

pub(super) const STRING_FILE: Key<FilePath> = Key {
    name: "connection_string_file",
    kind: FilePath,
    absent: Absent::Nothing,
    about: "holds `HostName=…;DeviceId=…;SharedAccessKey=…` (optionally `GatewayHostName=…`); in place of the key a ready \
            token, `SharedAccessSignature=…`",
};
pub(super) const HUB: Key<Text> = Key {
    name: "hub",
    kind: Text,
    absent: Absent::Nothing,
    about: "with X.509, in place of `connection_string_file`: the hub's host name, with a port where it is another one",
};
pub(super) const DEVICE_ID: Key<Text> =
    Key { name: "device_id", kind: Text, absent: Absent::Nothing, about: "with X.509: the device's id" };
pub(super) const GATEWAY: Key<Text> = Key {
    name: "gateway",
    kind: Text,
    absent: Absent::Nothing,
    about: "with X.509: an IoT Edge gateway to connect to instead of the hub",
};
pub(super) const CERTIFICATE: Key<FilePath> = Key {
    name: "certificate",
    kind: FilePath,
    absent: Absent::Nothing,
    about: "with X.509: the device's certificate and its chain to the root, as PEM. See \
            [Certificates](../guides/certificates.md)",
};
pub(super) const PRIVATE_KEY: Key<FilePath> = Key {
    name: "private_key",
    kind: FilePath,
    absent: Absent::Nothing,
    about: "with X.509: the certificate's private key, as PEM",
};
pub(super) const CA_FILE: Key<FilePath> = Key {
    name: "ca_file",
    kind: FilePath,
    absent: Absent::Nothing,
    about: "a private root to trust in addition to the system's, as PEM; `C2D_CA_FILE` takes precedence",
};
pub(super) const TOKEN_LIFETIME: Key<Span> = Key {
    name: "token_lifetime",
    kind: Span(Duration::from_secs(5), Duration::from_secs(30 * 24 * 60 * 60)),
    absent: Absent::Means("1h"),
    about: "how long a SAS token is valid; the agent renews it at 80 % of this time, over AMQP without \
            closing the connection",
};
pub(super) const DEFAULT_TOKEN_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// The hub ends an MQTT session after a silence of one and a half times this value, and at the latest after 1767 s.
/// Source: wire reference 1.4.
pub(super) const KEEP_ALIVE: Key<Span> = Key {
    name: "keep_alive",
    kind: Span(Duration::from_secs(1), Duration::from_secs(1177)),
    absent: Absent::Means("60s"),
    about: "how often each side sends a sign of life; if nothing comes for twice this time, the agent \
            connects again",
};
/// A connection string with a token is much shorter.
const MAX_CONNECTION_STRING_BYTES: u64 = 16 * 1024;

/// What `[device]` and the environment say; `identity` is absent if there was a problem with it.
pub(super) struct DeviceTable {
    pub(super) identity: Option<DeviceIdentity>,
    /// Whether a variable names it.
    pub(super) is_of_environment: bool,
    /// The file that holds the key, the token or the private key.
    pub(super) secret_file: Option<PathBuf>,
    pub(super) ca_file: Option<PathBuf>,
    pub(super) token_lifetime: Duration,
    pub(super) transport: Transport,
    pub(super) route: Route,
}

/// What names who signs in, if `[device]` does not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Elsewhere {
    /// The device is enrolled.
    Provisioning,
    /// The environment names a module.
    Module,
}

/// The fields that make an identity.
struct IdentityFields<'t> {
    place: std::ops::Range<usize>,
    connection_string_file: Option<Field<'t>>,
    hub: Option<Field<'t>>,
    device_id: Option<Field<'t>>,
    gateway: Option<Field<'t>>,
    certificate: Option<Field<'t>>,
    private_key: Option<Field<'t>>,
}

impl IdentityFields<'_> {
    /// Whether a key is set that only a device needs.
    fn begin_a_device(&self) -> bool {
        [&self.device_id, &self.gateway, &self.certificate, &self.private_key]
            .iter()
            .any(|field| field.is_some())
    }
}

/// Reads `[device]`. A process that is a module, or that enrols its device, needs no device there; `elsewhere` says which.
pub(super) fn read(
    field: Option<Field<'_>>,
    places: &Places<'_>,
    env: &dyn Fn(&str) -> Option<String>,
    elsewhere: Option<Elsewhere>,
    report: &mut Report,
) -> DeviceTable {
    let directory = places.directory;
    let variable = |name: &str| env(name).filter(|value| !value.trim().is_empty());
    let from_environment = variable(CONNECTION_STRING_VARIABLE);
    let mut ca_file = variable(CA_FILE_VARIABLE).map(|path| (PathBuf::from(path), None));
    let mut token_lifetime = DEFAULT_TOKEN_LIFETIME;
    let mut transport = Transport::default();
    let mut route = Route::default();
    let mut fields = None;
    if let Some(mut table) = field.and_then(|field| field.table("[device]", report)) {
        if let Some(lifetime) = table.read(&TOKEN_LIFETIME, report) {
            token_lifetime = lifetime;
        }
        if let Some(field) = table.take(&transport::TRANSPORT) {
            (transport, route) = transport::read(&field, env, report);
        }
        if let Some(keep_alive) = table.read(&KEEP_ALIVE, report) {
            route.keep_alive = keep_alive;
        }
        if let Some(field) = table.take(&CA_FILE) {
            let own = field.text(report).map(|path| (directory.join(path), Some(field.value.place)));
            ca_file = ca_file.or(own);
        }
        fields = Some(take_fields(&mut table, report));
        table.finish(report);
    }
    if let Some((path, place)) = &ca_file {
        let checked =
            check_file(path).and_then(|()| tls::read_certificates(path).map_err(|error| error.to_string()));
        if let Err(reason) = checked {
            match place {
                Some(place) => report.problem(place.clone(), reason),
                None => report.problem(Place::Environment, format!("{CA_FILE_VARIABLE}: {reason}")),
            }
        }
    }
    let named = fields.as_ref().and_then(|fields| fields.connection_string_file.as_ref());
    let named = named.and_then(|field| match field.value.value {
        DeValue::String(text) if !holds_a_secret(text) => Some(directory.join(&**text)),
        _ => None,
    });
    // The file and the variable may have one string, as in the shell that `init` took it from: that is one device.
    let from_environment = from_environment.filter(|text| {
        let in_file = named.as_ref().and_then(|path| read_connection_string(path).ok());
        in_file.is_none_or(|own| own != text.trim())
    });
    let identity = read_identity(fields, from_environment.as_deref(), places, elsewhere, report);
    let secret_file = match identity.as_ref().map(|identity| &identity.auth) {
        Some(DeviceAuth::Certificate { private_key, .. }) => Some(private_key.clone()),
        _ if from_environment.is_some() => None,
        _ => match named {
            Some(path) => Some(places.readable(path.clone()).unwrap_or(path)),
            None => places.credential(CONNECTION_STRING_CREDENTIAL.as_ref()),
        },
    };
    let ca_file = ca_file.map(|(path, _)| path);
    let is_of_environment = from_environment.is_some();
    DeviceTable { identity, is_of_environment, secret_file, ca_file, token_lifetime, transport, route }
}

fn take_fields<'t>(table: &mut Table<'t>, report: &mut Report) -> IdentityFields<'t> {
    if let Some(field) = table.take_unlisted("connection_string") {
        let message = "everyone can read the configuration, so it must not contain a connection string: \
                       write it to a file of its own and name that file with connection_string_file";
        report.problem(field.key_place, message);
    }
    IdentityFields {
        place: table.place.clone(),
        connection_string_file: table.take(&STRING_FILE),
        hub: table.take(&HUB),
        device_id: table.take(&DEVICE_ID),
        gateway: table.take(&GATEWAY),
        certificate: table.take(&CERTIFICATE),
        private_key: table.take(&PRIVATE_KEY),
    }
}

fn read_identity(
    fields: Option<IdentityFields<'_>>,
    from_environment: Option<&str>,
    places: &Places<'_>,
    elsewhere: Option<Elsewhere>,
    report: &mut Report,
) -> Option<DeviceIdentity> {
    let file = fields.as_ref().and_then(|fields| fields.connection_string_file.as_ref());
    let hub = fields.as_ref().and_then(|fields| fields.hub.as_ref());
    match (from_environment, file, hub) {
        (Some(_), Some(other), _) | (Some(_), None, Some(other)) => {
            let message = format!(
                "the device is named twice, by {CONNECTION_STRING_VARIABLE} and by {}: unset the variable or \
                 remove the key",
                other.key
            );
            report.problem(other.key_place.clone(), message);
            None
        }
        (None, Some(file), Some(hub)) => {
            let message = "the device is named twice, by connection_string_file and by hub: keep one";
            let related = (file.key_place.clone(), "connection_string_file is here");
            report.problem_with(hub.key_place.clone(), message, related);
            None
        }
        (Some(text), None, None) => {
            let source =
                StringSource { place: Place::Environment, name: CONNECTION_STRING_VARIABLE.to_owned() };
            from_connection_string(text, &source, fields, places, report)
        }
        (None, Some(field), None) => {
            let field = field.clone();
            let path = read_secret_path(&field, places, report)?;
            let text = match read_connection_string(&path) {
                Ok(text) => text,
                Err(message) => return field.wrong(message, report),
            };
            warn_if_world_readable(&path, &field, report);
            let source = StringSource { place: field.value.place.into(), name: path.display().to_string() };
            from_connection_string(&text, &source, fields, places, report)
        }
        (None, None, Some(_)) => from_fields(fields?, places, report),
        (None, None, None) => match places.credential(CONNECTION_STRING_CREDENTIAL.as_ref()) {
            Some(path) => {
                let source = StringSource { place: Place::Environment, name: path.display().to_string() };
                match read_connection_string(&path) {
                    Ok(text) => from_connection_string(&text, &source, fields, places, report),
                    Err(message) => {
                        report.problem(Place::Environment, message);
                        None
                    }
                }
            }
            None if elsewhere.is_some() && !fields.as_ref().is_some_and(IdentityFields::begin_a_device) => {
                None
            }
            None if elsewhere == Some(Elsewhere::Provisioning) => {
                let message = "[provisioning] names the device, so device_id, gateway, certificate and private_key have no \
                               place in [device]: remove them here";
                report.problem(fields.map(|fields| fields.place), message);
                None
            }
            None => {
                let message = format!(
                    "the device is not named: set {CONNECTION_STRING_VARIABLE}, or give \
                     connection_string_file in [device], or hub, device_id, certificate and private_key \
                     there; to run as an IoT Edge module, let edgeAgent start the agent: it sets \
                     IOTEDGE_WORKLOADURI"
                );
                report.problem(fields.map(|fields| fields.place), message);
                None
            }
        },
    }
}

fn read_connection_string(path: &Path) -> Result<String, String> {
    let remedy =
        if path.exists() { "" } else { "; write the device's connection string to it, or correct the path" };
    let text = files::read_text(path, MAX_CONNECTION_STRING_BYTES)
        .map_err(|reason| format!("cannot read {}: {reason}{remedy}", path.display()))?;
    Ok(text.trim().to_owned())
}

/// Where a connection string came from, for messages.
struct StringSource {
    place: Place,
    name: String,
}

fn from_connection_string(
    text: &str,
    source: &StringSource,
    fields: Option<IdentityFields<'_>>,
    places: &Places<'_>,
    report: &mut Report,
) -> Option<DeviceIdentity> {
    let of_device = DeviceConnectionString::parse(text).and_then(|parsed| {
        if parsed.module_id.is_some() { Err(CredentialError::ModuleString) } else { Ok(parsed) }
    });
    let parsed = match of_device {
        Ok(parsed) => parsed,
        Err(error) => {
            report.problem(source.place.clone(), format!("{}: {error}", source.name));
            return None;
        }
    };
    let mut gateway = parsed.gateway;
    let (mut certificate, mut private_key) = (None, None);
    if let Some(fields) = fields {
        if let Some(field) = &fields.device_id {
            let message =
                format!("device_id has no effect here, because {} names the device: remove it", source.name);
            report.problem(field.key_place.clone(), message);
        }
        if let Some(field) = &fields.gateway {
            if gateway.is_some() {
                let message =
                    format!("the gateway is named twice, here and by GatewayHostName in {}", source.name);
                report.problem(field.key_place.clone(), message);
            }
            gateway = read_host(field, report);
        }
        (certificate, private_key) = (fields.certificate, fields.private_key);
    }
    let auth = match parsed.secret {
        DeviceSecret::X509 => {
            if certificate.is_none() || private_key.is_none() {
                let message = format!(
                    "{} says x509=true: name certificate and private_key in [device] as well",
                    source.name
                );
                report.problem(source.place.clone(), message);
            }
            by_certificate(read_pair(&certificate?, &private_key?, places, report)?)
        }
        other => {
            for field in [certificate, private_key].into_iter().flatten() {
                let message = format!(
                    "{} has no effect here, because {} has a key: remove one of them",
                    field.key, source.name
                );
                report.problem(field.key_place, message);
            }
            match other {
                DeviceSecret::Key(key) => DeviceAuth::Key(key),
                DeviceSecret::Token(token) => DeviceAuth::Token(token),
                DeviceSecret::X509 => return None,
            }
        }
    };
    Some(DeviceIdentity { hub: parsed.host, device_id: parsed.device_id, module_id: None, gateway, auth })
}

fn from_fields(
    fields: IdentityFields<'_>,
    places: &Places<'_>,
    report: &mut Report,
) -> Option<DeviceIdentity> {
    for (name, field) in [
        ("device_id", &fields.device_id),
        ("certificate", &fields.certificate),
        ("private_key", &fields.private_key),
    ] {
        if field.is_none() {
            let message = format!(
                "[device] lacks {name}: with hub, all of device_id, certificate, private_key are needed"
            );
            report.problem(fields.place.clone(), message);
        }
    }
    let hub = fields.hub.and_then(|field| read_host(&field, report));
    let gateway = fields.gateway.and_then(|field| read_host(&field, report));
    let device_id = fields.device_id.and_then(|field| {
        let id = field.text(report)?;
        match check_device_id(id) {
            Ok(()) => Some(id.to_owned()),
            Err(error) => field.wrong(error.to_string(), report),
        }
    });
    let auth = read_pair(&fields.certificate?, &fields.private_key?, places, report).map(by_certificate);
    Some(DeviceIdentity { hub: hub?, device_id: device_id?, module_id: None, gateway, auth: auth? })
}

fn by_certificate(pair: ClientCertificate) -> DeviceAuth {
    DeviceAuth::Certificate { certificate: pair.certificate, private_key: pair.private_key }
}

fn read_host(field: &Field<'_>, report: &mut Report) -> Option<HostPort> {
    let text = field.text(report)?;
    let host = HostPort::parse(text)
        .ok_or_else(|| CredentialError::Host(if field.key == "hub" { "hub" } else { "gateway" }, shown(text)))
        .and_then(|host| check_device_host(&host).map(|()| host));
    match host {
        Ok(host) => Some(host),
        Err(problem) => field.wrong(problem.to_string(), report),
    }
}
