//! The faults of `campaign`, and between them the disk is full for a while.
//!
//! Owns: filling the disk and the oracle for that time. Must not know: how the inbox notices it.
//!
//! The running agent's file-size limit goes to zero, so that no more bytes can be written, and later back. Programs
//! inherit the limit. So this begins only when no program runs, and no program may run until it ends; the test also
//! checks that. A kill would end the limit with the agent, so meanwhile only the connection is cut.

use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};

use super::campaign::Campaign;
use super::{MAX_CHILDREN, any_rule, configuration, is_interrupted, wrong_counts};
use crate::harness::Process;

/// The agent's log line when the inbox cannot be written, once for each time.
pub(crate) const TROUBLE: &str = "messages stay at the hub until it succeeds";
/// The agent's log line when the inbox can be written again.
pub(crate) const WELL: &str = "can be used again";

/// How often the disk is full.
const TIMES: usize = 3;
/// How many messages come while the disk is full.
const MEANWHILE: usize = 20;

/// Sets the soft limit on the size of the files that a process writes.
pub(crate) fn limit_file_size(process: &Process, bytes: Option<u64>) {
    let pid = Pid::from_raw(i32::try_from(process.id()).expect("a pid")).expect("a pid");
    prlimit(Some(pid), Resource::Fsize, Rlimit { current: bytes, maximum: None }).expect("the limit is set");
}

#[test]
fn while_the_disk_is_full_nothing_is_done_and_nothing_completed_and_afterwards_nothing_is_lost() {
    let mut campaign = Campaign::new(&configuration(""));
    for time in 0..TIMES {
        for _ in 0..6 {
            campaign.flow(8, any_rule);
            campaign.fault();
        }
        campaign.quiet();
        campaign.gateway.expect_running();
        let (troubles, wells) = (count(&campaign, TROUBLE), count(&campaign, WELL));
        limit_file_size(campaign.gateway.agent(), Some(0));
        let meanwhile = campaign.send(MEANWHILE, any_rule);
        campaign.gateway.agent().stderr.wait_for_nth(TROUBLE, troubles + 1);
        if time == 1 {
            campaign.gateway.cut();
        }
        // This is long enough for a second attempt to write, which must not be logged again.
        std::thread::park_timeout(Duration::from_millis(1500));
        campaign.gateway.expect_running();
        let feedback = campaign.hub.feedback();
        let completed: Vec<_> = meanwhile.iter().filter(|id| feedback.contains_key(*id)).collect();
        assert!(completed.is_empty(), "seed {}: completed and not recorded: {completed:?}", campaign.seed);
        let done = meanwhile.iter().filter(|id| is_done(&campaign, id)).collect::<Vec<_>>();
        assert!(done.is_empty(), "seed {}: done and not recorded: {done:?}", campaign.seed);
        if time == 2 {
            // SIGTERM does not wait for the disk, and the next life has no limit.
            campaign.gateway.terminate();
            campaign.gateway.start();
            continue;
        }
        limit_file_size(campaign.gateway.agent(), None);
        campaign.gateway.agent().stderr.wait_for_nth(WELL, wells + 1);
        let told = (count(&campaign, TROUBLE), count(&campaign, WELL));
        assert_eq!(told, (troubles + 1, wells + 1), "told once:\n{}", campaign.gateway.agent().stderr.text());
    }
    let inbox = campaign.quiet();
    let mut problems = campaign.problems(&inbox, &[TROUBLE]);
    problems.extend(wrong_counts(&campaign, &inbox));
    let interrupted = inbox.keys().filter(|id| is_interrupted(&inbox, id)).count();
    let messages = campaign.sent.len();
    eprintln!(
        "disk full {TIMES} times, {messages} messages, {interrupted} interrupted: {}",
        campaign.faults()
    );
    assert!(interrupted <= campaign.gateway.kills * MAX_CHILDREN);
    campaign.judge(&problems);
    campaign.gateway.terminate();
}

fn is_done(campaign: &Campaign, id: &str) -> bool {
    campaign.gateway.effects(&campaign.sent[id].action).contains_key(id)
}

fn count(campaign: &Campaign, part: &str) -> usize {
    campaign.gateway.agent().stderr.count(part)
}
