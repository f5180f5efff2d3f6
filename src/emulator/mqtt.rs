use super::shared::SharedHub;
use std::net::SocketAddr;
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

pub(super) async fn serve_connection(
    stream: TlsStream<TcpStream>,
    peer: SocketAddr,
    hub: SharedHub,
    stop: CancellationToken,
) {
    tracing::warn!(%peer, "not served yet");
    drop((stream, hub, stop));
}
