//! Rule tests: `[[test]]` tables that `check` runs, and `check --expect` for one message.
//!
//! Owns: what is printed, the exit code, and that an agent does not read the tests. Invalid tests are fixtures of
//! `config.rs`.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::harness::{binary, run};

const DEVICE: &str = "HostName=hub.example;DeviceId=pi-01;SharedAccessKey=c2VjcmV0";

const RULES: &str = r#"
[gpio]
backend = "simulated"
[gpio.pins.pump]
line = 17
max_on = "10s"
[gpio.pins.lamp]
line = 18

[[rule]]
name = "pump"
when = { action = "pump", state = { present = true } }
do = [ { gpio = "pump", set = "{state}" } ]

[[rule]]
name = "prime"
when = { action = "prime" }
do = [ { gpio = "pump", pulse = "{for:2s}" }, { run = ["/bin/echo", "--", "{note:primed}"] } ]

[[rule]]
name = "call"
when = { "$.method" = "lamp", "body.state" = { present = true } }
do = [ { gpio = "lamp", set = "{body.state}" } ]

[inbox]
path = "inbox.journal"
"#;

/// A directory with `c.toml` and more files.
fn house(files: &[(&str, &str)]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    for (name, text) in [("c.toml", RULES)].iter().chain(files) {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().expect("a parent")).expect("a directory");
        fs::write(path, text).expect("written");
    }
    dir
}

/// What `check` printed on both outputs, with `DIR` for the directory, and its exit code.
fn check(dir: &Path, arguments: &[&str]) -> (String, String, Option<i32>) {
    let mut command = binary();
    command.arg("check").arg("-c").arg(dir.join("c.toml")).args(arguments);
    let output = run(command.env("C2D_DEVICE_CONNECTION_STRING", DEVICE));
    let plain = |bytes: &[u8]| String::from_utf8_lossy(bytes).replace(&dir.display().to_string(), "DIR");
    (plain(&output.stdout), plain(&output.stderr), output.status.code())
}

const GOOD: &str = r#"
[[test]]
name = "the pump goes on"
message = "action=pump&state=on"
rule = "pump"
do = [ { gpio = "pump", set = "on" } ]

[[test]]
name = "a pulse and a program"
message = "action=prime&for=500ms&note=a%20b"
rule = "prime"
do = [ { gpio = "pump", pulse = "500ms" }, { run = ["/bin/echo", "--", "a b"] } ]

[[test]]
name = "a call switches the lamp"
message = "$.method=lamp"
data = '{"state": "toggle"}'
do = [ { gpio = "lamp", set = "toggle" } ]

[[test]]
name = "a state that is none is refused"
message = "action=pump&state=maybe"
rule = "pump"
outcome = "refused"

[[test]]
name = "a pulse past max_on fails"
message = "action=prime&for=20s"
rule = "prime"
outcome = "failed"

[[test]]
message = "action=pmup"
outcome = "unmatched"

[[test]]
message = "$.method=lamp"
data = "<html>"
outcome = "undecodable"
"#;

const VALID: &str = "configuration is valid: 3 rules, 2 pins, device pi-01 on hub hub.example\n";

#[test]
fn tests_in_the_configuration_in_drop_ins_and_beside_it_are_run() {
    let one = "[[test]]\nmessage = \"action=prime\"\nrule = \"prime\"\n";
    let dir = house(&[("c.test.toml", GOOD), ("config.d/1.toml", one), ("config.d/2.test.toml", one)]);
    let files = "DIR/c.toml and 2 drop-ins:\n  DIR/config.d/1.toml\n  DIR/config.d/2.test.toml\n";
    let (stdout, stderr, code) = check(dir.path(), &[]);
    assert_eq!((stdout, stderr.as_str(), code), (format!("{files}{VALID}9 tests passed\n"), "", Some(0)));

    // Without tests, the output does not mention tests.
    assert_eq!(check(house(&[]).path(), &[]), (VALID.to_owned(), String::new(), Some(0)));
    let dir = house(&[("c.toml", &format!("{RULES}{one}")), ("c.test.toml", "# none yet\n")]);
    assert_eq!(check(dir.path(), &[]), (format!("{VALID}1 test passed\n"), String::new(), Some(0)));
}

