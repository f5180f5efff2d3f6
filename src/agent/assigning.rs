//! What comes of the device's enrolment and of its certificates is kept on disk, and the session goes on with it.
//!
//! Owns: that the disk does not hold up the loop, one step at a time, and that a full one does not keep the device from
//! its hub. Must not know: how a registration is made, when a certificate is renewed.
//!
//! What is in the inbox is finished, and its reports go to the new hub.

use std::collections::VecDeque;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout_at};

use crate::certificate::CertificateFacts;
use crate::config::{Config, Provisioning};
use crate::credentials::DeviceAuth;
use crate::provisioning::{Assignment, Enrolment};
use crate::tls::TlsError;

use super::desk::Desk;
use super::recovery;
use super::sessions::RoleTerms;
use super::twin::READ_LIMIT;

/// The most steps that wait. More than one is rare: each follows from something that the session reports.
const MOST_WAITING: usize = 8;
/// The time between two attempts at what could not be done. After a start, a disk may get room soon.
const AGAIN: Duration = Duration::from_secs(15);

/// The steps that are being taken.
#[derive(Debug)]
pub(super) struct Assigning {
    clock: fn() -> SystemTime,
    wanted: VecDeque<EnrolmentStep>,
    /// The files of the pair as they were when they could last be used.
    files: Option<FileStamps>,
    /// When to try again what could not be done.
    again: Option<Instant>,
    /// Whether what to sign in with could not be read after a step.
    is_unread: bool,
    under_way: Option<JoinHandle<Reassigned>>,
    /// Until when a look at the files is waited for. Nothing else has a limit, because it changes what is on disk.
    look_until: Option<Instant>,
    /// A look that was given up. Until it ends, there is no other one.
    hanging: Option<JoinHandle<Reassigned>>,
}

/// One change of what is on disk.
#[derive(Debug)]
pub(super) enum EnrolmentStep {
    /// The service has assigned a hub, and may have issued a certificate.
    Assigned { enrolment: Box<Enrolment>, assignment: Box<Assignment> },
    /// The assignment could not be kept before, because its disk was full, or what to sign in with could not be read.
    Again,
    /// The hub has issued this chain, in base64 of DER.
    Issued(Vec<String>),
    /// The next pair has signed in: it becomes the current one, and there is a key for the one after it.
    TakeUp,
    /// There is a new key: for the next pair, or in place of one that the hub has refused.
    NewKey { refused: Option<CertificateFacts> },
    /// Another program may have written the files of the pair.
    LookAtFiles,
}

impl EnrolmentStep {
    /// What it does, as the end of a sentence.
    fn what(&self) -> &'static str {
        match self {
            Self::Assigned { .. } => "to take an assignment",
            Self::Again => "to try again what could not be done",
            Self::Issued(_) => "to keep a certificate",
            Self::TakeUp => "to take up a certificate",
            Self::NewKey { .. } => "to make a key",
            Self::LookAtFiles => "to look at the files of a certificate",
        }
    }
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

impl Reassigned {
    /// A look at the files that takes too long.
    fn given_up() -> Self {
        let limit = READ_LIMIT.as_secs();
        let trouble =
            format!("the files of the certificate could not be read within {limit} s: their disk hangs");
        let (step, trouble) = (EnrolmentStep::LookAtFiles, Some(trouble));
        Self { step, provisioning: None, trouble, terms: None, files: None }
    }
}

/// What tells one content of two files from the next: for each file its number, its size, and the last change.
type FileStamps = [(u64, u64, i64, i64); 2];

impl Assigning {
    /// Call it before the files of `config` are read: a later change is seen then.
    pub(super) fn new(config: &Config, clock: fn() -> SystemTime) -> Self {
        let (wanted, files) = (VecDeque::new(), stamps(config));
        Self {
            clock,
            wanted,
            files,
            again: None,
            is_unread: false,
            under_way: None,
            look_until: None,
            hanging: None,
        }
    }

