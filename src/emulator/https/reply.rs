//! Answers over HTTPS, and the hub's error bodies.
//!
//! Owns: headers and JSON of an answer. Must not know: routes, connections.
//!
//! Source of the error body: wire reference 3.

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{ALLOW, CONNECTION, CONTENT_TYPE, ETAG, HeaderName, HeaderValue, RETRY_AFTER, SERVER};
use hyper::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::spelling::SpelledNames;
use crate::emulator::hub::TooSoon;
use crate::emulator::identity;
use crate::message::excerpt;

/// A body that is sent as one piece.
pub(super) type ReplyBody = Full<Bytes>;

/// Tells clients that this server is the emulator, which has routes that the real hub does not have.
const PRODUCT: &str = concat!("c2d-agent-emulator/", env!("CARGO_PKG_VERSION"));

/// An answer.
#[derive(Debug)]
pub(super) struct HttpReply(Response<ReplyBody>);

/// The text is not allowed in a header.
#[derive(Debug, thiserror::Error)]
#[error("no HTTP header can hold it")]
pub(super) struct InvalidHeader;

/// Marks an answer that must not be sent, and gives the reason for the end of the connection.
#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("dropped because of the fault drop-at")]
pub(super) struct Dropped;

/// An error answer, so that a route can end early with `?`.
#[derive(Debug)]
pub(super) struct HttpRefusal(Box<HttpReply>);

/// What a route answers: both are sent in the same way.
pub(super) type HttpResult = Result<HttpReply, HttpRefusal>;

impl From<HttpReply> for HttpRefusal {
    fn from(reply: HttpReply) -> Self {
        Self(Box::new(reply))
    }
}

impl From<HttpRefusal> for HttpReply {
    fn from(HttpRefusal(reply): HttpRefusal) -> Self {
        *reply
    }
}

impl From<HttpReply> for Response<ReplyBody> {
    fn from(HttpReply(response): HttpReply) -> Self {
        response
    }
}

impl HttpReply {
    /// Adds one header to the answer.
    pub(super) fn with(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers_mut().insert(name, value);
        self
    }

    /// Adds a header that may occur several times, if its text is allowed in a header. The name goes out in this
    /// spelling.
    ///
    /// # Errors
    /// Fails for a control character or an invalid name. In this case the answer has not changed.
    pub(super) fn append(&mut self, name: &str, value: &str) -> Result<(), InvalidHeader> {
        let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| InvalidHeader)?;
        let value = HeaderValue::from_bytes(value.as_bytes()).map_err(|_| InvalidHeader)?;
        self.0.headers_mut().append(header, value);
        self.0.extensions_mut().get_or_insert_default::<SpelledNames>().push(name);
        Ok(())
    }

    /// Ends the connection after the answer, because the request's body was not read.
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
pub(super) fn ok(body: &Value) -> HttpReply {
    json_of(StatusCode::OK, body)
}

/// 200 with a JSON body, and its etag in a header.
pub(super) fn tagged(body: &Value, etag: &str) -> HttpReply {
    match HeaderValue::from_str(&format!("\"{etag}\"")) {
        Ok(etag) => ok(body).with(ETAG, etag),
        Err(_) => ok(body),
    }
}

/// 200 with a body whose content type the sender has chosen.
pub(super) fn bytes(body: Bytes) -> HttpReply {
    HttpReply::of(StatusCode::OK, body)
}

/// 204.
pub(super) fn no_content() -> HttpReply {
    HttpReply::of(StatusCode::NO_CONTENT, Bytes::new())
}

/// 200 with a text of this program. The caller must set the content type.
pub(super) fn text(text: &'static str) -> HttpReply {
    HttpReply::of(StatusCode::OK, Bytes::from_static(text.as_bytes()))
}

