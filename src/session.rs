//! The session: makes this device's connection to the hub, and makes it again when it fails.
//!
//! Owns: signing in over MQTT or AMQP, over TLS or a WebSocket (`bridge.rs` does that for MQTT), receiving and
//! settling C2D messages or, as a module, messages for its inputs, receiving and answering calls of direct methods,
//! publishing D2C messages and patches of the twin, renewing tokens, reconnecting.
//! Must not know: rules, actions, what is done with a message.
//!
//! Two tasks work behind a [`Session`]. The keeper (`keeper.rs`) makes one connection after the other. For each one, a
//! reader (`mqtt.rs`) alone owns the MQTT event loop, and hands messages on through one bounded channel. A message's
//! [`Receipt`] completes it through the state that it shares with the reader (`link.rs`). That state keeps PUBACKs in
//! arrival order (`release.rs`) and ignores receipts of connections that have gone. A publish goes to the current
//! connection, and is answered there or lost with it (`outbox.rs`). A call is answered on the connection that brought
//! it, or not at all (`calls.rs`). Over AMQP (`amqp.rs`) each message is settled by itself (`settlements.rs`), and
//! tokens are renewed without a new connection; `connection.rs` hides this from the keeper. `proof.rs` gets what a
//! connection is made with; for a module of IoT Edge it asks the workload API.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::credentials::{DeviceAuth, DeviceIdentity, Route, Transport};
use crate::message::Properties;
use crate::tls::{self, ClientCertificate, TlsError};

#[cfg(feature = "amqp")]
mod amqp;
#[cfg(not(feature = "amqp"))]
#[path = "session/no_amqp.rs"]
mod amqp;
mod arrivals;
mod backoff;
mod bridge;
mod calls;
mod confirmations;
mod connection;
mod delivery;
mod failure;
mod keeper;
mod link;
mod mqtt;
mod outbox;
#[allow(dead_code)] // The doctor is a feature.
mod probe;
mod proof;
mod release;
#[allow(dead_code)] // AMQP is a feature.
mod settlements;
mod signin;
mod subscriptions;
mod topics;

#[cfg(test)]
mod tests;

use arrivals::Arrived;
use confirmations::Confirmations;
pub(crate) use delivery::{Delivery, Receipt, Settlement};
use outbox::Publisher;
#[allow(unused_imports)] // The doctor is a feature.
pub(crate) use probe::{SignInError, probe};
#[allow(unused_imports)] // The doctor is a feature.
pub(crate) use signin::EARLIEST_PLAUSIBLE;

/// MQTT over TLS. Source: wire reference 1.1.
const MQTT_PORT: u16 = 8883;
/// AMQP over TLS. Source: wire reference 2.1.
const AMQP_PORT: u16 = 5671;
/// Changes of the connection that the agent has not seen yet. The agent looks at them first.
const EVENTS: usize = 16;
/// How long the end of the session may take: the keeper's drain and hang-up.
const CLOSE_LIMIT: Duration = Duration::from_millis(1100);

/// The port of a transport, if the hub's name has none.
pub(crate) fn standard_port(transport: Transport) -> u16 {
    match transport {
        Transport::Mqtt => MQTT_PORT,
        Transport::Amqp => AMQP_PORT,
    }
}

/// Who signs in, and how.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    /// The device or module, and its proof. A device gets C2D messages. A module gets the messages for its inputs,
    /// over MQTT only.
    pub(crate) identity: DeviceIdentity,
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
}

/// What a session reports.
#[derive(Debug)]
pub(crate) enum Event {
    /// The hub has accepted the subscription. Messages may come before this event.
    Subscribed {
        /// The protocol and its carrier, as the configuration names them.
        transport: &'static str,
        /// When the token will be renewed; none without a key to make a new one.
        renewal: Option<SystemTime>,
        /// Until when the hub accepts the token; none with a certificate.
        expiry: Option<SystemTime>,
    },
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
        /// The ticket given to [`Session::publish`].
        ticket: u64,
        /// The hub has it. For [`Upstream::ReadTwin`] the bytes are the twin, otherwise they are empty.
        result: Result<Bytes, PublishError>,
    },
    /// Desired properties have changed, perhaps more than once: read the twin. Changes that happen without a
    /// connection are not reported, so read the twin after each [`Event::Subscribed`], too.
    DesiredChanged,
    /// The hub has the completions of these marks: see [`Receipt::marked`]. May be empty.
    Confirmed(Vec<u64>),
    /// A message or a call of a direct method arrived.
    Delivery(Delivery),
    /// There is no connection; another attempt follows.
    Disconnected {
        /// Why, in one sentence.
        reason: String,
    },
    /// The session has ended by itself and sends no more events.
    Ended(SessionError),
}

