//! A tunnel through an HTTP proxy.
//!
//! Owns: CONNECT, the credentials in it, and why it failed, in words. Must not know: what goes through the tunnel.
//! Used by: `websocket::dial`.

use std::io;

use bytes::Bytes;
use http_body_util::Empty;
use hyper::client::conn::http1::Builder;
use hyper::header::{HOST, HeaderValue, PROXY_AUTHORIZATION};
use hyper::upgrade::{Upgraded, on};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;

use super::dial::connect;
use crate::credentials::{HostPort, Proxy};

/// Most bytes and headers of the proxy's answer.
const MAX_HEAD: usize = 32 * 1024;
const MAX_HEADERS: usize = 100;

/// Why there is no tunnel.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TunnelError {
    /// The proxy itself cannot be reached.
    #[error(
        "the proxy {proxy} of HTTPS_PROXY cannot be reached ({error}): check HTTPS_PROXY, or name the hub in NO_PROXY"
    )]
    Unreachable {
        /// Where it should be.
        proxy: String,
        /// The reason.
        error: io::Error,
    },
    /// 407 without a login of ours.
    #[error(
        "the proxy {0} asks for credentials (status 407): give them in HTTPS_PROXY, as http://NAME:PASSWORD@HOST:PORT"
    )]
    Credentials(String),
    /// 407 in spite of it.
    #[error("the proxy {0} does not take the name and password of HTTPS_PROXY (status 407): check both")]
    Login(String),
    /// Any other status.
    #[error(
        "the proxy {proxy} refuses to connect to {target} (status {status}): have it allow that host and port"
    )]
    Refused {
        /// The proxy.
        proxy: String,
        /// The hub with its port.
        target: String,
        /// The status of its answer.
        status: u16,
    },
    /// No answer, or none that is HTTP.
    #[error("the proxy {proxy} does not answer as an HTTP proxy does ({reason}): check HTTPS_PROXY")]
    NoProxy {
        /// The proxy.
        proxy: String,
        /// What came.
        reason: String,
    },
    /// The host name or the login cannot stand in a request.
    #[error("{0} cannot be asked for of a proxy")]
    Target(String),
}

/// Has `proxy` connect to `host`. The caller bounds the time.
pub(super) async fn open(proxy: &Proxy, host: &str, port: u16) -> Result<TokioIo<Upgraded>, TunnelError> {
    let shown = proxy.to_string();
    let reached = connect(&proxy.host, proxy.port).await;
    let stream = reached.map_err(|error| TunnelError::Unreachable { proxy: shown.clone(), error })?;
    let target = HostPort { name: host.to_owned(), port: Some(port) }.to_string();
    let mut request = Request::connect(&target).header(HOST, &target);
    if let Some(login) = &proxy.login {
        let mut value =
            HeaderValue::from_str(&login.expose_header()).map_err(|_| TunnelError::Target(target.clone()))?;
        value.set_sensitive(true);
        request = request.header(PROXY_AUTHORIZATION, value);
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(|_| TunnelError::Target(target.clone()))?;

    let no_proxy =
        |error: hyper::Error| TunnelError::NoProxy { proxy: shown.clone(), reason: error.to_string() };
    let mut builder = Builder::new();
    builder.max_buf_size(MAX_HEAD).max_headers(MAX_HEADERS);
    let (mut sender, connection) = builder.handshake(TokioIo::new(stream)).await.map_err(no_proxy)?;
    let exchange = async move {
        let answer = sender.send_request(request).await?;
        match answer.status() {
            StatusCode::OK => on(answer).await.map(Ok),
            status => Ok(Err(status)),
        }
    };
    // The connection is over when it has become a tunnel, or when the exchange has let go of it.
    let (exchanged, _ended) = tokio::join!(exchange, connection.with_upgrades());
    match exchanged.map_err(no_proxy)? {
        Ok(tunnel) => Ok(TokioIo::new(tunnel)),
        Err(StatusCode::PROXY_AUTHENTICATION_REQUIRED) if proxy.login.is_some() => {
            Err(TunnelError::Login(shown))
        }
        Err(StatusCode::PROXY_AUTHENTICATION_REQUIRED) => Err(TunnelError::Credentials(shown)),
        Err(status) => Err(TunnelError::Refused { proxy: shown, target, status: status.as_u16() }),
    }
}
