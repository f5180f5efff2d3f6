//! The TCP connection at the bottom, to the hub or to a proxy.
//!
//! Owns: what TLS can run on. Must not know: TLS, HTTP.

use std::io;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

/// What TLS runs on: TCP or a tunnel.
pub(crate) trait Raw: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Raw for S {}

/// Tries one address after the other, in the order of the system.
pub(super) async fn connect(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}
