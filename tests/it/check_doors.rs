//! `c2d-agent check` of rules for inputs and direct methods: what it explains, and which conditions it refuses.
//!
//! Owns: nothing. Must not know: how rules match.

use crate::check::Check;

const DEVICE: (&str, &str) =
    ("C2D_DEVICE_CONNECTION_STRING", "HostName=hub.example:8884;DeviceId=pi-01;SharedAccessKey=c2VjcmV0");
const MODULE: (&str, &str) = (
    "EdgeHubConnectionString",
    "HostName=hub.example;DeviceId=edge1;ModuleId=agent;SharedAccessKey=c2VjcmV0;GatewayHostName=gw",
);

const RULES: &str = r#"
[[rule]]
name = "alarm"
when = { "$.input" = "commands", "$.cmid" = "sensor", level = "high" }
on_failure = "reject"
do = [ { run = ["/bin/true"] } ]

[[rule]]
name = "pump"
when = { "$.method" = "pump", "body.state" = { one_of = ["on", "off"] } }
timeout = "20s"
min_interval = "5s"
do = [ { run = ["/bin/true", "{body.state}", "{body.litres}"] } ]

[[rule]]
name = "long"
when = { "$.method" = "long" }
settle = "on-accept"
do = [ { run = ["/bin/true"] } ]

[[rule]]
name = "nothing"
when = { "$.method" = "ping" }
do = []

[[rule]]
name = "message"
when = { "$.source" = "c2d", action = "pump" }
do = [ { run = ["/bin/true"] } ]
"#;

fn module(args: &[&str]) -> Check {
    Check::with(RULES, args, &[MODULE])
}

#[track_caller]
fn says(check: &Check, parts: &[&str]) {
    for part in parts {
        assert!(check.stdout.contains(part), "no \"{part}\" in {}", check.stdout);
    }
}

