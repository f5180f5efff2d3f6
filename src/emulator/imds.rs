//! The endpoint where a virtual machine of Azure gets the tokens of its identity, on loopback.
//!
//! Owns: the socket, requests and answers. Must not know: who gets which token.
//!
//! Source: wire reference 4.7. It is plain HTTP; the header `Metadata` is one that a page in a browser cannot send by itself.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use hyper::body::Incoming;
use hyper::header::HeaderValue;
use hyper::{Request, StatusCode};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::EmulatorError;
use super::entra::{self, EntraIssuer, TokenRefusal};
use super::json_server::{self, JsonAnswer};
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
        let accept = || imds.listener.accept();
        let answering = Arc::clone(&imds);
        json_server::serve("a request for a token", MAX_REQUESTS, stop, accept, move |_peer, request| {
            std::future::ready(answering.answer(&request))
        })
        .await;
    }

    fn answer(&self, request: &Request<Incoming>) -> JsonAnswer {
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
