//! The fault harness: the real agent on the emulator, with faults at random instants, and an oracle that counts.
//!
//! Owns: the rounds, the rules of the gateway, and the oracle. Must not know: how the agent keeps its promises.
//!
//! # What happens
//!
//! In each round, messages with ids go to rules that append the message's id to a file, one line for each run. At a
//! random instant, up to 150 ms later, one thing happens: `kill -9`; SIGTERM; the connection is cut; the hub stops and
//! starts again, sometimes without its queues; or nothing. Sometimes a second agent starts with the same inbox. It ends
//! by itself, with exit code 1 and without contact to the hub, or it goes on where the first one has ended. After the
//! last round, no more faults happen. A seed, which is printed, makes the choices: `C2D_SOAK_SEED` repeats them, but
//! not the exact instants. `C2D_SOAK_ROUNDS` sets the number of rounds. Messages come as C2D messages of a device, by
//! an input of a module that is started as edgeAgent does, or by both in turn. For an input, the hub's log tells what
//! was settled.
//!
//! # The oracle
//!
//! The sender plays the durable part of the hub: if a restarted emulator has forgotten a message, the sender queues it
//! again with its id, as the real hub would deliver it again. So no message may be lost, and at the end of a run
//!
//! - every message has feedback, and all of it says `Success`;
//! - every message is in the inbox and has ended, as `succeeded` or `interrupted`;
//! - a rule that gives up after a crash has run exactly once for each message that succeeded, and at most once for each
//!   that is reported as interrupted; and no more are interrupted than actions can have been in flight at the kills;
//! - a rule that tries again after a crash has run at least once for each message;
//! - a rule whose first attempt always fails has done its work exactly once, at its second attempt;
//! - no agent ended by itself, and none logged an error.
//!
//! A program that runs when its agent is killed goes on and writes its line: that is the only run that an interrupted
//! message may have.

use std::collections::BTreeMap;

use back_end::Door;
use campaign::{Campaign, Sent};
use gateway::Stands;

pub(crate) mod back_end;
mod campaign;
pub(crate) mod disk;
pub(crate) mod gateway;
mod steps;

/// Most programs that run at once (the agent's default): no kill can interrupt more actions.
const MAX_CHILDREN: usize = 4;

/// How often a rule may run for one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Promise {
    Once,
    AtLeastOnce,
}

/// The rules by name. The name is also the action that a rule matches and the file that it writes.
const RULES: &[(&str, Promise, &str)] = &[
    ("after-give-up", Promise::Once, "on_crash = \"give-up\""),
    ("after-retry", Promise::AtLeastOnce, "on_crash = \"retry\""),
    ("accept-give-up", Promise::Once, "settle = \"on-accept\""),
    ("accept-retry", Promise::AtLeastOnce, "settle = \"on-accept\"\non_crash = \"retry\""),
    ("after-second", Promise::Once, SECOND_ATTEMPT),
    ("accept-second", Promise::Once, SECOND_ON_ACCEPT),
];

const SECOND_ATTEMPT: &str = "attempts = 2\nbackoff = \"10ms\"\ntimeout = \"10s\"";
const SECOND_ON_ACCEPT: &str = "attempts = 2\nbackoff = \"10ms\"\ntimeout = \"10s\"\nsettle = \"on-accept\"";

/// The configuration. `more` has more keys of each rule.
fn configuration(more: &str) -> String {
    let mut text =
        "[inbox]\npath = \"inbox.journal\"\nmax_size = \"64MiB\"\nkeep_at_least = 100000\n".to_owned();
    for (name, _, keys) in RULES {
        let work = format!("echo $C2D_MESSAGE_ID >> DIR/{name}");
        let step = if name.ends_with("second") {
            let tried = format!("DIR/tried-{name}-$C2D_MESSAGE_ID");
            format!("if [ -e {tried} ]; then {work}; else : > {tried}; exit 1; fi")
        } else {
            work
        };
        text += &format!(
            "[[rule]]\nname = \"{name}\"\nwhen = {{ action = \"{name}\" }}\n{keys}\n{more}\ndo = [ {{ shell = '{step}' }} ]\n"
        );
    }
    text
}

#[test]
fn whatever_goes_wrong_no_message_is_lost_and_none_is_done_twice() {
    endure(Campaign::new(&configuration("")), Campaign::rounds(100));
}

