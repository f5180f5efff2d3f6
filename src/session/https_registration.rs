//! One registration at the Device Provisioning Service, over HTTPS.
//!
//! Owns: its requests, and the limits of an answer. Must not know: what the bodies say, retries, when HTTPS is the way.
//!
//! Each question is a connection of its own: the service asks for pauses of seconds, and may close a connection in one.
//! Source of the exchange: wire reference 12.1.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::Builder;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, RETRY_AFTER, USER_AGENT};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout};

use super::dial::{ANSWER_LIMIT, Dial};
use super::failure::{self, Fault};
use super::questions::{self, Answered, Asks, Question, ServiceAnswer};
use crate::credentials::HostPort;
use crate::provisioning::Enrolment;
use crate::websocket;

/// Most bytes of an answer's head and of its body, and most of its headers.
const MAX_HEAD: usize = 64 * 1024;
const MAX_BODY: usize = 256 * 1024;
const MAX_HEADERS: usize = 100;
/// The port of HTTPS, which is left out of the header `Host`.
const HTTPS_PORT: u16 = 443;

/// The service. The dial has its address, the proxy, TLS and the token.
struct HttpsRegistration<'r> {
    dial: Dial,
    enrolment: &'r Enrolment,
    body: Bytes,
}

/// Asks until the service has answered.
///
/// # Errors
/// Why a connection failed.
pub(super) async fn register(
    dial: Dial,
    enrolment: &Enrolment,
    body: Bytes,
    until: Instant,
) -> Result<Answered, Fault> {
    let mut service = HttpsRegistration { dial, enrolment, body };
    questions::register(&mut service, &enrolment.registration_id, until).await
}

impl Asks for HttpsRegistration<'_> {
    async fn ask(&mut self, question: Question<'_>) -> Result<ServiceAnswer, Fault> {
        let exchanged = timeout(ANSWER_LIMIT, self.exchange(question)).await;
        exchanged.unwrap_or(Err(Fault::Unanswered { within: ANSWER_LIMIT }))
    }
}

impl HttpsRegistration<'_> {
    async fn exchange(&self, question: Question<'_>) -> Result<ServiceAnswer, Fault> {
        let request = self.request(question).map_err(|error| failed(&error))?;
        let Dial { host, port, tls, proxy, .. } = &self.dial;
        let stream = websocket::secure(host, *port, tls, proxy.as_ref()).await;
        let stream = stream.map_err(|error| failure::of_websocket(error.into_io(), host))?;
        let mut builder = Builder::new();
        builder.max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
        let opened = builder.handshake(TokioIo::new(stream)).await;
        let (mut sender, connection) = opened.map_err(|error| failed(&error))?;
        // The drop of the set ends the task and closes the socket.
        let mut driver = JoinSet::new();
        driver.spawn(connection);
        let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let (head, body) = answer.into_parts();
        let body = Limited::new(body, MAX_BODY).collect().await.map_err(|error| failed(&*error))?.to_bytes();
        let retry_after = head.headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
        let (status, retry_after) = (head.status.as_u16(), retry_after.map(str::to_owned));
        Ok(ServiceAnswer { status, retry_after, body })
    }

    /// The ids in its path have no characters that would need an escape.
    fn request(&self, question: Question<'_>) -> Result<Request<Full<Bytes>>, hyper::http::Error> {
        let (resource, version) = (self.enrolment.resource(), self.enrolment.api_version());
        let (method, path, body) = match question {
            Question::Register => (Method::PUT, format!("/{resource}/register"), self.body.clone()),
            Question::State(operation) => {
                (Method::GET, format!("/{resource}/operations/{operation}"), Bytes::new())
            }
        };
        let port = Some(self.dial.port).filter(|port| *port != HTTPS_PORT);
        let mut request = Request::builder()
            .method(method)
            .uri(format!("{path}?api-version={version}"))
            .header(HOST, HostPort { name: self.dial.host.clone(), port }.to_string())
            .header(ACCEPT, "application/json")
            .header(CONTENT_TYPE, "application/json; charset=utf-8")
            .header(USER_AGENT, concat!("c2d-agent/", env!("CARGO_PKG_VERSION")));
        if let Some(token) = &self.dial.password {
            request = request.header(AUTHORIZATION, token);
        }
        request.body(Full::new(body))
    }
}

fn failed(error: &(dyn std::error::Error + 'static)) -> Fault {
    let mut reason = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        reason = format!("{reason}: {error}");
        source = error.source();
    }
    Fault::Network { reason }
}
