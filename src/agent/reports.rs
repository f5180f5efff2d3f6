//! Reports: outcomes on their way to the hub.
//!
//! Owns: when a report is published, and published again after a lost connection; the state that the twin shows. Must
//! not know: MQTT, files. Reports wait in the inbox's file, and the twin's state can be rebuilt from it.
//!
//! Telemetry reports are taken from the inbox a few at a time, published, and deleted there when the hub has them. If
//! a connection is lost before the answer, the report is sent again with the same message id. The twin is patched at
//! most once a second, with the state of that moment.

use std::collections::{BTreeSet, VecDeque};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tokio::time::Instant;

use crate::inbox::{Inbox, Op, Opened};
use crate::message::{CONTENT_ENCODING, CONTENT_TYPE, CORRELATION_ID, MESSAGE_ID, Properties, format_time};
use crate::outcome::{
    DesiredReport, Gone, LastMessage, OutcomeReport, REPORT_PROPERTY, Totals, TwinCertificate,
    TwinConnection, TwinReport,
};
use crate::rules::ReportTo;
use crate::session::{PublishError, Upstream};

use super::rulebook::Rulebook;
use super::sessions::{PublishId, Sessions};

/// Most telemetry reports under way at once: two of the session's eight places are for the twin.
const AT_ONCE: usize = 6;
/// Most reports taken from the inbox at once.
const FETCHED: usize = 64;
/// The shortest time between two patches of the twin.
const TWIN_REST: Duration = Duration::from_secs(1);
/// How long to wait after the hub said that it is busy.
const BUSY_REST: Duration = Duration::from_secs(5);
/// How long to wait after a refusal.
const LONG_REST: Duration = Duration::from_secs(60);

/// What waits for the hub.
#[derive(Debug)]
pub(super) struct Reports {
    connected: bool,
    telemetry: Telemetry,
    twin: Option<TwinState>,
}

#[derive(Debug, Default)]
struct Telemetry {
    /// Taken from the inbox, oldest first.
    waiting: VecDeque<(u64, Bytes)>,
    under_way: BTreeSet<u64>,
    /// The hub has them, or will never take them. The inbox is to be told.
    done: Vec<u64>,
    /// Whether the inbox may have more.
    more: bool,
    fetching: bool,
    not_before: Option<Instant>,
}

#[derive(Debug)]
struct TwinState {
    report: TwinReport,
    /// What the patch under way removes from the twin.
    forgetting: Gone,
    /// Whether it holds something that the hub has not seen.
    changed: bool,
    /// Whether the facts about the agent itself may be out of date.
    stale: bool,
    under_way: bool,
    /// When the last patch was published.
    published: Option<Instant>,
    not_before: Option<Instant>,
}

/// What the twin shows of the agent itself.
#[derive(Debug)]
pub(super) struct Facts {
    pub(super) configuration: String,
    /// None without a connection. Then the twin keeps showing the last one.
    pub(super) connection: Option<TwinConnection>,
    pub(super) pins: Vec<(String, String)>,
    pub(super) certificate: Option<TwinCertificate>,
    pub(super) desired: Option<DesiredReport>,
}

impl Default for TwinState {
    fn default() -> Self {
        let version = Some(env!("CARGO_PKG_VERSION").to_owned());
        Self {
            report: TwinReport { version, ..TwinReport::default() },
            forgetting: Gone::default(),
            changed: true,
            stale: true,
            under_way: false,
            published: None,
            not_before: None,
        }
    }
}

impl TwinState {
    /// The hub answered a patch, or the answer is lost.
    fn published(&mut self, result: &Result<(), PublishError>, now: Instant) {
        self.under_way = false;
        let forgetting = std::mem::take(&mut self.forgetting);
        if result.is_err() {
            self.report.gone.rules.extend(forgetting.rules);
            self.report.gone.pins.extend(forgetting.pins);
        }
        match result {
            Ok(()) => {}
            Err(PublishError::Refused(status)) => {
                tracing::warn!(
                    status,
                    "the hub refused the report in the twin: the agent tries again with the next change"
                );
                self.not_before = Some(now + LONG_REST);
            }
            Err(error @ (PublishError::Lost | PublishError::Busy(_))) => {
                tracing::debug!(%error, "the twin is patched again");
                self.changed = true;
                self.not_before = Some(now + BUSY_REST);
            }
        }
    }
}

impl Reports {
    /// `twin`: whether the twin is written.
    pub(super) fn new(twin: bool) -> Self {
        let twin = twin.then(TwinState::default);
        Self { connected: false, telemetry: Telemetry::default(), twin }
    }

    /// Sets whether the twin is written from now on. `totals` and `last_received` fill a twin that was not written
    /// before.
    pub(super) fn report_in_twin(&mut self, twin: bool, totals: &Totals, last_received: Option<SystemTime>) {
        if twin != self.twin.is_some() {
            self.twin = twin.then(TwinState::default);
            self.totals(totals);
            if let Some(received) = last_received {
                self.received(None, received);
            }
        }
    }

