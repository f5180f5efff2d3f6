//! The assignment: the hub that a device belongs to, and as whom.
//!
//! Owns: its form in an answer, and its form in the file that keeps it. Must not know: where the file is.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::refusal::RegistrationRefusal;
use super::{Enrolment, excerpt, host};
use crate::credentials::{DeviceIdentity, HostPort, Transport, check_device_host, check_device_id};

/// The most certificates of an issued chain, and the longest in base64. More is not taken for a chain.
const MOST_CERTIFICATES: usize = 8;
const LONGEST_CERTIFICATE: usize = 32 * 1024;

/// Where a device belongs. It has no secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// The hub, with a port only if the service gave one.
    pub hub: HostPort,
    /// The device at the hub; it may differ from the registration id.
    pub device_id: String,
    /// How the device got there, such as `initialAssignment`; a word of the service.
    pub substatus: Option<String>,
    /// The version of the registration.
    pub etag: Option<String>,
    /// What a custom allocation wants to tell the device.
    pub payload: Option<Value>,
    /// The certificates that were issued, in base64 of their DER, the device's first. Empty if none was.
    pub issued: Vec<String>,
}

/// The file that keeps an assignment.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Kept {
    format: u32,
    /// Of whom it is: with another enrolment it counts for nothing.
    id_scope: String,
    registration_id: String,
    endpoint: String,
    hub: String,
    device_id: String,
    /// Seconds since 1970.
    assigned_at: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    etag: Option<String>,
}

/// The version of the form.
const FORMAT: u32 = 1;

/// Why a file has no assignment of this enrolment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AssignmentError {
    /// It is not the form that this program writes.
    #[error("it is not an assignment as this version of c2d-agent writes it ({0})")]
    Form(String),
    /// The configuration names another enrolment now.
    #[error("it belongs to the registration {0}")]
    Another(String),
}

impl Assignment {
    /// Reads the `registrationState` of an answer.
    ///
    /// # Errors
    /// [`RegistrationRefusal`] when it names no hub that this program can use.
    pub(super) fn read(state: &Value) -> Result<Self, RegistrationRefusal> {
        let text = |name: &str| state.get(name).and_then(Value::as_str);
        let unusable = |said: String| RegistrationRefusal::Unusable(said);
        let hub = text("assignedHub").ok_or_else(|| unusable("it names no hub (assignedHub)".into()))?;
        let hub = host(hub, "assignedHub")
            .and_then(|hub| check_device_host(&hub).map(|()| hub))
            .map_err(|error| unusable(error.to_string()))?;
        let device_id = text("deviceId").ok_or_else(|| unusable("it names no device (deviceId)".into()))?;
        check_device_id(device_id).map_err(|error| unusable(error.to_string()))?;
        match text("connectionProfile") {
            None | Some("classic") => {}
            Some("mqttV5") => return Err(RegistrationRefusal::NoC2d { hub: hub.name }),
            Some(other) => {
                return Err(unusable(format!(
                    "the hub {} has the connection profile \"{}\", which this version does not know",
                    hub.name,
                    excerpt(other)
                )));
            }
        }
        let short = |name: &str| text(name).filter(|text| text.len() <= 256).map(str::to_owned);
        Ok(Self {
            device_id: device_id.to_owned(),
            substatus: short("substatus"),
            etag: short("etag"),
            payload: state.get("payload").filter(|payload| !payload.is_null()).cloned(),
            issued: issued(state).map_err(unusable)?,
            hub,
        })
    }

    /// The text of the file that keeps this assignment of `enrolment`. `assigned_at` is in seconds since 1970.
    pub fn to_file(&self, enrolment: &Enrolment, assigned_at: u64) -> String {
        let kept = Kept {
            format: FORMAT,
            id_scope: enrolment.id_scope.clone(),
            registration_id: enrolment.registration_id.clone(),
            endpoint: enrolment.endpoint.to_string(),
            hub: self.hub.to_string(),
            device_id: self.device_id.clone(),
            assigned_at,
            etag: self.etag.clone(),
        };
        // A struct of texts and numbers always has a JSON form.
        serde_json::to_string_pretty(&kept).unwrap_or_default() + "\n"
    }

    /// Reads the file of an assignment, and when it was made, in seconds since 1970.
    ///
    /// # Errors
    /// [`AssignmentError`] when it has none of `enrolment`.
    pub fn from_file(text: &str, enrolment: &Enrolment) -> Result<(Self, u64), AssignmentError> {
        let form = |said: String| AssignmentError::Form(said);
        let kept: Kept = serde_json::from_str(text).map_err(|error| form(error.to_string()))?;
        if kept.format != FORMAT {
            return Err(form(format!("format {}", kept.format)));
        }
        let same = (&kept.id_scope, &kept.registration_id, &kept.endpoint)
            == (&enrolment.id_scope, &enrolment.registration_id, &enrolment.endpoint.to_string());
        if !same {
            let whose = format!("{} of {}", kept.registration_id, kept.id_scope);
            return Err(AssignmentError::Another(excerpt(&whose)));
        }
        let hub = host(&kept.hub, "hub").map_err(|error| form(error.to_string()))?;
        check_device_id(&kept.device_id).map_err(|error| form(error.to_string()))?;
        let assignment = Self {
            hub,
            device_id: kept.device_id,
            substatus: None,
            etag: kept.etag,
            payload: None,
            issued: Vec::new(),
        };
        Ok((assignment, kept.assigned_at))
    }

