//! The rules in force: the configuration, and what follows from it for each message.
//!
//! Owns: the facts that all messages of a rule share, and where outcomes are reported. Must not know: which messages
//! there are.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;

use crate::config::{Config, Provisioning};
use crate::message::C2dMessage;
use crate::outcome::{OutcomeReport, twin_key};
use crate::rules::{OnFailure, Policy, ReportTo, Rule};

use super::message::lanes::{Lane, LaneNames, Lanes, Slot, Whose};
use super::report;
use super::sessions::Role;

/// The configuration in force, with its rules by name.
pub(super) struct Rulebook {
    config: Arc<Config>,
    facts: HashMap<String, Arc<RuleFacts>>,
    lanes: LaneNames,
}

/// The facts that all messages of a rule share.
#[derive(Debug)]
pub(super) struct RuleFacts {
    pub(super) name: String,
    pub(super) policy: Policy,
    pub(super) lanes: Arc<[Lane]>,
    pub(super) slot: Slot,
    /// For a rule of the twin: the longest time that its action may take.
    pub(super) longest_of_twin: Option<Duration>,
}

impl Rulebook {
    pub(super) fn new(config: Config) -> Self {
        let mut lanes = LaneNames::default();
        let of_twin: HashSet<&str> = config.twin_rules.iter().map(|rule| rule.rule.as_str()).collect();
        let facts =
            config.rules.iter().map(|rule| RuleFacts::new(rule, of_twin.contains(rule.name()), &mut lanes));
        let facts = facts.map(|facts| (facts.name.clone(), Arc::new(facts))).collect();
        Self { config: Arc::new(config), facts, lanes }
    }

    pub(super) fn config(&self) -> &Arc<Config> {
        &self.config
    }

    /// The device has another hub.
    pub(super) fn reassign(&mut self, provisioning: Provisioning) {
        Arc::make_mut(&mut self.config).enrol(provisioning);
    }

    /// The facts of a rule, if there is one of this name.
    pub(super) fn facts(&self, rule: Option<&str>) -> Option<&Arc<RuleFacts>> {
        self.facts.get(rule?)
    }

    /// The session through which a message came.
    pub(super) fn role_of(&self, message: &C2dMessage) -> Role {
        Role::of(message.source(), &self.config)
    }

    /// What a rule says about a failed action. Without a rule, the message is rejected.
    pub(super) fn on_failure(&self, rule: Option<&str>) -> OnFailure {
        self.facts(rule).map_or(OnFailure::Reject, |rule| rule.policy.on_failure())
    }

    /// Where an outcome is reported: as its rule says, or if no rule matched, as `[report]` says.
    pub(super) fn reports_of(&self, outcome: &OutcomeReport) -> ReportTo {
        self.facts(outcome.rule.as_deref()).map_or(self.config.reports, |rule| rule.policy.reports)
    }

    /// The telemetry report of an outcome, if its rule wants one.
    pub(super) fn telemetry_report(&self, outcome: &OutcomeReport) -> Option<Bytes> {
        if self.reports_of(outcome).telemetry { report::as_json(outcome) } else { None }
    }

    /// The keys of the rules that report in the twin.
    pub(super) fn reporting_in_twin(&self) -> BTreeSet<String> {
        let reporting = self.facts.values().filter(|rule| rule.policy.reports.twin);
        reporting.map(|rule| twin_key(&rule.name)).collect()
    }

    /// The lanes of these rules and of those that had a message in hand, without any message.
    pub(super) fn empty_lanes(&self) -> Lanes {
        Lanes::new(self.lanes.len(), self.config.max_children)
    }

    /// The present lanes of a rule that may be from an earlier configuration.
    pub(super) fn lanes_of(&mut self, rule: &RuleFacts) -> Arc<[Lane]> {
        self.lanes.lanes(&rule.policy.lanes)
    }
}

impl RuleFacts {
    /// `of_twin`: the rule came from the twin, not from the owner.
    fn new(rule: &Rule, of_twin: bool, names: &mut LaneNames) -> Self {
        let policy = rule.policy().clone();
        let lanes = names.lanes(&policy.lanes);
        let slot = match (rule.has_child(), of_twin) {
            (false, _) => Slot::None,
            (true, false) => Slot::Any,
            (true, true) => Slot::Spare,
        };
        let longest_of_twin = of_twin.then(|| rule.longest());
        Self { name: rule.name().to_owned(), policy, lanes, slot, longest_of_twin }
    }

    /// Who wrote this rule, for an action that was taken in hand at this time.
    pub(super) fn whose(&self, since: Instant) -> Whose {
        self.longest_of_twin.map_or(Whose::Owner(since), Whose::Twin)
    }
}
