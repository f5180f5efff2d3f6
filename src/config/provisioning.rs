//! Reads how the device is enrolled: the `[provisioning]` table, and the environment.
//!
//! Owns: its keys, and what they may be. Must not know: how a registration is made, what came of an earlier one.

use std::path::{Path, PathBuf};

use crate::certificate;
use crate::credentials::{CredentialError, HostPort, SasError, SharedAccessKey};
use crate::provisioning::{
    Enrolment, EnrolmentAuth, GLOBAL_ENDPOINT, check_id_scope, check_registration_id, derive_key,
};
use crate::tls::{self, ClientCertificate};

use super::field::{Field, shown};
use super::files;
use super::key::{Absent, FilePath, Flag, Key, Text};
use super::report::{Place, Report};
use super::secret_files::{Places, read_pair, read_secret_path, warn_if_world_readable};
use super::table::Table;

/// These take the place of keys, for containers.
pub(super) const ID_SCOPE_VARIABLE: &str = "C2D_PROVISIONING_ID_SCOPE";
const REGISTRATION_ID_VARIABLE: &str = "C2D_PROVISIONING_REGISTRATION_ID";
const KEY_VARIABLE: &str = "C2D_PROVISIONING_KEY";
const ENDPOINT_VARIABLE: &str = "C2D_PROVISIONING_ENDPOINT";

pub(super) const ID_SCOPE: Key<Text> = Key {
    name: "id_scope",
    kind: Text,
    absent: Absent::Nothing,
    about: "which provisioning service, as its overview shows; `C2D_PROVISIONING_ID_SCOPE` takes precedence",
};
pub(super) const REGISTRATION_ID: Key<Text> = Key {
    name: "registration_id",
    kind: Text,
    absent: Absent::Nothing,
    about: "who asks; default: the certificate's CN, else the host name of this machine. \
            `C2D_PROVISIONING_REGISTRATION_ID` takes precedence",
};
pub(super) const KEY_FILE: Key<FilePath> = Key {
    name: "key_file",
    kind: FilePath,
    absent: Absent::Nothing,
    about: "holds the device's key in base64: that of its individual enrolment, or one that `c2d-agent provision derive-key` \
            derived from a group's key. `C2D_PROVISIONING_KEY` holds the key itself, for containers",
};
pub(super) const GROUP_KEY_FILE: Key<FilePath> = Key {
    name: "group_key_file",
    kind: FilePath,
    absent: Absent::Nothing,
    about: "holds the key of an enrolment group; for tests only, because who reads it can be every device of the group",
};
pub(super) const CERTIFICATE: Key<FilePath> = Key {
    name: "certificate",
    kind: FilePath,
    absent: Absent::Nothing,
    about: "in place of a key: the device's certificate and its chain, as PEM",
};
pub(super) const PRIVATE_KEY: Key<FilePath> = Key {
    name: "private_key",
    kind: FilePath,
    absent: Absent::Nothing,
    about: "the certificate's private key, as PEM",
};
pub(super) const ENDPOINT: Key<Text> = Key {
    name: "endpoint",
    kind: Text,
    absent: Absent::Means(GLOBAL_ENDPOINT),
    about: "the host of the service, with a port where it is another one; `C2D_PROVISIONING_ENDPOINT` takes precedence",
};
pub(super) const PAYLOAD: Key<FilePath> = Key {
    name: "payload",
    kind: FilePath,
    absent: Absent::Nothing,
    about: "a file with a JSON object for a custom allocation; at most 64 KiB",
};
pub(super) const REQUEST_CERTIFICATE: Key<Flag> = Key {
    name: "request_certificate",
    kind: Flag,
    absent: Absent::Means("false"),
    about: "whether the service is asked to issue a certificate for the hub, which the agent then renews by itself: a \
            preview of the service. See [Certificates](../guides/certificates.md)",
};
/// Where the kernel tells the name of the machine. Source: proc_sys_kernel(5).
const HOST_NAME: &str = "/proc/sys/kernel/hostname";
/// A key in base64 has 88 characters at most.
const MAX_KEY_BYTES: u64 = 1024;
/// A request has 96 KB at most. Source: azure-docs, iot-dps-limits.
const MAX_PAYLOAD_BYTES: u64 = 64 * 1024;

/// Whether the device is enrolled, rightly or wrongly.
pub(super) fn is_wanted(field: Option<&Field<'_>>, env: &dyn Fn(&str) -> Option<String>) -> bool {
    field.is_some() || variable(env, ID_SCOPE_VARIABLE).is_some()
}