#[test]
fn a_test_that_fails_shows_what_was_expected_and_what_was_found() {
    let bad = r#"
[[test]]
name = "the pump goes on"
message = "action=pump&state=off"
rule = "pump"
do = [ { gpio = "pump", set = "on" } ]

[[test]]
name = "prime, and not pump"
message = "action=pump&state=on"
rule = "prime"

[[test]]
message = "action=pmup&state=on"
rule = "pump"

[[test]]
name = "nothing takes it"
message = "action=prime"
outcome = "unmatched"

[[test]]
message = "action=pump&state=maybe"
rule = "pump"

[[test]]
message = "action=prime&for=20s"
do = [ { gpio = "pump", pulse = "20s" } ]

[[test]]
name = "well"
message = "action=prime"
rule = "prime"

[[test]]
name = "a call"
message = "$.method=lamp"
data = "<html>"
rule = "call"

[[test]]
name = "any rule"
message = "action=pmup"
do = [ { gpio = "pump", set = "on" } ]

[[test]]
name = "the rule before takes it"
message = "action=pump&state=on&$.ct=x"
rule = "late pump"
"#;
    let late = "[[rule]]\nname = \"late pump\"\nwhen = { action = \"pump\", state = { present = true }, \"$.ct\" = \"x\" }\ndo = []\n";
    let dir = house(&[("c.test.toml", bad), ("config.d/1.toml", late)]);
    let (stdout, _, code) = check(dir.path(), &[]);
    assert_eq!(code, Some(3));
    insta::assert_snapshot!(stdout);
}

#[test]
fn a_test_with_a_problem_is_reported_with_its_place() {
    let dir = house(&[("c.test.toml", "[[test]]\nmessage = \"action=pump\"\nrule = \"pmup\"\n")]);
    let told = "DIR/c.test.toml:3:8: there is no rule \"pmup\"; did you mean \"pump\"?\n   3 | rule = \"pmup\"\n     |        ^^^^^^\n1 problem\n";
    assert_eq!(check(dir.path(), &[]), (String::new(), told.to_owned(), Some(2)));

    let dir = house(&[("c.test.toml", "[[tests]]\nmessage = \"a=1\"\n[[rule]]\nname = \"x\"\n")]);
    let (_, stderr, code) = check(dir.path(), &[]);
    assert!(
        stderr.contains("c.test.toml:1:3: a file of rule tests has no key \"tests\"; did you mean test?"),
        "{stderr}"
    );
    assert!(stderr.contains("c.test.toml:3:3: a file of rule tests has no key \"rule\""), "{stderr}");
    assert_eq!(code, Some(2));

    let dir = house(&[("c.test.toml", "[[test]\n")]);
    assert!(check(dir.path(), &[]).1.starts_with("DIR/c.test.toml:1:"));
    let dir = house(&[("c.test.toml/x", "")]);
    let (_, stderr, code) = check(dir.path(), &[]);
    let told = "DIR/c.test.toml: the rule tests cannot be read: it is a directory\n1 problem\n";
    assert_eq!((stderr.as_str(), code), (told, Some(2)));

    let many = "[[test]]\nmessage = \"a=1\"\noutcome = \"unmatched\"\n".repeat(1001);
    let dir = house(&[("c.test.toml", &many)]);
    let (_, stderr, code) = check(dir.path(), &[]);
    assert!(stderr.starts_with("DIR/c.test.toml:3001:1: there are more than 1000 tests: "), "{stderr}");
    assert_eq!(code, Some(2));
    let dir = house(&[("c.test.toml", &"# ".repeat(600 * 1024))]);
    assert!(check(dir.path(), &[]).1.contains("it is larger than 1048576 bytes"));
}

#[test]
fn rules_are_tested_although_the_device_is_not_known() {
    let failing = "[[test]]\nmessage = \"action=prime\"\nrule = \"pump\"\n";
    for (tests, summary) in [(GOOD, "7 tests passed\n"), (failing, "1 of 1 test failed\n")] {
        let dir = house(&[("c.test.toml", tests)]);
        let output = run(binary().arg("check").arg("-c").arg(dir.path().join("c.toml")));
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(stdout.ends_with(summary), "{stdout}");
        assert_eq!(output.status.code(), Some(2));
    }
}

#[test]
fn one_message_can_be_expected_to_have_a_rule_or_none() {
    let dir = house(&[("c.test.toml", "[[test]]\nmessage = \"action=prime\"\nrule = \"pump\"\n")]);
    let code = |arguments: &[&str]| check(dir.path(), arguments).2;
    // With a sample, `check` runs no tests.
    assert_eq!(code(&["--message", "action=pump&state=on"]), Some(0));
    assert_eq!(code(&["--message", "action=pump&state=on", "--expect", "pump"]), Some(0));
    assert_eq!(code(&["--message", "action=pmup", "--expect-none"]), Some(0));
    assert_eq!(code(&["--message", "action=pmup"]), Some(3));
    assert_eq!(code(&["--message", "$.method=lamp", "--data", "<html>"]), Some(3));
    assert_eq!(code(&["--message", "action=pump&state=maybe"]), Some(0));
    for (sample, expect, lines) in [
        (
            "action=pmup",
            &["--expect", "pump"][..],
            "  expected  rule \"pump\" matches\n  found     no rule matches\n            rule \"pump\" does \
             not match: action is \"pmup\", not \"pump\"; state is missing, not present\n",
        ),
        (
            "action=pump&state=maybe",
            &["--expect", "pump"],
            "  expected  rule \"pump\" matches\n  found     rule \"pump\" matches, but refuses the message:\n\
             \x20           set would be \"maybe\", but must be on, off or toggle\n",
        ),
        (
            "action=prime",
            &["--expect-none"],
            "  expected  no rule matches\n  found     rule \"prime\" matches\n",
        ),
    ] {
        let (stdout, _, code) = check(dir.path(), &[&["--message", sample], expect].concat());
        assert!(stdout.ends_with(lines), "{stdout}");
        assert_eq!(code, Some(3), "{sample}");
    }
    let (_, stderr, code) = check(dir.path(), &["--message", "a=1", "--expect", "pmup"]);
    let told = "c2d-agent: --expect: there is no rule \"pmup\"; did you mean \"pump\"?\n";
    assert_eq!((stderr.as_str(), code), (told, Some(2)));
    let (_, stderr, code) = check(dir.path(), &["--expect", "pump"]);
    assert!(stderr.contains("--message <PROPERTIES>"), "{stderr}");
    assert_eq!(code, Some(2));
}

