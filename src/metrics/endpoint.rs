//! The endpoint: `GET /metrics` over HTTP.
//!
//! Owns: the listener, the limits on the number of clients, on the size of a request and on its time.
//! Must not know: what the figures are.
//!
//! A task accepts clients, and each client has its own task. A connection carries one request, so that no client keeps
//! its place for long. The tasks reach the owner of the figures through one bounded channel.

use std::convert::Infallible;
use std::net::{self, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{ALLOW, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{Metric, MetricsError, Scrape, text};

/// Most clients at one time. Further connections are closed, because a scraper tries again by itself.
const MAX_CLIENTS: usize = 8;
/// How long a client may take for the head of its request.
const HEAD_LIMIT: Duration = Duration::from_secs(3);
/// How long a connection may live, its answer included.
const CONNECTION_LIMIT: Duration = Duration::from_secs(10);
/// How long to wait for the figures.
const ANSWER_LIMIT: Duration = Duration::from_secs(2);
/// Most bytes of a request's head (the least that hyper allows) and most headers: more than a scraper sends.
const MAX_HEAD: usize = 8 * 1024;
const MAX_HEADERS: usize = 32;
/// How long to wait when `accept` fails, for example because there are no free descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// The path of the metrics.
const PATH: &str = "/metrics";
const PLAIN_TEXT: &str = "text/plain; charset=utf-8";

/// The endpoint of this process. A drop cuts the clients off and frees the port a little later, when the runtime runs.
/// After [`Endpoint::close`] the port is free at once.
#[derive(Debug)]
pub(crate) struct Endpoint {
    address: SocketAddr,
    scrapes: mpsc::Receiver<Scrape>,
    server: JoinSet<()>,
}

impl Endpoint {
    /// Starts to listen and to serve. Must be called within a runtime.
    ///
    /// # Errors
    /// A sentence. The port may become free later: the caller may try again.
    pub(crate) fn open(listen: SocketAddr) -> Result<Self, MetricsError> {
        let failed = |error| MetricsError::listen(listen, &error);
        let listener = net::TcpListener::bind(listen).map_err(failed)?;
        listener.set_nonblocking(true).map_err(failed)?;
        let listener = TcpListener::from_std(listener).map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        // There is room for a request of each client, so the channel is never full for long.
        let (scrapes_in, scrapes) = mpsc::channel(MAX_CLIENTS);
        let mut server = JoinSet::new();
        server.spawn(accept(listener, scrapes_in));
        Ok(Self { address, scrapes, server })
    }

    /// The address of the listener. It has the real port, also if the kernel chose it.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The next request for the figures. Cancel safe.
    pub(crate) async fn next(&mut self) -> Scrape {
        match self.scrapes.recv().await {
            Some(scrape) => scrape,
            // The task never ends by itself. If it did, there would be no more requests.
            None => std::future::pending().await,
        }
    }

    /// Stops listening. Cancel safe: another call finishes the work.
    pub(crate) async fn close(&mut self) {
        self.server.shutdown().await;
    }
}

/// Accepts clients, for ever. A drop cuts all clients off.
async fn accept(listener: TcpListener, scrapes: mpsc::Sender<Scrape>) {
    let mut clients = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        // Clients that have gone make room for others.
        while clients.try_join_next().is_some() {}
        match accepted {
            Ok((stream, peer)) if clients.len() < MAX_CLIENTS => {
                clients.spawn(serve(stream, peer, scrapes.clone()));
            }
            Ok((_, peer)) => {
                tracing::debug!(%peer, "refused a scraper: {MAX_CLIENTS} others are connected")
            }
            Err(error) => {
                tracing::warn!(%error, "metrics: no connection can be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Serves one client: one request, for at most [`CONNECTION_LIMIT`].
async fn serve(stream: TcpStream, peer: SocketAddr, scrapes: mpsc::Sender<Scrape>) {
    let service = service_fn(|request| {
        let scrapes = scrapes.clone();
        async move { Ok::<_, Infallible>(answer(&request, &scrapes).await) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_LIMIT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match timeout(CONNECTION_LIMIT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%peer, %error, "lost a scraper"),
        Err(_elapsed) => tracing::debug!(%peer, "dropped a scraper that took too long"),
    }
}

/// The answer to a request. A body is not read: the connection ends with the answer.
async fn answer(request: &Request<Incoming>, scrapes: &mpsc::Sender<Scrape>) -> Response<Full<Bytes>> {
    if request.uri().path() != PATH {
        return plain(StatusCode::NOT_FOUND, format!("the metrics are at {PATH}\n"));
    }
    if ![Method::GET, Method::HEAD].contains(request.method()) {
        let mut refused = plain(StatusCode::METHOD_NOT_ALLOWED, "metrics are read with GET\n".to_owned());
        refused.headers_mut().insert(ALLOW, HeaderValue::from_static("GET, HEAD"));
        return refused;
    }
    match timeout(ANSWER_LIMIT, ask(scrapes)).await {
        Ok(Some(metrics)) => match text::encode(metrics) {
            Ok(text) => respond(StatusCode::OK, text::CONTENT_TYPE, text),
            Err(_) => {
                plain(StatusCode::INTERNAL_SERVER_ERROR, "defect: the metrics cannot be written\n".to_owned())
            }
        },
        Ok(None) => plain(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping\n".to_owned()),
        Err(_elapsed) => {
            let seconds = ANSWER_LIMIT.as_secs();
            plain(StatusCode::SERVICE_UNAVAILABLE, format!("the agent gave no answer within {seconds} s\n"))
        }
    }
}

/// Asks for the present figures. `None` if their owner does not answer any more.
async fn ask(scrapes: &mpsc::Sender<Scrape>) -> Option<Vec<Metric>> {
    let (sender, figures) = oneshot::channel();
    scrapes.send(Scrape(sender)).await.ok()?;
    figures.await.ok()
}

fn plain(status: StatusCode, text: String) -> Response<Full<Bytes>> {
    respond(status, PLAIN_TEXT, text)
}

fn respond(status: StatusCode, content_type: &'static str, text: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(text));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test(start_paused = true)]
    async fn an_owner_that_is_stuck_is_told_of_in_time() {
        let endpoint = Endpoint::open("127.0.0.1:0".parse().expect("an address")).expect("open");
        let mut scraper = TcpStream::connect(endpoint.address()).await.expect("connected");
        scraper.write_all(b"GET /metrics HTTP/1.1\r\nHost: h\r\n\r\n").await.expect("written");
        let mut answer = String::new();
        timeout(CONNECTION_LIMIT, scraper.read_to_string(&mut answer)).await.expect("in time").expect("read");
        assert!(answer.starts_with("HTTP/1.1 503 "), "{answer}");
        assert!(answer.ends_with("the agent gave no answer within 2 s\n"), "{answer}");
    }
}
