//! The hub's REST side: twins, methods, feedback and purges; with the emulator also the messages of a device.
//!
//! Owns: one HTTPS connection that is opened when needed, requests and their limits. Must not know: what a twin says.
//!
//! - `feedback` has what back ends do about messages; `methods`, `twins`, `query`, `registry` and `jobs` are for what they name.
//! - `answer` decides what an answer means and has the sentences for wrong ones.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::{Builder, SendRequest};
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderValue, IF_MATCH, SERVER, USER_AGENT};
use hyper::http::response::Parts;
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use percent_encoding::utf8_percent_encode;
use serde::Deserialize;
use serde_json::Value;
use tokio::task::JoinSet;

use super::dial;
use super::identity::{ServiceIdentity, ServiceProof, Who};
use super::target::ENCODED;
use super::{Addressee, EntraTokens, HttpsWay, ServiceError};
use crate::credentials::{BearerToken, HostPort};

mod answer;
mod feedback;
mod jobs;
mod methods;
mod query;
mod registry;
mod twins;

pub use jobs::{HubJob, JobDevices, JobOrder, JobWork};
pub use methods::{MAX_METHOD_PAYLOAD, MethodAnswer, MethodCall};
pub use query::QueryPage;
pub use registry::{DeviceKeys, NewCredential, RegisteredDevice};
pub use twins::TwinPatch;

/// The version of the service's REST interface. Source: wire reference 4.5.
const API_VERSION: &str = "2021-04-12";

/// The limit for one answer, including the time to dial.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Most bytes of an answer's head, and most of its headers.
const MAX_HEAD: usize = 64 * 1024;
const MAX_HEADERS: usize = 100;

/// Most bytes of a twin: the hub keeps 8 KiB of tags and 32 KiB each of desired and reported properties, and metadata
/// for each of them.
const MAX_TWIN: usize = 1024 * 1024;

/// Most bytes of a page of events: the emulator starts no further event after 1 MiB.
const MAX_EVENTS: usize = 4 * 1024 * 1024;

/// The emulator's answers begin their `Server` header with this.
const EMULATOR: &str = "c2d-agent-emulator/";

/// The REST side of one hub, for one back end. Its drop closes the connection.
#[derive(Debug)]
pub struct HttpsService {
    host: HostPort,
    way: HttpsWay,
    who: Who,
    ca_file: Option<PathBuf>,
    authorization: Authorization,
    clock: fn() -> SystemTime,
    connection: Option<SendRequest<Full<Bytes>>>,
    /// The task that moves the connection's bytes.
    driver: JoinSet<()>,
}

/// The header that each request carries.
#[derive(Debug)]
enum Authorization {
    /// For the life of this client.
    Ready(HeaderValue),
    /// Made anew when the token is another one.
    Entra(Arc<EntraTokens>),
}

impl Authorization {
    /// The header's value, and the token of Entra in it.
    async fn header(&self) -> Result<(HeaderValue, Option<BearerToken>), ServiceError> {
        let tokens = match self {
            Self::Ready(value) => return Ok((value.clone(), None)),
            Self::Entra(tokens) => tokens,
        };
        let token = tokens.token().await?;
        // A token has no characters that a header may not have.
        let value = sensitive(&token.expose())
            .ok_or_else(|| ServiceError::Answer("the token fits into no header".to_owned()))?;
        Ok((value, Some(token)))
    }
}

fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// A request.
struct ServiceRequest {
    method: Method,
    path: String,
    /// JSON; empty if the request has no body.
    body: Bytes,
    if_match: Option<String>,
    /// Further headers.
    headers: Vec<(&'static str, HeaderValue)>,
    /// Most bytes of the answer.
    limit: usize,
    /// The longest wait for the answer.
    patience: Duration,
}

impl ServiceRequest {
    fn new(method: Method, path: String, limit: usize) -> Self {
        let (body, headers, patience) = (Bytes::new(), Vec::new(), ANSWER_TIMEOUT);
        Self { method, path, body, if_match: None, headers, limit, patience }
    }
}

/// The part of a device's twin that is used here.
#[derive(Debug, Clone, PartialEq)]
pub struct Twin {
    /// The reported properties.
    pub reported: Value,
    /// Whether the emulator answered. Only then there is [`HttpsService::emulator_events`].
    pub of_emulator: bool,
}

/// A message that a device sent to the emulator.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceEvent {
    /// Counts up for each device.
    pub number: u64,
    /// System properties, such as `$.cid`.
    pub system: BTreeMap<String, Option<String>>,
    /// Application properties.
    pub application: BTreeMap<String, Option<String>>,
    /// The body.
    pub body: Bytes,
}

