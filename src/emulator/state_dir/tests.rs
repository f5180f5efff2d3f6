//! What the state directory contains, who may read it, and what survives a restart.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;

use super::*;
use crate::credentials::{DeviceConnectionString, DeviceSecret, ServiceConnectionString};

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn open(root: &Path, devices: &[&str], x509_devices: &[&str]) -> StateDir {
    open_with(root, devices, x509_devices, false)
}

fn open_with(root: &Path, devices: &[&str], x509_devices: &[&str], known_keys: bool) -> StateDir {
    let now = NOW + std::time::Duration::from_secs(1_800_000_000);
    let open = || StateDir::open(root, &names(devices), &names(x509_devices), known_keys, now);
    // Between its fork and its exec a shell of another test has the lock of a directory that was just closed.
    let patience = std::time::Instant::now() + std::time::Duration::from_secs(10);
    let mut opened = open();
    while matches!(opened, Err(StateDirError::InUse(_))) && std::time::Instant::now() < patience {
        std::thread::yield_now();
        opened = open();
    }
    let mut state = opened.expect("a state directory");
    state.write_client_files(served(18883), now).expect("written");
    state
}

fn served(mqtt_port: u16) -> Served {
    let (hostname, https) = ("localhost".into(), ([127, 0, 0, 1], 8443).into());
    Served { hostname, gateway: None, mqtt_port, amqp_port: 5671, https, workload: None, provisioning: None }
}

fn text(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join(name)).expect("readable")
}

fn error(root: &Path) -> String {
    match StateDir::open(root, &names(&["dev1"]), &[], false, NOW) {
        Ok(_) => panic!("{} was taken", root.display()),
        Err(error) => error.to_string(),
    }
}

#[test]
fn the_files_hold_connection_strings_with_the_ports_that_are_not_standard() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("new/state");
    open(&root, &["dev1"], &["cert1"]);
    let device =
        DeviceConnectionString::parse(&text(&root, "devices/dev1.connection-string")).expect("valid");
    assert_eq!((device.host.to_string().as_str(), device.device_id.as_str()), ("localhost:18883", "dev1"));
    assert!(matches!(device.secret, DeviceSecret::Key(_)));
    let service = ServiceConnectionString::parse(&text(&root, "service.connection-string")).expect("valid");
    assert_eq!((service.host.to_string().as_str(), service.policy.as_str()), ("localhost", "service"));
    assert!(text(&root, "ca.pem").contains("BEGIN CERTIFICATE"));
    assert!(text(&root, "devices/cert1.key.pem").contains("BEGIN PRIVATE KEY"));
    assert!(!root.join("devices/cert1.connection-string").exists());
}

#[test]
fn only_the_owner_may_read() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("state");
    open(&root, &["dev1"], &["cert1"]);
    let mode = |path: &Path| fs::metadata(path).expect("there").permissions().mode() & 0o777;
    assert_eq!(mode(&root), 0o700);
    assert_eq!(mode(&root.join("devices")), 0o700);
    for file in [
        SECRETS,
        "ca.pem",
        "service.connection-string",
        "devices/dev1.connection-string",
        "devices/cert1.key.pem",
    ] {
        assert_eq!(mode(&root.join(file)), 0o600, "{file}");
    }
}

#[test]
fn keys_and_certificates_survive_a_restart_also_of_devices_left_out_for_a_while() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path();
    open(root, &["dev1"], &["cert1"]);
    let files =
        ["ca.pem", "service.connection-string", "devices/dev1.connection-string", "devices/cert1.cert.pem"];
    let before = files.map(|file| text(root, file));
    open(root, &["dev2"], &[]);
    assert_eq!(files.map(|file| text(root, file)), before);
    open(root, &["dev1", "dev2"], &["cert1"]);
    assert_eq!(files.map(|file| text(root, file)), before);
    assert_ne!(text(root, "devices/dev2.connection-string"), before[2]);
}

