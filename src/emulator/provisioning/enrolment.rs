//! Who may register, as a back end writes and reads it.
//!
//! Owns: the JSON of an enrolment, its defaults, and its etag. Must not know: registrations, files, HTTP.
//!
//! Source: `interfaces.ts` of Microsoft's Node SDK (`provisioning/service`), and the models of its C# SDK for what the
//! former lacks: allocation, re-provisioning, capabilities, symmetric keys. The file of the service holds the same JSON.
//! Fields that this emulator does not know are ignored.

use std::collections::BTreeSet;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::digest::{SHA256, digest};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::allocation::AllocationPolicy;
use super::attestation::{Attestation, EnrolmentKind};
use super::claim::is_registration_id;
use crate::credentials::{SharedAccessKey, check_device_id};
use crate::emulator::hubs::MAX_HUBS;
use crate::emulator::registry::{KeyPair, Thumbprint};
use crate::emulator::tls::{DeviceAuthority, described};
use crate::message::{excerpt, format_time, parse_time};

/// Longest key in base64: those of the service have 44 or 88 characters.
const MAX_KEY_CHARS: usize = 128;
/// Most characters of a certificate: a chain of one.
const MAX_CERTIFICATE_CHARS: usize = 16 * 1024;
/// Most bytes of an initial twin, as of tags and desired properties together.
const MAX_TWIN_BYTES: usize = 64 * 1024;

/// An enrolment.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::emulator) struct EnrolmentRecord {
    pub(in crate::emulator) kind: EnrolmentKind,
    /// The registration id, or the name of the group, as it was written.
    pub(in crate::emulator) id: String,
    pub(in crate::emulator) attestation: Attestation,
    pub(in crate::emulator) enabled: bool,
    /// The device id at the hub; `None` means the registration id.
    pub(in crate::emulator) device_id: Option<String>,
    /// The hubs to choose from; none means all.
    pub(in crate::emulator) hubs: Vec<String>,
    pub(in crate::emulator) allocation: AllocationPolicy,
    /// Whether a later registration may lead to another hub.
    pub(in crate::emulator) moves: bool,
    /// Whether the twin goes along.
    pub(in crate::emulator) migrates: bool,
    /// Tags and desired properties of a device that is new at a hub, as in the service API.
    pub(in crate::emulator) initial_twin: Option<Value>,
    pub(in crate::emulator) is_edge: bool,
    /// Whether the answer has the payload of the request, in the place of what a webhook would answer.
    pub(in crate::emulator) echoes: bool,
    pub(in crate::emulator) created: SystemTime,
    pub(in crate::emulator) updated: SystemTime,
}

