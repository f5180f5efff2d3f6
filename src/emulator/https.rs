//! The hub's REST side: one HTTPS connection of a back end.
//!
//! Owns: the connection, its limits and its end. Must not know: accepting and TLS (`emulator::listener`), who may sign
//! in (`emulator::hub`), the service client.
//! Used by: `emulator`.
//!
//! - `routes` finds what a request asks for and answers it, pure but for the hub; a new route begins there.
//! - `reply` has the shapes of answers and the hub's error bodies; `events` shows D2C messages.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_util::sync::CancellationToken;

use super::listener::ARRIVAL_TIMEOUT;
use super::shared::SharedHub;

mod events;
mod reply;
mod routes;

use reply::Reply;

/// Most bytes of a request's head, and of what is buffered for one connection.
const MAX_HEAD: usize = 32 * 1024;

/// Most headers of a request; SDKs send about ten.
const MAX_HEADERS: usize = 64;

/// The age at which a connection is ended after the request in hand: a client that neither asks nor reads must not
/// keep its place for ever.
const MAX_AGE: Duration = Duration::from_secs(10 * 60);

/// Time for the answer in hand when a connection ends.
const CLOSING_TIME: Duration = Duration::from_millis(500);

/// Serves one connection until it ends, grows old, or `stop`.
pub(super) async fn serve_connection<S>(stream: S, peer: SocketAddr, hub: SharedHub, stop: CancellationToken)
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let service = service_fn(move |request| {
        let reply = answer(&request, &hub);
        tracing::debug!(%peer, method = %request.method(), path = request.uri().path(), status = %reply.status(), "answered");
        std::future::ready(Ok::<Response<Reply>, Infallible>(reply))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ARRIVAL_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = async { tokio::select! { () = stop.cancelled() => {} () = tokio::time::sleep(MAX_AGE) => {} } } => {
            connection.as_mut().graceful_shutdown();
            // When time is up, dropping it cuts it.
            tokio::time::timeout(CLOSING_TIME, connection).await.unwrap_or(Ok(()))
        }
    };
    match ended {
        Ok(()) => tracing::debug!(%peer, "ended an HTTPS connection"),
        Err(error) => tracing::info!(%peer, %error, "lost an HTTPS connection"),
    }
}

/// Everything that is served has no request body so far, so one is refused instead of read.
fn answer(request: &Request<Incoming>, hub: &SharedHub) -> Response<Reply> {
    if !request.body().is_end_stream() {
        return reply::unexpected_body();
    }
    routes::answer(request.method(), request.uri(), request.headers(), hub)
}
