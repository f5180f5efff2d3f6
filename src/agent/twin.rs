//! Rules of the twin: read when they may have changed, checked beside the loop, applied between two messages, and
//! answered in the reported properties.
//!
//! Owns: when the twin is read, which of its rules are in force, and what is reported of them. Must not know: TOML,
//! the protocol to the hub.
//!
//! Desired properties are applied as a whole or refused as a whole. The hub notifies of changes, but notifications
//! can be missed. So the agent reads the whole twin, also after each connection, and compares it with the rules in
//! force. Accepted rules are on disk before they count, so the next start has them without the hub.

use std::time::Duration;

use bytes::Bytes;
use serde_json::Value;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::config::{Config, Report, TwinPart, TwinRules, version_of};
use crate::message::format_time;
use crate::outcome::{DesiredReport, MAX_TWIN_PROBLEMS, TwinCertificate, TwinConnection};
use crate::session::{PublishError, Upstream};

use super::desk::Desk;
use super::new_rules;
use super::reports::Facts;
use super::sessions::{PublishId, Sessions, writes_twin};

/// How long a read or a write of the configuration may take, because its disk may hang.
pub(super) const READ_LIMIT: Duration = Duration::from_secs(10);
/// The shortest time between two requests.
const REST: Duration = Duration::from_secs(1);
/// How long to wait after a request that failed, or that the hub was too busy for.
const BUSY_REST: Duration = Duration::from_secs(5);
/// How long to wait after the hub or the disk refused.
const LONG_REST: Duration = Duration::from_secs(60);

/// How the agent follows the rules of its twin.
#[derive(Debug, Default)]
pub(super) struct TwinRulesState {
    /// Whether the twin is written, so that there is a place for an answer.
    follows: bool,
    connected: bool,
    /// Whether the twin may have changed.
    wanted: bool,
    /// Whether a request is under way.
    asked: bool,
    /// Whether the log says already that the hub refuses the twin.
    complained: bool,
    /// When the last request was sent.
    asked_at: Option<Instant>,
    not_before: Option<Instant>,
    judging: Option<Judging>,
    /// A check that hangs on the disk. It may still write the file later, so no other check may write before it ends.
    hung: Option<JoinHandle<TwinVerdict>>,
    /// The rules in the file.
    kept: TwinRules,
    /// Whether the kept rules are in force. Also true if there are none.
    in_force: bool,
    /// What is reported of the desired properties.
    told: Option<DesiredReport>,
    /// The digest of the configuration in force.
    digest: String,
}

/// Desired rules that are being checked, and how long to wait for that.
#[derive(Debug)]
struct Judging {
    rules: TwinRules,
    task: JoinHandle<TwinVerdict>,
    deadline: Instant,
}

/// The result of a check of desired rules.
#[derive(Debug)]
pub(super) enum TwinVerdict {
    /// They are in the file. Has the configuration that includes them, and the warnings about them.
    Taken(Box<(Config, Report)>),
    /// They have problems.
    Refused(Report),
    /// They may be right, but cannot be saved, or cannot be checked now.
    Stuck(String),
}

impl TwinRulesState {
    pub(super) fn new(config: &Config, part: TwinPart) -> Self {
        let mut state = Self { in_force: true, ..Self::default() };
        state.configured(config, part);
        state
    }

    /// The configuration was read, together with the rules of the file.
    pub(super) fn configured(&mut self, config: &Config, part: TwinPart) {
        self.follows = writes_twin(config);
        self.digest = config.digest();
        self.changed();
        if !self.follows {
            self.told = None;
        }
        match part {
            TwinPart::Absent => {}
            TwinPart::Used { rules, warnings } => {
                log_warnings(&warnings);
                tracing::info!(
                    version = rules.version,
                    rules = config.twin_rules.len(),
                    "rules of the twin are applied"
                );
                self.told = Some(DesiredReport::applied(rules.version));
                (self.kept, self.in_force) = (rules, true);
            }
            TwinPart::Refused { rules, report } => {
                log_refused(rules.version, report.problem_lines());
                self.told = Some(DesiredReport::refused(rules.version, report.problem_lines()));
                (self.kept, self.in_force) = (rules, false);
            }
            TwinPart::Unreadable { file, reason } => {
                tracing::warn!(
                    file = %file.display(),
                    reason,
                    "the rules of the twin cannot be read: the agent runs without them until it has read its \
                     twin"
                );
                self.in_force = false;
            }
        }
    }