/// An enrolment as it is sent and stored.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct EnrolmentBody {
    registration_id: Option<String>,
    enrollment_group_id: Option<String>,
    device_id: Option<String>,
    attestation: Option<AttestationBody>,
    iot_hub_host_name: Option<String>,
    iot_hubs: Option<Vec<String>>,
    allocation_policy: Option<String>,
    provisioning_status: Option<String>,
    reprovision_policy: Option<ReprovisionBody>,
    initial_twin: Option<Value>,
    capabilities: Option<CapabilitiesBody>,
    created_date_time_utc: Option<String>,
    last_updated_date_time_utc: Option<String>,
    /// Of this emulator only, in its file.
    echoes_payload: Option<bool>,
    etag: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AttestationBody {
    #[serde(rename = "type")]
    kind: Option<String>,
    symmetric_key: Option<SymmetricKeyBody>,
    x509: Option<X509Body>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SymmetricKeyBody {
    primary_key: Option<String>,
    secondary_key: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct X509Body {
    client_certificates: Option<CertificatesBody>,
    signing_certificates: Option<CertificatesBody>,
    ca_references: Option<Value>,
}

#[derive(Deserialize)]
struct CertificatesBody {
    primary: Option<CertificateBody>,
    secondary: Option<CertificateBody>,
}

#[derive(Deserialize)]
struct CertificateBody {
    certificate: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct ReprovisionBody {
    update_hub_assignment: Option<bool>,
    migrate_device_data: Option<bool>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct CapabilitiesBody {
    iot_edge: Option<bool>,
}

impl EnrolmentBody {
    /// The etag that an update names.
    pub(super) fn etag(&self) -> Option<&str> {
        self.etag.as_deref().filter(|etag| !etag.is_empty())
    }

    /// The id that it names, if it names one of this kind.
    pub(super) fn id(&self, kind: EnrolmentKind) -> Option<&str> {
        match kind {
            EnrolmentKind::Individual => self.registration_id.as_deref(),
            EnrolmentKind::Group => self.enrollment_group_id.as_deref(),
        }
    }

    /// Makes an enrolment of it. What is missing is kept from `present`, or gets the default of the service. `fresh` are
    /// keys for one that brings none.
    ///
    /// # Errors
    /// A sentence about the value that is wrong.
    pub(super) fn record(
        self,
        kind: EnrolmentKind,
        id: &str,
        present: Option<&EnrolmentRecord>,
        fresh: KeyPair,
        now: SystemTime,
    ) -> Result<EnrolmentRecord, String> {
        check_id(kind, id)?;
        if self.id(kind).is_some_and(|named| !named.eq_ignore_ascii_case(id)) {
            return Err("the id in the body is not the one in the path".to_owned());
        }
        let attestation = match (self.attestation, present) {
            (Some(sent), _) => sent.read(kind, present.map(|present| &present.attestation), fresh)?,
            (None, Some(present)) => present.attestation.clone(),
            (None, None) => return Err("the enrolment has no attestation".to_owned()),
        };
        if let Some(device_id) = &self.device_id {
            check_device_id(device_id).map_err(|error| error.to_string())?;
        }
        let named = self.iot_hub_host_name.filter(|name| !name.is_empty());
        let allocation = match self.allocation_policy.as_deref() {
            None if named.is_some() => AllocationPolicy::Static,
            None => AllocationPolicy::Hashed,
            Some(word) => AllocationPolicy::read(word).ok_or_else(|| {
                format!(
                    "\"{}\" is not an allocationPolicy: use hashed, geoLatency, static or custom",
                    excerpt(word)
                )
            })?,
        };
        let enabled = match self.provisioning_status.as_deref() {
            None | Some("enabled") => true,
            Some("disabled") => false,
            Some(other) => {
                return Err(format!(
                    "\"{}\" is not a provisioningStatus: use enabled or disabled",
                    excerpt(other)
                ));
            }
        };
        let initial_twin = self.initial_twin.filter(|twin| !twin.is_null());
        if initial_twin.as_ref().is_some_and(|twin| twin.to_string().len() > MAX_TWIN_BYTES) {
            return Err(format!("the initialTwin has more than {MAX_TWIN_BYTES} bytes"));
        }
        let (moves, migrates) = match self.reprovision_policy {
            None => (true, true),
            Some(policy) => {
                (policy.update_hub_assignment.unwrap_or(true), policy.migrate_device_data.unwrap_or(true))
            }
        };
        let mut hubs = named.map_or_else(|| self.iot_hubs.unwrap_or_default(), |name| vec![name]);
        if hubs.len() > MAX_HUBS {
            return Err(format!(
                "iotHubs has {} names, but an emulator has at most {MAX_HUBS} hubs",
                hubs.len()
            ));
        }
        let mut named = BTreeSet::new();
        hubs.retain(|hub| named.insert(hub.to_ascii_lowercase()));
        let time = |text: Option<String>| text.as_deref().and_then(parse_time);
        let stored = self.echoes_payload;
        Ok(EnrolmentRecord {
            kind,
            id: id.to_owned(),
            attestation,
            enabled,
            device_id: self.device_id.filter(|_| kind == EnrolmentKind::Individual),
            hubs,
            allocation,
            moves,
            migrates,
            initial_twin,
            is_edge: self.capabilities.and_then(|own| own.iot_edge).unwrap_or(false),
            echoes: stored.unwrap_or(allocation == AllocationPolicy::Custom),
            // Only what was stored says when it was made.
            created: time(self.created_date_time_utc.filter(|_| stored.is_some()))
                .or(present.map(|present| present.created))
                .unwrap_or(now),
            updated: time(self.last_updated_date_time_utc.filter(|_| stored.is_some())).unwrap_or(now),
        })
    }
}

impl AttestationBody {
    fn read(
        self,
        kind: EnrolmentKind,
        present: Option<&Attestation>,
        fresh: KeyPair,
    ) -> Result<Attestation, String> {
        match self.kind.as_deref() {
            Some("symmetricKey") => {
                let sent = self.symmetric_key.unwrap_or_default();
                let kept = match present {
                    Some(Attestation::Keys(keys)) => keys.clone(),
                    _ => fresh,
                };
                Ok(Attestation::Keys(KeyPair {
                    primary: key(sent.primary_key, kept.primary)?,
                    secondary: key(sent.secondary_key, kept.secondary)?,
                }))
            }
            Some("x509") => self.x509.unwrap_or_default().read(kind).map(Attestation::Certificates),
            Some("tpm") => Err("this emulator has no TPM attestation: use symmetricKey or x509".to_owned()),
            other => {
                let shown = excerpt(other.unwrap_or_default());
                Err(format!("\"{shown}\" is not a type of attestation: use symmetricKey or x509"))
            }
        }
    }
}

impl X509Body {
    fn read(self, kind: EnrolmentKind) -> Result<Vec<CertificateDer<'static>>, String> {
        if self.ca_references.is_some_and(|references| !references.is_null()) {
            return Err(
                "this emulator keeps no certificates by name: give the certificate, not caReferences".into(),
            );
        }
        let (sent, name) = match kind {
            EnrolmentKind::Individual => (self.client_certificates, "clientCertificates"),
            EnrolmentKind::Group => (self.signing_certificates, "signingCertificates"),
        };
        let sent = sent.map(|sent| [sent.primary, sent.secondary]).into_iter().flatten().flatten();
        let texts: Vec<String> = sent.filter_map(|sent| sent.certificate).collect();
        if texts.is_empty() {
            return Err(format!("the attestation lacks x509.{name}.primary.certificate"));
        }
        texts.iter().map(|text| certificate(kind, text)).collect()
    }
}

impl EnrolmentRecord {
    /// The enrolment in JSON; with its keys only if `with_keys`.
    pub(in crate::emulator) fn show(&self, with_keys: bool) -> Value {
        let mut shown = self.fields(with_keys);
        shown["etag"] = self.etag().into();
        shown
    }

    fn fields(&self, with_keys: bool) -> Value {
        let id = match self.kind {
            EnrolmentKind::Individual => "registrationId",
            EnrolmentKind::Group => "enrollmentGroupId",
        };
        let static_hub = self.hubs.first().filter(|_| self.allocation == AllocationPolicy::Static);
        let mut shown = Map::from_iter([(id.to_owned(), self.id.clone().into())]);
        let fields = json!({
            "attestation": self.attestation(with_keys),
            "provisioningStatus": if self.enabled { "enabled" } else { "disabled" },
            "allocationPolicy": self.allocation.word(),
            "iotHubs": self.hubs,
            "reprovisionPolicy": { "updateHubAssignment": self.moves, "migrateDeviceData": self.migrates },
            "capabilities": { "iotEdge": self.is_edge },
            "createdDateTimeUtc": format_time(self.created),
            "lastUpdatedDateTimeUtc": format_time(self.updated),
        });
        shown.extend(fields.as_object().cloned().unwrap_or_default());
        shown.extend(self.device_id.clone().map(|own| ("deviceId".to_owned(), own.into())));
        shown.extend(static_hub.map(|hub| ("iotHubHostName".to_owned(), hub.clone().into())));
        shown.extend(self.initial_twin.clone().map(|twin| ("initialTwin".to_owned(), twin)));
        shown.into()
    }

    /// The same, for the file: with keys and with what only this emulator has.
    pub(super) fn stored(&self) -> Value {
        let mut stored = self.show(true);
        stored["echoesPayload"] = self.echoes.into();
        stored
    }

    /// The attestation in JSON.
    pub(in crate::emulator) fn attestation(&self, with_keys: bool) -> Value {
        match &self.attestation {
            Attestation::Keys(keys) if with_keys => json!({
                "type": "symmetricKey",
                "symmetricKey": {
                    "primaryKey": keys.primary.expose_base64(),
                    "secondaryKey": keys.secondary.expose_base64(),
                },
            }),
            Attestation::Keys(_) => json!({ "type": "symmetricKey" }),
            Attestation::Certificates(certificates) => {
                let mut shown = certificates.iter().map(shown_certificate);
                let both = json!({ "primary": shown.next(), "secondary": shown.next() });
                let name = match self.kind {
                    EnrolmentKind::Individual => "clientCertificates",
                    EnrolmentKind::Group => "signingCertificates",
                };
                json!({ "type": "x509", "x509": { name: both } })
            }
        }
    }

    /// Changes with each change of the enrolment, and is the same after a restart.
    pub(in crate::emulator) fn etag(&self) -> String {
        let hash = digest(&SHA256, self.fields(true).to_string().as_bytes());
        STANDARD.encode(hash.as_ref().get(..9).unwrap_or_default())
    }
}

/// Whether a text may name an enrolment.
pub(super) fn check_id(kind: EnrolmentKind, id: &str) -> Result<(), String> {
    if is_registration_id(id) {
        return Ok(());
    }
    let what = match kind {
        EnrolmentKind::Individual => "a registration id",
        EnrolmentKind::Group => "the name of an enrolment group",
    };
    Err(format!(
        "\"{}\" is not {what}: use 1 to 128 letters, digits and -._: with a letter, a digit or - at the end",
        excerpt(id)
    ))
}

/// Reads a certificate: PEM, or DER in base64. An authority must be one that rustls takes.
pub(super) fn certificate(kind: EnrolmentKind, text: &str) -> Result<CertificateDer<'static>, String> {
    let unusable = || "the certificate is neither PEM nor DER in base64".to_owned();
    if text.len() > MAX_CERTIFICATE_CHARS {
        return Err(format!("the certificate has more than {MAX_CERTIFICATE_CHARS} characters"));
    }
    let der = if text.contains("-----BEGIN") {
        CertificateDer::from_pem_slice(text.as_bytes()).map_err(|_| unusable())?
    } else {
        let bare: String = text.split_ascii_whitespace().collect();
        STANDARD.decode(bare).map_err(|_| unusable())?.into()
    };
    described(&der).ok_or_else(|| "the certificate cannot be read".to_owned())?;
    if kind == EnrolmentKind::Group {
        let refused = |error| format!("the certificate of the group cannot be an authority: {error}");
        DeviceAuthority::new(der.clone()).map_err(refused)?;
    }
    Ok(der)
}

fn shown_certificate(certificate: &CertificateDer<'static>) -> Value {
    let mut info = described(certificate).unwrap_or_default();
    let (sha1, sha256) = Thumbprint::of(certificate).to_hex_of_both();
    info["sha1Thumbprint"] = sha1.into();
    info["sha256Thumbprint"] = sha256.into();
    json!({ "certificate": STANDARD.encode(certificate), "info": info })
}

fn key(sent: Option<String>, kept: SharedAccessKey) -> Result<SharedAccessKey, String> {
    match sent.filter(|key| !key.is_empty()) {
        None => Ok(kept),
        Some(key) if key.len() > MAX_KEY_CHARS => {
            Err(format!("a key has {} characters: use at most {MAX_KEY_CHARS}", key.len()))
        }
        Some(key) => SharedAccessKey::from_base64(&key).map_err(|_| "a key is not base64".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn keys(byte: u8) -> KeyPair {
        let key = SharedAccessKey::from_bytes([byte; 32]);
        KeyPair { primary: key.clone(), secondary: key }
    }

    fn read(
        kind: EnrolmentKind,
        body: Value,
        present: Option<&EnrolmentRecord>,
    ) -> Result<EnrolmentRecord, String> {
        let body: EnrolmentBody = serde_json::from_value(body).map_err(|error| error.to_string())?;
        body.record(kind, "a", present, keys(1), NOW)
    }

    #[test]
    fn an_enrolment_is_the_same_when_it_was_stored_and_read() {
        let sent = json!({
            "attestation": { "type": "symmetricKey" }, "deviceId": "pump-7", "iotHubs": ["b", "a"],
            "allocationPolicy": "geoLatency", "provisioningStatus": "disabled", "capabilities": { "iotEdge": true },
            "reprovisionPolicy": { "updateHubAssignment": false }, "initialTwin": { "tags": { "x": 1 } },
        });
        let made = read(EnrolmentKind::Individual, sent, None).expect("an enrolment");
        assert_eq!(made.attestation, Attestation::Keys(keys(1)), "keys are made where none are sent");
        assert_eq!((made.moves, made.migrates, made.enabled), (false, true, false));
        let stored = made.stored();
        assert!(stored["attestation"]["symmetricKey"]["primaryKey"].is_string());
        let body: EnrolmentBody = serde_json::from_value(stored).expect("its own form");
        let later = NOW + std::time::Duration::from_secs(9);
        let again = body.record(made.kind, "a", None, keys(2), later).expect("its own form");
        assert_eq!((&again, again.etag()), (&made, made.etag()));
    }

    #[test]
    fn a_change_without_keys_keeps_them_and_one_without_a_hub_does_not_keep_the_hub() {
        let first = json!({ "attestation": { "type": "symmetricKey" }, "iotHubHostName": "b" });
        let made = read(EnrolmentKind::Group, first, None).expect("an enrolment");
        assert_eq!(
            (made.allocation, made.hubs.as_slice()),
            (AllocationPolicy::Static, &["b".to_owned()][..])
        );
        let body: EnrolmentBody = serde_json::from_value(made.show(false)).expect("what was shown");
        let changed = body.record(made.kind, "a", Some(&made), keys(2), NOW).expect("an enrolment");
        assert_eq!(changed.attestation, made.attestation);
        let bare = json!({ "attestation": { "type": "symmetricKey" } });
        let bare = read(EnrolmentKind::Group, bare, Some(&made)).expect("an enrolment");
        assert_eq!((bare.allocation, bare.hubs.len()), (AllocationPolicy::Hashed, 0));
    }

    #[test]
    fn hubs_are_named_once_and_only_as_many_as_there_can_be() {
        let named = |hubs: Vec<String>| {
            let sent = json!({ "attestation": { "type": "symmetricKey" }, "iotHubs": hubs });
            read(EnrolmentKind::Individual, sent, None)
        };
        let made = named(["b", "a", "B"].map(str::to_owned).to_vec()).expect("an enrolment");
        assert_eq!(made.hubs, ["b", "a"]);
        let many: Vec<_> = (0..=MAX_HUBS).map(|number| format!("h{number}")).collect();
        let said = named(many).expect_err("refused");
        assert!(said.starts_with("iotHubs has 17 names"), "{said}");
    }

    proptest! {
        #[test]
        fn any_certificate_is_read_or_refused_without_a_panic(text in "[A-Za-z0-9+/=]{0,200}|-----BEGIN CERTIFICATE-----.{0,80}|.{0,80}") {
            for kind in [EnrolmentKind::Individual, EnrolmentKind::Group] {
                prop_assert!(certificate(kind, &text).is_err());
            }
        }
    }
}
