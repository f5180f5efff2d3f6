//! What the session publishes, against the emulator: a hub that keeps it.

use std::net::Ipv4Addr;

use bytes::Bytes;
use serde_json::json;

use super::{Event, Session, Settings, next};
use crate::credentials::{
    DeviceAuth, DeviceConnectionString, DeviceIdentity, DeviceSecret, HostPort, Route,
    module_from_environment,
};
use crate::emulator::{self, Emulator, Options};
use crate::message::Properties;
use crate::session::{PublishError, Upstream, probe};

pub(super) async fn start(dir: &std::path::Path) -> Emulator {
    emulator::start(options(dir), std::time::SystemTime::now).await.expect("started")
}

pub(super) fn options(dir: &std::path::Path) -> Options {
    Options {
        state_dir: dir.to_owned(),
        bind: Ipv4Addr::LOCALHOST.into(),
        hostname: "localhost".into(),
        gateway_hostname: None,
        hubs: Vec::new(),
        mqtt_port: 0,
        amqp_port: 0,
        https_port: Some(0),
        devices: vec!["dev1".into()],
        x509_devices: Vec::new(),
        modules: vec!["edge1/agent".into()],
        routes: Vec::new(),
        workload_socket: None,
        feedback_interval: std::time::Duration::from_secs(15),
        certificate_lifetime: std::time::Duration::from_secs(3600),
        size: None,
        faults: Vec::new(),
        clock: None,
        well_known_keys: false,
        provisioning: None,
        entra: None,
    }
}

pub(super) fn settings(emulator: &Emulator, dir: &std::path::Path) -> Settings {
    settings_of(emulator, dir, "dev1")
}

/// For `device` or `device/module`.
pub(super) fn settings_of(emulator: &Emulator, dir: &std::path::Path, id: &str) -> Settings {
    let (device_id, module_id) = match id.split_once('/') {
        Some((device, module)) => (device.to_owned(), Some(module.to_owned())),
        None => (id.to_owned(), None),
    };
    let folder = dir.join(if module_id.is_some() { "modules" } else { "devices" });
    let text = std::fs::read_to_string(folder.join(format!("{id}.connection-string"))).expect("a file");
    let DeviceSecret::Key(key) = DeviceConnectionString::parse(&text).expect("valid").secret else {
        panic!("a key");
    };
    Settings {
        transport: crate::credentials::Transport::Mqtt,
        identity: DeviceIdentity {
            hub: HostPort { name: "localhost".into(), port: Some(emulator.mqtt_address().port()) },
            device_id,
            module_id,
            gateway: None,
            auth: DeviceAuth::Key(key),
        },
        ca_file: Some(dir.join("ca.pem")),
        token_lifetime: std::time::Duration::from_secs(3600),
        route: Route::default(),
        clock: std::time::SystemTime::now,
        twin: true,
        methods: false,
        desired: false,
        hub_source: crate::session::HubSource::Configured,
        alone: true,
        issuing: crate::session::Issuing::default(),
    }
}

pub(super) async fn published(session: &mut Session) -> (u64, Result<Bytes, PublishError>) {
    match next(session).await {
        Event::Published { ticket, result } => (ticket, result),
        other => panic!("what became of a publish, not {other:?}"),
    }
}

