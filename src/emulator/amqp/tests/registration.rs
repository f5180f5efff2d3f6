//! Devices that ask the provisioning service: the two links, answers, and what is refused.

use fe2o3_amqp::types::definitions::Fields;
use serde_json::json;

use super::*;
use crate::emulator::provisioning::{self, DEFAULT_ID_SCOPE, ProvisioningSettings};
use crate::emulator::registrar::Registrar;
use crate::emulator::state_dir::StateDir;

const ADDRESS: &str = "0ne00000001/registrations/reg-01";

/// A hub and a provisioning service where `reg-01` is enrolled with a key.
struct Service {
    hub: SharedHub,
    hubs: Hubs,
    reception: Reception,
    _dir: tempfile::TempDir,
}

impl Service {
    async fn new() -> Self {
        let (hub, dir) = (hub(), tempfile::tempdir().expect("a directory"));
        let device = format!("reg-01={}", key(50).expose_base64());
        let settings = ProvisioningSettings {
            id_scope: DEFAULT_ID_SCOPE.to_owned(),
            devices: vec![device.parse().expect("an option")],
            groups: Vec::new(),
            faults: Vec::new(),
        };
        let opened = provisioning::open(&settings, dir.path(), false, now()).expect("opened");
        let state = StateDir::open(&dir.path().join("hub"), &[], &[], false, now()).expect("opened");
        let hubs = Hubs::new(Registrar::new(hub.clone(), state), Vec::new());
        // The ports of MQTT, AMQP and HTTPS.
        let reception = Reception::new(Some(opened), &hubs, [18883, 15671, 443]).await.expect("served");
        Self { hub, hubs, reception, _dir: dir }
    }

    async fn open(&self, profile: SaslProfile) -> Result<Client, OpenError> {
        let (hubs, reception) = (self.hubs.clone(), self.reception.clone());
        Client::open_with(hubs, reception, Some("global.test"), Some(profile)).await
    }

    async fn signed_in(&self) -> Client {
        self.open(device(ADDRESS, now() + HOUR)).await.expect("signed in")
    }
}

fn device(user: &str, expiry: SystemTime) -> SaslProfile {
    let token = SasToken::sign(&key(50), ADDRESS, Some("registration"), expiry);
    SaslProfile::Plain { username: user.to_owned(), password: token.expose().to_owned() }
}

fn properties() -> Fields {
    let mut properties = Fields::new();
    let version = ("com.microsoft:api-version", "2019-03-31");
    properties.insert(Symbol::from(version.0), Value::String(version.1.to_owned()));
    properties
}

async fn receiver(client: &mut Client, address: &str) -> Result<Receiver, ReceiverAttachError> {
    let name = uuid::Uuid::new_v4().to_string();
    let link = Receiver::builder().name(name).source(address).properties(properties());
    link.attach(&mut client.session).await
}

async fn sender(client: &mut Client, address: &str) -> Result<Sender, SenderAttachError> {
    let name = uuid::Uuid::new_v4().to_string();
    Sender::builder().name(name).target(address).properties(properties()).attach(&mut client.session).await
}

fn question(id: &str, body: &str, application: &[(&str, &str)]) -> Message<Data> {
    let builder = ApplicationProperties::builder();
    let application = application.iter().fold(builder, |all, (name, value)| all.insert(*name, *value));
    let correlation_id = Some(MessageId::String(id.to_owned()));
    Message::builder()
        .properties(Properties { correlation_id, ..Properties::default() })
        .application_properties(application.build())
        .data(Data(Binary::from(body.as_bytes().to_vec())))
        .build()
}

/// An answer: its correlation id, its properties, its body.
async fn answer(link: &mut Receiver) -> (Option<MessageId>, ApplicationProperties, serde_json::Value) {
    let delivery = link.recv::<Data>().await.expect("an answer");
    link.accept(&delivery).await.expect("settled");
    let message = delivery.into_message();
    let id = message.properties.and_then(|properties| properties.correlation_id);
    let body = serde_json::from_slice(&message.body.0).expect("JSON");
    (id, message.application_properties.unwrap_or_default(), body)
}

const REGISTER: (&str, &str) = ("iotdps-operation-type", "iotdps-register");
const POLL: (&str, &str) = ("iotdps-operation-type", "iotdps-get-operationstatus");

