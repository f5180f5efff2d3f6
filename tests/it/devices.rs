//! `devices` and `query` as a user sees them, against the emulator.
//!
//! Owns: nothing. Must not know: how the commands are built.

use std::fs::{File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use serde_json::Value;

use crate::c2d_send::Running;
use crate::harness::{Emulator, binary, run};
use crate::invoke_method::{back_end, seen};
use crate::json_lines::json_lines;

type Seen = (String, String, Option<i32>);

/// A command with the policy that has registry rights.
fn owner(emulator: &Emulator, arguments: &[&str]) -> Seen {
    let file = emulator.state.join("iothubowner.connection-string");
    let mut command = back_end(emulator, arguments);
    command.env_remove("C2D_SERVICE_CONNECTION_STRING");
    seen(&run(command.arg("--connection-string-file").arg(file)))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).expect("JSON")
}

#[test]
fn a_device_is_created_shown_listed_and_deleted_and_its_file_signs_it_in() {
    let emulator = Emulator::start_with(&["--device", "dev1"]);
    let file = emulator.state.join("new.txt");
    let path = file.to_str().expect("UTF-8");
    let (stdout, stderr, code) = owner(&emulator, &["devices", "create", "pump-1", "--edge", "--out", path]);
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    let words = format!(
        "created edge device pump-1, which signs in with a key\nits connection string is in {path}\n"
    );
    assert_eq!(stdout, words);
    assert_eq!(file.metadata().expect("a file").permissions().mode() & 0o777, 0o600);
    let string = std::fs::read_to_string(&file).expect("a connection string");
    // The emulator's own file has the port of MQTT, which the hub does not tell.
    let port = format!(":{}", emulator.mqtt.port());
    assert_eq!(string, emulator.device_string("pump-1").replace(&port, "") + "\n");

    let (stdout, stderr, code) = owner(&emulator, &["devices", "show", "pump-1"]);
    let (_, key) = string.trim().split_once("SharedAccessKey=").expect("a key");
    assert!(stdout.starts_with("device pump-1\n  status         enabled\n"), "{stdout}");
    assert!(stdout.contains("\n  edge           yes\n") && !stdout.contains(key), "{stdout}");
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    let (stdout, _, _) = owner(&emulator, &["devices", "show", "pump-1", "--show-keys"]);
    assert!(stdout.contains(&format!("  primary key    {key}\n")), "{stdout}");
    let (stdout, _, _) = owner(&emulator, &["devices", "show", "pump-1", "--json"]);
    assert!(json(&stdout)["authentication"].get("symmetricKey").is_none(), "{stdout}");
    let (stdout, _, _) = owner(&emulator, &["devices", "show", "pump-1", "--json", "--show-keys"]);
    assert_eq!(json(&stdout)["authentication"]["symmetricKey"]["primaryKey"], key);

    // The list needs no registry rights.
    let (stdout, stderr, code) = seen(&run(&mut back_end(&emulator, &["devices", "list"])));
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(
        lines,
        [
            "device  status   connection    lastActivity  signIn  edge",
            "dev1    enabled  Disconnected  never         sas     no",
            "pump-1  enabled  Disconnected  never         sas     yes",
        ]
    );
    assert_eq!((stderr.as_str(), code), ("", Some(0)));
    let edges = ["devices", "list", "--query", "where capabilities.iotEdge = true", "--json"];
    let (stdout, _, _) = seen(&run(&mut back_end(&emulator, &edges)));
    assert_eq!((stdout.lines().count(), &json(&stdout)["deviceId"]), (1, &Value::from("pump-1")));

    let (stdout, stderr, code) = owner(&emulator, &["devices", "delete", "pump-1"]);
    assert!(stdout.is_empty() && stderr.contains("--yes is missing") && code == Some(2), "{stderr}");
    let (stdout, stderr, code) = owner(&emulator, &["devices", "delete", "pump-1", "gone", "dev1", "--yes"]);
    assert_eq!(stdout, "deleted device pump-1\ndeleted device dev1\n");
    let words = "the hub knows no device \"gone\": c2d-agent devices list shows those that it knows\n";
    assert_eq!((stderr.as_str(), code), (words, Some(3)));
    let (stdout, stderr, _) = seen(&run(&mut back_end(&emulator, &["devices", "list"])));
    assert_eq!((stdout.as_str(), stderr.as_str()), ("", "the query finds nothing\n"));
}

