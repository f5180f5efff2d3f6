//! The questions of `init`, at its own terminal.
//!
//! Owns: the terminal. Must not know: what is written.

use std::fs::{self, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::Instant;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, tcgetattr};

use super::{KEY, device, names};
use crate::harness::{DEADLINE, binary, run};
use crate::places::open_dir;

/// `init` at a terminal.
struct Terminal {
    /// The input for what the user types.
    keys: File,
    /// The program's side of the terminal.
    line: File,
    child: std::process::Child,
    shown: Receiver<Vec<u8>>,
    seen: String,
}

impl Terminal {
    fn init(dir: &Path, arguments: &[&str]) -> Self {
        let keys = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
        grantpt(&keys).and_then(|()| unlockpt(&keys)).expect("a terminal");
        let name = ptsname(&keys, Vec::new()).expect("its name");
        let line =
            OpenOptions::new().read(true).write(true).open(name.to_str().expect("ASCII")).expect("opened");
        let clean = binary();
        // The program needs its own session, so that the keys for signals work.
        let mut command = Command::new("setsid");
        command
            .args(["--ctty", "--wait"])
            .arg(clean.get_program())
            .arg("init")
            .arg("-c")
            .arg(dir.join("config.toml"));
        for (name, _) in clean.get_envs().filter(|(_, value)| value.is_none()) {
            command.env_remove(name);
        }
        let end = || Stdio::from(line.try_clone().expect("a terminal"));
        command.args(arguments).env_remove("SUDO_USER").stdin(end()).stdout(end()).stderr(end());
        let child = command.spawn().expect("setsid runs");
        let keys = File::from(keys);
        let mut screen = keys.try_clone().expect("a terminal");
        let (tell, shown) = sync_channel(64); // more than the program shows
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(read) = screen.read(&mut bytes) {
                if tell.send(bytes[..read].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self { keys, line, child, shown, seen: String::new() }
    }

    /// Waits until the screen has `part` after the text of the last wait. Returns the text up to there.
    fn wait_for(&mut self, part: &str) -> String {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(at) = self.seen.find(part) {
                return self.seen.drain(..at + part.len()).collect();
            }
            let left = end.saturating_duration_since(Instant::now());
            match self.shown.recv_timeout(left) {
                Ok(bytes) => self.seen += &String::from_utf8_lossy(&bytes),
                Err(_) => panic!("waited too long for \"{part}\"; shown is:\n{}", self.seen),
            }
        }
    }

    fn type_in(&mut self, text: &str) {
        self.keys.write_all(text.as_bytes()).expect("typed");
    }

    fn exit_code(&mut self) -> Option<i32> {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.try_wait().expect("a status") {
                return status.code();
            }
            assert!(Instant::now() < end, "it does not end; shown is:\n{}", self.seen);
            std::thread::park_timeout(std::time::Duration::from_millis(5)); // no event with a deadline: poll
        }
    }

    fn echoes(&self) -> bool {
        tcgetattr(&self.line).expect("a terminal").local_modes.contains(LocalModes::ECHO)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

#[test]
fn it_asks_shows_no_secret_and_asks_again_for_what_is_wrong() {
    let dir = open_dir();
    let mut terminal = Terminal::init(dir.path(), &[]);
    terminal.wait_for("Ctrl-C ends it, and writes nothing.");
    terminal.wait_for("Device connection string (not shown");
    terminal.wait_for("): ");
    assert!(!terminal.echoes());
    terminal.type_in(&format!("HostName=hub.example;SharedAccessKeyName=service;SharedAccessKey={KEY}\n"));
    terminal.wait_for("this is a service connection string");
    terminal.wait_for("): ");
    terminal.type_in(&format!("{}\n", device()));
    let shown = terminal.wait_for("device pi-01 on hub hub.example");
    assert!(!shown.contains("SharedAccessKey="), "{shown}");
    terminal.wait_for("Name of an output");
    assert!(terminal.echoes());
    terminal.type_in("water pump\n");
    terminal.wait_for("\"water pump\" is not a name that init takes");
    terminal.type_in("\n");
    terminal.wait_for("Name of a command");
    terminal.type_in("hello\n");
    terminal.wait_for("Its program");
    terminal.type_in("logger 'hello'\n");
    terminal.wait_for("quotes mean nothing here");
    terminal.type_in("true\n");
    terminal.wait_for("\"true\" is not an absolute path");
    terminal.type_in("/bin/echo hello\n");
    terminal.wait_for("send it a message:");
    assert_eq!(terminal.exit_code(), Some(0));
    assert_eq!(names(dir.path()), ["config.toml", "device.connection-string"]);
    let text = fs::read_to_string(dir.path().join("config.toml")).expect("there");
    assert!(text.contains("do = [ { run = [\"/bin/echo\", \"hello\"] } ]\n"), "{text}");
    let check = run(binary().arg("check").arg("-c").arg(dir.path().join("config.toml")));
    assert!(check.status.success(), "{check:?}");
}

#[test]
fn it_asks_only_for_what_no_option_gives() {
    let dir = open_dir();
    let secret = dir.path().join("secret");
    fs::write(&secret, device()).expect("written");
    let mut terminal = Terminal::init(
        dir.path(),
        &["--connection-string-file", secret.to_str().expect("UTF-8"), "--simulated"],
    );
    let before = terminal.wait_for("Name of an output");
    assert!(!before.contains("connection string"), "{before}");
    terminal.type_in("pump\n");
    terminal.wait_for("Its line");
    terminal.type_in("GPIO17\n");
    terminal.wait_for("\"GPIO17\" is not a line number");
    terminal.type_in("17\n");
    terminal.wait_for("wrote");
    assert_eq!(terminal.exit_code(), Some(0));
}

#[test]
fn ctrl_c_and_the_end_of_input_leave_nothing_behind_and_the_terminal_as_it_was() {
    for (key, sentence, code) in [
        ("\u{3}", "a signal ended it: nothing was written", 1),
        ("\u{4}", "standard input ended before the last answer", 2),
    ] {
        let dir = open_dir();
        let mut terminal = Terminal::init(dir.path(), &["--pin", "pump=17"]);
        terminal.wait_for("Device connection string (not shown");
        terminal.wait_for("): ");
        assert!(!terminal.echoes());
        terminal.type_in(key);
        terminal.wait_for(sentence);
        assert_eq!(terminal.exit_code(), Some(code));
        assert!(terminal.echoes());
        assert_eq!(names(dir.path()), Vec::<String>::new());
    }
}
