//! Tests of the twin's rules: what they may be, where they are refused, and the file that keeps them.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Instant;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;

const LOCAL: &str = "[gpio.pins]\npump = { line = 1 }\nlamp = { line = 2 }\n[twin]\naccept = [\"rules\"]\n[allow]\n\
                     pins = [\"pump\"]\ncommands.note = [\"/bin/true\", \"{text:}\"]\n[[rule]]\nname = \"own\"\n\
                     when = { action = \"pump\" }\ndo = [{ gpio = \"lamp\", set = \"on\" }]\n";

const PUMP: &str = "[[rule]]\nname = \"remote\"\nwhen = { \"body.zone\" = \"north\" }\ndo = [\n  { gpio = \"pump\", set = \"on\" },\n\
                    \x20 { command = \"note\" },\n]\n";

fn local(text: &str) -> Config {
    inspected(text).into_config().unwrap_or_else(|report| panic!("{report}"))
}

fn rules(texts: &[(&str, &str)]) -> TwinRules {
    let texts = texts.iter().map(|(name, text)| ((*name).to_owned(), (*text).to_owned()));
    TwinRules { version: 7, texts: texts.collect() }
}

/// The problems with these texts, read with `LOCAL`, a line each.
fn problems(texts: &[(&str, &str)]) -> Vec<String> {
    let refused = local(LOCAL).with_twin(&rules(texts)).expect_err("refused");
    refused.problem_lines().collect()
}

fn names(config: &Config) -> Vec<&str> {
    config.rules.iter().map(|rule| rule.name()).collect()
}

#[test]
fn rules_of_the_twin_stand_behind_the_local_ones_in_the_order_of_their_names() {
    let inline = "rule = [{ name = \"inline\", when = { a = 1 }, do = [{ gpio = \"pump\", set = \"on\" }] }]";
    let config = local(LOCAL);
    let (with, warnings) =
        config.with_twin(&rules(&[("b", PUMP), ("B", inline), ("a", "# nothing\n")])).expect("taken");
    assert_eq!((names(&with), warnings.to_string()), (vec!["own", "inline", "remote"], "0 problems".into()));
    let of = |rule: &str, text: &str| TwinRule { rule: rule.into(), text: text.into() };
    assert_eq!(with.twin_rules, [of("inline", "twin:B"), of("remote", "twin:b")]);
    // A message that both rules match goes to the local rule.
    let message = C2dMessage::from_bag("action=pump", bytes::Bytes::from_static(b"{\"zone\":\"north\"}"));
    assert_eq!(with.rules.match_message(&message.expect("a bag")).map(|rule| rule.name()), Some("own"));

    // One set replaces another, and without a set only the files' rules stay.
    let (again, _) = with.with_twin(&rules(&[("b", inline)])).expect("taken");
    assert_eq!(names(&again), ["own", "inline"]);
    let (none, _) = again.with_twin(&rules(&[])).expect("taken");
    assert_eq!((names(&none), none.digest()), (vec!["own"], config.digest()));
    assert_ne!(with.digest(), again.digest());
    assert_eq!(with.digest().len(), 12);
}

#[test]
fn a_rule_of_the_twin_can_use_only_what_allow_lists() {
    let text = "[[rule]]\nname = \"r\"\nwhen = \"any\"\ndo = [\n{ gpio = \"lamp\", set = \"on\" },\n{ gpio = \"no\", set = \"on\" },\n\
                { run = [\"/bin/true\"] },\n{ command = \"other\" },\n{ shell = \"true\" },\n\
                { command = \"note\", run = [\"/bin/true\"] },\n{ gpio = \"pump\", set = \"on\" },\n]\n";
    assert_eq!(
        problems(&[("x", text)]),
        [
            "twin:x:5:10: a rule of the twin may not switch pin \"lamp\": [allow] pins of the device's \
             configuration does not list it",
            "twin:x:6:10: there is no pin \"no\" (the pins are pump, lamp): add [gpio.pins.no]",
            "twin:x:7:3: a rule of the twin cannot have run, only a command of the device's configuration, \
             as in { command = \"backup\" }; [allow.commands] has note",
            "twin:x:8:13: there is no command \"other\": [allow.commands] has note",
            "twin:x:9:3: a rule of the twin cannot have shell, only a command of the device's configuration, \
             as in { command = \"backup\" }; [allow.commands] has note",
            "twin:x:10:1: a step has only one of gpio, run, shell or command: make two steps of it",
        ]
    );
}