    /// Takes in what the inbox held at the start.
    pub(super) fn recovered(&mut self, opened: &Opened, rules: &Rulebook) {
        self.telemetry.more = opened.counts.reports > 0;
        self.totals(&opened.counts.totals);
        if let Some(received) = opened.last_received {
            self.received(None, received);
        }
        let mut latest: Vec<&OutcomeReport> =
            opened.latest.iter().filter_map(|record| record.outcome.as_ref()).collect();
        latest.sort_by(|one, other| one.ended.cmp(&other.ended));
        for outcome in latest {
            let rule = rules.facts(outcome.rule.as_deref());
            self.ended(outcome, rule.map(|rule| rule.policy.reports).unwrap_or_default());
        }
    }

    /// Whether the twin is written.
    pub(super) fn has_twin(&self) -> bool {
        self.twin.is_some()
    }

    /// Marks the facts about the agent itself as possibly out of date.
    pub(super) fn look_again(&mut self) {
        if let Some(twin) = &mut self.twin {
            twin.stale = true;
        }
    }

    /// Whether to look at the agent itself now and [`Reports::show`] it. This is done no more often than the twin can
    /// be patched.
    pub(super) fn wants_to_look(&self, now: Instant) -> bool {
        let may =
            |twin: &TwinState| twin.stale && !twin.under_way && twin.not_before.is_none_or(|at| at <= now);
        self.connected && self.twin.as_ref().is_some_and(may)
    }

    /// Takes in the facts about the agent itself.
    pub(super) fn show(&mut self, facts: Facts) {
        let Some(twin) = &mut self.twin else { return };
        twin.stale = false;
        let Facts { configuration, connection, pins, certificate, desired } = facts;
        let report = &mut twin.report;
        let same = report.configuration.as_ref() == Some(&configuration)
            && (connection.is_none() || report.connection == connection)
            && report.certificate == certificate
            && report.desired == desired;
        report.configuration = Some(configuration);
        report.connection = connection.or(report.connection.take());
        (report.certificate, report.desired) = (certificate, desired);
        twin.changed |= report.set_pins(pins) || !same;
    }

    /// Removes rules that no longer report in the twin, from it and from `reported`, which is what the hub has: see
    /// [`TwinReport::keep_known`].
    pub(super) fn keep_known(&mut self, rules: &Rulebook, reported: &serde_json::Value) {
        if let Some(twin) = &mut self.twin {
            let known = rules.reporting_in_twin();
            twin.changed |= twin.report.keep_known(|key| known.contains(key), reported);
        }
    }

    pub(super) fn connected(&mut self) {
        self.connected = true;
        self.telemetry.not_before = None;
        if let Some(twin) = &mut self.twin {
            // A new connection does not lift the limit of one patch a second.
            twin.not_before = twin.published.map(|at| at + TWIN_REST);
        }
    }

    pub(super) fn disconnected(&mut self) {
        self.connected = false;
    }

    /// A message arrived.
    pub(super) fn received(&mut self, message_id: Option<&str>, at: SystemTime) {
        if let Some(twin) = &mut self.twin {
            let (message_id, received) = (message_id.map(str::to_owned), format_time(at));
            twin.report.last_message = Some(LastMessage { message_id, received });
            twin.changed = true;
        }
    }

    /// A message has ended. Its telemetry report, if it has one, is in the inbox.
    pub(super) fn ended(&mut self, outcome: &OutcomeReport, reports: ReportTo) {
        self.telemetry.more |= reports.telemetry;
        let Some(twin) = self.twin.as_mut().filter(|_| reports.twin) else { return };
        twin.report.record(outcome);
        twin.changed = true;
    }

    /// Takes in how many messages ended in which way since the inbox was created.
    pub(super) fn totals(&mut self, totals: &Totals) {
        if let Some(twin) = self.twin.as_mut().filter(|twin| twin.report.totals != *totals) {
            twin.report.totals = totals.clone();
            twin.changed = true;
        }
    }

    /// The inbox has handed over reports.
    pub(super) fn fetched(&mut self, reports: Vec<(u64, Bytes)>) {
        self.telemetry.fetching = false;
        self.telemetry.more |= reports.len() == FETCHED;
        self.telemetry.waiting = reports.into();
    }

