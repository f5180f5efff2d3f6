//! Devices ask the hub for certificates, and get them when they have subscribed to the answers.
//!
//! Owns: whose request it is, and that a certificate waits until the device has it. Must not know: signing, topics.
//!
//! Source: wire reference 12.6, which was not seen at a real hub. Choices: a certificate is issued at once, and its
//! request is active until the device has acknowledged it. Requests end with the process.

use std::time::SystemTime;

use serde_json::Value;

use super::certificate_requests::{CertificateAnswer, CertificateRefusal, Sign};
use super::faults::CertificateFault;
use super::session::{ConnectionId, Subscription};
use super::state::Hub;

impl Hub {
    /// Takes a request of a device, which says whether it has signed in with a certificate: only such a device gets one.
    /// The answers follow by [`Hub::next_certificate_answer`]. `tracking` names the request in answers.
    pub fn request_certificate(
        &mut self,
        (device_id, by_certificate): (&str, bool),
        request: &str,
        body: &[u8],
        (sign, tracking): (Sign<'_>, &str),
        now: SystemTime,
    ) {
        let fault = self.certificate_fault(device_id);
        let Some(state) = self.devices.passing_mut(device_id) else { return };
        let answer = |status, body: Value| CertificateAnswer {
            request: request.to_owned(),
            status,
            body: body.to_string(),
            is_last: false,
        };
        let taken = if by_certificate {
            state.certificates.take(device_id, request, body, (sign, tracking), now, fault)
        } else {
            Err(CertificateRefusal::of_token())
        };
        let answer = match taken {
            Ok(accepted) => answer(202, accepted),
            Err(refusal) => {
                let CertificateRefusal(code, message, _) = &refusal;
                tracing::warn!(device_id, request, code, "refused a request for a certificate: {message}");
                answer(u16::try_from(code / 1000).unwrap_or(400), refusal.body(tracking, now))
            }
        };
        if state.session.granted(Subscription::CertificateAnswers).is_none() {
            tracing::warn!(
                device_id,
                "a request for a certificate gets no answer: the device is not subscribed"
            );
        } else {
            state.certificates.push(answer);
        }
        self.wake(device_id);
    }

    /// The next answer for this connection, if it has subscribed to answers.
    pub fn next_certificate_answer(
        &mut self,
        device_id: &str,
        connection: ConnectionId,
        now: SystemTime,
    ) -> Option<CertificateAnswer> {
        self.granted(device_id, connection, Subscription::CertificateAnswers)?;
        let is_held = self.certificate_fault(device_id) == Some(CertificateFault::Hold);
        self.devices.passing_mut(device_id)?.certificates.next(connection, is_held, now)
    }

    /// The device has the last answer to this request.
    pub fn certificate_taken(&mut self, device_id: &str, request: &str) {
        if let Some(state) = self.devices.passing_mut(device_id) {
            state.certificates.active.take_if(|active| active.id == request);
        }
    }

    /// What goes wrong with certificates of this device, if a fault says so. For a device that is only about to be made,
    /// the faults of all devices count.
    pub fn certificate_fault(&self, device_id: &str) -> Option<CertificateFault> {
        self.devices.get(device_id).map_or(&self.faults_of_all, |state| &state.faults).certificate()
    }
}

#[cfg(test)]
mod tests {
    use super::super::certificate_requests::is_request_id;
    use super::super::tests::{NOW, connect, hub};
    use super::super::{Fault, FaultName};
    use super::*;
    use serde_json::json;

    const RID: &str = "rid-1";

    fn signed(csr: &str, id: &str) -> Result<Vec<String>, String> {
        if csr == "weak" {
            Err("the key is too weak".to_owned())
        } else {
            Ok(vec![format!("{csr} for {id}")])
        }
    }

    fn ask(hub: &mut Hub, request: &str, body: &str) {
        hub.request_certificate(("dev1", true), request, body.as_bytes(), (&signed, "t-1"), NOW);
    }

    fn next(hub: &mut Hub, connection: ConnectionId) -> Option<(u16, Value)> {
        let answer = hub.next_certificate_answer("dev1", connection, NOW)?;
        Some((answer.status, serde_json::from_str(&answer.body).expect("JSON")))
    }

    fn there(hub: &mut Hub) -> ConnectionId {
        let connection = connect(hub, false);
        assert!(hub.subscribe("dev1", connection, Subscription::CertificateAnswers, 1));
        connection
    }

