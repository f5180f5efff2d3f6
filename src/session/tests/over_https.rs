//! A registration over HTTPS, where a proxy lets no WebSocket through.

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::super::enrol::{EnrolSettings, enrol};
use super::DEADLINE;
use super::broker::Broker;
use super::enrol::settings;
use crate::credentials::{Over, Route};

/// Answers the next request, and returns it.
async fn answers(broker: &Broker, status: &str, body: &str) -> String {
    let mut stream = broker.accept().await.into_stream();
    let mut request = String::new();
    while !is_whole(&request) {
        let mut bytes = [0; 4096];
        let read = stream.read(&mut bytes).await.expect("a request");
        assert_ne!(read, 0, "{request}");
        request.push_str(std::str::from_utf8(&bytes[..read]).expect("text"));
    }
    let length = body.len();
    let answer = format!("HTTP/1.1 {status}\r\nRetry-After: 1\r\nContent-Length: {length}\r\n\r\n{body}");
    stream.write_all(answer.as_bytes()).await.expect("sent");
    stream.shutdown().await.expect("closed");
    request
}

fn is_whole(request: &str) -> bool {
    let Some((head, body)) = request.split_once("\r\n\r\n") else { return false };
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
    body.len() >= length.unwrap_or(0)
}

fn through_a_proxy(broker: &Broker) -> EnrolSettings {
    let route = Route { over: Over::WebSocket, https_port: broker.port(), ..Route::default() };
    EnrolSettings { route, ..settings(broker) }
}

#[tokio::test]
async fn where_no_websocket_gets_through_a_device_registers_over_https() {
    let broker = Broker::start().await;
    let service = async {
        let upgrade = answers(&broker, "403 Forbidden", "").await;
        assert!(upgrade.starts_with("GET /$iothub/websocket "), "{upgrade}");
        let body = r#"{"operationId":"5.x","status":"assigning"}"#;
        let asked = answers(&broker, "202 Accepted", body).await;
        let line = "PUT /0ne1/registrations/reg-01/register?api-version=2021-06-01 HTTP/1.1\r\n";
        assert!(
            asked.starts_with(line) && asked.ends_with("\r\n\r\n{\"registrationId\":\"reg-01\"}"),
            "{asked}"
        );
        assert!(
            asked.contains("authorization: SharedAccessSignature sr=0ne1%2Fregistrations%2Freg-01&"),
            "{asked}"
        );
        let body = r#"{"status":"assigned","registrationState":{"assignedHub":"hub","deviceId":"d"}}"#;
        let polled = answers(&broker, "200 OK", body).await;
        let line = "GET /0ne1/registrations/reg-01/operations/5.x?api-version=2021-06-01 HTTP/1.1\r\n";
        assert!(polled.starts_with(line), "{polled}");
    };
    let settings = through_a_proxy(&broker);
    let (result, ()) = tokio::join!(enrol(&settings, None, DEADLINE), service);
    let assigned = result.expect("assigned");
    assert_eq!((&*assigned.hub.name, &*assigned.device_id), ("hub", "d"));
}

#[tokio::test]
async fn a_page_in_place_of_an_answer_is_told_and_a_refusal_is_one_over_https_too() {
    for (status, body, says, is_refusal) in [
        ("200 OK", "<html>a portal</html>", "and no JSON object but \"<html>a portal</html>\"", false),
        (
            "401 Unauthorized",
            r#"{"errorCode":401002,"message":"Unauthorized"}"#,
            "(401002: Unauthorized)",
            true,
        ),
    ] {
        let broker = Broker::start().await;
        let service = async {
            answers(&broker, "403 Forbidden", "").await;
            answers(&broker, status, body).await;
        };
        let settings = through_a_proxy(&broker);
        let (result, ()) = tokio::join!(enrol(&settings, None, DEADLINE), service);
        let error = result.expect_err("no hub");
        assert_eq!(error.is_refusal(), is_refusal, "{error}");
        assert!(error.to_string().contains(says), "{error}");
    }
}