/// Interrupted messages are completed, too, so that the oracle is the same: all feedback says `Success`.
#[test]
fn over_amqp_no_message_is_lost_either_and_none_is_done_twice() {
    let transport = "[device]\ntransport = \"amqp\"\n";
    let configuration = format!("{}{transport}", configuration("on_failure = \"complete\""));
    endure(Campaign::new(&configuration), Campaign::rounds(50));
}

#[test]
fn over_amqp_over_a_websocket_no_message_is_lost_either_and_none_is_done_twice() {
    let transport = "[device]\ntransport = \"amqp-ws\"\n";
    let configuration = configuration("on_failure = \"complete\"");
    let campaign = Campaign::new(&format!("{configuration}{transport}"));
    let campaign = endure(campaign, Campaign::rounds(50));
    let over = |log: &String| log.contains("transport=\"amqp-ws\"") && !log.contains("transport=\"amqp\"");
    assert!(campaign.gateway.logs.iter().any(over), "it signed in over WebSockets, and no other way");
}

#[test]
fn over_a_websocket_no_message_is_lost_either_and_none_is_done_twice() {
    let transport = "[device]\ntransport = \"mqtt-ws\"\n";
    let campaign = Campaign::new(&format!("{}{transport}", configuration("")));
    let campaign = endure(campaign, Campaign::rounds(50));
    let over = |log: &String| log.contains("transport=\"mqtt-ws\"") && !log.contains("transport=\"mqtt\"");
    assert!(campaign.gateway.logs.iter().any(over), "it signed in over WebSockets, and no other way");
}

/// Messages go to an input of a module, which is started as edgeAgent does. Its gateway is cut off and restarted.
#[test]
fn by_an_input_of_a_module_no_message_is_lost_either_and_none_is_done_twice() {
    let configuration = configuration("").replace("when = {", "when = { \"$.source\" = \"input\",");
    let campaign = endure(Campaign::through(Door::Input, &configuration), Campaign::rounds(50));
    assert!(campaign.gateway.kills > 0 && !campaign.sent.is_empty());
}

#[test]
fn by_a_device_and_a_module_side_by_side_no_message_is_lost_either_and_none_is_done_twice() {
    let campaign = endure(Campaign::through(Door::Both, &configuration("")), Campaign::rounds(50));
    for who in ["device_id=\"dev1\"", "device_id=\"edge1/c2d-agent\""] {
        let signed_in =
            |log: &String| log.lines().any(|line| line.contains("signed in") && line.contains(who));
        assert!(campaign.gateway.logs.iter().any(signed_in), "{who}");
    }
}

/// A rule for a sender that uses a few ids again and again. A property distinguishes the messages.
const REUSED: &str = "[inbox]\npath = \"inbox.journal\"\nmax_size = \"64MiB\"\nkeep_at_least = 100000\n[[rule]]\nname = \"reused\"\n\
                      on_failure = \"complete\"\nwhen = { action = \"reused\" }\n\
                      do = [ { shell = \"echo $C2D_PROPERTY_N >> DIR/reused\" } ]\n";

#[test]
fn ids_that_are_used_again_lose_no_message_and_double_none() {
    endure_reuse(Campaign::new(REUSED), Campaign::rounds(50));
}

#[test]
fn ids_that_are_used_again_lose_no_message_and_double_none_over_amqp_either() {
    let campaign = Campaign::new(&format!("{REUSED}[device]\ntransport = \"amqp\"\n"));
    endure_reuse(campaign, Campaign::rounds(30));
}

