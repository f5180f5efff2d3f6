//! A small HTTP server beside the hub's ports: one request for each connection, answered in JSON.
//!
//! Owns: the loop that accepts, the limit on requests, their time. Must not know: sockets' kinds, paths, who may ask.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::listener::ARRIVAL_TIMEOUT;

/// Status and body.
pub(super) type JsonAnswer = (StatusCode, Value);

/// Serves until `stop` is cancelled. `accept` gives a connection and what is known of its peer; `answer` gets the latter
/// with each request. Further requests than `most` at a time are dropped without an answer. `what` names a request in
/// the log.
pub(super) async fn serve<S, P, Accepting, Answering>(
    what: &'static str,
    most: usize,
    stop: CancellationToken,
    accept: impl Fn() -> Accepting,
    answer: impl Fn(P, Request<Incoming>) -> Answering + Clone + Send + 'static,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    P: Copy + Send + 'static,
    Accepting: Future<Output = io::Result<(S, P)>>,
    Answering: Future<Output = JsonAnswer> + Send + 'static,
{
    let mut requests = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            Some(_ended) = requests.join_next() => continue,
            accepted = accept() => accepted,
        };
        match accepted {
            Ok(_) if requests.len() >= most => tracing::warn!("dropped {what}: there are {most} already"),
            Ok((stream, peer)) => {
                let answer = answer.clone();
                requests.spawn(serve_one(what, stream, move |request| answer(peer, request)));
            }
            Err(error) => {
                tracing::warn!(%error, "could not accept {what}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve_one<S, Answering>(
    what: &'static str,
    stream: S,
    answer: impl Fn(Request<Incoming>) -> Answering + Send,
) where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    Answering: Future<Output = JsonAnswer> + Send + 'static,
{
    let service = service_fn(move |request| {
        let answering = answer(request);
        async move {
            let (status, body) = answering.await;
            let mut response = Response::new(Full::new(Bytes::from(body.to_string())));
            *response.status_mut() = status;
            response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
            Ok::<_, Infallible>(response)
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ARRIVAL_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(ARRIVAL_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "{what} ended early"),
        Err(_) => tracing::debug!("{what} took too long"),
    }
}
