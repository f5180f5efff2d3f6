//! Opens a connection and its links, and ends them.
//!
//! Owns: the order of these steps. Must not know: what the links carry.

use std::sync::Arc;
use std::time::Duration;

use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::link::receiver::CreditMode;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::definitions::ReceiverSettleMode;
use fe2o3_amqp::{Receiver, Sender, Session};
use tokio::time::timeout;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::cbs::Cbs;
use super::links::Links;
use super::methods::Methods;
use super::twin::TwinLinks;
use super::{fault, message, stream};
use crate::amqp_frames::Failed;
use crate::session::dial::Dial;
use crate::session::failure::{self, Fault};

/// How long a goodbye may take.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// What was opened. The order of the fields is the order of the drop: links, session, connection; then the stream is
/// cut.
pub(super) struct OpenedConnection {
    pub(super) links: Links,
    pub(super) sessions: Vec<SessionHandle<()>>,
    pub(super) connection: ConnectionHandle<()>,
    pub(super) failed: Failed,
    pub(super) _cut: DropGuard,
}

/// Connects, signs in and attaches.
///
/// # Errors
/// Why it could not.
pub(super) async fn open(dial: &Dial) -> Result<OpenedConnection, Fault> {
    if dial.module_id.is_some() {
        return Err(Fault::ModuleOverAmqp);
    }
    let cut = CancellationToken::new();
    let (stream, failed) = stream::dial(dial, cut.clone()).await?;
    let opened = attach(dial, stream, Arc::clone(&failed), cut.drop_guard()).await;
    opened.map_err(|fault| match (fault, failed.get()) {
        (Fault::Closed, None) => Fault::ClosedBeforeSignIn,
        (fault @ (Fault::Closed | Fault::ClosedAtTwin), Some(error)) => {
            match failure::from_io(error, &dial.host) {
                Fault::Closed => fault,
                known => known,
            }
        }
        (fault, _) => fault,
    })
}

/// Opens AMQP on this stream, signs in and attaches.
async fn attach(
    dial: &Dial,
    stream: stream::HubLink,
    failed: Failed,
    cut: DropGuard,
) -> Result<OpenedConnection, Fault> {
    let device_id = &dial.device_id;
    let now = (dial.clock)();
    let mut connection = stream::open(dial, stream, &failed).await?;
    let mut session = Session::begin(&mut connection).await.map_err(|error| fault::of_begin(error, now))?;
    let cbs = match &dial.password {
        Some(token) => {
            let mut cbs = Cbs::attach(&mut session, audience(dial), now).await?;
            cbs.put(token, now).await?;
            Some(Box::new(cbs))
        }
        None => None,
    };
    let receiver = Receiver::builder()
        .name(format!("devicebound-{}", uuid::Uuid::new_v4()))
        .source(format!("/devices/{}/messages/devicebound", message::in_address(device_id)))
        // With this mode each disposition settles, without another round trip.
        .receiver_settle_mode(ReceiverSettleMode::First)
        .credit_mode(CreditMode::Manual)
        .attach(&mut session)
        .await
        .map_err(|error| fault::of_receiver_attach(error, now))?;
    let name = format!("events-{}", uuid::Uuid::new_v4());
    let address = format!("/devices/{}/messages/events", message::in_address(device_id));
    let events = Sender::attach(&mut session, name, address).await;
    let events = events.map_err(|error| fault::of_sender_attach(error, now))?;
    let at_twin = |fault| if matches!(fault, Fault::Closed) { Fault::ClosedAtTwin } else { fault };
    let mut twin = match dial.twin || dial.desired {
        true => TwinLinks::attach(&mut session, device_id, now).await.map_err(at_twin)?,
        false => None,
    };
    if let Some(twin) = twin.as_mut().filter(|_| dial.desired) {
        twin.listen(now).await.map_err(at_twin)?;
    }
    // After a refused link, the crate may still send that link's detach, with a handle that then belongs to the
    // next link. So the methods then get a session of their own.
    let mut own = match (dial.twin || dial.desired) && twin.is_none() && dial.methods {
        true => {
            let begun = Session::begin(&mut connection).await;
            Some(begun.map_err(|error| fault::of_begin(error, now)).map_err(at_twin)?)
        }
        false => None,
    };
    let methods = match dial.methods {
        true => {
            let session = own.as_mut().unwrap_or(&mut session);
            Methods::attach(session, device_id, now).await.map_err(at_twin)?
        }
        false => None,
    };
    let sessions = std::iter::once(session).chain(own).collect();
    let links = Links::new(receiver, events, twin, methods, cbs);
    Ok(OpenedConnection { links, sessions, connection, failed, _cut: cut })
}

fn audience(dial: &Dial) -> String {
    format!("{}/devices/{}", dial.hub, message::in_address(&dial.device_id))
}

/// Ends the connection in good order, as far as the hub answers.
pub(super) async fn say_goodbye(sessions: Vec<SessionHandle<()>>, mut connection: ConnectionHandle<()>) {
    let goodbye = async {
        for mut session in sessions {
            if let Err(error) = session.end().await {
                tracing::debug!(%error, "a session could not be closed");
            }
        }
        if let Err(error) = connection.close().await {
            tracing::debug!(%error, "the connection could not be closed");
        }
    };
    if timeout(CLOSE_LIMIT, goodbye).await.is_err() {
        tracing::debug!("the hub did not answer the close");
    }
}
