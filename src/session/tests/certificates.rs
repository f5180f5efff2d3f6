//! Certificates that the service issues: the hub is asked, answers on this connection or on the next one, and the
//! session leaves its hub in good order to ask the provisioning service.

use bytes::Bytes;

use super::broker::publish_on;
use super::*;
use crate::provisioning::{Enrolment, EnrolmentAuth};
use crate::session::{CertificateAnswer, HubSource, Issuing, Upstream};

/// A session of `dev1` with a certificate that the service has issued.
fn issued(broker: &Broker, dir: &tempfile::TempDir) -> Settings {
    let made = rcgen::generate_simple_self_signed(["dev1".to_owned()]).expect("a certificate");
    let file = dir.path().join("pair");
    std::fs::write(&file, made.cert.pem() + &made.signing_key.serialize_pem()).expect("written");
    let auth = DeviceAuth::Certificate { certificate: file.clone(), private_key: file };
    let enrolment = Enrolment {
        endpoint: HostPort { name: "localhost".into(), port: Some(broker.port()) },
        id_scope: "0ne1".into(),
        registration_id: "reg-01".into(),
        auth: EnrolmentAuth::Key(SharedAccessKey::from_bytes([7; 32])),
        payload: None,
        request_certificate: true,
    };
    let settings = settings(broker);
    Settings {
        identity: DeviceIdentity { auth, ..settings.identity },
        hub_source: HubSource::Assigned(enrolment),
        issuing: Issuing { is_issued: true, at_hub: true, csr: Some("MIIB".into()), earlier: None },
        ..settings
    }
}

/// Lets the session sign in, and checks that it asks for certificates.
async fn sign_in(peer: &mut Peer) {
    let connect = peer.read_connect().await;
    assert!(connect.user_name.contains("/?api-version=2025-08-01-preview&"), "{}", connect.user_name);
    assert_eq!(connect.password.unwrap_or_default(), "");
    peer.send_connack(0).await;
    let asked = peer.read_subscribe_many().await;
    assert_eq!(asked[1], ("$iothub/credentials/res/#".to_owned(), 1));
    peer.send(&[0x90, 4, 0, 1, 1, 1]).await;
}

const REQUEST: &str = "0123-abcd";

fn answer(status: u16, body: &str) -> CertificateAnswer {
    CertificateAnswer { request: REQUEST.into(), status, body: Bytes::from(body.to_owned()) }
}

#[tokio::test]
async fn the_hub_is_asked_and_its_answer_may_come_on_the_next_connection() {
    let (broker, dir) = (Broker::start().await, tempfile::tempdir().expect("a directory"));
    let mut session = Session::open(issued(&broker, &dir)).expect("a session");
    let mut peer = broker.accept().await;
    sign_in(&mut peer).await;
    let Event::Subscribed { certificate, .. } = next(&mut session).await else { panic!("subscribed") };
    assert!(certificate.is_some() && certificate == session.certificate());
    session.publish(7, Upstream::IssueCertificate { request: REQUEST.into(), body: "{\"id\":1}".into() });
    let (topic, packet_id, body) = peer.read_publish().await;
    assert_eq!(topic, format!("$iothub/credentials/POST/issueCertificate/?$rid={REQUEST}"));
    assert_eq!(body, "{\"id\":1}");
    peer.send_puback(packet_id).await;
    assert!(matches!(next(&mut session).await, Event::Published { ticket: 7, result: Ok(_) }));
    peer.send(&publish_on(&format!("$iothub/credentials/res/202/?$rid={REQUEST}"), 5, "{}")).await;
    assert_eq!(peer.read_puback().await, 5);
    let Event::CertificateAnswer(first) = next(&mut session).await else { panic!("an answer") };
    assert_eq!(first, answer(202, "{}"));
    drop(peer);
    assert!(matches!(next(&mut session).await, Event::Disconnected { .. }));
    let mut peer = broker.accept().await;
    sign_in(&mut peer).await;
    peer.send(&publish_on(&format!("$iothub/credentials/res/200/?$rid={REQUEST}"), 6, "{\"x\":1}")).await;
    assert_eq!(peer.read_puback().await, 6);
    let events = [next(&mut session).await, next(&mut session).await];
    let answers = events.into_iter().filter_map(|event| match event {
        Event::CertificateAnswer(answer) => Some(answer),
        _ => None,
    });
    assert_eq!(answers.collect::<Vec<_>>(), [answer(200, "{\"x\":1}")]);
}

/// Answers a registration, which must ask for a certificate.
async fn service(peer: &mut Peer, answer: &[u8]) {
    let user_name = peer.read_connect().await.user_name;
    assert!(
        user_name.starts_with("0ne1/registrations/reg-01/api-version=2025-07-01-preview&"),
        "{user_name}"
    );
    peer.send_connack(0).await;
    peer.read_subscribe().await;
    peer.send_suback().await;
    let (_, packet_id, body) = peer.read_publish().await;
    assert!(body.contains("\"csr\":\"MIIB\""), "{body}");
    peer.send_puback(packet_id).await;
    peer.send(answer).await;
    peer.read_puback().await;
    assert_eq!(peer.read().await.0, 0xE0, "DISCONNECT");
}