    /// What is reported of the desired properties, if anything yet.
    pub(super) fn told(&self) -> Option<&DesiredReport> {
        self.told.as_ref()
    }

    /// The rules that the next read of the configuration must include.
    pub(super) fn kept(&self) -> &TwinRules {
        &self.kept
    }

    /// Whether other rules are being checked. Meanwhile the configuration must not change.
    pub(super) fn is_judging(&self) -> bool {
        self.judging.is_some()
    }

    pub(super) fn connected(&mut self) {
        self.connected = true;
        self.changed();
    }

    pub(super) fn disconnected(&mut self) {
        self.connected = false;
    }

    /// The twin may have changed, or may be judged differently now. The cause of an earlier failure may be gone, so
    /// longer waits are dropped.
    pub(super) fn changed(&mut self) {
        self.wanted = true;
        self.not_before = self.asked_at.map(|at| at + REST);
    }

    fn again_after(&mut self, rest: Duration, now: Instant) {
        (self.wanted, self.not_before) = (true, Some(now + rest));
    }

    fn may_ask(&self) -> bool {
        self.follows && self.connected && self.wanted && !self.asked && self.judging.is_none()
    }

    /// Checks rules on a thread where that may block.
    fn judge(
        &mut self,
        rules: TwinRules,
        now: Instant,
        judge: impl FnOnce() -> TwinVerdict + Send + 'static,
    ) {
        self.hung.take_if(|hung| hung.is_finished());
        let hangs = self.hung.is_some();
        let task = tokio::task::spawn_blocking(move || if hangs { stuck_on_disk() } else { judge() });
        self.judging = Some(Judging { rules, task, deadline: now + READ_LIMIT });
    }

    /// Ends the check, and returns the rules that were checked.
    fn judged(&mut self) -> Option<TwinRules> {
        let Judging { rules, task, .. } = self.judging.take()?;
        if !task.is_finished() {
            self.hung = Some(task);
        }
        Some(rules)
    }

    /// Requests the twin if it may have changed.
    pub(super) fn follow(&mut self, sessions: &Sessions, now: Instant) {
        if self.not_before.is_none_or(|at| at <= now) && self.may_ask() {
            (self.wanted, self.asked) = (false, true);
            (self.asked_at, self.not_before) = (Some(now), Some(now + REST));
            sessions.publish(PublishId::TWIN_READ, Upstream::ReadTwin);
        }
    }

    /// When to look at the twin again.
    pub(super) fn wake(&self) -> Option<Instant> {
        self.not_before.filter(|_| self.may_ask())
    }

    /// Waits until the check has ended. If there is none, it waits for ever. Cancel safe.
    pub(super) async fn next(&mut self) -> TwinVerdict {
        let Some(Judging { task, deadline, .. }) = &mut self.judging else {
            return std::future::pending().await;
        };
        match tokio::time::timeout_at(*deadline, task).await {
            Ok(Ok(verdict)) => verdict,
            Ok(Err(defect)) => {
                TwinVerdict::Stuck(format!("they could not be checked ({defect}): please report this"))
            }
            Err(_elapsed) => stuck_on_disk(),
        }
    }
}

fn stuck_on_disk() -> TwinVerdict {
    TwinVerdict::Stuck(format!("they could not be saved within {} s: the disk hangs", READ_LIMIT.as_secs()))
}

/// Checks rules, and saves those that are right. Blocks.
fn judge(config: &Config, rules: &TwinRules) -> TwinVerdict {
    match config.with_twin(rules) {
        Err(report) => TwinVerdict::Refused(report),
        Ok(taken) => match rules.store(&TwinRules::file(&config.inbox.path)) {
            Ok(()) => TwinVerdict::Taken(Box::new(taken)),
            Err(reason) => TwinVerdict::Stuck(reason),
        },
    }
}

