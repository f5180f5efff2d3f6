//! When the Device Provisioning Service is asked for a hub.
//!
//! Owns: what asks for a registration, and the time between two of them. Must not know: how a registration is made,
//! connections.

use std::time::Duration;

use tokio::time::Instant;

use super::terms::HubSource;

/// The least time between two registrations of a device that has an assignment. A random part comes on top.
const SPACING: Duration = Duration::from_secs(60);
/// A hub that was out of reach for so long may be gone: the service knows.
const UNREACHED_LIMIT: Duration = Duration::from_secs(30 * 60);

/// When the service is asked.
#[derive(Debug, Default)]
pub(super) struct Registrations {
    /// Whether the hub has refused the device, or was out of reach for long.
    wanted: bool,
    /// The next time that it may be asked again, if the device has an assignment.
    not_before: Option<Instant>,
    /// Since when no attempt has reached the hub.
    unreached_since: Option<Instant>,
}

impl Registrations {
    /// Whether to ask now. Without an assignment there is nothing else to do, and the caller spaces its attempts.
    pub(super) fn is_due(&self, source: &HubSource) -> bool {
        match source {
            HubSource::Configured => false,
            HubSource::Assigned(_) => self.wanted && self.not_before.is_none_or(|at| at <= Instant::now()),
            HubSource::Unassigned(_) => true,
        }
    }

    /// The hub refused the device: it may belong to another one now.
    pub(super) fn refused(&mut self) {
        (self.wanted, self.unreached_since) = (true, None);
    }

    /// It is asked at once, whenever it was asked before: who wants that spaces its wishes.
    pub(super) fn wanted_now(&mut self) {
        *self = Self { wanted: true, ..Self::default() };
    }

    /// The hub could not be reached.
    pub(super) fn unreached(&mut self) {
        let since = *self.unreached_since.get_or_insert_with(Instant::now);
        self.wanted |= since.elapsed() >= UNREACHED_LIMIT;
    }

    /// The hub was reached.
    pub(super) fn reached(&mut self) {
        self.unreached_since = None;
    }

    /// The service was asked. A device that its hub refuses for long must not ask more often than the service can bear.
    /// `fraction` is a random number from 0 to 1, which keeps a thousand devices apart. `wait` is what the service
    /// asked for.
    pub(super) fn asked(&mut self, wait: Option<Duration>, fraction: f64) {
        let spacing = SPACING.max(wait.unwrap_or_default()).mul_f64(1.0 + fraction.clamp(0.0, 1.0));
        *self = Self { not_before: Some(Instant::now() + spacing), ..Self::default() };
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

    /// How often the service is asked in a day by a device whose attempts at its hub end as `ends`, one a second.
    async fn asked_in_a_day(wait: Option<Duration>, mut ends: impl FnMut(&mut Registrations)) -> u32 {
        let source = HubSource::Assigned(enrolment());
        let (mut registrations, mut asked) = (Registrations::default(), 0);
        for _second in 0..24 * 60 * 60 {
            ends(&mut registrations);
            if registrations.is_due(&source) {
                asked += 1;
                registrations.asked(wait, 0.0);
            }
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        asked
    }

    #[tokio::test(start_paused = true)]
    async fn a_hub_that_refuses_all_day_leads_to_one_question_a_minute_at_most() {
        assert_eq!(asked_in_a_day(None, Registrations::refused).await, 24 * 60);
        let five_minutes = Some(Duration::from_secs(300));
        assert_eq!(asked_in_a_day(five_minutes, Registrations::refused).await, 24 * 12);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hub_that_is_out_of_reach_leads_to_a_question_each_half_hour() {
        assert_eq!(asked_in_a_day(None, Registrations::unreached).await, 47);
        let now_and_then = |registrations: &mut Registrations| {
            registrations.reached();
            registrations.unreached();
        };
        assert_eq!(asked_in_a_day(None, now_and_then).await, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_random_part_keeps_devices_apart() {
        let source = HubSource::Assigned(enrolment());
        let is_due_after = |seconds: u64, fraction: f64| {
            let source = source.clone();
            async move {
                let mut registrations = Registrations::default();
                registrations.asked(None, fraction);
                registrations.refused();
                tokio::time::advance(Duration::from_secs(seconds)).await;
                registrations.is_due(&source)
            }
        };
        assert!(is_due_after(60, 0.0).await);
        assert!(!is_due_after(89, 0.5).await && is_due_after(90, 0.5).await);
        assert!(!is_due_after(119, 1.0).await && is_due_after(120, 1.0).await);
    }

    #[tokio::test(start_paused = true)]
    async fn a_device_without_an_assignment_must_ask_and_one_of_the_configuration_never_does() {
        let mut registrations = Registrations::default();
        registrations.refused();
        assert!(!registrations.is_due(&HubSource::Configured));
        registrations.asked(None, 1.0);
        assert!(registrations.is_due(&HubSource::Unassigned(enrolment())));
    }
}
