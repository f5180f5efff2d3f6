//! The client against servers of these tests: what it asks for, and every kind of bad answer.

use super::*;
use crate::credentials::ProxySettings;
use std::sync::Arc;

use rustls::ServerConfig;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_rustls::TlsAcceptor;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

/// A TLS server that reads one request for each answer, and then hangs up.
struct Server {
    port: u16,
    ca: tempfile::TempDir,
    /// Notified when a request was read and no answer will follow.
    silent: Arc<Notify>,
    tasks: JoinSet<Vec<String>>,
}

impl Server {
    async fn start(answers: Vec<Vec<u8>>) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let ca = tempfile::tempdir().expect("a directory");
        std::fs::write(ca.path().join("ca.pem"), made.cert.pem()).expect("written");
        let key = rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let config = ServerConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a configuration");
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let (mut tasks, silent) = (JoinSet::new(), Arc::new(Notify::new()));
        tasks.spawn(serve(listener, TlsAcceptor::from(Arc::new(config)), answers, Arc::clone(&silent)));
        Self { port, ca, silent, tasks }
    }

    fn client(&self) -> HttpsService {
        let text = "HostName=localhost:1;SharedAccessKeyName=service;SharedAccessKey=AAAA";
        let identity = crate::credentials::ServiceConnectionString::parse(text).expect("valid").into();
        let ca = self.ca.path().join("ca.pem");
        let way = HttpsWay { port: self.port, proxies: ProxySettings::default() };
        HttpsService::new(&identity, way, Some(&ca), Duration::from_secs(60), || NOW).expect("a client")
    }

    /// The error of one request, without the port.
    async fn error(&self) -> String {
        let error = self.client().twin("dev1").await.expect_err("an error");
        error.to_string().replace(&self.port.to_string(), "PORT")
    }
}

async fn serve(
    listener: TcpListener,
    tls: TlsAcceptor,
    answers: Vec<Vec<u8>>,
    silent: Arc<Notify>,
) -> Vec<String> {
    let mut heads = Vec::new();
    let mut answers = answers.into_iter().peekable();
    while answers.peek().is_some() {
        let (stream, _) = listener.accept().await.expect("a client");
        let Ok(mut stream) = tls.accept(stream).await else { continue };
        while let Some(answer) = answers.peek() {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                match stream.read_u8().await {
                    Ok(byte) => head.push(byte),
                    Err(_) => break,
                }
            }
            if head.is_empty() {
                break;
            }
            heads.push(String::from_utf8(head).expect("text"));
            if answer.is_empty() {
                // The server is silent until the client gives up.
                silent.notify_one();
                drop(stream.read_u8().await);
                return heads;
            }
            // A client that gave up closes before the end.
            let sent = stream.write_all(answer).await;
            let closes = answer.windows(17).any(|part| part == b"Connection: close");
            answers.next();
            if sent.is_err() || closes {
                break;
            }
        }
        drop(stream.shutdown().await);
    }
    heads
}

fn answer(head: &str, body: &str) -> Vec<u8> {
    format!("HTTP/1.1 {head}\r\nContent-Length: {}\r\n\r\n{body}", body.len()).into_bytes()
}

#[tokio::test]
async fn a_twin_is_asked_for_as_the_hub_wants_it_over_one_connection_that_is_opened_again_when_need_be() {
    let twin = r#"{"properties":{"desired":{},"reported":{"led":"on"}}}"#;
    let mut server = Server::start(vec![
        answer("200 OK\r\nServer: Microsoft-HTTPAPI/2.0", twin),
        answer("200 OK\r\nServer: c2d-agent-emulator/1\r\nConnection: close", twin),
        answer(
            "200 OK",
            r#"[{"number":3,"systemProperties":{"$.cid":"m-1"},"properties":{"a":null},"body":"x"},
            {"number":4,"bodyBase64":"/wA="}]"#,
        ),
    ])
    .await;
    let mut client = server.client();
    let first = client.twin("dev/1#é").await.expect("a twin");
    assert_eq!(first, Twin { reported: serde_json::json!({ "led": "on" }), of_emulator: false });
    assert!(client.twin("dev1").await.expect("a twin").of_emulator);
    let events = client.emulator_events("dev1", 2).await.expect("events");
    assert_eq!(events[0].system.get("$.cid"), Some(&Some("m-1".to_owned())));
    assert_eq!((&events[0].body[..], &events[1].body[..], events[1].number), (&b"x"[..], &b"\xff\0"[..], 4));

    let heads = server.tasks.join_next().await.expect("a server").expect("no panic");
    assert!(
        heads[0].starts_with("GET /twins/dev%2F1%23%C3%A9?api-version=2021-04-12 HTTP/1.1\r\n"),
        "{}",
        heads[0]
    );
    assert!(heads[0].contains(&format!("host: localhost:{}\r\n", server.port)), "{}", heads[0]);
    assert!(heads[0].contains("authorization: SharedAccessSignature sr=localhost&sig="), "{}", heads[0]);
    assert!(heads[2].starts_with("GET /emulator/devices/dev1/events?after=2 HTTP/1.1\r\n"), "{}", heads[2]);
}

