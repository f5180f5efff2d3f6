//! The control socket, from both ends.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::PathBuf;
use std::time::SystemTime;

use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::UnixStream;

use super::client::{Client, ClientError};
use super::*;
use crate::agent::status::{ActionCounts, ConnectionState, ConnectionStatus, InboxStatus, Status};
use crate::inbox::{Counts, Number, Query, Record, Reply, Selector, Settled, State};

struct Place {
    _dir: TempDir,
    path: PathBuf,
}

fn place() -> Place {
    let dir = tempfile::tempdir().expect("a directory");
    Place { path: dir.path().join("inbox.sock"), _dir: dir }
}

fn status() -> Status {
    let time = SystemTime::UNIX_EPOCH;
    let connection = ConnectionStatus {
        state: ConnectionState::Connected,
        transport: Some("mqtt-ws".to_owned()),
        since: time,
        reason: None,
        reconnects: 0,
    };
    Status {
        version: "1".into(),
        pid: 1,
        device_id: "d".into(),
        module_id: None,
        provisioning: None,
        module: None,
        desired: None,
        twin_rules: 0,
        hub: "h".into(),
        configured: None,
        refused_reload: None,
        started: time,
        connection,
        next_token_renewal: None,
        certificate: None,
        last_message_received: None,
        actions: ActionCounts::default(),
        inbox: InboxStatus { path: "p".into(), counts: Counts::default(), trouble: None },
        pins: [].into(),
    }
}

fn record(number: u64) -> Record {
    Record {
        number: Number(number),
        message_id: None,
        rule: None,
        state: State::Finished,
        settled: Settled::AfterAction,
        received_ms: 0,
        attempts: 0,
        started_ms: None,
        retry_on_crash: false,
        abandoned: false,
        outcome: None,
    }
}

/// Answers every request. A list gets one record whose number is the limit; anything else gets a refusal.
async fn agent(mut control: Control) {
    loop {
        match control.next().await {
            ControlRequest::Status(answer) => drop(answer.send(status())),
            ControlRequest::Query(Query::List { limit, .. }, answer) => {
                drop(answer.send(Reply::Records(vec![record(limit as u64)])));
            }
            ControlRequest::Query(query, answer) => drop(answer.send(Reply::Refused(format!("{query:?}")))),
        }
    }
}

/// Serves, until it is dropped.
fn serve(path: &Path) -> JoinSet<()> {
    let mut task = JoinSet::new();
    task.spawn(agent(Control::open(path).expect("a socket")));
    task
}

/// Asks from a separate thread, as the command line asks from a separate process.
async fn ask<T: Send + 'static>(path: &Path, work: impl FnOnce(Client) -> T + Send + 'static) -> T {
    let path = path.to_owned();
    let asking = tokio::task::spawn_blocking(move || work(Client::connect(&path).expect("an agent")));
    asking.await.expect("asked")
}

/// A raw connection, which can do what our client does not.
async fn raw(path: &Path) -> BufReader<UnixStream> {
    BufReader::new(UnixStream::connect(path).await.expect("an agent"))
}

async fn say(client: &mut BufReader<UnixStream>, text: &str) {
    client.get_mut().write_all(text.as_bytes()).await.expect("sent");
}

async fn hear(client: &mut BufReader<UnixStream>) -> String {
    let mut line = String::new();
    client.read_line(&mut line).await.expect("heard");
    line
}

#[tokio::test]
async fn many_requests_are_answered_on_one_connection() {
    let place = place();
    let _agent = serve(&place.path);
    let (first, list, second) = ask(&place.path, |mut client| {
        let first = client.status().expect("a status");
        let list = client.query(Query::List { state: None, after: 0, limit: 7 }).expect("an answer");
        (first, list, client.query(Query::Show(Selector("#12".into()))).expect("an answer"))
    })
    .await;
    assert_eq!(first, status());
    assert_eq!(list, Reply::Records(vec![record(7)]));
    assert_eq!(second, Reply::Refused("Show(Selector(\"#12\"))".into()));
}

#[tokio::test]
async fn a_page_is_bounded_whatever_is_asked_for() {
    let place = place();
    let _agent = serve(&place.path);
    let query = Query::List { state: None, after: 0, limit: usize::MAX };
    let reply = ask(&place.path, |mut client| client.query(query).expect("an answer")).await;
    assert_eq!(reply, Reply::Records(vec![record(MAX_PAGE as u64)]));
}

