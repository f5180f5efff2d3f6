//! `c2d-agent provision` and `derive-key`, as a script uses them.

use super::*;

/// The bytes 0 to 31. Source of the vectors: wire reference 12.2.
const GROUP_KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
const DERIVED: &str = "loIcOklwYeGOA435V7aqfiADrvH7eV6ntyrboHz4F4E=";

fn derive(arguments: &[&str]) -> Output {
    run(binary().args(["provision", "derive-key"]).args(arguments))
}

#[test]
fn derive_key_prints_the_key_of_the_test_vector_and_nothing_else() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("group.key");
    std::fs::write(&file, format!("{GROUP_KEY}\n")).expect("written");
    let file = file.display().to_string();
    let derived = derive(&["--group-key-file", &file, "--registration-id", "reg-01"]);
    assert_eq!(derived.status.code(), Some(0), "{}", said(&derived));
    assert_eq!(said(&derived), format!("{DERIVED}\n"));

    let mut piped = binary();
    piped.args(["provision", "derive-key", "--group-key-file", "-", "--registration-id", "reg-01"]);
    let process = Process::spawn_with_stdin(piped.stdin(std::fs::File::open(&file).expect("the key")));
    assert_eq!(process.wait_stdout(DERIVED), DERIVED);

    let capitals = derive(&["--group-key-file", &file, "--registration-id", "Reg-01"]);
    assert_eq!(capitals.status.code(), Some(0));
    assert!(said(&capitals).contains("warning: the registration id has capitals"), "{}", said(&capitals));
    let bad_id = derive(&["--group-key-file", &file, "--registration-id", "reg 01"]);
    assert_eq!(bad_id.status.code(), Some(2));
    assert!(said(&bad_id).contains("the registration id \"reg 01\" is not one"), "{}", said(&bad_id));
    let no_file = derive(&["--group-key-file", "/nowhere/group.key", "--registration-id", "reg-01"]);
    assert_eq!(no_file.status.code(), Some(1));
    assert!(said(&no_file).contains("cannot read the key of the group from /nowhere/group.key"));
    std::fs::write(dir.path().join("group.key"), "no key").expect("written");
    let no_key = derive(&["--group-key-file", &file, "--registration-id", "reg-01"]);
    assert_eq!(no_key.status.code(), Some(2));
    assert!(said(&no_key).contains("does not hold the key of a group") && !said(&no_key).contains("no key"));
}

#[test]
fn a_key_of_another_length_than_azure_takes_is_refused_with_its_file() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("short.key");
    let name = file.display().to_string();
    let config = dir.path().join("new.toml").display().to_string();
    let text = "[provisioning]\nid_scope = \"0ne1\"\nregistration_id = \"a\"\n";
    let (long, shortest) = ("QUFB".repeat(22), "AAECAwQFBgcICQoLDA0ODw==");
    for (key, length) in [("QUFB", Some(3)), (&*long, Some(66)), (shortest, None)] {
        std::fs::write(&file, key).expect("written");
        let by_file = write_config(dir.path(), &format!("{text}key_file = {name:?}\n"));
        let mut piped = binary();
        piped.args(["provision", "derive-key", "--group-key-file", "-", "--registration-id", "a"]);
        piped.stdin(std::fs::File::open(&file).expect("the key"));
        let mut dry_run = binary();
        dry_run.args(["provision", "--dry-run", "-c"]).arg(&by_file);
        let mut from_environment = binary();
        let bare = dir.path().join("bare.toml");
        std::fs::write(&bare, text).expect("written");
        from_environment.args(["provision", "--dry-run", "-c"]).arg(bare).env("C2D_PROVISIONING_KEY", key);
        let mut init = binary();
        init.args([
            "init",
            "--provisioning",
            "0ne1",
            "--simulated",
            "--pin",
            "p=1",
            "--registration-id",
            "a",
        ]);
        init.args(["-c", &config, "--key-file", &name]).env_remove("SUDO_USER");
        let derived = derive(&["--group-key-file", &name, "--registration-id", "a"]);
        for (output, names_it) in [
            (derived, &*name),
            (piped.output().expect("it ran"), "standard input"),
            (run(&mut dry_run), &*name),
            (run(&mut from_environment), "C2D_PROVISIONING_KEY"),
            (run(&mut init), &*name),
        ] {
            let said = said(&output);
            let Some(length) = length else {
                assert_eq!(output.status.code(), Some(0), "{said}");
                continue;
            };
            let sentence = format!(
                "has {length} bytes (decoded from base64), but Azure takes 16 to 64: copy the whole key"
            );
            assert_eq!(output.status.code(), Some(2), "{said}");
            assert!(said.contains(&sentence) && said.contains(names_it) && !said.contains(key), "{said}");
        }
    }
}

