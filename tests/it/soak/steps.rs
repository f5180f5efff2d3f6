//! The faults of `campaign`, with one rule for each kind of step.
//!
//! Owns: the rules and the oracle for pins. Must not know: faults.
//!
//! Simulated pins live in the agent's memory. So a `kill -9` resets them to `initial`, and the state file shows only
//! the last life. The oracle therefore reads the log: each change of a pin is a line, written before anything else
//! happens. Each message for a pin has its own pin, which is off at every start. So the lines "on" of a pin count the
//! runs of one message: one for `toggle` and `pulse`, two for a `blink` of two, at least one for `set`. The last life
//! shows that the log is right: a pin of `set` or `toggle` is on in the state file if and only if that life logged it.

use std::collections::{BTreeMap, BTreeSet};

use super::back_end::Door;
use super::campaign::{Campaign, Sent};
use super::gateway::Stands;
use super::is_interrupted;

/// Most pins of each kind, and so most messages.
const PINS: usize = 60;

/// Kinds of pin steps: the name, the step for a pin, the lines "on" of one run.
const KINDS: &[(&str, &str, usize)] = &[
    ("set", "set = \"on\"", 1),
    ("toggle", "set = \"toggle\"", 1),
    ("pulse", "pulse = \"20ms\"", 1),
    ("blink", "blink = { times = 2, period = \"20ms\" }", 2),
];

fn configuration() -> String {
    let mut pins = String::new();
    let mut rules = String::new();
    let mut line = 0;
    for (kind, step, _) in KINDS {
        for n in 0..PINS {
            line += 1;
            pins += &format!("[gpio.pins.{kind}-{n}]\nline = {line}\n");
            rules += &format!(
                "[[rule]]\nname = \"{kind}-{n}\"\nwhen = {{ action = \"{kind}\", n = \"{n}\" }}\n\
                 do = [ {{ gpio = \"{kind}-{n}\", {step} }} ]\n"
            );
        }
    }
    format!(
        "[inbox]\npath = \"inbox.journal\"\n[gpio]\nbackend = \"simulated\"\nstate_file = \"DIR/pins.json\"\n{pins}{rules}\
         [[rule]]\nname = \"shell\"\nwhen = {{ action = \"shell\" }}\n\
         do = [ {{ shell = \"echo $C2D_MESSAGE_ID >> DIR/shell\" }} ]\n\
         [[rule]]\nname = \"run\"\nwhen = {{ action = \"run\" }}\n\
         do = [ {{ run = [\"/usr/bin/env\", \"sh\", \"-c\", \"echo $C2D_MESSAGE_ID >> DIR/run\"] }} ]\n"
    )
}

#[test]
fn every_kind_of_step_is_done_once_whatever_goes_wrong() {
    endure(Campaign::new(&configuration()), 100);
}

#[test]
fn every_kind_of_step_is_done_once_for_a_message_to_an_input_too() {
    endure(Campaign::through(Door::Input, &configuration()), 40);
}

fn endure(mut campaign: Campaign, rounds: usize) {
    let rounds = Campaign::rounds(rounds).min(PINS);
    let mut used = [0; KINDS.len()];
    for _ in 0..rounds {
        campaign.flow(6, |random| match random.usize(0..KINDS.len() + 2) {
            kind if kind < KINDS.len() && used[kind] < PINS => {
                let n = used[kind];
                used[kind] += 1;
                Sent { action: KINDS[kind].0.to_owned(), properties: vec![("n", n.to_string())] }
            }
            kind if kind % 2 == 0 => Sent { action: "shell".to_owned(), properties: Vec::new() },
            _ => Sent { action: "run".to_owned(), properties: Vec::new() },
        });
        campaign.fault();
    }
    let inbox = campaign.quiet();
    let mut problems = campaign.problems(&inbox, &[]);
    problems.extend(wrong_programs(&campaign, &inbox));
    problems.extend(wrong_pins(&campaign, &inbox));
    let interrupted = inbox.keys().filter(|id| is_interrupted(&inbox, id)).count();
    let messages = campaign.sent.len();
    eprintln!("{rounds} rounds, {messages} messages, {interrupted} interrupted: {}", campaign.faults());
    campaign.judge(&problems);
    campaign.gateway.terminate();
}

fn wrong_programs(campaign: &Campaign, inbox: &BTreeMap<String, Stands>) -> Vec<String> {
    let mut found = Vec::new();
    for kind in ["shell", "run"] {
        let runs = campaign.gateway.effects(kind);
        for (id, _) in campaign.sent.iter().filter(|(_, sent)| sent.action == kind) {
            let count = runs.get(id).copied().unwrap_or_default();
            if count > 1 || (count == 0 && !is_interrupted(inbox, id)) {
                found.push(campaign.problem(id, &format!("run {count} times, {:?}", inbox.get(id))));
            }
        }
    }
    found
}

fn wrong_pins(campaign: &Campaign, inbox: &BTreeMap<String, Stands>) -> Vec<String> {
    let lives = campaign.gateway.lives();
    let mut found = Vec::new();
    for (id, sent) in &campaign.sent {
        let Some((kind, _, once)) = KINDS.iter().find(|(kind, ..)| *kind == sent.action) else { continue };
        let pin = format!("{kind}-{}", sent.properties[0].1);
        let count: usize = lives.iter().map(|log| lines_on(log, &pin)).sum();
        let right = match (*kind, is_interrupted(inbox, id)) {
            ("set", interrupted) => count >= 1 && !interrupted,
            (_, true) => count <= *once,
            (_, false) => count == *once,
        };
        if !right {
            found.push(campaign.problem(id, &format!("{count} lines \"on\", {:?}", inbox.get(id))));
        }
    }
    let last = lives.last().expect("a life");
    let file = std::fs::read_to_string(campaign.gateway.path("pins.json")).expect("the state file");
    let states: BTreeMap<String, String> = serde_json::from_str(&file).expect("JSON");
    let on: BTreeSet<_> =
        states.iter().filter(|(_, state)| *state == "on").map(|(pin, _)| pin.clone()).collect();
    let stays = |pin: &&String| pin.starts_with("set-") || pin.starts_with("toggle-");
    let logged: BTreeSet<_> =
        states.keys().filter(stays).filter(|pin| lines_on(last, pin) > 0).cloned().collect();
    if on != logged {
        found.push(format!("the state file has on {on:?}, and the last life's log {logged:?}"));
    }
    found
}

/// How often a pin was switched on, as the log says.
fn lines_on(log: &str, pin: &str) -> usize {
    let name = format!("pin=\"{pin}\"");
    let on = |line: &&str| {
        line.contains("switched simulated pin") && line.contains(&name) && line.contains("state=on")
    };
    log.lines().filter(on).count()
}
