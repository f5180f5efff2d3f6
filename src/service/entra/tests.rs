//! Each source against a server of these tests: what it asks for, what it keeps, and every kind of bad answer.

use super::*;

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use crate::credentials::{AuthMethod, TokenEndpoint};

const GRANTED: &str = r#"{"token_type":"Bearer","expires_in":3600,"access_token":"t-1"}"#;

fn start() -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
}

/// Answers one request on each connection, and returns the requests.
struct Peer {
    address: String,
    requests: JoinSet<Vec<String>>,
}

impl Peer {
    async fn giving(answers: Vec<String>) -> Self {
        Self::giving_after(answers, |_| {}).await
    }

    /// Calls `before` with the number of each answer, the first of which is 0.
    async fn giving_after(answers: Vec<String>, before: fn(usize)) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = format!("http://{}", listener.local_addr().expect("an address"));
        let mut task = JoinSet::new();
        task.spawn(async move {
            let mut requests = Vec::new();
            for (number, answer) in answers.into_iter().enumerate() {
                let (mut stream, _) = listener.accept().await.expect("a client");
                let mut request = Vec::new();
                while !is_whole(&request) {
                    request.push(stream.read_u8().await.expect("a request"));
                }
                requests.push(String::from_utf8(request).expect("text"));
                before(number);
                stream.write_all(answer.as_bytes()).await.expect("sent");
                stream.shutdown().await.expect("closed");
            }
            requests
        });
        Self { address, requests: task }
    }

    fn tokens(
        &self,
        method: AuthMethod,
        variables: &[(&str, &str)],
        clock: fn() -> SystemTime,
    ) -> EntraTokens {
        let own =
            ["AZURE_AUTHORITY_HOST", "AZURE_POD_IDENTITY_AUTHORITY_HOST"].map(|name| (name, &*self.address));
        let all: HashMap<_, _> = own.into_iter().chain(variables.iter().copied()).collect();
        let login = EntraLogin::read(method, &|name| all.get(name).map(|value| (*value).to_owned()));
        EntraTokens::new(login.expect("complete"), EntraRoute::default(), clock)
    }

    async fn requests(mut self) -> Vec<String> {
        self.requests.join_next().await.expect("a task").expect("no panic")
    }
}

