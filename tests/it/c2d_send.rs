//! `c2d-send` as a user sees it: what it prints, and its exit codes, against a hub in this process.
//!
//! Owns: nothing. Must not know: how the command is built.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime};

use c2d_agent::emulator::hub::{ConnectionId, Hub, QueuedMessage, Subscription};
use c2d_agent::emulator::shared::SharedHub;
use c2d_agent::emulator::{self, Options};
use c2d_agent::feedback::DeliveryAck;
use c2d_agent::message::{self, C2dMessage};
use tokio::sync::oneshot;

use crate::harness::{DEADLINE, Process, Proxy, binary, run};
use crate::json_lines::json_lines;

/// A hub in this process. Tests read its state, and play the device without MQTT.
pub(crate) struct Running {
    pub(crate) hub: SharedHub,
    pub(crate) amqp: std::net::SocketAddr,
    pub(crate) https: std::net::SocketAddr,
    dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Running {
    pub(crate) fn start() -> Self {
        Self::with_devices(vec!["dev1".into(), "dev2".into()])
    }

    pub(crate) fn with_devices(devices: Vec<String>) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let options = Options {
            state_dir: dir.path().to_owned(),
            bind: [127, 0, 0, 1].into(),
            hostname: "localhost".into(),
            gateway_hostname: None,
            hubs: Vec::new(),
            mqtt_port: 0,
            amqp_port: 0,
            https_port: Some(0),
            devices,
            x509_devices: Vec::new(),
            modules: Vec::new(),
            routes: Vec::new(),
            workload_socket: None,
            feedback_interval: Duration::from_millis(50),
            certificate_lifetime: std::time::Duration::from_secs(3600),
            size: None,
            faults: Vec::new(),
            clock: None,
            well_known_keys: false,
            provisioning: None,
            entra: None,
        };
        let (started, ready) = sync_channel(1);
        let (stop, stopped) = oneshot::channel();
        let thread = std::thread::spawn(move || {
            runtime().block_on(async {
                let emulator = emulator::start(options, SystemTime::now).await.expect("started");
                let (amqp, https) = (emulator.amqp_address(), emulator.https_address());
                started.send((emulator.hub().clone(), amqp, https)).expect("a listener");
                stopped.await.ok();
                emulator.stop().await;
            });
        });
        let (hub, amqp, https) = ready.recv_timeout(DEADLINE).expect("ready");
        Self { hub, amqp, https, dir, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn send(&self, device: &str, arguments: &[&str]) -> Output {
        run(self.command(device).args(arguments))
    }

    pub(crate) fn command(&self, device: &str) -> Command {
        let service = self.service_string();
        self.command_with(&service, device)
    }

    pub(crate) fn command_with(&self, connection_string: &str, device: &str) -> Command {
        let mut command = self.sender();
        command.args(["--device", device]).env("C2D_SERVICE_CONNECTION_STRING", connection_string);
        command
    }

    /// `c2d-send` without a device.
    pub(crate) fn sender(&self) -> Command {
        let mut command = binary();
        command.arg("c2d-send").arg("--ca-file").arg(self.file("ca.pem"));
        command.env("C2D_HTTPS_PORT", self.https.port().to_string());
        command.env("C2D_SERVICE_CONNECTION_STRING", self.service_string());
        command
    }

    pub(crate) fn service_string(&self) -> String {
        let text = std::fs::read_to_string(self.file("service.connection-string"));
        text.expect("a connection string").trim().to_owned()
    }

    /// Connects as `device`, waits for its next message, and then changes the hub.
    pub(crate) fn on_message(
        &self,
        device: &'static str,
        act: impl FnOnce(&mut Hub, ConnectionId, SystemTime) + Send + 'static,
    ) -> JoinHandle<C2dMessage> {
        let hub = self.hub.clone();
        let connection = connect(&hub, device);
        std::thread::spawn(move || {
            let arrived = async {
                let mut changed = hub.watch();
                loop {
                    let next = |hub: &mut Hub, now| hub.next_delivery(device, connection, now);
                    if let Some(locked) = hub.with(next) {
                        break locked;
                    }
                    changed.changed().await.expect("the hub is there");
                }
            };
            let locked = runtime().block_on(async { tokio::time::timeout(DEADLINE, arrived).await });
            let locked = locked.expect("a message in time");
            hub.with(|hub, now| {
                hub.complete(device, locked.lock, now).expect("the lock is held");
                act(hub, connection, now);
            });
            (*locked.message).clone()
        })
    }

    /// Queues a message without AMQP.
    pub(crate) fn enqueue(&self, device: &str, id: &str) {
        let mut message = C2dMessage::default();
        message.system.set(message::MESSAGE_ID, id);
        let device_id = device.to_owned();
        let queued = QueuedMessage { device_id, message, ack: DeliveryAck::Full, expiry: None };
        self.hub.with(|hub, now| hub.enqueue(queued, now)).expect("room");
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("the hub has not failed");
        }
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

pub(crate) fn connect(hub: &SharedHub, device: &str) -> ConnectionId {
    hub.with(|hub, now| {
        let connection = hub.connect(device, false, now).expect("the device").connection;
        assert!(hub.subscribe(device, connection, Subscription::DeviceBound, 1));
        connection
    })
}

/// Standard output, standard error and exit code, with times and tracking ids replaced by `N`.
pub(crate) fn seen(output: &Output) -> (String, String, Option<i32>) {
    let text = |bytes: &[u8]| {
        let text = String::from_utf8(bytes.to_vec()).expect("UTF-8");
        let words = text.split_inclusive([' ', '\n', ')']);
        let mut previous = String::new();
        words
            .map(|word| {
                let replaced = match previous.trim_end() {
                    "in" | "after" => word.replace(|c: char| c.is_ascii_digit() || c == '.', ""),
                    "id" => word.replace(|c: char| c.is_ascii_hexdigit() || c == '-', ""),
                    _ => word.to_owned(),
                };
                let number = if replaced == word { "" } else { "N" };
                previous = word.to_owned();
                format!("{number}{replaced}")
            })
            .collect()
    };
    (text(&output.stdout), text(&output.stderr), output.status.code())
}

pub(crate) const ACCEPTED: &str = "accepted by the hub in N ms (queued, not yet delivered)\n";
const WAITING: &str = "for feedback (a real hub collects it for up to 15 s before it sends it)\n";

#[test]
fn an_accepted_message_reaches_the_device_as_it_was_sent() {
    let running = Running::start();
    let device = running.on_message("dev1", |_, _, _| {});
    let output = running.send(
        "dev1",
        &[
            "--message-id=m-1",
            "--correlation-id=c-1",
            "--user-id=ops",
            "--content-type=application/json",
            "--content-encoding=utf-8",
            "--property=action=pump",
            "--property=state=on",
            "--expiry=10m",
            "--ack=positive",
            "--data={}",
        ],
    );
    assert_eq!(seen(&output), (format!("message m-1  device dev1\n{ACCEPTED}"), String::new(), Some(0)));
    let message = device.join().expect("a device");
    assert_eq!(&message.body[..], b"{}");
    let system: BTreeMap<_, _> = message.system.iter().filter(|(name, _)| *name != message::EXPIRY).collect();
    let expected = [
        ("$.mid", "m-1"),
        ("$.cid", "c-1"),
        ("$.uid", "ops"),
        ("$.ct", "application/json"),
        ("$.ce", "utf-8"),
        ("$.to", "/devices/dev1/messages/devicebound"),
        ("iothub-ack", "positive"),
    ];
    assert_eq!(system, expected.map(|(name, value)| (name, Some(value))).into());
    let left = message.expiry().expect("an expiry").duration_since(SystemTime::now()).expect("ahead");
    assert!(left > Duration::from_secs(590) && left <= Duration::from_secs(600), "{left:?}");
    let application: Vec<_> = message.application.iter().collect();
    assert_eq!(application, [("action", Some("pump")), ("state", Some("on"))]);
}

#[test]
fn the_body_may_come_from_standard_input_and_the_id_is_a_uuid() {
    let running = Running::start();
    let device = running.on_message("dev1", |_, _, _| {});
    let mut command = running.command("dev1");
    let body = running.file("body");
    std::fs::write(&body, [7; 60_000]).expect("written");
    command.args(["--file", "-"]).stdin(Stdio::from(std::fs::File::open(&body).expect("opened")));
    let process = Process::spawn_with_stdin(&mut command);
    assert_eq!(process.wait_exit().code(), Some(0), "{}", process.stderr.text());
    let message = device.join().expect("a device");
    assert_eq!(message.body.len(), 60_000);
    let id = message.message_id().expect("an id");
    assert_eq!((id.len(), id.matches('-').count()), (36, 4), "{id}");
    assert_eq!(process.stdout.all()[0], format!("message {id}  device dev1"));
}

#[test]
fn an_unknown_device_and_a_full_queue_are_refused_in_words() {
    let running = Running::start();
    let (stdout, stderr, code) = seen(&running.send("nope", &["--message-id=m-1"]));
    assert_eq!((stdout.as_str(), code), ("message m-1  device nope\n", Some(1)));
    assert_eq!(
        stderr,
        "c2d-agent: the hub knows no device \"nope\": check --device, or the list (amqp:not-found: the hub has no device \
         \"nope\"; tracking id N)\n"
    );
    for n in 0..49 {
        running.enqueue("dev1", &format!("q-{n}"));
    }
    assert_eq!(running.send("dev1", &[]).status.code(), Some(0), "the 50th");
    let (_, stderr, code) = seen(&running.send("dev1", &[]));
    let words = "c2d-agent: the queue of device \"dev1\" is full (50 messages): the device is offline or slow; wait \
                 until it has taken some, or purge its queue (amqp:resource-limit-exceeded: ";
    assert!(stderr.starts_with(words) && code == Some(1), "{code:?} {stderr}");
}

#[test]
fn what_is_wrong_before_dialling_is_named_with_exit_code_2() {
    let running = Running::start();
    let large = running.file("large");
    std::fs::write(&large, vec![0; 64 * 1024]).expect("written");
    let large = large.to_str().expect("UTF-8").to_owned();
    let cases: [(&[&str], &str); 9] = [
        (&["--file", &large], "but a C2D message has at most 65536 (64 KiB)"),
        (&["--wait-outcome", "--ack", "none"], "--wait-outcome needs feedback, but --ack none asks for none"),
        (&["--expiry", "3d"], "--expiry is 3days, but the hub keeps no message longer than 2 days"),
        (&["--message-id", "a b"], "the message id is \"a b\": use 1 to 128 of"),
        (&["--wait", "--ack", "none"], "--wait needs feedback, but --ack none asks for none"),
        (&["--property", "$.cid=1"], "$.cid is a system property: use --correlation-id"),
        (&["--property=a=1", "--property=a=2"], "--property a is given twice"),
        (&["--content-type", "é"], "--content-type is \"é\": use printable ASCII text"),
        (&["--file", "/nowhere"], "cannot read the body from /nowhere"),
    ];
    for (arguments, words) in cases {
        let (stdout, stderr, code) = seen(&running.send("dev1", arguments));
        assert!(stderr.contains(words), "{arguments:?}: {stderr}");
        assert_eq!((stdout.as_str(), code), ("", Some(2)), "{arguments:?}");
    }
    let (_, stderr, code) = seen(&running.send("a/b", &[]));
    assert!(stderr.starts_with("c2d-agent: \"a/b\" is not a device id") && code == Some(2), "{stderr}");
}

#[test]
fn each_mistake_in_the_credentials_has_its_sentence() {
    let running = Running::start();
    let case = |connection_string: &str| {
        let output = run(&mut running.command_with(connection_string, "dev1"));
        let (_, stderr, code) = seen(&output);
        assert!(!stderr.contains("AAAA"), "a secret is printed: {stderr}");
        (stderr, code)
    };
    let port = running.amqp.port();
    let (stderr, code) = case(&format!("HostName=localhost:{port};DeviceId=dev1;SharedAccessKey=AAAA"));
    assert!(stderr.contains("this is a device connection string (it has DeviceId)"), "{stderr}");
    assert_eq!(code, Some(2));
    let policy = |rest: &str| format!("HostName=localhost:{port};SharedAccessKeyName=service;{rest}");
    let (stderr, code) = case(&policy("SharedAccessKey=AAAA"));
    let words =
        format!("c2d-agent: localhost:{port} does not accept the policy \"service\": check its name and key");
    assert!(stderr.starts_with(&words), "{stderr}");
    assert_eq!(code, Some(1));
    let (stderr, code) =
        case(&policy("SharedAccessSignature=SharedAccessSignature sr=localhost&sig=AAAA&se=9"));
    let words = "c2d-agent: the SAS token of the service connection string expired at 1970-01-01T00:00:09Z";
    assert!(stderr.starts_with(words), "{stderr}");
    assert_eq!(code, Some(1));
    let closed =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("an address").port();
    let (stderr, code) =
        case(&format!("HostName=127.0.0.1:{closed};SharedAccessKeyName=service;SharedAccessKey=AAAA"));
    assert!(stderr.contains(&format!("127.0.0.1 refuses connections on port {closed}")), "{stderr}");
    assert_eq!(code, Some(1));
}

#[test]
fn a_hub_with_a_private_root_needs_the_ca_file() {
    let running = Running::start();
    let mut command = binary();
    command.args(["c2d-send", "--device", "dev1", "--connection-string-file"]);
    command.arg(running.file("service.connection-string"));
    let (_, stderr, code) = seen(&run(&mut command));
    assert!(stderr.contains("is not signed by a root that this machine trusts"), "{stderr}");
    assert_eq!(code, Some(1));
    command.arg("--ca-file").arg(running.file("service.connection-string"));
    let (_, stderr, code) = seen(&run(&mut command));
    assert!(stderr.contains("holds no certificate in PEM form"), "{stderr}");
    assert_eq!(code, Some(2));
}

#[test]
fn wait_tells_that_the_message_was_delivered() {
    let running = Running::start();
    let device = running.on_message("dev1", |_, _, _| {});
    let output = running.send("dev1", &["--message-id=m-1", "--wait"]);
    let stdout = format!("message m-1  device dev1\n{ACCEPTED}delivered: Success after N s\n");
    assert_eq!(seen(&output), (stdout, format!("waiting up to 1m {WAITING}"), Some(0)));
    assert_eq!(device.join().expect("a device").property("iothub-ack"), Some("full"), "--wait asks for it");
}

#[test]
fn wait_finds_its_own_record_among_others_and_drops_none_silently() {
    let running = Running::start();
    // One change of the hub makes one batch: a record of another message, this message's record, one more of another.
    let around = |running: &Running, arguments: &[&str]| {
        let other = connect(&running.hub, "dev2");
        let finish = move |hub: &mut Hub, now: SystemTime| {
            let locked = hub.next_delivery("dev2", other, now).expect("a message");
            hub.complete("dev2", locked.lock, now).expect("the lock is held");
        };
        running.enqueue("dev2", "other-1");
        running.enqueue("dev2", "m-1");
        let device = running.on_message("dev1", move |hub, _, now| {
            finish(hub, now);
            finish(hub, now);
        });
        let output = running.send("dev1", &[&["--message-id=m-1", "--wait"], arguments].concat());
        device.join().expect("a device");
        let (stdout, stderr, code) = seen(&output);
        assert_eq!(code, Some(0), "{stderr}");
        (stdout.lines().skip(2).map(str::to_owned).collect::<Vec<_>>(), stderr)
    };
    let (stdout, stderr) = around(&running, &[]);
    assert_eq!(stdout, ["delivered: Success after N s"]);
    let note = "2 records of other messages came with the feedback and will not come again; --verbose or \
                --json shows them\n";
    assert_eq!(stderr, format!("waiting up to 1m {WAITING}{note}"));

    let (stdout, stderr) = around(&running, &["--verbose"]);
    let other = |id: &str| format!("feedback of another message {id}  device dev2: Success");
    assert_eq!(stdout, ["delivered: Success after N s".to_owned(), other("other-1"), other("m-1")]);
    assert_eq!(stderr, format!("waiting up to 1m {WAITING}"));

    let (stdout, stderr) = around(&running, &["--json"]);
    let events = json_lines(&stdout.join("\n"));
    let pairs: Vec<_> =
        events.iter().map(|event| (event["event"].as_str(), event["deviceId"].as_str())).collect();
    assert_eq!(
        pairs,
        [
            (Some("feedback"), Some("dev1")),
            (Some("other-feedback"), Some("dev2")),
            (Some("other-feedback"), Some("dev2"))
        ]
    );
    assert_eq!((events[0]["status"].as_str(), stderr.as_str()), (Some("Success"), ""));
}

#[test]
fn an_expired_message_is_negative_feedback_with_exit_code_3() {
    let running = Running::start();
    let output = running.send("dev1", &["--message-id=m-1", "--expiry=500ms", "--wait=20s", "--json"]);
    let (stdout, stderr, code) = seen(&output);
    assert_eq!((stderr.as_str(), code), ("", Some(3)));
    let last: serde_json::Value = serde_json::from_str(stdout.lines().last().expect("a line")).expect("JSON");
    assert_eq!((last["event"].as_str(), last["status"].as_str()), (Some("feedback"), Some("Expired")));
    let output =
        running.send("dev1", &["--message-id=m-2", "--expiry=500ms", "--ack=negative", "--wait", "20s"]);
    let (stdout, _, code) = seen(&output);
    assert!(stdout.ends_with("\nnot delivered: Expired after N s\n"), "{stdout}");
    assert_eq!(code, Some(3));
}

#[test]
fn no_feedback_in_time_is_exit_code_4() {
    let running = Running::start();
    let output = running.send("dev1", &["--message-id=m-1", "--wait=300ms"]);
    let words = "no feedback within 300ms: the message stays queued until it is delivered or expires\n";
    let stdout = format!("message m-1  device dev1\n{ACCEPTED}{words}");
    assert_eq!(seen(&output), (stdout, format!("waiting up to 300ms {WAITING}"), Some(4)));
}

#[test]
fn a_signal_or_a_lost_connection_ends_the_wait_with_exit_code_1() {
    let running = Running::start();
    let process = Process::spawn(running.command("dev1").arg("--wait"));
    process.stdout.wait_for("accepted by the hub");
    process.signal(rustix::process::Signal::INT);
    assert_eq!(process.wait_exit().code(), Some(1));
    assert_eq!(process.stderr.all().last().map(String::as_str), Some("c2d-agent: interrupted by a signal"));

    let proxy = Proxy::to(running.amqp);
    let port = |port: u16| format!("HostName=localhost:{port};");
    let service = running.service_string().replace(&port(running.amqp.port()), &port(proxy.address.port()));
    let process = Process::spawn(running.command_with(&service, "dev1").arg("--wait"));
    process.stdout.wait_for("accepted by the hub");
    proxy.cut();
    assert_eq!(process.wait_exit().code(), Some(1));
    process.stderr.wait_for("c2d-agent: the connection to the hub was lost");
}
