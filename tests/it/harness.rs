//! Starts the real binary and waits for its output: emulator, agent, sender, and a TCP proxy that can cut connections.
//!
//! Owns: processes and their output; every wait has a deadline, and every process ends with its handle.
//! Must not know: what a single test shows.
#![allow(dead_code)] // Not every feature set uses every part.

use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

#[allow(unused_imports)] // Not every feature set uses both.
pub(crate) use crate::machine::{is_root_or_skips, lasting_port, own_address};

/// How long any step may take before a test fails. The time is long, because many tests may share two cores.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);

/// A command for the binary under test, without the caller's variables that it reads.
pub(crate) fn binary() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_c2d-agent"));
    let is_foreign = |name: &str| ["C2D_", "AZURE_", "IDENTITY_"].iter().any(|start| name.starts_with(start));
    for (name, _) in std::env::vars_os().filter(|(name, _)| is_foreign(&name.to_string_lossy())) {
        command.env_remove(name);
    }
    for name in ["https_proxy", "HTTPS_PROXY", "no_proxy", "NO_PROXY"] {
        command.env_remove(name);
    }
    command.env("NO_COLOR", "1");
    command
}

/// Says that a test did not run and what it lacked. If CI is set, the test fails, because CI must have everything.
/// Use: `let Some(program) = find() else { return skip("what the test shows", "mosquitto is not installed") };`
pub(crate) fn skip(test: &str, lack: &str) {
    assert!(std::env::var_os("CI").is_none(), "\"{test}\" must run where CI is set, but {lack}");
    // Cargo would capture println!, but scripts/test.sh lists these lines.
    writeln!(std::io::stderr(), "SKIPPED {test}: {lack}").expect("standard error is open");
}

/// A program of the system, also from `/usr/sbin`, where Debian puts mosquitto.
pub(crate) fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let folders = std::env::split_paths(&path).chain([PathBuf::from("/usr/sbin")]);
    folders.map(|folder| folder.join(name)).find(|file| file.is_file())
}

/// Runs a command to its end and returns its output; fails the test after [`DEADLINE`].
pub(crate) fn run(command: &mut Command) -> Output {
    let process = Process::spawn(command);
    let status = process.wait_exit();
    let join = |lines: Vec<String>| lines.iter().flat_map(|line| [line.as_bytes(), b"\n"].concat()).collect();
    Output { status, stdout: join(process.stdout.all()), stderr: join(process.stderr.all()) }
}

/// The lines that a process has printed so far, and a way to wait for more.
#[derive(Clone, Default)]
pub(crate) struct Lines(Arc<(Mutex<Printed>, Condvar)>);

/// What was printed, and whether the output has ended.
type Printed = (Vec<String>, bool);

impl Lines {
    /// Reads to the end, in a new thread.
    pub(crate) fn follow(reader: impl Read + Send + 'static) -> Self {
        let lines = Self::default();
        let own = lines.clone();
        std::thread::spawn(move || {
            let mut reader = BufReader::new(reader);
            let mut bytes = Vec::new();
            while matches!(reader.read_until(b'\n', &mut bytes), Ok(read) if read > 0) {
                let line = String::from_utf8_lossy(&bytes).trim_end_matches('\n').to_owned();
                bytes.clear();
                own.0.0.lock().expect("lines").0.push(line);
                own.0.1.notify_all();
            }
            own.0.0.lock().expect("lines").1 = true;
            own.0.1.notify_all();
        });
        lines
    }

    /// Everything so far.
    pub(crate) fn all(&self) -> Vec<String> {
        self.0.0.lock().expect("lines").0.clone()
    }

    /// Everything so far, as one text.
    pub(crate) fn text(&self) -> String {
        self.all().join("\n")
    }

    /// How many lines so far contain `part`.
    pub(crate) fn count(&self, part: &str) -> usize {
        self.all().iter().filter(|line| line.contains(part)).count()
    }