#[test]
fn the_servers_certificate_is_for_the_host_name_of_this_start_and_signed_by_the_authority() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = open(dir.path(), &["dev1"], &[]);
    let now = NOW + std::time::Duration::from_secs(1_800_000_000);
    for (hostname, dialled) in [
        ("hub.local.test", "hub.local.test"),
        ("other", "localhost"),
        ("127.0.0.1", "127.0.0.1"),
        ("other", "gateway.test"),
    ] {
        let identity = state.make_server_identity(&names(&[hostname, "gateway.test"]), now).expect("made");
        let mut roots = rustls::RootCertStore::empty();
        let ca = crate::tls::read_certificates(&dir.path().join("ca.pem")).expect("readable");
        roots.add(ca[0].clone()).expect("a root");
        let verifier =
            rustls::client::WebPkiServerVerifier::builder_with_provider(roots.into(), crate::tls::provider());
        let verifier = verifier.build().expect("a verifier");
        use rustls::client::danger::ServerCertVerifier as _;
        let name = rustls::pki_types::ServerName::try_from(dialled).expect("a name");
        let at = rustls::pki_types::UnixTime::since_unix_epoch(std::time::Duration::from_secs(1_800_000_000));
        verifier.verify_server_cert(&identity.chain[0], &[], &name, &[], at).expect("trusted");
    }
}

#[test]
fn a_damaged_or_unusable_directory_is_named() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path();
    open(root, &["dev1"], &[]);
    fs::write(root.join(SECRETS), "{\"authority\":").expect("written");
    let damaged = error(root);
    assert!(damaged.contains("secrets.json is damaged") && damaged.contains("remove it"), "{damaged}");
    fs::remove_file(root.join(SECRETS)).expect("removed");
    fs::create_dir(root.join(SECRETS)).expect("made");
    let unreadable = error(root);
    assert!(unreadable.starts_with("cannot read ") && unreadable.contains("secrets.json"), "{unreadable}");
    fs::write(root.join("file"), "").expect("written");
    let no_directory = error(&root.join("file"));
    assert!(no_directory.starts_with("cannot create ") && no_directory.contains("/file"), "{no_directory}");
}

#[test]
fn a_key_that_is_no_base64_is_damage_and_is_not_repeated() {
    let dir = tempfile::tempdir().expect("a directory");
    open(dir.path(), &["dev1"], &[]);
    let path = dir.path().join(DEVICES);
    let whole = text(dir.path(), DEVICES);
    let primary = whole.split_once("\"primary\":\"").expect("a key").1.split('"').next().expect("its text");
    for (line, words) in [
        (whole.replace(primary, "not!base64"), "(the keys of \"dev1\" are not"),
        (whole.replace("\"primary\"", "\"not!\""), "(the value of \"keys/dev1\" does not have its form)"),
        (format!("{whole}{{not!\n"), "(line 4 is damaged: "),
    ] {
        fs::write(&path, &line).expect("written");
        let damaged = error(dir.path());
        assert!(damaged.contains("devices.jsonl is damaged ") && damaged.contains(words), "{damaged}");
        assert!(
            !damaged.contains("not!") && damaged.contains("remove it: the emulator then makes"),
            "{damaged}"
        );
        assert_eq!(text(dir.path(), DEVICES), line);
    }
}

