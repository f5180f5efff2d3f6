//! MQTT connections to the hub as a device, or to a gateway as a module.
//!
//! Owns: the request channel of rumqttc. In `session`, only this file and the files of its folder name rumqttc. One
//! event loop serves exactly one connection and is dropped with it, so no packet id and no request outlives its
//! connection. Must not know: reconnecting, how long tokens live, what is done with messages.

use std::sync::Arc;

use bytes::Bytes;
use rumqttc::{AsyncClient, Publish, QoS};
use tokio::sync::watch;

use super::arrivals::Arrivals;
use super::calls::{CallAnswer, Calls};
use super::connection::{Connection, Reading, Shared, SignInProgress};
use super::dial::{ANSWER_LIMIT, Dial};
use super::publish::{InFlight, Publisher, UNDER_WAY};
use crate::message::Properties;

use hand_over::hand_over;
use link::Link;
use options::options;
use reader::MqttReader;
use wire::Wire;

mod bridge;
pub(super) mod enrol;
mod fault;
mod hand_over;
mod link;
mod options;
mod reader;
mod release;
mod subscriptions;
mod topics;
mod wire;

/// Requests in rumqttc's channel: at most one SUBSCRIBE, one PUBACK and one answer that wake the task, the publishes,
/// and one DISCONNECT.
const REQUESTS: usize = 4 + UNDER_WAY;

/// Prepares a connection. Nothing is sent before the task runs, so no message can come before its handler is in place.
pub(super) fn prepare(dial: Dial, arrivals: Arrivals, publisher: &Arc<Publisher>) -> (Connection, Reading) {
    let (options, bridge) = options(&dial);
    let (client, mut event_loop) = AsyncClient::new(options, REQUESTS);
    event_loop.network_options.set_connection_timeout(ANSWER_LIMIT.as_secs());
    event_loop.network_options.set_tcp_nodelay(true);

    let acknowledging = client.clone();
    let puback = move |packet_id| {
        let mut publish = Publish::from_bytes("", QoS::AtLeastOnce, Bytes::new());
        publish.pkid = packet_id;
        acknowledging.try_ack(&publish).is_ok()
    };
    let link = Arc::new(Link::new(Box::new(puback), Arc::clone(&arrivals.confirmations)));
    let answering = client.clone();
    let answer = move |CallAnswer { id, status, payload }: &CallAnswer| {
        let topic = topics::method_answer(*status, id);
        answering.try_publish(topic, QoS::AtMostOnce, false, payload.as_ref()).is_ok()
    };
    let calls = Arc::new(Calls::new(Box::new(answer)));
    let publishing = client.clone();
    let (device_id, module_id) = (dial.device_id.clone(), dial.module_id.clone());
    let telemetry =
        move |properties: &Properties| topics::telemetry(&device_id, module_id.as_deref(), properties);
    let publish = move |upstream, request| hand_over(&publishing, &telemetry, upstream, request);
    let in_flight = Arc::new(InFlight::new(Box::new(publish), Arc::clone(publisher)));

    let shared = Shared { gates: [link.clone(), calls.clone()], in_flight: Arc::clone(&in_flight) };
    let (report, progress) = watch::channel(SignInProgress::default());
    let leaving = client.clone();
    let wire = Wire::new(event_loop, client, bridge, dial, link, calls, in_flight);
    let reader = MqttReader { shared: shared.clone(), wire, arrivals, progress: report };
    let hang_up = Box::new(move || leaving.try_disconnect().is_ok());
    (Connection { progress, shared, hang_up, renew: None }, Box::pin(reader.run()))
}