    #[test]
    fn a_request_is_accepted_and_its_certificate_waits_until_the_device_has_it() {
        let mut hub = hub();
        let first = there(&mut hub);
        ask(&mut hub, RID, r#"{"id":"dev1","csr":"MIIB"}"#);
        let (status, body) = next(&mut hub, first).expect("an answer");
        assert_eq!((status, body["correlationId"].as_str()), (202, Some("t-1")));
        let issued = (200, json!({ "correlationId": "t-1", "certificates": ["MIIB for dev1"] }));
        assert_eq!(next(&mut hub, first), Some(issued.clone()));
        assert_eq!(next(&mut hub, first), None, "once for each connection");
        // It was not acknowledged, so the next connection of the session gets it.
        let second = connect(&mut hub, false);
        assert_eq!(next(&mut hub, second), Some(issued));
        hub.certificate_taken("dev1", RID);
        let third = connect(&mut hub, false);
        assert_eq!(next(&mut hub, third), None);
    }

    #[test]
    fn without_a_subscription_only_the_certificate_waits() {
        let mut hub = hub();
        let connection = connect(&mut hub, false);
        ask(&mut hub, RID, r#"{"id":"dev1","csr":"MIIB"}"#);
        ask(&mut hub, "rid-2", "no JSON");
        assert_eq!(next(&mut hub, connection), None);
        assert!(hub.subscribe("dev1", connection, Subscription::CertificateAnswers, 1));
        assert_eq!(next(&mut hub, connection).map(|(status, _)| status), Some(200));
    }

    #[test]
    fn each_error_has_its_code() {
        let mut hub = hub();
        let connection = there(&mut hub);
        let code = |hub: &mut Hub, body: &str| {
            ask(hub, RID, body);
            next(hub, connection)
                .map(|(status, body)| (status, body["errorCode"].as_u64().unwrap_or_default()))
        };
        let long = format!(r#"{{"id":"dev1","csr":"{}"}}"#, "A".repeat(8 * 1024 + 1));
        for body in [
            "[]",
            "{}",
            r#"{"id":"dev1"}"#,
            r#"{"id":"other","csr":"A"}"#,
            r#"{"id":"dev1","csr":""}"#,
            &long,
            r#"{"id":"dev1","csr":"A","more":1}"#,
            r#"{"id":"dev1","csr":"A","replace":"-x"}"#,
        ] {
            assert_eq!(code(&mut hub, body), Some((400, 400_004)), "{body}");
        }
        assert_eq!(code(&mut hub, ""), Some((400, 400_006)));
        assert_eq!(code(&mut hub, r#"{"id":"dev1","csr":"A","replace":"none-1"}"#), Some((412, 412_001)));
        assert_eq!(code(&mut hub, r#"{"id":"dev1","csr":"A"}"#), Some((202, 0)));
        ask(&mut hub, "rid-2", r#"{"id":"dev1","csr":"B"}"#);
        let (status, body) = next(&mut hub, connection).expect("an answer");
        assert_eq!(
            (status, &body["errorCode"], &body["info"]["requestId"]),
            (409, &409_004.into(), &RID.into())
        );
        assert_eq!(next(&mut hub, connection).map(|(status, _)| status), Some(200), "the first one");
        for replace in [RID, "*"] {
            ask(&mut hub, RID, &format!(r#"{{"id":"dev1","csr":"weak","replace":"{replace}"}}"#));
            assert_eq!(next(&mut hub, connection).map(|(status, _)| status), Some(202), "{replace}");
        }
        let (status, body) = next(&mut hub, connection).expect("an answer");
        assert_eq!((status, &body["info"]["credentialMessage"]), (400, &"the key is too weak".into()));
    }

    #[test]
    fn a_device_that_signed_in_with_a_token_gets_no_certificate() {
        let mut hub = hub();
        let connection = there(&mut hub);
        let body = br#"{"id":"dev1","csr":"A"}"#;
        hub.request_certificate(("dev1", false), RID, body, (&signed, "t-1"), NOW);
        let (status, body) = next(&mut hub, connection).expect("an answer");
        assert_eq!((status, &body["errorCode"]), (403, &403_004.into()));
        assert_eq!(next(&mut hub, connection), None, "nothing was signed");
    }

    #[test]
    fn a_request_ends_at_the_time_that_its_answer_says() {
        let mut hub = hub();
        let connection = there(&mut hub);
        assert!(hub.set_fault("dev1", Fault::new(FaultName::Certificate, "hold").expect("a fault")));
        ask(&mut hub, RID, r#"{"id":"dev1","csr":"A"}"#);
        let (_, accepted) = next(&mut hub, connection).expect("an answer");
        let expires = crate::message::parse_time(accepted["operationExpires"].as_str().expect("a time"));
        let expires = expires.expect("a time");
        assert!(hub.clear_faults("dev1", None));
        assert!(hub.next_certificate_answer("dev1", connection, expires).is_none());
        // It is not active any more, so there is nothing to replace.
        let again = |hub: &mut Hub, body: &str| {
            hub.request_certificate(("dev1", true), "rid-2", body.as_bytes(), (&signed, "t-2"), expires);
            hub.next_certificate_answer("dev1", connection, expires).map(|answer| answer.status)
        };
        assert_eq!(again(&mut hub, r#"{"id":"dev1","csr":"A","replace":"rid-1"}"#), Some(412));
        assert_eq!(again(&mut hub, r#"{"id":"dev1","csr":"A"}"#), Some(202));
    }

    #[test]
    fn faults_refuse_and_hold_certificates() {
        let mut hub = hub();
        let connection = there(&mut hub);
        let fault = |value| Fault::new(FaultName::Certificate, value).expect("a fault");
        assert!(hub.set_fault("dev1", fault("refuse")));
        ask(&mut hub, RID, r#"{"id":"dev1","csr":"A"}"#);
        assert_eq!(
            [202, 400].map(|status| next(&mut hub, connection).map(|(own, _)| own == status)),
            [Some(true); 2]
        );
        hub.certificate_taken("dev1", RID);
        assert!(hub.set_fault("dev1", fault("hold")));
        ask(&mut hub, RID, r#"{"id":"dev1","csr":"A"}"#);
        assert_eq!(next(&mut hub, connection).map(|(status, _)| status), Some(202));
        assert_eq!(next(&mut hub, connection), None, "it is held");
        assert!(hub.clear_faults("dev1", None));
        assert_eq!(next(&mut hub, connection).map(|(status, _)| status), Some(200));
    }

    #[test]
    fn ids_of_requests_have_their_form() {
        for id in ["abcd", "0-0-0", &"x".repeat(36)] {
            assert!(is_request_id(id), "{id}");
        }
        for id in ["", "abc", "-abc", "abc-", "a b c", &"x".repeat(37)] {
            assert!(!is_request_id(id), "{id}");
        }
    }
}
