//! The session: makes this device's connection to the hub, and makes it again when it fails.
//!
//! Owns: signing in over MQTT or AMQP, over TLS or a WebSocket (over MQTT in `mqtt/bridge.rs`, over AMQP in `amqp/stream.rs`), receiving and
//! settling C2D messages or, as a module, messages for its inputs, receiving and answering calls of direct methods,
//! publishing D2C messages and patches of the twin, renewing tokens, reconnecting.
//! Must not know: rules, actions, what is done with a message.
//!
//! Two tasks work behind a [`Session`]. The keeper (`keeper.rs`) makes one connection after the other, by its [`Terms`]
//! (`terms.rs`, `dial.rs`). For each one, a reader (`mqtt/reader.rs`, `amqp/reader.rs`) alone owns the socket, and hands
//! messages on through one bounded channel. A message's [`Receipt`] settles it through a gate that it shares with the
//! reader (`gate.rs`), and that ignores receipts of connections that have gone. Over MQTT the books behind the gate keep
//! PUBACKs in arrival order (`mqtt/link.rs`); over AMQP each message is settled by itself (`amqp/settlements.rs`). A call
//! is answered on the connection that brought it, or not at all (`calls.rs`). A publish goes to the current connection,
//! and is answered there or lost with it (`publish.rs`). `transports.rs` chooses the transport, and `connection.rs` hides it from the keeper. `proof.rs`
//! gets what a connection is made with; for a module of IoT Edge it asks the workload API.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::certificate::CertificateFacts;
use crate::credentials::Transport;
use crate::tls::TlsError;

#[cfg(feature = "full")]
mod amqp;
mod arrivals;
mod backoff;
mod calls;
mod carrier;
mod certificates;
mod confirmations;
mod connection;
mod delivery;
mod dial;
mod due;
mod enrol;
mod event;
mod failure;
mod gate;
#[cfg(feature = "full")]
mod https_registration;
mod keeper;
mod mqtt;
#[allow(dead_code)] // Only the doctor uses it, which needs the feature `full`.
mod probe;
mod proof;
mod publish;
mod questions;
mod registrations;
mod signin;
mod terms;
mod transports;
mod trial;
mod upstream;

#[cfg(test)]
mod tests;

use arrivals::Arrived;
pub(crate) use certificates::CertificateAnswer;
use certificates::{CertificateAnswers, NextRegistration};
use confirmations::Confirmations;
pub(crate) use delivery::{Delivery, Receipt};
#[allow(unused_imports)] // Only the doctor uses the error, which needs the feature `full`.
pub(crate) use enrol::{EnrolError, EnrolSettings, enrol};
pub(crate) use event::{Event, SessionError};
pub(crate) use gate::Settlement;
#[allow(unused_imports)] // Only the doctor uses it, which needs the feature `full`.
pub(crate) use probe::{SignInError, probe};
use publish::Publisher;
#[allow(unused_imports)] // Only the doctor uses it, which needs the feature `full`.
pub(crate) use signin::EARLIEST_PLAUSIBLE;
#[allow(unused_imports)] // Only the doctor uses it, which needs the feature `full`.
pub(crate) use terms::{HubSource, Issuing, Settings, Terms, standard_port};
pub(crate) use upstream::{PublishError, Upstream};

/// Changes of the connection that the agent has not seen yet. The agent looks at them first.
const EVENTS: usize = 16;
/// How long the end of the session may take: the keeper's drain and hang-up.
const CLOSE_LIMIT: Duration = Duration::from_millis(1100);

/// This device's connection to the hub. A drop cuts it; [`Session::close`] ends it in good order.
pub(crate) struct Session {
    events: mpsc::Receiver<Event>,
    arrived: Arrived,
    told: SideReports,
    keeper: JoinSet<Result<(), SessionError>>,
    terms: watch::Sender<Arc<Terms>>,
    registration: Arc<NextRegistration>,
    no_more: CancellationToken,
    stop: CancellationToken,
}