/// A key of one of ten thousand devices costs one line.
#[test]
fn what_is_written_does_not_grow_with_the_number_of_devices_and_what_is_right_is_not_written_again() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path();
    let ids: Vec<String> = (0..300).map(|n| format!("dev{n}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    drop(open(root, &ids, &[]));
    let names = [
        "devices.jsonl",
        "secrets.json",
        "devices/dev299.connection-string",
        "devices/dev0.connection-string",
    ];
    let changed =
        || names.map(|name| fs::metadata(root.join(name)).expect("there").modified().expect("a time"));
    let (before, length) = (changed(), text(root, DEVICES).len());
    let mut state = open(root, &ids, &[]);
    assert_eq!(changed(), before);
    let credential = DeviceCredential::Keys(make_keys().expect("random numbers"));
    state.register(&Device { id: "new".to_owned(), credential }, &IdentityRecord::default()).expect("kept");
    let added = text(root, DEVICES).split_off(length);
    let keys: Vec<_> = added.lines().filter_map(|line| line.split('"').nth(3)).collect();
    assert_eq!(keys, ["record/new", "registered/new"], "{added}");
    state.forget("dev7").expect("forgotten");
    assert!(text(root, DEVICES).ends_with("\n{\"key\":\"keys/dev7\"}\n{\"key\":\"record/dev7\"}\n"));
}

#[test]
fn devices_that_a_back_end_made_survive_and_those_it_deleted_are_made_anew() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path();
    let given = DeviceCredential::Keys(make_keys().expect("random numbers"));
    let thumbprints = DeviceCredential::Thumbprints { primary: "AB".repeat(20), secondary: None };
    let mut state = open(root, &["dev1"], &[]);
    let before = text(root, "devices/dev1.connection-string");
    for (id, credential, enabled) in [("new-1", given, true), ("new-2", thumbprints, false)] {
        let record = IdentityRecord { enabled, ..new_record().expect("random numbers") };
        state.register(&Device { id: id.to_owned(), credential }, &record).expect("kept");
    }
    state.forget("dev1").expect("forgotten");
    assert!(!root.join("devices/dev1.connection-string").exists());
    let made = text(root, "devices/new-1.connection-string");
    let shown = |state: &StateDir| format!("{:?}", state.devices());
    drop(state);

    let state = open(root, &["dev1"], &["new-1"]);
    let ids: Vec<_> =
        state.devices().iter().map(|(device, record)| (device.id.as_str(), record.enabled)).collect();
    assert_eq!(ids, [("dev1", true), ("new-1", true), ("new-2", false)], "{}", shown(&state));
    assert_eq!(text(root, "devices/new-1.connection-string"), made);
    assert_ne!(text(root, "devices/dev1.connection-string"), before, "another device under the old name");
}

#[test]
fn no_id_leads_out_of_the_folder_of_modules() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path();
    let mut state = open(root, &["dev1"], &[]);
    let before = text(root, "service.connection-string");
    for id in ["../service", "./service"] {
        let credential = DeviceCredential::Keys(make_keys().expect("random numbers"));
        state.register(&Device { id: id.to_owned(), credential }, &IdentityRecord::default()).expect("kept");
        state.forget(id).expect("forgotten");
    }
    assert_eq!(text(root, "service.connection-string"), before);
}

/// The file of secrets as the version before wrote it, without records. There is no other file then.
fn of_the_version_before(root: &Path) -> serde_json::Value {
    let mut secrets: serde_json::Value = serde_json::from_str(&text(root, SECRETS)).expect("JSON");
    for kind in ["devices", "x509_devices", "registered"] {
        secrets[kind] = serde_json::json!({});
    }
    for line in text(root, DEVICES).lines().skip(1) {
        let mut line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let (kind, id) = line["key"].as_str().and_then(|key| key.split_once('/')).expect("a key");
        let kind = match kind {
            "keys" => "devices",
            "certificate" => "x509_devices",
            "registered" => "registered",
            _ => continue,
        };
        let id = id.to_owned();
        secrets[kind][id] = line["value"].take();
    }
    fs::remove_file(root.join(DEVICES)).expect("removed");
    secrets
}

#[test]
fn a_directory_of_the_version_before_still_opens() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path();
    drop(open(root, &["dev1"], &[]));
    let before = text(root, "devices/dev1.connection-string");
    let mut secrets = of_the_version_before(root);
    let fields = secrets.as_object_mut().expect("an object");
    assert!(fields.remove("registered").is_some());
    let policies = fields["policies"].as_object_mut().expect("an object");
    assert!(policies.remove("registryRead").is_some() && policies.remove("registryReadWrite").is_some());
    fs::write(root.join(SECRETS), secrets.to_string()).expect("written");
    drop(open(root, &["dev1"], &[]));
    assert_eq!(text(root, "devices/dev1.connection-string"), before);
    // The devices are in their own file now.
    assert!(!text(root, SECRETS).contains("dev1") && text(root, DEVICES).contains("keys/dev1"));
    drop(open(root, &["dev1"], &[]));
    assert_eq!(text(root, "devices/dev1.connection-string"), before);
}

