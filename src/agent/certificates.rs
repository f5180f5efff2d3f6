//! The device's certificate: how long it lasts, and when to renew it.
//!
//! Owns: the dates of the certificate in use, when to ask for the next one and whom, when to look whether its files
//! have changed, when to warn. Must not know: sessions, files, what an answer says.

use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::certificate::CertificateFacts;

use super::status::CertificateStatus;

/// The share of its life after which a certificate is renewed, and the random part that keeps a fleet apart. Source:
/// wire reference 12.6.
const RENEWED_AT: f64 = 0.80;
const RENEWAL_JITTER: f64 = 0.05;
/// The share of its life from which on its end is near.
const NEAR_ITS_END: f64 = 0.20;
/// The time between two warnings.
const DAY: Duration = Duration::from_secs(24 * 60 * 60);
/// The time between two looks at the clock, so that one that is set is noticed.
const LOOK: Duration = Duration::from_secs(60);
/// The time between two looks at files, and when they have changed a moment ago and cannot be used.
const FILE_LOOK: Duration = Duration::from_secs(15);
const UNFIT_LOOK: Duration = Duration::from_secs(2);
/// How long a half-written pair is waited for before the log has it.
const UNFIT_FOR: Duration = Duration::from_secs(60);
/// After so many questions without success, the provisioning service is asked in place of the hub.
const MOST_AT_HUB: u32 = 3;
/// How long an answer of the hub is waited for, as in Microsoft's C SDK, and at most a tenth of the certificate's life.
/// Source: wire reference 12.6.
const ANSWER_LIMIT: Duration = Duration::from_secs(180);
/// A device without any certificate of the service works with what it enrolled with. The service is asked for the first
/// one again after this time, and up to twice that: each time, the device leaves its hub.
const FIRST_PAUSE: Duration = Duration::from_secs(6 * 60 * 60);
/// The time between two attempts: a hundredth of the certificate's life within these limits, and up to twice that.
const SPACING: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60 * 60));

/// What is known of the certificate.
#[derive(Debug, Default)]
pub(super) struct Certificates {
    /// The certificate of the last sign-in, or before that the one to sign in with.
    in_use: Option<CertificateFacts>,
    /// The one of the configuration, as it was read last.
    configured: Option<CertificateFacts>,
    /// When it is renewed, if the service issues it.
    renewal: Option<SystemTime>,
    /// The certificate of the last sign-in.
    proven: Option<CertificateFacts>,
    /// One whose sign-in has failed. If another one signs in next, that was not the network.
    suspect: Option<CertificateFacts>,
    /// One that the hub has refused.
    refused: Option<CertificateFacts>,
    /// Whether the hub takes requests on the present connection.
    hub_issues: bool,
    attempts: Attempts,
    /// When hub or service was last asked. A certificate that is due as soon as it is there must not lead to the next
    /// question at once.
    asked: Option<Instant>,
    haste: Haste,
    /// When a change of the files may be tried again.
    write_again: Option<Instant>,
    /// The files of a pair that another program renews, if the device signs in with one.
    files: Option<FileLook>,
    warned: Option<Instant>,
    look_at: Option<Instant>,
}

/// Attempts to get the next certificate, since the last one that was successful.
#[derive(Debug, Default)]
struct Attempts {
    failed: u32,
    /// How many of them failed at the hub since the service was asked.
    at_hub: u32,
    not_before: Option<Instant>,
    /// Who has not answered yet. At [`Self::not_before`] that has failed.
    awaited: Option<Issuer>,
    /// Whether the hub said that it is at it: then it may take longer, once.
    is_accepted: bool,
    /// Whether the next request replaces one that is under way.
    replaces: bool,
}

/// Whether a certificate was due for renewal as soon as it was there.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
enum Haste {
    #[default]
    No,
    /// A certificate that was asked for is in use, and its dates were not looked at yet.
    Unknown,
    Told,
}