#[test]
fn a_device_may_sign_in_by_a_certificate_or_by_a_key_of_ones_own() {
    let emulator = Emulator::start();
    let thumbprints = ["ab:".repeat(20), "0".repeat(64)];
    let of = |id: &str| json(&owner(&emulator, &["devices", "show", id, "--json", "--show-keys"]).0);
    let thumbprint = ["--x509-thumbprint", thumbprints[0].trim_end_matches(':'), &thumbprints[1]];
    let created = owner(&emulator, &[&["devices", "create", "p", "--json"], &thumbprint[..]].concat());
    let line = &json_lines(&created.0)[0];
    assert_eq!((&line["event"], &line["signIn"]), (&"created".into(), &"selfSigned".into()));
    let shown = &of("p")["authentication"]["x509Thumbprint"];
    assert_eq!(shown["primaryThumbprint"], "AB".repeat(20));
    assert_eq!(shown["secondaryThumbprint"], "0".repeat(64));

    let out = emulator.state.join("ca.txt");
    let path = out.to_str().expect("UTF-8");
    owner(&emulator, &["devices", "create", "c", "--x509-ca", "--out", path]);
    let string = std::fs::read_to_string(&out).expect("a connection string");
    assert_eq!(string, "HostName=localhost;DeviceId=c;x509=true\n");

    let file = emulator.state.join("key");
    std::fs::write(&file, "a2V5a2V5a2V5a2V5a2V5\n").expect("written");
    let created = owner(&emulator, &["devices", "create", "k", "--key-file", file.to_str().expect("UTF-8")]);
    assert_eq!(created.2, Some(0), "{}", created.1);
    let keys = &of("k")["authentication"]["symmetricKey"];
    assert_eq!(keys["primaryKey"], "a2V5a2V5a2V5a2V5a2V5");
    assert_eq!(keys["secondaryKey"].as_str().map(str::len), Some(44));
}

#[test]
fn each_refusal_of_the_registry_has_its_sentence_and_leaves_no_file() {
    let emulator = Emulator::start();
    let out = emulator.state.join("out.txt");
    let path = out.to_str().expect("UTF-8");
    let (_, stderr, code) = owner(&emulator, &["devices", "create", "dev1", "--out", path]);
    let words = "c2d-agent: the hub has a device \"dev1\" already: choose another id, or delete that device \
                 first\n";
    assert_eq!((stderr.as_str(), code), (words, Some(1)));
    assert!(!out.exists(), "a file without a device");
    let (_, stderr, code) = owner(&emulator, &["devices", "show", "gone"]);
    assert!(stderr.contains("the hub knows no device \"gone\": c2d-agent devices list"), "{stderr}");
    assert_eq!(code, Some(1));
    for arguments in [
        &["devices", "create", "x", "--json"][..],
        &["devices", "delete", "dev1", "--yes"],
        &["devices", "show", "dev1"],
    ] {
        let (_, stderr, code) = seen(&run(&mut back_end(&emulator, arguments)));
        let right = if arguments[1] == "show" { "RegistryRead" } else { "RegistryReadWrite" };
        let words = format!("that it has the permission {right}, as iothubowner has");
        assert!(stderr.contains(&words) && code == Some(1), "{arguments:?}: {stderr}");
    }
    std::fs::write(&out, "mine").expect("written");
    let key = emulator.state.join("bad-key");
    std::fs::write(&key, "no key").expect("written");
    for (arguments, words) in [
        (&["create", "y", "--out", path][..], "out.txt exists already: name another file with --out"),
        (&["create", "y", "--x509-thumbprint", "ab"], "\"ab\" is no thumbprint: it has 40 (SHA-1) or 64"),
        (&["create", "a/b"], "is not a device id"),
        (&["create", "y", "--key-file", key.to_str().expect("UTF-8")], "has a line that is no key in base64"),
        (&["create", "y", "--key-file", "x", "--x509-ca"], "cannot be used with"),
        (&["list", "--query", "deviceId ="], "the hub refuses the query: "),
        (&["list", "--query", "SELECT *"], "--query is a whole query, but devices list takes a condition"),
    ] {
        let (_, stderr, code) = owner(&emulator, &[&["devices"], arguments].concat());
        assert!(stderr.contains(words) && code == Some(2), "{arguments:?}: {stderr}");
    }
    assert_eq!(std::fs::read_to_string(&out).expect("a file"), "mine");
}

