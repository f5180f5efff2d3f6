//! An assignment of the Device Provisioning Service is kept on disk, and the session moves to its hub.
//!
//! Owns: that the disk does not hold up the loop, and that a full one does not keep the device from its hub. Must not
//! know: how a registration is made.
//!
//! The inbox stays as it is: what is in it is finished, and its reports go to the new hub.

use std::time::SystemTime;

use tokio::task::JoinHandle;

use crate::config::{Config, Provisioning};
use crate::provisioning::Assignment;
use crate::tls::TlsError;

use super::desk::Desk;
use super::recovery;
use super::sessions::RoleTerms;

/// The assignment that is being kept.
#[derive(Debug)]
pub(super) struct Assigning {
    clock: fn() -> SystemTime,
    wanted: Option<Assignment>,
    under_way: Option<JoinHandle<Reassigned>>,
}

/// What follows from an assignment.
#[derive(Debug)]
pub(super) struct Reassigned {
    provisioning: Provisioning,
    /// Why the assignment could not be kept, if it could not.
    trouble: Option<String>,
    terms: Result<RoleTerms, TlsError>,
}

impl Assigning {
    pub(super) fn new(clock: fn() -> SystemTime) -> Self {
        Self { clock, wanted: None, under_way: None }
    }

    /// The service has assigned a hub.
    pub(super) fn assigned(&mut self, assignment: Assignment) {
        self.wanted = Some(assignment);
    }

    /// Whether there is an assignment to keep. Meanwhile the configuration must not change.
    pub(super) fn is_busy(&self) -> bool {
        self.wanted.is_some() || self.under_way.is_some()
    }

    /// Keeps the assignment of the device of `config`, in a thread of its own, and waits until it is kept or cannot be.
    /// Without one, it never resolves. Cancel safe.
    pub(super) async fn next(&mut self, config: &Config) -> Reassigned {
        if self.under_way.is_none()
            && let (Some(assignment), Some(provisioning)) = (self.wanted.take(), &config.provisioning)
        {
            self.under_way = Some(keep(config.clone(), provisioning.clone(), assignment, self.clock));
        }
        let Some(task) = &mut self.under_way else { return std::future::pending().await };
        let ended = task.await;
        self.under_way = None;
        match ended {
            Ok(reassigned) => reassigned,
            Err(error) => unreachable!("a panic ends the process, and nothing aborts this task: {error}"),
        }
    }
}

fn keep(
    mut config: Config,
    mut provisioning: Provisioning,
    assignment: Assignment,
    clock: fn() -> SystemTime,
) -> JoinHandle<Reassigned> {
    let at = clock().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
    provisioning.assign(assignment, at);
    tokio::task::spawn_blocking(move || {
        let trouble = provisioning.write().err();
        config.enrol(provisioning.clone());
        Reassigned { provisioning, trouble, terms: RoleTerms::read(&config, clock) }
    })
}

/// Moves the session to the assigned hub.
pub(super) fn moved(desk: &mut Desk, reassigned: Reassigned) {
    let Reassigned { provisioning, trouble, terms } = reassigned;
    if let Some(reason) = trouble {
        tracing::error!(%reason, "the assignment is used, but not kept: the next start asks for it again");
    }
    let terms = match terms {
        Ok(terms) => terms,
        Err(error) => return tracing::error!(%error, "the assigned hub cannot be used"),
    };
    let name = |provisioning: &Provisioning| {
        let (assignment, _) = provisioning.assigned.as_ref()?;
        Some((assignment.hub.to_string(), assignment.device_id.clone()))
    };
    let before = desk.rules.config().provisioning.as_ref().and_then(name);
    let after = name(&provisioning);
    let (hub, device_id) = after.clone().unwrap_or_default();
    tracing::info!(%hub, device_id, "assigned by the provisioning service");
    desk.rules.reassign(provisioning);
    desk.sessions.change(terms);
    if before.is_some() && before != after {
        recovery::leave_hub(desk);
    }
    desk.tell_systemd();
}