fn endure_reuse(mut campaign: Campaign, rounds: usize) {
    // If the hub forgot a message, the test could not tell which of the messages with this id it was.
    campaign.forgets = false;
    let mut sent = 0;
    for _ in 0..rounds {
        for _ in 0..campaign.random.usize(0..=20) {
            let id = format!("message_{}", campaign.random.u32(0..5));
            let message = Sent { action: "reused".to_owned(), properties: vec![("n", sent.to_string())] };
            if !campaign.queue(&id, &message) {
                break;
            }
            sent += 1;
        }
        campaign.fault();
    }
    let all_told = |feedback: &back_end::Feedback| feedback.values().map(Vec::len).sum::<usize>() == sent;
    campaign.quiet();
    assert!(
        campaign.hub.wait_feedback(2 * crate::harness::DEADLINE, all_told),
        "{:?}",
        campaign.hub.feedback()
    );
    campaign.gateway.settled_inbox();
    let records = campaign.gateway.all_records();
    let interrupted =
        records.iter().filter(|stands| stands.outcome.as_deref() == Some("interrupted")).count();
    let runs = campaign.gateway.effects("reused");
    let twice: Vec<_> = runs.iter().filter(|(_, count)| **count > 1).collect();
    let lost = sent - runs.len();
    eprintln!("{rounds} rounds, {sent} messages, {interrupted} interrupted: {}", campaign.faults());
    assert!(twice.is_empty(), "seed {}: run more than once: {twice:?}", campaign.seed);
    assert_eq!(records.len(), sent, "seed {}: each has a record of its own", campaign.seed);
    assert!(lost <= interrupted, "seed {}: {lost} were not run, {interrupted} interrupted", campaign.seed);
    assert!(interrupted <= campaign.gateway.kills * MAX_CHILDREN, "seed {}", campaign.seed);
    campaign.gateway.terminate();
}

fn endure(mut campaign: Campaign, rounds: usize) -> Campaign {
    for _ in 0..rounds {
        campaign.flow(20, any_rule);
        campaign.fault();
    }
    let inbox = campaign.quiet();
    let mut problems = campaign.problems(&inbox, &[]);
    problems.extend(wrong_counts(&campaign, &inbox));
    report(&campaign, &inbox, rounds);
    campaign.judge(&problems);
    campaign.gateway.terminate();
    assert_eq!(campaign.gateway.inbox(), inbox, "the file says the same when no agent runs");
    campaign
}

fn any_rule(random: &mut fastrand::Rng) -> Sent {
    let (action, _, _) = RULES[random.usize(0..RULES.len())];
    Sent { action: action.to_owned(), properties: Vec::new() }
}

fn wrong_counts(campaign: &Campaign, inbox: &BTreeMap<String, Stands>) -> Vec<String> {
    let mut found = Vec::new();
    for (name, promise, _) in RULES {
        let runs = campaign.gateway.effects(name);
        for id in campaign.sent.iter().filter(|(_, sent)| sent.action == *name).map(|(id, _)| id) {
            let count = runs.get(id).copied().unwrap_or_default();
            let interrupted = is_interrupted(inbox, id);
            let right = match promise {
                Promise::Once if interrupted => count <= 1,
                Promise::Once => count == 1,
                Promise::AtLeastOnce => count >= 1 && !interrupted,
            };
            if !right {
                let what = format!("done {count} times, {promise:?}, {:?}", inbox.get(id));
                found.push(campaign.problem(id, &what));
            }
        }
        let foreign = runs.keys().filter(|id| campaign.sent.get(*id).is_none_or(|sent| sent.action != *name));
        found.extend(foreign.map(|id| format!("{name} was run for {id:?}, which was not sent to it")));
    }
    let interrupted = inbox.keys().filter(|id| is_interrupted(inbox, id)).count();
    if interrupted > campaign.gateway.kills * MAX_CHILDREN {
        found.push(format!("{interrupted} are interrupted, by {} kills", campaign.gateway.kills));
    }
    found
}

fn is_interrupted(inbox: &BTreeMap<String, Stands>, id: &str) -> bool {
    inbox.get(id).is_some_and(|stands| stands.outcome.as_deref() == Some("interrupted"))
}

fn report(campaign: &Campaign, inbox: &BTreeMap<String, Stands>, rounds: usize) {
    eprintln!("{rounds} rounds, {} messages: {}", campaign.sent.len(), campaign.faults());
    for (name, _, _) in RULES {
        let of_rule: Vec<_> = campaign.sent.iter().filter(|(_, sent)| sent.action == *name).collect();
        let runs = campaign.gateway.effects(name);
        let again: usize = runs.values().map(|count| count - 1).sum();
        let interrupted = of_rule.iter().filter(|(id, _)| is_interrupted(inbox, id)).count();
        let messages = of_rule.len();
        let runs: usize = runs.values().sum();
        eprintln!(
            "  {name}: {messages} messages, {runs} runs, {again} of them again, {interrupted} interrupted"
        );
    }
}
