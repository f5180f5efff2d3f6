//! `check` of the real binary with rules of the twin that an agent has kept: which would count, and which would not.
//!
//! Owns: the file beside the inbox, and what is printed. Valid rules of the twin are tested in `src/config/tests/`.

use std::fs;

use crate::harness::{binary, run};

const LOCAL: &str = "[gpio]\nbackend = \"simulated\"\n[gpio.pins.pump]\nline = 17\n[gpio.pins.lamp]\nline = 18\n[inbox]\n\
                     path = \"i.journal\"\n[[rule]]\nname = \"own\"\nwhen = { action = \"own\" }\ndo = [ { gpio = \"lamp\", set = \"on\" } ]\n";
const TWIN: &str =
    "[twin]\naccept = [\"rules\"]\n[allow]\npins = [\"pump\"]\ncommands.note = [\"/bin/true\", \"{a}\"]\n";
const KEPT: &str = "{\"version\": 7, \"rules\": {\"20-b\": \"[[rule]]\\nname = \\\"b\\\"\\nwhen = { action = \\\"b\\\" }\\n\
                    do = [ { gpio = \\\"pump\\\", set = \\\"on\\\" } ]\\n\", \"10-a\": \"[[rule]]\\nname = \\\"a\\\"\\n\
                    when = { a = 1 }\\ndo = [ { command = \\\"note\\\" } ]\"}}";

/// What `check` says about a configuration with these kept rules of the twin, and its exit code.
fn check(config: &str, kept: Option<&str>, arguments: &[&str]) -> (String, String, Option<i32>) {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("c.toml");
    fs::write(&path, config).expect("written");
    if let Some(kept) = kept {
        fs::write(dir.path().join("twin-rules.json"), kept).expect("written");
    }
    let device = "HostName=127.0.0.1:1;DeviceId=pi-01;SharedAccessKey=c2VjcmV0";
    let mut command = binary();
    command.env("C2D_DEVICE_CONNECTION_STRING", device).arg("check").arg("-c").arg(&path).args(arguments);
    let output = run(&mut command);
    let plain =
        |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&dir.path().display().to_string(), "DIR");
    (plain(&output.stdout), plain(&output.stderr), output.status.code())
}

#[test]
fn check_shows_what_the_twin_may_set_and_has_set() {
    let both = format!("{LOCAL}{TWIN}");
    let verdict =
        |rules: &str| format!("configuration is valid: {rules}, 2 pins, device pi-01 on hub 127.0.0.1:1\n");
    let may = "the twin may set rules, with command note and pin pump\n";
    assert_eq!(check(&both, None, &[]), (verdict("1 rule") + may, String::new(), Some(0)));
    let set = "2 rules of the twin, with version 7 of its desired properties:\n  rule \"a\" in twin:10-a\n  rule \"b\" in \
               twin:20-b\n";
    assert_eq!(check(&both, Some(KEPT), &[]), (verdict("3 rules") + may + set, String::new(), Some(0)));

    let (explained, _, _) = check(&both, Some(KEPT), &["--message", "action=b"]);
    let matched =
        "rule \"b\" of twin:20-b matches\nsteps, within 30s together:\n  1. pin pump (line 17): set on\n";
    assert!(explained.contains(matched), "{explained}");
    let (explained, _, _) = check(&both, Some(KEPT), &["--message", "a=1"]);
    let matched =
        "rule \"a\" of twin:10-a matches\nsteps, within 30s together:\n  1. run [\"/bin/true\", \"1\"]\n";
    assert!(explained.contains(matched), "{explained}");
}

#[test]
fn rules_of_the_twin_that_are_not_allowed_any_more_leave_the_local_ones_alone() {
    let less = format!("{LOCAL}{}", TWIN.replace("[\"pump\"]", "[\"lamp\"]"));
    let (stdout, stderr, code) = check(&less, Some(KEPT), &["--message", "action=b"]);
    assert_eq!(
        stderr,
        "DIR/twin-rules.json: warning: none of the rules of the twin is used:\ntwin:20-b:4:17: a rule of the \
         twin may not switch pin \"pump\": [allow] pins of the device's configuration does not list it\n   4 \
         | do = [ { gpio = \"pump\", set = \"on\" } ]\n     |                 ^^^^^^\n1 problem\n"
    );
    assert_eq!(code, Some(3), "no rule takes the message");
    assert!(stdout.starts_with("configuration is valid: 1 rule, 2 pins"), "{stdout}");
    let nothing = "no rule matches: the message would be completed, logged and kept in the inbox; nothing else would \
         be done\n";
    assert!(stdout.contains(nothing), "{stdout}");

    let (_, stderr, code) = check(LOCAL, Some(KEPT), &[]);
    let told = "DIR/twin-rules.json: warning: none of the rules of the twin is used:\ntwin: this device does \
                not accept rules from its twin: to allow them, its owner writes [twin] accept = [\"rules\"] \
                in its configuration, with [allow]\n";
    assert!(stderr.starts_with(told) && code == Some(0), "{stderr}");
}

#[test]
fn a_damaged_file_of_rules_is_a_warning() {
    let both = format!("{LOCAL}{TWIN}");
    for (damage, reason) in [
        ("", "it is damaged: EOF while parsing a value at line 1 column 0"),
        (&KEPT[..100], "it is damaged: EOF while parsing a string at line 1 column 100"),
    ] {
        let (stdout, stderr, code) = check(&both, Some(damage), &[]);
        assert_eq!(
            stderr,
            format!(
                "DIR/twin-rules.json: warning: the rules of the twin cannot be read: {reason}; the agent \
                 runs without them until it has read its twin\n"
            )
        );
        assert_eq!(code, Some(0));
        assert!(stdout.starts_with("configuration is valid: 1 rule"), "{stdout}");
    }
}

#[test]
fn a_problem_of_the_files_is_told_whatever_the_twin_has_set() {
    let (stdout, stderr, code) = check(&format!("{LOCAL}{TWIN}x = 1\n"), Some(KEPT), &[]);
    assert_eq!((stdout.as_str(), code), ("", Some(2)));
    assert!(stderr.ends_with("1 problem\n") && !stderr.contains("twin-rules"), "{stderr}");
}
