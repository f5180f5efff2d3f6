//! The endpoint where a virtual machine of Azure gets the tokens of its identity, on loopback.
//!
//! Owns: the socket, requests and answers. Must not know: who gets which token.
//!
//! Source: wire reference 4.7. It is plain HTTP; the header `Metadata` is one that a page in a browser cannot send by itself.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::EmulatorError;
use super::entra::{self, EntraIssuer, TokenRefusal};
use super::listener::ARRIVAL_TIMEOUT;
use super::shared::SharedHub;
use super::sockets::Sockets;

/// Most requests at a time.
const MAX_REQUESTS: usize = 100;
const PATH: &str = "/metadata/identity/oauth2/token";

/// The endpoint.
pub(super) struct Imds {
    listener: TcpListener,
    issuer: Arc<EntraIssuer>,
    /// Tells the time.
    hub: SharedHub,
}

impl Imds {
    /// Listens on loopback, whatever the other ports do: everybody who can connect gets a token.
    ///
    /// # Errors
    /// [`EmulatorError::Listen`].
    pub(super) async fn bind(
        port: u16,
        issuer: Arc<EntraIssuer>,
        hub: SharedHub,
    ) -> Result<(Self, SocketAddr), EmulatorError> {
        let address = SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port);
        let sockets =
            Sockets::listen(&[address.ip()], port, "the identity of the machine", "--imds-port").await?;
        let own = sockets.address;
        let unavailable = || EmulatorError::Listen {
            address,
            protocol: "the identity of the machine",
            reason: "there is no listener".to_owned(),
        };
        let listener = sockets.listeners.into_iter().next().ok_or_else(unavailable)?;
        Ok((Self { listener, issuer, hub }, own))
    }

    /// Serves until `stop` is cancelled.
    pub(super) async fn run(self, stop: CancellationToken) {
        let imds = Arc::new(self);
        let mut requests = JoinSet::new();
        loop {
            let accepted = tokio::select! {
                () = stop.cancelled() => return,
                Some(_ended) = requests.join_next() => continue,
                accepted = imds.listener.accept() => accepted,
            };
            match accepted {
                Ok(_) if requests.len() >= MAX_REQUESTS => {
                    tracing::warn!("dropped a request for a token: there are {MAX_REQUESTS} already");
                }
                Ok((stream, _)) => drop(requests.spawn(Arc::clone(&imds).serve(stream))),
                Err(error) => {
                    tracing::warn!(%error, "could not accept a request for a token");
                    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                }
            }
        }
    }

    async fn serve(self: Arc<Self>, stream: TcpStream) {
        let service = service_fn(move |request| {
            let (status, body) = self.answer(&request);
            let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
            *response.status_mut() = status;
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            std::future::ready(Ok::<_, std::convert::Infallible>(response))
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(ARRIVAL_TIMEOUT)
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        match tokio::time::timeout(ARRIVAL_TIMEOUT, connection).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::debug!(%error, "a request for a token ended early"),
            Err(_) => tracing::debug!("a request for a token took too long"),
        }
    }

    fn answer(&self, request: &Request<Incoming>) -> (StatusCode, Value) {
        let refused = |status, words: &str| {
            tracing::warn!("refused the token of the machine: {words}");
            (status, json!({ "error": "invalid_request", "error_description": words }))
        };
        if request.uri().path() != PATH {
            return refused(StatusCode::NOT_FOUND, "this endpoint has the tokens of the machine only");
        }
        let is_asked = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"true");
        if !request.headers().get("metadata").is_some_and(is_asked) {
            return refused(StatusCode::BAD_REQUEST, "Required metadata header not specified");
        }
        let query = entra::fields(request.uri().query().unwrap_or_default());
        if query.get("api-version").is_none_or(|version| version.as_str() < "2018-02-01") {
            return refused(StatusCode::BAD_REQUEST, "the query has no api-version, such as 2018-02-01");
        }
        match self.issuer.grant_machine(&query, self.hub.clock().0) {
            Ok(token) => {
                let body = json!({
                    "access_token": token.text,
                    "refresh_token": "",
                    "expires_in": (token.expires - token.issued).to_string(),
                    "expires_on": token.expires.to_string(),
                    "not_before": token.issued.to_string(),
                    "resource": token.resource,
                    "token_type": "Bearer",
                });
                (StatusCode::OK, body)
            }
            Err(TokenRefusal { status, sentence, .. }) => {
                refused(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST), &sentence)
            }
        }
    }
}
