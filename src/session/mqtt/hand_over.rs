//! Hands publishes to the MQTT client.
//!
//! Owns: what no packet can hold, and the status for it. Must not know: connections, answers.

use bytes::Bytes;
use rumqttc::{AsyncClient, QoS, valid_topic};

use super::topics;
use crate::message::Properties;
use crate::session::upstream::{PublishError, Upstream};

/// The largest packet, in both directions. A C2D message has at most 64 KiB. With rumqttc's own limit of 10 KiB, the
/// first larger message would cause endless reconnects.
pub(super) const PACKET_LIMIT: usize = 256 * 1024;
/// The longest topic that the protocol can carry.
const LONGEST_TOPIC: usize = u16::MAX as usize;
/// Bytes of a PUBLISH in addition to topic and body: header, two lengths, packet id.
const PUBLISH_OVERHEAD: usize = 9;
/// The status, as in HTTP, of a publish that is larger than a packet: the hub never sees it.
const TOO_LARGE: u16 = 413;
/// The status of a publish whose device id no topic can hold.
const BAD_REQUEST: u16 = 400;

/// Puts a publish into the client's channel.
pub(super) fn hand_over(
    client: &AsyncClient,
    telemetry: &impl Fn(&Properties) -> String,
    upstream: Upstream,
    request: u64,
) -> Result<(), PublishError> {
    let (topic, body) = match upstream {
        Upstream::Telemetry { properties, body } => (telemetry(&properties), body),
        Upstream::Reported { patch } => (topics::reported(request), patch),
        Upstream::ReadTwin => (topics::read_twin(request), Bytes::new()),
        Upstream::IssueCertificate { request, body } => (topics::issue_certificate(&request), body),
    };
    if topic.len() > LONGEST_TOPIC || topic.len() + body.len() + PUBLISH_OVERHEAD > PACKET_LIMIT {
        return Err(PublishError::Refused(TOO_LARGE));
    }
    if !valid_topic(&topic) {
        return Err(PublishError::Refused(BAD_REQUEST));
    }
    client.try_publish(topic, QoS::AtLeastOnce, false, body).map_err(|_full_or_gone| PublishError::Lost)
}
