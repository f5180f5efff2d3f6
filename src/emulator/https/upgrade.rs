//! From HTTPS to a WebSocket: what a request to upgrade is answered, and what is served then.
//!
//! Owns: the paths, the choice of the subprotocol, refusals in words. Must not know: MQTT, AMQP, WebSocket frames.
//! Used by: `https`.
//!
//! Source: wire reference 1.1, 2.1 and lines 1 and 12 of its checklist. Unverified, so choices of this emulator: both paths
//! take both subprotocols, the query is ignored, and no Authorization header is asked for: the protocol inside signs in.

use std::net::SocketAddr;

use hyper::header::{CONNECTION, HeaderMap, HeaderName, HeaderValue, UPGRADE};
use hyper::upgrade::{OnUpgrade, on};
use hyper::{Method, Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use percent_encoding::percent_decode_str;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::handshake::server::create_response_with_body;
use tokio_util::sync::CancellationToken;

use super::super::listener::ARRIVAL_TIMEOUT;
use super::super::registry::Thumbprint;
use super::super::shared::SharedHub;
use super::super::{amqp, mqtt};
use super::reply::{self, ReplyBody};
use crate::message::excerpt;
use crate::websocket::{AMQP, ByteStream, HUB_PATH, MQTT};

/// The path that uAMQP dials.
const SERVICE_BUS_PATH: &str = "/$servicebus/websocket";

const PROTOCOL: HeaderName = HeaderName::from_static("sec-websocket-protocol");

/// What the bytes of a WebSocket are.
#[derive(Debug, Clone, Copy)]
enum Subprotocol {
    Mqtt,
    Amqp,
}

/// A connection that turns into a WebSocket when the answer is out.
pub(super) struct Agreed {
    subprotocol: Subprotocol,
    upgrade: OnUpgrade,
}

/// Answers a request that is for a WebSocket; `None` for any other. With 101 there is an [`Agreed`].
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
            let sentence = format!("this is no WebSocket handshake: {error}");
            return refused(StatusCode::BAD_REQUEST, "ArgumentInvalid", &sentence);
        }
    };
    accepted.headers_mut().insert(PROTOCOL, HeaderValue::from_static(name));
    Some((accepted, Some(Agreed { subprotocol, upgrade: on(request) })))
}

/// The first offer of the client that is served here.
fn choose(headers: &HeaderMap) -> Option<(Subprotocol, &'static str)> {
    offers(headers).find_map(|offer| match offer {
        MQTT => Some((Subprotocol::Mqtt, MQTT)),
        AMQP => Some((Subprotocol::Amqp, AMQP)),
        _ => None,
    })
}

fn offers(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(PROTOCOL).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',').map(str::trim)).filter(|offer| !offer.is_empty())
}

impl Agreed {
    /// Serves the WebSocket until it ends, or `stop`.
    pub(super) async fn serve(
        self,
        certificate: Option<Thumbprint>,
        peer: SocketAddr,
        hub: SharedHub,
        stop: CancellationToken,
    ) {
        // The answer is out or the connection is gone by now; the limit is for what nobody thought of.
        let stream = match timeout(ARRIVAL_TIMEOUT, self.upgrade).await {
            Ok(Ok(upgraded)) => ByteStream::accepted(TokioIo::new(upgraded)).await,
            Ok(Err(error)) => return tracing::info!(%peer, %error, "a WebSocket did not come about"),
            Err(_elapsed) => return tracing::warn!(%peer, "a WebSocket did not come about in time"),
        };
        tracing::debug!(%peer, subprotocol = ?self.subprotocol, "opened a WebSocket");
        match self.subprotocol {
            Subprotocol::Mqtt => mqtt::serve_connection(stream, certificate, peer, hub, stop).await,
            Subprotocol::Amqp => amqp::serve_connection(stream, certificate, peer, hub, stop).await,
        }
    }
}