/// The look at the files of a pair.
#[derive(Debug, Clone, Copy)]
struct FileLook {
    at: Instant,
    /// Since when they have changed and cannot be used.
    unfit_since: Option<Instant>,
    told: bool,
}

/// The state of the next pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NextState {
    /// The service is not asked for certificates.
    Unwanted,
    /// There is no key.
    Absent,
    /// A certificate can be asked for.
    Asked,
    /// It is there, and is being signed in with.
    Issued(CertificateFacts),
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CertificateWish {
    /// In place of a pair that the hub has refused, or of none.
    MakeKey {
        refused: Option<CertificateFacts>,
    },
    /// The next pair has signed in: it becomes the current one.
    TakeUp,
    AskHub {
        replaces: bool,
    },
    AskService,
    LookAtFiles,
}

/// Whom the next certificate can be asked of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Issuer {
    /// Neither can be asked now.
    Unavailable,
    Hub,
    Service,
    /// The service, for a device that has no certificate of it.
    First,
}

impl Certificates {
    /// `certificate`: the one to sign in with. `has_files`: whether another program renews it, by writing its files.
    pub(super) fn configured(&mut self, certificate: Option<CertificateFacts>, has_files: bool) {
        let now = Instant::now();
        self.files = has_files.then_some(FileLook { at: now + FILE_LOOK, unfit_since: None, told: false });
        // The hub may have refused one that was configured before: then the one in use is another one.
        if certificate != self.configured {
            self.configured = certificate;
            self.take(certificate);
        }
        self.look_at = Some(now);
    }

    /// The device has signed in with this certificate. `hub_issues`: whether the hub takes requests for the next one.
    pub(super) fn signed_in(&mut self, in_use: Option<CertificateFacts>, hub_issues: bool) {
        self.take(in_use);
        (self.proven, self.hub_issues) = (in_use, hub_issues);
        match self.suspect.take() {
            Some(suspect) if Some(suspect) != in_use => self.refused(suspect),
            _ => self.refused = self.refused.filter(|refused| Some(*refused) != in_use),
        }
        self.look_soon();
    }

    /// The device could not sign in with this certificate, which the service had issued, and tries the earlier one.
    pub(super) fn suspect(&mut self, certificate: CertificateFacts) {
        self.suspect = Some(certificate);
    }

    /// The provisioning service has answered. It is asked when the hub refuses the earlier certificate, too: as long as
    /// the suspect one is there, no other can be asked for.
    pub(super) fn registered(&mut self) {
        if let Some(suspect) = self.suspect.take() {
            self.refused(suspect);
        }
    }

    /// The hub has refused this certificate, which the service had issued.
    pub(super) fn refused(&mut self, certificate: CertificateFacts) {
        self.refused = Some(certificate);
        self.failed(false);
        self.look_soon();
    }

    fn look_soon(&mut self) {
        (self.write_again, self.look_at) = (None, Some(Instant::now()));
    }

    /// Whether the hub takes requests on the present connection.
    pub(super) fn hub_issues(&self) -> bool {
        self.hub_issues
    }

    fn take(&mut self, in_use: Option<CertificateFacts>) {
        if in_use != self.in_use {
            let begins = |facts: Option<CertificateFacts>| facts.map(|facts| facts.not_before);
            let is_newer = begins(in_use) > begins(self.in_use);
            (self.in_use, self.warned, self.attempts) = (in_use, None, Attempts::default());
            self.attempts.not_before = self.asked.map(|at| at + self.spacing());
            if is_newer && self.asked.is_some() && self.haste == Haste::No {
                self.haste = Haste::Unknown;
            }
            let share = RENEWED_AT + RENEWAL_JITTER * fastrand::f64();
            self.renewal = in_use.map(|facts| facts.at(share));
        }
    }

    /// What `status`, the metrics and the twin show. `is_issued`: the agent renews it.
    pub(super) fn status(&self, is_issued: bool) -> Option<CertificateStatus> {
        let CertificateFacts { not_before, not_after, .. } = self.in_use?;
        let renewal = self.renewal.filter(|_| is_issued);
        Some(CertificateStatus { valid_from: not_before, valid_until: not_after, renewal })
    }