/// Reads `[provisioning]`, and the file of its secret, if there is one. `None` if the table is absent, and after a problem
/// was reported.
pub(super) fn read(
    field: Option<Field<'_>>,
    places: &Places<'_>,
    env: &dyn Fn(&str) -> Option<String>,
    report: &mut Report,
) -> Option<(Enrolment, Option<PathBuf>)> {
    if !is_wanted(field.as_ref(), env) {
        return None;
    }
    let place = field.as_ref().map_or(Place::Environment, |field| field.key_place.clone().into());
    let mut table = match field {
        Some(field) => field.table("[provisioning]", report)?,
        None => Table::absent("[provisioning]"),
    };
    let before = report.problems();
    let mut text = |key, name, check: fn(&str) -> Result<(), String>, report: &mut Report| {
        let field = table.take(key);
        let (text, place) = match variable(env, name) {
            Some(text) => (text, Place::Environment),
            None => (field.as_ref()?.text(report)?.to_owned(), field?.value.place.into()),
        };
        check(&text).map_err(|message| report.problem(place, message)).ok().map(|()| text)
    };
    let id_scope = text(&ID_SCOPE, ID_SCOPE_VARIABLE, check_id_scope, report);
    if id_scope.is_none() && report.problems() == before {
        let message = "[provisioning] lacks id_scope: copy it from the overview of the provisioning service";
        report.problem(place.clone(), message);
    }
    let registration_id = text(&REGISTRATION_ID, REGISTRATION_ID_VARIABLE, check_registration_id, report);
    let endpoint = text(&ENDPOINT, ENDPOINT_VARIABLE, check_endpoint, report);
    let proof = read_proof(&mut table, places, env, &place, report);
    let request_certificate = table.read(&REQUEST_CERTIFICATE, report).unwrap_or_default();
    let payload = table.take(&PAYLOAD).and_then(|field| read_payload(&field, places, report));
    table.finish(report);
    if report.problems() > before {
        return None;
    }
    let proof = proof?;
    let registration_id = registration_id.or_else(|| default_id(&proof, &place, report))?;
    warn_of_id(&registration_id, &proof, &place, report);
    let secret_file = proof.file();
    let enrolment = Enrolment {
        endpoint: HostPort::parse(endpoint.as_deref().unwrap_or(GLOBAL_ENDPOINT))?,
        id_scope: id_scope?,
        auth: proof.of(&registration_id),
        registration_id,
        payload,
        request_certificate,
    };
    Some((enrolment, secret_file))
}

/// What proves the registration id. A key has its file, unless it came from the environment.
enum ReadProof {
    Key(SharedAccessKey, Option<PathBuf>),
    GroupKey(SharedAccessKey, PathBuf),
    Certificate(ClientCertificate),
}

impl ReadProof {
    /// The file of the secret.
    fn file(&self) -> Option<PathBuf> {
        match self {
            Self::Key(_, file) => file.clone(),
            Self::GroupKey(_, file) => Some(file.clone()),
            Self::Certificate(pair) => Some(pair.private_key.clone()),
        }
    }

    fn of(self, registration_id: &str) -> EnrolmentAuth {
        match self {
            Self::Key(key, _) => EnrolmentAuth::Key(key),
            Self::GroupKey(group, _) => EnrolmentAuth::Key(derive_key(&group, registration_id)),
            Self::Certificate(ClientCertificate { certificate, private_key }) => {
                EnrolmentAuth::Certificate { certificate, private_key }
            }
        }
    }

    /// The common name of the certificate, if there is one.
    fn common_name(&self) -> Option<String> {
        let Self::Certificate(pair) = self else { return None };
        certificate::common_name(tls::read_certificates(&pair.certificate).ok()?.first()?)
    }
}