fn is_whole(request: &[u8]) -> bool {
    let text = String::from_utf8_lossy(request);
    let Some((head, body)) = text.split_once("\r\n\r\n") else { return false };
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

fn answer(status: &str, body: &str) -> String {
    format!("HTTP/1.1 {status}\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
}

const APP: [(&str, &str); 3] =
    [("AZURE_TENANT_ID", "t.example"), ("AZURE_CLIENT_ID", "app 1"), ("AZURE_CLIENT_SECRET", "a&b=c")];

#[tokio::test]
async fn a_secret_is_sent_in_a_form_and_the_token_serves_until_shortly_before_its_end() {
    static LATER: AtomicU64 = AtomicU64::new(0);
    let refused = r#"{"error":"temporarily_unavailable"}"#;
    let peer = Peer::giving(vec![
        answer("200 OK", GRANTED),
        answer("503 Service Unavailable", refused),
        answer("503 Service Unavailable", refused),
        answer("200 OK", &GRANTED.replace("t-1", "t-2")),
    ])
    .await;
    let tokens =
        peer.tokens(AuthMethod::Secret, &APP, || start() + Duration::from_secs(LATER.load(Ordering::SeqCst)));
    let told = async || tokens.token().await.map(|token| token.expose()).map_err(|error| error.to_string());
    assert_eq!(told().await.as_deref(), Ok("Bearer t-1"));
    LATER.store(3299, Ordering::SeqCst);
    assert_eq!(told().await.as_deref(), Ok("Bearer t-1"), "nothing is asked yet");
    LATER.store(3301, Ordering::SeqCst);
    assert_eq!(told().await.as_deref(), Ok("Bearer t-1"), "it serves while there is no other one");
    LATER.store(3330, Ordering::SeqCst);
    assert_eq!(told().await.as_deref(), Ok("Bearer t-1"), "nothing is asked so soon after a failure");
    LATER.store(3600, Ordering::SeqCst);
    let error = tokens.token().await.expect_err("ended");
    assert!(error.is_passing(), "{error}");
    let server = peer.address.trim_start_matches("http://").to_owned();
    assert_eq!(
        error.to_string(),
        format!(
            "no token from Microsoft Entra for application app 1 of tenant t.example at http://{server}, with its client \
             secret: {server} refuses (status 503: temporarily_unavailable)"
        )
    );
    assert_eq!(told().await.as_deref(), Ok("Bearer t-2"));
    let requests = peer.requests().await;
    assert!(requests[0].starts_with("POST /t.example/oauth2/v2.0/token HTTP/1.1\r\n"), "{}", requests[0]);
    assert!(
        requests[0].ends_with(
            "\r\n\r\ngrant_type=client_credentials&client_id=app%201&scope=https%3A%2F%2Fiothubs.azure.net%2F.default\
             &client_secret=a%26b%3Dc"
        ),
        "{}",
        requests[0]
    );
}

#[tokio::test]
async fn a_refused_token_gives_way_to_another_one_unless_it_was_new() {
    static LATER: AtomicU64 = AtomicU64::new(0);
    let peer =
        Peer::giving(vec![answer("200 OK", GRANTED), answer("200 OK", &GRANTED.replace("t-1", "t-2"))]).await;
    let tokens =
        peer.tokens(AuthMethod::Secret, &APP, || start() + Duration::from_secs(LATER.load(Ordering::SeqCst)));
    let first = tokens.token().await.expect("a token");
    assert!(!tokens.drop_refused(&first), "it is new");
    assert_eq!(tokens.token().await.expect("a token").expose(), "Bearer t-1");
    LATER.store(61, Ordering::SeqCst);
    assert!(tokens.drop_refused(&first));
    assert!(tokens.drop_refused(&first), "another request was refused with it");
    let next = tokens.token().await.expect("a token");
    assert_eq!(next.expose(), "Bearer t-2");
    assert!(tokens.drop_refused(&first), "and one more, whose answer came late");
    assert_eq!(tokens.token().await.expect("a token").expose(), "Bearer t-2", "which is still in hand");
    assert!(!tokens.drop_refused(&next), "the other one is new");
}

#[tokio::test]
async fn a_token_that_ends_while_the_next_one_is_asked_for_does_not_serve() {
    static LATER: AtomicU64 = AtomicU64::new(0);
    let answers = vec![answer("200 OK", GRANTED), answer("503 Service Unavailable", "")];
    let slow = |number| {
        if number == 1 {
            LATER.store(3601, Ordering::SeqCst);
        }
    };
    let peer = Peer::giving_after(answers, slow).await;
    let tokens =
        peer.tokens(AuthMethod::Secret, &APP, || start() + Duration::from_secs(LATER.load(Ordering::SeqCst)));
    tokens.token().await.expect("a token");
    LATER.store(3599, Ordering::SeqCst);
    let error = tokens.token().await.expect_err("it has ended").to_string();
    assert!(error.ends_with("refuses (status 503)"), "{error}");
}

#[tokio::test]
async fn a_token_in_hand_serves_while_another_request_asks_for_the_next_one() {
    static LATER: AtomicU64 = AtomicU64::new(0);
    let peer = Peer::giving(vec![answer("200 OK", GRANTED)]).await;
    let tokens =
        peer.tokens(AuthMethod::Secret, &APP, || start() + Duration::from_secs(LATER.load(Ordering::SeqCst)));
    tokens.token().await.expect("a token");
    LATER.store(3301, Ordering::SeqCst);
    let _asks = tokens.asking.lock().await;
    let token = tokio::time::timeout(Duration::from_secs(10), tokens.token()).await.expect("no wait");
    assert_eq!(token.expect("a token").expose(), "Bearer t-1");
}

#[tokio::test]
async fn each_bad_answer_is_one_sentence_and_a_refusal_is_not_asked_again() {
    let error = async |text: String| {
        let peer = Peer::giving(vec![text]).await;
        let error = peer.tokens(AuthMethod::Secret, &APP, start).token().await.expect_err("no token");
        let server = peer.address.trim_start_matches("http://").to_owned();
        let (_, reason) = error.to_string().split_once("with its client secret: ").map_or_else(
            || panic!("{error}"),
            |(before, after)| (before.to_owned(), after.replace(&server, "SERVER")),
        );
        assert!(!reason.contains("a&b"), "{reason}");
        (reason, error.is_passing())
    };
    let wrong = r#"{"error":"invalid_client","error_description":"AADSTS7000215: Invalid client secret.\r\nTrace ID: 1"}"#;
    let far = GRANTED.replace("3600", "1700000000000");
    let ended = GRANTED.replace(r#""expires_in":3600"#, r#""expires_on":"1700000000""#);
    for (text, reason) in [
        (
            answer("401 Unauthorized", wrong),
            "SERVER refuses (status 401: AADSTS7000215: Invalid client secret.); check AZURE_CLIENT_SECRET: it is the secret's value, not its id".to_owned(),
        ),
        (answer("200 OK", "<html>"), "SERVER answers without a token and its end: check the address".to_owned()),
        (
            answer("200 OK", &GRANTED.replace("t-1", "t\\r\\nX: 1")),
            "SERVER answers without a token and its end: check the address".to_owned(),
        ),
        (answer("302 Found", ""), "SERVER refuses (status 302)".to_owned()),
        ("220 mail.example ESMTP\r\n".to_owned(), "SERVER answers, but not with HTTP".to_owned()),
        (
            answer("200 OK", &ended),
            "SERVER gives a token that ended at 2023-11-14T22:13:20Z, but this machine's clock says 2027-01-15T08:00:00Z: \
             set the clock"
                .to_owned(),
        ),
        (
            answer("200 OK", &far),
            "SERVER gives a token that ends 1701800000000 s after 1970, more than 10 years after this machine's clock \
             (2027-01-15T08:00:00Z): set the clock, or update what gives the token"
                .to_owned(),
        ),
    ] {
        assert_eq!(error(text).await, (reason, false));
    }
    assert!(error(answer("429 Too Many Requests", "")).await.1);
    assert!(error(String::new()).await.1, "an answer that does not come");
}

#[tokio::test]
async fn the_token_of_another_issuer_is_read_anew_for_each_request() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("token");
    std::fs::write(&file, "e.y.J\n").expect("written");
    let peer = Peer::giving(vec![answer("200 OK", GRANTED)]).await;
    let path = file.to_string_lossy().into_owned();
    let variables = [APP[0], APP[1], ("AZURE_FEDERATED_TOKEN_FILE", &*path)];
    let tokens = peer.tokens(AuthMethod::Federated, &variables, start);
    tokens.token().await.expect("a token");
    std::fs::remove_file(&file).expect("removed");
    let missing = peer.tokens(AuthMethod::Federated, &variables, start).token().await.expect_err("no file");
    assert!(
        missing.to_string().contains(&format!("cannot read {path} (AZURE_FEDERATED_TOKEN_FILE)")),
        "{missing}"
    );
    let requests = peer.requests().await;
    let kind = "client_assertion_type=urn%3Aietf%3Aparams%3Aoauth%3Aclient-assertion-type%3Ajwt-bearer";
    assert!(requests[0].ends_with(&format!("&{kind}&client_assertion=e.y.J")), "{}", requests[0]);
}

#[tokio::test]
async fn a_machine_that_is_not_ready_is_asked_again() {
    let granted = r#"{"access_token":"m-1","expires_on":"1800000060","token_type":"Bearer"}"#;
    let peer = Peer::giving(vec![answer("410 Gone", ""), answer("200 OK", granted)]).await;
    let tokens = peer.tokens(AuthMethod::Managed, &[APP[1]], start);
    let (token, rest) = tokens.token_and_rest().await.expect("a token");
    assert_eq!(
        (token.expose().as_str(), rest),
        ("Bearer m-1", Duration::from_secs(30)),
        "half of a short life"
    );
    let requests = peer.requests().await;
    let wanted = "GET /metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fiothubs.azure.net\
                  &client_id=app%201 HTTP/1.1\r\n";
    assert!(
        requests[1].starts_with(wanted) && requests[1].contains("\r\nmetadata: true\r\n"),
        "{}",
        requests[1]
    );
}

#[tokio::test]
async fn an_app_service_gets_its_secret_header() {
    let peer = Peer::giving(vec![answer("200 OK", GRANTED)]).await;
    let endpoint = format!("{}/msi/token", peer.address);
    let variables = [("IDENTITY_ENDPOINT", &*endpoint), ("IDENTITY_HEADER", "hush")];
    peer.tokens(AuthMethod::Managed, &variables, start).token().await.expect("a token");
    let requests = peer.requests().await;
    assert!(requests[0].starts_with("GET /msi/token?api-version=2019-08-01&resource="), "{}", requests[0]);
    assert!(requests[0].contains("\r\nx-identity-header: hush\r\n"), "{}", requests[0]);
}

#[tokio::test]
async fn a_server_of_azure_arc_answers_the_challenge_with_a_file_of_its_agent_and_of_no_one_else() {
    let keys = tempfile::tempdir().expect("a directory");
    let key = keys.path().join("one.key");
    std::fs::write(&key, "k-1").expect("written");
    let challenge = |path: &Path| {
        format!(
            "HTTP/1.1 401 Unauthorized\r\nWWW-Authenticate: Basic realm={}\r\nContent-Length: 0\r\n\r\n",
            path.display()
        )
    };
    let tokens = |peer: &Peer| {
        let endpoint = TokenEndpoint::parse(&peer.address).expect("an address").at("/token");
        let login = EntraLogin::Arc { endpoint, keys: keys.path().to_owned() };
        EntraTokens::new(login, EntraRoute::default(), start)
    };
    let peer = Peer::giving(vec![challenge(&key), answer("200 OK", GRANTED)]).await;
    tokens(&peer).token().await.expect("a token");
    let requests = peer.requests().await;
    assert!(
        !requests[0].contains("authorization") && requests[0].contains("api-version=2021-02-01"),
        "{}",
        requests[0]
    );
    assert!(requests[1].contains("\r\nauthorization: Basic k-1\r\n"), "{}", requests[1]);
    let outside = [
        Path::new("/etc/passwd").to_owned(),
        keys.path().join("../x.key"),
        keys.path().join("below/x.key"),
        keys.path().join("x.pem"),
    ];
    for path in outside {
        let peer = Peer::giving(vec![challenge(&path)]).await;
        let error = tokens(&peer).token().await.expect_err("another file").to_string();
        assert!(error.contains("it is not the agent of Azure Arc"), "{error}");
    }
    let peer = Peer::giving(vec![answer("200 OK", GRANTED)]).await;
    let error = tokens(&peer).token().await.expect_err("no challenge").to_string();
    assert!(error.contains("answers without a challenge"), "{error}");
}