    /// Who signs in at the hub. Where the service has a port of its own for MQTT, as an emulator may, its hubs have it, too.
    /// Over AMQP that port is the wrong one.
    pub fn identity(&self, enrolment: &Enrolment, transport: Transport) -> DeviceIdentity {
        let (own, of_service) = (self.hub.port, enrolment.endpoint.port);
        let port = match transport {
            Transport::Mqtt => own.or(of_service),
            Transport::Amqp => own.filter(|own| Some(*own) != of_service),
        };
        DeviceIdentity {
            hub: HostPort { name: self.hub.name.clone(), port },
            device_id: self.device_id.clone(),
            module_id: None,
            gateway: None,
            auth: (&enrolment.auth).into(),
        }
    }
}

fn issued(state: &Value) -> Result<Vec<String>, String> {
    let Some(chain) = state.get("issuedCertificateChain").filter(|chain| !chain.is_null()) else {
        return Ok(Vec::new());
    };
    let texts: Option<Vec<_>> = chain
        .as_array()
        .filter(|chain| chain.len() <= MOST_CERTIFICATES)
        .and_then(|chain| chain.iter().map(|member| member.as_str().map(str::to_owned)).collect());
    let texts = texts.filter(|texts| texts.iter().all(|text| text.len() <= LONGEST_CERTIFICATE));
    texts.ok_or_else(|| "its issuedCertificateChain is no list of certificates".to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::EnrolmentAuth;
    use super::*;
    use crate::credentials::{DeviceAuth, SharedAccessKey};
    use serde_json::json;

    fn enrolment() -> Enrolment {
        Enrolment {
            endpoint: HostPort::parse("dps.test").expect("a host"),
            id_scope: "0ne1".into(),
            registration_id: "reg-01".into(),
            auth: EnrolmentAuth::Key(SharedAccessKey::from_bytes([7; 32])),
            payload: None,
            request_certificate: false,
        }
    }

    fn state(change: Value) -> Value {
        let mut state =
            json!({ "assignedHub": "h.device.azure-devices.net", "deviceId": "pump-12", "etag": "Ij=" });
        for (name, value) in change.as_object().cloned().unwrap_or_default() {
            state[name] = value;
        }
        state
    }

    #[test]
    fn an_assignment_is_kept_without_a_key_and_read_again() {
        let assigned = Assignment::read(&state(json!({ "payload": { "a": 1 } }))).expect("assigned");
        assert_eq!(assigned.payload, Some(json!({ "a": 1 })));
        let text = assigned.to_file(&enrolment(), 1_800_000_000);
        let key = SharedAccessKey::from_bytes([7; 32]).expose_base64();
        assert!(!text.contains(&key) && text.contains("\"hub\": \"h.device.azure-devices.net\""), "{text}");
        let (kept, at) = Assignment::from_file(&text, &enrolment()).expect("kept");
        assert_eq!((&kept.hub, &*kept.device_id, at), (&assigned.hub, "pump-12", 1_800_000_000));
        let identity = kept.identity(&enrolment(), Transport::Mqtt);
        assert_eq!(identity.hub.port, None);
        let endpoint = HostPort::parse("dps.test:18883").expect("a host");
        let elsewhere = Enrolment { endpoint, ..enrolment() };
        assert_eq!(kept.identity(&elsewhere, Transport::Mqtt).hub.port, Some(18_883));
        assert_eq!(kept.identity(&elsewhere, Transport::Amqp).hub.port, None);
        let named = Assignment { hub: HostPort::parse("h:18883").expect("a host"), ..kept.clone() };
        assert_eq!(named.identity(&elsewhere, Transport::Mqtt).hub.port, Some(18_883));
        assert_eq!(named.identity(&elsewhere, Transport::Amqp).hub.port, None);
        assert_eq!(identity.resource(), "h.device.azure-devices.net/devices/pump-12");
        assert!(matches!(identity.auth, DeviceAuth::Key(_)));
    }

    #[test]
    fn a_file_of_another_registration_or_form_does_not_count() {
        let assigned = Assignment::read(&state(json!({}))).expect("assigned");
        let text = assigned.to_file(&enrolment(), 1);
        let other = Enrolment { registration_id: "reg-02".into(), ..enrolment() };
        let said = Assignment::from_file(&text, &other).expect_err("another").to_string();
        assert_eq!(said, "it belongs to the registration reg-01 of 0ne1");
        for damaged in ["", "{}", &text[..40], &text.replace("\"format\": 1", "\"format\": 2")] {
            let said = Assignment::from_file(damaged, &enrolment()).expect_err("no form").to_string();
            assert!(said.starts_with("it is not an assignment"), "{said}");
        }
    }

    #[test]
    fn a_hub_that_cannot_be_used_is_named() {
        let said = |change: Value| Assignment::read(&state(change)).expect_err("refused").to_string();
        assert!(said(json!({ "assignedHub": "https://h/x" })).contains("\"https://h/x\""));
        let for_back_ends = json!({ "assignedHub": "h.service.azure-devices.net" });
        assert!(said(for_back_ends).contains("use h.azure-devices.net"));
        assert!(said(json!({ "assignedHub": null })).contains("names no hub"));
        assert!(said(json!({ "deviceId": 5 })).contains("names no device"));
        assert!(said(json!({ "deviceId": "a/b" })).contains("a/b"));
        assert!(said(json!({ "connectionProfile": "mqttV5" })).contains("has no cloud-to-device messages"));
        assert!(said(json!({ "connectionProfile": "x" })).contains("profile \"x\""));
        assert!(said(json!({ "issuedCertificateChain": [1] })).contains("no list of certificates"));
        assert!(said(json!({ "issuedCertificateChain": vec!["a"; 9] })).contains("no list of certificates"));
        assert!(Assignment::read(&state(json!({ "issuedCertificateChain": null }))).is_ok());
    }
}
