//! What connections are made with, until it is changed: the settings, and the TLS files that they name.
//!
//! Owns: reading these files, whether terms differ, where to dial, and whom a failure is about.
//! Must not know: packets, when to connect.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::certificate::CertificateFacts;
use crate::credentials::{DeviceAuth, DeviceIdentity, HostPort, Over, Proxy, Route, Transport};
use crate::provisioning::Enrolment;
use crate::tls::{self, ClientCertificate, TlsError};

use super::carrier::Carrier;
use super::failure::{Failure, Fault, Who};

/// MQTT over TLS. Source: wire reference 1.1.
const MQTT_PORT: u16 = 8883;
/// AMQP over TLS. Source: wire reference 2.1.
const AMQP_PORT: u16 = 5671;

/// The port of a transport, if the hub's name has none.
pub(crate) fn standard_port(transport: Transport) -> u16 {
    match transport {
        Transport::Mqtt => MQTT_PORT,
        Transport::Amqp => AMQP_PORT,
    }
}

/// Where the hub of a device comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum HubSource {
    /// The configuration names it.
    Configured,
    /// The Device Provisioning Service has assigned it, and is asked again when the hub refuses the device.
    Assigned(Enrolment),
    /// The Device Provisioning Service must be asked first. The identity says only who asks.
    Unassigned(Enrolment),
}

impl HubSource {
    pub(super) fn enrolment(&self) -> Option<&Enrolment> {
        match self {
            Self::Configured => None,
            Self::Assigned(enrolment) | Self::Unassigned(enrolment) => Some(enrolment),
        }
    }
}

/// Who signs in, and how.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The device or module, and its proof. A device gets C2D messages. A module gets the messages for its inputs,
    /// over MQTT only.
    pub(crate) identity: DeviceIdentity,
    /// Where the hub of this identity comes from.
    pub(crate) hub_source: HubSource,
    /// The protocol.
    pub(crate) transport: Transport,
    /// A private root, trusted in addition to the system's.
    pub(crate) ca_file: Option<PathBuf>,
    /// How long a token made from a key is valid. The session renews it at 80 % of that time.
    pub(crate) token_lifetime: Duration,
    /// How to get to the hub.
    pub(crate) route: Route,
    /// Where the time comes from.
    pub(crate) clock: fn() -> SystemTime,
    /// Whether to subscribe to the answers of the twin.
    pub(crate) twin: bool,
    /// Whether to subscribe to calls of direct methods.
    pub(crate) methods: bool,
    /// Whether to subscribe to changes of desired properties. The twin can then be read, too.
    pub(crate) desired: bool,
    /// Whether this is the only session, so that a refusal at the first sign-in ends it.
    pub(crate) alone: bool,
    /// For a device whose certificate the service issues.
    pub(crate) issuing: Issuing,
}

/// What a session needs where the service issues the device's certificate.
#[derive(Debug, Clone, Default)]
pub(crate) struct Issuing {
    /// Whether the identity signs in with a certificate that the service has issued. If it cannot be read, the earlier one
    /// signs in, or what the device enrolled with.
    pub(crate) is_issued: bool,
    /// Whether the hub may be asked for the next certificate: the session subscribes to its answers, and its user name
    /// has the version that knows them.
    pub(crate) at_hub: bool,
    /// A request for a certificate, in base64 of its DER. It goes along with a registration.
    pub(crate) csr: Option<String>,
    /// The pair to go back to, if the hub refuses the certificate of the identity. It has signed in before.
    pub(crate) earlier: Option<ClientCertificate>,
}

impl Settings {
    /// What signs in if the pair that was issued cannot be read; none if there is nothing else, or no such pair.
    fn instead(&mut self) -> Option<DeviceAuth> {
        let issuing = &mut self.issuing;
        if !std::mem::take(&mut issuing.is_issued) {
            return None;
        }
        if let Some(ClientCertificate { certificate, private_key }) = issuing.earlier.take() {
            issuing.is_issued = true;
            return Some(DeviceAuth::Certificate { certificate, private_key });
        }
        issuing.at_hub = false;
        self.hub_source.enrolment().map(|enrolment| (&enrolment.auth).into())
    }
}

/// The settings, and the content of their files.
#[derive(Debug)]
pub(crate) struct Terms {
    pub(super) settings: Settings,
    pair: LoadedPair,
    earlier: Option<LoadedPair>,
    stands_in: bool,
}

/// What TLS is made with. It stays as it was read, although the files change.
#[derive(Debug, Clone)]
pub(super) struct LoadedPair {
    pub(super) tls: Arc<rustls::ClientConfig>,
    /// The digest of the files.
    pub(super) fingerprint: Vec<u8>,
    /// The device's certificate, if it signs in with one.
    pub(super) certificate: Option<CertificateFacts>,
}

impl LoadedPair {
    fn read(ca_file: Option<&Path>, pair: Option<&ClientCertificate>) -> Result<Self, TlsError> {
        // Taken before the files are used: if a file is replaced in between, the next reload still sees it.
        let fingerprint = tls::fingerprint(ca_file, pair)?;
        let tls = tls::client_config(ca_file, pair)?;
        let chain = pair.map(|pair| tls::read_certificates(&pair.certificate)).transpose()?;
        let certificate = chain.and_then(|chain| CertificateFacts::read(chain.first()?));
        Ok(Self { tls, fingerprint, certificate })
    }
}

