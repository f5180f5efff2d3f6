//! The client against scripted daemons: what it asks for, when it repeats a request, and its sentences for failures.

use super::*;
use crate::credentials::SharedAccessKey;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixListener;
use tokio::task::JoinSet;

/// What the daemon does with a connection.
#[derive(Clone, Copy)]
enum Act {
    /// Closes it without reading.
    Drop,
    /// Reads the request and closes the connection.
    ReadAndDrop,
    /// Reads the request and never answers.
    Hang,
    /// Sends these bytes and closes the connection.
    Say(&'static str),
    /// A status with a body.
    Answer(u16, &'static str),
    /// A body without an end.
    Endless,
}

/// A daemon that follows a list of steps, repeats the last one, and reports the requests.
struct Daemon {
    dir: tempfile::TempDir,
    asked: tokio::sync::mpsc::Receiver<String>,
    _task: JoinSet<()>,
}

impl Daemon {
    fn start(acts: &'static [Act]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let listener = UnixListener::bind(dir.path().join("workload.sock")).expect("a socket");
        let (tell, asked) = tokio::sync::mpsc::channel(16);
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut open = Vec::new();
            for at in 0.. {
                let (mut stream, _) = listener.accept().await.expect("a connection");
                let act = acts[at.min(acts.len() - 1)];
                if matches!(act, Act::Drop) {
                    tell.send(String::new()).await.expect("told");
                    continue;
                }
                tell.send(read_request(&mut stream).await).await.expect("told");
                match act {
                    Act::Drop | Act::ReadAndDrop => {}
                    Act::Hang => open.push(stream),
                    Act::Say(text) => stream.write_all(text.as_bytes()).await.expect("sent"),
                    Act::Answer(status, body) => {
                        let text =
                            format!("HTTP/1.1 {status} Some\r\ncontent-length: {}\r\n\r\n{body}", body.len());
                        stream.write_all(text.as_bytes()).await.expect("sent");
                    }
                    Act::Endless => {
                        let head = b"HTTP/1.1 200 OK\r\n\r\n{\"certificate\":\"";
                        stream.write_all(head).await.expect("sent");
                        while stream.write_all(&[b'A'; 4096]).await.is_ok() {}
                    }
                }
            }
        });
        Self { dir, asked, _task: task }
    }

    fn access(&self) -> WorkloadAccess {
        access(&self.dir)
    }

    /// The number of requests.
    fn count(&mut self) -> usize {
        std::iter::from_fn(|| self.asked.try_recv().ok()).count()
    }
}

fn access(dir: &tempfile::TempDir) -> WorkloadAccess {
    WorkloadAccess {
        socket: dir.path().join("workload.sock"),
        module_id: "m$1".into(),
        generation_id: "6 3/8".into(),
        api_version: "2021-12-07".into(),
    }
}

/// The head, and the body if Content-Length announces one.
async fn read_request(stream: &mut UnixStream) -> String {
    let mut text = Vec::new();
    loop {
        let mut part = [0; 1024];
        let count = stream.read(&mut part).await.expect("a request");
        text.extend_from_slice(&part[..count]);
        let shown = String::from_utf8_lossy(&text).into_owned();
        if let Some((head, body)) = shown.split_once("\r\n\r\n") {
            let length = head.to_ascii_lowercase();
            let length = length
                .split_once("content-length: ")
                .map_or(0, |(_, rest)| rest.split("\r\n").next().expect("a line").parse().expect("a number"));
            if body.len() >= length {
                return shown;
            }
        }
        assert!(count > 0, "the request breaks off: {shown}");
    }
}

/// Any 32 bytes, in the place of an HMAC-SHA256.
const DIGEST: &str = r#"{"digest":"AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8="}"#;

async fn error_of(acts: &'static [Act]) -> (WorkloadError, usize) {
    let mut daemon = Daemon::start(acts);
    let error = sign(&daemon.access(), "text").await.expect_err("no signature");
    (error, daemon.count())
}

