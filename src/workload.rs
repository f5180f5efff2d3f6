//! A client of the workload API of an IoT Edge device: it gets a module's tokens signed, and the roots to trust.
//!
//! Owns: requests over the Unix socket, their limits, their repetition, and sentences for wrong answers.
//! Must not know: what is signed, TLS, sign-ins.
//!
//! Source: wire reference 6.5. A daemon that already has ten requests of a module drops the next one without an
//! answer. So a request that the daemon seems to have missed is repeated a few times.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::client::conn::http1::Builder;
use hyper::header::{ACCEPT, CONNECTION, CONTENT_TYPE, HOST};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use serde_json::json;
use tokio::net::UnixStream;
use tokio::time::{Instant, sleep, timeout_at};

use crate::credentials::WorkloadAccess;
use crate::message::excerpt;

/// The limit of one attempt, from dialling to the end of the answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// The limit for all attempts together.
const WHOLE_LIMIT: Duration = Duration::from_secs(30);
const ATTEMPTS: u32 = 5;
/// The pause before the second attempt. Each further pause is twice as long.
const FIRST_PAUSE: Duration = Duration::from_millis(250);
/// Most bytes of an answer's head, and most of its headers.
const MAX_HEAD: usize = 32 * 1024;
const MAX_HEADERS: usize = 100;
const MAX_SIGNATURE: usize = 64 * 1024;
const MAX_BUNDLE: usize = 256 * 1024;
/// The length of an HMAC-SHA256.
const DIGEST_BYTES: usize = 32;

const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Why the workload API did not help; each variant has another remedy.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WorkloadError {
    /// It does not sign for this process, and never will again. Final.
    #[error(
        "the workload API at {socket} does not sign for module {module} in generation {generation} (status \
         {status}: {said}): the module was redeployed or removed; this process must end, and edgeAgent starts \
         the new one",
        socket = .socket.display()
    )]
    Gone {
        /// The socket that was asked.
        socket: PathBuf,
        /// The module's own id.
        module: String,
        /// The generation in this process's environment.
        generation: String,
        /// The HTTP status.
        status: u16,
        /// The beginning of the answer.
        said: String,
    },
    /// The answer is not that of such an API, or of a version that this program knows. A retry may help after a
    /// repair.
    #[error(
        "the workload API at {socket} {what}: check that IOTEDGE_WORKLOADURI names the socket of aziot-edged, and its version",
        socket = .socket.display()
    )]
    Unusable {
        /// The socket that was asked.
        socket: PathBuf,
        /// What it does, such as "answers with HTML (…)".
        what: String,
    },
    /// There is no answer now. A retry may help later.
    #[error("the workload API at {socket} {what}", socket = .socket.display())]
    Unreachable {
        /// The socket that was asked.
        socket: PathBuf,
        /// What happens there, and the remedy.
        what: String,
    },
}

impl WorkloadError {
    /// Whether no retry can help.
    pub(crate) fn is_final(&self) -> bool {
        matches!(self, Self::Gone { .. })
    }
}

/// Gets `text` signed with the module's key: HMAC-SHA256, 32 bytes. Takes at most 30 seconds.
///
/// # Errors
/// [`WorkloadError`], after a few attempts if these may help.
///
/// # Cancel safety
/// Cancel safe: a drop leaves nothing behind.
pub(crate) async fn sign(access: &WorkloadAccess, text: &str) -> Result<Vec<u8>, WorkloadError> {
    #[derive(Deserialize)]
    struct Signature {
        digest: String,
    }
    let WorkloadAccess { module_id, generation_id, .. } = access;
    let path = format!("/modules/{}/genid/{}/sign", escape(module_id), escape(generation_id));
    let body = json!({ "keyId": "primary", "algo": "HMACSHA256", "data": BASE64.encode(text) });
    let ask = WorkloadRequest {
        method: Method::POST,
        path,
        body: Bytes::from(body.to_string()),
        limit: MAX_SIGNATURE,
    };
    let body = ask.of(access).await?;
    let read: Signature = read_json(access, "signs", &body)?;
    match BASE64.decode(&read.digest) {
        Ok(digest) if digest.len() == DIGEST_BYTES => Ok(digest),
        // The text is not shown, because it may be a signature in another form.
        _ => Err(unusable(access, "gives a signature that is not HMAC-SHA256 in base64".into())),
    }
}

