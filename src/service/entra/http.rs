//! One HTTP request for a token, on a connection of its own.
//!
//! Owns: dialling, limits, and failures in words. Must not know: what is asked for.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::Builder;
use hyper::header::{ACCEPT, CONTENT_TYPE, HOST, HeaderName, HeaderValue, USER_AGENT};
use hyper::{HeaderMap, Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use super::{EntraRoute, TokenFailure};
use crate::credentials::TokenEndpoint;
use crate::tls;
use crate::websocket::{self, DialError};

/// From the first packet to the end of the answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// A token with many groups has a few KiB.
const MAX_ANSWER: usize = 256 * 1024;
const MAX_HEAD: usize = 32 * 1024;

/// A request. Its values may be secrets.
pub(super) struct TokenRequest {
    pub(super) endpoint: TokenEndpoint,
    /// Follows the path: empty, or `?` and arguments.
    pub(super) query: String,
    pub(super) headers: Vec<(HeaderName, HeaderValue)>,
    /// With a form it is a POST.
    pub(super) form: Option<String>,
}

/// An answer with any status.
pub(super) struct TokenAnswer {
    pub(super) status: StatusCode,
    pub(super) headers: HeaderMap,
    pub(super) body: Bytes,
}

/// Sends a request and reads the whole answer. It follows no redirect, which could carry a secret elsewhere.
pub(super) async fn send(request: TokenRequest, route: &EntraRoute) -> Result<TokenAnswer, TokenFailure> {
    let server = request.endpoint.authority();
    let late = || TokenFailure::Passing(format!("{server} did not answer within {} s", PATIENCE.as_secs()));
    tokio::time::timeout(PATIENCE, exchange(request, route)).await.map_err(|_| late())?
}

async fn exchange(request: TokenRequest, route: &EntraRoute) -> Result<TokenAnswer, TokenFailure> {
    let TokenEndpoint { tls, host, port, .. } = request.endpoint.clone();
    if !tls {
        let connected = TcpStream::connect((host.as_str(), port)).await;
        let stream = connected.map_err(|error| {
            let words = format!("nothing answers at {} ({error})", request.endpoint.authority());
            TokenFailure::Passing(words)
        })?;
        return over(stream, request).await;
    }
    let config = tls::client_config(route.ca_file.as_deref(), None);
    let config = config.map_err(|error| TokenFailure::Lasting(error.to_string()))?;
    let proxy = route.proxies.on_the_way_to(&host, port);
    let dialled = websocket::secure(&host, port, &config, proxy).await;
    over(dialled.map_err(|error| unreachable(&error, &host, port))?, request).await
}

fn unreachable(error: &DialError, host: &str, port: u16) -> TokenFailure {
    match error {
        DialError::Tls(error) => match tls::tls_cause(error) {
            Some(cause) => TokenFailure::Lasting(tls::describe(cause, host)),
            None => TokenFailure::Passing(format!("TLS with {host} failed: {error}")),
        },
        DialError::Tcp(error) => {
            TokenFailure::Passing(format!("no connection to {host} on port {port}: {error}"))
        }
        error => TokenFailure::Passing(error.to_string()),
    }
}

async fn over<S>(stream: S, ask: TokenRequest) -> Result<TokenAnswer, TokenFailure>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let TokenRequest { endpoint, query, headers, form } = ask;
    let server = endpoint.authority();
    let mut request = Request::builder()
        .method(if form.is_some() { Method::POST } else { Method::GET })
        .uri(format!("{}{query}", endpoint.path))
        .header(HOST, &server)
        .header(ACCEPT, "application/json")
        .header(USER_AGENT, concat!("c2d-agent/", env!("CARGO_PKG_VERSION")));
    if form.is_some() {
        request = request.header(CONTENT_TYPE, "application/x-www-form-urlencoded");
    }
    for (name, value) in headers {
        request = request.header(name, value);
    }
    let request = request.body(Full::new(Bytes::from(form.unwrap_or_default())));
    let request =
        request.map_err(|error| TokenFailure::Lasting(format!("no request can be made: {error}")))?;
    let broken = |error: hyper::Error| match error.is_parse() {
        true => TokenFailure::Lasting(format!("{server} answers, but not with HTTP")),
        false => TokenFailure::Passing(format!("{server} closed the connection instead of answering")),
    };
    let mut builder = Builder::new();
    builder.max_buf_size(MAX_HEAD);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(broken)?;
    // The drop of the set ends the task and closes the socket.
    let mut driver = JoinSet::new();
    let own = server.clone();
    driver.spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to {own} ended");
        }
    });
    let (head, body) = sender.send_request(request).await.map_err(broken)?.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await;
    let body = body
        .map_err(|error| TokenFailure::Passing(format!("the answer of {server} broke off: {error}")))?
        .to_bytes();
    Ok(TokenAnswer { status: head.status, headers: head.headers, body })
}