    /// Waits for the first line that contains `part`. At the deadline, or if the process ends without the line, the
    /// test fails and shows all output.
    pub(crate) fn wait_for(&self, part: &str) -> String {
        self.wait_for_nth(part, 1)
    }

    /// Waits for the `n`-th line (from 1) that contains `part`.
    pub(crate) fn wait_for_nth(&self, part: &str, n: usize) -> String {
        self.wait_until(part, |lines| lines.iter().filter(|line| line.contains(part)).nth(n - 1).cloned())
    }

    /// Waits until `found` finds something in the lines.
    pub(crate) fn wait_until<T>(&self, what: &str, found: impl Fn(&[String]) -> Option<T>) -> T {
        let end = Instant::now() + DEADLINE;
        let mut state = self.0.0.lock().expect("lines");
        loop {
            if let Some(value) = found(&state.0) {
                return value;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() || state.1 {
                let printed = state.0.join("\n");
                drop(state);
                panic!("waited too long for \"{what}\"; printed so far:\n{printed}");
            }
            state = self.0.1.wait_timeout(state, left).expect("lines").0;
        }
    }

    /// Waits until the output has ended, at most until the deadline.
    pub(crate) fn wait_end(&self) {
        self.wait_end_unless(|_| false);
    }

    /// Waits until the output has ended or `enough` is true, at most until the deadline.
    pub(crate) fn wait_end_unless(&self, enough: impl Fn(&[String]) -> bool) {
        let end = Instant::now() + DEADLINE;
        let mut state = self.0.0.lock().expect("lines");
        while !state.1 && !enough(&state.0) && Instant::now() < end {
            state = self.0.1.wait_timeout(state, Duration::from_millis(200)).expect("lines").0;
        }
    }
}

/// A running process with its output followed. Killed when dropped.
pub(crate) struct Process {
    child: Mutex<Child>,
    /// Standard output: results.
    pub(crate) stdout: Lines,
    /// Standard error: the log.
    pub(crate) stderr: Lines,
}

impl Process {
    /// Starts `command` with no standard input.
    pub(crate) fn spawn(command: &mut Command) -> Self {
        command.stdin(Stdio::null());
        Self::spawn_with_stdin(command)
    }

    /// Starts `command` with the standard input that it has.
    pub(crate) fn spawn_with_stdin(command: &mut Command) -> Self {
        let spawned = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let stdout = Lines::follow(child.stdout.take().expect("piped"));
        let stderr = Lines::follow(child.stderr.take().expect("piped"));
        Self { child: Mutex::new(child), stdout, stderr }
    }

    /// Starts `command` with a standard error that the test made.
    pub(crate) fn spawn_with_stderr(command: &mut Command, stderr: impl Into<Stdio>) -> Self {
        Self::spawn_with_stdin_and_stderr(command.stdin(Stdio::null()), stderr)
    }

    /// Starts `command` with the standard input that it has, and a standard error that the test made.
    pub(crate) fn spawn_with_stdin_and_stderr(command: &mut Command, stderr: impl Into<Stdio>) -> Self {
        command.stdout(Stdio::piped()).stderr(stderr);
        let mut child = command.spawn().unwrap_or_else(|error| panic!("{command:?} does not start: {error}"));
        let stdout = Lines::follow(child.stdout.take().expect("piped"));
        let ended = Lines(Arc::new((Mutex::new((Vec::new(), true)), Condvar::new())));
        Self { child: Mutex::new(child), stdout, stderr: ended }
    }

    /// The process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.lock().expect("child").id()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.id() as i32).expect("a pid");
        rustix::process::kill_process(pid, signal).expect("the process is there");
    }

    /// Whether the process still runs.
    pub(crate) fn is_running(&self) -> bool {
        self.child.lock().expect("child").try_wait().expect("a status").is_none()
    }