#[test]
fn a_rule_of_the_twin_does_not_hold_a_local_one_up_for_long() {
    let local = local(&LOCAL.replace("{ action = \"pump\" }", "{ action = \"pump\" }\nlane = \"door\""));
    let slow = |lane: &str, step: &str, attempts: u32| {
        let text = format!(
            "[[rule]]\nname = \"slow\"\nwhen = {{ a = 1 }}\nsettle = \"on-accept\"\nattempts = {attempts}\n\
             backoff = \"1h\"\nlane = \"{lane}\"\ndo = [{step}]\n"
        );
        local.with_twin(&rules(&[("x", &text)])).map_err(|report| report.problem_lines().collect::<Vec<_>>())
    };
    let program = "{ command = \"note\" }";
    assert_eq!(
        slow("door", program, 3).expect_err("refused"),
        ["twin:x:1:1: rule \"slow\" of the twin may take 2h 1m 30s, and rule \"own\" of the device's \
             configuration waits for it in the same lane: stay within 50s"]
    );
    assert!(slow("door", program, 1).is_ok() && slow("own door", program, 3).is_ok());
}

#[test]
fn the_twin_sets_rules_and_nothing_else() {
    let text = "unmatched = \"reject\"\n[gpio.pins.pump]\nline = 4\n[allow]\ncommands.rm = [\"/bin/rm\"]\n[twin]\n[[test]]\n[[rule]]\n";
    let told = |key: &str| {
        format!("the twin may set only rules: its texts can contain only [[rule]] tables, not \"{key}\"")
    };
    let expected =
        [("1:1", "unmatched"), ("2:2", "gpio"), ("4:2", "allow"), ("6:2", "twin"), ("7:3", "test")];
    assert_eq!(
        problems(&[("x", text)]),
        expected.map(|(place, key)| format!("twin:x:{place}: {}", told(key)))
    );
}

#[test]
fn what_is_wrong_with_the_language_is_told_as_in_a_file() {
    let twice = PUMP.replace("remote", "own");
    assert_eq!(
        problems(&[("x", &twice)]),
        ["twin:x:2:8: there is already a rule named \"own\": rename one of them"]
    );
    assert_eq!(
        problems(&[("x", PUMP), ("y", PUMP)]),
        ["twin:y:2:8: there is already a rule named \"remote\": rename one of them"]
    );
    assert_eq!(
        problems(&[("x", "rule = 1\n")]),
        [
            "twin:x:1:1: rule is of type integer here, but of type array in an earlier file, and these cannot be merged: \
             write [[rule]], with two brackets on each side, above the keys of each rule"
        ]
    );
    let broken = problems(&[("x", "[[rule]]\nname = \n"), ("y", "[[rule]\n")]);
    assert!(broken[0].starts_with("twin:x:2:8: ") && broken[1].starts_with("twin:y:1:"), "{broken:?}");
    let hidden = "[[rule]]\nname = \"late\"\nwhen = { action = \"pump\", x = 1 }\ndo = []\n";
    let (_, warnings) = local(LOCAL).with_twin(&rules(&[("x", hidden)])).expect("taken");
    let told = "twin:x:1:1: warning: rule \"late\" never runs: rule \"own\" before it matches every message";
    assert!(warnings.to_string().starts_with(told), "{warnings}");
}

