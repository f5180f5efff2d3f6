//! A device's requests for a certificate, and the answers that are sent to it.
//!
//! Owns: their topics. Must not know: what a request says, which one is active.
//! Source: wire reference 12.6.

use uuid::Uuid;

use super::codec::{Publish, QoS};
use crate::emulator::hub::{CertificateAnswer, CertificateFault, ConnectionId, Subscription, is_request_id};
use crate::emulator::shared::SharedHub;

/// The id of the request that a topic stands for. None if it is none, or if the id has another form, so that no
/// answer could find its way.
pub(super) fn request(topic: &str) -> Option<&str> {
    let query = topic.strip_prefix("$iothub/credentials/POST/issueCertificate/")?;
    let mut pairs = query.strip_prefix('?').unwrap_or(query).split('&');
    let id = pairs.find_map(|pair| pair.strip_prefix("$rid=").or(pair.strip_prefix("%24rid=")));
    id.filter(|id| is_request_id(id))
}

/// Whether a fault has the hub refuse the subscription to its answers. It keeps the connection then.
pub(super) fn are_refused(hub: &SharedHub, device_id: &str, subscription: Option<Subscription>) -> bool {
    subscription == Some(Subscription::CertificateAnswers)
        && hub.with(|hub, _| hub.certificate_fault(device_id)) == Some(CertificateFault::Unsupported)
}

/// Takes a request of a device, which says whether it has signed in with a certificate.
pub(super) fn take(hub: &SharedHub, device: (&str, bool), request: &str, body: &[u8]) {
    let (device_id, _) = device;
    let tracking = Uuid::new_v4().to_string();
    // Certificates are made by the real time, as those of the server are.
    let (issuer, real) = (hub.issuer(), hub.clock().0);
    hub.with(|hub, now| {
        let fault = hub.certificate_fault(device_id);
        let sign = |csr: &str, id: &str| match issuer {
            Some(issuer) => issuer.sign(csr, id, real, fault),
            None => Err("this hub has no authority".to_owned()),
        };
        hub.request_certificate(device, request, body, (&sign, &tracking), now);
    });
}

/// The next answer for this connection, and the id of its request if the device must acknowledge it. At QoS 0 the
/// device has it when it is sent.
pub(super) fn next(
    hub: &SharedHub,
    device_id: &str,
    connection: ConnectionId,
) -> Option<(Publish, Option<String>)> {
    let answer = hub.with(|hub, now| hub.next_certificate_answer(device_id, connection, now))?;
    let CertificateAnswer { request, status, body, is_last } = answer;
    tracing::debug!(device_id, request, status, "answered a request for a certificate");
    let mut publish =
        Publish::new(format!("$iothub/credentials/res/{status}/?$rid={request}"), QoS::AtMostOnce, body);
    let granted = hub.with(|hub, _| {
        let granted = hub.granted(device_id, connection, Subscription::CertificateAnswers);
        if is_last && granted == Some(0) {
            hub.certificate_taken(device_id, &request);
        }
        granted
    });
    let is_awaited = is_last && granted != Some(0);
    if is_awaited {
        publish.qos = QoS::AtLeastOnce;
    }
    Some((publish, is_awaited.then_some(request)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_by_their_topic_and_need_an_id() {
        assert_eq!(request("$iothub/credentials/POST/issueCertificate/?$rid=abc-1"), Some("abc-1"));
        assert_eq!(request("$iothub/credentials/POST/issueCertificate/?x=1&%24rid=abcd"), Some("abcd"));
        for bad in ["", "?$rid=", "?$rid=abc", "?$rid=a/cd"] {
            let topic = format!("$iothub/credentials/POST/issueCertificate/{bad}");
            assert_eq!(request(&topic), None, "{topic}");
        }
        assert_eq!(request("$iothub/credentials/POST/other/?$rid=abcd"), None);
    }
}
