//! A module of IoT Edge: its session against a scripted workload API and a scripted gateway, which is this broker.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::task::JoinSet;

use super::super::{Terms, probe};
use super::*;
use crate::credentials::WorkloadAccess;

const RESOURCE: &str = "localhost/devices/edge1/modules/filter";

/// What the workload API does.
#[derive(Clone)]
enum Mood {
    /// Signs for this generation, and gives this bundle.
    Serve { generation: &'static str, bundle: String },
    /// Takes requests and answers none.
    Hang,
    /// Answers with an HTML page.
    Page,
}

/// A workload API that signs with [`KEY`].
struct Daemon {
    mood: Arc<Mutex<Mood>>,
    dir: tempfile::TempDir,
    _task: JoinSet<()>,
}

impl Daemon {
    fn start(mood: Mood) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("workload.sock")).expect("a socket");
        let mood = Arc::new(Mutex::new(mood));
        let mut task = JoinSet::new();
        task.spawn(serve(listener, Arc::clone(&mood)));
        Self { mood, dir, _task: task }
    }

    fn serving(broker: &Broker) -> Self {
        Self::start(Mood::Serve { generation: "g1", bundle: bundle(broker) })
    }

    fn becomes(&self, mood: Mood) {
        *self.mood.lock().expect("not poisoned") = mood;
    }

    /// The settings of a module whose gateway is `broker`. The module trusts it only through the bundle.
    fn settings(&self, broker: &Broker) -> Settings {
        let access = WorkloadAccess {
            socket: self.dir.path().join("workload.sock"),
            module_id: "filter".into(),
            generation_id: "g1".into(),
            api_version: "2021-12-07".into(),
        };
        let identity = DeviceIdentity {
            device_id: "edge1".into(),
            module_id: Some("filter".into()),
            auth: DeviceAuth::Workload(access),
            ..settings(broker).identity
        };
        Settings { identity, ca_file: None, ..settings(broker) }
    }
}

fn bundle(broker: &Broker) -> String {
    std::fs::read_to_string(broker.ca_file()).expect("a file")
}

async fn serve(listener: UnixListener, mood: Arc<Mutex<Mood>>) {
    let mut unanswered = Vec::new();
    loop {
        let (stream, _) = listener.accept().await.expect("a connection");
        let mut stream = BufReader::new(stream);
        let (line, body) = request(&mut stream).await;
        let mood = mood.lock().expect("not poisoned").clone();
        let (status, answer) = match mood {
            Mood::Hang => {
                unanswered.push(stream);
                continue;
            }
            Mood::Page => (200, "<html><body>It works!".to_owned()),
            Mood::Serve { bundle, .. } if line.starts_with("GET /trust-bundle?api-version=") => {
                (200, json!({ "certificate": bundle }).to_string())
            }
            Mood::Serve { generation, .. }
                if line.starts_with(&format!("POST /modules/filter/genid/{generation}/sign?")) =>
            {
                let data = body["data"].as_str().expect("a text");
                let data = BASE64.decode(data).expect("base64");
                let digest = SharedAccessKey::from_bytes(KEY).digest(&data);
                (200, json!({ "digest": BASE64.encode(digest) }).to_string())
            }
            Mood::Serve { .. } => (404, json!({ "message": "no such generation" }).to_string()),
        };
        let head = format!("HTTP/1.1 {status} Some\r\ncontent-length: {}\r\n\r\n", answer.len());
        stream.write_all((head + &answer).as_bytes()).await.expect("sent");
    }
}

/// The first line and the JSON of a request.
async fn request(stream: &mut BufReader<UnixStream>) -> (String, Value) {
    let (mut head, mut length) = (Vec::new(), 0);
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.expect("a line");
        if line.trim().is_empty() {
            break;
        }
        if let Some((_, digits)) = line.to_ascii_lowercase().split_once("content-length: ") {
            length = digits.trim().parse().expect("a number");
        }
        head.push(line);
    }
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await.expect("a body");
    (head.swap_remove(0), serde_json::from_slice(&body).unwrap_or_default())
}

/// A module's session, signed in and subscribed.
async fn module(daemon: &Daemon, broker: &Broker) -> (Session, Peer) {
    connected(broker, daemon.settings(broker)).await
}

/// The sentence with which the session ends, and the sentences before it.
async fn end(session: &mut Session) -> (String, Vec<String>) {
    let mut before = Vec::new();
    loop {
        match next(session).await {
            Event::Disconnected { reason } => before.push(reason),
            Event::Ended(SessionError::Refused(sentence)) => return (sentence, before),
            other => panic!("an end, not {other:?}"),
        }
    }
}