/// What connections report in addition to their events.
struct SideReports {
    publisher: Arc<Publisher>,
    desired: Arc<Notify>,
    confirmations: Arc<Confirmations>,
    certificates: Arc<CertificateAnswers>,
}

impl Session {
    /// Reads the TLS files and begins to connect. Call it within a runtime.
    ///
    /// # Errors
    /// [`TlsError`] names the file at fault.
    pub(crate) fn open(settings: Settings) -> Result<Self, TlsError> {
        let registration = Arc::new(NextRegistration::default());
        registration.set(settings.issuing.csr.clone());
        let (terms, terms_out) = watch::channel(Arc::new(Terms::read(settings)?));
        let (arrivals, arrived) = arrivals::channels();
        let (events_in, events) = mpsc::channel(EVENTS);
        let told = SideReports {
            publisher: Arc::default(),
            desired: Arc::clone(&arrivals.desired),
            confirmations: Arc::clone(&arrivals.confirmations),
            certificates: Arc::clone(&arrivals.certificates),
        };
        let (no_more, stop) = (CancellationToken::new(), CancellationToken::new());
        let keeper = keeper::Keeper {
            terms: terms_out,
            arrivals,
            events: events_in,
            publisher: Arc::clone(&told.publisher),
            registration: Arc::clone(&registration),
            no_more: no_more.clone(),
            stop: stop.clone(),
        };
        let mut task = JoinSet::new();
        task.spawn(keeper.run());
        Ok(Self { events, arrived, told, keeper: task, terms, registration, no_more, stop })
    }

    /// Uses other terms. If anything differs, the session signs in with them as it does to renew a token: in a pause
    /// between messages, or now if it waits for its next attempt. True if anything differs.
    pub(crate) fn change(&self, terms: Terms) -> bool {
        self.registration.set(terms.settings.issuing.csr.clone());
        let differs = terms.differ(&self.terms.borrow());
        if differs {
            self.terms.send_replace(Arc::new(terms));
        }
        differs
    }

    /// Has the session ask the Device Provisioning Service again: it leaves its hub in good order for that. Without a
    /// connection it does so with the next one, and not before the end of a pause that the service asked for.
    pub(crate) fn register_again(&self) {
        self.registration.want();
    }

    /// The certificate of the present terms, if the device signs in with one.
    pub(crate) fn certificate(&self) -> Option<CertificateFacts> {
        self.terms.borrow().certificate()
    }

    /// As [`Session::change`], also if nothing differs: the session waits for what comes of an assignment.
    pub(crate) fn go_on_with(&self, terms: Terms) {
        self.registration.set(terms.settings.issuing.csr.clone());
        self.terms.send_replace(Arc::new(terms));
    }

    /// Whether messages can be settled in this way. MQTT can only complete them. Source: wire reference 1.6, 2.6.
    pub(crate) fn can_settle(&self, settlement: Settlement) -> bool {
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

async fn next_event(
    told: &SideReports,
    events: &mut mpsc::Receiver<Event>,
    keeper: &mut JoinSet<Result<(), SessionError>>,
) -> Event {
    tokio::select! {
        biased;
        (ticket, result) = told.publisher.next(), if !keeper.is_empty() => Event::Published { ticket, result },
        Some(event) = events.recv() => event,
        marks = told.confirmations.next(), if !keeper.is_empty() => Event::Confirmed(marks),
        answer = told.certificates.next(), if !keeper.is_empty() => Event::CertificateAnswer(answer),
        () = told.desired.notified(), if !keeper.is_empty() => Event::DesiredChanged,
        Some(ended) = keeper.join_next() => Event::Ended(match ended {
            Ok(Err(error)) => error,
            Ok(Ok(())) => SessionError::Broken("its task is gone".into()),
            Err(error) => SessionError::Broken(error.to_string()),
        }),
        else => Event::Ended(SessionError::Broken("it was used after its end".into())),
    }
}