#[tokio::test]
async fn only_its_owner_can_open_the_socket_and_it_is_removed_at_the_end() {
    let place = place();
    let control = Control::open(&place.path).expect("a socket");
    let made = fs::symlink_metadata(&place.path).expect("the file");
    assert_eq!(made.permissions().mode() & 0o7777, 0o600);
    assert_eq!(made.uid(), rustix::process::geteuid().as_raw());
    drop(control);
    assert!(!place.path.exists());
}

#[tokio::test]
async fn the_socket_of_a_dead_agent_is_replaced_and_that_of_a_living_one_is_not() {
    let place = place();
    // As kill -9 leaves it: the file exists, but nothing listens.
    drop(std::os::unix::net::UnixListener::bind(&place.path).expect("a socket"));
    assert!(matches!(Client::connect(&place.path), Err(ClientError::NotRunning(_))));
    let first = Control::open(&place.path).expect("the stale socket is replaced");
    let error = Control::open(&place.path).expect_err("it is taken").to_string();
    let path = place.path.display();
    assert_eq!(
        error,
        format!(
            "another agent listens on the control socket {path}: stop that agent, or give this one an [inbox] socket of its own"
        )
    );
    drop(first);
    Control::open(&place.path).expect("it is free again");
}

#[tokio::test]
async fn the_end_of_an_agent_leaves_the_socket_of_the_next_one() {
    let place = place();
    let first = Control::open(&place.path).expect("a socket");
    fs::remove_file(&place.path).expect("somebody cleans up");
    let _second = Control::open(&place.path).expect("a socket");
    drop(first);
    assert!(place.path.exists());
}

#[tokio::test]
async fn what_stands_in_the_way_is_named_and_left_alone() {
    let place = place();
    fs::write(&place.path, "precious").expect("written");
    let error = Control::open(&place.path).expect_err("it is a file").to_string();
    assert!(error.contains("is not a socket: move that file away"), "{error}");
    assert_eq!(fs::read_to_string(&place.path).expect("still there"), "precious");
    let error = Control::open(&place.path.join("a.sock")).expect_err("no directory").to_string();
    assert!(error.contains("create its directory, or set [inbox] socket"), "{error}");
    let error = Control::open(&place.path.with_file_name("missing/a.sock")).expect_err("no directory");
    assert!(error.to_string().contains("create its directory, or set [inbox] socket"), "{error}");
    let error = Control::open(Path::new(&"x".repeat(200))).expect_err("too long").to_string();
    assert!(error.contains("at most 107 bytes"), "{error}");
    let error = Client::connect(&place.path.with_file_name("none")).expect_err("nobody").to_string();
    assert!(error.starts_with("no agent runs: nothing listens on "), "{error}");
}

#[tokio::test]
async fn nonsense_is_answered_with_one_error_and_a_hang_up() {
    let place = place();
    let _agent = serve(&place.path);
    for nonsense in ["GET / HTTP/1.1\r\n", "\n", "{\"status\":{}\n", "{\"query\":{\"erase\":1}}\n", "[1,2]\n"]
    {
        let mut client = raw(&place.path).await;
        say(&mut client, nonsense).await;
        let answer = hear(&mut client).await;
        assert!(answer.starts_with("{\"error\":\"this is not a request: "), "{nonsense}: {answer}");
        assert_eq!(hear(&mut client).await, "", "{nonsense}");
    }
}

#[tokio::test]
async fn a_request_as_long_as_allowed_is_read_and_a_longer_one_is_cut_off() {
    let place = place();
    let _agent = serve(&place.path);
    let (head, tail) = ("{\"query\":{\"show\":\"", "\"}}\n");
    let fits = wire::MAX_REQUEST_BYTES as usize - head.len() - tail.len();
    let mut client = raw(&place.path).await;
    say(&mut client, &format!("{head}{}{tail}", "x".repeat(fits))).await;
    assert!(hear(&mut client).await.starts_with("{\"reply\":"));
    say(&mut client, &format!("{head}{}{tail}", "x".repeat(fits + 1))).await;
    assert_eq!(hear(&mut client).await, "{\"error\":\"a request is at most 65536 bytes long\"}\n");
}

