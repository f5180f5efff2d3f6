//! Answers over HTTPS, and the hub's error bodies.
//!
//! Owns: headers and JSON of an answer. Must not know: routes, connections. Used by: `https` and below.
//!
//! Source of the error body: wire reference 3.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, SERVER};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

/// A body in one piece.
pub(super) type Reply = Full<Bytes>;

/// Tells clients that they talk to this emulator, which has routes that the real hub has not.
const PRODUCT: &str = concat!("c2d-agent-emulator/", env!("CARGO_PKG_VERSION"));

/// 200 with a JSON body.
pub(super) fn ok(body: &Value) -> Response<Reply> {
    of(StatusCode::OK, body)
}

/// An error as the hub words it: a code word, and a sentence.
pub(super) fn error(status: StatusCode, code: &str, sentence: &str) -> Response<Reply> {
    let tracking_id = uuid::Uuid::new_v4().simple();
    let body = json!({
        "Message": format!("ErrorCode:{code};{sentence}"),
        "ExceptionMessage": format!("Tracking ID:{tracking_id}"),
    });
    of(status, &body)
}

/// A body where none belongs: the connection ends with the answer, and the body is not read.
pub(super) fn unexpected_body() -> Response<Reply> {
    let sentence = "this request has no body here";
    with(error(StatusCode::BAD_REQUEST, "ArgumentInvalid", sentence), CONNECTION, "close")
}

/// The answer with one more header.
pub(super) fn with(mut reply: Response<Reply>, name: HeaderName, value: &'static str) -> Response<Reply> {
    reply.headers_mut().insert(name, HeaderValue::from_static(value));
    reply
}

fn of(status: StatusCode, body: &Value) -> Response<Reply> {
    let mut reply = Response::new(Full::from(body.to_string()));
    *reply.status_mut() = status;
    let reply = with(reply, CONTENT_TYPE, "application/json; charset=utf-8");
    with(reply, SERVER, PRODUCT)
}