#[test]
fn a_generation_is_made_once_and_a_device_with_modules_is_an_edge_device() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path();
    let recorded = |state: &StateDir, id: &str| {
        let found = state.devices().iter().find(|(device, _)| device.id == id);
        found.map(|(_, record)| record.clone()).expect("a device")
    };
    let mut state = open(root, &["edge1", "edge1/m", "other"], &[]);
    let (before, module) = (recorded(&state, "edge1"), recorded(&state, "edge1/m"));
    assert_eq!((before.generation.len(), before.is_edge, module.is_edge), (18, true, false));
    assert!(!recorded(&state, "other").is_edge);
    assert_ne!(before.generation, module.generation);
    // A back end gives the device other keys, and says that it is no edge device.
    let credential = DeviceCredential::Keys(make_keys().expect("random numbers"));
    let record = IdentityRecord { is_edge: false, enabled: false, ..before.clone() };
    state.register(&Device { id: "edge1".to_owned(), credential }, &record).expect("kept");
    drop(state);
    // An older file has no records, and keeps the status with the credential.
    let state = open(root, &["edge1", "edge1/m"], &[]);
    assert_eq!(recorded(&state, "edge1"), record);
    drop(state);
    let mut secrets = of_the_version_before(root);
    secrets["registered"]["edge1"]["enabled"] = false.into();
    fs::write(root.join(SECRETS), secrets.to_string()).expect("written");
    let state = open(root, &["edge1", "edge1/m"], &[]);
    let given = recorded(&state, "edge1");
    assert_eq!((given.generation.len(), given.enabled), (18, false));
    drop(state);
    assert_eq!(recorded(&open(root, &["edge1"], &[]), "edge1"), given, "what was given is kept");
    // Made again, it is another identity.
    let mut state = open(root, &["edge1"], &[]);
    state.forget("edge1").expect("forgotten");
    drop(state);
    assert_ne!(recorded(&open(root, &["edge1"], &[]), "edge1").generation, given.generation);
}

/// The values of these variables in a shell that has sourced `env`, one per line; `-` if a variable is not set.
fn sourced(root: &Path, variables: &[&str]) -> Vec<String> {
    let shown: String = variables.iter().map(|name| format!("printf '%s\\n' \"${{{name}--}}\"\n")).collect();
    let mut shell = std::process::Command::new("sh");
    shell.args(["-eu", "-c", &format!(". \"$1\"\n{shown}"), "sh"]).arg(root.join("env"));
    let output = shell.env("C2D_DEVICE_CONNECTION_STRING", "of another emulator").output().expect("a shell");
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).expect("text").lines().map(str::to_owned).collect()
}