/// Gets the certificates that a module must trust: PEM texts one after the other, or nothing. Takes at most 30
/// seconds.
///
/// # Errors
/// [`WorkloadError`], never [`WorkloadError::Gone`], after a few attempts if these may help.
///
/// # Cancel safety
/// Cancel safe.
pub(crate) async fn trust_bundle(access: &WorkloadAccess) -> Result<String, WorkloadError> {
    #[derive(Deserialize)]
    struct Bundle {
        certificate: String,
    }
    let path = "/trust-bundle".to_owned();
    let ask = WorkloadRequest { method: Method::GET, path, body: Bytes::new(), limit: MAX_BUNDLE };
    let body = ask.of(access).await?;
    Ok(read_json::<Bundle>(access, "gives its trust bundle", &body)?.certificate)
}

/// A request.
struct WorkloadRequest {
    method: Method,
    /// The path without the version.
    path: String,
    /// JSON; empty if the request has no body.
    body: Bytes,
    /// Most bytes of the answer's body.
    limit: usize,
}

/// Why an attempt gave no good answer.
enum Miss {
    /// Another attempt may help.
    Passing(String),
    /// Another attempt now does not help.
    Lasting(WorkloadError),
}

impl WorkloadRequest {
    /// The body of a good answer.
    async fn of(&self, access: &WorkloadAccess) -> Result<Bytes, WorkloadError> {
        let end = Instant::now() + WHOLE_LIMIT;
        let mut pause = FIRST_PAUSE;
        let mut attempt = 1;
        loop {
            let limit = end.min(Instant::now() + ANSWER_LIMIT);
            let answered = timeout_at(limit, self.once(access)).await;
            let what = match answered {
                Ok(Ok(body)) => return Ok(body),
                Ok(Err(Miss::Lasting(error))) => return Err(error),
                Ok(Err(Miss::Passing(what))) => what,
                Err(_elapsed) => {
                    let what = format!(
                        "took the request and did not answer within {} s: look at aziot-edged (iotedge system status), \
                         or restart it",
                        ANSWER_LIMIT.as_secs()
                    );
                    return Err(unreachable(access, what));
                }
            };
            if attempt == ATTEMPTS || Instant::now() + pause >= end {
                return Err(unreachable(access, what));
            }
            tracing::debug!(attempt, socket = %access.socket.display(), "the workload API {what}");
            sleep(pause).await;
            (attempt, pause) = (attempt + 1, pause * 2);
        }
    }

    /// Sends the request once, on a connection of its own.
    async fn once(&self, access: &WorkloadAccess) -> Result<Bytes, Miss> {
        let stream = UnixStream::connect(&access.socket).await.map_err(|error| no_stream(access, &error))?;
        let mut builder = Builder::new();
        builder.max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
        let handshake = builder.handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await;
        let (mut sender, connection) = handshake.map_err(|error| broken(access, &error))?;
        let request = self.request(access).map_err(Miss::Lasting)?;
        let exchange = async move {
            let (head, body) = sender.send_request(request).await?.into_parts();
            Ok((head.status, Limited::new(body, self.limit).collect().await))
        };
        let mut exchange = std::pin::pin!(exchange);
        let exchanged = tokio::select! {
            biased;
            exchanged = &mut exchange => exchanged,
            // The daemon closes as soon as it has answered. Its answer can still be read.
            _closed = connection => exchange.await,
        };
        let (status, body) = exchanged.map_err(|error| broken(access, &error))?;
        let body = match body {
            Ok(body) => body.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => {
                let what = format!("answers with more than {} KiB", self.limit / 1024);
                return Err(Miss::Lasting(unusable(access, what)));
            }
            Err(_broke_off) => return Err(Miss::Passing("ended its answer too early".into())),
        };
        match status {
            StatusCode::OK => Ok(body),
            status => Err(self.refused(access, status, &body)),
        }
    }