    /// Takes a step after those that wait.
    pub(super) fn want(&mut self, step: EnrolmentStep) {
        let hangs = self.hanging.as_ref().is_some_and(|look| !look.is_finished());
        if hangs && matches!(step, EnrolmentStep::LookAtFiles) {
            return;
        }
        if self.wanted.len() < MOST_WAITING {
            self.wanted.push_back(step);
        } else {
            tracing::warn!("a step of the enrolment is left out, because its disk hangs: {}", step.what());
        }
    }

    /// Whether there is a step to take. Meanwhile the configuration must not change.
    pub(super) fn is_busy(&self) -> bool {
        !self.wanted.is_empty() || self.under_way.is_some()
    }

    /// When to call [`Self::look`] next.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.again.filter(|_| !self.is_busy())
    }

    /// Tries again what could not be done.
    pub(super) fn look(&mut self) {
        self.again = None;
        self.want(EnrolmentStep::Again);
    }

    /// Takes a step for the device of `config`, in a thread of its own, and waits until it is done. Without one, it
    /// never resolves. Cancel safe.
    pub(super) async fn next(&mut self, config: &Arc<Config>) -> Reassigned {
        if self.under_way.is_none()
            && let Some(step) = self.wanted.pop_front()
        {
            let (config, clock) = (Arc::clone(config), self.clock);
            let is_look = matches!(step, EnrolmentStep::LookAtFiles);
            self.look_until = is_look.then(|| Instant::now() + READ_LIMIT);
            let before = SeenFiles { stamps: self.files, is_unread: self.is_unread };
            self.under_way = Some(tokio::task::spawn_blocking(move || take(config, step, before, clock)));
        }
        let Some(task) = &mut self.under_way else { return std::future::pending().await };
        let ended = match self.look_until {
            None => task.await,
            Some(until) => match timeout_at(until, task).await {
                Ok(ended) => ended,
                Err(_elapsed) => {
                    self.hanging = self.under_way.take();
                    return Reassigned::given_up();
                }
            },
        };
        self.under_way = None;
        match ended {
            Ok(reassigned) => {
                match (&reassigned.terms, &reassigned.step) {
                    (Some(Ok(terms)), _) => {
                        (self.files, self.is_unread) = (reassigned.files, terms.stands_in());
                    }
                    (Some(Err(_)), EnrolmentStep::LookAtFiles) | (None, _) => {}
                    (Some(Err(_)), _) => self.is_unread = true,
                }
                let is_kept = reassigned.provisioning.as_ref().is_none_or(|enrolled| enrolled.is_kept);
                let again = self.again.unwrap_or_else(|| Instant::now() + AGAIN);
                self.again = (self.is_unread || !is_kept).then_some(again);
                reassigned
            }
            Err(error) => unreachable!("a panic ends the process, and nothing aborts this task: {error}"),
        }
    }
}

/// The files as they were before a step.
struct SeenFiles {
    stamps: Option<FileStamps>,
    /// Whether they are to be read even if they are the same.
    is_unread: bool,
}

