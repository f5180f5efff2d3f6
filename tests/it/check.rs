//! `c2d-agent check`: its output and exit codes, word for word.

use std::fs;

use crate::harness::{binary, run};

const DEVICE: &str = "HostName=hub.example:8884;DeviceId=pi-01;SharedAccessKey=c2VjcmV0";

const VALID: &str = r#"
[gpio]
backend = "simulated"
[gpio.pins.pump]
line = 17
[gpio.pins.led]
line = "LED0"

[[rule]]
name = "pump"
when = { action = "pump", state = { one_of = ["on", "off", "toggle"] } }
do = [ { gpio = "pump", set = "{state}" }, { gpio = "led", blink = { times = 3, period = "400ms" } } ]

[[rule]]
name = "water"
when = { "body.zone" = { glob = "north*" }, litres = { range = [1, 20] } }
timeout = "20s"
do = [ { gpio = "pump", pulse = "{body.seconds:2}s" } ]

[[rule]]
name = "backup"
when = { action = "backup", label = { present = true } }
do = [ { run = ["/bin/true", "--label", "{label}", ""] }, { shell = "logger \"$C2D_RULE\"" } ]

[[rule]]
name = "ignore"
when = { "$.cid" = { prefix = "test-" } }
do = [ { gpio = "pump", set = "off" } ]
"#;

#[test]
fn a_valid_configuration_is_summed_up() {
    let check = Check::of(VALID, &[]);
    check.ends(0, "configuration is valid: 4 rules, 2 pins, device pi-01 on hub hub.example:8884\n", "");
}