#[test]
fn provision_shows_what_it_would_ask_asks_once_and_again_on_demand() {
    let key = format!("reg-01={DERIVED}");
    let emulator = Emulator::start_with(&["--dps-device", &key]);
    let gateway = Gateway::with_key(&emulator, "reg-01", "");
    let service = format!("localhost:{}", emulator.mqtt.port());
    let json = |arguments: &[&str]| -> Value {
        let output = gateway.provision(arguments);
        assert_eq!(output.status.code(), Some(0), "{}", said(&output));
        serde_json::from_slice(&output.stdout).expect("JSON")
    };
    let would = json(&["--dry-run", "--json"]);
    assert_eq!((&would["event"], &would["service"]), (&"would-ask".into(), &service.clone().into()));
    assert_eq!((&would["registrationId"], &would["proof"]), (&"reg-01".into(), &"key".into()));
    assert!(!gateway.assignment().exists(), "nothing was asked");
    let text = said(&gateway.provision(&["--dry-run"]));
    let asks = format!(
        "this would ask the provisioning service at {service} for a hub, as registration id reg-01 of ID scope 0ne00000001, with \
         the device's key, and keep the answer in "
    );
    assert!(text.starts_with(&asks) && would["kept"] == false, "{text}");

    let first = json(&["--json"]);
    assert_eq!((&first["event"], &first["asked"]), (&"assigned".into(), &true.into()));
    assert_eq!((&first["hub"], &first["deviceId"]), (&service.into(), &"reg-01".into()));
    assert_eq!(json(&["--json"])["asked"], false, "it is kept");
    assert_eq!(json(&["--again", "--json"])["asked"], true);
    let text = said(&gateway.provision(&[]));
    assert!(text.starts_with("reg-01 is device reg-01 on hub localhost:"), "{text}");
    assert!(text.contains(&format!("kept in {}", gateway.assignment().display())), "{text}");
    let text = said(&gateway.provision(&["--dry-run"]));
    assert!(text.starts_with("with --again, this would ask") && text.contains(" and replace /"), "{text}");
    assert_eq!(json(&["--dry-run", "--json"])["kept"], true);
    assert_eq!(gateway.provision(&["--again", "--dry-run"]).status.code(), Some(2));

    // Without an enrolment there is nothing to ask.
    let plain = write_config(gateway.dir.path(), "");
    let mut command = gateway.command(&["provision"]);
    command.env("C2D_DEVICE_CONNECTION_STRING", "HostName=h;DeviceId=d;SharedAccessKey=AAAA");
    let refused = run(&mut command);
    assert_eq!(refused.status.code(), Some(2));
    let sentence = format!("{} has no [provisioning]", plain.display());
    assert!(said(&refused).contains(&sentence), "{}", said(&refused));
}

#[test]
fn the_words_of_the_service_have_no_backslashes() {
    let emulator = Emulator::start_with(&["--device", "a", "--dps-device", "a"]);
    let refused = Gateway::with_key(&emulator, "a", "").provision(&[]);
    let plain = "(status 409, 409001: the device \"a\" of localhost";
    assert!(said(&refused).contains(plain) && !said(&refused).contains('\\'), "{}", said(&refused));
}

#[test]
fn a_container_needs_nothing_but_its_environment_and_a_certificate_names_its_device() {
    let emulator = Emulator::start_with(&["--dps-device", "reg-01"]);
    let dir = tempfile::tempdir().expect("a directory");
    let config = write_config(dir.path(), "");
    let key = std::fs::read_to_string(emulator.state.join("dps/devices/reg-01.key")).expect("a key");
    let mut command = binary();
    command.arg("provision").arg("-c").arg(&config).env("C2D_CA_FILE", emulator.ca_file());
    command.env("C2D_PROVISIONING_ID_SCOPE", "0ne00000001").env("C2D_PROVISIONING_KEY", key.trim());
    command.env("C2D_PROVISIONING_REGISTRATION_ID", "reg-01");
    command.env("C2D_PROVISIONING_ENDPOINT", format!("localhost:{}", emulator.mqtt.port()));
    let asked = run(&mut command);
    assert_eq!(asked.status.code(), Some(0), "{}", said(&asked));

    let proof = certificate(dir.path(), "pump-12", &authority());
    let text = format!("[provisioning]\nid_scope = \"0ne00000001\"\n{proof}\n");
    let config = write_config(dir.path(), &text);
    let dry = run(binary().args(["provision", "--dry-run", "-c"]).arg(&config));
    assert!(
        said(&dry)
            .contains("as registration id pump-12 of ID scope 0ne00000001, with the device's certificate"),
        "{}",
        said(&dry)
    );
    write_config(dir.path(), &format!("{text}registration_id = \"other\"\n"));
    let dry = said(&run(binary().args(["provision", "--dry-run", "-c"]).arg(&config)));
    assert!(
        dry.contains("(CN) of the certificate is \"pump-12\", but the registration id is other"),
        "{dry}"
    );
}

