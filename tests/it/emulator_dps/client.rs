//! A bare client of the provisioning service, over MQTT.
//!
//! Owns: its user name and tokens, and packets in and out. Must not know: what a test shows.

use std::ops::{Deref, DerefMut};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use c2d_agent::credentials::{SasToken, SharedAccessKey};
use c2d_agent::tls::{self, ClientCertificate};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, Publish, SubscribeReasonCode};
use serde_json::Value;

use crate::emulator_mqtt::device::Device;
use crate::harness::Emulator;
use crate::rest::{dial, send};
use crate::rest_ask::Answer;

/// The filter of answers.
pub(crate) const ANSWERS: &str = "$dps/registrations/res/#";
/// The emulator's ID scope.
const SCOPE: &str = "0ne00000001";

/// The key of an individual enrolment of the command line.
pub(crate) fn device_key(emulator: &Emulator, id: &str) -> SharedAccessKey {
    let text = std::fs::read_to_string(emulator.state.join(format!("dps/devices/{id}.key"))).expect("a key");
    SharedAccessKey::from_base64(&text).expect("base64")
}

/// A token for a registration, valid for ten minutes.
pub(crate) fn token(id: &str, key: &SharedAccessKey) -> String {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
    token_until(id, key, now + 600)
}

/// A token for a registration, valid until this second since 1970.
pub(crate) fn token_until(id: &str, key: &SharedAccessKey, expiry: u64) -> String {
    let expiry = SystemTime::UNIX_EPOCH + Duration::from_secs(expiry);
    SasToken::sign(key, &format!("{SCOPE}/registrations/{id}"), Some("registration"), expiry)
        .expose()
        .to_owned()
}

/// The user name of a registration.
pub(crate) fn user_name(id: &str) -> String {
    format!("{SCOPE}/registrations/{id}/api-version=2021-06-01&ClientVersion=test%2F1")
}

/// A CONNECT.
pub(crate) fn connect(id: &str, user: &str, password: &str) -> Connect {
    let mut connect = Connect::new(id);
    connect.clean_session = true;
    connect.keep_alive = 60;
    connect.set_login(user, password);
    connect
}

/// The CONNECT of a device at its hub.
pub(crate) fn hub_connect(id: &str, key: &SharedAccessKey, hub: &str) -> Connect {
    let expiry = SystemTime::now() + Duration::from_secs(600);
    let token = SasToken::sign(key, &format!("{hub}/devices/{id}"), None, expiry);
    connect(id, &format!("{hub}/{id}/?api-version=2021-04-12"), token.expose())
}

/// One connection.
pub(crate) struct Client(Device);

impl Deref for Client {
    type Target = Device;

    fn deref(&self) -> &Device {
        &self.0
    }
}

impl DerefMut for Client {
    fn deref_mut(&mut self) -> &mut Device {
        &mut self.0
    }
}

impl Client {
    /// Opens a TLS connection.
    pub(crate) fn dial(emulator: &Emulator, certificate: Option<&ClientCertificate>) -> Self {
        let config = tls::client_config(Some(&emulator.ca_file()), certificate).expect("a configuration");
        Self(Device::dial_with(emulator.mqtt, config))
    }

    /// Passes the door.
    pub(crate) fn sign_in(emulator: &Emulator, id: &str, token: &str) -> Self {
        let mut client = Self::dial(emulator, None);
        assert_eq!(client.connack_to(connect(id, &user_name(id), token)), ConnectReturnCode::Success);
        client
    }

    pub(crate) fn connack_to(&mut self, connect: Connect) -> ConnectReturnCode {
        self.send(Packet::Connect(connect));
        self.connack().code
    }

    pub(crate) fn subscribe(&mut self, filters: &[(&str, QoS)]) -> Vec<SubscribeReasonCode> {
        self.0.subscribe(filters).return_codes
    }

    /// Publishes with the packet id 9.
    pub(crate) fn publish(&mut self, topic: &str, qos: QoS, body: &str) {
        let mut publish = Publish::new(topic, qos, body.as_bytes());
        publish.pkid = if qos == QoS::AtMostOnce { 0 } else { 9 };
        self.send(Packet::Publish(publish));
    }

    /// The next packet, which must be a PUBLISH.
    #[track_caller]
    pub(crate) fn answer(&mut self) -> Publish {
        self.0.publish()
    }