impl Terms {
    /// Reads the TLS files of the settings. No user wrote the files of a pair that the service has issued, so these are
    /// never an error: see [`Issuing::is_issued`].
    ///
    /// # Errors
    /// [`TlsError`] names the file at fault.
    pub(crate) fn read(mut settings: Settings) -> Result<Self, TlsError> {
        let mut stands_in = false;
        let pair = loop {
            let pair = client_certificate(&settings.identity.auth);
            match LoadedPair::read(settings.ca_file.as_deref(), pair.as_ref()) {
                Ok(pair) => break pair,
                Err(error) => {
                    let Some(auth) = settings.instead() else { return Err(error) };
                    tracing::error!(%error, "the certificate that was issued cannot be used: signing in without it");
                    (settings.identity.auth, stands_in) = (auth, true);
                }
            }
        };
        let ca_file = settings.ca_file.as_deref();
        // Without it there is nothing to go back to, which is no reason not to go on.
        let earlier =
            settings.issuing.earlier.as_ref().map(|earlier| LoadedPair::read(ca_file, Some(earlier)));
        let earlier = earlier.transpose().unwrap_or_else(|error| {
            tracing::warn!(%error, "the earlier certificate cannot be used");
            None
        });
        Ok(Self { settings, pair, earlier, stands_in })
    }

    /// Whether the pair that was issued could not be read, so that something else signs in.
    pub(crate) fn stands_in(&self) -> bool {
        self.stands_in
    }

    /// What the settings' files held.
    pub(super) fn pair(&self) -> &LoadedPair {
        &self.pair
    }

    /// What to go back to if the hub refuses the certificate of [`Self::pair`].
    pub(super) fn earlier(&self) -> Option<&LoadedPair> {
        self.earlier.as_ref()
    }

    /// The device's certificate, if it signs in with one.
    pub(crate) fn certificate(&self) -> Option<CertificateFacts> {
        self.pair.certificate
    }

    pub(super) fn differ(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.settings, &other.settings);
        self.pair.fingerprint != other.pair.fingerprint
            || !is_same(&ours.identity, &theirs.identity)
            || ours.issuing.at_hub != theirs.issuing.at_hub
            || ours.hub_source != theirs.hub_source
            || ours.transport != theirs.transport
            || ours.ca_file != theirs.ca_file
            || ours.token_lifetime != theirs.token_lifetime
            || ours.route != theirs.route
            || ours.twin != theirs.twin
            || ours.methods != theirs.methods
            || ours.desired != theirs.desired
    }

    /// Whether the session subscribes to more than messages.
    pub(super) fn asks_for_more(&self) -> bool {
        self.settings.twin || self.settings.methods || self.settings.desired
    }

    /// The carrier of the first attempt.
    pub(super) fn first_carrier(&self) -> Carrier {
        self.carrier(Carrier::Tls)
    }

    /// `wished`, if the settings leave the choice.
    pub(super) fn carrier(&self, wished: Carrier) -> Carrier {
        match self.settings.route.over {
            Over::Tls => Carrier::Tls,
            Over::WebSocket => Carrier::WebSocket,
            Over::Either => wished,
        }
    }

    /// What to try after `carrier` failed before the sign-in.
    pub(super) fn other_carrier(&self, carrier: Carrier) -> Carrier {
        self.carrier(match carrier {
            Carrier::Tls => Carrier::WebSocket,
            Carrier::WebSocket => Carrier::Tls,
        })
    }

    /// A port in the connection string is the one of the protocol over TLS.
    pub(super) fn port(&self, carrier: Carrier) -> u16 {
        let Settings { identity, route, transport, .. } = &self.settings;
        match carrier {
            Carrier::Tls => identity.dialled().port.unwrap_or(standard_port(*transport)),
            Carrier::WebSocket => route.https_port,
        }
    }

    /// The proxy on the way to the hub. Only WebSockets go through proxies.
    pub(super) fn proxy(&self, carrier: Carrier) -> Option<Proxy> {
        let Settings { identity, route, .. } = &self.settings;
        let proxy = route.proxies.on_the_way_to(&identity.dialled().name, self.port(carrier));
        proxy.filter(|_| carrier == Carrier::WebSocket).cloned()
    }

    pub(super) fn failure(&self, fault: Fault, carrier: Carrier) -> Failure {
        let identity = &self.settings.identity;
        let peer =
            HostPort { name: identity.dialled().name.clone(), port: Some(self.port(carrier)) }.to_string();
        let fault = match (fault, self.generation()) {
            (Fault::NotAuthorised { now }, Some(generation)) => {
                Fault::GenerationRefused { generation: generation.to_owned(), now }
            }
            (fault, _) => fault,
        };
        Failure { peer, who: Who::of(identity), fault }
    }

    /// Which deployment of a module this process is, if the workload API signs for it.
    pub(super) fn generation(&self) -> Option<&str> {
        match &self.settings.identity.auth {
            DeviceAuth::Workload(access) => Some(&access.generation_id),
            DeviceAuth::Key(_) | DeviceAuth::Token(_) | DeviceAuth::Certificate { .. } => None,
        }
    }
}

fn client_certificate(auth: &DeviceAuth) -> Option<ClientCertificate> {
    match auth {
        DeviceAuth::Certificate { certificate, private_key } => {
            let (certificate, private_key) = (certificate.clone(), private_key.clone());
            Some(ClientCertificate { certificate, private_key })
        }
        DeviceAuth::Key(_) | DeviceAuth::Token(_) | DeviceAuth::Workload(_) => None,
    }
}

/// Whether both identities are the same. Of a certificate only the content counts, not in which file it is.
fn is_same(one: &DeviceIdentity, other: &DeviceIdentity) -> bool {
    match (&one.auth, &other.auth) {
        (DeviceAuth::Certificate { .. }, auth @ DeviceAuth::Certificate { .. }) => {
            DeviceIdentity { auth: auth.clone(), ..one.clone() } == *other
        }
        _ => one == other,
    }
}
