//! Tests of the configuration as text. The fixtures in `tests/it/config.rs` test the wording of reports.

use proptest::prelude::*;

use super::*;
use crate::message::C2dMessage;
use crate::rules::{OnCrash, OnFailure, Policy, Rate, ReportTo, Settle, Unmatched};

mod costliest;
mod identities;
mod merging;
mod syntax;
mod twin;

const CONNECTION: &str = "HostName=h.example;DeviceId=dev;SharedAccessKey=AAAA";

fn inspected(text: &str) -> Inspection {
    let env = |name: &str| (name == "C2D_DEVICE_CONNECTION_STRING").then(|| CONNECTION.to_owned());
    inspect_text(text, Path::new("/nowhere/config.toml"), &env)
}

fn report(text: &str) -> String {
    inspected(text).report.to_string()
}

#[test]
fn defaults_are_filled_in() {
    let config = inspected("[gpio.pins.p]\nline = 4\n").into_config().expect("valid");
    assert_eq!(config.identities.first().device_id, "dev");
    assert_eq!(config.token_lifetime, Duration::from_secs(3600));
    assert_eq!(config.gpio.backend, GpioBackend::Auto);
    let pin = &config.gpio.pins["p"];
    assert_eq!((&pin.line, pin.active, pin.max_on), (&LineName::Number(4), ActiveLevel::High, None));
    assert_eq!(pin.on_exit, OnExit::Set(crate::rules::PinState::Off));
    assert!(config.rules.is_empty());
}

#[test]
fn the_inbox_has_defaults_and_is_known_even_when_the_rest_has_problems() {
    assert_eq!(inspected("").inbox, Some(InboxSettings::at("/var/lib/c2d-agent/inbox.journal")));
    assert_eq!(InboxSettings::default().socket, Path::new("/var/lib/c2d-agent/inbox.sock"));
    let inspection =
        inspected("[inbox]\npath = \"a.journal\"\nkeep = 1\nmax_size = \"2 MiB\"\n[gpio]\nbackend = 1\n");
    assert_eq!(inspection.report.problems(), 2);
    let expected = InboxSettings { max_size: 2 * 1024 * 1024, ..InboxSettings::at("/nowhere/a.journal") };
    assert_eq!(expected.socket, Path::new("/nowhere/a.sock"));
    assert_eq!(inspection.inbox, Some(expected));
}

#[test]
fn a_configuration_that_does_not_say_where_the_inbox_is_does_not_mean_the_default() {
    for text in [
        "inbox = 1",
        "[inbox]\npath = 1",
        "[inbox]\npath = \"a/\"",
        "[inbox]\npath = \"a",
        "[inbox]\nsocket = 1",
    ] {
        assert_eq!(inspected(text).inbox, None, "{text}");
    }
}

#[test]
fn sizes_are_numbers_of_bytes_or_texts_with_a_unit() {
    let inbox = |size: &str| inspected(&format!("[inbox]\nmax_size = {size}\n")).inbox;
    let max_size = |size: &str| inbox(size).expect("an inbox").max_size;
    assert_eq!(max_size("1048577"), 1_048_577);
    assert_eq!(max_size("\"1048577\""), 1_048_577);
    assert_eq!(max_size("\"2048KiB\""), 2_097_152);
    assert_eq!(max_size("\"1GiB\""), 1_073_741_824);
}

/// The policy of the only rule, with these keys. There are pins `a` (alone), `b` and `c` (interlocked).
fn policy(keys: &str, steps: &str) -> Policy {
    let text = format!(
        "[report]\noutcomes = \"telemetry\"\n[gpio]\ninterlock = [[\"c\", \"b\"]]\n[gpio.pins]\na = {{ line = 1 }}\n\
         b = {{ line = 2 }}\nc = {{ line = 3 }}\n[[rule]]\nname = \"r\"\nwhen = \"any\"\ndo = [{steps}]\n{keys}"
    );
    let config = inspected(&text).into_config().unwrap_or_else(|report| panic!("{report}"));
    config.rules.get("r").expect("the rule").policy().clone()
}

#[test]
fn a_policy_has_what_its_rule_says_and_defaults() {
    let (telemetry, none) = (ReportTo { telemetry: true, twin: false }, ReportTo::default());
    let lanes = vec!["rule:r".to_owned()];
    assert_eq!(policy("", ""), Policy { reports: telemetry, lanes: lanes.clone(), ..Policy::default() });
    let all = "settle = \"on-accept\"\non_crash = \"retry\"\nattempts = 3\nbackoff = \"5s\"\nmin_interval = \"2s\"\n\
               rate = \"10/1m\"\nreport = \"none\"\n";
    let expected = Policy {
        settle: Settle::OnAccept,
        on_failure: None,
        on_crash: Some(OnCrash::Retry),
        attempts: 3,
        backoff: Duration::from_secs(5),
        lanes,
        min_interval: Some(Duration::from_secs(2)),
        rate: Some(Rate { count: 10, per: Duration::from_secs(60) }),
        reports: none,
    };
    assert_eq!(policy(all, ""), expected);
    assert_eq!(policy("", "").on_failure(), OnFailure::Reject);
    assert_eq!(policy("on_failure = \"abandon\"", "").on_failure(), OnFailure::Abandon);
    assert_eq!(inspected("").unmatched, Unmatched::Complete);
    assert_eq!(inspected("unmatched = \"reject\"").unmatched, Unmatched::Reject);
    assert_eq!(
        policy("report = [\"twin\", \"telemetry\"]", "").reports,
        ReportTo { telemetry: true, twin: true }
    );
}

