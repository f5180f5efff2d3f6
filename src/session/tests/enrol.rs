//! A registration at the Device Provisioning Service, against a service that follows a script.

use super::super::enrol::{EnrolError, EnrolSettings, enrol};
use super::broker::publish_on;
use super::*;

use crate::provisioning::{Assignment, Enrolment, EnrolmentAuth};
use crate::session::{HubSource, Terms};

pub(super) fn settings(broker: &Broker) -> EnrolSettings {
    EnrolSettings {
        enrolment: Enrolment {
            endpoint: HostPort { name: "localhost".into(), port: Some(broker.port()) },
            id_scope: "0ne1".into(),
            registration_id: "reg-01".into(),
            auth: EnrolmentAuth::Key(SharedAccessKey::from_bytes([7; 32])),
            payload: None,
            request_certificate: false,
        },
        ca_file: Some(broker.ca_file()),
        route: Route::default(),
        clock: SystemTime::now,
    }
}

/// Registers at a broker that takes the sign-in and does `script`.
async fn registers(script: impl AsyncFnOnce(&mut Peer)) -> Result<Assignment, EnrolError> {
    let broker = Broker::start().await;
    let service = async {
        let mut peer = broker.accept().await;
        let connect = peer.read_connect().await;
        assert!(connect.clean_session);
        assert_eq!(connect.client_id, "reg-01");
        let user = "0ne1/registrations/reg-01/api-version=2021-06-01&ClientVersion=c2d-agent%2F";
        assert!(connect.user_name.starts_with(user), "{}", connect.user_name);
        let password = connect.password.expect("a token");
        assert!(
            password.starts_with("SharedAccessSignature sr=0ne1%2Fregistrations%2Freg-01&"),
            "{password}"
        );
        peer.send_connack(0).await;
        assert_eq!(peer.read_subscribe().await, ("$dps/registrations/res/#".to_owned(), 1));
        peer.send_suback().await;
        script(&mut peer).await;
    };
    let settings = settings(&broker);
    let (result, ()) = tokio::join!(enrol(&settings, None, DEADLINE), service);
    result
}

async fn question(peer: &mut Peer, topic: &str, body: &str) {
    let (asked, packet_id, said) = peer.read_publish().await;
    assert_eq!((&*asked, &*said), (topic, body));
    peer.send_puback(packet_id).await;
}

const REGISTER: &str = "$dps/registrations/PUT/iotdps-register/?$rid=1";
const BODY: &str = r#"{"registrationId":"reg-01"}"#;

#[tokio::test]
async fn a_device_asks_until_it_is_assigned_and_says_goodbye() {
    let assigned = registers(async |peer| {
        question(peer, REGISTER, BODY).await;
        let body = r#"{"operationId":"5.x","status":"assigning"}"#;
        peer.send(&publish_on("$dps/registrations/res/202/?$rid=1&retry-after=1", 1, body)).await;
        assert_eq!(peer.read_puback().await, 1);
        question(peer, "$dps/registrations/GET/iotdps-get-operationstatus/?$rid=2&operationId=5.x", "").await;
        // An answer to nothing that was asked is no answer.
        peer.send(&publish_on("$dps/registrations/res/401/?$rid=1", 2, "{}")).await;
        let body = r#"{"status":"assigned","registrationState":{"assignedHub":"hub","deviceId":"d"}}"#;
        peer.send(&publish_on("$dps/registrations/res/200/?$rid=2", 3, body)).await;
        assert_eq!((peer.read_puback().await, peer.read_puback().await), (2, 3));
        assert_eq!(peer.read().await, (0xE0, Vec::new()), "DISCONNECT");
    });
    let assigned = assigned.await.expect("assigned");
    assert_eq!((&*assigned.hub.name, &*assigned.device_id), ("hub", "d"));
}

