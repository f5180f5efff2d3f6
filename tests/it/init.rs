//! `c2d-agent init`: from nothing to a switched pin. Every mistake gives one sentence, and leaves no half-written file.
//!
//! Must not know: how the text is made.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::harness::{Emulator, Process, binary, run, wait_for_file};
use crate::places::{open_dir, set_mode, without_rights};
use crate::traps::disk::SmallDisk;

mod terminal;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn device() -> String {
    format!("HostName=hub.example;DeviceId=pi-01;SharedAccessKey={KEY}")
}

/// `init` of a configuration in `dir`, with a device in its environment.
fn init(dir: &Path, arguments: &[&str]) -> Command {
    let mut command = binary();
    command.arg("init").arg("-c").arg(dir.join("config.toml")).args(arguments);
    command.env("C2D_DEVICE_CONNECTION_STRING", device()).env_remove("SUDO_USER");
    command
}

/// The output for people, and the exit code.
fn told(command: &mut Command) -> (String, Option<i32>) {
    let Output { status, stdout, stderr } = run(command);
    (String::from_utf8_lossy(&[stdout, stderr].concat()).into_owned(), status.code())
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("readable").map(|entry| entry.expect("an entry").file_name());
    let mut names: Vec<String> = entries.map(|name| name.to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).expect("there").mode() & 0o7777
}

/// The three commands at the end of the output. The last one has two lines.
fn next_commands(stdout: &str) -> [String; 3] {
    let (_, commands) = stdout.split_once("send it a message:\n\n").expect("the next commands");
    let lines: Vec<&str> = commands.lines().filter(|line| !line.trim_start().starts_with('#')).collect();
    let [check, start, send @ ..] = lines.as_slice() else { panic!("{stdout}") };
    [(*check).to_owned(), (*start).to_owned(), send.join("\n")]
}

/// A pasted command, run by a shell that finds the binary under test first.
fn pasted(dir: &Path, emulator: &Emulator, command: &str) -> Command {
    let mut shell = Command::new("bash");
    shell.args(["-c", &format!("exec {}", command.trim_start())]).current_dir(dir).env_clear();
    let folder = Path::new(env!("CARGO_BIN_EXE_c2d-agent")).parent().expect("a directory");
    shell.env("PATH", format!("{}:/usr/bin:/bin", folder.display()));
    shell.env("C2D_SERVICE_CONNECTION_STRING", emulator.service_string());
    shell
}