    /// Waits for the end, and for the end of its output; fails the test after [`DEADLINE`].
    pub(crate) fn wait_exit(&self) -> ExitStatus {
        let end = Instant::now() + DEADLINE;
        loop {
            if let Some(status) = self.child.lock().expect("child").try_wait().expect("a status") {
                self.stdout.wait_end();
                self.stderr.wait_end();
                return status;
            }
            assert!(Instant::now() < end, "the process does not end; its log:\n{}", self.stderr.text());
            std::thread::park_timeout(Duration::from_millis(5)); // no event to wait for with a deadline: poll
        }
    }

    /// Waits for the first line on standard output that contains `part`. If the process ends without the line, it fails
    /// the test and shows the log.
    pub(crate) fn wait_stdout(&self, part: &str) -> String {
        let is_it = |line: &String| line.contains(part);
        self.stdout.wait_end_unless(|lines| lines.iter().any(is_it));
        self.stdout.all().into_iter().find(is_it).unwrap_or_else(|| {
            self.stderr.wait_end();
            panic!("waited too long for \"{part}\"; its log:\n{}", self.stderr.text())
        })
    }

    /// Writes a line to the process's standard input, which must be a pipe.
    pub(crate) fn tell(&self, line: &str) {
        let mut child = self.child.lock().expect("child");
        let stdin = child.stdin.as_mut().expect("a pipe");
        writeln!(stdin, "{line}").and_then(|()| stdin.flush()).expect("written");
    }

    /// Sends SIGTERM, and returns the exit code.
    pub(crate) fn terminate(&self) -> Option<i32> {
        self.signal(rustix::process::Signal::TERM);
        self.wait_exit().code()
    }

    /// Kills the process with SIGKILL, and waits until it is gone.
    pub(crate) fn kill(&self) {
        let mut child = self.child.lock().expect("child");
        child.kill().expect("killed");
        child.wait().expect("reaped");
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let child = self.child.get_mut().expect("child");
        // The process may have ended already. A test that failed half-way must leave no process behind.
        drop(child.kill());
        drop(child.wait());
    }
}

/// A running `c2d-agent emulator` on free ports.
pub(crate) struct Emulator {
    /// The process.
    pub(crate) process: Process,
    /// The emulator's state directory.
    pub(crate) state: PathBuf,
    /// The address for devices.
    pub(crate) mqtt: SocketAddr,
    /// The address for the back end.
    pub(crate) amqp: SocketAddr,
    /// The address for HTTPS.
    pub(crate) https: SocketAddr,
    _dir: Option<tempfile::TempDir>,
}

impl Emulator {
    /// Starts an emulator with the device `dev1` and quick feedback.
    pub(crate) fn start() -> Self {
        Self::start_with(&["--device", "dev1"])
    }

    /// Starts an emulator with these arguments, and with its own ports, state directory and feedback interval.
    pub(crate) fn start_with(arguments: &[&str]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let mut emulator = Self::start_in(&dir.path().join("state"), "0", "0", arguments);
        emulator._dir = Some(dir);
        emulator
    }

    /// Starts an emulator in a given state directory on given ports (`0`: any), for restarts.
    pub(crate) fn start_in(state: &Path, mqtt_port: &str, amqp_port: &str, arguments: &[&str]) -> Self {
        let mut command = binary();
        command.arg("emulator").arg("--state-dir").arg(state);
        let port = |asked: &str| if asked == "0" { lasting_port().to_string() } else { asked.to_owned() };
        command.args(["--mqtt-port", &port(mqtt_port), "--amqp-port", &port(amqp_port)]);
        command.args(["--feedback-interval", "100ms"]);
        if !arguments.contains(&"--https-port") {
            command.args(["--https-port", &port("0")]);
        }
        let process = Process::spawn(command.args(arguments));
        let ready = process.wait_stdout("ready ");
        let address = |name: &str| {
            let field = ready.split(' ').find_map(|field| field.strip_prefix(name)).expect("the ready line");
            field.parse().expect("an address")
        };
        let (mqtt, amqp, https) = (address("mqtt="), address("amqp="), address("https="));
        Self { mqtt, amqp, https, process, state: state.to_owned(), _dir: None }
    }