/// An error in the hub's form: a code word and a sentence.
pub(super) fn error(status: StatusCode, code: &str, sentence: &str) -> HttpReply {
    let tracking_id = uuid::Uuid::new_v4().simple();
    let body = json!({
        "Message": format!("ErrorCode:{code};{sentence}"),
        "ExceptionMessage": format!("Tracking ID:{tracking_id}"),
    });
    json_of(status, &body)
}

/// An error in the form that the hub uses for methods: its details as JSON in the message, and the code word in a
/// header.
pub(super) fn detailed_error(status: StatusCode, code: &'static str, details: &Value) -> HttpReply {
    let reply = json_of(status, &json!({ "Message": details.to_string(), "ExceptionMessage": "" }));
    reply.with(HeaderName::from_static("iothub-errorcode"), HeaderValue::from_static(code))
}

/// 401. It does not say what is wrong.
pub(super) fn unauthorized() -> HttpReply {
    error(StatusCode::UNAUTHORIZED, "IotHubUnauthorizedAccess", "Unauthorized")
}

/// 401 for a principal of Entra that lacks a role. Source: wire reference 4.7.
pub(super) fn no_role(principal: &str, method: &Method, path: &str) -> HttpReply {
    let path = excerpt(path);
    let sentence = format!(
        "Principal {principal} is not authorized for {method} on {path} due to no assigned permissions"
    );
    error(StatusCode::UNAUTHORIZED, "IotHubUnauthorized", &sentence)
}

/// 429: the hub throttles the device. Hub code 429001.
pub(super) fn throttled() -> HttpReply {
    let sentence = "the hub is throttling the device: try again later";
    error(StatusCode::TOO_MANY_REQUESTS, "ThrottlingException", sentence)
}

/// 429: the hub throttles all that back ends ask of this kind. Hub code 429001.
pub(super) fn too_soon(early: &TooSoon) -> HttpReply {
    let reply = error(StatusCode::TOO_MANY_REQUESTS, "ThrottlingException", &early.to_string());
    reply.with(RETRY_AFTER, HeaderValue::from(early.retry_after))
}

/// No answer: the connection is dropped instead.
pub(super) fn dropped() -> HttpReply {
    let mut reply = no_content();
    reply.0.extensions_mut().insert(Dropped);
    reply
}

/// 400: the request is wrong.
pub(super) fn bad_argument(sentence: &str) -> HttpReply {
    error(StatusCode::BAD_REQUEST, "ArgumentInvalid", sentence)
}

/// 404 for a device or a module.
pub(super) fn no_device(id: &str) -> HttpReply {
    let (device_id, module) = identity::split(id);
    if let Some(module_id) = module {
        let sentence = format!("device \"{}\" has no module \"{}\"", excerpt(device_id), excerpt(module_id));
        return error(StatusCode::NOT_FOUND, "ModuleNotFound", &sentence);
    }
    let sentence = format!("the hub has no device \"{}\"", excerpt(device_id));
    error(StatusCode::NOT_FOUND, "DeviceNotFound", &sentence)
}

/// 412: a settlement came too late. Hub code 412002.
pub(super) fn lock_lost() -> HttpReply {
    let sentence = "the lock is no longer held: the message was settled, or its minute is over";
    error(StatusCode::PRECONDITION_FAILED, "DeviceMessageLockLost", sentence)
}

/// 405: the path exists, but only for these methods.
pub(super) fn method_not_allowed(allowed: &str) -> HttpReply {
    let sentence = format!("this resource takes {allowed} only");
    let reply = error(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", &sentence);
    match HeaderValue::from_str(allowed) {
        Ok(allowed) => reply.with(ALLOW, allowed),
        Err(_) => reply,
    }
}

/// A JSON body with any status.
pub(super) fn json_of(status: StatusCode, body: &Value) -> HttpReply {
    let reply = HttpReply::of(status, Bytes::from(body.to_string()));
    reply.with(CONTENT_TYPE, HeaderValue::from_static("application/json; charset=utf-8"))
}
