//! The registration: does the provisioning service assign a hub?
//!
//! Owns: when to ask it, and the verdict on its answer and on an earlier one. Must not know: MQTT.

use std::time::Duration;

use super::subject::NetworkSubject;
use super::{Check, Finding, RunningAgent};
use crate::config::{Provisioning, counted};
use crate::session::{self, EnrolError, EnrolSettings};

/// How long a registration may take: the service asks for a pause of a few seconds before it has an answer.
const LIMIT: Duration = Duration::from_secs(10);
const DAY: u64 = 24 * 60 * 60;

/// Tells of the assignment. Without one, and with `forced`, asks the service for it, as the agent would, and keeps nothing.
pub(super) async fn registration(
    subject: &NetworkSubject<'_>,
    provisioning: &Provisioning,
    agent: &RunningAgent,
    forced: bool,
    may_try: Result<(), &'static str>,
) -> Finding {
    let check = Check::Registration;
    if let (false, Some((assignment, _)), Some(at)) =
        (forced, &provisioning.assigned, provisioning.assigned_at())
    {
        let days = (subject.clock)().duration_since(at).unwrap_or_default().as_secs() / DAY;
        let days = counted(usize::try_from(days).unwrap_or(usize::MAX), "day");
        let day = &crate::message::format_time(at)[..10];
        let (device_id, hub) = (&assignment.device_id, &assignment.hub);
        return check.ok(format!("device {device_id} on hub {hub}, assigned on {day}, {days} ago"));
    }
    if subject.offline {
        return check.skipped("--offline; no hub is assigned yet");
    }
    if matches!(agent, RunningAgent::Running { .. }) && !forced {
        return check
            .skipped("no hub is assigned yet, and the running agent asks for one: with --sign-in, the doctor asks, too");
    }
    if let Err(reason) = may_try {
        return check.skipped(reason);
    }
    let (enrolment, ca_file) = (provisioning.enrolment.clone(), subject.ca_file.map(Into::into));
    let settings =
        EnrolSettings::new(enrolment, ca_file, subject.route.clone(), subject.transport, subject.clock);
    match session::enrol(&settings, None, LIMIT).await {
        Ok(assigned) => check.ok(format!("it assigns device {} on hub {}", assigned.device_id, assigned.hub)),
        Err(EnrolError::Tls(error)) => {
            check.failed(error.to_string(), format!("correct what {} names", subject.files()))
        }
        Err(error) if error.is_busy() => check.warned_of(error),
        Err(error) => check.failed_with(error),
    }
}