#[test]
fn a_shell_that_sources_the_environment_has_all_that_clients_need_whatever_the_names() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path().join("a 'hub' $(exit 1)");
    let mut state = open(&root, &["d'1$x", "dev2"], &["cert1"]);
    let names = [
        "C2D_EMULATOR_STATE_DIR",
        "C2D_DEVICE_CONNECTION_STRING",
        "C2D_SERVICE_CONNECTION_STRING",
        "C2D_CA_FILE",
        "C2D_HTTPS_PORT",
        "C2D_EMULATOR_MQTT_PORT",
        "C2D_EMULATOR_AMQP_PORT",
        "C2D_EVENTHUB_CONNECTION_STRING",
    ];
    let string = |name: &str| text(&root, &format!("{name}.connection-string")).trim().to_owned();
    let shown = root.display().to_string();
    let (device, service, events) = (string("devices/d'1$x"), string("service"), string("events"));
    assert!(events.ends_with(";EntityPath=iothub-ehub-localhost"), "{events}");
    let expected = |device: String, mqtt_port: &str| {
        let (ca, mqtt_port) = (format!("{shown}/ca.pem"), mqtt_port.to_owned());
        let ports = ["8443".to_owned(), mqtt_port, "5671".to_owned()];
        [&[shown.clone(), device, service.clone(), ca][..], &ports, std::slice::from_ref(&events)].concat()
    };
    assert_eq!(sourced(&root, &names), expected(device, "18883"));
    assert!(text(&root, "env").starts_with("# "));
    // The emulator runs on another port.
    state.write_client_files(served(28883), NOW).expect("written");
    let moved = string("devices/d'1$x");
    assert!(moved.starts_with("HostName=localhost:28883;"), "{moved}");
    assert_eq!(sourced(&root, &names), expected(moved, "28883"));
    // A back end first changes the device's key, and then deletes the device.
    let credential = DeviceCredential::Keys(make_keys().expect("random numbers"));
    state.register(&Device { id: "d'1$x".to_owned(), credential }, &IdentityRecord::default()).expect("kept");
    assert_eq!(sourced(&root, &names)[1], string("devices/d'1$x"));
    state.forget("d'1$x").expect("forgotten");
    assert_eq!(sourced(&root, &names)[1], string("devices/dev2"));
    drop(state);
    // No device here has a key, so the shell must not keep the device of another emulator.
    drop(open(&root, &[], &["cert1"]));
    assert_eq!(sourced(&root, &names)[1], "-");
    assert!(text(&root, "env").contains("\n# No device of this start has a key"), "{}", text(&root, "env"));
}

#[test]
fn well_known_keys_end_with_the_emulator_that_was_asked_for_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path();
    let strings = || {
        let files = ["devices/dev1.connection-string", "service.connection-string", "env"];
        files.map(|file| text(root, file)).concat()
    };
    let [known, other] = WELL_KNOWN_KEYS;
    drop(open(root, &["dev1"], &[]));
    let before = strings();
    assert!(!before.contains(known), "{before}");

    let mut state = open_with(root, &["dev1"], &[], true);
    // The file `env` has three, and each of the other files has one.
    assert_eq!(strings().matches(known).count(), 5, "{}", strings());
    assert!(!text(root, SECRETS).contains(known));
    // A back end disables the device, which keeps its keys.
    let (device, record) = state.devices()[0].clone();
    state.register(&device, &record).expect("kept");
    assert!(text(root, DEVICES).contains(known) && text(root, DEVICES).contains(other));
    drop(state);

    drop(open(root, &["dev1"], &[]));
    for file in ["devices/dev1.connection-string", "env", SECRETS] {
        assert!(!text(root, file).contains(known) && !text(root, file).contains(other), "{file}");
    }
    let devices = text(root, DEVICES);
    let last = devices.lines().last().expect("a line");
    assert!(last.contains("registered/dev1") && !last.contains(known) && !last.contains(other), "{last}");
    let service = |text: &str| text.lines().find(|line| line.contains("KeyName=service")).map(str::to_owned);
    assert_eq!(service(&strings()), service(&before));
}

#[test]
fn a_device_whose_files_cannot_be_written_is_stored_as_before() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path();
    let mut state = open(root, &["dev1"], &[]);
    let device =
        |id: &str| Device { id: id.into(), credential: DeviceCredential::Keys(make_keys().expect("keys")) };
    let known = device("known");
    state.register(&known, &new_record().expect("a record")).expect("stored");
    let before = text(root, "devices/known.connection-string");
    for id in ["known", "new"] {
        // A directory has the name under which the new file is begun.
        fs::create_dir(root.join(format!("devices/{id}.connection-string.new"))).expect("made");
        state.register(&device(id), &new_record().expect("a record")).expect_err("cannot be written");
    }
    assert_eq!(text(root, "devices/known.connection-string"), before);
    assert!(!root.join("devices/new.connection-string").exists());
    drop(state);
    let state = open(root, &["dev1"], &[]);
    let ids: Vec<_> = state.devices().iter().map(|(device, _)| device.id.as_str()).collect();
    assert_eq!(ids, ["dev1", "known"]);
    assert_eq!(text(root, "devices/known.connection-string"), before);
}