    /// When to call [`Self::look`] next.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.look_at
    }

    /// What to do at `now`, which is `time` by the clock. `next` is the state of the next pair, and `issuer` whom to
    /// ask.
    pub(super) fn look(
        &mut self,
        now: Instant,
        time: SystemTime,
        next: NextState,
        issuer: Issuer,
    ) -> Option<CertificateWish> {
        match next {
            NextState::Issued(_) => self.attempts.awaited = None,
            _ if self.attempts.not_before.is_some_and(|at| at <= now) => self.miss(),
            _ => {}
        }
        let is_due = self.renewal.is_some_and(|at| at <= time);
        if self.haste == Haste::Unknown {
            self.haste = if is_due { Haste::Told } else { Haste::No };
            if is_due {
                tracing::error!(
                    "the certificate that was just issued is due for renewal already: set this machine's clock (NTP), or \
                     look at the authority"
                );
            }
        }
        if (next, issuer) == (NextState::Asked, Issuer::First) {
            let pause = FIRST_PAUSE.mul_f64(1.0 + fastrand::f64());
            self.attempts.not_before.get_or_insert(now + pause);
        }
        let may_try = self.attempts.not_before.is_none_or(|at| at <= now);
        let may_write = self.write_again.is_none_or(|at| at <= now);
        let wish = match next {
            NextState::Absent if may_write => Some(CertificateWish::MakeKey { refused: None }),
            NextState::Issued(facts) if may_write && self.refused == Some(facts) => {
                Some(CertificateWish::MakeKey { refused: Some(facts) })
            }
            NextState::Issued(facts) if may_write && self.proven == Some(facts) => {
                Some(CertificateWish::TakeUp)
            }
            NextState::Asked if may_try => match issuer {
                Issuer::First => Some(CertificateWish::AskService),
                Issuer::Hub if is_due && self.attempts.at_hub < MOST_AT_HUB => {
                    Some(CertificateWish::AskHub { replaces: self.attempts.replaces })
                }
                Issuer::Hub | Issuer::Service if is_due => Some(CertificateWish::AskService),
                _ => None,
            },
            _ => None,
        };
        match wish {
            // Until the answer comes, or is missing for too long.
            Some(CertificateWish::AskHub { .. }) => self.await_answer(now, Issuer::Hub, self.patience()),
            Some(CertificateWish::AskService) => {
                (self.attempts.at_hub, self.attempts.replaces) = (0, false);
                let pause = if issuer == Issuer::First { FIRST_PAUSE } else { Duration::ZERO };
                self.await_answer(now, Issuer::Service, self.spacing().max(pause));
            }
            Some(_) => self.write_again = Some(now + self.spacing()),
            None => {}
        }
        let wish = match &mut self.files {
            Some(files) if wish.is_none() && files.at <= now => {
                files.at = now + FILE_LOOK;
                Some(CertificateWish::LookAtFiles)
            }
            _ => wish,
        };
        self.look_at = self.next_look(now, time, next);
        wish
    }

    fn next_look(&self, now: Instant, time: SystemTime, next: NextState) -> Option<Instant> {
        let until = |at: SystemTime| now + at.duration_since(time).unwrap_or_default();
        let write = self.write_again.filter(|at| *at > now && next != NextState::Unwanted);
        let renewal = match (next, self.attempts.not_before) {
            (NextState::Unwanted, _) => None,
            (_, Some(at)) if at > now => Some(at),
            _ => self.renewal.map(until).filter(|at| *at > now),
        };
        let files = self.files.map(|files| files.at.max(now + UNFIT_LOOK));
        let clock = (self.in_use.is_some() || next != NextState::Unwanted).then_some(now + LOOK);
        [write, renewal, files, clock].into_iter().flatten().min()
    }

    fn await_answer(&mut self, now: Instant, of: Issuer, within: Duration) {
        let Attempts { not_before, awaited, is_accepted, .. } = &mut self.attempts;
        (*not_before, *awaited, *is_accepted) = (Some(now + within), Some(of), false);
        self.asked = Some(now);
    }

    /// An attempt whose answer has not come in time has failed, too.
    fn miss(&mut self) {
        let Some(of) = self.attempts.awaited.take() else { return };
        self.attempts.failed += 1;
        if of == Issuer::Hub {
            tracing::warn!("the hub has not answered the request for a certificate in time");
            (self.attempts.at_hub, self.attempts.replaces) = (self.attempts.at_hub + 1, true);
        }
    }

    /// An attempt has failed. `replaces`: the next one must replace a request that is under way.
    pub(super) fn failed(&mut self, replaces: bool) {
        let at = Instant::now() + self.spacing();
        let Attempts { failed, at_hub, .. } = self.attempts;
        self.attempts = Attempts {
            failed: failed + 1,
            at_hub: at_hub + 1,
            not_before: Some(at),
            replaces,
            ..Attempts::default()
        };
        self.look_at = Some(self.look_at.map_or(at, |before| before.min(at)));
    }

    /// The hub has refused a request, or its answer is of no use. One that nothing waits for puts nothing off: a hub that
    /// repeats itself would keep the device from ever asking again, and from asking the service.
    pub(super) fn hub_failed(&mut self, replaces: bool) {
        if self.attempts.awaited == Some(Issuer::Hub) {
            self.failed(replaces);
        }
    }

    /// The hub is at it. That prolongs the wait for the certificate once.
    pub(super) fn accepted(&mut self) {
        if !std::mem::replace(&mut self.attempts.is_accepted, true) {
            self.attempts.not_before = Some(Instant::now() + self.patience());
        }
    }

    /// How long the hub may take to answer.
    fn patience(&self) -> Duration {
        let limit = self.in_use.map_or(ANSWER_LIMIT, |facts| facts.life() / 10);
        limit.clamp(SPACING.0, ANSWER_LIMIT).max(self.spacing())
    }

    fn spacing(&self) -> Duration {
        let life = self.in_use.map_or(SPACING.1, |facts| facts.life() / 100);
        life.clamp(SPACING.0, SPACING.1).mul_f64(1.0 + fastrand::f64())
    }

    /// The files have changed, and cannot be used. True once, if that has been so for long.
    pub(super) fn unfit(&mut self, now: Instant) -> bool {
        let Some(files) = &mut self.files else { return false };
        let for_long = now.duration_since(*files.unfit_since.get_or_insert(now)) >= UNFIT_FOR;
        files.at = now + if for_long { FILE_LOOK } else { UNFIT_LOOK };
        self.look_at = Some(self.look_at.map_or(files.at, |before| before.min(files.at)));
        for_long && !std::mem::replace(&mut files.told, true)
    }

    /// The files fit together. `certificate`: as for [`Self::configured`].
    pub(super) fn fit(&mut self, certificate: Option<CertificateFacts>) {
        self.configured = certificate;
        if let Some(files) = &mut self.files {
            (files.unfit_since, files.told) = (None, false);
        }
    }

    /// What to warn of, at most once a day: the share of the life that is left. A certificate that the agent renews
    /// counts only when that has failed.
    pub(super) fn warning(
        &mut self,
        now: Instant,
        time: SystemTime,
        is_issued: bool,
    ) -> Option<CertificateFacts> {
        let facts = self.in_use.filter(|facts| facts.share_left(time) < NEAR_ITS_END)?;
        let is_over = facts.not_after <= time;
        let is_trouble = !is_issued || is_over || self.attempts.failed > 0;
        let was_told = self.warned.is_some_and(|at| now.duration_since(at) < DAY);
        (is_trouble && !was_told).then(|| self.warned = Some(now))?;
        Some(facts)
    }
}

#[cfg(test)]
mod tests;