fn variable(env: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    env(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

fn check_endpoint(text: &str) -> Result<(), String> {
    let problem = || CredentialError::Host("endpoint", shown(text)).to_string();
    HostPort::parse(text).map(drop).ok_or_else(problem)
}

/// The common name of the certificate, or else the host name of this machine, if it can be a registration id.
fn default_id(proof: &ReadProof, place: &Place, report: &mut Report) -> Option<String> {
    let (what, name) = match proof {
        ReadProof::Certificate(_) => ("the common name (CN) of the certificate", proof.common_name()),
        ReadProof::Key(..) | ReadProof::GroupKey(..) => {
            let name = files::read_text(Path::new(HOST_NAME), MAX_KEY_BYTES).ok();
            ("the host name of this machine", name.map(|name| name.trim().to_owned()))
        }
    };
    let name = name.unwrap_or_default();
    if check_registration_id(&name).is_ok() {
        return Some(name);
    }
    let name = shown(&name);
    let message =
        format!("[provisioning] lacks registration_id, and {what}, \"{name}\", cannot be one: give it");
    report.problem(place.clone(), message);
    None
}

/// Warns of an id that the service may take for another one.
fn warn_of_id(id: &str, proof: &ReadProof, place: &Place, report: &mut Report) {
    if id.contains(|c: char| c.is_ascii_uppercase()) {
        let message = format!(
            "the registration id {id} has capitals: the service compares it without case, but the key of a group is \
             derived from its exact letters; write it in small letters, and derive the key from those"
        );
        report.warning(place.clone(), message);
    }
    match proof.common_name() {
        Some(name) if !name.eq_ignore_ascii_case(id) => {
            let name = shown(&name);
            let message = format!(
                "the common name (CN) of the certificate is \"{name}\", but the registration id is {id}: the service refuses \
                 a certificate with another name"
            );
            report.warning(place.clone(), message);
        }
        _ => {}
    }
}

fn read_proof(
    table: &mut Table<'_>,
    places: &Places<'_>,
    env: &dyn Fn(&str) -> Option<String>,
    place: &Place,
    report: &mut Report,
) -> Option<ReadProof> {
    let from_environment = variable(env, KEY_VARIABLE);
    let (key_file, group_file) = (table.take(&KEY_FILE), table.take(&GROUP_KEY_FILE));
    let (certificate, private_key) = (table.take(&CERTIFICATE), table.take(&PRIVATE_KEY));
    let given = [
        from_environment.as_ref().map(|_| KEY_VARIABLE),
        key_file.as_ref().map(|field| field.key),
        group_file.as_ref().map(|field| field.key),
        certificate.as_ref().or(private_key.as_ref()).map(|field| field.key),
    ];
    let given: Vec<_> = given.into_iter().flatten().collect();
    if let [first, second, ..] = given[..] {
        let message = format!("the device has two proofs, {first} and {second}: keep one");
        report.problem(place.clone(), message);
        return None;
    }
    if let Some(text) = from_environment {
        let wrong = |error: SasError| report.problem(Place::Environment, format!("{KEY_VARIABLE}: {error}"));
        let key = SharedAccessKey::from_base64_in_limits(&text).map_err(wrong).ok()?;
        return Some(ReadProof::Key(key, None));
    }
    if let Some(field) = key_file {
        return read_key(&field, places, report).map(|(key, file)| ReadProof::Key(key, Some(file)));
    }
    if let Some(field) = group_file {
        let message = "with the key of a group, this machine can sign in as every device of the group: derive the key of this \
                       one elsewhere (c2d-agent provision derive-key) and give it as key_file";
        report.warning(field.value.place.clone(), message);
        return read_key(&field, places, report).map(|(key, file)| ReadProof::GroupKey(key, file));
    }
    match (certificate, private_key) {
        (Some(certificate), Some(private_key)) => {
            read_pair(&certificate, &private_key, places, report).map(ReadProof::Certificate)
        }
        (Some(_), None) | (None, Some(_)) => {
            report.problem(place.clone(), "certificate and private_key belong together: give both");
            None
        }
        (None, None) => {
            let message = match place {
                Place::Environment => format!(
                    "{ID_SCOPE_VARIABLE} is set, but the proof of the device is missing: set {KEY_VARIABLE}, give \
                     [provisioning] a key_file or a certificate and private_key, or unset {ID_SCOPE_VARIABLE}"
                ),
                _ => format!(
                    "[provisioning] lacks the proof: give key_file, or certificate and private_key, or set {KEY_VARIABLE}"
                ),
            };
            report.problem(place.clone(), message);
            None
        }
    }
}

fn read_key(
    field: &Field<'_>,
    places: &Places<'_>,
    report: &mut Report,
) -> Option<(SharedAccessKey, PathBuf)> {
    let path = read_secret_path(field, places, report)?;
    let read = files::read_text(&path, MAX_KEY_BYTES)
        .map_err(|reason| format!("cannot read {}: {reason}", path.display()));
    let key = read.and_then(|text| {
        SharedAccessKey::from_base64_in_limits(&text).map_err(|error| format!("{}: {error}", path.display()))
    });
    match key {
        Ok(key) => {
            warn_if_world_readable(&path, field, report);
            Some((key, path))
        }
        Err(message) => field.wrong(message, report),
    }
}

fn read_payload(field: &Field<'_>, places: &Places<'_>, report: &mut Report) -> Option<serde_json::Value> {
    let path = places.directory.join(field.text(report)?);
    let text = files::read_text(&path, MAX_PAYLOAD_BYTES);
    let text = text.map_err(|reason| format!("cannot read {}: {reason}", path.display()));
    let object = text.and_then(|text| match serde_json::from_str(&text) {
        Ok(payload @ serde_json::Value::Object(_)) => Ok(payload),
        Ok(_) => Err(format!("{} has JSON, but no object: write {{…}}", path.display())),
        Err(error) => Err(format!("{} is no JSON: {error}", path.display())),
    });
    match object {
        Ok(payload) => Some(payload),
        Err(message) => field.wrong(message, report),
    }
}