#[tokio::test]
async fn the_session_leaves_its_hub_in_good_order_asks_the_service_and_waits_for_the_new_pair() {
    let (broker, dir) = (Broker::start().await, tempfile::tempdir().expect("a directory"));
    let settings = issued(&broker, &dir);
    let mut session = Session::open(settings.clone()).expect("a session");
    let mut peer = broker.accept().await;
    sign_in(&mut peer).await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    peer.send(&publish(11, "", "x")).await;
    let delivery = delivery(&mut session).await;
    session.register_again();
    // What was taken is settled first, on its own connection.
    delivery.receipt.complete();
    assert_eq!(peer.read_puback().await, 11);
    while peer.read().await.0 != 0xE0 {}
    drop(peer);

    let mut dps = broker.accept().await;
    let busy = publish_on("$dps/registrations/res/429/?$rid=1&retry-after=1", 1, "");
    let asked = tokio::time::Instant::now();
    service(&mut dps, &busy).await;
    drop(dps);
    // The pair is still good, so the hub is next.
    let mut peer = broker.accept().await;
    sign_in(&mut peer).await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    session.register_again();
    while peer.read().await.0 != 0xE0 {}
    drop(peer);
    assert!(
        asked.elapsed() >= Duration::from_secs(1),
        "the service asked for a pause: {:?}",
        asked.elapsed()
    );

    let mut dps = broker.accept().await;
    let state = r#"{"assignedHub":"localhost","deviceId":"dev1","issuedCertificateChain":["AA"]}"#;
    let body = format!(r#"{{"status":"assigned","registrationState":{state}}}"#);
    let mut packet = publish_on("$dps/registrations/res/200/?$rid=1", 1, "");
    let rest = packet.len() - 2 + body.len();
    packet[1] = u8::try_from(rest % 128).expect("a byte") | 0x80;
    packet.insert(2, u8::try_from(rest / 128).expect("a byte"));
    packet.extend(body.as_bytes());
    let (event, ()) = tokio::join!(next(&mut session), service(&mut dps, &packet));
    let Event::Assigned { assignment, .. } = event else { panic!("{event:?}") };
    assert_eq!(assignment.issued, ["AA"]);
    // The agent may find that the chain is of no use: then the session goes on with the pair that it has.
    session.go_on_with(crate::session::Terms::read(settings).expect("terms"));
    let mut peer = broker.accept().await;
    sign_in(&mut peer).await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
}

#[tokio::test]
async fn a_hub_that_refuses_the_subscription_issues_nothing() {
    let (broker, dir) = (Broker::start().await, tempfile::tempdir().expect("a directory"));
    let mut session = Session::open(issued(&broker, &dir)).expect("a session");
    let mut granted = Vec::new();
    for answer in [0x80, 1] {
        let mut peer = broker.accept().await;
        peer.read_connect().await;
        peer.send_connack(0).await;
        peer.read_subscribe_many().await;
        peer.send(&[0x90, 4, 0, 1, 1, answer]).await;
        let Event::Subscribed { issues, .. } = next(&mut session).await else { panic!("subscribed") };
        granted.push(issues);
        drop(peer);
        assert!(matches!(next(&mut session).await, Event::Disconnected { .. }));
    }
    assert_eq!(granted, [false, true]);
}

/// Waits until the session asks the provisioning service, and counts the sign-ins at the hub before. The question comes
/// within ten seconds after the hub's refusal: see `Registrations::refused`.
async fn sign_ins_before_it_asks(broker: &Broker, session: &mut Session) -> u32 {
    let mut sign_ins = 0;
    loop {
        tokio::select! {
            _event = session.next() => {}
            peer = broker.try_accept() => {
                if let Ok(mut peer) = peer
                    && peer.read_connect().await.user_name.starts_with("0ne1/registrations/")
                {
                    return sign_ins;
                }
                sign_ins += 1;
            }
        }
    }
}

#[tokio::test]
async fn a_hub_that_ends_tls_or_hangs_up_on_a_certificate_leads_to_the_service() {
    for (broker, least) in [(Broker::start().await, 3), (Broker::start_without_certificates().await, 1)] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut session = Session::open(issued(&broker, &dir)).expect("a session");
        let sign_ins = tokio::time::timeout(DEADLINE, sign_ins_before_it_asks(&broker, &mut session)).await;
        let sign_ins = sign_ins.expect("the service is asked in time");
        assert!(sign_ins >= least, "after {sign_ins} sign-ins");
    }
}

#[tokio::test]
async fn a_pair_of_the_service_that_cannot_be_read_gives_way_to_what_there_is() {
    let (broker, dir) = (Broker::start().await, tempfile::tempdir().expect("a directory"));
    let settings = issued(&broker, &dir);
    let file = |name: &str| {
        let file = dir.path().join(name);
        crate::tls::ClientCertificate { certificate: file.clone(), private_key: file }
    };
    std::fs::rename(dir.path().join("pair"), dir.path().join("earlier")).expect("renamed");
    let with = |earlier: Option<&str>| {
        let issuing = Issuing { earlier: earlier.map(file), ..settings.issuing.clone() };
        Settings { issuing, ..settings.clone() }
    };
    let session = Session::open(with(Some("earlier"))).expect("a session");
    assert!(session.certificate().is_some(), "the earlier one");
    drop(session);
    for earlier in [None, Some("none")] {
        let session = Session::open(with(earlier)).expect("a session");
        assert!(session.certificate().is_none(), "the key that the device enrolled with");
        let mut peer = broker.accept().await;
        assert!(peer.read_connect().await.password.is_some_and(|token| token.starts_with("SharedAccess")));
        drop(session);
    }
    let no_pair = Settings { issuing: Issuing::default(), ..settings };
    assert!(Session::open(no_pair).is_err(), "files that a user names are an error");
}