    /// The file with the connection string of a device.
    pub(crate) fn device_file(&self, device: &str) -> PathBuf {
        self.state.join(format!("devices/{device}.connection-string"))
    }

    /// The connection string of a device.
    pub(crate) fn device_string(&self, device: &str) -> String {
        std::fs::read_to_string(self.device_file(device)).expect("a connection string").trim().to_owned()
    }

    /// The service connection string.
    pub(crate) fn service_string(&self) -> String {
        let file = self.state.join("service.connection-string");
        std::fs::read_to_string(file).expect("a connection string").trim().to_owned()
    }

    /// The emulator's certificate authority.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.state.join("ca.pem")
    }

    /// `c2d-send --device DEVICE` to this emulator; the caller may add arguments.
    pub(crate) fn sender(&self, device: &str) -> Command {
        let mut command = binary();
        command.args(["c2d-send", "--device", device]).arg("--connection-string-file");
        command.arg(self.state.join("service.connection-string")).arg("--ca-file").arg(self.ca_file());
        command
    }

    /// Sends a message with `c2d-send` and further arguments, and fails the test unless it exits with 0.
    pub(crate) fn send(&self, device: &str, arguments: &[&str]) -> Output {
        let output = run(self.sender(device).args(arguments));
        assert!(output.status.success(), "c2d-send failed:\n{}", String::from_utf8_lossy(&output.stderr));
        output
    }
}

/// Writes `config.toml` into `dir`. If the text does not say where the inbox is, it is also in `dir`, and not in the
/// place of an installed agent.
pub(crate) fn write_config(dir: &Path, text: &str) -> PathBuf {
    let path = dir.join("config.toml");
    let inbox = if text.contains("[inbox]") { "" } else { "\n[inbox]\npath = \"inbox.journal\"\n" };
    std::fs::write(&path, format!("{text}{inbox}")).expect("written");
    path
}

/// A running `c2d-agent run`, with its configuration in its own directory.
pub(crate) struct Agent {
    /// The process.
    pub(crate) process: Process,
    /// The directory of the configuration; rules may write here.
    pub(crate) dir: PathBuf,
}

impl Agent {
    /// Starts the agent as `device` of `emulator`, with the rest of the configuration (`[gpio…]`, `[[rule]]`) in
    /// `dir`, and waits until it has subscribed.
    pub(crate) fn start(emulator: &Emulator, device: &str, dir: &Path, rest: &str) -> Self {
        let agent = Self::spawn(&emulator.device_string(device), &emulator.ca_file(), dir, rest);
        agent.process.stderr.wait_for("subscribed");
        agent
    }

    /// Starts the agent with any device connection string, without waiting.
    pub(crate) fn spawn(connection_string: &str, ca_file: &Path, dir: &Path, rest: &str) -> Self {
        let config = write_config(dir, rest);
        let mut command = binary();
        command.arg("run").arg("-c").arg(&config);
        command.env("C2D_DEVICE_CONNECTION_STRING", connection_string).env("C2D_CA_FILE", ca_file);
        Self { process: Process::spawn(&mut command), dir: dir.to_owned() }
    }
}