#[test]
fn init_writes_an_enrolment_whose_three_commands_bring_it_to_its_hub() {
    let key = format!("reg-01={DERIVED}");
    let emulator = Emulator::start_with(&["--dps-device", &key]);
    let dir = tempfile::tempdir().expect("a directory");
    let config = dir.path().join("config.toml");
    std::fs::write(dir.path().join("bench.key"), DERIVED).expect("written");
    let init = |arguments: &[&str]| {
        let mut command = binary();
        command.args(["init", "--provisioning", "0ne00000001", "--simulated", "--pin", "pump=17", "-c"]);
        command.arg(&config).args(arguments).arg("--ca-file").arg(emulator.ca_file()).env_remove("SUDO_USER");
        run(&mut command)
    };
    let endpoint = format!("localhost:{}", emulator.mqtt.port());
    let key_file = dir.path().join("bench.key").display().to_string();
    let asked = ["--registration-id", "reg-01", "--endpoint", &endpoint, "--key-file", &key_file];
    for (change, sentence) in [
        (
            &["--registration-id", "reg 01", "--key-file", &key_file][..],
            "--registration-id: the registration id \"reg 01\" is not one",
        ),
        (&["--key-file", "/nowhere"][..], "cannot read /nowhere"),
        (&[][..], "give --key-file FILE, or --certificate FILE and --private-key FILE"),
    ] {
        let refused = init(change);
        assert_eq!(refused.status.code(), Some(2), "{}", said(&refused));
        assert!(said(&refused).contains(sentence), "{}", said(&refused));
        assert!(!config.exists());
    }
    let wrote = init(&asked);
    assert_eq!(wrote.status.code(), Some(0), "{}", said(&wrote));
    let text = said(&wrote);
    assert!(text.contains("device.key, mode 0600") && !text.contains(DERIVED), "{text}");
    let (_, commands) = text.split_once("ask for its hub, and start it:\n\n").expect("the next commands");
    let lines: Vec<&str> = commands.lines().map(str::trim).collect();
    let [check, provision, start] = lines[..] else { panic!("{text}") };
    let pasted = |line: &str| {
        let mut shell = Command::new("bash");
        shell.args(["-c", &format!("exec {line}")]).current_dir(dir.path());
        let folder = Path::new(env!("CARGO_BIN_EXE_c2d-agent")).parent().expect("a directory");
        shell.env_clear().env("PATH", format!("{}:/usr/bin:/bin", folder.display()));
        shell
    };
    for (line, says) in
        [(check, "configuration is valid"), (provision, "reg-01 is device reg-01 on hub localhost:")]
    {
        let output = run(&mut pasted(line));
        assert!(output.status.success() && said(&output).contains(says), "{line}: {}", said(&output));
    }
    let agent = Process::spawn(&mut pasted(start));
    agent.stderr.wait_for("subscribed");
    emulator.send("reg-01", &["--property", "action=pump", "--property", "state=on", "--wait=20s"]);
    wait_for_file(&dir.path().join("pins.json"), "\"on\"");
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn an_inbox_in_the_directory_of_the_emulator_keeps_its_assignment() {
    let emulator = Emulator::start_with(&["--dps-device", "a"]);
    let inbox = emulator.state.join("inbox.journal");
    let rest = format!("[inbox]\npath = {inbox:?}\n");
    let gateway = Gateway::with_key(&emulator, "a", &rest);
    let asked = gateway.provision(&[]);
    assert_eq!(asked.status.code(), Some(0), "{}", said(&asked));
    assert!(emulator.state.join("inbox.journal.assignment").exists());
}
