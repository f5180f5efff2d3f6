//! Registers a device at the Device Provisioning Service, and learns its hub.
//!
//! Owns: the credentials and the ways of one registration, and the limit of its time. Must not know: retries, files, what
//! is done with the assignment.
//!
//! DPS and the hub are never connected at the same time, so one call is one connection that ends before the hub is
//! dialled. Over MQTT, and over HTTPS only where neither MQTT nor a WebSocket gets through.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use rustls::ClientConfig;
use tokio::time::error::Elapsed;
use tokio::time::{Instant, timeout_at};

use super::carrier::Carrier;
use super::dial::Dial;
use super::failure::{self, Failure, Fault, Who};
use super::questions::Answered;
use super::signin::EARLIEST_PLAUSIBLE;
use super::terms::{Settings, Terms, standard_port};
use super::transports;
use crate::credentials::{HostPort, Over, Route, Transport};
use crate::provisioning::{Assignment, Enrolment, EnrolmentAuth, RegistrationRefusal};
use crate::tls::{self, ClientCertificate, TlsError};

/// How long a token for DPS is valid: as in Microsoft's Python SDK. Source: wire reference 12.2.
const TOKEN_LIFETIME: Duration = Duration::from_secs(60 * 60);
/// Longer than the longest wait that DPS may ask for, so that a wait needs no pings. Source: wire reference 12.4.
const KEEP_ALIVE: Duration = Duration::from_secs(10 * 60);
/// Between two attempts: after an answer that makes no sense, and after a refusal, which a person must mend.
const UNUSABLE_WAIT: Duration = Duration::from_secs(10);
const REFUSED_WAIT: Duration = Duration::from_secs(60);

/// Who registers, and how.
#[derive(Debug, Clone)]
pub(crate) struct EnrolSettings {
    /// The device, and its proof.
    pub(crate) enrolment: Enrolment,
    /// A private root, trusted in addition to the system's.
    pub(crate) ca_file: Option<PathBuf>,
    /// How to get to the service.
    pub(crate) route: Route,
    /// Where the time comes from.
    pub(crate) clock: fn() -> SystemTime,
}

/// Why there is no assignment.
#[derive(Debug, thiserror::Error)]
pub(crate) enum EnrolError {
    /// A certificate, key or CA file cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The service cannot be reached, or the connection failed. Trying again later may help.
    #[error("{0}")]
    Unreached(Failure),
    /// The service answered.
    #[error("the provisioning service at {peer} was asked for a hub: {refusal}{}", clock(.refusal, *.now))]
    Refused {
        /// `host:port` as dialled.
        peer: String,
        /// What it said.
        refusal: RegistrationRefusal,
        /// The time here, because a wrong clock leads to a refusal.
        now: SystemTime,
    },
}

/// The clock of this machine, for a refusal that it may explain.
fn clock(refusal: &RegistrationRefusal, now: SystemTime) -> String {
    match refusal {
        RegistrationRefusal::Unauthorized { .. } => format!(" (it says {})", failure::seconds(now)),
        _ => String::new(),
    }
}

impl EnrolError {
    /// Whether the cause is this device's enrolment or its credentials: retries alone will not help.
    pub(crate) fn is_refusal(&self) -> bool {
        matches!(self, Self::Refused { refusal, .. } if !refusal.is_temporary())
    }

    /// Whether the same request is likely to be good in a moment.
    #[allow(dead_code)] // Only the doctor uses it, which needs the feature `full`.
    pub(crate) fn is_busy(&self) -> bool {
        matches!(self, Self::Refused { refusal: RegistrationRefusal::Busy { .. }, .. })
    }

    /// How long to leave the service alone at least, if this says anything about that.
    pub(crate) fn wait(&self) -> Option<Duration> {
        let Self::Refused { refusal, .. } = self else { return None };
        Some(match refusal {
            RegistrationRefusal::Busy { wait, .. } => *wait,
            RegistrationRefusal::Unusable(_) => UNUSABLE_WAIT,
            _ => REFUSED_WAIT,
        })
    }
}

/// Registers once, by each way that the route allows until one gets to the service. `csr` is a certificate request, in
/// base64 of its DER. `limit` is the time for all of it. A drop cuts the connection.
///
/// # Errors
/// [`EnrolError`] in one sentence.
pub(crate) async fn enrol(
    settings: &EnrolSettings,
    csr: Option<&str>,
    limit: Duration,
) -> Result<Assignment, EnrolError> {
    let until = Instant::now() + limit;
    let carriers: &[Carrier] = match settings.route.over {
        Over::Tls => &[Carrier::Tls],
        Over::WebSocket => &[Carrier::WebSocket],
        Over::Either => &[Carrier::Tls, Carrier::WebSocket],
    };
    let now = (settings.clock)();
    let body = Bytes::from(settings.enrolment.body(csr));
    let mut unreached = None;
    for carrier in carriers {
        let asked = transports::register(
            settings.dial(*carrier, now).await?,
            &settings.enrolment,
            body.clone(),
            until,
        );
        match settings.ended(timeout_at(until, asked).await, limit, *carrier, now) {
            Err(EnrolError::Unreached(failure)) => unreached = Some(failure),
            ended => return ended,
        }
    }
    // Some proxies let HTTPS through and no WebSocket. The first error counts, because the hub has no other way.
    if carriers.contains(&Carrier::WebSocket) {
        let dial = settings.dial(Carrier::WebSocket, now).await?;
        let asked = transports::register_over_https(dial, &settings.enrolment, body, until);
        if let Some(asked) = timeout_at(until, asked).await.unwrap_or_default() {
            match settings.ended(Ok(asked), limit, Carrier::WebSocket, now) {
                Err(EnrolError::Unreached(failure)) => {
                    tracing::debug!(%failure, "the provisioning service was not reached over HTTPS");
                }
                ended => return ended,
            }
        }
    }
    Err(unreached.map_or_else(
        || settings.unreached(Fault::Unanswered { within: limit }, Carrier::Tls),
        EnrolError::Unreached,
    ))
}