#[tokio::test]
async fn a_module_signs_in_with_nothing_but_its_socket_and_renews_its_token() {
    let broker = Broker::start().await;
    let daemon = Daemon::serving(&broker);
    let short = Settings { token_lifetime: Duration::from_secs(3), ..daemon.settings(&broker) };
    let mut session = Session::open(short).expect("a session");
    let mut passwords = Vec::new();
    for _ in 0..2 {
        let mut peer = broker.accept().await;
        let connect = peer.read_connect().await;
        assert_eq!(connect.client_id, "edge1/filter");
        assert!(
            connect.user_name.starts_with("localhost/edge1/filter/?api-version="),
            "{}",
            connect.user_name
        );
        let password = connect.password.expect("a password");
        let token = SasToken::parse(&password).expect("a token");
        assert!(token.is_signed_by(&SharedAccessKey::from_bytes(KEY)));
        assert_eq!(token.resource(), RESOURCE);
        passwords.push(password);
        peer.send_connack(0).await;
        peer.read_subscribe().await;
        peer.send_suback().await;
        assert!(matches!(next(&mut session).await, Event::Subscribed { renewal: Some(_), .. }));
        while passwords.len() < 2 && peer.read().await.0 >> 4 != 14 {}
    }
    assert_ne!(passwords[0], passwords[1]);
    session.close().await;
}

#[tokio::test]
async fn a_module_that_was_deployed_anew_ends_even_after_it_was_signed_in() {
    let broker = Broker::start().await;
    let daemon = Daemon::serving(&broker);
    let (mut session, peer) = module(&daemon, &broker).await;
    daemon.becomes(Mood::Serve { generation: "g2", bundle: bundle(&broker) });
    drop(peer);
    let (sentence, before) = end(&mut session).await;
    assert!(before.iter().all(|reason| reason.contains("closed the connection")), "{before:?}");
    assert!(sentence.contains("does not sign for module filter in generation g1"), "{sentence}");
    assert!(sentence.contains("status 404: no such generation"), "{sentence}");
    assert!(sentence.contains("edgeAgent starts the new one"), "{sentence}");
}

/// Answers the sign-ins of consecutive connections with these codes.
async fn answer(broker: &Broker, codes: &[u8]) {
    for code in codes {
        let mut peer = broker.accept().await;
        peer.read_connect().await;
        peer.send_connack(*code).await;
    }
}

#[tokio::test]
async fn three_refusals_in_a_row_end_a_module_that_was_let_in_before() {
    let broker = Broker::start().await;
    let daemon = Daemon::serving(&broker);
    let (mut session, peer) = module(&daemon, &broker).await;
    drop(peer);
    let ((sentence, before), ()) = tokio::join!(end(&mut session), answer(&broker, &[5, 5, 5]));
    let port = broker.port();
    let refused = format!("edgeHub) at localhost:{port} refused module edge1/filter");
    assert!(before.len() == 3 && before[1..].iter().all(|reason| reason.contains(&refused)), "{before:?}");
    assert!(sentence.contains(&refused), "{sentence}");
    assert!(sentence.contains("redeployed (this is generation g1)"), "{sentence}");
    assert!(sentence.contains("3 times in a row, so this process ends"), "{sentence}");
}

#[tokio::test]
async fn a_sign_in_between_refusals_begins_the_count_anew() {
    let broker = Broker::start().await;
    let daemon = Daemon::serving(&broker);
    let (mut session, peer) = module(&daemon, &broker).await;
    drop(peer);
    let told = async {
        let mut told = Vec::new();
        while told.len() < 5 {
            told.push(reason(&mut session).await);
        }
        told
    };
    let (told, ()) = tokio::join!(told, answer(&broker, &[5, 5, 0, 5]));
    assert!(told[4].contains("refused module edge1/filter"), "{told:?}");
}

#[tokio::test]
async fn a_module_that_was_never_let_in_ends_at_the_first_refusal() {
    let broker = Broker::start().await;
    let daemon = Daemon::serving(&broker);
    let mut session = Session::open(daemon.settings(&broker)).expect("a session");
    let mut peer = broker.accept().await;
    peer.read_connect().await;
    peer.send_connack(5).await;
    let (sentence, before) = end(&mut session).await;
    assert!(sentence.contains("refused module edge1/filter"), "{sentence}");
    assert!(before.is_empty(), "{before:?}");
}

