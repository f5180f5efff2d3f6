//! One TLS listener: accepts connections and gives each to a handler.
//!
//! Owns: the standard ports, the limit on connections, the handshake and its time-out, the tasks of the connections and their end.
//! Must not know: MQTT, AMQP, the hub.

use std::future::Future;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

/// The standard port of devices: MQTT over TLS.
pub const MQTT_PORT: u16 = 8883;

/// The standard port of back ends: AMQP 1.0 over TLS.
pub const AMQP_PORT: u16 = 5671;

/// The standard port of the hub's REST side: HTTPS.
pub const HTTPS_PORT: u16 = 443;

/// Most connections of one listener at a time: one of each device, and room for new ones that replace them.
const MAX_CONNECTIONS: usize = 11_000;

/// Time for the TLS handshake, and for the first data that a protocol expects. Source: wire reference 1.4.
pub(super) const ARRIVAL_TIMEOUT: Duration = Duration::from_secs(60);

/// Time for the connections to close in order when the emulator stops.
const CLOSING_TIME: Duration = Duration::from_secs(1);

/// A connection after its handshake. It is boxed, because each move of it into another future adds its size to the
/// task.
pub(super) type Accepted = Box<TlsStream<TcpStream>>;

/// Serves until `stop` is cancelled. `handle` gets each connection after its handshake, and must itself end soon after
/// `stop`.
pub(super) async fn serve<H, F>(
    protocol: &'static str,
    listener: TcpListener,
    config: Arc<ServerConfig>,
    stop: CancellationToken,
    handle: H,
) where
    H: Fn(Accepted, SocketAddr) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let tls = TlsAcceptor::from(config);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            Some(_ended) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Err(error) => {
                // Most likely the process has no file handle left: wait until other connections end.
                tracing::warn!(protocol, %error, "could not accept a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            Ok((_, peer)) if connections.len() >= MAX_CONNECTIONS => {
                tracing::warn!(protocol, %peer, "refused a connection: there are {MAX_CONNECTIONS} already");
            }
            Ok((stream, peer)) => {
                let (tls, handle, stop) = (tls.clone(), handle.clone(), stop.clone());
                connections.spawn(async move {
                    let stream = tokio::select! {
                        () = stop.cancelled() => return,
                        stream = handshake(&tls, stream) => stream,
                    };
                    match stream {
                        Ok(stream) => handle(stream, peer).await,
                        Err(error) => tracing::info!(protocol, %peer, %error, "the TLS handshake failed"),
                    }
                });
            }
        }
    }
    let all_ended = async { while connections.join_next().await.is_some() {} };
    if timeout(CLOSING_TIME, all_ended).await.is_err() {
        tracing::debug!(protocol, "dropped connections that did not end in time");
    }
}

async fn handshake(tls: &TlsAcceptor, stream: TcpStream) -> std::io::Result<Accepted> {
    stream.set_nodelay(true)?;
    timeout(ARRIVAL_TIMEOUT, tls.accept(stream)).await?.map(Box::new)
}
