//! Sentences for connections that could not be made or did not last.
//!
//! Owns: the sentences, and which failures mean that the hub knows this device and refuses it. Pure.
//! Must not know: rumqttc, retries.

use std::fmt;
use std::io;
use std::time::{Duration, SystemTime};

use crate::credentials::DeviceIdentity;
use crate::tls;

/// What failed, and with which peer. Its `Display` is one sentence that names the host and port.
#[derive(Debug)]
pub(crate) struct Failure {
    /// `host:port` as dialled.
    pub(super) peer: String,
    pub(super) who: Who,
    pub(super) fault: Fault,
}

/// Who signs in: "device pi-01", "module edge1/filter".
#[derive(Debug)]
pub(super) struct Who {
    pub(super) kind: &'static str,
    pub(super) id: String,
}

impl Who {
    pub(super) fn of(identity: &DeviceIdentity) -> Self {
        let kind = if identity.module_id.is_some() { "module" } else { "device" };
        Self { kind, id: identity.client_id() }
    }
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind, self.id)
    }
}

/// The kinds of failure.
#[derive(Debug)]
#[allow(dead_code)] // Only AMQP uses it, which needs the feature `full`.
pub(super) enum Fault {
    /// The clock shows an impossible time: dialling would end in "not authorised".
    ClockUnset { now: SystemTime },
    /// The ready-made token ended before it was used.
    TokenExpired { expiry: SystemTime, now: SystemTime },
    /// The host name has no address.
    Unresolved { reason: String },
    /// Nothing listens there.
    Refused,
    /// No route.
    Unreachable { reason: String },
    /// No answer within the limit, which runs from the name look-up to CONNACK.
    Unanswered { within: Duration },
    /// TLS failed; the sentence is that of [`tls::describe`].
    Tls { sentence: String },
    /// The peer refused this device's certificate in TLS; the sentence is that of [`tls::describe`].
    CertificateRefused { sentence: String },
    /// The peer's certificate leads to no trusted root; the sentence is that of [`tls::describe`].
    Untrusted { sentence: String },
    /// No token or no roots; the sentence is mostly that of `workload`.
    Workload { sentence: String },
    /// The workload API no longer signs for this process.
    Gone { sentence: String },
    /// CONNACK with code 4 or 5 for a token that the workload API has signed.
    GenerationRefused { generation: String, now: SystemTime },
    /// No WebSocket could be made, or nothing reached its server; the sentence is that of `websocket`.
    Way { sentence: String },
    /// CONNACK with code 4 or 5.
    NotAuthorised { now: SystemTime },
    /// CONNACK with code 3.
    Unavailable,
    /// CONNACK with code 1 or 2, or a packet that makes no sense here.
    Protocol { reason: String },
    /// The peer closed before CONNACK.
    ClosedBeforeSignIn,
    /// SUBACK with the failure code.
    SubscriptionRefused { filter: String },
    /// No SUBACK within the limit.
    SubscriptionUnanswered { within: Duration },
    /// A packet above the limit.
    TooLarge { limit: usize },
    /// The peer closed after CONNACK.
    Closed,
    /// The peer closed before it had answered everything that this device published.
    ClosedUnanswered { count: usize },
    /// The peer closed when it was asked for more than messages: the twin, or direct methods.
    ClosedAtTwin,
    /// The peer accepts publishes and does not acknowledge them.
    Unacknowledged { within: Duration },
    /// The peer closed soon after CONNACK, repeatedly.
    Displaced { times: u32 },
    /// The peer does not answer a ping, or does not read what is sent.
    Silent,
    /// Modules speak MQTT only.
    ModuleOverAmqp,
    /// The hub has no such device.
    UnknownDevice { said: String },
    /// Another connection of the device has taken the link.
    Stolen,
    /// The hub limits this device for now, after too many requests.
    Throttled { said: String },
    /// The hub answers, but does not work.
    Suspended { said: String },
    /// Any other condition with which the hub ended a link or the connection.
    HubSaid { condition: String, description: String },
    /// Any other failure of the socket.
    Network { reason: String },
}

