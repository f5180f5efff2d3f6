//! A run of `c2d-send` as a terminal of 80 columns shows it.
//!
//! Owns: the terminal. Must not know: what is counted.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use c2d_agent::emulator::hub::{Fault, FaultOrder};

use crate::fleet::{ids, with_list};
use crate::harness::DEADLINE;

/// A program with both outputs at a terminal.
struct Watched {
    child: Child,
    shown: Receiver<Vec<u8>>,
    seen: String,
}

impl Watched {
    fn start(command: &mut Command) -> Self {
        let screen = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&screen).and_then(|()| unlockpt(&screen)).expect("a terminal");
        tcsetwinsize(&screen, Winsize { ws_row: 24, ws_col: 80, ws_xpixel: 0, ws_ypixel: 0 })
            .expect("a size");
        let name = ptsname(&screen, Vec::new()).expect("its name");
        let line =
            OpenOptions::new().read(true).write(true).open(name.to_str().expect("ASCII")).expect("opened");
        let end = || Stdio::from(line.try_clone().expect("a terminal"));
        command.stdin(Stdio::null()).stdout(end()).stderr(end()).env("TERM", "xterm");
        let child = command.spawn().expect("it starts");
        let mut screen = File::from(screen);
        let (tell, shown) = sync_channel(4_096); // more than the program shows
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read) = screen.read(&mut bytes) {
                if tell.send(bytes[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { child, shown, seen: String::new() }
    }

    fn wait_for(&mut self, part: &str) {
        let end = Instant::now() + DEADLINE;
        while !self.seen.contains(part) {
            match self.shown.recv_timeout(end.saturating_duration_since(Instant::now())) {
                Ok(bytes) => self.seen += &String::from_utf8_lossy(&bytes),
                Err(_) => panic!("waited too long for \"{part}\"; shown is:\n{}", self.seen),
            }
        }
    }

    fn exit_code(&mut self) -> Option<i32> {
        let code = self.child.wait().expect("it ends").code();
        while let Ok(bytes) = self.shown.try_recv() {
            self.seen += &String::from_utf8_lossy(&bytes);
        }
        code
    }

    /// Each state of the bar.
    fn bars(&self) -> Vec<&str> {
        self.seen.split(['\r', '\n', '\x1b']).filter(|part| part.contains(" accepted, ")).collect()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn a_terminal_shows_a_bar_and_then_the_sums() {
    let mut list = ids(12);
    list.insert(3, "nobody".to_owned());
    let (running, path) = with_list(12, &list.join("\n"));
    let mut command = running.sender();
    command.arg("--devices-from").arg(&path).args(["--rate", "20/s"]);
    let mut watched = Watched::start(&mut command);
    watched.wait_for("        1  refused, the first: the hub knows no device");
    assert_eq!(watched.exit_code(), Some(3), "{}", watched.seen);
    let bars = watched.bars();
    let late =
        bars.iter().find(|bar| bar.contains("1 refused, ")).unwrap_or_else(|| panic!("{}", watched.seen));
    assert!(
        late.contains('[') && late.contains(" %  ") && late.contains("/min, ") && late.contains(" left"),
        "{late:?}"
    );
    for bar in bars {
        // What is left of the sequence that clears the line is not shown.
        assert!(bar.trim_start_matches("[2K").chars().count() <= 80, "{bar:?}");
    }
    assert!(!watched.seen.contains("\x1b[3"), "no colours: {:?}", watched.seen);
    assert!(
        watched.seen.contains("       12  accepted by the hub (queued, not yet delivered)"),
        "{}",
        watched.seen
    );
}

#[test]
fn the_time_that_is_left_is_that_of_a_hub_that_throttles() {
    let (running, path) = with_list(90, &ids(90).join("\n"));
    let order = FaultOrder { device_id: Some("pump-30".into()), fault: Fault::Throttle };
    running.hub.with(|hub, _| hub.order_faults(&[order])).expect("set");
    let mut command = running.sender();
    command.arg("--devices-from").arg(&path).args(["--rate", "20/s"]);
    let mut watched = Watched::start(&mut command);
    // About 61 messages at half the rate, after a pause of 10 s.
    watched.wait_for("the hub throttles: waiting 10 s, then 600/min: 1");
    running.hub.with(|hub, _| hub.clear_faults("pump-30", None));
    watched.wait_for(" accepted, 0 refused, 600/min, 1");
    assert_eq!(watched.exit_code(), Some(0), "{}", watched.seen);
    // The pause is over, and does not count any more.
    let number = |bar: &str, after: &str| -> u32 {
        let text = bar.split(after).nth(1).unwrap_or_else(|| panic!("{bar}")).trim_start();
        text.split(' ').next().and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("{bar}"))
    };
    let late: Vec<_> = watched.bars().into_iter().filter(|bar| number(bar, "%") > 45).collect();
    let late: Vec<_> = late.into_iter().filter(|bar| bar.contains(" left")).collect();
    assert!(late.len() > 5, "{}", watched.seen);
    for bar in late {
        assert!(number(bar, "/min,") <= (90 - number(bar, "%")) / 10 + 3, "{bar}");
    }
}

#[test]
fn a_terminal_shows_of_how_many_messages_the_feedback_has_come() {
    let (running, path) = with_list(2, "pump-1\npump-2\n");
    let device = running.on_message("pump-1", |_, _, _| {});
    let mut command = running.sender();
    command.arg("--devices-from").arg(&path).args(["--rate", "5/s", "--wait=60s"]);
    let mut watched = Watched::start(&mut command);
    device.join().expect("a message");
    watched.wait_for("100 %  2 accepted, 0 refused, 1 with feedback ");
    running.on_message("pump-2", |_, _, _| {}).join().expect("a message");
    watched.wait_for("        2  delivered");
    assert_eq!(watched.exit_code(), Some(0), "{}", watched.seen);
    // Notes stand on lines of their own.
    let lines: Vec<_> =
        watched.seen.split(['\r', '\n']).map(|line| line.trim_start_matches("\x1b[2K")).collect();
    for note in ["watching the feedback of localhost", "all is sent: waiting up to 1m for feedback"] {
        assert!(lines.iter().any(|line| line.starts_with(note)), "{note}: {:?}", watched.seen);
    }
}

#[test]
fn a_signal_in_the_middle_says_how_to_go_on() {
    let (running, path) = with_list(3, "pump-1\npump-2\npump-3");
    let mut command = running.sender();
    command.arg("--devices-from").arg(&path).args(["--rate", "1/min"]);
    let mut watched = Watched::start(&mut command);
    watched.wait_for("1 accepted, 0 refused");
    let child = Pid::from_raw(watched.child.id() as i32).expect("a pid");
    kill_process(child, Signal::INT).expect("it runs");
    watched.wait_for("c2d-agent: interrupted by a signal; to go on: c2d-agent c2d-send --resume ");
    assert_eq!(watched.exit_code(), Some(1), "{}", watched.seen);
    assert!(
        watched.seen.contains("        2  not sent, or sent without an answer of the hub"),
        "{}",
        watched.seen
    );
}
