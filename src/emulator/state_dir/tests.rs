//! What is in the state directory, who may read it, and what survives.

use super::*;
use crate::credentials::{DeviceConnectionString, DeviceSecret, ServiceConnectionString};

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn open(root: &Path, devices: &[&str], x509_devices: &[&str]) -> StateDir {
    let now = NOW + std::time::Duration::from_secs(1_800_000_000);
    let mut state =
        StateDir::open(root, &names(devices), &names(x509_devices), now).expect("a state directory");
    let served = Served {
        hostname: "localhost".into(),
        gateway: None,
        mqtt_port: 18883,
        amqp_port: 5671,
        workload: None,
    };
    state.write_client_files(served).expect("written");
    state
}

fn text(root: &Path, name: &str) -> String {
    fs::read_to_string(root.join(name)).expect("readable")
}

fn error(root: &Path) -> String {
    match StateDir::open(root, &names(&["dev1"]), &[], NOW) {
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
        let identity = state.make_server_identity(&[hostname, "gateway.test"], now).expect("made");
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
    let path = dir.path().join(SECRETS);
    let mut secrets: serde_json::Value = serde_json::from_str(&text(dir.path(), SECRETS)).expect("JSON");
    secrets["devices"]["dev1"]["primary"] = "not!base64".into();
    fs::write(&path, secrets.to_string()).expect("written");
    let damaged = error(dir.path());
    assert!(damaged.contains("the keys of \"dev1\"") && !damaged.contains("not!"), "{damaged}");
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
        state.register(&Device { id: id.to_owned(), credential }, enabled).expect("kept");
    }
    state.forget("dev1").expect("forgotten");
    assert!(!root.join("devices/dev1.connection-string").exists());
    let made = text(root, "devices/new-1.connection-string");
    let shown = |state: &StateDir| format!("{:?}", state.devices());
    drop(state);

    let state = open(root, &["dev1"], &["new-1"]);
    let ids: Vec<_> = state.devices().iter().map(|(device, on)| (device.id.as_str(), *on)).collect();
    assert_eq!(ids, [("dev1", true), ("new-1", true), ("new-2", false)], "{}", shown(&state));
    assert_eq!(text(root, "devices/new-1.connection-string"), made);
    assert_ne!(text(root, "devices/dev1.connection-string"), before, "another device under the old name");
}

#[test]
fn a_directory_of_the_version_before_still_opens() {
    let dir = tempfile::tempdir().expect("a directory");
    let root = dir.path();
    drop(open(root, &["dev1"], &[]));
    let before = text(root, "devices/dev1.connection-string");
    let mut secrets: serde_json::Value = serde_json::from_str(&text(root, SECRETS)).expect("JSON");
    let fields = secrets.as_object_mut().expect("an object");
    assert!(fields.remove("registered").is_some());
    let policies = fields["policies"].as_object_mut().expect("an object");
    assert!(policies.remove("registryRead").is_some() && policies.remove("registryReadWrite").is_some());
    fs::write(root.join(SECRETS), secrets.to_string()).expect("written");
    drop(open(root, &["dev1"], &[]));
    assert_eq!(text(root, "devices/dev1.connection-string"), before);
}
