//! Certificates that renew themselves, when something is wrong: with a pair on disk, the disk, the hub, the clock, or
//! another process.

use std::fs;
use std::os::unix::fs::{MetadataExt as _, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use c2d_agent::certificate::CertificateFacts;
use rcgen::{CertificateParams, CustomExtension, KeyPair};
use serde_json::Value;

use super::issued::{DEVICE, Enrolled, TAKEN_UP};
use crate::clock::clock_set_to;
use crate::harness::{DEADLINE, Process, run, skip, wait_for_file};
use crate::machine::is_root_or_skips;
use crate::soak::disk::limit_file_size;

const ASKS_THE_SERVICE: &str = "disconnected to ask the provisioning service for a certificate";

/// A pair in the form of the agent's files, which TLS does not take: its certificate has a critical extension that no
/// library knows.
fn unusable_pair() -> String {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::default();
    let mut unknown = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 99_999, 1], vec![5, 0]);
    unknown.set_criticality(true);
    params.custom_extensions.push(unknown);
    let certificate = params.self_signed(&key).expect("a certificate");
    format!("c2d-agent: {DEVICE} of 0ne00000001\n{}{}", key.serialize_pem(), certificate.pem())
        .replace('\r', "")
}

/// Waits until the first pair is the current one, and there is a key for the next one.
fn taken_up(enrolled: &Enrolled, agent: &Process) {
    agent.stderr.wait_for(TAKEN_UP);
    wait_for_file(&enrolled.file(""), "CERTIFICATE");
    wait_for_file(&enrolled.file(".next"), "PRIVATE KEY");
}