    /// The hub answered something published, or the answer is lost.
    pub(super) fn published(&mut self, id: PublishId, result: Result<(), PublishError>, now: Instant) {
        if id == PublishId::TWIN_PATCH {
            return self.twin.as_mut().into_iter().for_each(|twin| twin.published(&result, now));
        }
        let (telemetry, report) = (&mut self.telemetry, id.0);
        telemetry.under_way.remove(&report);
        match result {
            Ok(()) => telemetry.done.push(report),
            Err(PublishError::Refused(status)) => {
                tracing::warn!(report, status, "the hub refused an outcome report: it is dropped");
                telemetry.done.push(report);
            }
            Err(error @ (PublishError::Lost | PublishError::Busy(_))) => {
                tracing::debug!(report, %error, "an outcome report is sent again");
                telemetry.more = true;
                telemetry.not_before = Some(now + BUSY_REST);
            }
        }
    }

    /// When the reports must be looked at again.
    pub(super) fn wake(&self) -> Option<Instant> {
        if !self.connected {
            return None;
        }
        let telemetry = self.telemetry.not_before.filter(|_| self.telemetry.more);
        let twin = self.twin.as_ref().filter(|twin| (twin.changed || twin.stale) && !twin.under_way);
        [telemetry, twin.and_then(|twin| twin.not_before)].into_iter().flatten().min()
    }

    /// Publishes what can be published, and asks the inbox for more.
    pub(super) fn pump(&mut self, sessions: &Sessions, inbox: &mut Inbox, now: Instant) {
        let over = |not_before: Option<Instant>| not_before.is_none_or(|at| at <= now);
        let telemetry = &mut self.telemetry;
        if !telemetry.done.is_empty() {
            inbox.submit(Op::ReportsDone(std::mem::take(&mut telemetry.done)));
        }
        if !self.connected {
            // Reports that were not published yet are fetched from the inbox again later.
            telemetry.more |= !telemetry.waiting.is_empty();
            telemetry.waiting.clear();
            return;
        }
        if over(telemetry.not_before) {
            telemetry.not_before = None;
            while telemetry.under_way.len() < AT_ONCE
                && let Some((number, body)) = telemetry.waiting.pop_front()
            {
                telemetry.under_way.insert(number);
                sessions.publish(PublishId(number), telemetry_message(number, body));
            }
            let idle = telemetry.waiting.is_empty() && telemetry.under_way.is_empty();
            if telemetry.more && !telemetry.fetching && idle {
                (telemetry.more, telemetry.fetching) = (false, true);
                inbox.submit(Op::Reports { after: 0, limit: FETCHED });
            }
        }
        if let Some(twin) = &mut self.twin
            && twin.changed
            && !twin.under_way
            && over(twin.not_before)
        {
            let patch = twin.report.patch().to_string().into();
            twin.forgetting = std::mem::take(&mut twin.report.gone);
            sessions.publish(PublishId::TWIN_PATCH, Upstream::Reported { patch });
            (twin.under_way, twin.changed) = (true, false);
            (twin.published, twin.not_before) = (Some(now), Some(now + TWIN_REST));
        }
    }
}

/// The D2C message of a report. A report always gets the same message id, so that a reader can find duplicates.
fn telemetry_message(number: u64, body: Bytes) -> Upstream {
    let outcome: Option<OutcomeReport> = serde_json::from_slice(&body).ok();
    let digits = |text: &str| text.chars().filter(char::is_ascii_digit).collect::<String>();
    let ended = outcome.as_ref().map(|outcome| digits(&outcome.ended)).unwrap_or_default();
    let mut properties = Properties::default();
    properties.set(MESSAGE_ID, format!("outcome-{number}-{ended}"));
    if let Some(id) = outcome.and_then(|outcome| outcome.message_id) {
        properties.set(CORRELATION_ID, id);
    }
    properties.set(CONTENT_TYPE, "application/json");
    properties.set(CONTENT_ENCODING, "utf-8");
    properties.set(REPORT_PROPERTY.0, REPORT_PROPERTY.1);
    Upstream::Telemetry { properties, body }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_twin_that_is_reported_in_from_now_on_does_not_begin_with_zeros() {
        let totals = Totals::from([(crate::outcome::OutcomeKind::Succeeded, 3)]);
        let mut reports = Reports::new(false);
        reports.report_in_twin(true, &totals, Some(SystemTime::UNIX_EPOCH));
        let report = reports.twin.map(|twin| twin.report).unwrap();
        assert_eq!(report.totals, totals);
        assert_eq!(report.last_message.unwrap().received, format_time(SystemTime::UNIX_EPOCH));
    }

    #[test]
    fn another_connection_does_not_shorten_the_rest_of_the_twin() {
        let (mut reports, now) = (Reports::new(true), Instant::now());
        reports.connected();
        assert_eq!(reports.wake(), None, "the first patch waits for nothing");
        if let Some(twin) = &mut reports.twin {
            (twin.published, twin.under_way, twin.changed) = (Some(now), true, false);
        }
        reports.published(PublishId::TWIN_PATCH, Err(PublishError::Lost), now);
        reports.disconnected();
        reports.connected();
        assert_eq!(reports.wake(), Some(now + TWIN_REST));
    }
}
