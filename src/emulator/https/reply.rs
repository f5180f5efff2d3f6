//! Answers over HTTPS, and the hub's error bodies.
//!
//! Owns: headers and JSON of an answer. Must not know: routes, connections.
//!
//! Source of the error body: wire reference 3.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, HeaderName, HeaderValue, SERVER};
use hyper::{Response, StatusCode};
use serde_json::{Value, json};

use crate::emulator::identity;
use crate::message::excerpt;

/// A body in one piece.
pub(super) type ReplyBody = Full<Bytes>;

/// Tells clients that they talk to this emulator, which has routes that the real hub has not.
const PRODUCT: &str = concat!("c2d-agent-emulator/", env!("CARGO_PKG_VERSION"));

/// An answer.
#[derive(Debug)]
pub(super) struct Reply(Response<ReplyBody>);

/// A text that no header can hold.
#[derive(Debug, thiserror::Error)]
#[error("no HTTP header can hold it")]
pub(super) struct InvalidHeader;

/// Stands in an answer that is not to be sent, and says why the connection ends.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("dropped because of the fault drop-at")]
pub(super) struct Dropped;

/// An answer that ends a route early, for `?`.
#[derive(Debug)]
pub(super) struct Refusal(Box<Reply>);

impl From<Reply> for Refusal {
    fn from(reply: Reply) -> Self {
        Self(Box::new(reply))
    }
}

impl From<Refusal> for Reply {
    fn from(Refusal(reply): Refusal) -> Self {
        *reply
    }
}

impl From<Reply> for Response<ReplyBody> {
    fn from(Reply(response): Reply) -> Self {
        response
    }
}

impl Reply {
    /// The answer with one more header.
    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers_mut().insert(name, value);
        self
    }

    /// The answer with a header that may occur again, when the text can stand in one.
    ///
    /// # Errors
    /// When it cannot: a control character, or a name that is none. The answer is as before.
    pub(super) fn append(&mut self, name: &str, value: &str) -> Result<(), InvalidHeader> {
        let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| InvalidHeader)?;
        let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| InvalidHeader)?;
        self.0.headers_mut().append(name, value);
        Ok(())
    }

    /// The answer, after which the connection ends: there is a body that is not read.
    pub(super) fn closing(self) -> Self {
        self.with(CONNECTION, HeaderValue::from_static("close"))
    }

    fn of(status: StatusCode, body: Bytes) -> Self {
        let mut reply = Response::new(Full::from(body));
        *reply.status_mut() = status;
        Self(reply).with(SERVER, HeaderValue::from_static(PRODUCT))
    }
}

/// 200 with a JSON body.
pub(super) fn ok(body: &Value) -> Reply {
    json_of(StatusCode::OK, body)
}

/// 200 with a body of the sender's own kind.
pub(super) fn bytes(body: Bytes) -> Reply {
    Reply::of(StatusCode::OK, body)
}

/// 204.
pub(super) fn no_content() -> Reply {
    Reply::of(StatusCode::NO_CONTENT, Bytes::new())
}

/// 200 with a text of this program; its kind is to be said by the caller.
pub(super) fn text(text: &'static str) -> Reply {
    Reply::of(StatusCode::OK, Bytes::from_static(text.as_bytes()))
}

/// An error as the hub words it: a code word, and a sentence.
pub(super) fn error(status: StatusCode, code: &str, sentence: &str) -> Reply {
    let tracking_id = uuid::Uuid::new_v4().simple();
    let body = json!({
        "Message": format!("ErrorCode:{code};{sentence}"),
        "ExceptionMessage": format!("Tracking ID:{tracking_id}"),
    });
    json_of(status, &body)
}

/// An error as the hub words it for methods: its details as JSON in the message, and the code word in a header.
pub(super) fn detailed_error(status: StatusCode, code: &'static str, details: &Value) -> Reply {
    let reply = json_of(status, &json!({ "Message": details.to_string(), "ExceptionMessage": "" }));
    reply.with(HeaderName::from_static("iothub-errorcode"), HeaderValue::from_static(code))
}

/// 401. What is wrong is not said.
pub(super) fn unauthorized() -> Reply {
    error(StatusCode::UNAUTHORIZED, "IotHubUnauthorizedAccess", "Unauthorized")
}

/// 429: too much for now. Hub code 429001.
pub(super) fn throttled() -> Reply {
    let sentence = "the hub is throttling the device: try again later";
    error(StatusCode::TOO_MANY_REQUESTS, "ThrottlingException", sentence)
}

/// No answer at all: the connection is dropped in its place.
pub(super) fn dropped() -> Reply {
    let mut reply = no_content();
    reply.0.extensions_mut().insert(Dropped);
    reply
}

/// 400: something about the request is wrong.
pub(super) fn bad_argument(sentence: &str) -> Reply {
    error(StatusCode::BAD_REQUEST, "ArgumentInvalid", sentence)
}

/// 404 for a device or a module.
pub(super) fn no_device(id: &str) -> Reply {
    let (device_id, module) = identity::split(id);
    if let Some(module_id) = module {
        let sentence = format!("device \"{}\" has no module \"{}\"", excerpt(device_id), excerpt(module_id));
        return error(StatusCode::NOT_FOUND, "ModuleNotFound", &sentence);
    }
    let sentence = format!("the hub has no device \"{}\"", excerpt(device_id));
    error(StatusCode::NOT_FOUND, "DeviceNotFound", &sentence)
}

/// 412: a settlement came too late. Hub code 412002.
pub(super) fn lock_lost() -> Reply {
    let sentence = "the lock is no longer held: the message was settled, or its minute is over";
    error(StatusCode::PRECONDITION_FAILED, "DeviceMessageLockLost", sentence)
}

/// 405: the path is served, and only with these methods.
pub(super) fn method_not_allowed(allowed: &'static str) -> Reply {
    let sentence = format!("this resource takes {allowed} only");
    let reply = error(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", &sentence);
    reply.with(ALLOW, HeaderValue::from_static(allowed))
}

fn json_of(status: StatusCode, body: &Value) -> Reply {
    let reply = Reply::of(status, Bytes::from(body.to_string()));
    reply.with(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"))
}