#[test]
fn a_call_is_explained_with_what_its_caller_would_hear() {
    let sample = |bag: &str, data: &str| module(&["--message", bag, "--data", data]);
    let pump = sample("$.method=pump", r#"{"state": "on", "litres": 5}"#);
    assert_eq!(pump.code, Some(0), "{}", pump.stderr);
    says(
        &pump,
        &[
            "configuration is valid: 5 rules, 0 pins, module edge1/agent by gw\n",
            "a call of the method \"pump\" of module edge1/agent\n",
            "rule \"alarm\" does not match: $.input is missing, not \"commands\"",
            "rule \"pump\" matches\n",
            "  1. run [\"/bin/true\", \"on\", \"5\"]\n",
            "  C2D_MESSAGE_ID=\"method-",
            "  answered    after the action: 200 when it succeeds, 500 when it fails, 504 when it takes longer than 20s\n",
            "  on a crash  not run again: no caller waits for the answer any more\n",
            "  limits      at most one in 5s; further callers get 429\n",
        ],
    );
    assert!(!pump.stdout.contains("  completed "), "{}", pump.stdout);
    says(
        &sample("$.method=pump", r#"{"state": "on"}"#),
        &["the caller would get 400, and nothing would be done: "],
    );
    let page = sample("$.method=pump", "<html>");
    says(&page, &["the caller would get 400, and nothing would be done: the payload is not JSON: "]);
    says(
        &sample("$.method=other", ""),
        &["no rule matches: the caller would get 404, and nothing would be done\n"],
    );
    says(&sample("$.method=long", ""), &["  answered    202 as soon as it is recorded, before the action\n"]);
    says(&sample("$.method=ping", ""), &["nothing would be done: the caller would get 200\n"]);
    let of_device = Check::with(RULES, &["--message", "$.method=long"], &[DEVICE]);
    says(&of_device, &["a call of the method \"long\" of device pi-01\n"]);
}

#[test]
fn a_message_to_an_input_is_settled_over_mqtt_whatever_the_device_speaks() {
    let text = format!("[device]\ntransport = \"amqp\"\n{RULES}");
    let sample = ["--message", "$.input=commands&$.cmid=sensor&level=high"];
    let both = Check::with(&text, &sample, &[DEVICE, MODULE]);
    assert_eq!(both.code, Some(0), "{}", both.stderr);
    says(
        &both,
        &[
            "device pi-01 on hub hub.example:8884, AMQP over TLS, module edge1/agent by gw\n",
            "only a C2D message can be refused or given back: on_failure of rule \"alarm\" has no effect, \
             because a message",
            "a message to the input \"commands\" of module edge1/agent\nrule \"alarm\" matches\n",
            "  completed   after the action\n",
            "  on failure  completed, because MQTT cannot reject it\n",
        ],
    );
    let alone = module(&sample);
    says(
        &alone,
        &["over MQTT a module can only complete a message: on_failure of rule \"alarm\" has no effect"],
    );
    // Settings for the device's connection have no meaning without a device.
    let alone = Check::with(&text, &[], &[MODULE]);
    says(&alone, &["configuration is valid: 5 rules, 0 pins, module edge1/agent by gw\n"]);
}

#[test]
fn rules_for_a_door_that_is_not_here_are_told_by_check_and_are_no_fault_of_the_file() {
    let device = Check::with(RULES, &["--message", "$.input=commands"], &[DEVICE]);
    let no_input = "rule \"alarm\" matches only messages to inputs, and no module signs in here: it has no \
                    effect on this gateway\n";
    says(
        &device,
        &[no_input, "a message to the input \"commands\", which would not come here: no module signs in\n"],
    );
    // One file may serve several gateways. So the only warning is about a value that may be missing.
    assert!(
        device.stderr.ends_with("\n1 warning\n") && !device.stderr.contains("alarm"),
        "{}",
        device.stderr
    );
    let alone = module(&["--message", "action=pump"]);
    let no_c2d = "rule \"message\" matches only C2D messages, and no device signs in here: it has no effect";
    says(&alone, &[no_c2d, "a C2D message, which would not come here: IoT Hub sends none to modules"]);
    let both = Check::with(RULES, &[], &[DEVICE, MODULE]);
    assert!(!both.stdout.contains("has no effect on this gateway"), "{}", both.stdout);
}

#[test]
fn a_sample_that_cannot_come_is_a_usage_error() {
    let check = module(&["--message", "$.method=pump&state=on"]);
    check.ends(
        2,
        "",
        "c2d-agent: a method call has no properties, but state is given: put it into the payload, with the \
         data '{\"state\": …}', and test body.state in the rule\n",
    );
    let check = module(&["--message", "$.method=pump&$.input=commands"]);
    check.ends(
        2,
        "",
        "c2d-agent: a message comes in only one way: give $.input=NAME or $.method=NAME, not both\n",
    );
}

#[test]
fn a_door_that_is_none_and_conditions_that_exclude_each_other_are_found() {
    let rule = |when: &str| {
        format!("[[rule]]\nname = \"r\"\nwhen = {{ {when} }}\ndo = [ {{ shell = \"true\" }} ]\n")
    };
    let check = |when: &str| Check::with(&rule(when), &[], &[DEVICE, MODULE]);
    for (when, said) in [
        ("\"$.source\" = \"inputs\"", "\"$.source\" is \"inputs\", but must be c2d, input or method"),
        ("\"$.source\" = { one_of = [\"c2d\", \"twin\"] }", "\"$.source\" is \"twin\", but must be"),
        (
            "\"$.source\" = { absent = true }",
            "no message meets this condition: \"$.source\" is c2d, input or method",
        ),
        ("\"$.source\" = { prefix = \"x\" }", "no message meets this condition"),
    ] {
        let check = check(when);
        assert!(check.stderr.contains("c.toml:3:") && check.stderr.contains(said), "{}", check.stderr);
        assert_eq!(check.code, Some(2), "{when}");
    }
    for (when, said) in [
        (
            "\"$.method\" = \"pump\", state = \"on\"",
            "warning: no message meets all of these conditions, because a message comes in only one way: \
             $.method asks for method, state asks for c2d or input; a method call has no properties, so write \
             body.state\n",
        ),
        ("\"$.source\" = \"c2d\", \"$.cmid\" = \"sensor\"", "$.source asks for c2d, $.cmid asks for input\n"),
        ("\"$.method\" = \"a\", \"$.input\" = \"b\"", "$.method asks for method, $.input asks for input\n"),
    ] {
        let check = check(when);
        assert!(check.stderr.contains(said), "{when}: {}", check.stderr);
        assert_eq!(check.code, Some(0), "{when}");
    }
    for when in [
        "\"$.source\" = { one_of = [\"input\", \"method\"] }",
        "\"$.source\" = { glob = \"*t*\" }, \"$.mid\" = { present = true }",
        "\"$.method\" = { absent = true }, state = \"on\"",
        "\"$.method\" = \"a\", state = { absent = true }, \"body.x\" = \"1\"",
        "\"$.cid\" = { present = true }, \"$.cmid\" = \"sensor\"",
    ] {
        let check = check(when);
        assert_eq!((check.stderr.as_str(), check.code), ("", Some(0)), "{when}");
    }
}