#[tokio::test]
async fn each_bad_answer_is_one_sentence() {
    let no_hub = |what: &str| {
        format!(
            "localhost:PORT answers over HTTPS, but not as an IoT Hub does ({what}): check HostName and --https-port, or \
             whether a proxy answers in its place"
        )
    };
    let hub_error = |code: &str| format!(r#"{{"Message":"ErrorCode:{code};words","ExceptionMessage":""}}"#);
    let cases = [
        (answer("200 OK", "<html>welcome</html>"), no_hub("status 200 without JSON")),
        (answer("200 OK", r#"{"status":"up"}"#), no_hub("a twin without reported properties")),
        (answer("404 Not Found", "<html>"), no_hub("status 404 without JSON")),
        (answer("302 Found\r\nLocation: /login", ""), no_hub("status 302 without JSON")),
        (b"220 mail.example.com ESMTP\r\n".to_vec(), no_hub("no HTTP/1.1")),
        (answer("200 OK", &" ".repeat(MAX_TWIN + 1)), no_hub("more than 1024 KiB")),
        (format!("HTTP/1.1 200 OK\r\n{}\r\n", "x: y\r\n".repeat(200)).into_bytes(), no_hub("no HTTP/1.1")),
        (
            answer("404 Not Found", &hub_error("DeviceNotFound")),
            "the hub knows no device \"dev1\": check --device".to_owned(),
        ),
        (
            answer("400 Bad Request", &hub_error("ArgumentInvalid")),
            "localhost:PORT refuses the request over HTTPS (status 400: ErrorCode:ArgumentInvalid;words): check \
             --https-port and --device"
                .to_owned(),
        ),
        (
            answer("429 Too Many Requests", &hub_error("ThrottlingException")),
            "localhost:PORT is throttling requests (429): wait, and ask less often".to_owned(),
        ),
        (
            answer("503 Service Unavailable", ""),
            "localhost:PORT failed to answer over HTTPS (status 503): try again later".to_owned(),
        ),
        (
            answer("401 Unauthorized", ""),
            "localhost:PORT does not accept the policy \"service\": this machine's clock says \
             1970-01-01T00:00:00Z, so its tokens are not valid: set the clock"
                .to_owned(),
        ),
    ];
    for (bytes, sentence) in cases {
        let server = Server::start(vec![bytes]).await;
        assert_eq!(server.error().await, sentence);
    }
    let server =
        Server::start(vec![b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 9\r\n\r\n{".to_vec()])
            .await;
    let error = server.error().await;
    assert!(error.contains("localhost:PORT ended its answer over HTTPS too early"), "{error}");
}

#[tokio::test]
async fn a_server_that_says_nothing_is_left() {
    let server = Server::start(vec![Vec::new()]).await;
    let mut client = server.client();
    let mut asked = Box::pin(client.twin("dev1"));
    tokio::select! {
        answered = &mut asked => panic!("{answered:?}"),
        () = server.silent.notified() => {}
    }
    // Only after the TLS handshake, because paused time would run out during it.
    tokio::time::pause();
    let error = asked.await.expect_err("late");
    // It has the request, and may have done it.
    assert!(matches!(error, ServiceError::Unanswered(_)), "{error:?}");
    let error = error.to_string();
    assert!(error.contains("did not answer over HTTPS within 15 s"), "{error}");
}

#[test]
fn an_event_whose_body_is_not_what_it_says_is_no_event() {
    let event = |text: &str| serde_json::from_str::<WireEvent>(text).expect("an event").read();
    assert_eq!(event(r#"{"number":1,"bodyBase64":"?"}"#), None);
    assert_eq!(event(r#"{"number":1}"#).map(|event| event.body), Some(Bytes::new()));
}

#[tokio::test]
async fn a_request_that_the_hub_refuses_for_an_old_token_is_sent_again_with_a_new_one_once() {
    use std::sync::atomic::{AtomicU64, Ordering};
    static LATER: AtomicU64 = AtomicU64::new(0);
    let clock = || NOW + Duration::from_secs(LATER.load(Ordering::SeqCst));
    let twin = r#"{"properties":{"desired":{},"reported":{}}}"#;
    let refused =
        answer("401 Unauthorized", r#"{"Message":"ErrorCode:IotHubUnauthorizedAccess;Unauthorized"}"#);
    let mut server =
        Server::start(vec![answer("200 OK", twin), refused.clone(), answer("200 OK", twin), refused]).await;
    let issuer = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let endpoint = format!("http://{}/token", issuer.local_addr().expect("an address"));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        for number in 1..=2 {
            let (mut stream, _) = issuer.accept().await.expect("a client");
            let body = format!(r#"{{"access_token":"t-{number}","expires_in":86400}}"#);
            stream.write_all(&answer("200 OK\r\nConnection: close", &body)).await.expect("sent");
            // Until the client has read all.
            drop(stream.read_to_end(&mut Vec::new()).await);
        }
    });
    let header = Some(crate::credentials::HiddenText::new("h"));
    let endpoint = crate::credentials::TokenEndpoint::parse(&endpoint).expect("an address");
    let login = crate::credentials::EntraLogin::Managed { endpoint, header, client_id: None };
    let tokens = Arc::new(EntraTokens::new(login, crate::service::EntraRoute::default(), clock));
    let host = HostPort { name: "localhost".into(), port: None };
    let identity = ServiceIdentity { host, proof: ServiceProof::Entra(tokens) };
    let way = HttpsWay { port: server.port, proxies: ProxySettings::default() };
    let ca = server.ca.path().join("ca.pem");
    let mut client = HttpsService::new(&identity, way, Some(&ca), Duration::ZERO, clock).expect("a client");
    client.twin("dev1").await.expect("a twin");
    LATER.store(100, Ordering::SeqCst);
    client.twin("dev1").await.expect("a twin, with the second token");
    let error = client.twin("dev1").await.expect_err("the second token is new").to_string();
    assert!(error.contains("does not accept the token of Microsoft Entra"), "{error}");
    let heads = server.tasks.join_next().await.expect("a server").expect("no panic");
    let shown: Vec<_> = heads
        .iter()
        .filter_map(|head| head.lines().find_map(|line| line.strip_prefix("authorization: ")))
        .collect();
    assert_eq!(shown, ["Bearer t-1", "Bearer t-1", "Bearer t-2", "Bearer t-2"]);
}
