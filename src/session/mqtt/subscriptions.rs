//! What an MQTT connection subscribes to, and the warnings if the hub grants less.
//!
//! Owns: the filters, their order. Pure. Must not know: packets.
//! Source: wire reference 1.4, 1.7.

use super::topics::{CERTIFICATE_ANSWERS, DESIRED_CHANGES, METHOD_CALLS, TWIN_ANSWERS};
use crate::session::failure::Fault;

/// All filters of the one SUBSCRIBE, the messages' first. A hub allows five at a time.
pub(super) struct Subscriptions {
    messages: String,
    others: Vec<OtherSubscription>,
}

/// What one subscription is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum OtherSubscription {
    TwinAnswers,
    Methods,
    Desired,
    CertificateAnswers,
}

impl OtherSubscription {
    fn filter(self) -> &'static str {
        match self {
            Self::TwinAnswers => TWIN_ANSWERS,
            Self::Methods => METHOD_CALLS,
            Self::Desired => DESIRED_CHANGES,
            Self::CertificateAnswers => CERTIFICATE_ANSWERS,
        }
    }

    /// What its refusal means for the device.
    fn refusal(self) -> &'static str {
        match self {
            Self::TwinAnswers => "the hub refused the twin: the agent can neither read it nor report there",
            Self::Methods => "the hub refused direct methods: none can be called here",
            Self::Desired => {
                "the hub refused to notify of desired properties: the agent sees changes only at the next \
                 sign-in"
            }
            Self::CertificateAnswers => {
                "the hub refused to issue certificates: the agent asks the provisioning service for them"
            }
        }
    }
}

impl Subscriptions {
    /// `messages` is the filter of the messages.
    pub(super) fn new(messages: String, others: impl IntoIterator<Item = OtherSubscription>) -> Self {
        Self { messages, others: others.into_iter().collect() }
    }

    /// The filters, and whether each one asks for QoS 1. The messages need it, and so do certificates, which the hub
    /// keeps for the next connection. Any other answer or call is of no use there, and its PUBACK would wait behind
    /// messages.
    pub(super) fn filters(&self) -> impl Iterator<Item = (&str, bool)> {
        let kept = |other: &OtherSubscription| *other == OtherSubscription::CertificateAnswers;
        let others = self.others.iter().map(move |other| (other.filter(), kept(other)));
        std::iter::once((self.messages.as_str(), true)).chain(others)
    }

    /// Which of the others were granted. `answers` has the granted QoS of the messages, then that of each other one, in
    /// the order of the filters. A missing answer counts as a refusal.
    ///
    /// # Errors
    /// When the messages were refused.
    pub(super) fn granted(
        &self,
        answers: &[Option<u8>],
        host: &str,
        device_id: &str,
    ) -> Result<Vec<OtherSubscription>, Fault> {
        let mut answers = answers.iter().copied();
        match answers.next().flatten() {
            Some(0) => {
                tracing::warn!(hub = host, device_id, "subscribed with QoS 0 only: messages may be lost");
            }
            Some(_) => {}
            None => return Err(Fault::SubscriptionRefused { filter: self.messages.clone() }),
        }
        let mut granted = Vec::new();
        for other in &self.others {
            match answers.next().flatten() {
                Some(_) => granted.push(*other),
                None => tracing::warn!(hub = host, device_id, "{}", other.refusal()),
            }
        }
        Ok(granted)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_messages_are_asked_for_first_and_nothing_else_is_a_fault() {
        let all = [
            OtherSubscription::TwinAnswers,
            OtherSubscription::Methods,
            OtherSubscription::Desired,
            OtherSubscription::CertificateAnswers,
        ];
        let asked = Subscriptions::new("devices/d/messages/devicebound/#".into(), all);
        let expected = [
            ("devices/d/messages/devicebound/#", true),
            ("$iothub/twin/res/#", false),
            ("$iothub/methods/POST/#", false),
            ("$iothub/twin/PATCH/properties/desired/#", false),
            ("$iothub/credentials/res/#", true),
        ];
        assert_eq!(asked.filters().collect::<Vec<_>>(), expected);
        let granted = |answers: &[Option<u8>]| asked.granted(answers, "hub", "d").ok();
        assert_eq!(granted(&[Some(1), None, Some(0), None]), Some(vec![OtherSubscription::Methods]));
        assert_eq!(
            granted(&[Some(0), Some(0)]),
            Some(vec![OtherSubscription::TwinAnswers]),
            "the rest is refused"
        );
        assert_eq!(granted(&[None, Some(0), Some(0), Some(0)]), None);
        assert_eq!(granted(&[]), None);
    }
}