impl Failure {
    /// Whether the cause is the credentials, not the way to the hub: retries alone will not help.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(
            self.fault,
            Fault::NotAuthorised { .. }
                | Fault::GenerationRefused { .. }
                | Fault::TokenExpired { .. }
                | Fault::UnknownDevice { .. }
        )
    }

    /// Whether this process can never sign in again, even after a repair.
    pub(super) fn is_final(&self) -> bool {
        matches!(self.fault, Fault::Gone { .. })
    }

    /// Whether the hub has seen the device's certificate and refused it, or whatever else it signs in with.
    pub(super) fn is_of_certificate(&self) -> bool {
        matches!(self.fault, Fault::CertificateRefused { .. } | Fault::NotAuthorised { .. })
    }

    /// Whether it failed before the peer was dialled.
    pub(super) fn is_before_dialling(&self) -> bool {
        matches!(self.fault, Fault::Workload { .. } | Fault::Gone { .. })
    }

    /// Whether the peer hung up after the sign-in and gave no reason.
    pub(super) fn is_hang_up(&self) -> bool {
        matches!(self.fault, Fault::Closed | Fault::ClosedUnanswered { .. } | Fault::ClosedAtTwin)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { peer, who, fault } = self;
        let Who { kind, id } = who;
        match fault {
            Fault::ClockUnset { now } => write!(
                f,
                "this machine's clock says {}: set it (NTP), because {peer} would refuse a {kind} whose \
                 clock is wrong",
                seconds(*now)
            ),
            Fault::TokenExpired { expiry, now } => write!(
                f,
                "the SAS token (SharedAccessSignature) of {who} expired at {}, and it is now {}: make \
                 a new one, or give the SharedAccessKey instead",
                seconds(*expiry),
                seconds(*now)
            ),
            Fault::Unresolved { reason } if *kind == "registration" => write!(
                f,
                "the host name of {peer} was not found ({reason}): check endpoint in [provisioning], and this machine's DNS \
                 and network"
            ),
            Fault::Unresolved { reason } => write!(
                f,
                "the host name of {peer} was not found ({reason}): check HostName or GatewayHostName, and this \
                 machine's DNS and network"
            ),
            Fault::Refused => write!(
                f,
                "{peer} refused the connection: nothing listens on that port; check host and port, or whether the \
                 hub (emulator, gateway) runs"
            ),
            Fault::Unreachable { reason } => {
                write!(f, "{peer} cannot be reached ({reason}): check this machine's network and routes")
            }
            Fault::Unanswered { within } => write!(
                f,
                "{peer} did not answer within {} s: check the network, and whether a firewall drops this port",
                within.as_secs()
            ),
            Fault::Untrusted { sentence } if *kind == "module" => write!(
                f,
                "no TLS with {peer}: {sentence}; a module trusts the roots in the trust bundle of its \
                 workload API"
            ),
            Fault::Tls { sentence }
            | Fault::CertificateRefused { sentence }
            | Fault::Untrusted { sentence } => {
                write!(f, "no TLS with {peer}: {sentence}")
            }
            Fault::Workload { sentence } | Fault::Gone { sentence } => f.write_str(sentence),
            Fault::Way { sentence } => write!(f, "no WebSocket to {peer}: {sentence}"),
            Fault::NotAuthorised { now } => write!(
                f,
                "the hub at {peer} refused {who}: the key (or certificate) is wrong, the {kind} does not \
                 exist or is disabled, or this machine's clock (now {}) is wrong",
                seconds(*now)
            ),
            Fault::GenerationRefused { generation, now } => write!(
                f,
                "the hub (or edgeHub) at {peer} refused {who} with a token that the workload API has signed: \
                 the module was removed or redeployed (this is generation {generation}), or this machine's \
                 clock (now {}) is wrong",
                seconds(*now)
            ),
            Fault::Unavailable => write!(
                f,
                "the hub at {peer} is unavailable at the moment (CONNACK 3: overloaded or throttling)"
            ),
            Fault::Protocol { reason } => {
                write!(f, "{peer} does not behave like an IoT Hub ({reason}): check host and port")
            }
            Fault::ClosedBeforeSignIn => write!(
                f,
                "{peer} closed the connection before it answered the sign-in of {who}: check that the \
                 host is an IoT Hub (or gateway), and the {kind}'s certificate where it has one"
            ),
            Fault::SubscriptionRefused { filter } => write!(
                f,
                "{peer} refused the subscription to {filter}: {who} may not receive there; check the \
                 {kind} id, or the broker's access rules"
            ),
            Fault::SubscriptionUnanswered { within } => {
                write!(f, "{peer} did not answer the subscription within {} s", within.as_secs())
            }
            Fault::TooLarge { limit } => write!(
                f,
                "{peer} sent a packet above the limit of {} KiB, which no C2D message reaches",
                limit / 1024
            ),
            Fault::Closed => write!(f, "{peer} closed the connection"),
            Fault::ClosedUnanswered { count } => write!(
                f,
                "{peer} closed the connection with {count} unanswered publishes of {who}: if that \
                 repeats, it may not send D2C messages or patch its twin there (see [report] in the configuration), \
                 or another program signs in with the same {kind} id"
            ),
            Fault::ClosedAtTwin => write!(
                f,
                "{peer} closed the connection before it answered the subscriptions of {who}: if that \
                 repeats, the hub may have no twins or direct methods (basic tier): remove \"twin\" from the reports in \
                 the configuration; or another program signs in with the same {kind} id"
            ),
            Fault::Unacknowledged { within } => write!(
                f,
                "{peer} did not acknowledge a publish of {who} within {} s: the hub may be throttling \
                 D2C messages",
                within.as_secs()
            ),
            Fault::Displaced { times } => write!(
                f,
                "{peer} closed the connection soon after the sign-in, {times} times in a row: another program \
                 probably signs in with the same {kind} id {id}, and the hub keeps only the newest; stop it \
                 or give it its own {kind}"
            ),
            Fault::Silent => {
                write!(f, "{peer} does not answer any more: the network may be down")
            }
            Fault::ModuleOverAmqp => write!(
                f,
                "{who} cannot speak AMQP with {peer}: this program speaks MQTT as a module; set transport to \
                 \"mqtt\""
            ),
            Fault::UnknownDevice { said } => write!(
                f,
                "the hub at {peer} has no {who} ({said}): check the {kind} id, or create the {kind} there"
            ),
            Fault::Stolen => write!(
                f,
                "another program has signed in at {peer} with the same {kind} id {id}, and the hub keeps only the \
                 newest; stop it or give it its own {kind}"
            ),
            Fault::Throttled { said } => write!(
                f,
                "the hub at {peer} is throttling {who} or its quota is used up ({said}): it is tried again \
                 later"
            ),
            Fault::Suspended { said } => write!(
                f,
                "the hub at {peer} is suspended or gone ({said}): check it, and its subscription, in the portal"
            ),
            Fault::HubSaid { condition, description } => {
                write!(f, "the hub at {peer} ended the connection of {who} ({condition}: {description})")
            }
            Fault::Network { reason } => write!(f, "the connection to {peer} failed ({reason})"),
        }
    }
}

