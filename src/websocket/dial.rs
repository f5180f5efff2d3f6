//! Dials the hub's HTTPS port: TCP or a proxy's tunnel, then TLS, and for a WebSocket the upgrade.
//!
//! Owns: the order of these steps, and a sentence for each failure. Must not know: MQTT, AMQP, tokens, retries, the
//! environment.
//!
//! Sources: wire reference 1.1 and 2.1 (path, subprotocols), RFC 9110 9.3.6 (CONNECT), RFC 6455 4.1 (the upgrade).

use std::io;
use std::sync::Arc;

use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_tungstenite::client_async_with_config;
use tokio_tungstenite::tungstenite::Error;
use tokio_tungstenite::tungstenite::handshake::client::{Request, Response, generate_key};
use tokio_tungstenite::tungstenite::http::{HeaderValue, StatusCode, header};

use super::socket::{Raw, connect};
use super::tunnel::{self, TunnelError};
use super::{ByteStream, config};
use crate::credentials::{HostPort, Proxy};

/// The destination, and how to get there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Target<'a> {
    /// The hub, or a gateway in its place. The certificate must have this name.
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    /// [`super::HUB_PATH`] or [`super::SERVICE_BUS_PATH`].
    pub(crate) path: &'static str,
    /// [`super::MQTT`] or [`super::AMQP`].
    pub(crate) subprotocol: &'static str,
    pub(crate) tls: &'a Arc<ClientConfig>,
    /// The proxy for the connection.
    pub(crate) proxy: Option<&'a Proxy>,
}

/// A WebSocket to the hub.
pub(crate) type HubStream = ByteStream<SecureStream>;

/// TLS to the hub.
pub(crate) type SecureStream = TlsStream<Box<dyn Raw>>;

/// Why there is no WebSocket. Each is one sentence without the name of the hub before it, because the caller knows it.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    /// The direct connection to the hub failed.
    #[error("{0}")]
    Tcp(io::Error),
    /// The proxy failed, or the connection through it.
    #[error(transparent)]
    Tunnel(#[from] TunnelError),
    /// The host name cannot be in a certificate.
    #[error("\"{0}\" is not a host name that TLS can check")]
    Name(String),
    /// TLS failed, or the connection failed during the handshake.
    #[error("{0}")]
    Tls(io::Error),
    /// A page that does not come from the hub, but from a device between.
    #[error(
        "the WebSocket upgrade was answered with a web page (status {status}, {content_type}): another \
         server answers in the hub's place, such as the portal of a hotel or an office: sign in there, or let \
         it allow {host}"
    )]
    Portal {
        /// The status of the answer.
        status: u16,
        /// Its type, such as `text/html`.
        content_type: String,
        /// The hub.
        host: String,
    },
    /// The answer is not 101.
    #[error(
        "the WebSocket upgrade was refused with status {status}{content_type}: check HostName and the port, \
         and that an IoT Hub answers there"
    )]
    Refused {
        /// The status of the answer.
        status: u16,
        /// Its type in parentheses, or nothing.
        content_type: String,
    },
    /// An answer that is not HTTP.
    #[error("the answer to the WebSocket upgrade cannot be understood ({0}): check HostName and the port")]
    Nonsense(String),
}

impl DialError {
    /// The I/O error, if the connection to the hub failed in the system or in TLS; otherwise the sentence.
    pub(crate) fn into_io(self) -> Result<io::Error, String> {
        match self {
            Self::Tcp(error) | Self::Tls(error) => Ok(error),
            other => Err(other.to_string()),
        }
    }
}

/// Dials a WebSocket. The caller limits the time.
///
/// # Errors
/// [`DialError`] says which step failed.
///
/// # Cancel safety
/// A drop closes the connection.
pub(crate) async fn dial(target: Target<'_>) -> Result<HubStream, DialError> {
    let Target { host, port, path, subprotocol, tls, proxy } = target;
    let stream = secure(host, port, tls, proxy).await?;
    let request = request(host, port, path, subprotocol);
    let request = request.map_err(|error| DialError::Nonsense(error.to_string()))?;
    match client_async_with_config(request, stream, Some(config())).await {
        Ok((stream, _answer)) => Ok(ByteStream::new(stream)),
        Err(Error::Http(answer)) => Err(refused(&answer, host)),
        Err(Error::Io(error)) => Err(DialError::Tls(error)),
        Err(error) => Err(DialError::Nonsense(error.to_string())),
    }
}

/// Makes the connection that a WebSocket needs; for HTTPS it is enough. The caller limits the time.
///
/// # Errors
/// As [`dial`].
///
/// # Cancel safety
/// As [`dial`].
pub(crate) async fn secure(
    host: &str,
    port: u16,
    tls: &Arc<ClientConfig>,
    proxy: Option<&Proxy>,
) -> Result<SecureStream, DialError> {
    let name = ServerName::try_from(host.to_owned()).map_err(|_| DialError::Name(host.to_owned()))?;
    let raw: Box<dyn Raw> = match proxy {
        Some(proxy) => Box::new(tunnel::open(proxy, host, port, tls).await?),
        None => Box::new(connect(host, port).await.map_err(DialError::Tcp)?),
    };
    TlsConnector::from(Arc::clone(tls)).connect(name, raw).await.map_err(DialError::Tls)
}

fn request(
    host: &str,
    port: u16,
    path: &'static str,
    subprotocol: &'static str,
) -> Result<Request, tokio_tungstenite::tungstenite::http::Error> {
    let port = Some(port).filter(|port| *port != 443);
    let host = HostPort { name: host.to_owned(), port }.to_string();
    let host = if host.contains(':') && port.is_none() { format!("[{host}]") } else { host };
    Request::get(format!("wss://{host}{path}"))
        .header(header::HOST, host)
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, generate_key())
        .header(header::SEC_WEBSOCKET_PROTOCOL, HeaderValue::from_static(subprotocol))
        .header(header::USER_AGENT, concat!("c2d-agent/", env!("CARGO_PKG_VERSION")))
        .body(())
}

fn refused(answer: &Response, host: &str) -> DialError {
    let kind = answer.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    let kind: String = kind.chars().take(60).filter(|c| !c.is_control()).collect();
    let status = answer.status();
    let page = kind.eq_ignore_ascii_case("text/html") || status.is_success() || status.is_redirection();
    if page && status != StatusCode::NO_CONTENT {
        let content_type = if kind.is_empty() { "of no type".to_owned() } else { kind };
        return DialError::Portal { status: status.as_u16(), content_type, host: host.to_owned() };
    }
    let content_type = if kind.is_empty() { kind } else { format!(" ({kind})") };
    DialError::Refused { status: status.as_u16(), content_type }
}
