//! From HTTPS to a WebSocket: the answer to an upgrade request, and which protocol is served then.
//!
//! Owns: the paths, the choice of the subprotocol, and the sentences of refusals. Must not know: MQTT, AMQP, WebSocket
//! frames.
//!
//! Source: wire reference 1.1, 2.1 and 8 (lines 1 and 12). Not verified, so these are choices: both paths accept both
//! subprotocols, the query is ignored, and no Authorization header is required, because the client signs in with the
//! inner protocol. The C SDK offers `MQTT`, the others offer `mqtt`: Azure/azure-iot-sdk-c,
//! `iothubtransportmqtt_websockets.c`.

use std::net::SocketAddr;
use std::time::Duration;

use hyper::header::{CONNECTION, HOST, HeaderMap, HeaderName, HeaderValue, ORIGIN, UPGRADE};
use hyper::upgrade::{OnUpgrade, on};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_util::sync::CancellationToken;

use super::super::hubs::Hubs;
use super::super::listener::ARRIVAL_TIMEOUT;
use super::super::provisioning::Reception;
use super::super::registry::Thumbprint;
use super::super::{amqp, mqtt};
use super::lent::lend;
use super::reply::{self, ReplyBody};
use crate::message::excerpt;
use crate::websocket::{AMQP, ByteStream, Farewell, HUB_PATH, MQTT};

/// The path that uAMQP uses.
const SERVICE_BUS_PATH: &str = "/$servicebus/websocket";

/// Time for the inner protocol to release its stream, and then for the peer to close. It is shorter when the emulator
/// stops.
const CLOSING_TIME: Duration = Duration::from_secs(2);
const STOPPING_TIME: Duration = Duration::from_millis(200);

const PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");

/// The protocol inside a WebSocket.
#[derive(Debug, Clone, Copy)]
enum Subprotocol {
    Mqtt,
    Amqp,
}

/// A connection that becomes a WebSocket after the answer is sent.
pub(super) struct Agreed {
    subprotocol: Subprotocol,
    upgrade: OnUpgrade,
}

/// Answers a request for a WebSocket; `None` for any other request. An answer 101 comes with an [`Agreed`].
pub(super) fn answer(request: &mut Request<Incoming>) -> Option<(Response<ReplyBody>, Option<Agreed>)> {
    let path = percent_decode_str(request.uri().path()).decode_utf8_lossy().into_owned();
    let path = path.strip_suffix('/').unwrap_or(&path);
    let is_here = path == HUB_PATH || path == SERVICE_BUS_PATH;
    let asks = request.headers().get(UPGRADE).is_some();
    if !is_here && !asks {
        return None;
    }
    let refused = |status, code, sentence: &str| Some((reply::error(status, code, sentence).into(), None));
    if !is_here {
        let sentence = format!("WebSockets are at {HUB_PATH} and {SERVICE_BUS_PATH} only");
        return refused(StatusCode::NOT_FOUND, "ResourceNotFound", &sentence);
    }
    if !asks {
        let sentence = "this path is for WebSockets: send an Upgrade header";
        let (status, code) = (StatusCode::UPGRADE_REQUIRED, "ArgumentInvalid");
        let answer = reply::error(status, code, sentence);
        let answer = answer.with(UPGRADE, HeaderValue::from_static("websocket"));
        return Some((answer.with(CONNECTION, HeaderValue::from_static("upgrade")).into(), None));
    }
    if !comes_from_here(request.headers()) {
        let sentence =
            "a page of another origin asks for this WebSocket: only this hub's own page and programs may";
        return refused(StatusCode::FORBIDDEN, "IotHubUnauthorizedAccess", sentence);
    }
    let Some((subprotocol, name)) = choose(request.headers()) else {
        let offered = offers(request.headers()).collect::<Vec<_>>().join(", ");
        let offered =
            if offered.is_empty() { "none".to_owned() } else { format!("\"{}\"", excerpt(&offered)) };
        let sentence = format!(
            "the subprotocols here are {MQTT} and {AMQP}, and Sec-WebSocket-Protocol offers {offered}"
        );
        return refused(StatusCode::BAD_REQUEST, "ArgumentInvalid", &sentence);
    };
    let accepted = create_response_with_body(request, ReplyBody::default);
    let mut accepted = match accepted {
        Ok(accepted) if request.method() == Method::GET => accepted,
        Ok(_) => return refused(StatusCode::BAD_REQUEST, "ArgumentInvalid", "a WebSocket begins with GET"),
        Err(error) => {
            let sentence = format!("this is not a WebSocket handshake: {error}");
            return refused(StatusCode::BAD_REQUEST, "ArgumentInvalid", &sentence);
        }
    };
    accepted.headers_mut().insert(PROTOCOL, name);
    Some((accepted, Some(Agreed { subprotocol, upgrade: on(request) })))
}

/// Whether no page of another origin asks: a browser lets any page open a WebSocket to this machine, and says which one it is.
/// Programs name no origin, or this hub as paho does.
fn comes_from_here(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(ORIGIN) else { return true };
    let without_port = |text: &str| text.strip_suffix(":443").unwrap_or(text).to_ascii_lowercase();
    let host = headers.get(HOST).and_then(|host| host.to_str().ok()).map(without_port);
    let origin = origin.to_str().ok().and_then(|origin| origin.strip_prefix("https://")).map(without_port);
    origin.is_some() && origin == host
}

