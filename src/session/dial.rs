//! How one connection is made: where, as whom, with which proof.
//!
//! Owns: what the terms and a proof mean for one connection. Must not know: packets, frames, when to connect.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::credentials::Proxy;

use super::carrier::Carrier;
use super::proof::Proof;
use super::terms::{Settings, Terms};

/// The limit from the name look-up to the answer to the sign-in, and for the peer to take a write.
pub(super) const ANSWER_LIMIT: Duration = Duration::from_secs(30);

/// Where to connect, and as whom.
pub(super) struct Dial {
    /// The number of this connection in the session.
    pub(super) number: u64,
    /// DNS name or address; also the name that the certificate must have.
    pub(super) host: String,
    /// The hub itself, also if a gateway is dialled in its place.
    #[allow(dead_code)] // Only AMQP uses it, which needs the feature `full`.
    pub(super) hub: String,
    pub(super) port: u16,
    pub(super) carrier: Carrier,
    /// The protocol and its carrier, as the configuration names them.
    pub(super) transport: &'static str,
    /// From the route.
    pub(super) keep_alive: Duration,
    /// For a WebSocket only.
    pub(super) proxy: Option<Proxy>,
    /// The device whose topics these are.
    pub(super) device_id: String,
    /// The module on the device, if a module signs in.
    pub(super) module_id: Option<String>,
    pub(super) client_id: String,
    /// As in [`Delivery`](super::delivery::Delivery).
    pub(super) origin: Arc<str>,
    pub(super) user_name: String,
    pub(super) password: Option<String>,
    pub(super) tls: Arc<rustls::ClientConfig>,
    pub(super) clock: fn() -> SystemTime,
    /// Whether to subscribe to the answers of the twin.
    pub(super) twin: bool,
    /// Whether to subscribe to calls of direct methods.
    pub(super) methods: bool,
    /// Whether to subscribe to changes of desired properties, and to the answers of the twin.
    pub(super) desired: bool,
    /// Whether to subscribe to answers to requests for a certificate.
    pub(super) certificates: bool,
    /// Whether to sign in, subscribe to nothing, and sign out. The peer must forget an earlier session, so that it
    /// sends nothing of that session's subscriptions.
    pub(super) signs_in_only: bool,
}

impl Dial {
    /// Connection `number` of a session.
    pub(super) fn new(terms: &Terms, proof: Proof, number: u64, carrier: Carrier) -> Self {
        let Proof { sign_in, tls } = proof;
        let Settings { identity, route, transport, clock, twin, methods, desired, issuing, .. } =
            &terms.settings;
        Self {
            number,
            host: identity.dialled().name.clone(),
            hub: identity.hub.name.clone(),
            port: terms.port(carrier),
            carrier,
            transport: carrier.name(*transport),
            keep_alive: route.keep_alive,
            proxy: terms.proxy(carrier),
            device_id: identity.device_id.clone(),
            module_id: identity.module_id.clone(),
            client_id: identity.client_id(),
            origin: identity.origin().into(),
            user_name: sign_in.user_name,
            password: sign_in.password,
            tls,
            clock: *clock,
            twin: *twin,
            methods: *methods,
            desired: *desired,
            certificates: issuing.at_hub,
            signs_in_only: false,
        }
    }
}
