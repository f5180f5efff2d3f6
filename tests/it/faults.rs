//! What can go wrong around the agent: no network, a wrong clock, signals at bad moments.

use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::clock::clock_set_to;
use crate::harness::{Agent, Process, Proxy, binary, run, skip, wait_for_file, write_config};
use crate::mosquitto::Mosquitto;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const ANY_RULE: &str = "[[rule]]\nname = \"any\"\nwhen = { a = \"b\" }\ndo = [ { shell = \"true\" } ]\n";

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

/// A file with a root certificate that no server uses.
fn some_root(dir: &Path) -> std::path::PathBuf {
    let made = rcgen::generate_simple_self_signed(["root".to_owned()]).expect("a certificate");
    let file = dir.join("ca.pem");
    std::fs::write(&file, made.cert.pem()).expect("written");
    file
}

/// A port of loopback without a listener.
fn closed_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("an address").port()
}

/// Three rules that write what they do into the file `done`. `slow` sleeps for 30 s and ends at SIGTERM, `stubborn`
/// ignores SIGTERM and never ends, `short` sleeps for 1 s.
fn slow_rules(dir: &Path) -> String {
    let done = dir.join("done");
    let done = done.display();
    format!(
        "[[rule]]\nname = \"slow\"\nwhen = {{ action = \"slow\" }}\n\
         do = [ {{ shell = \"echo $C2D_MESSAGE_ID began >> {done}; sleep 30; echo $C2D_MESSAGE_ID ended >> {done}\" }} ]\n\
         [[rule]]\nname = \"stubborn\"\nwhen = {{ action = \"stubborn\" }}\n\
         do = [ {{ shell = \"trap '' TERM; echo $C2D_MESSAGE_ID began >> {done}; while :; do sleep 1; done\" }} ]\n\
         [[rule]]\nname = \"short\"\nwhen = {{ action = \"short\" }}\n\
         do = [ {{ shell = \"echo $C2D_MESSAGE_ID began >> {done}; sleep 1; echo $C2D_MESSAGE_ID ended >> {done}\" }} ]\n\
         [gpio]\nbackend = \"simulated\"\nstate_file = \"pins.json\"\n[gpio.pins.relay]\nline = 5\non_exit = \"on\"\n",
    )
}

#[test]
fn a_hub_that_does_not_listen_is_named_and_tried_again_and_sigterm_ends_the_wait() {
    let dir = dir();
    let port = closed_port();
    let string = format!("HostName=localhost:{port};DeviceId=dev1;SharedAccessKey={KEY}");
    let agent = Agent::spawn(&string, &some_root(dir.path()), dir.path(), ANY_RULE);
    let sentence = format!("localhost:{port} refused the connection: nothing listens on that port");
    agent.process.stderr.wait_for_nth(&sentence, 2);
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn a_host_name_without_an_address_is_named_and_tried_again() {
    let dir = dir();
    let string = format!("HostName=no-such-hub.invalid;DeviceId=dev1;SharedAccessKey={KEY}");
    let agent = Agent::spawn(&string, &some_root(dir.path()), dir.path(), ANY_RULE);
    agent.process.stderr.wait_for_nth("the host name of no-such-hub.invalid:8883 was not found", 2);
    assert_eq!(agent.process.terminate(), Some(0));
}

#[test]
fn an_expired_token_is_named_before_dialling_and_ends_the_agent() {
    let dir = dir();
    let token = "SharedAccessSignature sr=localhost%2Fdevices%2Fdev1&sig=c2lnbmF0dXJl&se=1700000000";
    let string = format!("HostName=localhost:1;DeviceId=dev1;SharedAccessSignature={token}");
    let agent = Agent::spawn(&string, &some_root(dir.path()), dir.path(), ANY_RULE);
    assert_eq!(agent.process.wait_exit().code(), Some(1));
    let text = agent.process.stderr.text();
    assert!(text.contains("of device dev1 expired at 2023-11-14T22:13:20Z"), "{text}");
    assert!(!text.contains("c2lnbmF0dXJl"), "the signature is not repeated: {text}");
}

#[test]
fn trap_09_the_clock_at_1970_is_named_as_such_and_tried_again() {
    let Some(clock) = clock_set_to("1970-01-01 00:01:40") else {
        return skip("a clock at 1970 is named", "faketime is not installed");
    };
    let dir = dir();
    let ca_file = some_root(dir.path());
    let config = write_config(dir.path(), ANY_RULE);
    let mut command = binary();
    command.arg("run").arg("-c").arg(&config);
    // The wall clock does not move.
    command.envs(clock);
    let string = format!("HostName=localhost:{};DeviceId=dev1;SharedAccessKey={KEY}", closed_port());
    command.env("C2D_DEVICE_CONNECTION_STRING", string).env("C2D_CA_FILE", ca_file);
    let process = Process::spawn(&mut command);
    let line = process.stderr.wait_for_nth("this machine's clock says 1970-01-01T00:01:40Z: set it (NTP)", 2);
    assert!(!line.contains("refused device"), "{line}");
    assert_eq!(process.terminate(), Some(0));
}

#[test]
fn a_certificate_that_does_not_fit_its_key_is_a_mistake_of_the_configuration() {
    let dir = dir();
    let ca_file = some_root(dir.path());
    let other = rcgen::KeyPair::generate().expect("a key").serialize_pem();
    std::fs::write(dir.path().join("device.key"), other).expect("written");
    let text = format!(
        "[device]\nhub = \"localhost:1\"\ndevice_id = \"dev1\"\ncertificate = {ca_file:?}\nprivate_key = \"device.key\"\n\
         {ANY_RULE}"
    );
    let config = write_config(dir.path(), &text);
    let output = run(binary().arg("run").arg("-c").arg(&config));
    assert_eq!(output.status.code(), Some(2));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("ca.pem") && text.contains("device.key") && text.contains("match"), "{text}");
}