/// What a device sends to the hub.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Upstream {
    /// A D2C message. Properties are system and application properties together, in the order in which they are sent.
    Telemetry { properties: Properties, body: Bytes },
    /// A patch of the twin's reported properties: a JSON object.
    Reported { patch: Bytes },
    /// A request for the whole twin: JSON with `desired` and `reported`, each with its `$version`.
    ReadTwin,
}

/// Why something did not reach the hub.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PublishError {
    /// It was not sent (no connection, or eight already unanswered), the connection ended before the answer, or no
    /// answer came within 30 seconds. The hub may have it. Publish it again later: at the next [`Event::Subscribed`],
    /// or after a pause.
    #[error("the connection was lost before the hub answered, or the hub did not answer")]
    Lost,
    /// The hub is busy (429 or 5xx): try again later.
    #[error("the hub is busy (status {0})")]
    Busy(u16),
    /// The hub will never accept it: 413 if it is too large for one packet, 403 if there is no twin.
    #[error("the hub refused it with status {0}")]
    Refused(u16),
}

/// Why a session ended by itself.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum SessionError {
    /// The hub refused the device, has never accepted it since the session began, and the session is
    /// [`Settings::alone`]. That is a mistake of the installation, which a person must see; retrying would hide it. Or
    /// a module of IoT Edge was deployed again, so this process can never sign in again. The sentence says more.
    #[error("{0}")]
    Refused(String),
    /// A defect in the session itself.
    #[error("the session ended unexpectedly ({0}): please report this")]
    Broken(String),
}

/// This device's connection to the hub. A drop cuts it; [`Session::close`] ends it in good order.
pub(crate) struct Session {
    events: mpsc::Receiver<Event>,
    arrived: Arrived,
    told: Told,
    keeper: JoinSet<Result<(), SessionError>>,
    terms: watch::Sender<Arc<Terms>>,
    no_more: CancellationToken,
    stop: CancellationToken,
}

/// What connections report in addition to their events.
struct Told {
    publisher: Arc<Publisher>,
    desired: Arc<Notify>,
    confirmations: Arc<Confirmations>,
}

/// What connections are made with, until it is changed.
#[derive(Debug)]
pub(crate) struct Terms {
    settings: Settings,
    tls: Arc<rustls::ClientConfig>,
    /// Of the content that the TLS files had when they were read.
    fingerprint: Vec<u8>,
}

impl Session {
    /// Reads the TLS files and begins to connect. Call it within a runtime.
    ///
    /// # Errors
    /// [`TlsError`] names the file at fault.
    pub(crate) fn open(settings: Settings) -> Result<Self, TlsError> {
        let (terms, terms_out) = watch::channel(Arc::new(Terms::read(settings)?));
        let (arrivals, arrived) = arrivals::channels();
        let (events_in, events) = mpsc::channel(EVENTS);
        let told = Told {
            publisher: Arc::default(),
            desired: Arc::clone(&arrivals.desired),
            confirmations: Arc::clone(&arrivals.confirmations),
        };
        let (no_more, stop) = (CancellationToken::new(), CancellationToken::new());
        let keeper = keeper::Keeper {
            terms: terms_out,
            arrivals,
            events: events_in,
            publisher: Arc::clone(&told.publisher),
            no_more: no_more.clone(),
            stop: stop.clone(),
        };
        let mut task = JoinSet::new();
        task.spawn(keeper.run());
        Ok(Self { events, arrived, told, keeper: task, terms, no_more, stop })
    }

    /// Uses other terms. If anything differs, the session signs in with them as it does to renew a token: in a pause
    /// between messages, or now if it waits for its next attempt. True if anything differs.
    pub(crate) fn change(&self, terms: Terms) -> bool {
        let differs = terms.differ(&self.terms.borrow());
        if differs {
            self.terms.send_replace(Arc::new(terms));
        }
        differs
    }

    /// Whether messages can be settled in this way. MQTT can only complete them. Source: wire reference 1.6, 2.6.
    pub(crate) fn can(&self, settlement: Settlement) -> bool {
        settlement == Settlement::Complete || self.terms.borrow().settings.transport == Transport::Amqp
    }