fn log_refused(version: u64, problems: impl Iterator<Item = String>) {
    let problems: Vec<String> = problems.collect();
    let named = DesiredReport::refused(version, problems.iter().cloned()).problems;
    named.iter().for_each(|problem| tracing::warn!("{problem}"));
    tracing::warn!(version, problems = problems.len(), "rules of the twin are refused");
}

/// Logs warnings. It does not log a line for each of hundreds of rules whenever the twin is patched.
fn log_warnings(warnings: &Report) {
    let lines: Vec<String> = warnings.warning_lines().collect();
    lines.iter().take(MAX_TWIN_PROBLEMS).for_each(|warning| tracing::warn!("{warning}"));
    let more = lines.len().saturating_sub(MAX_TWIN_PROBLEMS);
    if more > 0 {
        tracing::warn!(more, "there are more warnings about rules of the twin: `c2d-agent check` shows all");
    }
}

/// Handles the answer to the request for the twin. `reading`: whether a reload is being read.
pub(super) fn answered(
    desk: &mut Desk,
    twin: &mut TwinRulesState,
    reading: bool,
    result: Result<Bytes, PublishError>,
) {
    let now = Instant::now();
    twin.asked = false;
    let body = match result {
        Ok(body) => body,
        Err(PublishError::Refused(status)) => {
            if !std::mem::replace(&mut twin.complained, true) {
                tracing::warn!(status, "the hub refused to send the twin: the agent asks again every minute");
            }
            return twin.again_after(LONG_REST, now);
        }
        Err(error) => {
            tracing::debug!(%error, "asking for the twin again");
            return twin.again_after(BUSY_REST, now);
        }
    };
    twin.complained = false;
    let properties: Value = match serde_json::from_slice(&body) {
        Ok(properties) => properties,
        Err(error) => {
            tracing::warn!(%error, "the hub sent a twin that is not JSON: the agent asks again");
            return twin.again_after(LONG_REST, now);
        }
    };
    let Some(desired) = properties.get("desired").filter(|desired| desired.is_object()) else {
        tracing::warn!("the hub sent a twin without desired properties: the agent asks again");
        return twin.again_after(LONG_REST, now);
    };
    desk.reports.keep_known(&desk.rules, &properties["reported"]);
    if twin.is_judging() || reading {
        return twin.again_after(REST, now);
    }
    look_at_desired(desk, twin, desired, now);
}

fn look_at_desired(desk: &mut Desk, twin: &mut TwinRulesState, desired: &Value, now: Instant) {
    let rules = match TwinRules::from_desired(desired) {
        Ok(rules) => rules,
        Err(problems) => {
            let version = version_of(desired);
            log_refused(version, problems.iter().cloned());
            return tell(desk, twin, DesiredReport::refused(version, problems));
        }
    };
    if twin.in_force && rules.texts == twin.kept.texts {
        twin.kept.version = rules.version;
        return tell(desk, twin, DesiredReport::applied(rules.version));
    }
    let (config, judged) = (desk.rules.config().clone(), rules.clone());
    twin.judge(rules, now, move || judge(&config, &judged));
}

/// Applies the rules that were checked, or goes on without them.
pub(super) fn judged(desk: &mut Desk, twin: &mut TwinRulesState, verdict: TwinVerdict) {
    let Some(rules) = twin.judged() else { return };
    let version = rules.version;
    match verdict {
        TwinVerdict::Taken(taken) => {
            let (config, warnings) = *taken;
            log_warnings(&warnings);
            let planned_anew = new_rules::apply(desk, config);
            let config = desk.rules.config();
            let rules_of_twin = config.twin_rules.len();
            tracing::info!(version, rules = rules_of_twin, planned_anew, "applied the rules of the twin");
            (twin.kept, twin.in_force) = (rules, true);
            twin.digest = config.digest();
            tell(desk, twin, DesiredReport::applied(version));
        }
        TwinVerdict::Refused(report) => {
            log_refused(version, report.problem_lines());
            tell(desk, twin, DesiredReport::refused(version, report.problem_lines()));
        }
        TwinVerdict::Stuck(reason) => {
            tracing::error!(version, reason, "rules of the twin cannot be applied now");
            twin.again_after(LONG_REST, Instant::now());
            let problem = format!("{reason}; the device tries again");
            tell(desk, twin, DesiredReport::refused(version, [problem]));
        }
    }
}

