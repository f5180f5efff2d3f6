//! Trap 15: the disk is full, read-only or missing, or its content is broken.
//!
//! Owns: making disks bad and good again. Must not know: the inbox's file.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, SystemTime};

use super::{QUICK, gated, open, started, wait_done};
use c2d_agent::service::OutgoingMessage;

use crate::harness::run;
use crate::soak::back_end::{Hub, message};
use crate::soak::disk::{TROUBLE, WELL, limit_file_size};
use crate::soak::gateway::Gateway;

/// A file system of one MiB in memory; unmounted when dropped.
pub(crate) struct SmallDisk {
    path: PathBuf,
}

impl SmallDisk {
    /// Mounts the file system, or says why that is not possible.
    pub(crate) fn mount(path: PathBuf) -> Result<Self, String> {
        fs::create_dir_all(&path).expect("a directory");
        let arguments = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
        let mounted =
            Command::new("mount").args(arguments).arg(&path).output().map_err(|error| error.to_string())?;
        if !mounted.status.success() {
            return Err(String::from_utf8_lossy(&mounted.stderr).trim().to_owned());
        }
        Ok(Self { path })
    }

    pub(crate) fn remount(&self, option: &str) {
        let status =
            Command::new("mount").args(["-o", &format!("remount,{option}")]).arg(&self.path).status();
        assert!(status.expect("mount runs").success(), "the disk could not be remounted {option}");
    }

    /// Writes until the disk is full.
    pub(crate) fn fill(&self) {
        let mut filler = fs::File::create(self.path.join("filler")).expect("a file");
        while filler.write_all(&[0; 512]).is_ok() {}
    }

    pub(crate) fn clear(&self) {
        fs::remove_file(self.path.join("filler")).expect("removed");
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // The unmount is lazy, because after a failed test the agent may still have a file open.
        drop(Command::new("umount").arg("-l").arg(&self.path).status());
    }
}

/// Says that a test is skipped. This is allowed in CI, too: CI must have all programs, but may lack the right to mount.
pub(crate) fn skip(test: &str, lack: &str) {
    writeln!(std::io::stderr(), "SKIPPED {test}: a file system cannot be mounted here ({lack})")
        .expect("stderr");
}

fn with_inbox(path: &str) -> String {
    format!("[inbox]\npath = \"{path}\"\n{QUICK}")
}

/// Asserts that no message runs during the trouble, that all run by themselves after it, and that the log tells the
/// trouble and its end once each.
fn sits_it_out(hub: &Hub, gateway: &Gateway, make_good: impl FnOnce()) {
    let log = &gateway.agent().stderr;
    for id in ["m-1", "m-2"] {
        // So large that it does not fit into the room that a new inbox has.
        hub.send_message(OutgoingMessage { body: vec![b'x'; 65_300].into(), ..message(id, "quick") })
            .expect("room");
    }
    log.wait_for(TROUBLE);
    assert!(hub.feedback().is_empty(), "completed and not recorded");
    assert!(!gateway.path("done").exists(), "done and not recorded");
    make_good();
    assert_eq!(wait_done(gateway, "m-2 done"), "m-1 done\nm-2 done\n");
    hub.wait_success("m-1");
    hub.wait_success("m-2");
    log.wait_for(WELL);
    assert_eq!((log.count(TROUBLE), log.count(WELL)), (1, 1), "{}", log.text());
    assert_eq!(gateway.settled_inbox().len(), 2);
}

#[test]
fn trap_15_a_full_disk_is_sat_out() {
    let hub = Hub::start();
    let mut gateway = Gateway::new(&hub, &with_inbox("DIR/disk/inbox.journal"));
    let disk = match SmallDisk::mount(gateway.path("disk")) {
        Ok(disk) => disk,
        Err(lack) => return skip("a full disk is sat out", &lack),
    };
    gateway.start_subscribed();
    disk.fill();
    sits_it_out(&hub, &gateway, || disk.clear());
    gateway.terminate();
}

#[test]
fn trap_15_a_disk_that_is_full_at_the_start_is_sat_out() {
    let hub = Hub::start();
    let mut gateway = Gateway::new(&hub, &with_inbox("DIR/disk/inbox.journal"));
    let disk = match SmallDisk::mount(gateway.path("disk")) {
        Ok(disk) => disk,
        Err(lack) => return skip("a disk that is full at the start is sat out", &lack),
    };
    disk.fill();
    gateway.start();
    sits_it_out(&hub, &gateway, || disk.clear());
    gateway.terminate();
}

#[test]
fn trap_15_an_action_that_ends_while_nothing_can_be_written_is_completed_when_its_end_is_recorded() {
    let (hub, mut gateway) = started("mqtt", &gated("slow", ""));
    hub.send("m-1", "slow", &[]).expect("room");
    wait_done(&gateway, "m-1 began");
    // The running program keeps the limit with which it began.
    limit_file_size(gateway.agent(), Some(0));
    open(&gateway, "slow");
    let log = &gateway.agent().stderr;
    log.wait_for("action ended");
    log.wait_for(TROUBLE);
    assert!(hub.feedback().is_empty(), "completed and not recorded");
    limit_file_size(gateway.agent(), None);
    hub.wait_success("m-1");
    log.wait_for(WELL);
    assert_eq!(wait_done(&gateway, "m-1 ended"), "m-1 began\nm-1 ended\n");
    assert_eq!(gateway.settled_inbox()["m-1"].outcome.as_deref(), Some("succeeded"));
    gateway.terminate();
}