#[tokio::test]
async fn a_gateway_with_another_authority_is_trusted_as_soon_as_the_bundle_has_it() {
    let broker = Broker::start().await;
    let daemon = Daemon::serving(&broker);
    let (mut session, peer) = module(&daemon, &broker).await;
    let stopped = broker.stop();
    drop(peer);
    let broker = stopped.renewed().restart().await;
    let distrust = async {
        loop {
            let reason = reason(&mut session).await;
            if reason.contains("no TLS") {
                return reason;
            }
        }
    };
    let (reason, peer) = tokio::join!(distrust, broker.try_accept());
    assert!(reason.contains("is not signed by a root that this machine trusts"), "{reason}");
    assert!(reason.contains("a module trusts the roots in the trust bundle of its workload API"), "{reason}");
    assert!(peer.is_err(), "the session was not begun");
    daemon.becomes(Mood::Serve { generation: "g1", bundle: bundle(&broker) });
    let mut peer = loop {
        // An attempt that asked for the bundle earlier still fails.
        if let Ok(peer) = broker.try_accept().await {
            break peer;
        }
    };
    peer.sign_in_and_subscribe().await;
    while !matches!(next(&mut session).await, Event::Subscribed { .. }) {}
    session.close().await;
}

#[tokio::test]
async fn nonsense_from_the_socket_is_told_and_the_session_waits_for_better() {
    let broker = Broker::start().await;
    let daemon = Daemon::start(Mood::Page);
    let mut session = Session::open(daemon.settings(&broker)).expect("a session");
    let page = reason(&mut session).await;
    assert!(page.contains("workload.sock gives its trust bundle without JSON"), "{page}");
    assert!(page.contains("<html><body>It works!"), "{page}");
    let cut = "-----BEGIN CERTIFICATE-----\nM*I\n-----END CERTIFICATE-----\n".to_owned();
    daemon.becomes(Mood::Serve { generation: "g1", bundle: cut });
    let mut damaged = reason(&mut session).await;
    while damaged == page {
        damaged = reason(&mut session).await;
    }
    assert!(damaged.contains("the trust bundle cannot be used: it is not PEM"), "{damaged}");
    daemon.becomes(Mood::Serve { generation: "g1", bundle: bundle(&broker) });
    let mut peer = broker.accept().await;
    peer.sign_in_and_subscribe().await;
    while !matches!(next(&mut session).await, Event::Subscribed { .. }) {}
    session.close().await;
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_hangs_is_told_and_tried_again() {
    let broker = Broker::start().await;
    let daemon = Daemon::start(Mood::Hang);
    let mut session = Session::open(daemon.settings(&broker)).expect("a session");
    let reason = reason(&mut session).await;
    assert!(reason.contains("workload.sock took the request and did not answer within 10 s"), "{reason}");
    daemon.becomes(Mood::Serve { generation: "g1", bundle: bundle(&broker) });
    tokio::time::resume();
    let mut peer = broker.accept().await;
    peer.sign_in_and_subscribe().await;
    while !matches!(next(&mut session).await, Event::Subscribed { .. }) {}
    session.close().await;
}

#[tokio::test]
async fn a_hanging_socket_holds_up_neither_other_terms_nor_the_end() {
    let broker = Broker::start().await;
    let (hanging, daemon) = (Daemon::start(Mood::Hang), Daemon::serving(&broker));
    let mut session = Session::open(hanging.settings(&broker)).expect("a session");
    // The session sends its request and gets no answer.
    tokio::task::yield_now().await;
    let began = std::time::Instant::now();
    assert!(session.change(Terms::read(daemon.settings(&broker)).expect("terms")));
    let mut peer = broker.accept().await;
    peer.sign_in_and_subscribe().await;
    assert!(matches!(next(&mut session).await, Event::Subscribed { .. }));
    assert!(session.change(Terms::read(hanging.settings(&broker)).expect("terms")));
    assert_eq!(peer.read().await.0 >> 4, 14, "DISCONNECT");
    drop(peer);
    session.close().await;
    assert!(began.elapsed() < Duration::from_secs(8), "it waited for the socket");
}

#[tokio::test]
async fn a_probe_signs_a_module_in_and_out() {
    let broker = Broker::start().await;
    let daemon = Daemon::serving(&broker);
    let hub = async {
        let mut peer = broker.accept().await;
        assert_eq!(peer.read_connect().await.client_id, "edge1/filter");
        peer.send_connack(0).await;
        assert_eq!(peer.read().await, (0xE0, Vec::new()), "DISCONNECT");
    };
    let (result, ()) = tokio::join!(probe::probe(daemon.settings(&broker), DEADLINE), hub);
    result.expect("signed in");
    daemon.becomes(Mood::Hang);
    let hung = probe::probe(daemon.settings(&broker), Duration::from_millis(300)).await;
    let sentence = hung.expect_err("no token").to_string();
    assert!(sentence.contains("the workload API gave no token within"), "{sentence}");
}