impl HttpsService {
    /// Prepares requests to the hub of `identity`, by the given way. Nothing is dialled yet. Token and roots are as
    /// for [`super::Service::connect`].
    ///
    /// # Errors
    /// When the token has expired, or cannot be sent in a header.
    pub fn new(
        identity: &ServiceIdentity,
        way: HttpsWay,
        ca_file: Option<&Path>,
        token_lifetime: Duration,
        clock: fn() -> SystemTime,
    ) -> Result<Self, ServiceError> {
        let host = HostPort { name: identity.host.name.clone(), port: Some(way.port) };
        let who = identity.who();
        let authorization = match &identity.proof {
            ServiceProof::Policy { name, secret } => {
                let token = super::token(&host.name, name, secret, token_lifetime, clock())?;
                let header = sensitive(token.expose()).ok_or_else(|| {
                    let remedy = "its SAS token has characters that no header may have";
                    answer::not_authorised(&host, &who, remedy)
                })?;
                Authorization::Ready(header)
            }
            ServiceProof::Entra(tokens) => Authorization::Entra(Arc::clone(tokens)),
        };
        Ok(Self {
            host,
            way,
            who,
            ca_file: ca_file.map(Path::to_owned),
            authorization,
            clock,
            connection: None,
            driver: JoinSet::new(),
        })
    }

    /// Reads a device's twin.
    ///
    /// # Errors
    /// A sentence for each: unreachable, not authorised, no such device, throttled, an answer that a hub does not
    /// give.
    ///
    /// # Cancel safety
    /// A drop of the future drops the request; the next request starts on a new connection.
    pub async fn twin(&mut self, device_id: &str) -> Result<Twin, ServiceError> {
        let device = utf8_percent_encode(device_id, ENCODED);
        let path = format!("/twins/{device}?api-version={API_VERSION}");
        let (body, of_emulator) =
            self.json(ServiceRequest::new(Method::GET, path, MAX_TWIN), device_id).await?;
        match body.get("properties").and_then(|properties| properties.get("reported")) {
            Some(reported) => Ok(Twin { reported: reported.clone(), of_emulator }),
            None => Err(answer::no_hub(&self.host, "a twin without reported properties")),
        }
    }

    /// Reads the messages of a device with numbers above `after` from the emulator, oldest first. If many wait, the
    /// next call returns the rest.
    ///
    /// # Errors
    /// As for [`HttpsService::twin`].
    ///
    /// # Cancel safety
    /// As for [`HttpsService::twin`].
    pub async fn emulator_events(
        &mut self,
        device_id: &str,
        after: u64,
    ) -> Result<Vec<DeviceEvent>, ServiceError> {
        let device = utf8_percent_encode(device_id, ENCODED);
        let path = format!("/emulator/devices/{device}/events?after={after}");
        let (body, _) = self.json(ServiceRequest::new(Method::GET, path, MAX_EVENTS), device_id).await?;
        let events = Vec::<WireEvent>::deserialize(body).ok();
        let events: Option<Vec<_>> =
            events.and_then(|events| events.into_iter().map(WireEvent::read).collect());
        events.ok_or_else(|| answer::no_hub(&self.host, "a list of messages that cannot be read"))
    }

    /// The JSON of an answer with status 200, and whether the emulator sent it.
    async fn json(&mut self, ask: ServiceRequest, device_id: &str) -> Result<(Value, bool), ServiceError> {
        let (head, body) = self.exchange(ask).await?;
        let is_emulator = |name: &HeaderValue| name.as_bytes().starts_with(EMULATOR.as_bytes());
        let of_emulator = head.headers.get(SERVER).is_some_and(is_emulator);
        match head.status {
            StatusCode::OK => serde_json::from_slice(&body)
                .map(|body| (body, of_emulator))
                .map_err(|_| answer::no_hub(&self.host, "status 200 without JSON")),
            status => Err(self.refusal(status, &body, device_id)),
        }
    }