/// The client's first offer that is served here, as the client spells it: clients look for their own spelling.
fn choose(headers: &HeaderMap) -> Option<(Subprotocol, HeaderValue)> {
    let known = [(MQTT, Subprotocol::Mqtt), (AMQP, Subprotocol::Amqp)];
    offers(headers).find_map(|offer| {
        let (_, subprotocol) = known.iter().find(|(name, _)| name.eq_ignore_ascii_case(offer))?;
        Some((*subprotocol, HeaderValue::from_str(offer).ok()?))
    })
}

fn offers(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',').map(str::trim)).filter(|offer| !offer.is_empty())
}

impl Agreed {
    /// Serves the WebSocket until it ends or `stop` is cancelled.
    pub(super) async fn serve(
        self,
        certificate: Option<Thumbprint>,
        reception: Reception,
        peer: SocketAddr,
        hubs: Hubs,
        stop: CancellationToken,
    ) {
        // At this point the answer is sent or the connection has ended. The limit is only a safeguard.
        let stream = match timeout(ARRIVAL_TIMEOUT, self.upgrade).await {
            Ok(Ok(upgraded)) => ByteStream::accepted(TokioIo::new(upgraded)).await,
            Ok(Err(error)) => return tracing::info!(%peer, %error, "a WebSocket could not be opened"),
            Err(_elapsed) => return tracing::warn!(%peer, "a WebSocket was not opened in time"),
        };
        tracing::debug!(%peer, subprotocol = ?self.subprotocol, "opened a WebSocket");
        serve(stream, self.subprotocol, certificate, reception, peer, hubs, stop).await;
    }
}

/// Serves the protocol inside a WebSocket, and then closes the WebSocket within a limited time, whatever the end was.
async fn serve<S>(
    stream: ByteStream<S>,
    subprotocol: Subprotocol,
    certificate: Option<Thumbprint>,
    reception: Reception,
    peer: SocketAddr,
    hubs: Hubs,
    stop: CancellationToken,
) where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let (lent, back) = lend(stream);
    let mut farewell = match subprotocol {
        Subprotocol::Mqtt => {
            mqtt::serve_connection(lent, certificate, reception, peer, hubs, stop.clone()).await;
            Farewell::Done
        }
        Subprotocol::Amqp => {
            let ended = amqp::serve_connection(lent, certificate, reception, peer, hubs, stop.clone()).await;
            match ended {
                amqp::AmqpEnd::Done => Farewell::Done,
                amqp::AmqpEnd::Breach(reason) => Farewell::Breach(reason),
                amqp::AmqpEnd::Refused(reason) => Farewell::Refused(reason),
            }
        }
    };
    let mut patience = CLOSING_TIME;
    if stop.is_cancelled() {
        (farewell, patience) = (Farewell::GoingAway, STOPPING_TIME);
    }
    match timeout(patience, back).await {
        Ok(Ok(stream)) => stream.close(farewell, patience).await,
        Ok(Err(_)) | Err(_) => tracing::warn!(%peer, "a WebSocket could not be closed cleanly"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::SystemTime;

    use futures_util::{SinkExt as _, StreamExt as _};
    use tokio::io::DuplexStream;
    use tokio_tungstenite::WebSocketStream;
    use tokio_tungstenite::tungstenite::Message;
    use tokio_tungstenite::tungstenite::protocol::Role;

    use crate::emulator::hub::Hub;
    use crate::emulator::registry::Registry;
    use crate::emulator::shared::SharedHub;

    /// Serves AMQP while `client` runs.
    async fn with<T>(
        stop: &CancellationToken,
        client: impl AsyncFnOnce(WebSocketStream<DuplexStream>) -> T,
    ) -> T {
        let (near, far) = tokio::io::duplex(4 * 1024);
        let hub = SharedHub::new(Hub::new(Registry::new("h", Vec::new()), Duration::ZERO), || {
            SystemTime::UNIX_EPOCH
        });
        let stream = ByteStream::accepted(near).await;
        let peer = SocketAddr::from(([127, 0, 0, 1], 1));
        let (reception, hubs) = (Reception::closed(), Hubs::of(&hub, &[]));
        let served = serve(stream, Subprotocol::Amqp, None, reception, peer, hubs, stop.clone());
        let client = client(WebSocketStream::from_raw_socket(far, Role::Client, None).await);
        tokio::join!(served, client).1
    }

    /// Skips binary messages. Returns the code and reason of the close frame, and whether the connection ends after it.
    async fn closed(mut socket: WebSocketStream<DuplexStream>) -> (u16, String, bool) {
        loop {
            match socket.next().await {
                Some(Ok(Message::Close(Some(frame)))) => {
                    let ended = socket.next().await.is_none();
                    return (frame.code.into(), frame.reason.to_string(), ended);
                }
                Some(Ok(_)) => {}
                other => panic!("no close frame: {other:?}"),
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_says_nothing_is_closed_with_the_reason_when_its_time_is_up() {
        let begun = tokio::time::Instant::now();
        let seen = with(&CancellationToken::new(), closed).await;
        assert_eq!(seen, (1002, "no AMQP connection was opened in time".to_owned(), true));
        assert!(begun.elapsed() < ARRIVAL_TIMEOUT + 3 * CLOSING_TIME);
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_neither_reads_nor_closes_is_cut() {
        let begun = tokio::time::Instant::now();
        let silent = async |mut socket: WebSocketStream<DuplexStream>| {
            socket.send(Message::binary(&b"GET / HTTP/1.1\r\n"[..])).await.expect("sent");
            socket
        };
        let _socket = with(&CancellationToken::new(), silent).await;
        assert!(begun.elapsed() <= 3 * CLOSING_TIME, "{:?}", begun.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn an_emulator_that_stops_goes_away() {
        let stop = CancellationToken::new();
        stop.cancel();
        assert_eq!(with(&stop, closed).await, (1001, String::new(), true));
    }
}