/// The lines of `check --json`.
fn events(dir: &Path, arguments: &[&str]) -> (Vec<Value>, Option<i32>) {
    let (stdout, stderr, code) = check(dir, &[&["--json"], arguments].concat());
    assert_eq!(stderr, "");
    (stdout.lines().map(|line| serde_json::from_str(line).expect("JSON")).collect(), code)
}

#[test]
fn all_of_it_can_be_read_by_a_program() {
    let tests = "[[test]]\nname = \"on\"\nmessage = \"action=pump&state=off\"\nrule = \"pump\"\ndo = [ { gpio = \"pump\", set = \"on\" } ]\n\
                 [[test]]\nmessage = \"action=prime\"\nrule = \"prime\"\n";
    let dir = house(&[("c.test.toml", tests)]);
    let found = |state: &str| json!([{ "gpio": "pump", "set": state }]);
    let (lines, code) = events(dir.path(), &[]);
    let prime = json!([{ "gpio": "pump", "pulseMs": 2000 }, { "run": ["/bin/echo", "--", "primed"] }]);
    let expected = [
        json!({ "event": "test", "name": "on", "place": "DIR/c.test.toml:1:1", "message": "action=pump&state=off",
            "passed": false, "expected": { "rule": "pump", "outcome": "begun", "steps": found("on") },
            "found": { "rule": "pump", "outcome": "begun", "steps": found("off") } }),
        json!({ "event": "test", "place": "DIR/c.test.toml:6:1", "message": "action=prime", "passed": true,
            "expected": { "rule": "prime", "outcome": "begun" },
            "found": { "rule": "prime", "outcome": "begun", "steps": prime } }),
        json!({ "event": "checked", "valid": true, "rules": 3, "pins": 2, "tests": 2, "failedTests": 1 }),
    ];
    assert_eq!((lines, code), (expected.to_vec(), Some(3)));

    let (lines, code) = events(dir.path(), &["--message", "action=pump&state=maybe", "--expect", "pump"]);
    let text = "set would be \"maybe\", but must be on, off or toggle";
    let message = json!({ "event": "message", "passed": false, "expected": { "rule": "pump", "outcome": "begun" },
        "found": { "rule": "pump", "outcome": "refused", "text": text } });
    assert_eq!((&lines[0], code), (&message, Some(3)));
    let (lines, code) = events(dir.path(), &["--message", "action=pmup"]);
    assert_eq!((&lines[0]["found"], code), (&json!({ "outcome": "unmatched" }), Some(3)));

    let dir = house(&[("config.d/1.toml", "typo = 1\n")]);
    let (lines, code) = events(dir.path(), &[]);
    let text = lines[0]["text"].as_str().expect("a text");
    assert!(text.starts_with("DIR/config.d/1.toml:1:1: the configuration has no key \"typo\""), "{text}");
    assert_eq!((&lines[0]["event"], &lines[1]["valid"], code), (&json!("problem"), &json!(false), Some(2)));
}

#[test]
fn an_agent_runs_whatever_its_tests_are_like() {
    use crate::harness::{Agent, Emulator};
    let emulator = Emulator::start();
    let dir = house(&[("config.test.toml", "this is no TOML\n")]);
    let tests = "[[test]]\nmessage = \"action=pump\"\nrule = \"a rule that is gone\"\nverdict = 1\n";
    let agent = Agent::start(&emulator, "dev1", dir.path(), &format!("{RULES}{tests}"));
    emulator.send("dev1", &["--property", "action=prime", "--wait"]);
    assert_eq!(agent.process.terminate(), Some(0));
    assert!(!agent.process.stderr.text().contains("test"), "{}", agent.process.stderr.text());
}