#[tokio::test]
async fn the_emulator_keeps_what_the_session_publishes() {
    let dir = tempfile::tempdir().expect("a directory");
    let emulator = start(dir.path()).await;
    let mut session = Session::open(settings(&emulator, dir.path())).expect("a session");
    assert!(matches!(next(&mut session).await, Event::Subscribed { renewal: Some(_), .. }));

    let bag = "%24.cid=m%2F1&%24.ct=application%2Fjson&%24.ce=utf-8&odd=a%3Db%26c%2Bd%20%C3%A9";
    let properties = Properties::decode(bag).expect("a bag");
    let body = Bytes::from_static(br#"{"outcome":"succeeded"}"#);
    session.publish(1, Upstream::Telemetry { properties: properties.clone(), body: body.clone() });
    assert_eq!(published(&mut session).await, (1, Ok(Bytes::new())));
    emulator.hub().with(|hub, _| {
        let events: Vec<_> = hub.events("dev1").expect("a device").collect();
        assert_eq!(events.len(), 1);
        assert_eq!((&events[0].properties, &events[0].body), (&properties, &body));
    });

    let patch = |text: &'static str| Upstream::Reported { patch: Bytes::from_static(text.as_bytes()) };
    session.publish(2, patch(r#"{"c2d":{"last":"m/1","rules":{"blink":"succeeded"}}}"#));
    session.publish(3, patch(r#"{"c2d":{"last":null,"total":1}}"#));
    session.publish(4, patch(r#"{"a.b":1}"#));
    let mut results = Vec::new();
    for _ in 2..=4 {
        results.push(published(&mut session).await);
    }
    assert_eq!(results, [(2, Ok(Bytes::new())), (3, Ok(Bytes::new())), (4, Err(PublishError::Refused(400)))]);
    let mut twin = emulator.hub().with(|hub, _| hub.twin("dev1")).expect("a twin");
    twin["properties"]["reported"].as_object_mut().expect("an object").remove("$metadata");
    let reported = json!({ "c2d": { "rules": { "blink": "succeeded" }, "total": 1 }, "$version": 3 });
    assert_eq!(twin["properties"]["reported"], reported);
    assert_eq!(twin["connectionState"], "Connected");
    session.close().await;
    emulator.stop().await;
}

#[tokio::test]
async fn hundreds_of_publishes_eight_at_a_time_all_arrive_in_order() {
    const COUNT: u64 = 300;
    let dir = tempfile::tempdir().expect("a directory");
    let emulator = start(dir.path()).await;
    let mut session = Session::open(settings(&emulator, dir.path())).expect("a session");
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    let send = |session: &Session, ticket: u64| {
        let body = Bytes::from(ticket.to_string());
        session.publish(ticket, Upstream::Telemetry { properties: Properties::default(), body });
    };
    (1..=8).for_each(|ticket| send(&session, ticket));
    for ticket in 1..=COUNT {
        assert_eq!(published(&mut session).await, (ticket, Ok(Bytes::new())));
        if ticket + 8 <= COUNT {
            send(&session, ticket + 8);
        }
    }
    let kept: Vec<u64> = emulator.hub().with(|hub, _| {
        let events = hub.events("dev1").expect("a device");
        events.map(|event| String::from_utf8_lossy(&event.body).parse().expect("a number")).collect()
    });
    assert_eq!(kept, (COUNT - 99..=COUNT).collect::<Vec<_>>());
    session.close().await;
    emulator.stop().await;
}

#[tokio::test]
async fn the_environment_of_edge_agent_is_all_that_a_module_needs() {
    let dir = tempfile::tempdir().expect("a directory");
    let options = Options {
        modules: vec!["edge1/filter".into()],
        workload_socket: Some(dir.path().join("workload.sock")),
        ..options(dir.path())
    };
    let emulator = emulator::start(options, std::time::SystemTime::now).await.expect("started");
    let text = std::fs::read_to_string(dir.path().join("modules/edge1/filter.env")).expect("a file");
    let env = |name: &str| {
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('=')).map(str::to_owned)
    };
    let module = module_from_environment(&env).expect("valid").expect("a module");
    let as_module = |identity| Settings { identity, ca_file: None, ..settings(&emulator, dir.path()) };
    probe(as_module(module.identity.clone()), super::DEADLINE).await.expect("signed in");

    let other = |name: &str| if name == "IOTEDGE_MODULEGENERATIONID" { Some("1".into()) } else { env(name) };
    let module = module_from_environment(&other).expect("valid").expect("a module");
    let refused = probe(as_module(module.identity), super::DEADLINE).await.expect_err("no token").to_string();
    assert!(refused.contains("does not sign for module filter in generation 1 (status 404"), "{refused}");
    emulator.stop().await;
}