#[test]
fn a_rule_stands_in_the_lanes_of_its_pins_and_in_the_one_that_it_names() {
    let set = |pin: &str| format!("{{ gpio = \"{pin}\", set = \"off\" }},");
    let run = "{ shell = \"true\" },";
    assert_eq!(policy("", run).lanes, ["rule:r"]);
    assert_eq!(policy("lane = \"x\"", run).lanes, ["lane:x"]);
    assert_eq!(policy("", &(set("a") + run + &set("a"))).lanes, ["pin:a"]);
    assert_eq!(policy("", &set("b")).lanes, ["interlock:c"]);
    assert_eq!(
        policy("lane = \"x\"", &(set("c") + &set("b") + &set("a"))).lanes,
        ["interlock:c", "lane:x", "pin:a"]
    );
}

#[test]
fn the_number_of_children_is_four_unless_said() {
    assert_eq!(inspected("").into_config().expect("valid").max_children, 4);
    assert_eq!(inspected("[actions]\nmax_children = 7\n").into_config().expect("valid").max_children, 7);
}

#[test]
fn whole_numbers_and_flags_compare_with_the_text_of_a_property() {
    let text = "[[rule]]\nname = \"r\"\nwhen = { n = 0x10, on = true }\ndo = []\n";
    let rules = inspected(text).rules.expect("rules");
    let message = |bag| C2dMessage::from_bag(bag, bytes::Bytes::new()).expect("a bag");
    assert!(rules.match_message(&message("n=16&on=true")).is_some());
    assert!(rules.match_message(&message("n=16&on=1")).is_none());
}

#[test]
fn the_caret_stands_under_its_column_after_tabs_and_wide_characters() {
    let text = "[[rule]]\nname = \"r\"\nwhen = \"any\"\ndo = [\t{ shell = \"é日\" }, { what = 1 } ]\n";
    let printed = report(text);
    let lines: Vec<_> = printed.lines().collect();
    assert!(lines[0].starts_with("/nowhere/config.toml:4:26: "), "{printed}");
    assert_eq!(lines[1], "   4 | do = [\t{ shell = \"é日\" }, { what = 1 } ]");
    assert_eq!(lines[2], "     |       \t                   ^^^^^^^^^^^^");
}

#[test]
fn a_secret_in_the_configuration_is_not_repeated() {
    for text in [
        "[device]\nconnection_string = \"HostName=h;DeviceId=d;SharedAccessKey=c2VjcmV0\"\n",
        "[device]\nconnection_string_file = \"HostName=h;DeviceId=d;SharedAccessKey=c2VjcmV0\"\n",
        "[device]\nshared_access_key = \"c2VjcmV0\"\n",
        "HostName=h;DeviceId=d;SharedAccessKey=c2VjcmV0\n",
    ] {
        let printed = report(text);
        assert!(!printed.contains("c2VjcmV0"), "{printed}");
    }
}

#[test]
fn a_report_is_bounded() {
    let text: String = (0..5000).map(|n| format!("key{n} = {}\n", "1".repeat(200))).collect();
    let printed = report(&text);
    assert!(printed.len() < 60_000, "{} bytes", printed.len());
    assert!(printed.ends_with("… and 4900 more\n5000 problems"), "{printed}");
}

#[test]
fn an_empty_variable_counts_as_unset() {
    let env = |_: &str| Some(" ".to_owned());
    let printed = inspect_text("", Path::new("c.toml"), &env).report.to_string();
    assert!(printed.contains("the device is not named"), "{printed}");
}

proptest! {
    #[test]
    fn any_text_is_a_configuration_or_is_refused_without_a_panic(text in ".{0,200}") {
        let printed = report(&text);
        prop_assert!(!printed.is_empty());
    }

    #[test]
    fn any_mix_of_known_words_is_a_configuration_or_is_refused_without_a_panic(
        parts in proptest::collection::vec(prop::sample::select(PARTS), 0..24)
    ) {
        let printed = report(&parts.concat());
        prop_assert!(!printed.is_empty());
    }
}

const PARTS: &[&str] = &[
    "[device]\n",
    "[gpio]\n",
    "[gpio.pins.p]\n",
    "[[rule]]\n",
    "name = ",
    "when = ",
    "do = ",
    "timeout = ",
    "line = ",
    "backend = ",
    "\"simulated\"\n",
    "\"p\"\n",
    "\"any\"\n",
    "{ a = ",
    "{ range = [1, 2] }",
    "{ glob = \"[\" }",
    " }\n",
    "[ ",
    " ]\n",
    "{ gpio = \"p\", ",
    "set = \"{a}\" }",
    "blink = { times = 3, period = \"1s\" } }",
    "run = [\"/bin/true\", ",
    "{ shell = \"é\" }",
    "\"30s\"\n",
    "17\n",
    "-1\n",
    "1.5\n",
    "\n",
    "token_lifetime = ",
    "body.zone = ",
    "\"$.mid\" = ",
    "\"{\"",
    "\"-{b:c}\"",
    ",",
    "'''\n",
    "[inbox]\n",
    "[report]\noutcomes = ",
    "[actions]\n",
    "interlock = ",
    "[\"p\", \"p\"]",
    "settle = \"on-accept\"\n",
    "attempts = 3\n",
    "rate = \"1/1m\"\n",
    "on_disconnect = { state = \"off\", after = ",
    "max_size = ",
    "socket = \"s\"\n",
    "lane = ",
    "report = [\"twin\"]\n",
    "max_on = ",
    "ca_file = \"/dev/null\"\n",
    "[twin]\naccept = ",
    "[allow]\ncommands.a = ",
    "{ command = \"a\" }",
    "pins = ",
    "[\"rules\"]\n",
    "[\"/bin/true\", \"/bin/sh\"]\n",
];