#[test]
fn trap_15_sigterm_while_nothing_can_be_written_ends_the_agent_in_time_and_loses_nothing() {
    let (hub, mut gateway) =
        started("mqtt", &(gated("slow", "") + &gated("accepted", "settle = \"on-accept\"")));
    hub.send("m-1", "slow", &[]).expect("room");
    wait_done(&gateway, "m-1 began");
    hub.send("m-2", "accepted", &[]).expect("room");
    wait_done(&gateway, "m-2 began");
    hub.send("m-3", "accepted", &[]).expect("room");
    // The completion of m-3 must wait for that of m-1, which has not ended. So the test asks the inbox.
    while gateway.inbox().len() < 3 {
        gateway.expect_running();
    }
    limit_file_size(gateway.agent(), Some(0));
    hub.send("m-4", "accepted", &[]).expect("room");
    gateway.agent().stderr.wait_for(TROUBLE);
    open(&gateway, "slow");
    gateway.agent().stderr.wait_for("action ended");
    let asked = Instant::now();
    gateway.terminate();
    assert!(asked.elapsed() < Duration::from_secs(8), "it took {:?}", asked.elapsed());
    open(&gateway, "accepted");
    gateway.start_subscribed();
    ["m-1", "m-2", "m-4"].iter().for_each(|id| hub.wait_success(id));
    let inbox = gateway.settled_inbox();
    let outcomes: Vec<_> =
        inbox.iter().map(|(id, stands)| (id.as_str(), stands.outcome.as_deref())).collect();
    // The ends of the first two messages could not be recorded.
    let (lost, done) = (Some("interrupted"), Some("succeeded"));
    assert_eq!(outcomes, [("m-1", lost), ("m-2", lost), ("m-3", done), ("m-4", done)]);
}

#[test]
fn trap_15_a_message_that_expires_while_nothing_can_be_written_is_not_acted_on() {
    let (hub, mut gateway) = started("mqtt", QUICK);
    limit_file_size(gateway.agent(), Some(0));
    let expiry = SystemTime::now() + Duration::from_secs(3);
    let mut soon = message("m-1", "quick");
    soon.expiry = Some(expiry);
    hub.send_message(soon).expect("room");
    gateway.agent().stderr.wait_for(TROUBLE);
    // A user who asks is told at once what is wrong: questions do not wait in a queue.
    let listed = run(&mut gateway.command(&["inbox", "list"]));
    let told = String::from_utf8_lossy(&listed.stderr).into_owned();
    assert!(listed.status.code() == Some(1) && told.contains("LimitFSIZE"), "{told}");
    while let Ok(left) = expiry.duration_since(SystemTime::now()) {
        std::thread::park_timeout(left);
    }
    limit_file_size(gateway.agent(), None);
    gateway.agent().stderr.wait_for(WELL);
    assert_eq!(gateway.settled_inbox()["m-1"].outcome.as_deref(), Some("expired"));
    assert!(!gateway.path("done").exists(), "acted on too late");
    gateway.terminate();
}

#[test]
fn trap_15_a_read_only_disk_is_sat_out() {
    let hub = Hub::start();
    let mut gateway = Gateway::new(&hub, &with_inbox("DIR/disk/inbox.journal"));
    let disk = match SmallDisk::mount(gateway.path("disk")) {
        Ok(disk) => disk,
        Err(lack) => return skip("a read-only disk is sat out", &lack),
    };
    disk.remount("ro");
    gateway.start();
    sits_it_out(&hub, &gateway, || disk.remount("rw"));
    gateway.terminate();
}

#[test]
fn trap_15_a_folder_that_cannot_be_made_is_sat_out() {
    let hub = Hub::start();
    let mut gateway = Gateway::new(&hub, &with_inbox("DIR/state/inbox.journal"));
    let folder = gateway.path("state");
    fs::write(&folder, "a file where the folder should be").expect("written");
    gateway.start();
    sits_it_out(&hub, &gateway, || fs::remove_file(&folder).expect("removed"));
    gateway.terminate();
}

#[test]
fn trap_15_a_corrupt_inbox_is_moved_aside_and_named_and_a_new_one_begun() {
    let hub = Hub::start();
    let mut gateway = Gateway::new(&hub, QUICK);
    // The agent moves away only a file that was an inbox, so an agent must have used this one.
    gateway.start_subscribed();
    gateway.terminate();
    let garbage = vec![b'?'; 64 * 1024];
    fs::write(gateway.path("inbox.journal"), &garbage).expect("written");
    gateway.start_subscribed();
    hub.send("m-1", "quick", &[]).expect("room");
    hub.wait_success("m-1");
    let aside = moved_aside(&gateway.path(""));
    assert_eq!(aside.len(), 1, "{aside:?}");
    assert_eq!(fs::read(&aside[0]).expect("a file"), garbage, "never changed");
    let name = aside[0].file_name().expect("a name").to_string_lossy().into_owned();
    assert!(gateway.agent().stderr.text().contains(&name), "{}", gateway.agent().stderr.text());
    assert_eq!(gateway.inbox().len(), 1);
}

fn moved_aside(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
    entries.filter(|path| path.to_string_lossy().contains("inbox.journal.corrupt-")).collect()
}