#[test]
fn pin_changes_are_explained() {
    let check = Check::of(VALID, &["--message", "action=pump&state=toggle&%24.mid=m-1"]);
    check.ends(
        0,
        "configuration is valid: 4 rules, 2 pins, device pi-01 on hub hub.example:8884\n\
         rule \"pump\" matches\n\
         steps, within 30s together:\n\
         \x20 1. pin pump (line 17): toggle\n\
         \x20 2. pin led (line \"LED0\"): blink with times = 3, period = 400ms\n\
         around the action:\n\
         \x20 completed   after the action\n\
         \x20 on a crash  not run again: the message becomes a dead letter\n\
         \x20 attempts    1\n\
         \x20 lanes       pin led; pin pump\n\
         \x20 reported    only in the log\n",
        "",
    );
    let check = Check::of(VALID, &["--message", "litres=20", "--data", r#"{"zone":"north-2"}"#]);
    check.ends(
        0,
        "configuration is valid: 4 rules, 2 pins, device pi-01 on hub hub.example:8884\n\
         rule \"pump\" does not match: action is missing, not \"pump\"; state is missing, not one of \"on\", \"off\", \
         \"toggle\"\n\
         rule \"water\" matches\n\
         steps, within 20s together:\n\
         \x20 1. pin pump (line 17): on for 2s, then off\n\
         around the action:\n\
         \x20 completed   after the action\n\
         \x20 on a crash  not run again: the message becomes a dead letter\n\
         \x20 attempts    1\n\
         \x20 lanes       pin pump\n\
         \x20 reported    only in the log\n",
        "",
    );
}

#[test]
fn commands_are_explained_with_their_arguments_and_environment() {
    let check = Check::of(VALID, &["--message", "action=backup&label=a \"b\"&$.mid=m-1&x-y=%0A"]);
    check.ends(
        0,
        "configuration is valid: 4 rules, 2 pins, device pi-01 on hub hub.example:8884\n\
         rule \"pump\" does not match: action is \"backup\", not \"pump\"; state is missing, not one of \"on\", \"off\", \
         \"toggle\"\n\
         rule \"water\" does not match: body.zone is missing (the body is empty), not text like \"north*\"; litres is \
         missing, not a number from 1 to 20\n\
         rule \"backup\" matches\n\
         steps, within 30s together:\n\
         \x20 1. run [\"/bin/true\", \"--label\", \"a \\\"b\\\"\", \"\"]\n\
         \x20 2. shell \"logger \\\"$C2D_RULE\\\"\"\n\
         environment, beside a fixed PATH; the body is on standard input:\n\
         \x20 C2D_DEVICE_ID=\"pi-01\"\n\
         \x20 C2D_MESSAGE_ID=\"m-1\"\n\
         \x20 C2D_PROPERTIES=\"{\\\"action\\\":\\\"backup\\\",\\\"label\\\":\\\"a \\\\\\\"b\\\\\\\"\\\",\\\"x-y\\\":\\\"\\\\n\\\"}\"\n\
         \x20 C2D_PROPERTY_ACTION=\"backup\"\n\
         \x20 C2D_PROPERTY_LABEL=\"a \\\"b\\\"\"\n\
         \x20 C2D_PROPERTY_X_Y=\"\\n\"\n\
         \x20 C2D_RULE=\"backup\"\n\
         around the action:\n\
         \x20 completed   after the action\n\
         \x20 on a crash  not run again: the message becomes a dead letter\n\
         \x20 attempts    1\n\
         \x20 lanes       its own\n\
         \x20 reported    only in the log\n",
        "",
    );
}

#[test]
fn what_mqtt_cannot_do_is_said_where_the_configuration_asks_for_it() {
    const ASKS: &str = r#"
unmatched = "reject"
[[rule]]
name = "refuses"
when = { action = "a" }
on_failure = "reject"
do = [ { run = ["/bin/true"] } ]
[[rule]]
name = "says it again"
when = { action = "b" }
on_failure = "complete"
do = [ { run = ["/bin/true"] } ]
"#;
    let check = Check::of(ASKS, &["--message", "action=a"]);
    let said = "over MQTT a device can only complete a message: on_failure of rule \"refuses\", unmatched \
                have no effect; a message that fails is completed, kept as a dead letter and reported as the \
                configuration says\n";
    assert!(check.stdout.contains(said), "{}", check.stdout);
    let line = "  on failure  completed, because MQTT cannot reject it\n";
    assert!(check.stdout.contains(line), "{}", check.stdout);
    assert!(Check::of(ASKS, &["--message", "action=b"]).stdout.contains("  on failure  completed\n"));
    let check = Check::of(ASKS, &["--message", "action=c"]);
    assert!(
        check.stdout.contains("the message would be completed (MQTT cannot reject it)"),
        "{}",
        check.stdout
    );
    let check = Check::of(&ASKS.replace("reject", "complete"), &[]);
    check.ends(0, "configuration is valid: 2 rules, 0 pins, device pi-01 on hub hub.example:8884\n", "");
}

const GUARDED: &str = r#"
[report]
outcomes = ["twin", "telemetry"]
[gpio]
backend = "simulated"
interlock = [["open", "close"]]
[gpio.pins.pump]
line = 17
max_on = "10m"
on_disconnect = { state = "off", after = "5m" }
[gpio.pins.open]
line = 1
[gpio.pins.close]
line = 2
max_on = "1m"

[[rule]]
name = "pump"
when = { action = "pump", state = { one_of = ["on", "off"] } }
do = [ { gpio = "pump", set = "{state}" } ]
timeout = "5s"
attempts = 3
backoff = "2s"
min_interval = "2s"
rate = "10/1m"

[[rule]]
name = "gate"
when = { action = "gate" }
do = [ { gpio = "close", pulse = "{for:20s}" }, { shell = "logger closed" } ]
settle = "on-accept"
timeout = "20m"
lane = "yard"
report = "none"
"#;

#[test]
fn settlement_crashes_attempts_lanes_guards_and_reports_are_explained() {
    let check = Check::of(GUARDED, &["--message", "action=pump&state=on"]);
    check.ends(
        0,
        "configuration is valid: 2 rules, 3 pins, device pi-01 on hub hub.example:8884\nrule \"pump\" \
         matches\nsteps, within 5s together:\n\x20 1. pin pump (line 17): set on\naround the action:\n\x20 \
         completed   after the action\n\x20 on a crash  run again\n\x20 attempts    3, with pauses of 2s, \
         4s\n\x20 lanes       pin pump\n\x20 limits      at most one in 2s, 10 in 1m; further messages are \
         refused\n\x20 pin pump    off after 10m on; off after 5m without the hub\n\x20 reported    as \
         telemetry, in the twin\n",
        "",
    );
    let text = Check::of(GUARDED, &["--message", "action=gate&for=2m"]).stdout;
    assert!(
        text.contains("  1. pin close (line 2): on for 2m, then off, which fails: its max_on is 1m\n"),
        "{text}"
    );
    assert!(
        text.ends_with(
            "around the action:\n\
             \x20 completed   as soon as it is recorded, before the action\n\
             \x20 on a crash  not run again: the message becomes a dead letter\n\
             \x20 attempts    1\n\
             \x20 lanes       pins open, close; \"yard\"\n\
             \x20 pin close   off after 1m on; never on together with open\n\
             \x20 reported    only in the log\n"
        ),
        "{text}"
    );
}

#[test]
fn a_message_that_nothing_takes_or_that_does_nothing_is_explained() {
    let text = Check::of(VALID, &["--data", "hello"]).stdout;
    assert!(text.ends_with(
        "rule \"ignore\" does not match: $.cid is missing, not text that begins with \"test-\"\nno rule \
         matches: the message would be completed, logged and kept in the inbox; nothing else would be \
         done\nthe message has no properties: --message gives them, as in 'action=pump&state=on'\n"
    ));
    let idle = "[[rule]]\nname = \"ignore\"\nwhen = { x = 1 }\ndo = []\n";
    let check = Check::of(idle, &["--message", "x=1"]);
    assert!(check.stdout.ends_with(
        "rule \"ignore\" matches\nnothing would be done: the message would be completed and logged\n"
    ));
    assert!(check.stderr.starts_with("DIR/c.toml:4:6: warning: do = [] does nothing: "), "{}", check.stderr);
}

#[test]
fn an_action_that_would_fail_is_explained() {
    let check = Check::of(VALID, &["--message", "action=backup&label=--delete"]);
    assert_eq!(check.code, Some(0));
    assert!(
        check.stdout.ends_with(
            "rule \"backup\" matches\nthe action would fail before its first step: label is \"--delete\", \
             which a program could read as an option: if you want to allow it, list this exact value in a \
             condition of the rule\n"
        ),
        "{}",
        check.stdout
    );
}

#[test]
fn problems_go_to_standard_error_all_at_once() {
    let check = Check::of(
        "[[rule]]\nname = \"a\"\nwhen = \"all\"\ndo = [ { gpio = \"pump\", set = \"on\" } ]\n",
        &[],
    );
    check.ends(
        2,
        "",
        "DIR/c.toml:3:8: when is \"all\", but must be a table of conditions such as { action = \"pump\" }, \
         or \"any\" to match every message\n\x20  3 | when = \"all\"\n\x20    |        \
         ^^^^^\nDIR/c.toml:4:17: there is no pin \"pump\" (no pin is configured): add [gpio.pins.pump]\n\x20  \
         4 | do = [ { gpio = \"pump\", set = \"on\" } ]\n\x20    |                 ^^^^^^\n2 problems\n",
    );
}

#[test]
fn a_message_is_explained_even_when_the_secret_cannot_be_read() {
    let text = "[device]\nconnection_string_file = \"none\"\n[[rule]]\nname = \"a\"\nwhen = \"any\"\ndo = [{ shell = \"id\" }]\n";
    let check = Check::without_device(text, &["--message", "a=1"]);
    check.ends(
        2,
        "rule \"a\" matches\n\
         steps, within 30s together:\n\
         \x20 1. shell \"id\"\n\
         environment, beside a fixed PATH; the body is on standard input:\n\
         \x20 C2D_DEVICE_ID=\"DEVICE\"\n\
         \x20 C2D_PROPERTIES=\"{\\\"a\\\":\\\"1\\\"}\"\n\
         \x20 C2D_PROPERTY_A=\"1\"\n\
         \x20 C2D_RULE=\"a\"\n\
         around the action:\n\
         \x20 completed   after the action\n\
         \x20 on a crash  not run again: the message becomes a dead letter\n\
         \x20 attempts    1\n\
         \x20 lanes       its own\n\
         \x20 reported    only in the log\n",
        "DIR/c.toml:2:26: cannot read DIR/none: there is no such file; write the device's connection string to it, or correct \
         the path\n\
         \x20  2 | connection_string_file = \"none\"\n\
         \x20    |                          ^^^^^^\n\
         1 problem\n",
    );
}

#[test]
fn a_message_is_not_explained_by_broken_rules() {
    let check = Check::of("[[rule]]\nname = \"a\"\nwhen = \"any\"\n", &["--message", "a=1"]);
    assert_eq!((check.code, check.stdout.as_str()), (Some(2), ""));
    assert!(
        check.stderr.ends_with(
            "1 problem\ncorrect the rules first: the message cannot be explained while \
                                they have problems\n"
        ),
        "{}",
        check.stderr
    );
}

#[test]
fn a_sample_that_is_no_property_bag_is_a_usage_error() {
    Check::of(VALID, &["--message", "a=%zz"]).ends(
        2,
        "",
        "c2d-agent: the message is not a property bag: the property text \"%zz\" has a % that is not followed by two \
         hexadecimal digits\n",
    );
}

#[test]
fn a_missing_file_is_named() {
    let output = run(binary().args(["check", "-c", "/no/such/c.toml"]));
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8_lossy(&output.stderr);
    let sentence = "/no/such/c.toml: cannot read the configuration: there is no such file; write one with c2d-agent init -c \
                    /no/such/c.toml, or name another file with -c FILE\n";
    assert!(stderr.starts_with(sentence), "{stderr}");
}

/// What `check` printed about a configuration, with `DIR` for its directory.
pub(crate) struct Check {
    pub(crate) code: Option<i32>,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Check {
    fn of(text: &str, args: &[&str]) -> Self {
        Self::with_device(text, args, Some(DEVICE))
    }

    fn without_device(text: &str, args: &[&str]) -> Self {
        Self::with_device(text, args, None)
    }

    fn with_device(text: &str, args: &[&str], device: Option<&str>) -> Self {
        let device = device.map(|device| ("C2D_DEVICE_CONNECTION_STRING", device));
        Self::with(text, args, device.as_slice())
    }

    /// Runs `check` with these environment variables.
    pub(crate) fn with(text: &str, args: &[&str], environment: &[(&str, &str)]) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("c.toml");
        fs::write(&path, text).expect("written");
        let mut command = binary();
        command.arg("check").arg("-c").arg(&path).args(args);
        command.envs(environment.iter().copied());
        let output = run(&mut command);
        let plain = |bytes: &[u8]| {
            String::from_utf8(bytes.to_vec())
                .expect("UTF-8")
                .replace(&dir.path().display().to_string(), "DIR")
        };
        Self { code: output.status.code(), stdout: plain(&output.stdout), stderr: plain(&output.stderr) }
    }

    #[track_caller]
    pub(crate) fn ends(&self, code: i32, stdout: &str, stderr: &str) {
        assert_eq!(self.stdout, stdout);
        assert_eq!(self.stderr, stderr);
        assert_eq!(self.code, Some(code));
    }
}
