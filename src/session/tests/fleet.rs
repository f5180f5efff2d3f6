//! A fleet asks for its hubs at the same moment, in one process.

use futures_util::future::join_all;
use tokio::time::{Instant, timeout};

use super::emulator::options;
use super::enrol::take_up;
use super::{DEADLINE, Event, Session, Settings};
use crate::credentials::{DeviceIdentity, HostPort, Route, SharedAccessKey, Transport};
use crate::emulator::{self, DEFAULT_ID_SCOPE, DpsFault, DpsFaultOrder, Options, ProvisioningSettings};
use crate::provisioning::{Enrolment, EnrolmentAuth, derive_key};
use crate::session::{HubSource, Issuing};
use std::time::{Duration, SystemTime};

const DEVICES: usize = 200;
/// How many requests are answered with 429.
const REFUSED: u32 = 300;
/// What the emulator asks for.
const RETRY_AFTER: Duration = Duration::from_secs(1);

/// Gets its hub and signs in there. Returns how often the service was too busy.
async fn enrols(settings: Settings, port: u16) -> u32 {
    let mut session = Session::open(settings.clone()).expect("a session");
    let (mut refused, mut not_before) = (0, Instant::now());
    loop {
        match timeout(DEADLINE * 3, session.next()).await.expect("an event") {
            Event::Disconnected { reason } => {
                assert!(reason.contains("it is busy (status 429), and asks for a pause of 1 s"), "{reason}");
                assert!(Instant::now() >= not_before, "asked within its pause: {refused}");
                (refused, not_before) = (refused + 1, Instant::now() + RETRY_AFTER);
            }
            Event::Assigned { assignment, .. } => {
                assert!(Instant::now() >= not_before, "asked within its pause: {refused}");
                take_up(&session, &settings, port, &assignment);
            }
            Event::Subscribed { .. } => break,
            other => panic!("{other:?}"),
        }
    }
    session.close().await;
    refused
}

#[tokio::test]
async fn two_hundred_devices_get_their_hub_from_a_service_that_throttles_and_none_asks_within_its_pause() {
    let dir = tempfile::tempdir().expect("a directory");
    let group = SharedAccessKey::from_bytes(*b"the key of the whole fleet");
    let provisioning = ProvisioningSettings {
        id_scope: DEFAULT_ID_SCOPE.to_owned(),
        devices: Vec::new(),
        groups: vec![format!("fleet={}", group.expose_base64()).parse().expect("a group")],
        faults: vec![DpsFaultOrder { registration_id: None, fault: DpsFault::Throttle(Some(REFUSED)) }],
    };
    let options = Options { provisioning: Some(provisioning), ..options(dir.path()) };
    let emulator = emulator::start(options, SystemTime::now).await.expect("started");
    let port = emulator.mqtt_address().port();
    let endpoint = HostPort { name: "localhost".to_owned(), port: Some(port) };
    let settings = |number: usize| {
        let registration_id = format!("gw-{number}");
        let enrolment = Enrolment {
            endpoint: endpoint.clone(),
            id_scope: DEFAULT_ID_SCOPE.to_owned(),
            auth: EnrolmentAuth::Key(derive_key(&group, &registration_id)),
            registration_id: registration_id.clone(),
            payload: None,
            request_certificate: false,
        };
        Settings {
            identity: DeviceIdentity {
                hub: endpoint.clone(),
                device_id: registration_id,
                module_id: None,
                gateway: None,
                auth: (&enrolment.auth).into(),
            },
            hub_source: HubSource::Unassigned(enrolment),
            transport: Transport::Mqtt,
            ca_file: Some(dir.path().join("ca.pem")),
            token_lifetime: Duration::from_secs(3600),
            route: Route::default(),
            clock: SystemTime::now,
            twin: false,
            methods: false,
            issuing: Issuing::default(),
            desired: false,
            alone: true,
        }
    };
    let refused = join_all((0..DEVICES).map(|number| enrols(settings(number), port))).await;
    assert_eq!(refused.iter().sum::<u32>(), REFUSED, "all others were answered");
    emulator.stop().await;
}