/// Sorts a failure to make a WebSocket: by the error of the socket below it, or else by its sentence.
pub(super) fn of_websocket(error: Result<io::Error, String>, host: &str) -> Fault {
    match error.map(|error| from_io(&error, host)) {
        Ok(Fault::Closed) => Fault::ClosedBeforeSignIn,
        Ok(fault) => fault,
        Err(sentence) => Fault::Way { sentence },
    }
}

/// Sorts a failure of TLS.
pub(super) fn of_tls(cause: &rustls::Error, host: &str) -> Fault {
    let sentence = tls::describe(cause, host);
    match cause {
        cause if tls::is_untrusted(cause) => Fault::Untrusted { sentence },
        cause if tls::refuses_client(cause) => Fault::CertificateRefused { sentence },
        _ => Fault::Tls { sentence },
    }
}

/// Sorts a failure of the socket or of TLS on it. `host` is the dialled host name.
pub(super) fn from_io(error: &io::Error, host: &str) -> Fault {
    use io::ErrorKind::*;
    if let Some(cause) = tls::tls_cause(error) {
        return of_tls(cause, host);
    }
    let reason = error.to_string();
    // The standard library has no error kind for a failed look-up, only these words.
    if reason.contains("failed to lookup address") || reason.contains("could not resolve") {
        return Fault::Unresolved { reason };
    }
    // rumqttc reports a peer that hangs up within a packet with these words only.
    if reason == "bytes remaining on stream" {
        return Fault::Closed;
    }
    match error.kind() {
        ConnectionRefused => Fault::Refused,
        HostUnreachable | NetworkUnreachable | NetworkDown | AddrNotAvailable => {
            Fault::Unreachable { reason }
        }
        TimedOut => Fault::Silent,
        ConnectionReset | ConnectionAborted | UnexpectedEof | BrokenPipe => Fault::Closed,
        _ => Fault::Network { reason },
    }
}