#[test]
fn what_it_writes_is_checked_run_and_switches_the_pin_by_the_three_commands_that_it_names() {
    let (emulator, dir) = (Emulator::start(), open_dir());
    let mut init = binary();
    init.args([
        "init",
        "-c",
        "config.toml",
        "--connection-string-file",
        "-",
        "--simulated",
        "--pin",
        "pump=17",
    ]);
    init.arg("--ca-file").arg(emulator.ca_file()).current_dir(dir.path()).env_remove("SUDO_USER");
    let process =
        Process::spawn_with_stdin(init.stdin(fs::File::open(emulator.device_file("dev1")).expect("there")));
    assert_eq!(process.wait_exit().code(), Some(0), "{}", process.stderr.text());
    let stdout = process.stdout.text();
    for wrote in ["config.toml, mode 0644", "device.connection-string, mode 0600", "ca.pem, mode 0644"] {
        assert!(stdout.contains(&format!("wrote {wrote}\n")), "{stdout}");
    }
    assert_eq!(names(dir.path()), ["ca.pem", "config.toml", "device.connection-string"]);
    let [check, start, send] = next_commands(&stdout);
    assert_eq!(check, "  c2d-agent check -c config.toml --message 'action=pump&state=on'");
    assert_eq!(start, "  c2d-agent run -c config.toml");
    let (text, code) = told(&mut pasted(dir.path(), &emulator, &check));
    assert!(text.contains("configuration is valid: 1 rule, 1 pin, device dev1"), "{text}");
    assert!(text.contains("pin pump (line 17): set on") && code == Some(0), "{text}");
    let agent = Process::spawn(&mut pasted(dir.path(), &emulator, &start));
    agent.stderr.wait_for("subscribed");
    let (text, code) = told(&mut pasted(dir.path(), &emulator, &send));
    assert!(text.contains("delivered: Success") && code == Some(0), "{text}");
    wait_for_file(&dir.path().join("pins.json"), r#"{"pump":"on"}"#);
    assert_eq!(agent.terminate(), Some(0));
}

#[test]
fn a_shell_that_has_the_emulators_variables_needs_no_option_and_goes_on_with_them() {
    let (emulator, dir) = (Emulator::start(), open_dir());
    let with = |mut command: Command| {
        command.env("C2D_DEVICE_CONNECTION_STRING", emulator.device_string("dev1"));
        command.env("C2D_CA_FILE", emulator.ca_file());
        command
    };
    let (text, code) = told(&mut with(init(dir.path(), &["--simulated", "--pin", "pump=17"])));
    assert_eq!(code, Some(0), "{text}");
    let mut check = binary();
    check.arg("check").arg("-c").arg(dir.path().join("config.toml"));
    for mut check in [with(check), {
        let mut bare = binary();
        bare.arg("check").arg("-c").arg(dir.path().join("config.toml"));
        bare
    }] {
        let (text, code) = told(&mut check);
        assert!(text.starts_with("configuration is valid: 1 rule, 1 pin, device dev1"), "{text}");
        assert_eq!(code, Some(0));
    }
    // If the variable names another device, there are still two devices.
    let mut other = binary();
    other
        .arg("check")
        .arg("-c")
        .arg(dir.path().join("config.toml"))
        .env("C2D_DEVICE_CONNECTION_STRING", device());
    let (text, code) = told(&mut other);
    assert!(text.contains("the device is named twice") && code == Some(2), "{text}");
}

#[test]
fn a_certificate_and_its_key_are_copied_and_only_their_owner_reads_them() {
    let dir = open_dir();
    let emulator = Emulator::start_with(&["--x509-device", "pi-03"]);
    let file = |name: &str| emulator.state.join(format!("devices/pi-03.{name}")).display().to_string();
    let (certificate, key) = (file("cert.pem"), file("key.pem"));
    let options =
        ["--hub", "localhost", "--device-id", "pi-03", "--certificate", &certificate, "--private-key", &key];
    let mut init = init(
        dir.path(),
        &[&options[..], &["--command", "hello", "--", "/bin/echo", "a b", "{who}", "\"\\"]].concat(),
    );
    let (text, code) = told(init.env_remove("C2D_DEVICE_CONNECTION_STRING"));
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(names(dir.path()), ["config.toml", "device.cert.pem", "device.key.pem"]);
    assert_eq!(fs::read(dir.path().join("device.key.pem")).expect("there"), fs::read(&key).expect("there"));
    assert_eq!(
        [mode(&dir.path().join("device.cert.pem")), mode(&dir.path().join("device.key.pem"))],
        [0o600; 2]
    );
    let mut check = binary();
    check
        .arg("check")
        .arg("-c")
        .arg(dir.path().join("config.toml"))
        .args(["--message", "action=hello&who=me"]);
    let (text, code) = told(&mut check);
    assert!(text.contains("device pi-03 on hub localhost") && code == Some(0), "{text}");
    assert!(text.contains(r#"run ["/bin/echo", "a b", "me", "\"\\"]"#), "{text}");
}

#[test]
fn a_mistake_is_one_sentence_and_nothing_is_written() {
    let service = format!("HostName=hub.example;SharedAccessKeyName=service;SharedAccessKey={KEY}");
    let x509 = "HostName=hub.example;DeviceId=pi-01;x509=true";
    let pin: &[&str] = &["--pin", "pump=17"];
    let cases: [(&str, &[&str], &[&str]); 13] = [
        (
            &service,
            pin,
            &[
                "C2D_DEVICE_CONNECTION_STRING: this is a service connection string (it has SharedAccessKeyName)",
                "in the portal under Devices, the device, Primary connection string",
                "az iot hub device-identity connection-string show",
            ],
        ),
        (
            "",
            pin,
            &[
                "standard input is not a terminal, so c2d-agent cannot ask: give --connection-string-file FILE",
            ],
        ),
        ("", &[], &["--connection-string-file FILE", "give --pin NAME=LINE or --command NAME -- PROGRAM"]),
        ("DEVICE", &[], &["so c2d-agent cannot ask: give --pin NAME=LINE or --command NAME -- PROGRAM"]),
        (x509, pin, &["says x509=true: give --certificate FILE and --private-key FILE as well"]),
        ("DEVICE", &["--pin", "pump"], &["--pin: \"pump\" is not NAME=LINE: write it as in pump=17"]),
        ("DEVICE", &["--pin", "pump=abc"], &["--pin: \"abc\" is not a line number: give the BCM number"]),
        (
            "DEVICE",
            &["--pin", "a b=1"],
            &["--pin: \"a b\" is not a name that init takes: use 1 to 40 letters"],
        ),
        ("DEVICE", &["--pin", "pump=1", "--pin", "pump=2"], &["the name pump is given twice"]),
        (
            "DEVICE",
            &["--pin", "a=1", "--pin", "b=1"],
            &["c2d-agent check would refuse it", "is already the line of pin \"a\""],
        ),
        (
            "DEVICE",
            &["--command", "x", "--", "true"],
            &["--command: the program \"true\" is not an absolute path"],
        ),
        (
            "DEVICE",
            &["--command", "x", "--", "/no/such"],
            &["--command: the program /no/such does not exist"],
        ),
        (
            "DEVICE",
            &["--command", "x", "--", "/bin/sh", "-c", "echo {name}"],
            &["c2d-agent check would refuse it", "a message may fill in an argument of a shell"],
        ),
    ];
    for (string, arguments, parts) in cases {
        let dir = open_dir();
        let string = if string == "DEVICE" { device() } else { string.to_owned() };
        let (text, code) = told(init(dir.path(), arguments).env("C2D_DEVICE_CONNECTION_STRING", string));
        for part in parts {
            assert!(text.contains(part), "{part}\nis not in: {text}");
        }
        assert!(text.starts_with("c2d-agent: ") && !text.contains(KEY), "{text}");
        assert_eq!((code, names(dir.path())), (Some(2), Vec::new()), "{text}");
    }
}

#[test]
fn a_connection_string_as_an_argument_is_refused_and_not_repeated() {
    let (dir, string) = (open_dir(), device());
    for arguments in [&[string.as_str()][..], &["--connection-string-file", &string, "--pin", "pump=1"]] {
        let (text, code) = told(&mut init(dir.path(), arguments));
        assert!(
            text.contains("every user of this machine can read arguments") && !text.contains(KEY),
            "{text}"
        );
        assert_eq!((code, names(dir.path())), (Some(2), Vec::new()));
    }
}

#[test]
fn a_second_time_writes_nothing_without_force_and_everything_anew_with_it() {
    let dir = open_dir();
    assert_eq!(told(&mut init(dir.path(), &["--pin", "pump=17"])).1, Some(0));
    let read = |name: &str| fs::read_to_string(dir.path().join(name)).expect("there");
    let before = (read("config.toml"), read("device.connection-string"));
    let other = format!("HostName=hub.example;DeviceId=pi-02;SharedAccessKey={KEY}");
    let mut again = init(dir.path(), &["--pin", "lamp=4"]);
    let (text, code) = told(again.env("C2D_DEVICE_CONNECTION_STRING", &other));
    assert!(text.contains("config.toml is there already, and nothing was written: edit it"), "{text}");
    assert_eq!((code, (read("config.toml"), read("device.connection-string"))), (Some(1), before));
    // If only the configuration is gone, a secret of another device is not overwritten.
    fs::remove_file(dir.path().join("config.toml")).expect("removed");
    let (text, code) = told(again.env("C2D_DEVICE_CONNECTION_STRING", &other));
    assert!(text.contains("device.connection-string is there already"), "{text}");
    assert_eq!((code, names(dir.path())), (Some(1), vec!["device.connection-string".to_owned()]));
    let mut forced = init(dir.path(), &["--pin", "lamp=4", "--force"]);
    let (text, code) = told(forced.env("C2D_DEVICE_CONNECTION_STRING", &other));
    assert_eq!(code, Some(0), "{text}");
    assert!(read("config.toml").contains("[gpio.pins.lamp]\nline = 4\n"));
    assert_eq!(read("device.connection-string"), format!("{other}\n"));
    assert_eq!(names(dir.path()), ["config.toml", "device.connection-string"]);
}

#[test]
fn a_link_in_the_way_is_neither_followed_nor_replaced() {
    let dir = open_dir();
    let victim = dir.path().join("victim");
    fs::write(&victim, "precious").expect("written");
    for name in ["config.toml", "device.connection-string"] {
        symlink(&victim, dir.path().join(name)).expect("a link");
        for more in [&[][..], &["--force"]] {
            let (text, code) = told(&mut init(dir.path(), &[&["--pin", "pump=17"], more].concat()));
            assert!(text.contains(&format!("{name} is a link or not a regular file: remove it")), "{text}");
            assert_eq!(code, Some(1));
        }
        assert_eq!(fs::read_to_string(&victim).expect("there"), "precious");
        assert_eq!(names(dir.path()), [name, "victim"]);
        fs::remove_file(dir.path().join(name)).expect("removed");
    }
}

#[test]
fn a_directory_without_the_right_to_write_is_told_before_anything_is_asked_with_sudo_as_the_remedy() {
    let dir = open_dir();
    let test = "a directory without the right to write is told";
    let Some(mut plain) = without_rights(test, &init(dir.path(), &[])) else { return };
    let (text, code) = told(&mut plain);
    let sentence =
        format!("c2d-agent: cannot write to {}: permission denied; run it with sudo", dir.path().display());
    assert!(text.starts_with(&sentence) && code == Some(1), "{text}");
    // If the directory must be made, the same holds for its parent.
    let Some(mut plain) = without_rights(test, &init(&dir.path().join("new"), &[])) else { return };
    assert!(told(&mut plain).0.starts_with(&sentence));
    let (text, code) = told(&mut init(&dir.path().join("a/b"), &["--pin", "pump=17"]));
    let sentence = format!("cannot write to {}: there is no such directory", dir.path().join("a").display());
    assert!(text.contains(&sentence), "{text}");
    assert_eq!((code, names(dir.path())), (Some(1), Vec::new()));
}

#[test]
fn a_full_or_read_only_disk_keeps_what_was_there() {
    let test = "a full disk keeps what was there";
    let dir = open_dir();
    let disk = match SmallDisk::mount(dir.path().join("disk")) {
        Ok(disk) => disk,
        Err(why) => {
            writeln!(std::io::stderr(), "SKIPPED {test}: {why}").expect("standard error is open");
            return;
        }
    };
    let place = dir.path().join("disk");
    assert_eq!(told(&mut init(&place, &["--pin", "pump=17"])).1, Some(0));
    let before = fs::read(place.join("config.toml")).expect("there");
    disk.fill();
    let (text, code) = told(&mut init(&place, &["--pin", "lamp=4", "--force"]));
    assert!(text.contains("the disk is full; nothing was changed, so make room and run it again"), "{text}");
    assert_eq!((code, fs::read(place.join("config.toml")).expect("there")), (Some(1), before));
    assert_eq!(names(&place), ["config.toml", "device.connection-string", "filler"]);
    disk.clear();
    disk.remount("ro");
    let (text, code) = told(&mut init(&place, &["--pin", "lamp=4", "--force"]));
    assert!(text.contains("its file system is read-only") && code == Some(1), "{text}");
    disk.remount("rw");
}

#[test]
fn the_agents_user_can_read_the_configuration_whatever_the_umask_and_others_never_the_secret() {
    let dir = open_dir();
    let place = dir.path().join("etc");
    for umask in ["077", "000"] {
        let init = init(&place, &["--pin", "pump=17", "--force"]);
        let mut shell = Command::new("sh");
        shell
            .args(["-c", &format!("umask {umask}; exec \"$@\""), "sh"])
            .arg(init.get_program())
            .args(init.get_args());
        let (text, code) =
            told(shell.env("C2D_DEVICE_CONNECTION_STRING", device()).env_remove("C2D_CA_FILE"));
        assert_eq!(code, Some(0), "{text}");
        let modes = [&place, &place.join("config.toml"), &place.join("device.connection-string")]
            .map(|path| mode(path));
        assert_eq!(modes, [0o755, 0o644, 0o600], "umask {umask}");
        fs::remove_dir_all(&place).expect("removed");
    }
}

#[test]
fn a_directory_that_others_can_write_to_is_told_as_check_tells_it() {
    let dir = open_dir();
    set_mode(dir.path(), 0o777);
    let (text, code) = told(&mut init(dir.path(), &["--pin", "pump=17"]));
    let place = dir.path().display();
    let warning =
        format!("{place}: warning: it is writable by users other than its owner: run chmod go-w {place}");
    assert!(text.contains(&warning) && code == Some(0), "{text}");
}

#[test]
fn a_drop_in_that_was_there_before_and_does_not_fit_is_told() {
    let dir = open_dir();
    fs::create_dir(dir.path().join("config.d")).expect("a directory");
    set_mode(&dir.path().join("config.d"), 0o755);
    fs::write(dir.path().join("config.d/10.toml"), "[gpio.pins.lamp]\nline = 17\n").expect("written");
    let (text, code) = told(&mut init(dir.path(), &["--pin", "pump=17"]));
    assert!(text.contains("the files are written, but c2d-agent check refuses them"), "{text}");
    assert!(text.contains("line 17 is already the line of pin") && code == Some(2), "{text}");
}

#[test]
fn print_shows_the_configuration_alone_and_writes_nothing() {
    let dir = open_dir();
    let Output { status, stdout, stderr } = run(&mut init(dir.path(), &["--pin", "pump=17", "--print"]));
    let (stdout, stderr) = (String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
    assert_eq!(status.code(), Some(0), "{stderr}");
    assert!(stdout.contains("[gpio.pins.pump]\nline = 17\n"), "{stdout}");
    assert!(
        stderr.contains("would write") && stderr.contains("device.connection-string, mode 0600"),
        "{stderr}"
    );
    assert!(!stdout.contains(KEY) && !stderr.contains(KEY));
    assert_eq!(names(dir.path()), Vec::<String>::new());
    assert_eq!(told(&mut init(dir.path(), &["--pin", "pump=17"])).1, Some(0));
    assert_eq!(fs::read_to_string(dir.path().join("config.toml")).expect("there"), stdout);
    assert!(
        stdout.lines().all(|line| line.chars().count() <= 80 || line.starts_with("#:schema")),
        "{stdout}"
    );
}

#[test]
fn a_hub_of_azure_is_sent_to_with_az() {
    let dir = open_dir();
    let string = format!("HostName=myhub.azure-devices.net;DeviceId=it's;SharedAccessKey={KEY}");
    let mut init = init(dir.path(), &["--pin", "pump=17"]);
    let (text, code) = told(init.env("C2D_DEVICE_CONNECTION_STRING", string).stdin(Stdio::null()));
    let send = "  # from any machine with az:\n  az iot device c2d-message send --hub-name myhub --device-id 'it'\\''s' \\\n    \
                --properties 'action=pump;state=on'\n";
    assert!(text.contains(send) && code == Some(0), "{text}");
}

#[test]
fn of_a_private_root_only_certificates_are_copied_for_everybody_to_read() {
    let (emulator, dir) = (Emulator::start(), open_dir());
    let root = fs::read_to_string(emulator.ca_file()).expect("a certificate");
    let given = dir.path().join("given.pem");
    let out = dir.path().join("out");
    fs::create_dir(&out).expect("a directory");
    let run = |content: &str| {
        fs::write(&given, content).expect("written");
        let mut init = init(&out, &["--simulated", "--pin", "pump=1", "--force"]);
        told(init.arg("--ca-file").arg(&given).env("C2D_DEVICE_CONNECTION_STRING", device()))
    };
    let key = "-----BEGIN PRIVATE KEY-----\nc2VjcmV0\n-----END PRIVATE KEY-----\n";
    for content in
        [format!("{key}{root}"), format!("{root}{key}"), root.replace("-----END", "pass phrase!\n-----END")]
    {
        let (text, code) = run(&content);
        assert!(text.contains("given.pem") && code == Some(2), "{text}");
        assert_eq!(names(&out), Vec::<String>::new());
    }
    let (text, code) = run(&format!("a note of the owner\n{root}"));
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(fs::read_to_string(out.join("ca.pem")).expect("copied").trim(), root.trim());
}

#[test]
fn a_secret_that_others_may_read_is_put_right_although_its_content_is_the_same() {
    let dir = open_dir();
    let secret = dir.path().join("device.connection-string");
    fs::write(&secret, format!("{}\n", device())).expect("written");
    set_mode(&secret, 0o644);
    let mut init = init(dir.path(), &["--simulated", "--pin", "pump=1", "--connection-string-file"]);
    let (text, code) = told(init.arg(&secret));
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(fs::metadata(&secret).expect("there").mode() & 0o777, 0o600);
}

#[test]
fn a_variable_that_names_the_device_otherwise_is_told_before_anything_is_written() {
    let dir = open_dir();
    let place = dir.path().join("etc");
    let (text, code) =
        told(init(&place, &["--pin", "pump=17"]).env("C2D_PROVISIONING_ID_SCOPE", "0ne00000001"));
    assert!(text.contains("nothing was written, because c2d-agent check would refuse it"), "{text}");
    assert!(
        text.contains("the device is named twice, by C2D_PROVISIONING_ID_SCOPE") && code == Some(2),
        "{text}"
    );
    assert!(!place.exists());
}