/// Changes in the disk's order, and reads what to sign in with.
fn take(
    mut config: Arc<Config>,
    step: EnrolmentStep,
    before: SeenFiles,
    clock: fn() -> SystemTime,
) -> Reassigned {
    if let EnrolmentStep::Assigned { enrolment, .. } = &step
        && config.provisioning.as_ref().is_none_or(|own| !own.enrolment.is_registered_as(enrolment))
    {
        let id = &enrolment.registration_id;
        let trouble =
            format!("an assignment came for {id}, which the configuration no longer names: it is not used");
        let (trouble, provisioning) = (Some(trouble), config.provisioning.clone());
        return Reassigned {
            step: EnrolmentStep::LookAtFiles,
            trouble,
            provisioning,
            terms: None,
            files: before.stamps,
        };
    }
    let mut trouble = None;
    // A look comes several times a minute and changes nothing, so it needs no copy of all rules.
    if !matches!(step, EnrolmentStep::LookAtFiles)
        && let Some(mut provisioning) = config.provisioning.clone()
    {
        let done = match &step {
            EnrolmentStep::Assigned { assignment, .. } => {
                let at = clock().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
                let issued = assignment.issued.clone();
                provisioning.assign(Assignment::clone(assignment), at);
                let kept = provisioning.write().map_err(|reason| {
                    format!("the assignment is used, but not kept yet; the agent goes on trying: {reason}")
                });
                let issued = if issued.is_empty() { Ok(()) } else { provisioning.issued(&issued) };
                // Each counts without the other one.
                match (kept, issued) {
                    (Err(one), Err(other)) => Err(format!("{one}; {other}")),
                    (kept, issued) => kept.and(issued),
                }
            }
            EnrolmentStep::Issued(chain) => provisioning.issued(chain),
            EnrolmentStep::TakeUp => provisioning.take_up().and_then(|()| provisioning.prepare()),
            EnrolmentStep::NewKey { refused } => provisioning.begin(*refused),
            EnrolmentStep::Again if provisioning.is_kept => Ok(()),
            EnrolmentStep::Again => provisioning.write(),
            EnrolmentStep::LookAtFiles => Ok(()),
        };
        let is_same = match &step {
            EnrolmentStep::Assigned { .. } | EnrolmentStep::Issued(_) | EnrolmentStep::Again => {
                provisioning.read_next_again()
            }
            _ => Ok(()),
        };
        trouble = done.and(is_same).err();
        Arc::make_mut(&mut config).enrol(provisioning);
    }
    // Taken before the files are read: see `new`.
    let files = stamps(&config);
    let is_same = match step {
        _ if before.is_unread => false,
        EnrolmentStep::Again => true,
        EnrolmentStep::LookAtFiles => files == before.stamps,
        _ => false,
    };
    let terms = (!is_same).then(|| RoleTerms::read(&config, clock));
    Reassigned { step, trouble, terms, files, provisioning: config.provisioning.clone() }
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

/// What could not be done before is done now, or still is not.
pub(super) fn tried_again(desk: &mut Desk, reassigned: Reassigned) {
    let Reassigned { trouble, provisioning, terms, .. } = reassigned;
    tracing::debug!(trouble, "tried again what could not be done");
    let was_kept = |desk: &Desk| desk.rules.config().provisioning.as_ref().is_none_or(|now| now.is_kept);
    if let Some(provisioning) = provisioning {
        if provisioning.is_kept && !was_kept(desk) {
            tracing::info!("the assignment is kept now");
        }
        desk.rules.reassign(provisioning);
    }
    match terms {
        Some(Ok(terms)) => drop(desk.sessions.change(terms)),
        Some(Err(error)) => tracing::debug!(%error, "the device still cannot sign in with what it was given"),
        None => {}
    }
}

/// Moves the session to the assigned hub, or has it sign in with the pair that was issued.
pub(super) fn moved(desk: &mut Desk, reassigned: Reassigned) {
    let Reassigned { step, provisioning, trouble, terms, .. } = reassigned;
    if let Some(reason) = trouble {
        tracing::error!("{reason}");
    }
    // First, and whatever comes next: the disk has it.
    if let Some(provisioning) = provisioning {
        desk.rules.reassign(provisioning);
    }
    let terms = match terms {
        Some(Ok(terms)) => terms,
        None => return,
        Some(Err(error)) => {
            let again_in_s = AGAIN.as_secs();
            return tracing::error!(%error, again_in_s, "the device cannot sign in with what it was given");
        }
    };
    if let EnrolmentStep::Assigned { assignment, .. } = &step {
        let Assignment { hub, device_id, .. } = &**assignment;
        tracing::info!(%hub, device_id, "assigned by the provisioning service");
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