#[tokio::test]
async fn a_refusal_is_one_sentence_whether_it_comes_in_band_or_with_connack() {
    let refused = registers(async |peer| {
        question(peer, REGISTER, BODY).await;
        let body = r#"{"errorCode":401002,"message":"Unauthorized"}"#;
        peer.send(&publish_on("$dps/registrations/res/401/?$rid=1", 1, body)).await;
        assert_eq!(peer.read_puback().await, 1);
        peer.read().await;
    });
    let in_band = refused.await.expect_err("refused");
    assert!(in_band.is_refusal());
    let in_band = in_band.to_string();
    assert!(in_band.contains("refused the registration id reg-01 (401002: Unauthorized): "), "{in_band}");

    let broker = Broker::start().await;
    let service = async {
        let mut peer = broker.accept().await;
        peer.read_connect().await;
        peer.send_connack(5).await;
        peer
    };
    let settings = settings(&broker);
    let (result, _peer) = tokio::join!(enrol(&settings, None, DEADLINE), service);
    let at_once = result.expect_err("refused");
    assert!(at_once.is_refusal());
    // Without the peer before it, and the time of the clock behind it.
    let middle = |sentence: &str| {
        let (_, rest) = sentence.split_once(" was asked").expect("a verb");
        rest.split_once(" (it says ").expect("the clock").0.to_owned()
    };
    let in_band = middle(&in_band).replace("401002: Unauthorized", "not authorised");
    assert_eq!(middle(&at_once.to_string()), in_band);
}

#[tokio::test]
async fn a_busy_service_says_how_long_to_wait_and_a_cut_connection_is_tried_again() {
    let busy = registers(async |peer| {
        question(peer, REGISTER, BODY).await;
        peer.send(&publish_on("$dps/registrations/res/429/?$rid=1&retry-after=7", 1, "")).await;
        assert_eq!(peer.read_puback().await, 1);
        peer.read().await;
    });
    let busy = busy.await.expect_err("busy");
    assert_eq!((busy.is_refusal(), busy.wait()), (false, Some(Duration::from_secs(7))));

    let cut = registers(async |peer| question(peer, REGISTER, BODY).await);
    let cut = cut.await.expect_err("cut");
    assert!(!cut.is_refusal() && matches!(cut, EnrolError::Unreached(_)), "{cut}");
}

#[tokio::test]
async fn a_service_that_does_not_answer_ends_in_time() {
    let broker = Broker::start().await;
    let settings = settings(&broker);
    let (result, _peer) = tokio::join!(enrol(&settings, None, Duration::from_millis(300)), broker.accept());
    let sentence = result.expect_err("no answer").to_string();
    assert!(sentence.contains("did not answer within 0 s"), "{sentence}");
}

/// A hub's session of `reg-01`, whose service and hub are the same broker.
fn unassigned(broker: &Broker) -> Settings {
    let enrolment = settings(broker).enrolment;
    let hub = enrolment.endpoint.clone();
    let identity = DeviceIdentity {
        hub,
        device_id: "reg-01".into(),
        module_id: None,
        gateway: None,
        auth: (&enrolment.auth).into(),
    };
    Settings { identity, hub_source: HubSource::Unassigned(enrolment), ..super::settings(broker) }
}

/// Refuses a device at its hub until it asks the service, and gives that connection, whose CONNECT was read. The
/// question comes within ten seconds: see `Registrations::refused`.
async fn refused_until_it_asks(broker: &Broker, session: &mut Session, device_id: &str) -> Peer {
    loop {
        let mut peer = broker.accept().await;
        let user_name = peer.read_connect().await.user_name;
        if user_name.starts_with("0ne1/registrations/") {
            return peer;
        }
        assert!(user_name.starts_with(&format!("localhost/{device_id}/?")), "{user_name}");
        peer.send_connack(5).await;
        let Event::Disconnected { reason } = next(session).await else { panic!("refused") };
        assert!(reason.contains(&format!("refused device {device_id}")), "{reason}");
    }
}