fn tell(desk: &mut Desk, twin: &mut TwinRulesState, report: DesiredReport) {
    twin.told = Some(report);
    desk.reports.look_again();
}

/// Brings up to date what the twin shows of the agent itself.
pub(super) fn show(desk: &mut Desk, twin: &TwinRulesState) {
    let speaker = Sessions::speaker(desk.rules.config());
    let view = desk.watch.board.connection(speaker).filter(|view| view.is_connected());
    let connection = view.map(|view| TwinConnection {
        state: "connected".to_owned(),
        transport: view.status.transport.clone(),
        since: format_time(view.status.since),
    });
    desk.reports.show(Facts {
        configuration: twin.digest.clone(),
        connection,
        pins: desk.machine.pins().collect(),
        certificate: desk.certificate().map(|certificate| TwinCertificate {
            valid_from: format_time(certificate.valid_from),
            valid_until: format_time(certificate.valid_until),
        }),
        desired: twin.told().cloned(),
    });
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::mpsc;

    use super::*;
    use crate::config::inspect_text;

    fn state() -> TwinRulesState {
        let env = |name: &str| {
            (name == "C2D_DEVICE_CONNECTION_STRING")
                .then(|| "HostName=h;DeviceId=d;SharedAccessKey=AAAA".to_owned())
        };
        let text = "[twin]\naccept = [\"rules\"]\n";
        let config = inspect_text(text, Path::new("c.toml"), &env).into_config().unwrap();
        TwinRulesState::new(&config, TwinPart::Absent)
    }

    #[tokio::test(start_paused = true)]
    async fn the_twin_is_asked_for_one_at_a_time_and_after_a_pause() {
        let (mut twin, now) = (state(), Instant::now());
        assert!(!twin.may_ask(), "without a connection nobody is asked");
        twin.connected();
        assert_eq!((twin.may_ask(), twin.wake()), (true, None));
        (twin.wanted, twin.asked) = (false, true);
        (twin.asked_at, twin.not_before) = (Some(now), Some(now + REST));
        twin.changed();
        assert!(!twin.may_ask(), "it is under way");
        twin.asked = false;
        assert_eq!(twin.wake(), Some(now + REST));
        twin.again_after(LONG_REST, now);
        assert_eq!(twin.wake(), Some(now + LONG_REST));
        // If a back end has corrected its mistake, it should not wait.
        twin.changed();
        assert_eq!(twin.wake(), Some(now + REST));
        twin.disconnected();
        assert_eq!(twin.wake(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_disk_that_hangs_is_given_up_and_nobody_else_writes_before_it() {
        let (mut twin, now) = (state(), Instant::now());
        let (release, hangs) = mpsc::sync_channel::<()>(0);
        twin.judge(TwinRules::default(), now, move || {
            assert!(hangs.recv().is_err(), "the other end goes");
            TwinVerdict::Stuck("late".into())
        });
        tokio::time::advance(READ_LIMIT + Duration::from_secs(1)).await;
        let hung = |verdict: TwinVerdict| matches!(verdict, TwinVerdict::Stuck(reason) if reason.contains("the disk hangs"));
        assert!(hung(twin.next().await));
        assert!(twin.judged().is_some() && !twin.is_judging());
        twin.judge(TwinRules::default(), Instant::now(), || panic!("two write at once"));
        assert!(hung(twin.next().await));
        assert!(twin.judged().is_some());
        drop(release);
        let hung = twin.hung.take().unwrap();
        assert!(matches!(hung.await, Ok(TwinVerdict::Stuck(reason)) if reason == "late"));
        twin.judge(TwinRules::default(), Instant::now(), || TwinVerdict::Stuck("in time".into()));
        assert!(matches!(twin.next().await, TwinVerdict::Stuck(reason) if reason == "in time"));
    }
}
