//! The events of the sessions, and what follows from each.
//!
//! Owns: which part of the agent learns of which event. Must not know: which protocol a session uses.

use tokio::time::Instant;

use crate::inbox::{Number, Op};
use crate::session::Event;

use super::assigning::{Assigning, EnrolmentStep};
use super::desk::Desk;
use super::error::AgentError;
use super::message::arrive;
use super::recovery;
use super::renewing;
use super::report::AgentEvent;
use super::sessions::{PublishId, Role, Sessions};
use super::twin::{self, TwinRulesState};

/// Handles what a session reports. `reading`: whether a reload is being read. `assigning` keeps an assignment.
///
/// # Errors
/// The session has ended by itself, so the agent ends.
pub(super) fn happened(
    desk: &mut Desk,
    twin: &mut TwinRulesState,
    reading: bool,
    assigning: &mut Assigning,
    role: Role,
    event: Event,
) -> Result<(), AgentError> {
    let now = desk.now();
    let speaks = role == Sessions::speaker(desk.rules.config());
    match event {
        Event::Delivery(delivery) => {
            arrive::arrived(desk, role, delivery);
            // Messages that arrived together are recorded in one write.
            while desk.in_hand.has_room() {
                let Some(delivery) = desk.sessions.try_delivery(role) else { break };
                arrive::arrived(desk, role, delivery);
            }
        }
        Event::Subscribed { transport, renewal, expiry, certificate, issues } => {
            if let Some(view) = desk.watch.board.connection(role) {
                view.connected(now, transport, renewal, expiry);
            }
            desk.machine.actions.hub_back();
            if speaks {
                desk.reports.connected();
                desk.reports.look_again();
                twin.connected();
            }
            if role == Role::Device {
                renewing::signed_in(desk, certificate, issues);
            }
            recovery::expect_held(desk);
            desk.watch.supervision.subscribed();
            desk.tell_systemd();
            desk.watch.tell(AgentEvent::Subscribed);
        }
        Event::Renewed { renewal, expiry } => {
            if let Some(view) = desk.watch.board.connection(role) {
                view.renewed(renewal, expiry);
            }
        }
        Event::CertificateRefused { certificate, goes_back, reason } => {
            renewing::refused(desk, certificate, goes_back, &reason);
        }
        Event::CertificateAnswer(answer) => renewing::answered(desk, assigning, &answer),
        Event::Assigned { enrolment, assignment } => {
            desk.certificates.registered();
            assigning.want(EnrolmentStep::Assigned { enrolment, assignment });
        }
        Event::Disconnected { reason } => {
            if let Some(view) = desk.watch.board.connection(role) {
                view.disconnected(now, &reason);
            }
            // While one connection is up, the pins can still be switched from outside.
            if desk.watch.board.is_alone() {
                desk.machine.actions.hub_lost();
            }
            if speaks {
                desk.reports.disconnected();
                twin.disconnected();
            }
            desk.tell_systemd();
            desk.watch.tell(AgentEvent::Disconnected { reason });
        }
        Event::Published { ticket, result } => match PublishId(ticket) {
            PublishId::CERTIFICATE => renewing::published(desk, &result.map(drop)),
            PublishId::TWIN_READ => twin::answered(desk, twin, reading, result),
            id => desk.reports.published(id, result.map(drop), Instant::now()),
        },
        Event::Confirmed(numbers) => {
            let numbers = numbers.into_iter().map(Number).collect();
            desk.inbox.submit(Op::Confirmed(numbers));
        }
        Event::DesiredChanged => twin.changed(),
        Event::Ended(error) => {
            desk.sessions.ended(role);
            if !desk.in_hand.stopping {
                return Err(error.into());
            }
            tracing::warn!(%error, "a session ended while the agent stops");
        }
    }
    Ok(())
}