/// Answers one registration, whose CONNECT was read, with the hub `localhost` and this device.
async fn assign(peer: &mut Peer, device_id: &str) {
    peer.send_connack(0).await;
    peer.read_subscribe().await;
    peer.send_suback().await;
    question(peer, REGISTER, BODY).await;
    let state = format!(r#"{{"assignedHub":"localhost","deviceId":"{device_id}"}}"#);
    let body = format!(r#"{{"status":"assigned","registrationState":{state}}}"#);
    let mut packet = publish_on("$dps/registrations/res/200/?$rid=1", 1, "");
    // The length of the rest needs two bytes.
    let rest = packet.len() - 2 + body.len();
    packet[1] = u8::try_from(rest % 128).expect("a byte") | 0x80;
    packet.insert(2, u8::try_from(rest / 128).expect("a byte"));
    packet.extend(body.as_bytes());
    peer.send(&packet).await;
    peer.read_puback().await;
    assert_eq!(peer.read().await.0, 0xE0, "DISCONNECT");
}

/// What an agent does with an assignment: it gives the session terms with the new hub.
pub(super) fn take_up(session: &Session, settings: &Settings, port: u16, assignment: &Assignment) {
    let enrolment = settings.hub_source.enrolment().expect("an enrolment");
    let identity = assignment.identity(enrolment, settings.transport);
    assert_eq!(identity.hub.port, Some(port), "that of the service");
    let hub_source = HubSource::Assigned(enrolment.clone());
    let terms = Terms::read(Settings { identity, hub_source, ..settings.clone() });
    assert!(session.change(terms.expect("terms")));
}

#[tokio::test]
async fn a_session_without_a_hub_asks_for_one_and_goes_there() {
    let broker = Broker::start().await;
    let settings = unassigned(&broker);
    let mut session = Session::open(settings.clone()).expect("a session");
    let mut service = broker.accept().await;
    assert!(service.read_connect().await.user_name.starts_with("0ne1/registrations/"));
    let (event, ()) = tokio::join!(next(&mut session), assign(&mut service, "pump-12"));
    let Event::Assigned { assignment, .. } = event else { panic!("{event:?}") };
    drop(service);
    take_up(&session, &settings, broker.port(), &assignment);
    let mut hub = broker.accept().await;
    let connect = hub.read_connect().await;
    assert_eq!((&*connect.client_id, connect.clean_session), ("pump-12", false));
    assert!(connect.user_name.starts_with("localhost/pump-12/?"), "{}", connect.user_name);
}

#[tokio::test]
async fn a_device_that_its_hub_refuses_asks_again_and_goes_to_the_other_hub() {
    let broker = Broker::start().await;
    let settings = Settings {
        hub_source: HubSource::Assigned(settings(&broker).enrolment),
        identity: DeviceIdentity { device_id: "old".into(), ..unassigned(&broker).identity },
        ..unassigned(&broker)
    };
    let mut session = Session::open(settings.clone()).expect("a session");
    let mut service = refused_until_it_asks(&broker, &mut session, "old").await;
    let (event, ()) = tokio::join!(next(&mut session), assign(&mut service, "new"));
    let Event::Assigned { assignment, .. } = event else { panic!("{event:?}") };
    take_up(&session, &settings, broker.port(), &assignment);
    let mut hub = broker.accept().await;
    assert_eq!(hub.read_connect().await.client_id, "new");
    hub.send_connack(5).await;
    // The new hub refuses it, too. The service was asked a moment ago, so the hub is tried again first.
    assert!(matches!(next(&mut session).await, Event::Disconnected { .. }));
    let mut again = broker.accept().await;
    assert_eq!(again.read_connect().await.client_id, "new");
}

#[tokio::test]
async fn a_device_that_the_service_refuses_at_first_ends_and_one_with_an_assignment_goes_on() {
    let broker = Broker::start().await;
    let mut session = Session::open(unassigned(&broker)).expect("a session");
    let mut service = broker.accept().await;
    service.read_connect().await;
    service.send_connack(5).await;
    let Event::Ended(error) = next(&mut session).await else { panic!("an end") };
    assert!(error.to_string().contains("refused the registration id reg-01"), "{error}");

    let mut assigned = unassigned(&broker);
    assigned.hub_source = HubSource::Assigned(settings(&broker).enrolment);
    let mut session = Session::open(assigned).expect("a session");
    let mut service = refused_until_it_asks(&broker, &mut session, "reg-01").await;
    service.send_connack(5).await;
    let mut hub = broker.accept().await;
    assert!(hub.read_connect().await.user_name.starts_with("localhost/reg-01/?"), "it goes on with its hub");
}