#[test]
fn no_network_at_boot_is_waited_out() {
    let broker = match Mosquitto::start() {
        Ok(broker) => broker,
        Err(lack) => return skip("no network at boot is waited out", lack),
    };
    let proxy = Proxy::to(broker.address());
    proxy.set_open(false);
    let dir = dir();
    let agent = broker.spawn_agent_at(proxy.address, dir.path(), ANY_RULE);
    agent.process.stderr.wait_for_nth("not connected", 2);
    proxy.set_open(true);
    agent.process.stderr.wait_for("subscribed");
}

#[test]
fn sigterm_lets_a_short_action_end_and_completes_its_message() {
    let broker = match Mosquitto::start() {
        Ok(broker) => broker,
        Err(lack) => return skip("SIGTERM lets a short action end", lack),
    };
    let dir = dir();
    let agent = broker.start_agent(dir.path(), &slow_rules(dir.path()));
    broker.publish("%24.mid=one&action=short", b"");
    wait_for_file(&dir.path().join("done"), "one began");
    broker.publish("%24.mid=two&action=short", b"");
    assert_eq!(agent.process.terminate(), Some(0));
    broker.process.stderr.wait_for("Received DISCONNECT from dev1");
    assert_eq!(broker.pubacks(), 1, "the first is completed, the second stays at the broker");
    assert_eq!(std::fs::read_to_string(dir.path().join("done")).expect("a file"), "one began\none ended\n");
    // The next start runs the second message, and does not run the first again.
    let _agent = broker.start_agent(dir.path(), &slow_rules(dir.path()));
    let done = wait_for_file(&dir.path().join("done"), "two ended");
    assert_eq!(done, "one began\none ended\ntwo began\ntwo ended\n");
}

#[test]
fn sigterm_cuts_a_stubborn_action_off_completes_its_message_and_leaves_pins_safe_within_eight_seconds() {
    let broker = match Mosquitto::start() {
        Ok(broker) => broker,
        Err(lack) => return skip("SIGTERM cuts a stubborn action off", lack),
    };
    let dir = dir();
    let agent = broker.start_agent(dir.path(), &slow_rules(dir.path()));
    broker.publish("%24.mid=one&action=stubborn", b"");
    wait_for_file(&dir.path().join("done"), "one began");
    let begin = Instant::now();
    assert_eq!(agent.process.terminate(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(8), "it took {:?}", begin.elapsed());
    agent.process.stderr.wait_for("interrupted");
    broker.wait_for_puback(1);
    let pins = std::fs::read_to_string(dir.path().join("pins.json")).expect("a file");
    assert!(pins.contains("\"relay\":\"on\""), "{pins}");
}

#[test]
fn an_error_that_nobody_can_read_still_has_its_exit_code() {
    for arguments in [["run", "-c", "/no/such/file"], ["check", "-c", "/no/such/file"]] {
        let full = std::fs::File::options().write(true).open("/dev/full").expect("/dev/full");
        let status = binary().args(arguments).stderr(full).status().expect("started");
        assert_eq!(status.code(), Some(2), "{arguments:?}");
    }
}

#[test]
fn a_second_signal_does_not_wait_for_the_action() {
    let broker = match Mosquitto::start() {
        Ok(broker) => broker,
        Err(lack) => return skip("a second signal does not wait", lack),
    };
    let dir = dir();
    let agent = broker.start_agent(dir.path(), &slow_rules(dir.path()));
    broker.publish("%24.mid=one&action=slow", b"");
    wait_for_file(&dir.path().join("done"), "one began");
    let begin = Instant::now();
    agent.process.signal(Signal::INT);
    agent.process.stderr.wait_for("waiting for the actions in flight");
    assert_eq!(agent.process.terminate(), Some(0));
    assert!(begin.elapsed() < Duration::from_secs(3), "it took {:?}", begin.elapsed());
    assert_eq!(std::fs::read_to_string(dir.path().join("done")).expect("a file"), "one began\n");
}