#[test]
fn without_accept_everything_is_refused_in_one_sentence() {
    for without in [LOCAL.replace("[\"rules\"]", "[]"), LOCAL.replace("[twin]\naccept = [\"rules\"]\n", "")] {
        let refused = local(&without).with_twin(&rules(&[("x", "nonsense")])).expect_err("refused");
        assert_eq!(
            refused.to_string(),
            "twin: this device does not accept rules from its twin: to allow them, its owner writes [twin] \
             accept = [\"rules\"] in its configuration, with [allow]\n1 problem"
        );
        assert!(local(&without).with_twin(&rules(&[])).is_ok());
    }
}

#[test]
fn accept_and_allow_want_each_other() {
    let printed = report("[twin]\naccept = [\"rules\"]\n");
    assert!(
        printed.starts_with(
            "/nowhere/config.toml:1:2: warning: rules of the twin may not run commands or switch pins"
        ),
        "{printed}"
    );
    assert!(printed.ends_with("\n1 warning"), "{printed}");
    let printed = report("[allow]\npins = []\n[[rule]]\nname = \"r\"\nwhen = \"any\"\ndo = []\n");
    assert!(printed.starts_with("/nowhere/config.toml:1:2: warning: [allow] has no effect"), "{printed}");
    let printed = report(
        "[twin]\naccept = [\"rules\", \"pins\"]\naccepts = []\n[allow]\npins = [\"x\", 1]\nshell = 1\ncommands = [\"/bin/true\"]\n",
    );
    for told in [
        "2:20: a word of accept is \"pins\": use one of \"rules\"\n",
        "3:1: [twin] has no key \"accepts\"; did you mean accept? (its keys are accept)\n",
        "5:9: there is no pin \"x\" (no pin is configured): add [gpio.pins.x]\n",
        "5:14: a pin of [allow] is an integer, but must be a text in quotes\n",
        "6:1: [allow] has no key \"shell\" (its keys are commands, pins)\n",
        "7:12: commands is an array, but must be a table of commands, such as backup = [\"/usr/local/bin/backup\"]\n",
    ] {
        assert!(printed.contains(&format!("/nowhere/config.toml:{told}")), "{told} in {printed}");
    }
}

#[test]
fn the_programs_that_earlier_versions_allowed_are_told_what_to_do() {
    let printed = report(&LOCAL.replace("commands.note", "programs = [\"/bin/true\"]\ncommands.note"));
    assert!(
        printed.starts_with(
            "/nowhere/config.toml:8:1: [allow] no longer lists programs, but commands: write each one with \
             its arguments, as in [allow.commands] backup = [\"/usr/local/bin/backup\", \"--label\", \
             \"{label}\"], and { command = \"backup\" } in rules of the twin\n"
        ),
        "{printed}"
    );
}

#[test]
fn a_command_is_checked_as_a_run_is() {
    let of = |command: &str| report(&LOCAL.replace("[\"/bin/true\", \"{text:}\"]", command));
    for (command, told) in [
        ("[\"true\"]", "8:18: the program \"true\" is not an absolute path"),
        ("[\"/bin/{x}\"]", "8:18: the program must be a fixed path"),
        ("[\"/nowhere/at/all\"]", "8:18: the program /nowhere/at/all does not exist"),
        ("[]", "8:17: note is empty: it lists the program's absolute path"),
        ("\"/bin/true\"", "8:17: note is a string, but must be a list of the program's absolute path"),
        ("[\"/bin/true\", \"{\"]", "8:31: in \"{\", a { has no }"),
        ("[\"/bin/sh\", \"{text}\"]", "8:29: a message may fill in an argument of a shell only after -c"),
        ("[\"/bin/sh\"]", "8:17: a shell without -c and without a script"),
    ] {
        let printed = of(command);
        assert!(printed.starts_with(&format!("/nowhere/config.toml:{told}")), "{command}: {printed}");
        assert!(printed.ends_with("\n1 problem"), "{command}: {printed}");
    }
}

