//! The options of rumqttc for one connection.
//!
//! Owns: what a dial means for rumqttc. Must not know: packets, what the connection is for.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use rumqttc::{MqttOptions, TlsConfiguration, Transport};

use super::bridge::Bridge;
use super::hand_over::PACKET_LIMIT;
use crate::session::carrier::Carrier;
use crate::session::dial::Dial;

/// The options of one connection, and for a WebSocket the socket that carries it.
pub(super) fn options(dial: &Dial) -> (MqttOptions, Option<io::Result<Bridge>>) {
    let bridge = (dial.carrier == Carrier::WebSocket).then(Bridge::open);
    let (peer, transport) = match &bridge {
        Some(Ok(bridge)) => (bridge.path(), Transport::unix()),
        _ => {
            let tls = TlsConfiguration::Rustls(Arc::clone(&dial.tls));
            (dial.host.clone(), Transport::tls_with_config(tls))
        }
    };
    let mut options = MqttOptions::new(&dial.client_id, peer, dial.port);
    options
        .set_transport(transport)
        .set_credentials(&dial.user_name, dial.password.as_deref().unwrap_or_default())
        // MQTT has whole seconds. A dead network is noticed within two of these intervals.
        .set_keep_alive(Duration::from_secs(dial.keep_alive.as_secs()))
        .set_clean_session(dial.signs_in_only)
        .set_manual_acks(true)
        .set_max_packet_size(PACKET_LIMIT, PACKET_LIMIT);
    (options, bridge)
}