#[test]
fn a_pair_on_disk_that_tls_does_not_take_never_ends_the_agent() {
    let enrolled = Enrolled::new("60s", "mqtt");
    let agent = enrolled.start();
    taken_up(&enrolled, &agent);
    assert_eq!(agent.terminate(), Some(0));
    let good = fs::read(enrolled.file("")).expect("a pair");

    fs::write(enrolled.file(".next"), unusable_pair()).expect("written");
    let agent = enrolled.start();
    agent.stderr.wait_for("certificate.next counts for nothing: TLS does not take it");
    agent.stderr.wait_for("subscribed");
    assert!(enrolled.status()["certificate"]["renewal"].is_string(), "the earlier pair signs in");
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(fs::read(enrolled.file("")).expect("a pair"), good);

    // Without any other pair, the device enrols again.
    for suffix in ["", ".next"] {
        fs::write(enrolled.file(suffix), unusable_pair()).expect("written");
    }
    let agent = enrolled.start();
    agent.stderr.wait_for(TAKEN_UP);
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn a_disk_that_fills_up_between_key_and_chain_is_sat_out() {
    let enrolled = Enrolled::new("30s", "mqtt");
    let agent = enrolled.start();
    agent.stderr.wait_for(TAKEN_UP);
    let pair = wait_for_file(&enrolled.file(""), "CERTIFICATE");
    enrolled.fault(&["certificate=hold"]);
    agent.stderr.wait_for("the hub issues the next certificate");
    limit_file_size(&agent, Some(0));
    enrolled.fault(&["--clear"]);
    agent.stderr.wait_for("inbox.journal.certificate.next cannot be written");
    let next = fs::read_to_string(enrolled.file(".next")).expect("a key");
    assert!(next.contains("PRIVATE KEY") && !next.contains("CERTIFICATE"), "the key is still there");
    assert_eq!(fs::read_to_string(enrolled.file("")).expect("a pair"), pair);
    limit_file_size(&agent, None);
    agent.stderr.wait_for_nth(TAKEN_UP, 2);
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn a_pair_whose_place_cannot_be_written_is_taken_up_later() {
    let enrolled = Enrolled::new("60s", "mqtt");
    fs::create_dir(enrolled.file("")).expect("an obstacle");
    let agent = enrolled.start();
    agent.stderr.wait_for(TAKEN_UP);
    agent.stderr.wait_for("inbox.journal.certificate cannot be written");
    fs::remove_dir(enrolled.file("")).expect("removed");
    wait_for_file(&enrolled.file(""), "CERTIFICATE");
    wait_for_file(&enrolled.file(".next"), "PRIVATE KEY");
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn a_hub_that_issues_none_is_not_asked_and_the_service_is() {
    let enrolled = Enrolled::with("6s", "mqtt", &["--fault", "certificate=unsupported"]);
    let agent = enrolled.start();
    agent.stderr.wait_for_nth(TAKEN_UP, 2);
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(agent.stderr.count("asking the hub for the next certificate"), 0);
    assert!(agent.stderr.count("the hub refused to issue certificates") > 0, "{}", agent.stderr.text());
    assert!(agent.stderr.count(ASKS_THE_SERVICE) > 0, "{}", agent.stderr.text());
}

#[test]
fn a_hub_that_accepts_the_request_and_never_answers_leads_to_the_service() {
    let enrolled = Enrolled::with("20s", "mqtt", &["--fault", "certificate=hold"]);
    let agent = enrolled.start();
    agent.stderr.wait_for(TAKEN_UP);
    agent.stderr.wait_for_nth("the hub has not answered the request for a certificate in time", 3);
    agent.stderr.wait_for(ASKS_THE_SERVICE);
    agent.stderr.wait_for_nth(TAKEN_UP, 2);
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn a_clock_that_is_ahead_is_told_once_and_renewals_keep_their_pauses() {
    let Some(ahead) = clock_set_to("+1h") else {
        return skip("a clock that is ahead", "faketime is missing");
    };
    let enrolled = Enrolled::new("5m", "mqtt");
    let agent = Process::spawn(enrolled.command(&["run"]).envs(ahead));
    let begun = Instant::now();
    agent.stderr.wait_for_nth(TAKEN_UP, 4);
    // A hundredth of the life is three seconds, and the first renewal waits for nothing.
    assert!(begun.elapsed().as_secs() >= 6, "{}", agent.stderr.text());
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(agent.stderr.count("is due for renewal already"), 1, "{}", agent.stderr.text());
}

#[test]
fn two_agents_with_one_registration_both_have_a_pair_and_either_goes_on_alone() {
    let enrolled = Enrolled::new("10s", "mqtt");
    let other = enrolled.beside();
    let (one, two) = (enrolled.start(), other.start());
    for (agent, place) in [(&one, &enrolled), (&two, &other)] {
        agent.stderr.wait_for(TAKEN_UP);
        wait_for_file(&place.file(""), "CERTIFICATE");
    }
    assert!(one.is_running() && two.is_running());
    assert_eq!(two.terminate(), Some(0));
    let before = one.stderr.count(TAKEN_UP);
    one.stderr.wait_for_nth(TAKEN_UP, before + 1);
    assert_eq!(one.terminate(), Some(0));
}

#[test]
fn provision_again_beside_a_running_agent_leaves_whole_files() {
    let enrolled = Enrolled::new("8s", "mqtt");
    let agent = enrolled.start();
    for taken_up in 1..=3 {
        agent.stderr.wait_for_nth(TAKEN_UP, taken_up);
        // The second time, there is a pair that the first time has brought.
        for _time in 0..2 {
            let again = run(&mut enrolled.command(&["provision", "--again"]));
            assert!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
        }
    }
    agent.stderr.wait_for_nth(TAKEN_UP, 4);
    assert_eq!(agent.terminate(), Some(0));
    let agent = enrolled.start();
    agent.stderr.wait_for("subscribed");
    assert_eq!(agent.stderr.count("counts for nothing"), 0, "{}", agent.stderr.text());
    assert_eq!(agent.stderr.count("is asked anew"), 0, "{}", agent.stderr.text());
    assert_eq!(agent.terminate(), Some(0));
}

/// Another user, who can write to the directory of the inbox.
const HOSTILE: u32 = 65534;

#[test]
fn an_agent_of_root_believes_neither_assignment_nor_pair_of_another_user() {
    if !is_root_or_skips("files of another user beside the inbox") {
        return;
    }
    let enrolled = Enrolled::new("60s", "mqtt");
    let agent = enrolled.start();
    taken_up(&enrolled, &agent);
    assert_eq!(agent.terminate(), Some(0));
    let assignment = enrolled.dir.path().join("inbox.journal.assignment");
    let kept = fs::read_to_string(&assignment).expect("kept");
    let mut planted: Value = serde_json::from_str(&kept).expect("JSON");
    planted["hub"] = "hub.of.the.other.user.test".into();
    fs::write(&assignment, planted.to_string()).expect("written");
    // The directory is the user's, too: this would do where root examines a service of that user.
    for place in [enrolled.dir.path(), &assignment, &enrolled.file(""), &enrolled.file(".next")] {
        chown(place, Some(HOSTILE), None).expect("given away");
    }
    let agent = enrolled.start();
    for file in ["assignment", "certificate", "certificate.next"] {
        agent.stderr.wait_until("a warning of each file", |lines| {
            let told = |line: &&String| {
                line.contains(&format!("inbox.journal.{file}"))
                    && line.contains(&format!("it belongs to user {HOSTILE}"))
            };
            lines.iter().find(told).cloned()
        });
    }
    agent.stderr.wait_for("asking the provisioning service for a hub");
    agent.stderr.wait_for(TAKEN_UP);
    let end = Instant::now() + DEADLINE;
    let is_own = |file: &PathBuf| fs::metadata(file).is_ok_and(|metadata| metadata.uid() == 0);
    while ![&assignment, &enrolled.file(""), &enrolled.file(".next")].into_iter().all(is_own) {
        assert!(Instant::now() < end, "{}", agent.stderr.text());
        std::thread::park_timeout(Duration::from_millis(20));
    }
    assert_eq!(agent.terminate(), Some(0));
    assert_eq!(agent.stderr.count("hub=hub.of.the.other.user.test"), 0, "{}", agent.stderr.text());
}

#[test]
fn a_device_whose_pairs_are_both_over_gets_another_one() {
    let enrolled = Enrolled::new("6s", "mqtt");
    let agent = enrolled.start();
    taken_up(&enrolled, &agent);
    let first = fs::read(enrolled.file("")).expect("a pair");
    agent.stderr.wait_for_nth(TAKEN_UP, 2);
    agent.kill();
    // As if it had been killed between the chain and the sign-in with it, and had been off for long.
    fs::write(enrolled.file(".next"), first).expect("written");
    while ends(&enrolled.file("")) + Duration::from_secs(1) >= SystemTime::now() {
        std::thread::park_timeout(Duration::from_millis(100));
    }
    let agent = enrolled.start();
    agent.stderr.wait_for("no sign-in with the certificate that was issued: trying the earlier one");
    agent.stderr.wait_for("the certificate that the hub refused gives way to a new key");
    agent.stderr.wait_for(TAKEN_UP);
    assert_eq!(agent.terminate(), Some(0));
}

/// When the certificate in a file ends.
fn ends(pair: &Path) -> SystemTime {
    let chain = c2d_agent::tls::read_certificates(pair).expect("a pair");
    CertificateFacts::read(&chain[0]).expect("a certificate").not_after
}
