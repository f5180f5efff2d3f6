//! What comes of the device's enrolment and of its certificates is kept on disk, and the session goes on with it.
//!
//! Owns: that the disk does not hold up the loop, one step at a time, and that a full one does not keep the device from
//! its hub. Must not know: how a registration is made, when a certificate is renewed.
//!
//! What is in the inbox is finished, and its reports go to the new hub.

use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::{Config, Provisioning};
use crate::credentials::DeviceAuth;
use crate::provisioning::{Assignment, Enrolment};
use crate::tls::TlsError;

use super::desk::Desk;
use super::recovery;
use super::sessions::RoleTerms;

/// The most steps that wait. More than one is rare: each follows from something that the session reports.
const MOST_WAITING: usize = 8;
/// The time between two attempts to keep an assignment.
const KEEP_AGAIN: Duration = Duration::from_secs(60);

/// The steps that are being taken.
#[derive(Debug)]
pub(super) struct Assigning {
    clock: fn() -> SystemTime,
    wanted: VecDeque<EnrolmentStep>,
    /// The files of the pair as they were when they could last be used.
    files: Option<FileStamps>,
    /// When to try again to keep the assignment.
    keep_again: Option<Instant>,
    under_way: Option<JoinHandle<Reassigned>>,
}

/// One change of what is on disk.
#[derive(Debug)]
pub(super) enum EnrolmentStep {
    /// The service has assigned a hub, and may have issued a certificate.
    Assigned { enrolment: Box<Enrolment>, assignment: Box<Assignment> },
    /// The assignment could not be kept before: its disk was full.
    KeepAgain,
    /// The hub has issued this chain, in base64 of DER.
    Issued(Vec<String>),
    /// The next pair has signed in: it becomes the current one, and there is a key for the one after it.
    TakeUp,
    /// There is a new key, in place of the next pair if that was refused.
    NewKey,
    /// Another program may have written the files of the pair.
    LookAtFiles,
}

/// What follows from a step.
#[derive(Debug)]
pub(super) struct Reassigned {
    pub(super) step: EnrolmentStep,
    /// Absent if the configuration names the device.
    provisioning: Option<Provisioning>,
    /// What could not be kept, and why.
    pub(super) trouble: Option<String>,
    /// What to sign in with; absent if the files have not changed.
    pub(super) terms: Option<Result<RoleTerms, TlsError>>,
    files: Option<FileStamps>,
}

/// What tells one content of two files from the next: for each file its number, its size, and the last change.
type FileStamps = [(u64, u64, i64, i64); 2];

impl Assigning {
    /// Call it before the files of `config` are read: a later change is seen then.
    pub(super) fn new(config: &Config, clock: fn() -> SystemTime) -> Self {
        let (wanted, files) = (VecDeque::new(), stamps(config));
        Self { clock, wanted, files, keep_again: None, under_way: None }
    }

    /// Takes a step after those that wait.
    pub(super) fn want(&mut self, step: EnrolmentStep) {
        if self.wanted.len() < MOST_WAITING {
            self.wanted.push_back(step);
        } else {
            tracing::warn!(?step, "a step of the enrolment is left out, because its disk hangs");
        }
    }

    /// Whether there is a step to take. Meanwhile the configuration must not change.
    pub(super) fn is_busy(&self) -> bool {
        !self.wanted.is_empty() || self.under_way.is_some()
    }

    /// When to call [`Self::look`] next.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.keep_again.filter(|_| !self.is_busy())
    }

    /// Keeps an assignment that could not be kept before.
    pub(super) fn look(&mut self) {
        self.keep_again = None;
        self.want(EnrolmentStep::KeepAgain);
    }

    /// Takes a step for the device of `config`, in a thread of its own, and waits until it is done. Without one, it
    /// never resolves. Cancel safe.
    pub(super) async fn next(&mut self, config: &Config) -> Reassigned {
        if self.under_way.is_none()
            && let Some(step) = self.wanted.pop_front()
        {
            let (config, files, clock) = (config.clone(), self.files, self.clock);
            self.under_way = Some(tokio::task::spawn_blocking(move || take(config, step, files, clock)));
        }
        let Some(task) = &mut self.under_way else { return std::future::pending().await };
        let ended = task.await;
        self.under_way = None;
        match ended {
            Ok(reassigned) => {
                if matches!(reassigned.terms, Some(Ok(_))) {
                    self.files = reassigned.files;
                }
                let is_kept = reassigned.provisioning.as_ref().is_none_or(|enrolled| enrolled.is_kept);
                let again = self.keep_again.unwrap_or_else(|| Instant::now() + KEEP_AGAIN);
                self.keep_again = (!is_kept).then_some(again);
                reassigned
            }
            Err(error) => unreachable!("a panic ends the process, and nothing aborts this task: {error}"),
        }
    }
}

