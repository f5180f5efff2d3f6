//! Direct methods under faults: callers, an agent that is killed, ended and cut off at random instants, and an oracle
//! that counts what was done.
//!
//! Owns: the callers and the oracle. Must not know: how the agent keeps its promises.
//!
//! After an answer 200, the action was done exactly once. After an answer 202, the call has a record: its action is
//! done exactly once, or at most once if the record says that it was interrupted. After an error or no answer, the
//! action was done at most once: no call is run again, whatever its rule does with messages.

use serde_json::{Value, json};

use crate::harness::Emulator;
use crate::rest::service_token;
use crate::rest_ask::ask;
use crate::soak::back_end::{Door, Hub};
use crate::soak::gateway::Gateway;

/// Methods and the keys of their rules. Each method appends the payload of the call to a file of its name.
const METHODS: [(&str, &str); 3] =
    [("after", ""), ("after-retry", "on_crash = \"retry\""), ("accept", "settle = \"on-accept\"")];
const CALLERS: usize = 4;
const ROUNDS: usize = 30;

fn configuration() -> String {
    let rule = |(name, keys): &(&str, &str)| {
        format!(
            "[[rule]]\nname = \"{name}\"\nwhen = {{ \"$.method\" = \"{name}\" }}\n{keys}\n\
             do = [ {{ shell = 'echo $(cat) >> DIR/{name}; sleep 0.02' }} ]\n"
        )
    };
    let inbox = "[inbox]\npath = \"inbox.journal\"\nmax_size = \"64MiB\"\n";
    inbox.to_owned() + &METHODS.iter().map(rule).collect::<String>()
}

/// The answer that a caller got.
#[derive(Debug)]
pub(crate) struct Heard {
    method: &'static str,
    call: u64,
    /// The status of the device; `None` if the device did not answer.
    pub(crate) status: Option<u64>,
    pub(crate) payload: Value,
}

/// Calls a method with a number as its payload, on a new connection.
pub(crate) fn call(emulator: &Emulator, path: &str, method: &'static str, call: u64) -> Heard {
    let line = format!("POST /twins/{path}/methods?api-version=2021-04-12");
    let body = json!({ "methodName": method, "payload": call, "responseTimeoutInSeconds": 25 });
    let answer = ask(emulator, &line, &service_token(emulator), "", body.to_string().as_bytes());
    assert!([200, 404, 504].contains(&answer.status), "{} {}", answer.status, answer.body);
    let told = answer.json();
    let status = told["status"].as_u64().filter(|_| answer.status == 200);
    Heard { method, call, status, payload: told["payload"].clone() }
}

fn endure(door: Door, path: &str) {
    let hub = Hub::start_with(door);
    let mut gateway = Gateway::new(&hub, &configuration());
    gateway.start_subscribed();
    let seed = fastrand::u64(..);
    eprintln!("seed {seed}");
    let mut random = fastrand::Rng::with_seed(seed);
    let mut heard = Vec::new();
    for round in 0..ROUNDS {
        let methods: Vec<_> = (0..CALLERS).map(|_| METHODS[random.usize(0..METHODS.len())].0).collect();
        let (delay, fault) = (std::time::Duration::from_millis(random.u64(0..150)), random.usize(0..5));
        std::thread::scope(|scope| {
            let callers: Vec<_> = methods
                .into_iter()
                .enumerate()
                .map(|(caller, method)| {
                    let number = (round * CALLERS + caller) as u64;
                    let emulator = &hub.emulator;
                    scope.spawn(move || call(emulator, path, method, number))
                })
                .collect();
            // The pause makes the instant of the fault random.
            std::thread::park_timeout(delay);
            match fault {
                0 => gateway.cut(),
                1 => gateway.terminate(),
                2 | 3 => gateway.kill(),
                _ => {}
            }
            heard.extend(callers.into_iter().map(|caller| caller.join().expect("a caller")));
        });
        match fault {
            0 => drop(gateway.agent().stderr.wait_for_nth("subscribed", 1 + gateway.losses as usize)),
            1..=3 => gateway.start_subscribed(),
            _ => {}
        }
    }
    let inbox = gateway.settled_inbox();
    let mut problems = Vec::new();
    for Heard { method, call, status, payload } in &heard {
        let done = gateway.effects(method).get(&call.to_string()).copied().unwrap_or_default();
        let record = payload["messageId"].as_str().and_then(|id| inbox.get(id));
        let outcome = record.and_then(|record| record.outcome.as_deref());
        let right = match (status, outcome) {
            (Some(200), Some("succeeded")) | (Some(202), Some("succeeded")) => done == 1,
            (Some(202), Some("interrupted")) => done <= 1,
            (Some(200 | 202), _) => false,
            _ => done <= 1,
        };
        if !right {
            problems.push(format!(
                "{method} {call}: answered {status:?} {payload}, done {done} times, {outcome:?}"
            ));
        }
    }
    let answered = |status| heard.iter().filter(|heard| heard.status == Some(status)).count();
    let story = format!(
        "{} calls: {} answered 200, {} 202; {} kills",
        heard.len(),
        answered(200),
        answered(202),
        gateway.kills
    );
    eprintln!("{story}");
    assert!(problems.is_empty(), "seed {seed}, {story}\n{}", problems.join("\n"));
    assert!(answered(200) > 0 && answered(202) > 0, "{story}");
    for log in gateway.lives() {
        assert!(!log.contains(" ERROR "), "{log}");
    }
}

#[test]
fn a_call_to_a_device_is_never_done_twice_and_what_was_answered_was_done() {
    endure(Door::C2d, "dev1");
}

#[test]
fn a_call_to_a_module_is_never_done_twice_and_what_was_answered_was_done() {
    endure(Door::Input, "edge1/modules/c2d-agent");
}