impl EnrolSettings {
    /// The enrolment of a session; `None` if the configuration names its hub.
    pub(super) fn of(terms: &Terms) -> Option<Self> {
        let Settings { hub_source, ca_file, route, transport, clock, .. } = &terms.settings;
        let (enrolment, route) = (hub_source.enrolment()?.clone(), route.clone());
        Some(Self::new(enrolment, ca_file.clone(), route, *transport, *clock))
    }

    /// `route` and `transport` are those of the hub. A registration goes over MQTT. So where the hub speaks AMQP, the port of
    /// MQTT may be closed, and a WebSocket is tried, too.
    pub(crate) fn new(
        enrolment: Enrolment,
        ca_file: Option<PathBuf>,
        mut route: Route,
        transport: Transport,
        clock: fn() -> SystemTime,
    ) -> Self {
        if (transport, route.over) == (Transport::Amqp, Over::Tls) {
            route.over = Over::Either;
        }
        Self { enrolment, ca_file, route, clock }
    }

    /// What an attempt over `carrier` has come to.
    fn ended(
        &self,
        ended: Result<Result<Answered, Fault>, Elapsed>,
        limit: Duration,
        carrier: Carrier,
        now: SystemTime,
    ) -> Result<Assignment, EnrolError> {
        let refusal = match ended {
            Ok(Ok(Ok(assignment))) => return Ok(assignment),
            Ok(Ok(Err(refusal))) => refusal,
            Ok(Err(Fault::NotAuthorised { .. })) => {
                let registration_id = self.enrolment.registration_id.clone();
                RegistrationRefusal::Unauthorized { registration_id, said: "not authorised".to_owned() }
            }
            Ok(Err(fault)) => return Err(self.unreached(fault, carrier)),
            Err(_) => return Err(self.unreached(Fault::Unanswered { within: limit }, carrier)),
        };
        Err(EnrolError::Refused { peer: self.peer(carrier), refusal, now })
    }

    async fn dial(&self, carrier: Carrier, now: SystemTime) -> Result<Dial, EnrolError> {
        let Self { enrolment, route, clock, .. } = self;
        if now < SystemTime::UNIX_EPOCH + EARLIEST_PLAUSIBLE {
            return Err(self.unreached(Fault::ClockUnset { now }, carrier));
        }
        let port = self.port(carrier);
        let proxy = route.proxies.on_the_way_to(&enrolment.endpoint.name, port);
        Ok(Dial {
            number: 1,
            host: enrolment.endpoint.name.clone(),
            hub: enrolment.endpoint.name.clone(),
            port,
            carrier,
            transport: carrier.name(Transport::Mqtt),
            keep_alive: KEEP_ALIVE,
            proxy: proxy.filter(|_| carrier == Carrier::WebSocket).cloned(),
            device_id: enrolment.registration_id.clone(),
            module_id: None,
            client_id: enrolment.registration_id.clone(),
            origin: "".into(),
            user_name: enrolment.user_name(),
            password: enrolment.token(now + TOKEN_LIFETIME).map(|token| token.expose().to_owned()),
            tls: self.tls().await?,
            clock: *clock,
            twin: false,
            methods: false,
            desired: false,
            certificates: false,
            // The service keeps no session.
            signs_in_only: true,
        })
    }

    /// Reads the TLS files in a thread of its own, because their disk may be slow.
    async fn tls(&self) -> Result<Arc<ClientConfig>, TlsError> {
        let certificate = match self.enrolment.auth.clone() {
            EnrolmentAuth::Key(_) => None,
            EnrolmentAuth::Certificate { certificate, private_key } => {
                Some(ClientCertificate { certificate, private_key })
            }
        };
        let ca_file = self.ca_file.clone();
        let read = move || tls::client_config(ca_file.as_deref(), certificate.as_ref());
        match tokio::task::spawn_blocking(read).await {
            Ok(read) => read,
            Err(error) => unreachable!("a panic ends the process, and nothing aborts this task: {error}"),
        }
    }

    fn port(&self, carrier: Carrier) -> u16 {
        match carrier {
            Carrier::Tls => self.enrolment.endpoint.port.unwrap_or(standard_port(Transport::Mqtt)),
            Carrier::WebSocket => self.route.https_port,
        }
    }

    fn peer(&self, carrier: Carrier) -> String {
        let name = self.enrolment.endpoint.name.clone();
        HostPort { name, port: Some(self.port(carrier)) }.to_string()
    }

    fn unreached(&self, fault: Fault, carrier: Carrier) -> EnrolError {
        let who = Who { kind: "registration", id: self.enrolment.registration_id.clone() };
        EnrolError::Unreached(Failure { peer: self.peer(carrier), who, fault })
    }
}