#[tokio::test]
async fn one_client_too_many_is_told_and_let_in_when_another_has_left() {
    let place = place();
    let _agent = serve(&place.path);
    let mut clients = Vec::new();
    for _ in 0..super::serve::MAX_CLIENTS {
        let mut client = raw(&place.path).await;
        say(&mut client, "{\"status\":{}}\n").await;
        assert!(hear(&mut client).await.starts_with("{\"status\":{"));
        clients.push(client);
    }
    let refused = ask(&place.path, |mut client| client.status().expect_err("one too many").to_string());
    assert_eq!(
        refused.await,
        "the agent says: 4 others are asking this agent right now: try again in a moment"
    );
    let mut leaves = clients.pop().expect("a client").into_inner();
    leaves.shutdown().await.expect("hung up");
    assert_eq!(leaves.read(&mut [0; 8]).await.expect("the other end"), 0, "the agent has hung up, too");
    assert_eq!(ask(&place.path, |mut client| client.status().expect("a status")).await, status());
}

#[tokio::test]
async fn clients_that_are_slow_do_not_hold_up_others() {
    let place = place();
    let _agent = serve(&place.path);
    // The first client sends half a request. The second sends many requests and never reads.
    let mut half = raw(&place.path).await;
    say(&mut half, "{\"sta").await;
    let mut deaf = raw(&place.path).await.into_inner();
    let flood = "{\"query\":{\"show\":\"#1\"}}\n".repeat(1000);
    while tokio::time::timeout(std::time::Duration::from_millis(100), deaf.write_all(flood.as_bytes()))
        .await
        .is_ok()
    {}
    assert_eq!(ask(&place.path, |mut client| client.status().expect("a status")).await, status());
    say(&mut half, "tus\":{}}\n").await;
    assert!(hear(&mut half).await.starts_with("{\"status\":{"));
}

#[tokio::test(start_paused = true)]
async fn a_client_that_asks_nothing_is_cut_off() {
    let place = place();
    let _agent = serve(&place.path);
    let mut client = raw(&place.path).await;
    assert_eq!(hear(&mut client).await, "{\"error\":\"there was no request for 30 s\"}\n");
    assert_eq!(hear(&mut client).await, "");
}

#[tokio::test(start_paused = true)]
async fn an_agent_without_an_answer_is_told_apart_from_none() {
    let place = place();
    let mut control = Control::open(&place.path).expect("a socket");
    let mut client = raw(&place.path).await;
    say(&mut client, "{\"query\":{\"retry\":\"m-1\"}}\n").await;
    let request = control.next().await;
    assert!(
        matches!(&request, ControlRequest::Query(Query::Retry(Selector(id)), _) if id == "m-1"),
        "{request:?}"
    );
    let answer = hear(&mut client).await;
    assert!(
        answer.contains("the inbox gave no answer within 10 s, and may still do what was asked"),
        "{answer}"
    );
    // The connection is still good.
    say(&mut client, "{\"status\":{}}\n").await;
    let ControlRequest::Status(answer) = control.next().await else { panic!("a status is asked for") };
    drop(answer);
    assert_eq!(hear(&mut client).await, "{\"error\":\"the agent is stopping\"}\n");
}

#[tokio::test]
async fn what_is_no_agent_is_named() {
    let place = place();
    let listener = UnixListener::bind(&place.path).expect("a socket");
    let mut server = JoinSet::new();
    server.spawn(async move {
        for text in ["220 mail.example\r\n", "{\"reply\":{\"refused\":\"no\"}}\n", ""] {
            let (mut stream, _) = listener.accept().await.expect("a client");
            stream.write_all(text.as_bytes()).await.expect("sent");
        }
    });
    let mut errors = Vec::new();
    for _ in 0..3 {
        let error = ask(&place.path, |mut client| client.status().expect_err("no status").to_string()).await;
        errors.push(error);
    }
    server.join_next().await.expect("a task").expect("served");
    assert!(errors[0].contains("speaks another version"), "{errors:?}");
    assert!(errors[1].contains("an answer to another question"), "{errors:?}");
    assert!(errors[2].contains("broke"), "{errors:?}");
}
