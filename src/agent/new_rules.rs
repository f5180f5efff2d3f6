//! Other rules are applied to the messages in hand, after a reload or from the twin.
//!
//! Owns: what happens to a message in hand when the rules change. Must not know: where the rules come from.

use std::sync::Arc;

use crate::config::Config;
use crate::inbox::Settled;

use super::desk::Desk;
use super::message::act;
use super::message::arrive::plan;
use super::message::in_hand::Stage;
use super::message::lanes::ActionId;
use super::message::reason::PassedOver;
use super::rulebook::Rulebook;

/// Applies a configuration with other rules. The lanes are rebuilt: a message that has begun is at the front as
/// before. Waiting messages line up behind, in order of arrival and as the new rules say. Returns how many waited.
pub(super) fn apply(desk: &mut Desk, config: Config) -> usize {
    desk.rules = Rulebook::new(config);
    let mut may_begin = line_up_begun(desk);
    let waiting = desk.in_hand.not_begun();
    for id in &waiting {
        may_begin.extend(plan_anew(desk, *id).then_some(*id));
    }
    may_begin.into_iter().for_each(|id| act::begin(desk, id));
    desk.reports.keep_known(&desk.rules, &serde_json::Value::Null);
    waiting.len()
}

/// Rebuilds the lanes with the messages that have begun, which keep their rules. Returns those whose turn has come
/// for another attempt.
fn line_up_begun(desk: &mut Desk) -> Vec<ActionId> {
    let mut begun = Vec::new();
    for id in desk.in_hand.begun() {
        let Some(entry) = desk.in_hand.get(id) else { continue };
        // A rule that is gone may have lanes of its own.
        begun.push((id, desk.rules.lanes_of(&entry.rule)));
    }
    desk.in_hand.lanes = desk.rules.empty_lanes();
    let mut may_begin = Vec::new();
    for (id, lanes) in begun {
        let Some(entry) = desk.in_hand.get(id) else { continue };
        let (slot, whose, stage) = (entry.rule.slot, entry.rule.whose(entry.entered), entry.stage);
        if stage == Stage::Waiting {
            let turn = desk.in_hand.lanes.enter(id, &lanes, slot, whose);
            desk.in_hand.get(id).into_iter().for_each(|entry| entry.turn = turn);
            may_begin.extend(turn.then_some(id));
            continue;
        }
        desk.in_hand.lanes.enter_again(id, &lanes, slot, whose);
        if stage == Stage::BackingOff {
            desk.in_hand.lanes.pause(id);
        }
    }
    may_begin
}

/// Plans a waiting message again with the present rules. True if its turn has come.
fn plan_anew(desk: &mut Desk, id: ActionId) -> bool {
    let now = desk.now();
    let Some(entry) = desk.in_hand.get(id) else { return false };
    match plan(&desk.rules, entry.message.clone(), entry.since, now) {
        Ok(new) => {
            let (rule, whose) = (Arc::clone(&new.rule), new.rule.whose(entry.entered));
            (entry.rule, entry.plan, entry.retry_on_crash) = (new.rule, new.plan, new.retry_on_crash);
            entry.passed_over = None;
            let turn = desk.in_hand.lanes.enter(id, &rule.lanes, rule.slot, whose);
            let Some(entry) = desk.in_hand.get(id) else { return false };
            entry.turn = turn;
            turn && entry.stage == Stage::Waiting
        }
        Err((_, why)) => {
            // A message that was completed when it was accepted exists only here, so it must not be lost together
            // with its rule.
            let gone = why == PassedOver::Unmatched && entry.settled == Settled::OnAccept;
            let why = if gone { PassedOver::no_rule_any_more() } else { why };
            (entry.plan, entry.turn) = (None, false);
            act::pass_over_when_recorded(desk, id, why);
            false
        }
    }
}
