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
/// The time between two looks at files, and when they have changed but cannot be used.
const FILE_LOOK: Duration = Duration::from_secs(15);
const UNFIT_LOOK: Duration = Duration::from_secs(2);
/// How long a half-written pair is waited for before the log has it.
const UNFIT_FOR: Duration = Duration::from_secs(60);
/// After so many questions without success, the provisioning service is asked in place of the hub.
const MOST_AT_HUB: u32 = 3;
/// How long an answer of the hub is waited for, as in Microsoft's C SDK, and at most a tenth of the certificate's life.
/// Source: wire reference 12.6.
const ANSWER_LIMIT: Duration = Duration::from_secs(180);
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
    attempts: Attempts,
    /// The files of a pair that another program renews, if the device signs in with one.
    files: Option<FileLook>,
    warned: Option<Instant>,
    look_at: Option<Instant>,
}

/// Attempts to get the next certificate.
#[derive(Debug, Default)]
struct Attempts {
    failed: u32,
    not_before: Option<Instant>,
    /// Whether the next request replaces one that is under way.
    replaces: bool,
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
    Issued,
}

/// What to do now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CertificateWish {
    MakeKey,
    AskHub { replaces: bool },
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

    /// The device has signed in with this certificate.
    pub(super) fn signed_in(&mut self, in_use: Option<CertificateFacts>) {
        self.take(in_use);
        self.look_at = Some(Instant::now());
    }

    fn take(&mut self, in_use: Option<CertificateFacts>) {
        if in_use != self.in_use {
            (self.in_use, self.warned, self.attempts) = (in_use, None, Attempts::default());
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
        let may_try = self.attempts.not_before.is_none_or(|at| at <= now);
        let is_due = self.renewal.is_some_and(|at| at <= time);
        let wish = match next {
            NextState::Absent if may_try => Some(CertificateWish::MakeKey),
            NextState::Asked if may_try && is_due => match issuer {
                Issuer::Unavailable => None,
                Issuer::Hub if self.attempts.failed < MOST_AT_HUB => {
                    Some(CertificateWish::AskHub { replaces: self.attempts.replaces })
                }
                Issuer::Hub | Issuer::Service => Some(CertificateWish::AskService),
            },
            _ => None,
        };
        match wish {
            // Until the answer comes, or is missing for too long.
            Some(CertificateWish::AskHub { .. }) => {
                self.attempts.not_before = Some(now + self.answer_limit())
            }
            Some(CertificateWish::AskService) => {
                self.attempts = Attempts { not_before: Some(now + self.spacing()), ..Attempts::default() };
            }
            Some(_) => self.attempts.not_before = Some(now + self.spacing()),
            None => {}
        }
        let wish = match &mut self.files {
            Some(files) if wish.is_none() && files.at <= now => {
                files.at = now + if files.unfit_since.is_some() { UNFIT_LOOK } else { FILE_LOOK };
                Some(CertificateWish::LookAtFiles)
            }
            _ => wish,
        };
        self.look_at = self.next_look(now, time, next);
        wish
    }

    fn next_look(&self, now: Instant, time: SystemTime, next: NextState) -> Option<Instant> {
        let until = |at: SystemTime| now + at.duration_since(time).unwrap_or_default();
        let renewal = match (next, self.attempts.not_before) {
            (NextState::Unwanted, _) => None,
            (_, Some(at)) if at > now => Some(at),
            _ => self.renewal.map(until).filter(|at| *at > now),
        };
        let files = self.files.map(|files| files.at.max(now + UNFIT_LOOK));
        let clock = (self.in_use.is_some() || next != NextState::Unwanted).then_some(now + LOOK);
        [renewal, files, clock].into_iter().flatten().min()
    }

    /// An attempt has failed. `replaces`: the next one must replace a request that is under way.
    pub(super) fn failed(&mut self, replaces: bool) {
        let at = Instant::now() + self.spacing();
        self.attempts.failed += 1;
        (self.attempts.not_before, self.attempts.replaces) = (Some(at), replaces);
        self.look_at = Some(self.look_at.map_or(at, |before| before.min(at)));
    }

    /// The hub is at it.
    pub(super) fn accepted(&mut self) {
        self.attempts.not_before = Some(Instant::now() + self.answer_limit().max(self.spacing()));
    }

    fn answer_limit(&self) -> Duration {
        self.in_use.map_or(ANSWER_LIMIT, |facts| (facts.life() / 10).clamp(SPACING.0, ANSWER_LIMIT))
    }

    fn spacing(&self) -> Duration {
        let life = self.in_use.map_or(SPACING.1, |facts| facts.life() / 100);
        life.clamp(SPACING.0, SPACING.1).mul_f64(1.0 + fastrand::f64())
    }

    /// The files have changed, and cannot be used. True once, if that has been so for long.
    pub(super) fn unfit(&mut self, now: Instant) -> bool {
        let Some(files) = &mut self.files else { return false };
        let since = *files.unfit_since.get_or_insert(now);
        files.at = now + UNFIT_LOOK;
        self.look_at = Some(self.look_at.map_or(files.at, |before| before.min(files.at)));
        now.duration_since(since) >= UNFIT_FOR && !std::mem::replace(&mut files.told, true)
    }

    /// The files fit together.
    pub(super) fn fit(&mut self) {
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
mod tests {
    use super::*;

    fn time(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    /// A certificate from 1000 to 2000 seconds.
    fn facts(number: u8) -> CertificateFacts {
        CertificateFacts { fingerprint: [number; 32], not_before: time(1000), not_after: time(2000) }
    }

    fn in_use() -> Certificates {
        let mut certificates = Certificates::default();
        certificates.signed_in(Some(facts(1)));
        certificates
    }

    #[tokio::test(start_paused = true)]
    async fn the_hub_is_asked_at_80_to_85_percent_of_the_life_and_again_after_a_pause() {
        let mut it = in_use();
        let look = |it: &mut Certificates, seconds| {
            it.look(Instant::now(), time(seconds), NextState::Asked, Issuer::Hub)
        };
        assert_eq!(look(&mut it, 1799), None);
        let ask = Some(CertificateWish::AskHub { replaces: false });
        assert_eq!(look(&mut it, 1851), ask);
        assert_eq!(look(&mut it, 1852), None, "an answer is awaited");
        it.failed(true);
        tokio::time::advance(Duration::from_secs(9)).await;
        assert_eq!(look(&mut it, 1860), None, "a hundredth of the life is 10 s");
        tokio::time::advance(Duration::from_secs(12)).await;
        assert_eq!(look(&mut it, 1872), Some(CertificateWish::AskHub { replaces: true }));
        // Without any answer it is asked again, too.
        tokio::time::advance(Duration::from_secs(99)).await;
        assert_eq!(look(&mut it, 1900), None, "a tenth of the life is 100 s");
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(look(&mut it, 1900), Some(CertificateWish::AskHub { replaces: true }));
    }

    #[tokio::test(start_paused = true)]
    async fn a_hub_that_refuses_three_times_leads_to_the_service_and_that_at_a_pace() {
        let mut it = in_use();
        let mut asked = Vec::new();
        for _second in 0..600 {
            match it.look(Instant::now(), time(1900), NextState::Asked, Issuer::Hub) {
                Some(CertificateWish::AskHub { .. }) => {
                    asked.push('h');
                    it.failed(false);
                }
                Some(CertificateWish::AskService) => asked.push('s'),
                other => assert_eq!(other, None),
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        let asked = String::from_iter(asked);
        assert!(asked.starts_with("hhhshhhs") && (30..=60).contains(&asked.len()), "{asked}");
        let mut over_amqp = in_use();
        let wish = over_amqp.look(Instant::now(), time(1900), NextState::Asked, Issuer::Service);
        assert_eq!(wish, Some(CertificateWish::AskService));
        assert_eq!(in_use().look(Instant::now(), time(1900), NextState::Asked, Issuer::Unavailable), None);
        assert_eq!(in_use().look(Instant::now(), time(1900), NextState::Issued, Issuer::Hub), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_key_is_made_whenever_the_disk_may_have_room_again() {
        let mut it = in_use();
        let look =
            |it: &mut Certificates| it.look(Instant::now(), time(1100), NextState::Absent, Issuer::Hub);
        assert_eq!(look(&mut it), Some(CertificateWish::MakeKey));
        assert_eq!(look(&mut it), None);
        tokio::time::advance(Duration::from_secs(21)).await;
        assert_eq!(look(&mut it), Some(CertificateWish::MakeKey));
    }

    #[tokio::test(start_paused = true)]
    async fn a_look_is_never_far_and_never_at_once_again() {
        let mut it = in_use();
        for seconds in [0, 1000, 1799, 1799, 1999, 5000] {
            for next in [NextState::Unwanted, NextState::Absent, NextState::Asked, NextState::Issued] {
                it.look(Instant::now(), time(seconds), next, Issuer::Unavailable);
                let wait = it.wake().expect("a look") - Instant::now();
                assert!(!wait.is_zero() && wait <= LOOK, "{wait:?} at {seconds}, {next:?}");
            }
        }
        let mut none = Certificates::default();
        none.configured(None, false);
        assert_eq!(none.look(Instant::now(), time(0), NextState::Unwanted, Issuer::Unavailable), None);
        assert_eq!(none.wake(), None, "nothing to look at");
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_is_told_once_a_day_from_20_percent_on() {
        let mut it = in_use();
        let warn = |it: &mut Certificates, seconds, is_issued| {
            it.warning(Instant::now(), time(seconds), is_issued).is_some()
        };
        assert!(!warn(&mut it, 1799, false));
        assert!(warn(&mut it, 1801, false) && !warn(&mut it, 1999, false));
        tokio::time::advance(DAY).await;
        assert!(warn(&mut it, 1999, false));
        it.signed_in(Some(facts(2)));
        assert!(!warn(&mut it, 1850, true), "its renewal is under way");
        it.failed(false);
        assert!(warn(&mut it, 1850, true), "and has failed once");
        it.signed_in(Some(facts(3)));
        assert!(warn(&mut it, 2000, true), "it is over");
    }

    #[tokio::test(start_paused = true)]
    async fn a_half_written_pair_is_looked_at_again_soon_and_told_once() {
        let mut it = Certificates::default();
        it.configured(Some(facts(1)), true);
        tokio::time::advance(FILE_LOOK).await;
        let look = |it: &mut Certificates| {
            it.look(Instant::now(), time(1100), NextState::Unwanted, Issuer::Unavailable)
        };
        assert_eq!(look(&mut it), Some(CertificateWish::LookAtFiles));
        let mut told = 0;
        for _look in 0..60 {
            told += u32::from(it.unfit(Instant::now()));
            tokio::time::advance(UNFIT_LOOK).await;
            assert_eq!(look(&mut it), Some(CertificateWish::LookAtFiles));
        }
        assert_eq!(told, 1);
        it.fit();
        assert!(!it.unfit(Instant::now()));
    }
}