#[test]
fn a_value_for_a_command_is_no_option_whatever_the_rule_lists() {
    let local = local(&LOCAL.replace("{text:}", "{text}"));
    let rule = |name: &str, condition: &str| {
        format!(
            "[[rule]]\nname = \"{name}\"\nwhen = {{ text = {condition} }}\ndo = [{{ command = \"note\" }}]\n"
        )
    };
    let (with, warnings) = local
        .with_twin(&rules(&[
            ("x", &rule("listed", "\"--exec=id\"")),
            ("y", &rule("any", "{ absent = true }")),
        ]))
        .expect("taken");
    let message = |bag: &str| C2dMessage::from_bag(bag, bytes::Bytes::new()).expect("a bag");
    let plan = |bag: &str| {
        let planned = with.rules.get("listed").expect("there").plan(&message(bag), "dev");
        planned.map(|plan| plan.steps).map_err(|error| error.to_string())
    };
    let why = "text is \"--exec=id\", which a program could read as an option, and a command accepts none";
    assert_eq!(plan("text=--exec=id"), Err(why.to_owned()));
    let argv = ["/bin/true", "plain"].map(str::to_owned).to_vec();
    assert_eq!(plan("text=plain"), Ok(vec![crate::rules::PlannedStep::Run { argv }]));
    // The rule gets the warning about a value that its command needs and no condition guarantees.
    let told = "twin:y:4:1: warning: no condition requires text";
    assert!(warnings.to_string().starts_with(told), "{warnings}");
}

#[test]
fn local_rules_can_name_commands_too() {
    let text = LOCAL.replace("{ gpio = \"lamp\", set = \"on\" }", "{ command = \"note\" }");
    let config = local(&text.replace("accept = [\"rules\"]", ""));
    assert_eq!(config.rules.get("own").expect("there").programs().collect::<Vec<_>>(), ["/bin/true"]);
    assert!(config.warnings.is_empty(), "{}", config.warnings);
    let unused = local(&LOCAL.replace("accept = [\"rules\"]", ""));
    assert!(unused.warnings.to_string().contains("[allow] has no effect"), "{}", unused.warnings);
    let printed = report(&text.replace("commands.note", "commands.other"));
    assert!(printed.contains(": there is no command \"note\": [allow.commands] has other\n"), "{printed}");
}

#[test]
fn desired_properties_with_another_shape_are_refused_in_words() {
    let problems = |desired: Value| TwinRules::from_desired(&desired).expect_err("refused");
    assert_eq!(
        problems(json!({ "c2dAgent": "x" })),
        ["c2dAgent is a text, but must be an object, such as {\"c2dAgent\": {\"rules\": {}}}"]
    );
    assert_eq!(
        problems(json!({ "c2dAgent": { "rule": {}, "rules": { "a": 1, "b": { "name": "x" }, "c": "" } } })),
        [
            "c2dAgent has no property \"rule\": the twin can set only rules",
            "c2dAgent.rules.a is a number, but must be a text in TOML",
            "c2dAgent.rules.b is an object, but must be a text in TOML",
        ]
    );
    let told = problems(json!({ "c2dAgent": { "rules": ["x"] } }));
    assert!(told[0].starts_with("c2dAgent.rules is a list, but must be an object of texts"), "{told:?}");
    let many: serde_json::Map<_, _> = (0..101).map(|n| (n.to_string(), json!(""))).collect();
    let told = problems(json!({ "c2dAgent": { "rules": many } }));
    assert_eq!(told, ["there are more than 100 texts of rules: combine some of them in one"]);
    let large: serde_json::Map<_, _> = (0..9).map(|n| (n.to_string(), json!("x".repeat(4096)))).collect();
    let told = problems(json!({ "c2dAgent": { "rules": large } }));
    assert_eq!(told, ["the texts of rules have 36873 bytes together, but may have at most 32768"]);
    assert_eq!(problems(json!({ "c2dAgent": { "rules": { "": "" } } })).len(), 1);
    let numbers: Vec<_> = (0..5000).map(|n| (n.to_string(), json!(n))).collect();
    let told = problems(json!({ "c2dAgent": { "rules": Value::Object(numbers.into_iter().collect()) } }));
    assert!(told.len() <= 40, "{}", told.len());

    for none in [json!({}), json!(null), json!({ "c2dAgent": null }), json!({ "c2dAgent": { "rules": {} } })]
    {
        assert!(TwinRules::from_desired(&none).expect("none").is_empty(), "{none}");
    }
    let desired = json!({ "other": 1, "c2dAgent": { "rules": { "a": PUMP } }, "$version": 7 });
    assert_eq!(TwinRules::from_desired(&desired), Ok(rules(&[("a", PUMP)])));
}

