//! What a session reports.
//!
//! Owns: its events, and why it ends by itself. Must not know: transports, when to connect.

use std::time::SystemTime;

use bytes::Bytes;

use super::certificates::CertificateAnswer;
use super::delivery::Delivery;
use super::upstream::PublishError;
use crate::certificate::CertificateFacts;
use crate::provisioning::{Assignment, Enrolment};

/// What a session reports.
#[derive(Debug)]
pub(crate) enum Event {
    /// The hub has accepted the subscription. Messages may come before this event.
    Subscribed {
        /// The protocol and its carrier, as the configuration names them.
        transport: &'static str,
        /// When the token will be renewed; `None` if there is no key to make a new one.
        renewal: Option<SystemTime>,
        /// Until when the hub accepts the token; `None` with a certificate.
        expiry: Option<SystemTime>,
        /// The certificate that the device has signed in with.
        certificate: Option<CertificateFacts>,
        /// Whether the hub can be asked for the next one on this connection.
        issues: bool,
    },
    /// The hub refused a certificate that has never signed in since this process began. If there is an earlier pair,
    /// the session goes back to that. Reported once for each pair.
    CertificateRefused {
        /// The certificate.
        certificate: CertificateFacts,
        /// Whether there is an earlier pair.
        goes_back: bool,
        /// Why, in one sentence.
        reason: String,
    },
    /// The hub answers a request for a certificate: see
    /// [`Upstream::IssueCertificate`](super::Upstream::IssueCertificate).
    CertificateAnswer(CertificateAnswer),
    /// The token was renewed on the current connection.
    Renewed {
        /// As in [`Event::Subscribed`].
        renewal: Option<SystemTime>,
        /// As in [`Event::Subscribed`].
        expiry: Option<SystemTime>,
    },
    /// The result of a publish. Results of an ended connection are reported before its [`Event::Disconnected`] and
    /// before the next [`Event::Subscribed`].
    Published {
        /// The ticket given to [`Session::publish`](super::Session::publish).
        ticket: u64,
        /// The hub has it. For [`Upstream::ReadTwin`](super::Upstream::ReadTwin) the bytes are the twin, otherwise they
        /// are empty.
        result: Result<Bytes, PublishError>,
    },
    /// Desired properties have changed, perhaps more than once: read the twin. Changes that happen without a
    /// connection are not reported, so read the twin after each [`Event::Subscribed`], too.
    DesiredChanged,
    /// The hub has the completions of these marks: see [`Receipt::marked`](super::Receipt::marked). May be empty.
    Confirmed(Vec<u64>),
    /// A message or a call of a direct method arrived.
    Delivery(Delivery),
    /// The Device Provisioning Service has assigned a hub. If it is another one than before, the session waits for terms
    /// with it.
    Assigned {
        /// What was asked: the configuration may have another one by now.
        enrolment: Box<Enrolment>,
        /// What came of it.
        assignment: Box<Assignment>,
    },
    /// There is no connection; another attempt follows.
    Disconnected {
        /// Why, in one sentence.
        reason: String,
    },
    /// The session has ended by itself and sends no more events.
    Ended(SessionError),
}

/// Why a session ended by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SessionError {
    /// The hub refused the device, has never accepted it since the session began, and the session is
    /// [`Settings::alone`](super::Settings::alone). That is a mistake of the installation, which a person must see;
    /// retrying would hide it. Or a module of IoT Edge was deployed again, so this process can never sign in again. The
    /// sentence says more.
    #[error("{0}")]
    Refused(String),
    /// A defect in the session itself.
    #[error("the session ended unexpectedly ({0}): please report this")]
    Broken(String),
}