#[tokio::test]
async fn a_signature_is_asked_for_as_the_daemon_wants_it() {
    let mut daemon = Daemon::start(&[Act::Answer(200, DIGEST)]);
    let digest = sign(&daemon.access(), "h%2Fdevices%2Fd\n9").await.expect("a signature");
    assert_eq!(digest, (0..32).collect::<Vec<u8>>());
    let asked = daemon.asked.recv().await.expect("a request");
    let (head, body) = asked.split_once("\r\n\r\n").expect("a request");
    let line = "POST /modules/m%241/genid/6%203%2F8/sign?api-version=2021-12-07 HTTP/1.1\r\n";
    assert!(head.starts_with(line), "{head}");
    assert!(head.contains("connection: close") && head.contains("host: localhost"), "{head}");
    let sent: serde_json::Value = serde_json::from_str(body).expect("JSON");
    let data = BASE64.encode("h%2Fdevices%2Fd\n9");
    assert_eq!(sent, json!({ "keyId": "primary", "algo": "HMACSHA256", "data": data }));
}

#[tokio::test]
async fn the_trust_bundle_is_read() {
    let mut daemon = Daemon::start(&[Act::Answer(200, r#"{"certificate":"PEM\nPEM"}"#)]);
    assert_eq!(trust_bundle(&daemon.access()).await.expect("a bundle"), "PEM\nPEM");
    let asked = daemon.asked.recv().await.expect("a request");
    assert!(asked.starts_with("GET /trust-bundle?api-version=2021-12-07 HTTP/1.1\r\n"), "{asked}");
}

#[tokio::test(start_paused = true)]
async fn what_is_dropped_without_an_answer_is_asked_again() {
    const ACTS: &[Act] = &[Act::Drop, Act::ReadAndDrop, Act::Say("HTTP/1.1 2"), Act::Answer(200, DIGEST)];
    let mut daemon = Daemon::start(ACTS);
    sign(&daemon.access(), "text").await.expect("a signature");
    assert_eq!(daemon.count(), 4);
}

#[tokio::test(start_paused = true)]
async fn a_busy_daemon_is_asked_again() {
    const BUSY: Act = Act::Answer(500, r#"{"message":"the key service is away"}"#);
    let mut daemon = Daemon::start(&[BUSY, Act::Answer(429, ""), Act::Answer(200, DIGEST)]);
    sign(&daemon.access(), "text").await.expect("a signature");
    assert_eq!(daemon.count(), 3);

    let began = Instant::now();
    let (error, asked) = error_of(&[BUSY]).await;
    let text = error.to_string();
    assert!(matches!(error, WorkloadError::Unreachable { .. }), "{text}");
    assert!(text.contains("workload.sock is busy or broken (status 500: the key service is away)"), "{text}");
    assert_eq!(asked, 5);
    assert!(began.elapsed() < WHOLE_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_drops_everything_is_given_up_in_time() {
    let (error, asked) = error_of(&[Act::ReadAndDrop]).await;
    let text = error.to_string();
    assert!(matches!(error, WorkloadError::Unreachable { .. }), "{text}");
    assert!(text.contains("closed the connection without an answer"), "{text}");
    assert_eq!(asked, 5);
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_hangs_is_given_up_in_time() {
    let began = Instant::now();
    let (error, asked) = error_of(&[Act::Hang]).await;
    let text = error.to_string();
    assert!(matches!(error, WorkloadError::Unreachable { .. }), "{text}");
    assert!(text.contains("did not answer within 10 s: look at aziot-edged"), "{text}");
    assert_eq!(asked, 1);
    assert!(began.elapsed() < ANSWER_LIMIT + Duration::from_secs(1));
}

#[tokio::test]
async fn an_answer_that_is_none_is_told_with_what_came() {
    for (act, words) in [
        (Act::Answer(200, "<html><body>Welcome"), "signs without JSON, but with \"<html><body>Welcome\""),
        (Act::Answer(200, ""), "signs without JSON, but with \"nothing\""),
        (Act::Answer(200, r#"{"secret":"c2VjcmV0"}"#), "JSON of another form (missing field `digest`"),
        (Act::Answer(200, r#"{"digest":"c2VjcmV0"}"#), "not HMAC-SHA256 in base64"),
        (Act::Answer(302, ""), "/sign with status 302 (nothing)"),
        (Act::Answer(400, r#"{"message":"no such api-version"}"#), "status 400 (no such api-version)"),
        (Act::Answer(404, "<html>nginx"), "status 404 (<html>nginx)"),
        (Act::Say("SSH-2.0-OpenSSH_9\r\n"), "does not speak HTTP"),
        (Act::Endless, "answers with more than 64 KiB"),
    ] {
        let acts: &'static [Act] = Box::leak(Box::new([act]));
        let (error, asked) = error_of(acts).await;
        let text = error.to_string();
        assert!(matches!(error, WorkloadError::Unusable { .. }), "{words}: {text}");
        assert!(text.contains(words) && text.contains("workload.sock"), "{words}: {text}");
        assert!(!text.contains("c2VjcmV0"), "a secret may be shown: {text}");
        assert_eq!(asked, 1, "{words}");
    }
}

#[tokio::test]
async fn a_generation_that_is_unknown_is_final() {
    for status in [403, 404] {
        let acts: &'static [Act] =
            Box::leak(Box::new([Act::Answer(status, r#"{"message":"no such genid"}"#)]));
        let (error, asked) = error_of(acts).await;
        let text = error.to_string();
        assert!(matches!(error, WorkloadError::Gone { .. }), "{text}");
        let words =
            format!("does not sign for module m$1 in generation 6 3/8 (status {status}: no such genid)");
        assert!(text.contains(&words) && text.contains("edgeAgent starts the new one"), "{text}");
        assert_eq!(asked, 1);
    }
    let daemon = Daemon::start(&[Act::Answer(404, "{}")]);
    let error = trust_bundle(&daemon.access()).await.expect_err("no bundle");
    assert!(matches!(error, WorkloadError::Unusable { .. }), "roots have no generation: {error}");
}

#[tokio::test(start_paused = true)]
async fn a_socket_that_is_not_there_or_not_listened_on_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let error = sign(&access(&dir), "text").await.expect_err("no socket").to_string();
    assert!(error.contains("workload.sock is not there (no such file): let edgeAgent start"), "{error}");

    drop(std::os::unix::net::UnixListener::bind(dir.path().join("workload.sock")).expect("a socket"));
    let error = sign(&access(&dir), "text").await.expect_err("nobody listens").to_string();
    assert!(error.contains("does not take connections (Connection refused"), "{error}");

    let long = WorkloadAccess { socket: format!("/{}", "x".repeat(200)).into(), ..access(&dir) };
    let error = sign(&long, "text").await.expect_err("no socket").to_string();
    assert!(error.contains("is not a path of a socket"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_daemon_that_comes_up_meanwhile_is_found() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("workload.sock");
    let signing = access(&dir);
    let mut signed = JoinSet::new();
    signed.spawn(async move { sign(&signing, "text").await });
    sleep(FIRST_PAUSE).await;
    let listener = UnixListener::bind(path).expect("a socket");
    let (mut stream, _) = listener.accept().await.expect("a connection");
    read_request(&mut stream).await;
    let digest = BASE64.encode(SharedAccessKey::from_bytes(*b"key").digest(b"text"));
    let body = json!({ "digest": digest }).to_string();
    let text = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    stream.write_all(text.as_bytes()).await.expect("sent");
    let digest = signed.join_next().await.expect("a task").expect("ended").expect("a signature");
    assert_eq!(digest, SharedAccessKey::from_bytes(*b"key").digest(b"text"));
}