/// Waits until a file contains `part`, and returns its text. It polls, because a file has no event to wait for.
pub(crate) fn wait_for_file(path: &Path, part: &str) -> String {
    let end = Instant::now() + DEADLINE;
    loop {
        let text = std::fs::read_to_string(path).unwrap_or_default();
        if text.contains(part) {
            return text;
        }
        assert!(
            Instant::now() < end,
            "waited too long for \"{part}\" in {}: it has \"{text}\"",
            path.display()
        );
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Waits until `c2d-agent status` of the agent in `dir` contains `part`. The log may be ahead of the agent's loop.
pub(crate) fn wait_for_status(dir: &Path, part: &str) {
    let status = || run(binary().arg("status").arg("-c").arg(dir.join("config.toml")));
    let end = Instant::now() + DEADLINE;
    while !String::from_utf8_lossy(&status().stdout).contains(part) {
        assert!(Instant::now() < end, "{:?}", status());
    }
}

/// A TCP proxy on loopback that can cut its connections and refuse or accept new ones.
pub(crate) struct Proxy {
    /// The address for clients.
    pub(crate) address: SocketAddr,
    open: Arc<AtomicBool>,
    /// Whether bytes from clients are held back.
    held: Arc<AtomicBool>,
    streams: Arc<Mutex<Vec<TcpStream>>>,
    /// For each connection: whether it has stopped to carry bytes.
    dead: Arc<Mutex<Vec<Arc<AtomicBool>>>>,
}

impl Proxy {
    /// Forwards every connection to `target`.
    pub(crate) fn to(target: SocketAddr) -> Self {
        Self::at((Ipv4Addr::LOCALHOST, 0).into(), target)
    }

    /// As [`Proxy::to`], at the given `address`; port 0 means any free one.
    pub(crate) fn at(address: SocketAddr, target: SocketAddr) -> Self {
        let listener = TcpListener::bind(address).expect("a free port");
        let proxy = Self {
            address: listener.local_addr().expect("an address"),
            open: Arc::new(AtomicBool::new(true)),
            held: Arc::default(),
            streams: Arc::default(),
            dead: Arc::default(),
        };
        let all_dead = Arc::clone(&proxy.dead);
        let (open, streams) = (Arc::clone(&proxy.open), Arc::clone(&proxy.streams));
        let held = Arc::clone(&proxy.held);
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let Ok(server) = TcpStream::connect(target) else { continue };
                // The lock is held, so that a cut sees either no connection or a registered one.
                let mut streams = streams.lock().expect("streams");
                if !open.load(Ordering::SeqCst) {
                    continue;
                }
                for stream in [&client, &server] {
                    stream.set_nodelay(true).expect("a socket");
                    streams.push(stream.try_clone().expect("a socket"));
                }
                let (never, dead) = (Arc::default(), Arc::<AtomicBool>::default());
                all_dead.lock().expect("flags").push(Arc::clone(&dead));
                let copies = [
                    (client.try_clone(), server.try_clone(), Arc::clone(&held), Arc::clone(&dead)),
                    (Ok(server), Ok(client), never, dead),
                ];
                for (from, to, held, dead) in copies {
                    let (mut from, mut to) = (from.expect("a socket"), to.expect("a socket"));
                    std::thread::spawn(move || {
                        let mut buffer = [0; 16 * 1024];
                        while let Ok(read) = from.read(&mut buffer) {
                            while held.load(Ordering::SeqCst) {
                                std::thread::park_timeout(Duration::from_millis(1)); // a flag has no event: poll
                            }
                            while dead.load(Ordering::SeqCst) {
                                std::thread::park(); // for ever, so that neither end learns that the other has closed
                            }
                            if read == 0 || to.write_all(&buffer[..read]).is_err() {
                                break;
                            }
                        }
                        drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
                    });
                }
            }
        });
        proxy
    }

    /// Cuts every connection at once. New ones are accepted.
    pub(crate) fn cut(&self) {
        for stream in self.streams.lock().expect("streams").drain(..) {
            drop(stream.shutdown(Shutdown::Both));
        }
    }

    /// From now on, existing connections carry nothing, not even their end, as if a router in between had lost its
    /// memory. New connections work.
    pub(crate) fn freeze(&self) {
        for dead in self.dead.lock().expect("flags").drain(..) {
            dead.store(true, Ordering::SeqCst);
        }
    }

    /// Holds back what clients send from now on, or lets it through. If the connection is cut, held bytes are lost.
    pub(crate) fn hold(&self, held: bool) {
        self.held.store(held, Ordering::SeqCst);
    }

    /// Lets new connections through, or closes them as soon as they come.
    pub(crate) fn set_open(&self, open: bool) {
        let _guard = self.streams.lock().expect("streams");
        self.open.store(open, Ordering::SeqCst);
    }
}