/// Changes in the disk's order, and reads what to sign in with. `before`: the files as they were.
fn take(
    mut config: Config,
    step: EnrolmentStep,
    before: Option<FileStamps>,
    clock: fn() -> SystemTime,
) -> Reassigned {
    if let EnrolmentStep::Assigned { enrolment, .. } = &step
        && config.provisioning.as_ref().is_none_or(|own| !own.enrolment.is_registered_as(enrolment))
    {
        let id = &enrolment.registration_id;
        let trouble =
            format!("an assignment came for {id}, which the configuration no longer names: it is not used");
        let (trouble, provisioning) = (Some(trouble), config.provisioning);
        return Reassigned {
            step: EnrolmentStep::LookAtFiles,
            trouble,
            provisioning,
            terms: None,
            files: before,
        };
    }
    let mut trouble = None;
    if let Some(mut provisioning) = config.provisioning.take() {
        let done = match &step {
            EnrolmentStep::Assigned { assignment, .. } => {
                let at = clock().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
                let issued = assignment.issued.clone();
                provisioning.assign(Assignment::clone(assignment), at);
                let kept = provisioning.write().map_err(|reason| {
                    format!("the assignment is used, but not kept yet; the agent goes on trying: {reason}")
                });
                kept.and(if issued.is_empty() { Ok(()) } else { provisioning.issued(&issued) })
            }
            EnrolmentStep::Issued(chain) => provisioning.issued(chain),
            EnrolmentStep::TakeUp => provisioning.take_up().and_then(|()| provisioning.prepare()),
            EnrolmentStep::NewKey => provisioning.begin(),
            EnrolmentStep::KeepAgain => provisioning.write(),
            EnrolmentStep::LookAtFiles => Ok(()),
        };
        trouble = done.err();
        config.enrol(provisioning);
    }
    // Taken before the files are read: see `new`.
    let files = stamps(&config);
    let is_same = match step {
        EnrolmentStep::KeepAgain => true,
        EnrolmentStep::LookAtFiles => files == before,
        _ => false,
    };
    let terms = (!is_same).then(|| RoleTerms::read(&config, clock));
    Reassigned { step, trouble, terms, files, provisioning: config.provisioning }
}

/// The files of the pair of the device, if it has one. None if one of them is missing.
fn stamps(config: &Config) -> Option<FileStamps> {
    let DeviceAuth::Certificate { certificate, private_key } = &config.identities.device()?.auth else {
        return None;
    };
    let stamp = |file: &Path| {
        let metadata = std::fs::metadata(file).ok()?;
        Some((metadata.ino(), metadata.len(), metadata.mtime(), metadata.mtime_nsec()))
    };
    Some([stamp(certificate)?, stamp(private_key)?])
}

/// An assignment that could not be kept before is on disk, or still is not.
pub(super) fn kept_again(desk: &mut Desk, reassigned: Reassigned) {
    match (reassigned.trouble, reassigned.provisioning) {
        (None, Some(provisioning)) => {
            tracing::info!("the assignment is kept now");
            desk.rules.reassign(provisioning);
        }
        (trouble, _) => tracing::debug!(trouble, "the assignment is still not kept"),
    }
}

/// Moves the session to the assigned hub, or has it sign in with the pair that was issued.
pub(super) fn moved(desk: &mut Desk, reassigned: Reassigned) {
    let Reassigned { step, provisioning, trouble, terms, .. } = reassigned;
    if let Some(reason) = trouble {
        tracing::error!("{reason}");
    }
    let terms = match terms {
        Some(Ok(terms)) => terms,
        None => return,
        Some(Err(error)) => {
            return tracing::error!(%error, "the device cannot sign in with what it was given");
        }
    };
    if let EnrolmentStep::Assigned { assignment, .. } = &step {
        let Assignment { hub, device_id, .. } = &**assignment;
        tracing::info!(%hub, device_id, "assigned by the provisioning service");
    }
    if let Some(provisioning) = provisioning {
        desk.rules.reassign(provisioning);
    }
    match &step {
        EnrolmentStep::Assigned { assignment, .. } if !assignment.issued.is_empty() => {
            desk.sessions.go_on_with(terms)
        }
        _ => drop(desk.sessions.change(terms)),
    }
    recovery::tell_origin(desk);
    desk.tell_systemd();
}
