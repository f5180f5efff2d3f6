//! Reads a rule's policy, which is all but conditions and steps: `timeout`, `settle`, `attempts`, `lane`, `report` …
//!
//! Owns: these keys, their limits, and which combinations are wrong; the `[report]` table. Must not know: how a policy
//! is carried out.

use std::ops::Range;
use std::time::Duration;

use humantime::format_duration;
use toml::de::DeValue;

use crate::rules::{OnCrash, OnFailure, Policy, Rate, ReportTo, Rule, Settle, Step, TWIN_WAIT, Unmatched};

use super::field::{Field, shown};
use super::key::{Absent, Form, Key, Span, Text, Whole, Words};
use super::report::Report;
use super::settings::GpioSettings;
use super::table::Table;

const SHORTEST: Duration = Duration::from_millis(10);
const HOUR: Duration = Duration::from_secs(3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
/// The hub's lock on a message lasts a minute, and the message is completed after its action. An action longer than
/// this could run past the lock, and the hub would deliver the message again meanwhile.
const WITHIN_LOCK: Duration = Duration::from_secs(50);
pub(super) const TIMEOUT: Key<Span> = Key {
    name: "timeout",
    kind: Span(SHORTEST, DAY),
    absent: Absent::Means("30s"),
    about: "how long all steps may take",
};
pub(super) const SETTLE: Key<Words<Settle>> = Key {
    name: "settle",
    kind: Words(&[("after-action", Settle::AfterAction), ("on-accept", Settle::OnAccept)]),
    absent: Absent::Means("after-action"),
    about: "when the message is completed at the hub: after its action, or with `on-accept` as soon as it is in the inbox, from \
            where it is run. The hub locks a message for one minute, so after-action attempts and pauses must fit into 50 s \
            together; with `on-accept` a `timeout` is up to `24h`",
};
pub(super) const ON_FAILURE: Key<Words<OnFailure>> = Key {
    name: "on_failure",
    kind: Words(&[
        ("reject", OnFailure::Reject),
        ("abandon", OnFailure::Abandon),
        ("complete", OnFailure::Complete),
    ]),
    absent: Absent::Nothing,
    about: "how a message is settled if its action did not succeed, default `reject`; `abandon` gives it \
            back after an action that failed or timed out: the hub sends it again, up to its limit of \
            deliveries, and each time it is run again with all its `attempts`. Over MQTT, which has nothing \
            else, such a message is completed. Without effect with `on-accept`",
};
pub(super) const ON_CRASH: Key<Words<OnCrash>> = Key {
    name: "on_crash",
    kind: Words(&[("give-up", OnCrash::GiveUp), ("retry", OnCrash::Retry)]),
    absent: Absent::Nothing,
    about: "what happens to an action that a crash or a power cut interrupted; `give-up` makes it a dead letter. Default: `retry` \
            where all steps only set pins on or off, else `give-up`",
};
pub(super) const ATTEMPTS: Key<Whole> = Key {
    name: "attempts",
    kind: Whole(1, 10),
    absent: Absent::Means("1"),
    about: "how often an action is tried if it fails or times out, each time from its first step; after that \
            its message is a dead letter",
};
pub(super) const BACKOFF: Key<Span> = Key {
    name: "backoff",
    kind: Span(SHORTEST, HOUR),
    absent: Absent::Means("1s"),
    about: "the pause before the second attempt; doubled for each further one",
};
pub(super) const LANE: Key<Text> = Key {
    name: "lane",
    kind: Text,
    absent: Absent::Nothing,
    about: "an additional lane: rules of the same lane run one after the other; at most 100 characters",
};
pub(super) const MIN_INTERVAL: Key<Span> = Key {
    name: "min_interval",
    kind: Span(SHORTEST, DAY),
    absent: Absent::Nothing,
    about: "the least time between the beginnings of two actions; a message that comes earlier is refused",
};
pub(super) const RATE: Key<Form> = Key {
    name: "rate",
    kind: Form("`\"10/1m\"`: a number up to 1000, and a duration, `1s` to `1h`", "text"),
    absent: Absent::Nothing,
    about: "at most this many actions begin within this time; further messages are refused",
};
const REPORTS: Form =
    Form("`\"none\"`, `\"telemetry\"`, `\"twin\"`, or `[\"telemetry\", \"twin\"]`", "reports");
pub(super) const REPORT: Key<Form> = Key {
    name: "report",
    kind: REPORTS,
    absent: Absent::Nothing,
    about: "where the outcome goes, in place of `[report]` `outcomes`",
};
pub(super) const OUTCOMES: Key<Form> = Key {
    name: "outcomes",
    kind: REPORTS,
    absent: Absent::Means("none"),
    about: "where the outcomes go of rules without `report`",
};
pub(super) const UNMATCHED: Key<Words<Unmatched>> = Key {
    name: "unmatched",
    kind: Words(&[("complete", Unmatched::Complete), ("reject", Unmatched::Reject)]),
    absent: Absent::Means("complete"),
    about: "how a message that no rule matches is settled; over MQTT it is completed",
};
const MAX_RATE_COUNT: u32 = 1_000;
const RATE_PER: (Duration, Duration) = (Duration::from_secs(1), HOUR);
const MAX_LANE_CHARS: usize = 100;

/// A policy, and what the check against the rule's steps needs.
pub(super) struct ReadPolicy {
    /// A key with a problem has its default. The lanes are still missing: see [`lanes`].
    pub(super) policy: Policy,
    /// None if it has a problem.
    pub(super) timeout: Option<Duration>,
    /// The name in `lane`.
    pub(super) lane: Option<String>,
    on_crash: Option<Range<usize>>,
    attempts: Option<Range<usize>>,
}

/// Reads the keys of a rule's policy. `reports` is for a rule that does not say where its outcomes go.
pub(super) fn read(table: &mut Table<'_>, reports: ReportTo, report: &mut Report) -> ReadPolicy {
    let mut policy = Policy { reports, ..Policy::default() };
    let timeout = table.take(&TIMEOUT);
    let settle = table.take(&SETTLE);
    // The checks of times depend on it, so a mistake in it is reported alone.
    let settle_known = match settle.map(|field| SETTLE.read(&field, report)) {
        Some(Some(settle)) => {
            policy.settle = settle;
            true
        }
        Some(None) => false,
        None => true,
    };
    if let Some(field) = table.take(&ON_FAILURE) {
        policy.on_failure = read_on_failure(&field, &policy, settle_known, report);
    }
    let on_crash = table.take(&ON_CRASH);
    policy.on_crash = on_crash.as_ref().and_then(|field| ON_CRASH.read(field, report));
    let attempts = table.take(&ATTEMPTS);
    let count = attempts.as_ref().and_then(|field| ATTEMPTS.read(field, report));
    policy.attempts = count.and_then(|count| u32::try_from(count).ok()).unwrap_or(1);
    let backoff = table.take(&BACKOFF);
    if let Some(field) = &backoff {
        policy.backoff = BACKOFF.read(field, report).unwrap_or(policy.backoff);
        if policy.attempts == 1 && (attempts.is_none() || count.is_some()) {
            let message = "backoff has no effect: there is only one attempt, so set attempts to 2 or more, \
                           or remove backoff";
            report.warning(field.key_place.clone(), message);
        }
    }
    let lane = table.take(&LANE).and_then(|field| read_lane(&field, report));
    policy.min_interval = table.read(&MIN_INTERVAL, report);
    if let Some(field) = table.take(&RATE) {
        policy.rate = read_rate(&field, report);
        check_rate(&policy, &field, report);
    }
    if let Some(field) = table.take(&REPORT) {
        policy.reports = read_reports(&field, report).unwrap_or(reports);
    }
    let timeout_place = timeout.as_ref().map(|field| field.value.place.clone());
    let timeout = match timeout {
        Some(field) => TIMEOUT.read(&field, report),
        None => Some(DEFAULT_TIMEOUT),
    };
    let [attempts, on_crash] = [attempts, on_crash].map(|field| field.map(|field| field.value.place));
    if let Some(timeout) = timeout.filter(|_| settle_known && policy.settle == Settle::AfterAction) {
        check_lock(&policy, timeout, attempts.clone().or(timeout_place), report);
    }
    ReadPolicy { policy, timeout, lane, on_crash, attempts }
}

/// Reads `[report]`: where the outcomes go for rules that do not say it themselves.
pub(super) fn read_default_reports(field: Option<Field<'_>>, report: &mut Report) -> ReportTo {
    let Some(mut table) = field.and_then(|field| field.table("[report]", report)) else {
        return ReportTo::default();
    };
    let outcomes = table.take(&OUTCOMES).and_then(|field| read_reports(&field, report));
    table.finish(report);
    outcomes.unwrap_or_default()
}

/// Reads `unmatched`: what happens to a message that no rule matches.
pub(super) fn read_unmatched(field: Option<Field<'_>>, report: &mut Report) -> Unmatched {
    field.and_then(|field| UNMATCHED.read(&field, report)).unwrap_or_default()
}

/// The lanes in which a rule's actions wait: the one that it names, and one for each of its pins. Pins that are never
/// on together share one. A rule with no lane and no pin has a lane of its own.
pub(super) fn lanes(rule: &str, lane: Option<&str>, steps: &[Step], gpio: &GpioSettings) -> Vec<String> {
    let of_pin = |step: &Step| {
        let pin = step.pin()?;
        let group = gpio.interlocks.iter().find(|group| group.iter().any(|one| one == pin));
        Some(match group.and_then(|group| group.first()) {
            Some(first) => format!("interlock:{first}"),
            None => format!("pin:{pin}"),
        })
    };
    let mut lanes: Vec<String> = lane.map(|lane| format!("lane:{lane}")).into_iter().collect();
    lanes.extend(steps.iter().filter_map(of_pin));
    if lanes.is_empty() {
        lanes.push(format!("rule:{rule}"));
    }
    lanes.sort();
    lanes.dedup();
    lanes
}

impl ReadPolicy {
    /// Warns of actions that do not have the same effect when they run a second time.
    pub(super) fn check_repeats(&self, rule: &Rule, report: &mut Report) {
        let moves = rule.moves();
        if let Some(place) = &self.on_crash
            && self.policy.on_crash == Some(OnCrash::Retry)
            && let Some((_, pin, what)) = moves.first()
        {
            let message = format!(
                "on_crash = \"retry\" runs an action again after a crash, so the {what} of pin \"{}\" can \
                 happen twice for one message: use \"give-up\" unless that is harmless",
                shown(pin)
            );
            report.warning(place.clone(), message);
        }
        if let Some(place) = &self.attempts
            && self.policy.attempts > 1
            && let Some((_, pin, what)) = moves.iter().find(|(index, ..)| index + 1 < rule.steps())
        {
            let message = format!(
                "each attempt begins with the first step, so the {what} of pin \"{}\" happens again if a \
                 later step fails: make it the last step, or move it to a rule of its own",
                shown(pin)
            );
            report.warning(place.clone(), message);
        }
    }
}

/// Refuses each rule of the twin with an action that may keep a local rule waiting for too long. The lanes limit how
/// long several such actions may take together.
pub(super) fn check_remote_waits(
    rules: &[Rule],
    places: &[Range<usize>],
    is_remote: impl Fn(&Range<usize>) -> bool,
    report: &mut Report,
) {
    let (remote, local): (Vec<_>, Vec<_>) = rules.iter().zip(places).partition(|(_, place)| is_remote(place));
    for (rule, place) in remote {
        let longest = rule.longest();
        if longest <= TWIN_WAIT {
            continue;
        }
        if let Some((other, _)) = local.iter().find(|(other, _)| share_a_lane(rule, other)) {
            let message = format!(
                "rule \"{}\" of the twin may take {}, and rule \"{}\" of the device's configuration waits \
                 for it in the same lane: stay within {}",
                shown(rule.name()),
                format_duration(longest),
                shown(other.name()),
                format_duration(TWIN_WAIT)
            );
            report.problem(place.clone(), message);
        }
    }
}

fn share_a_lane(one: &Rule, other: &Rule) -> bool {
    one.policy().lanes.iter().any(|lane| other.policy().lanes.contains(lane))
}

/// Warns of each rule that completes a message after its action, but may first wait for an action that is longer than
/// the hub's lock.
pub(super) fn check_waits(rules: &[Rule], places: &[Range<usize>], report: &mut Report) {
    for (rule, place) in rules.iter().zip(places) {
        if rule.policy().settle == Settle::OnAccept {
            continue;
        }
        let long = |other: &&Rule| {
            other.policy().settle == Settle::OnAccept
                && other.longest() > WITHIN_LOCK
                && share_a_lane(rule, other)
        };
        if let Some(other) = rules.iter().find(long) {
            let message = format!(
                "rule \"{}\" is in the same lane as rule \"{}\", which may take {}: the hub's lock on a \
                 message expires while it waits so long, so set settle = \"on-accept\" here, too",
                shown(rule.name()),
                shown(other.name()),
                format_duration(other.longest())
            );
            report.warning(place.clone(), message);
        }
    }
}

/// Refuses an action that may outlast the hub's lock, if its message is completed after it.
fn check_lock(policy: &Policy, timeout: Duration, place: Option<Range<usize>>, report: &mut Report) {
    let (pauses, needed) = (policy.pauses(), policy.longest(timeout));
    if needed <= WITHIN_LOCK {
        return;
    }
    let what = match policy.attempts {
        1 => format!("timeout is {}", format_duration(timeout)),
        attempts => format!(
            "{attempts} attempts of {} with pauses of {} between them may take {}",
            format_duration(timeout),
            format_duration(pauses),
            format_duration(needed)
        ),
    };
    let message = format!(
        "{what}, but the hub locks a message for only a minute, and the agent completes it after the action: \
         stay within {}, or set settle = \"on-accept\" to complete it before the action",
        format_duration(WITHIN_LOCK)
    );
    report.problem(place, message);
}

fn read_on_failure(
    field: &Field<'_>,
    policy: &Policy,
    settle_known: bool,
    report: &mut Report,
) -> Option<OnFailure> {
    let on_failure = ON_FAILURE.read(field, report)?;
    if settle_known && policy.settle == Settle::OnAccept {
        let message = "on_failure has no effect, because settle = \"on-accept\" completes a message before \
                       its action: remove one of them";
        report.warning(field.key_place.clone(), message);
    }
    Some(on_failure)
}

fn read_lane(field: &Field<'_>, report: &mut Report) -> Option<String> {
    let name = field.text(report)?;
    if name.chars().count() > MAX_LANE_CHARS {
        return field.wrong(format!("lane has more than {MAX_LANE_CHARS} characters"), report);
    }
    Some(name.to_owned())
}

/// `10/1m`: a number and a duration.
fn read_rate(field: &Field<'_>, report: &mut Report) -> Option<Rate> {
    let DeValue::String(text) = field.value.value else {
        return field.wrong_type("a text such as \"10/1m\"", report);
    };
    let parts = text.split_once('/').and_then(|(count, per)| {
        let count = count.trim().parse::<u32>().ok()?;
        Some(Rate { count, per: humantime::parse_duration(per.trim()).ok()? })
    });
    let within = |rate: &Rate| {
        (1..=MAX_RATE_COUNT).contains(&rate.count) && (RATE_PER.0..=RATE_PER.1).contains(&rate.per)
    };
    match parts.filter(within) {
        Some(rate) => Some(rate),
        None => {
            let [least, most] = [RATE_PER.0, RATE_PER.1].map(format_duration);
            let message = format!(
                "rate is \"{}\": write a number from 1 to {MAX_RATE_COUNT}, / and a duration from {least} to {most}, such \
                 as \"10/1m\"",
                shown(text)
            );
            field.wrong(message, report)
        }
    }
}

/// Warns if `min_interval` alone keeps the actions below the rate.
fn check_rate(policy: &Policy, field: &Field<'_>, report: &mut Report) {
    if let (Some(interval), Some(rate)) = (policy.min_interval, policy.rate)
        && interval.saturating_mul(rate.count) >= rate.per
    {
        let message = format!(
            "rate has no effect, because min_interval = \"{}\" lets at most {} begin within {}: remove one \
             of them",
            format_duration(interval),
            rate.count,
            format_duration(rate.per)
        );
        report.warning(field.key_place.clone(), message);
    }
}

/// `"none"`, `"telemetry"`, `"twin"`, or a list of the last two.
fn read_reports(field: &Field<'_>, report: &mut Report) -> Option<ReportTo> {
    let (telemetry, twin) =
        (ReportTo { telemetry: true, twin: false }, ReportTo { telemetry: false, twin: true });
    let words = [("telemetry", telemetry), ("twin", twin)];
    let DeValue::Array(_) = field.value.value else {
        return field.word(&[words[0], words[1], ("none", ReportTo::default())], report);
    };
    let each =
        field.array("a list", report)?.into_iter().map(|value| value.named(field.key).word(&words, report));
    let each: Vec<Option<ReportTo>> = each.collect();
    let both =
        |a: ReportTo, b: ReportTo| ReportTo { telemetry: a.telemetry | b.telemetry, twin: a.twin | b.twin };
    each.into_iter().try_fold(ReportTo::default(), |sum, one| Some(both(sum, one?)))
}