/// `query` against a hub in this process.
fn query(running: &Running, arguments: &[&str]) -> Seen {
    let mut command: Command = binary();
    command.arg("query").args(arguments).arg("--ca-file").arg(running.file("ca.pem"));
    command.env("C2D_HTTPS_PORT", running.https.port().to_string());
    seen(&run(command.env("C2D_SERVICE_CONNECTION_STRING", running.service_string())))
}

#[test]
fn a_query_prints_a_table_or_json_over_all_pages_and_says_when_there_is_more() {
    let running = Running::with_devices((1..=1500).map(|number| format!("pump-{number}")).collect());
    let all = "SELECT status, deviceId FROM devices";
    let (stdout, stderr, code) = query(&running, &[all, "--json", "--limit", "2000"]);
    assert_eq!((stdout.lines().count(), stderr.as_str(), code), (1500, "", Some(0)));
    assert_eq!(stdout.lines().next(), Some("{\"deviceId\":\"pump-1\",\"status\":\"enabled\"}"));
    let (stdout, stderr, _) = query(&running, &[all]);
    let lines: Vec<_> = stdout.lines().collect();
    assert_eq!(lines[..2], ["status   deviceId", "enabled  pump-1"]);
    assert_eq!(lines.len(), 1 + 1000);
    // The page ends where the limit is, so only the continuation says that there is more.
    assert_eq!(stderr, "there is more: raise --limit (now 1000)\n");
    let (stdout, stderr, _) = query(&running, &["SELECT COUNT() AS n FROM devices"]);
    assert_eq!((stdout.as_str(), stderr.as_str()), ("n\n1500\n", ""));
    // As --query of c2d-send takes it.
    for condition in ["deviceId = 'pump-7'", "where deviceId = 'pump-7'"] {
        let (stdout, stderr, code) = query(&running, &[condition]);
        assert_eq!((stdout.as_str(), stderr.as_str(), code), ("deviceId\npump-7\n", "", Some(0)));
    }
    let (_, stderr, code) = query(&running, &["SELCT *"]);
    let asked = "; the query was: SELECT deviceId FROM devices WHERE SELCT *\n";
    assert!(stderr.ends_with(asked) && code == Some(2), "{stderr}");
    let (_, stderr, code) = query(&running, &["SELECT FROM"]);
    assert!(stderr.contains("the hub refuses the query: ") && code == Some(2), "{stderr}");
    let (_, stderr, code) = query(&running, &[all, "--limit", "0"]);
    assert!(stderr.contains("0 is not in 1..=1000000") && code == Some(2), "{stderr}");
}

#[test]
fn the_question_before_a_device_is_deleted_names_the_hub() {
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&terminal).and_then(|()| unlockpt(&terminal)).expect("a terminal");
    let name = ptsname(&terminal, Vec::new()).expect("its name");
    let line = OpenOptions::new().read(true).write(true).open(name.to_str().expect("ASCII")).expect("opened");
    let mut keys = File::from(terminal);
    keys.write_all(b"n\n").expect("typed");
    let mut command = binary();
    command.args(["devices", "delete", "pump-1"]).stdin(line);
    let string = "HostName=h.example;SharedAccessKeyName=p;SharedAccessKey=MTIzNA==";
    let output = command.env("C2D_SERVICE_CONNECTION_STRING", string).output().expect("it runs");
    assert_eq!(
        String::from_utf8_lossy(&output.stderr),
        "delete device pump-1 at h.example, with twin and waiting messages? [y/N] c2d-agent: nothing was deleted\n"
    );
    assert_eq!(output.status.code(), Some(1));
}
