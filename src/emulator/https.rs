//! The hub's port 443: one HTTPS connection of a back end or a device, or a WebSocket of one of them.
//!
//! Owns: the connection, its limits and its end. Must not know: accepting and TLS (`emulator::listener`), who may sign
//! in (`emulator::registry`), the service client.
//!
//! - `upgrade` turns a connection into a WebSocket, and hands it to `mqtt` or `amqp`.
//! - `routes` finds the handler of a request; a new route is one line there and a function in a file next to it.
//! - `call` is one request: who may make it, its arguments, its body. `reply` has the shapes of answers and the hub's
//!   error bodies.
//! - `spelling` keeps the names of headers as an answer spells them.
//! - `device` is what a device does; `twins`, `query`, `methods`, `jobs`, `events`, `feedback`, `purge`, `registry` and
//!   `statistics` are for back ends. `pages` cuts a long answer into pages. `unserved` refuses what only the real hub
//!   has.
//! - `provisioning` is the Device Provisioning Service, for devices and for back ends.
//! - `entra` is the token endpoint of Microsoft Entra's stand-in.
//! - `faults` sets and ends faults; `clock` moves the clock.
//! - `inputs` puts messages into inputs of modules.
//! - `page` is for people: its files, the `overview` that it shows, its form.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::BoxFuture;
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio_util::sync::CancellationToken;

use super::hubs::Hubs;
use super::listener::{ARRIVAL_TIMEOUT, Accepted};
use super::provisioning::Reception;
use super::registry::Thumbprint;
use super::tls::DeviceAuthority;

mod call;
mod clock;
mod device;
mod device_events;
mod entra;
mod events;
mod faults;
mod feedback;
mod inputs;
mod jobs;
mod lent;
mod metered;
mod methods;
mod overview;
mod page;
mod pages;
mod provisioning;
mod purge;
mod query;
mod registry;
mod reply;
mod routes;
mod spelling;
mod statistics;
mod twins;
mod unserved;
mod upgrade;

use call::HttpCall;
use reply::{Dropped, ReplyBody};
use spelling::SpelledNames;
use upgrade::Agreed;

/// Most bytes of a request's head, and of the buffer of one connection.
const MAX_HEAD: usize = 32 * 1024;

/// Most headers of a request; SDKs send about ten.
const MAX_HEADERS: usize = 64;

/// At this age the connection is closed after the current request. A client that neither asks nor reads must not use a
/// connection for ever.
const MAX_AGE: Duration = Duration::from_secs(10 * 60);

/// Time to finish the current answer when the emulator stops.
const CLOSING_TIME: Duration = Duration::from_millis(500);

/// The protocol to continue with after the answer is sent, if the answer was an upgrade.
type NextProtocol = Arc<Mutex<Option<Agreed>>>;

/// Serves one connection until it ends, gets too old, or `stop` is cancelled.
pub(super) async fn serve_connection(
    stream: Accepted,
    peer: SocketAddr,
    hubs: Hubs,
    authority: DeviceAuthority,
    provisioning: Reception,
    stop: CancellationToken,
) {
    let certificate = authority.peer_thumbprint(stream.get_ref().1);
    let reception = provisioning.of(stream.get_ref().1);
    let next = NextProtocol::default();
    let (own, own_next) = ((reception.clone(), hubs.clone()), Arc::clone(&next));
    let service = service_fn(move |request| {
        let (reception, hubs) = own.clone();
        answer(request, peer, certificate, reception, hubs, Arc::clone(&own_next))
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(ARRIVAL_TIMEOUT)
        .max_headers(MAX_HEADERS)
        .max_buf_size(MAX_HEAD)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = Box::pin(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => Some(ended),
        () = tokio::time::sleep(MAX_AGE) => {
            // The current request may be the call of a method, which can take long.
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                ended = connection.as_mut() => Some(ended),
                () = tokio::time::sleep(methods::LONGEST) => None,
                () = stop.cancelled() => None,
            }
        }
        () = stop.cancelled() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            connection.as_mut().graceful_shutdown();
            // If the time is over, dropping the connection cuts it.
            tokio::time::timeout(CLOSING_TIME, connection.as_mut()).await.unwrap_or(Ok(()))
        }
    };
    drop(connection);
    let agreed = next.lock().unwrap_or_else(PoisonError::into_inner).take();
    match (ended, agreed) {
        (Ok(()), Some(agreed)) => agreed.serve(certificate, reception, peer, hubs, stop).await,
        (Ok(()), None) => tracing::debug!(%peer, "ended an HTTPS connection"),
        (Err(error), _) => tracing::info!(%peer, %error, "lost an HTTPS connection"),
    }
}

/// Boxed, so that the compiler proves `Send` for this future alone and not for the whole connection.
fn answer(
    mut request: Request<Incoming>,
    peer: SocketAddr,
    certificate: Option<Thumbprint>,
    reception: Reception,
    hubs: Hubs,
    next: NextProtocol,
) -> BoxFuture<'static, Result<Response<ReplyBody>, Dropped>> {
    Box::pin(async move {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let mut reply = match upgrade::answer(&mut request) {
            Some((reply, agreed)) => {
                *next.lock().unwrap_or_else(PoisonError::into_inner) = agreed;
                reply
            }
            None => {
                let request = request.map(BodyExt::boxed_unsync);
                routes::answer(HttpCall::new(request, certificate, reception, peer, hubs)).await.into()
            }
        };
        if let Some(dropped) = reply.extensions().get::<Dropped>() {
            tracing::warn!(%peer, %method, path, "{dropped}");
            return Err(*dropped);
        }
        if let Some(names) = reply.extensions_mut().remove::<SpelledNames>() {
            reply.extensions_mut().extend(names.for_hyper().await);
        }
        tracing::debug!(%peer, %method, path, status = %reply.status(), "answered");
        Ok(reply)
    })
}