    /// Publishes something; [`Event::Published`] reports the result. Never blocks. Without a connection, or with eight
    /// unanswered already, the result is [`PublishError::Lost`] at once.
    pub(crate) fn publish(&self, ticket: u64, upstream: Upstream) {
        self.told.publisher.publish(ticket, upstream);
    }

    /// Whether a confirmation of a marked completion can still come.
    pub(crate) fn awaits_confirmation(&self) -> bool {
        self.told.confirmations.are_open()
    }

    /// The next event, message or call. Events come first. Cancel safe: nothing is lost.
    pub(crate) async fn next(&mut self) -> Event {
        tokio::select! {
            biased;
            event = next_event(&self.told, &mut self.events, &mut self.keeper) => event,
            Some(delivery) = self.arrived.next() => Event::Delivery(delivery),
        }
    }

    /// A message or call that has arrived already.
    pub(crate) fn try_delivery(&mut self) -> Option<Delivery> {
        self.arrived.try_next()
    }

    /// The next event; messages and calls stay in their channels. Cancel safe.
    pub(crate) async fn next_event(&mut self) -> Event {
        next_event(&self.told, &mut self.events, &mut self.keeper).await
    }

    /// Keeps the current connection and makes no other one, because the session is soon closed.
    pub(crate) fn connect_no_more(&self) {
        self.no_more.cancel();
    }

    /// Ends the session: leaves untaken messages at the hub, sends the PUBACKs and answers that are ready, and
    /// disconnects. Takes at most 1.1 seconds.
    pub(crate) async fn close(mut self) {
        self.no_more.cancel();
        self.stop.cancel();
        self.events.close();
        self.arrived.close();
        match tokio::time::timeout(CLOSE_LIMIT, self.keeper.join_next()).await {
            Ok(Some(Err(error))) => tracing::error!(%error, "session failed while it ended"),
            Ok(_) => tracing::debug!("session closed"),
            Err(_elapsed) => tracing::warn!("session did not end in time and was dropped"),
        }
    }
}

impl Terms {
    /// Reads the TLS files of the settings.
    ///
    /// # Errors
    /// [`TlsError`] names the file at fault.
    pub(crate) fn read(settings: Settings) -> Result<Self, TlsError> {
        let certificate = match &settings.identity.auth {
            DeviceAuth::Certificate { certificate, private_key } => {
                let (certificate, private_key) = (certificate.clone(), private_key.clone());
                Some(ClientCertificate { certificate, private_key })
            }
            DeviceAuth::Key(_) | DeviceAuth::Token(_) | DeviceAuth::Workload(_) => None,
        };
        // Before the files are used: if a file is replaced in between, the next reload still sees the difference.
        let fingerprint = tls::fingerprint(settings.ca_file.as_deref(), certificate.as_ref())?;
        let tls = tls::client_config(settings.ca_file.as_deref(), certificate.as_ref())?;
        Ok(Self { settings, tls, fingerprint })
    }

    fn differ(&self, other: &Self) -> bool {
        let (ours, theirs) = (&self.settings, &other.settings);
        self.fingerprint != other.fingerprint
            || ours.identity != theirs.identity
            || ours.transport != theirs.transport
            || ours.ca_file != theirs.ca_file
            || ours.token_lifetime != theirs.token_lifetime
            || ours.route != theirs.route
            || ours.twin != theirs.twin
            || ours.methods != theirs.methods
            || ours.desired != theirs.desired
    }
}

async fn next_event(
    told: &Told,
    events: &mut mpsc::Receiver<Event>,
    keeper: &mut JoinSet<Result<(), SessionError>>,
) -> Event {
    tokio::select! {
        biased;
        (ticket, result) = told.publisher.next(), if !keeper.is_empty() => Event::Published { ticket, result },
        Some(event) = events.recv() => event,
        marks = told.confirmations.next(), if !keeper.is_empty() => Event::Confirmed(marks),
        () = told.desired.notified(), if !keeper.is_empty() => Event::DesiredChanged,
        Some(ended) = keeper.join_next() => Event::Ended(match ended {
            Ok(Err(error)) => error,
            Ok(Ok(())) => SessionError::Broken("its task is gone".into()),
            Err(error) => SessionError::Broken(error.to_string()),
        }),
        else => Event::Ended(SessionError::Broken("it was used after its end".into())),
    }
}