#[tokio::test]
async fn a_device_registers_and_asks_until_it_has_its_hub() {
    let service = Service::new().await;
    let mut client = service.signed_in().await;
    // C writes the whole address, Node the path.
    let mut replies = receiver(&mut client, ADDRESS).await.expect("a link");
    let mut questions = sender(&mut client, &format!("amqps://global.test/{ADDRESS}")).await.expect("a link");
    let asked = question("u-1", r#"{"registrationId":"reg-01"}"#, &[REGISTER]);
    assert!(matches!(questions.send(asked).await, Ok(Outcome::Accepted(_))));
    let (id, application, body) = answer(&mut replies).await;
    assert_eq!(id, Some(MessageId::String("u-1".to_owned())));
    for name in ["retry-after", "Retry-After"] {
        assert_eq!(application.0.get(name), Some(&SimpleValue::Int(1)), "{name}");
    }
    assert_eq!(body["status"], "assigning");
    let operation = body["operationId"].as_str().expect("an operation").to_owned();
    // The body of this question says nothing: each SDK sends another one.
    for (at, text) in ["", "iotdps-get-operationstatus", "{}"].into_iter().enumerate() {
        let asked = question(&at.to_string(), text, &[POLL, ("iotdps-operation-id", &operation)]);
        assert!(matches!(questions.send(asked).await, Ok(Outcome::Accepted(_))));
        let (id, application, body) = answer(&mut replies).await;
        assert_eq!((id, application.0.len()), (Some(MessageId::String(at.to_string())), 0));
        let state = &body["registrationState"];
        assert_eq!(
            (&body["status"], &state["assignedHub"], &state["deviceId"]),
            (&json!("assigned"), &json!("hub.local.test:15671"), &json!("reg-01"))
        );
    }
    assert!(service.hub.with(|hub, _| hub.identity("reg-01")).is_some());
}

#[tokio::test]
async fn a_question_that_cannot_be_answered_is_rejected_with_the_reason_and_the_link_stays() {
    let service = Service::new().await;
    let mut client = service.signed_in().await;
    let mut questions = sender(&mut client, ADDRESS).await.expect("a link");
    let large = "x".repeat(100 * 1024);
    let operation = ("iotdps-operation-id", "5.x.y");
    for (body, application, condition, words) in [
        ("<html>", &[REGISTER][..], "com.microsoft:argument-error", "\"errorCode\":400004"),
        (&large, &[REGISTER], "amqp:link:message-size-exceeded", "\"errorCode\":413001"),
        ("", &[POLL, operation], "amqp:not-found", "\"errorCode\":404201"),
        ("", &[POLL], "com.microsoft:argument-error", "lacks iotdps-operation-id"),
        (
            "",
            &[("iotdps-operation-type", "x")],
            "com.microsoft:argument-error",
            "is \"x\": use iotdps-register",
        ),
        ("", &[], "com.microsoft:argument-error", "is \"\": use iotdps-register"),
    ] {
        let outcome = questions.send(question("u", body, application)).await.expect("an outcome");
        let Outcome::Rejected(rejected) = outcome else { panic!("{application:?}: {outcome:?}") };
        let error = rejected.error.expect("an error");
        let said = error.description.clone().unwrap_or_default();
        assert_eq!((super::condition(&error).as_str(), said.contains(words)), (condition, true), "{said}");
    }
    assert!(matches!(questions.send(question("u", "", &[REGISTER])).await, Ok(Outcome::Accepted(_))));
}

#[tokio::test]
async fn who_may_not_ask_is_refused_before_or_at_the_link() {
    let service = Service::new().await;
    let scope = "0ne00000002/registrations/reg-01";
    for (user, expiry) in [(scope, now() + HOUR), (ADDRESS, now() - HOUR), ("reg-01", now() + HOUR)] {
        let refused = service.open(device(user, expiry)).await.map(drop);
        assert!(matches!(refused, Err(OpenError::SaslError { .. })), "{user}: {refused:?}");
    }
    let other = "0ne00000001/registrations/reg-02";
    let other = receiver(&mut service.signed_in().await, other).await.expect_err("refused");
    assert!(format!("{other:?}").contains("UnauthorizedAccess"), "{other:?}");
    let bare = service.signed_in().await.receiver(ADDRESS).await.expect_err("refused");
    assert!(format!("{bare:?}").contains("lacks the property com.microsoft:api-version"), "{bare:?}");
    // The service's client has no rights at a hub.
    let feedback = "/messages/servicebound/feedback";
    let feedback = service.signed_in().await.receiver(feedback).await.expect_err("refused");
    assert!(format!("{feedback:?}").contains("not signed in"), "{feedback:?}");
    // One link has the answers.
    let mut client = service.signed_in().await;
    let _first = receiver(&mut client, ADDRESS).await.expect("a link");
    let second = receiver(&mut client, ADDRESS).await.expect("a link");
    let ended = second.close().await.expect_err("ended by the service");
    assert!(format!("{ended:?}").contains("another link receives the answers already"), "{ended:?}");

    // Without a token and without a certificate, and without a service.
    let mut client = service.open(SaslProfile::Anonymous).await.expect("anonymous");
    let nobody = receiver(&mut client, ADDRESS).await.expect_err("refused");
    assert!(format!("{nobody:?}").contains("UnauthorizedAccess"), "{nobody:?}");
    let mut client = Client::open(&service.hub, Some(SaslProfile::Anonymous)).await.expect("anonymous");
    let closed = receiver(&mut client, ADDRESS).await.expect_err("refused");
    assert!(format!("{closed:?}").contains("this emulator has no provisioning service"), "{closed:?}");
}