    fn request(&self, access: &WorkloadAccess) -> Result<Request<Full<Bytes>>, WorkloadError> {
        let uri = format!("{}?api-version={}", self.path, escape(&access.api_version));
        let mut request = Request::builder()
            .method(&self.method)
            .uri(uri)
            // HTTP/1.1 needs a host. Its name does not matter here.
            .header(HOST, "localhost")
            .header(ACCEPT, "application/json")
            .header(CONNECTION, "close");
        if !self.body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json");
        }
        let made = request.body(Full::new(self.body.clone()));
        made.map_err(|error| unusable(access, format!("cannot be asked for {} ({error})", self.path)))
    }

    /// What a status other than 200 means.
    fn refused(&self, access: &WorkloadAccess, status: StatusCode, body: &[u8]) -> Miss {
        let said = said(body);
        let signing = self.method == Method::POST;
        let gone = matches!(status, StatusCode::FORBIDDEN | StatusCode::NOT_FOUND);
        match status {
            status if status == StatusCode::TOO_MANY_REQUESTS || status.is_server_error() => {
                Miss::Passing(format!(
                    "is busy or broken (status {}: {said}): look at the log of aziot-edged (iotedge system logs)",
                    status.as_u16()
                ))
            }
            // A page does not come from the daemon.
            status if signing && gone && !is_page(body) => Miss::Lasting(WorkloadError::Gone {
                socket: access.socket.clone(),
                module: access.module_id.clone(),
                generation: access.generation_id.clone(),
                status: status.as_u16(),
                said,
            }),
            status => {
                let what = format!("answers {} with status {} ({said})", self.path, status.as_u16());
                Miss::Lasting(unusable(access, what))
            }
        }
    }
}

fn no_stream(access: &WorkloadAccess, error: &io::Error) -> Miss {
    match error.kind() {
        io::ErrorKind::NotFound => Miss::Passing(
            "is not there (no such file): let edgeAgent start this container, which mounts the socket into \
             it, or unset IOTEDGE_WORKLOADURI"
                .into(),
        ),
        io::ErrorKind::PermissionDenied => Miss::Lasting(unreachable(
            access,
            "may not be opened by this process's user: run it as a user that the socket's mode allows".into(),
        )),
        io::ErrorKind::InvalidInput => {
            Miss::Lasting(unusable(access, format!("is not a path of a socket ({error})")))
        }
        _ => Miss::Passing(format!(
            "does not take connections ({error}): check that aziot-edged runs (iotedge system status)"
        )),
    }
}

/// The connection ended before the answer, or the peer does not speak HTTP.
fn broken(access: &WorkloadAccess, error: &hyper::Error) -> Miss {
    if error.is_parse() {
        return Miss::Lasting(unusable(access, format!("does not speak HTTP ({error})")));
    }
    Miss::Passing(
        "closed the connection without an answer (it has too many requests of this module, or is being restarted): try again \
         in a while, or look at aziot-edged (iotedge system status)"
            .into(),
    )
}

/// Reads JSON. It shows nothing of an answer that is an object, because there may be a signature in it.
fn read_json<T: serde::de::DeserializeOwned>(
    access: &WorkloadAccess,
    does: &str,
    body: &[u8],
) -> Result<T, WorkloadError> {
    serde_json::from_slice(body).map_err(|error| {
        let what = match body.trim_ascii_start().first() {
            Some(b'{') => format!("{does} with JSON of another form ({error})"),
            _ => format!("{does} without JSON, but with \"{}\"", said(body)),
        };
        unusable(access, what)
    })
}

/// The text of an answer: its `message`, if it has one.
fn said(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Refusal {
        message: String,
    }
    match serde_json::from_slice::<Refusal>(body) {
        Ok(refusal) => excerpt(&refusal.message),
        Err(_) if body.is_empty() => "nothing".to_owned(),
        Err(_) => excerpt(&String::from_utf8_lossy(body)),
    }
}

fn is_page(body: &[u8]) -> bool {
    body.trim_ascii_start().first() == Some(&b'<')
}

fn unusable(access: &WorkloadAccess, what: String) -> WorkloadError {
    WorkloadError::Unusable { socket: access.socket.clone(), what }
}

fn unreachable(access: &WorkloadAccess, what: String) -> WorkloadError {
    WorkloadError::Unreachable { socket: access.socket.clone(), what }
}

fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

#[cfg(test)]
mod tests;