/// A time for a sentence, as 2026-11-29T18:00:00Z.
pub(super) fn seconds(time: SystemTime) -> String {
    // RFC 3339 has no times before 1970 or after 9999: such a time is printed as the nearest possible one.
    let text = crate::message::format_time(time);
    format!("{}Z", text.get(..19).unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sentence(fault: Fault) -> String {
        Failure { peer: "hub.example:8883".into(), who: Who { kind: "device", id: "dev1".into() }, fault }
            .to_string()
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_clock_at_1970_is_named_as_such() {
        let text = sentence(Fault::ClockUnset { now: at(17) });
        assert!(text.contains("this machine's clock says 1970-01-01T00:00:17Z: set it (NTP)"), "{text}");
    }

    #[test]
    fn a_refusal_names_the_device_the_peer_and_the_clock() {
        let text = sentence(Fault::NotAuthorised { now: at(1_800_000_000) });
        assert!(text.contains("hub.example:8883 refused device dev1"), "{text}");
        assert!(text.contains("clock (now 2027-01-15T08:00:00Z)"), "{text}");
    }

    #[test]
    fn an_expired_token_says_when_it_ended() {
        let text = sentence(Fault::TokenExpired { expiry: at(1_700_000_000), now: at(1_800_000_000) });
        assert!(text.contains("expired at 2023-11-14T22:13:20Z"), "{text}");
    }

    #[test]
    fn socket_errors_are_told_apart() {
        let fault = |kind: io::ErrorKind| from_io(&io::Error::from(kind), "hub.example");
        assert!(matches!(fault(io::ErrorKind::ConnectionRefused), Fault::Refused));
        assert!(matches!(fault(io::ErrorKind::NetworkUnreachable), Fault::Unreachable { .. }));
        assert!(matches!(fault(io::ErrorKind::ConnectionReset), Fault::Closed));
        assert!(matches!(fault(io::ErrorKind::TimedOut), Fault::Silent));
        let lookup = io::Error::other("failed to lookup address information: Name or service not known");
        assert!(matches!(from_io(&lookup, "hub.example"), Fault::Unresolved { .. }));
    }

    #[test]
    fn a_certificate_of_an_unknown_root_is_told_as_tls_does() {
        let cause = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let error = io::Error::new(io::ErrorKind::InvalidData, cause);
        let Fault::Untrusted { sentence: text } = from_io(&error, "hub.example") else {
            panic!("a TLS fault")
        };
        assert!(text.contains("C2D_CA_FILE"), "{text}");
    }
}