    /// The error that an answer with another status reports.
    fn refusal(&self, status: StatusCode, body: &[u8], device_id: &str) -> ServiceError {
        match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.lacks(super::failure::TO_CONNECT, body),
            status => answer::of_status(&self.host, status, body, device_id),
        }
    }

    /// The error of a principal that may not do this; `right` says what a policy needs.
    fn lacks(&self, right: &str, body: &[u8]) -> ServiceError {
        let mut remedy = self.who.remedy((self.clock)(), right);
        // The hub tells a principal of Entra which role it lacks, and a policy nothing.
        if let (Who::Entra, Some(said)) = (&self.who, answer::hub_message(body)) {
            remedy = format!("{said}; {remedy}");
        }
        answer::not_authorised(&self.host, &self.who, &remedy)
    }

    /// Like [`Self::refusal`], for a request that may be about a module.
    fn refusal_about(&self, status: StatusCode, body: &[u8], target: &Addressee) -> ServiceError {
        match self.refusal(status, body, target.device_id()) {
            // A real hub uses one error code for a missing device and a missing module.
            ServiceError::UnknownDevice(_) if target.module_id().is_some() => {
                ServiceError::UnknownModule(target.to_string())
            }
            error => error,
        }
    }

    /// Sends one request and reads its whole answer, with any status. If the hub refuses a token of Entra that is not new,
    /// the request is sent with a new one, once.
    async fn exchange(&mut self, ask: ServiceRequest) -> Result<(Parts, Bytes), ServiceError> {
        // Before the time is counted, because a source of tokens may take longer than the hub.
        let (authorization, token) = self.authorization.header().await?;
        let (head, body) = self.exchange_once(&ask, &authorization).await?;
        let is_refused = head.status == StatusCode::UNAUTHORIZED;
        match (&self.authorization, token) {
            (Authorization::Entra(tokens), Some(token)) if is_refused && tokens.drop_refused(&token) => {
                let (authorization, _) = self.authorization.header().await?;
                self.exchange_once(&ask, &authorization).await
            }
            _ => Ok((head, body)),
        }
    }

    async fn exchange_once(
        &mut self,
        ask: &ServiceRequest,
        authorization: &HeaderValue,
    ) -> Result<(Parts, Bytes), ServiceError> {
        let (host, limit, patience) = (self.host.clone(), ask.limit, ask.patience);
        let exchange = async {
            let response = self.send(ask, authorization).await?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, limit).collect().await;
            let body = body.map_err(|error| answer::of_body(&host, limit, &*error))?.to_bytes();
            Ok((head, body))
        };
        let late = || ServiceError::Unanswered(answer::late(&host, patience));
        let exchanged = match tokio::time::timeout(patience, exchange).await {
            Ok(exchanged) => exchanged,
            Err(_) => Err(late()),
        };
        // After a failure, the rest of an answer must not be taken for the next answer.
        exchanged.inspect_err(|_| self.hang_up())
    }

    /// Sends one request. The hub may have closed a kept connection meanwhile. Then a new one is tried, except for
    /// requests that must not be carried out twice.
    async fn send(
        &mut self,
        ask: &ServiceRequest,
        authorization: &HeaderValue,
    ) -> Result<Response<Incoming>, ServiceError> {
        let mut was_sent = false;
        if let Some(mut kept) = self.connection.take().filter(|kept| !kept.is_closed()) {
            let sent = match kept.ready().await {
                Ok(()) => match kept.send_request(self.request(ask, authorization)?).await {
                    Err(error) if ask.method == Method::POST || ask.if_match.is_some() => {
                        return Err(answer::of_exchange(&self.host, &error));
                    }
                    sent => {
                        was_sent = true;
                        sent
                    }
                },
                Err(error) => Err(error),
            };
            match sent {
                Ok(response) => {
                    self.connection = Some(kept);
                    return Ok(response);
                }
                Err(error) => tracing::debug!(%error, "the HTTPS connection was closed: opening another"),
            }
        }
        let mut opened = self.open().await.map_err(|error| match error {
            ServiceError::Unreachable(words) if was_sent => ServiceError::Unanswered(words),
            error => error,
        })?;
        let sent = opened.send_request(self.request(ask, authorization)?).await;
        let response = sent.map_err(|error| answer::of_exchange(&self.host, &error))?;
        self.connection = Some(opened);
        Ok(response)
    }

    async fn open(&mut self) -> Result<SendRequest<Full<Bytes>>, ServiceError> {
        self.hang_up();
        let stream = dial::dial_https(&self.host.name, &self.way, self.ca_file.as_deref()).await?;
        let mut builder = Builder::new();
        builder.max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
        let opened = builder.handshake(TokioIo::new(stream)).await;
        let (sender, connection) = opened.map_err(|error| answer::of_exchange(&self.host, &error))?;
        self.driver.spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "the HTTPS connection ended");
            }
        });
        Ok(sender)
    }

    fn hang_up(&mut self) {
        self.connection = None;
        // The drop of the set ends the task and closes the socket.
        self.driver = JoinSet::new();
    }

    fn request(
        &self,
        ask: &ServiceRequest,
        authorization: &HeaderValue,
    ) -> Result<Request<Full<Bytes>>, ServiceError> {
        let port = self.host.port.filter(|port| *port != dial::HTTPS.port);
        let mut request = Request::builder()
            .method(&ask.method)
            .uri(&ask.path)
            .header(HOST, HostPort { port, ..self.host.clone() }.to_string())
            .header(AUTHORIZATION, authorization)
            .header(ACCEPT, "application/json")
            .header(USER_AGENT, concat!("c2d-agent/", env!("CARGO_PKG_VERSION")));
        if !ask.body.is_empty() {
            request = request.header(CONTENT_TYPE, "application/json; charset=utf-8");
        }
        if let Some(etag) = &ask.if_match {
            request = request.header(IF_MATCH, etag);
        }
        for (name, value) in &ask.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::new(ask.body.clone()));
        request
            .map_err(|error| ServiceError::Answer(format!("no request can be made of {}: {error}", ask.path)))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct WireEvent {
    number: u64,
    #[serde(default)]
    system_properties: BTreeMap<String, Option<String>>,
    #[serde(default)]
    properties: BTreeMap<String, Option<String>>,
    body: Option<String>,
    body_base64: Option<String>,
}

impl WireEvent {
    fn read(self) -> Option<DeviceEvent> {
        let body = match (self.body, self.body_base64) {
            (Some(text), _) => text.into_bytes(),
            (None, Some(text)) => STANDARD.decode(text).ok()?,
            (None, None) => Vec::new(),
        };
        let (number, system, application) = (self.number, self.system_properties, self.properties);
        Some(DeviceEvent { number, system, application, body: body.into() })
    }
}

#[cfg(test)]
mod tests;
