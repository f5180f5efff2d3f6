//! When the Device Provisioning Service is asked for a hub.
//!
//! Owns: what asks for a registration, and the time between two of them. Must not know: how a registration is made,
//! connections.

use std::time::Duration;

use tokio::time::Instant;

use super::backoff::STABLE;
use super::terms::HubSource;

/// The least time between two registrations of a device that has an assignment: at first, and at most. It doubles each
/// time. A random part comes on top.
const FIRST_SPACING: Duration = Duration::from_secs(10);
const WIDEST_SPACING: Duration = Duration::from_secs(30 * 60);
/// A hub that was out of reach for so long may be gone: the service knows.
const UNREACHED_LIMIT: Duration = Duration::from_secs(30 * 60);

/// When the service is asked.
#[derive(Debug)]
pub(super) struct Registrations {
    /// Whether the hub has refused the device, or was out of reach for long.
    wanted: bool,
    /// The next time that it may be asked again, if the device has an assignment.
    not_before: Option<Instant>,
    spacing: Duration,
    /// Since when no attempt has reached the hub.
    unreached_since: Option<Instant>,
}

impl Registrations {
    pub(super) fn new() -> Self {
        Self { wanted: false, not_before: None, spacing: FIRST_SPACING, unreached_since: None }
    }

    /// How long until the service is to be asked; zero is now. None: not at all. Without an assignment there is nothing
    /// else to do, and the caller spaces its attempts.
    pub(super) fn due_in(&self, source: &HubSource) -> Option<Duration> {
        match source {
            HubSource::Configured => None,
            HubSource::Assigned(_) => self.wanted.then(|| {
                self.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(Instant::now()))
            }),
            HubSource::Unassigned(_) => Some(Duration::ZERO),
        }
    }

    /// The hub refused the device: it may belong to another one now. `fraction` is as for [`Self::asked`]: a hub that
    /// refuses all its devices at once must not send all of them to the service in the same second.
    pub(super) fn refused(&mut self, fraction: f64) {
        (self.wanted, self.unreached_since) = (true, None);
        let soon = || Instant::now() + FIRST_SPACING.mul_f64(fraction.clamp(0.0, 1.0));
        self.not_before.get_or_insert_with(soon);
    }

    /// It is asked at once, whenever it was asked before: who wants that spaces its wishes, and they wait for the end of
    /// a pause that the service asked for.
    pub(super) fn wanted_now(&mut self) {
        *self = Self { wanted: true, ..Self::new() };
    }

    /// The hub could not be reached.
    pub(super) fn unreached(&mut self) {
        let since = *self.unreached_since.get_or_insert_with(Instant::now);
        self.wanted |= since.elapsed() >= UNREACHED_LIMIT;
    }

    /// The hub accepted the device, and kept the connection for `held`.
    pub(super) fn accepted(&mut self, held: Duration) {
        self.unreached_since = None;
        if held >= STABLE {
            self.spacing = FIRST_SPACING;
        }
    }

    /// The service was asked. A device that its hub refuses for long must not ask more often than the service can bear.
    /// `fraction` is a random number from 0 to 1, which keeps a thousand devices apart. `wait` is what the service
    /// asked for.
    pub(super) fn asked(&mut self, wait: Option<Duration>, fraction: f64) {
        let pause = self.spacing.max(wait.unwrap_or_default()).mul_f64(1.0 + fraction.clamp(0.0, 1.0));
        *self = Self {
            wanted: false,
            not_before: Some(Instant::now() + pause),
            spacing: self.spacing.saturating_mul(2).min(WIDEST_SPACING),
            unreached_since: None,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{HostPort, SharedAccessKey};
    use crate::provisioning::{Enrolment, EnrolmentAuth};

    fn enrolment() -> Enrolment {
        Enrolment {
            endpoint: HostPort { name: "dps.test".into(), port: None },
            id_scope: "0ne1".into(),
            registration_id: "reg-01".into(),
            auth: EnrolmentAuth::Key(SharedAccessKey::from_bytes([7; 32])),
            payload: None,
            request_certificate: false,
        }
    }

    fn refused(registrations: &mut Registrations) {
        registrations.refused(0.0);
    }

    fn is_due(registrations: &Registrations) -> bool {
        registrations.due_in(&HubSource::Assigned(enrolment())) == Some(Duration::ZERO)
    }

    /// The seconds of a day at which the service is asked by a device whose attempts at its hub end as `ends`, one a
    /// second.
    async fn asked_in_a_day(wait: Option<Duration>, mut ends: impl FnMut(&mut Registrations)) -> Vec<u64> {
        let (mut registrations, mut asked) = (Registrations::new(), Vec::new());
        for second in 0..24 * 60 * 60 {
            ends(&mut registrations);
            if is_due(&registrations) {
                asked.push(second);
                registrations.asked(wait, 0.0);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        asked
    }

    #[tokio::test(start_paused = true)]
    async fn a_hub_that_refuses_all_day_leads_to_ever_fewer_questions() {
        let asked = asked_in_a_day(None, refused).await;
        assert_eq!(asked[..6], [0, 10, 30, 70, 150, 310]);
        assert!(asked.len() < 60, "{} questions", asked.len());
        let pauses = asked.windows(2).map(|two| two[1] - two[0]);
        assert_eq!(pauses.max(), Some(30 * 60));
        let busy = asked_in_a_day(Some(Duration::from_secs(300)), refused).await;
        assert_eq!(busy[..3], [0, 300, 600], "the service asks for more");
    }

    #[tokio::test(start_paused = true)]
    async fn a_hub_that_is_out_of_reach_leads_to_a_question_each_half_hour() {
        assert_eq!(asked_in_a_day(None, Registrations::unreached).await.len(), 47);
        let now_and_then = |registrations: &mut Registrations| {
            registrations.accepted(Duration::ZERO);
            registrations.unreached();
        };
        assert!(asked_in_a_day(None, now_and_then).await.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_random_part_keeps_devices_apart_and_a_stable_connection_starts_over() {
        let mut registrations = Registrations::new();
        for (fraction, pause) in [(0.0, 10), (0.5, 30), (1.0, 80)] {
            registrations.asked(None, fraction);
            registrations.refused(0.0);
            let due = registrations.due_in(&HubSource::Assigned(enrolment()));
            assert_eq!(due, Some(Duration::from_secs(pause)), "{fraction}");
        }
        registrations.accepted(STABLE - Duration::from_millis(1));
        registrations.accepted(STABLE);
        registrations.asked(None, 0.0);
        registrations.refused(0.0);
        assert!(!is_due(&registrations));
        tokio::time::advance(Duration::from_secs(10)).await;
        assert!(is_due(&registrations));
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_without_an_assignment_must_ask_and_one_of_the_configuration_never_does() {
        let mut registrations = Registrations::new();
        registrations.refused(0.0);
        assert_eq!(registrations.due_in(&HubSource::Configured), None);
        registrations.asked(None, 1.0);
        assert_eq!(registrations.due_in(&HubSource::Unassigned(enrolment())), Some(Duration::ZERO));
    }
}