#[test]
fn what_is_stored_is_read_again_and_a_damaged_file_is_told() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = TwinRules::file(&dir.path().join("inbox.journal"));
    assert_eq!(file, dir.path().join("twin-rules.json"));
    assert_eq!(TwinRules::stored(&file, None), Ok(None));
    assert_eq!(rules(&[]).store(&file), Ok(()));
    let kept = rules(&[("a", PUMP), ("b", "\u{1}\n\"é日\\")]);
    kept.store(&file).expect("stored");
    assert_eq!(TwinRules::stored(&file, None), Ok(Some(kept)));
    assert_eq!(fs::metadata(&file).expect("a file").permissions().mode() & 0o777, 0o600);
    for (damage, told) in [
        ("", "it is damaged: EOF while parsing"),
        ("{\"version\":7,\"rules\":{\"a\":", "it is damaged: "),
        ("{\"version\":7,\"rules\":{\"a\":1}}", "it is damaged: invalid type: integer"),
        ("{\"version\":7,\"rules\":{\"\":\"\"}}", "it is damaged: a text of rules is named \"\""),
        (&"x".repeat(300_000), "it is larger than 262144 bytes"),
    ] {
        fs::write(&file, damage).expect("written");
        let reason = TwinRules::stored(&file, None).expect_err("damaged");
        assert!(reason.starts_with(told), "{reason}");
    }
    rules(&[]).store(&file).expect("removed");
    assert!(fs::read_dir(dir.path()).expect("a directory").next().is_none());
    let reason =
        rules(&[("a", "")]).store(&dir.path().join("none/twin-rules.json")).expect_err("no directory");
    assert!(reason.ends_with("none/twin-rules.json cannot be written: there is no such file"), "{reason}");
}

#[test]
fn the_largest_nonsense_is_refused_at_once() {
    let config = local(LOCAL);
    let begun = Instant::now();
    for text in ["]", "=\n", "a=1\n", "[[rule]]\n", "x", "\"", "[", "{", "rule=[{},"] {
        let text = text.repeat(4000 / text.len());
        let names: Vec<String> = (0..8).map(|n| n.to_string()).collect();
        let texts: Vec<_> = names.iter().map(|name| (name.as_str(), text.as_str())).collect();
        let refused = config.with_twin(&rules(&texts)).expect_err("refused");
        assert!(refused.problems() > 0);
        assert!(refused.to_string().len() < 100_000, "{}", refused.to_string().len());
    }
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
}

proptest! {
    #[test]
    fn any_mix_of_known_words_as_rules_of_the_twin_uses_only_what_is_allowed(
        parts in proptest::collection::vec(prop::sample::select(PARTS), 0..24)
    ) {
        let text = format!("{PUMP}{}", parts.concat());
        if let Ok((with, _)) = local(LOCAL).with_twin(&rules(&[("x", &text)])) {
            prop_assert!(with.rules.iter().skip(1).flat_map(|rule| rule.programs()).all(|program| program == "/bin/true"));
            prop_assert!(with.rules.iter().skip(1).all(|rule| rule.programs().next().is_none() || rule.has_command()));
            prop_assert!(with.rules.iter().skip(1).all(|rule| !rule.has_shell()));
            prop_assert_eq!(&with.gpio, &local(LOCAL).gpio);
        }
    }
}