    /// Registers, and asks until the answer is no 202. Returns all statuses and bodies.
    fn poll(&mut self, id: &str, payload: &str) -> Vec<(u16, Value)> {
        self.subscribe(&[(ANSWERS, QoS::AtLeastOnce)]);
        self.publish("$dps/registrations/PUT/iotdps-register/?$rid=1", QoS::AtMostOnce, payload);
        let mut answers = vec![self.read()];
        while answers.last().is_some_and(|(status, _)| *status == 202) {
            let operation = answers[0].1["operationId"]
                .as_str()
                .unwrap_or_else(|| panic!("{id}: {answers:?}"))
                .to_owned();
            let query = format!("$rid=2&operationId={operation}");
            let topic = format!("$dps/registrations/GET/iotdps-get-operationstatus/?{query}");
            self.publish(&topic, QoS::AtMostOnce, "");
            answers.push(self.read());
        }
        answers
    }

    fn read(&mut self) -> (u16, Value) {
        let answer = self.answer();
        let status = answer.topic.split('/').nth(3).and_then(|status| status.parse().ok()).expect("a status");
        (status, serde_json::from_slice(&answer.payload).expect("JSON"))
    }
}

/// Sends one request with the name of a hub in its `Host`.
pub(crate) fn ask_host(emulator: &Emulator, host: &str, line: &str, token: &str, body: &str) -> Answer {
    let length = body.len();
    let head = format!(
        "{line} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {length}\r\nConnection: close\r\n\
         Authorization: {token}\r\n\r\n{body}"
    );
    Answer::read(&send(dial(emulator), head.as_bytes()))
}

/// Registers with a key, and asks until the answer is no 202. Returns all statuses and bodies.
pub(crate) fn polled(
    emulator: &Emulator,
    id: &str,
    key: &SharedAccessKey,
    payload: &str,
) -> Vec<(u16, Value)> {
    Client::sign_in(emulator, id, &token(id, key)).poll(id, payload)
}

/// Registers with a key, and returns the state of the registration, which must be assigned.
pub(crate) fn registered(emulator: &Emulator, id: &str, key: &SharedAccessKey, payload: &str) -> Value {
    assigned(&polled(emulator, id, key, payload))
}

/// The same with a certificate.
pub(crate) fn registered_with_certificate(
    emulator: &Emulator,
    id: &str,
    certificate: &ClientCertificate,
) -> Value {
    let mut client = Client::dial(emulator, Some(certificate));
    assert_eq!(client.connack_to(connect(id, &user_name(id), "")), ConnectReturnCode::Success);
    assigned(&client.poll(id, ""))
}

fn assigned(answers: &[(u16, Value)]) -> Value {
    let (status, body) = answers.last().expect("an answer");
    assert_eq!((*status, &body["status"]), (200, &"assigned".into()), "{answers:?}");
    body["registrationState"].clone()
}

/// Certificates in a folder: an authority `ca.pem`, `pump-1` of an authority below it, and `solo` and `foreign` by
/// themselves. Each has its chain in `NAME.pem` and its key in `NAME.key.pem`.
pub(crate) struct Certificates(PathBuf);

impl Certificates {
    pub(crate) fn make(folder: &Path) -> Self {
        let named = |name: &str| {
            let mut params = CertificateParams::new(Vec::new()).expect("no names");
            params.distinguished_name = rcgen::DistinguishedName::new();
            params.distinguished_name.push(DnType::CommonName, name);
            params
        };
        let authority = |name: &str| {
            let mut params = named(name);
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            params
        };
        let own = Self(folder.to_owned());
        let key = || KeyPair::generate().expect("a key");
        let write = |name: &str, text: &str| std::fs::write(own.path(name), text).expect("written");
        let (root_key, middle_key, leaf_key) = (key(), key(), key());
        let root = authority("root").self_signed(&root_key).expect("made");
        let root_issuer = Issuer::new(authority("root"), root_key);
        let middle = authority("middle").signed_by(&middle_key, &root_issuer).expect("made");
        let middle_issuer = Issuer::new(authority("middle"), middle_key);
        let leaf = named("pump-1").signed_by(&leaf_key, &middle_issuer).expect("made");
        write("ca.pem", &root.pem());
        write("pump-1.pem", &(leaf.pem() + &middle.pem()));
        write("pump-1.key.pem", &leaf_key.serialize_pem());
        for name in ["solo", "foreign"] {
            let key = key();
            write(&format!("{name}.pem"), &named(name).self_signed(&key).expect("made").pem());
            write(&format!("{name}.key.pem"), &key.serialize_pem());
        }
        own
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub(crate) fn of(&self, name: &str) -> ClientCertificate {
        let path = |suffix: &str| self.path(&format!("{name}.{suffix}"));
        ClientCertificate { certificate: path("pem"), private_key: path("key.pem") }
    }
}
