//! Tests of matching and planning. The rules are built as `config` builds them.

use std::time::Duration;

use bytes::Bytes;
use proptest::prelude::*;

use super::*;

fn message(bag: &str) -> C2dMessage {
    with_body(bag, "")
}

fn with_body(bag: &str, body: &str) -> C2dMessage {
    C2dMessage::from_bag(bag, Bytes::from(body.to_owned())).expect("a bag")
}

fn when(name: &str, test: Test) -> Condition {
    Condition { subject: Subject::parse(name).expect("a name"), test }
}

fn equals(name: &str, value: &str) -> Condition {
    when(name, Test::Equals(value.into()))
}

fn template(text: &str) -> Template {
    Template::parse(text).expect("a template")
}

fn rule(conditions: Vec<Condition>, steps: Vec<Step>) -> Rule {
    Rule::new("r".into(), conditions, steps, Duration::from_secs(30), Policy::default())
}

fn run(arguments: &[&str]) -> Step {
    Step::Run {
        program: "/bin/true".into(),
        arguments: arguments.iter().map(|text| template(text)).collect(),
        is_command: false,
    }
}

fn takes(condition: Condition, message: &C2dMessage) -> bool {
    Rules::new(vec![rule(vec![condition], vec![])]).match_message(message).is_some()
}

/// The argument that `text` becomes, or why it cannot.
fn argument(text: &str, conditions: Vec<Condition>, message: &C2dMessage) -> Result<String, String> {
    let plan = rule(conditions, vec![run(&[text])]).plan(message, "d").map_err(|error| error.to_string())?;
    match plan.steps.as_slice() {
        [PlannedStep::Run { argv }] => Ok(argv[1].clone()),
        other => Err(format!("{other:?}")),
    }
}

#[test]
fn each_kind_of_condition_takes_what_it_says() {
    let message = message("state=on&n=7&neg=-2.5&flag&path=/a/b.txt&%24.cid=c-1&iothub-ack=full");
    let cases = [
        (equals("state", "on"), true),
        (equals("state", "On"), false),
        (equals("missing", ""), false),
        (equals("flag", ""), true),
        (equals("$.cid", "c-1"), true),
        (equals("iothub-ack", "full"), true),
        (when("state", Test::OneOf(Choices::new(vec!["off".into(), "on".into()]))), true),
        (when("state", Test::OneOf(Choices::new(vec!["off".into()]))), false),
        (when("path", Test::Prefix("/a/".into())), true),
        (when("path", Test::Prefix("a".into())), false),
        (when("path", Test::Glob(Glob::parse("*.txt").expect("a pattern"))), true),
        (when("path", Test::Glob(Glob::parse("?.txt").expect("a pattern"))), false),
        (when("n", Test::Range { min: 1.0, max: 7.0 }), true),
        (when("n", Test::Range { min: 7.1, max: 9.0 }), false),
        (when("neg", Test::Range { min: -3.0, max: 0.0 }), true),
        (when("state", Test::Range { min: 0.0, max: 9.0 }), false),
        (when("flag", Test::Range { min: 0.0, max: 9.0 }), false),
        (when("flag", Test::Present), true),
        (when("flag", Test::Absent), false),
        (when("other", Test::Present), false),
        (when("other", Test::Absent), true),
    ];
    for (condition, expected) in cases {
        assert_eq!(takes(condition.clone(), &message), expected, "{condition:?}");
    }
}

#[test]
fn only_plain_decimal_numbers_are_in_a_range() {
    let takes = |value: &str| {
        let everything = Test::Range { min: f64::MIN, max: f64::MAX };
        takes(when("n", everything), &message(&format!("n={}", value.replace('+', "%2B"))))
    };
    for value in ["0", "-0", "7", "-7", "10", "0.5", "-0.50", "120.007", "12345678901234567890"] {
        assert!(takes(value), "{value}");
    }
    for value in [
        "nan", "NaN", "inf", "-inf", "infinity", "1e1", "1E1", "+5", "010", "-01", "00", "00.5", " 5", "5 ",
        "5%0A", ".5", "5.", "-", "--5", "1_000", "0x10", "1,5", "1.2.3", "٣", "",
    ] {
        assert!(!takes(value), "{value}");
    }
}

#[test]
fn body_fields_compare_as_text_and_dots_descend() {
    let message =
        with_body("", r#"{"zone":{"name":"north","nr":3,"open":true,"none":null,"list":[1]},"f":1.50}"#);
    assert!(takes(equals("body.zone.name", "north"), &message));
    assert!(takes(equals("body.zone.nr", "3"), &message));
    assert!(takes(equals("body.zone.open", "true"), &message));
    assert!(takes(equals("body.f", "1.5"), &message));
    assert!(takes(when("body.zone.nr", Test::Range { min: 3.0, max: 3.0 }), &message));
    assert!(takes(when("body.zone.none", Test::Absent), &message));
    assert!(takes(when("body.zone", Test::Present), &message));
    assert!(!takes(equals("body.zone", "north"), &message));
    assert!(!takes(when("body.zone.list", Test::Prefix("[".into())), &message));
    assert!(takes(when("body.zone.name.deeper", Test::Absent), &message));
}

#[test]
fn a_body_that_is_not_json_has_no_fields() {
    for body in ["", "north", "{\"zone\":", "[1]", "\u{0}"] {
        assert!(takes(when("body.zone", Test::Absent), &with_body("", body)), "{body}");
    }
    let deep = "[".repeat(60_000);
    assert!(takes(when("body.zone", Test::Absent), &with_body("", &deep)));
    let large = format!("{{\"zone\":\"{}\"}}", "x".repeat(crate::message::MAX_C2D_BYTES));
    assert!(takes(when("body.zone", Test::Absent), &with_body("", &large)));
}

#[test]
fn the_first_rule_whose_conditions_all_hold_wins() {
    let named = |name: &str, conditions| {
        Rule::new(name.into(), conditions, vec![], Duration::from_secs(1), Policy::default())
    };
    let rules = Rules::new(vec![
        named("both", vec![equals("a", "1"), equals("b", "2")]),
        named("one", vec![equals("a", "1")]),
        named("any", vec![]),
    ]);
    let name = |bag: &str| rules.match_message(&message(bag)).map(Rule::name);
    assert_eq!(name("a=1&b=2"), Some("both"));
    assert_eq!(name("a=1&b=3"), Some("one"));
    assert_eq!(name(""), Some("any"));
    assert_eq!(Rules::default().match_message(&message("a=1")), None);
}

#[test]
fn mismatches_name_the_actual_and_the_wanted_value() {
    let rule = rule(
        vec![
            equals("action", "pump"),
            when("state", Test::OneOf(Choices::new(vec!["on".into(), "off".into()]))),
            when("n", Test::Range { min: 1.0, max: 20.0 }),
            equals("body.zone", "north"),
            when("extra", Test::Absent),
        ],
        vec![],
    );
    let rules = Rules::new(vec![rule]);
    let message = with_body("action=pump&state=up&extra=%0A", "text");
    assert_eq!(
        rules.mismatches(&message)[0].1,
        [
            "state is \"up\", not one of \"on\", \"off\"",
            "n is missing, not a number from 1 to 20",
            "body.zone is missing (the body is not JSON), not \"north\"",
            "extra is \"\\n\", not absent",
        ]
    );
}

#[test]
fn a_value_that_is_too_long_for_its_condition_is_told_so_and_what_is_told_is_short() {
    let long: Vec<String> = (0..1000).map(|number| format!("{number}-{}", "v".repeat(100))).collect();
    let name = "n".repeat(1000);
    let rule = rule(
        vec![
            when("file", Test::Glob(Glob::parse("*").expect("a pattern"))),
            when("number", Test::Range { min: 0.0, max: 9.0 }),
            when(&name, Test::OneOf(Choices::new(long))),
        ],
        vec![],
    );
    let (file, number) = ("a".repeat(513), format!("1.{}", "0".repeat(63)));
    let message = message(&format!("file={file}&number={number}"));
    let rules = Rules::new(vec![rule]);
    assert!(rules.match_message(&message).is_none());
    let why = &rules.mismatches(&message)[0].1;
    assert_eq!(why[0], "file has 513 bytes, but at most 512 can be compared with text like \"*\"");
    assert_eq!(why[1], "number has 65 bytes, but at most 64 can be compared with a number from 0 to 9");
    assert!(why[2].len() < 2000 && why[2].ends_with("… 980 more"), "{}", why[2]);
}

#[test]
fn values_that_a_program_cannot_take_are_refused_before_they_fill_the_memory() {
    let value = format!("a={}", "v".repeat(60_000));
    let refused = |arguments: &[&str]| {
        rule(vec![], vec![run(arguments)])
            .plan(&message(&value), "d")
            .map(drop)
            .map_err(|error| error.to_string())
    };
    assert_eq!(refused(&["{a}", "{a}"]), Ok(()));
    let sentence = "with the values of the message the arguments would have more than 128 KiB: fill in less, \
                    or let the program read the environment or the body";
    assert_eq!(refused(&["{a}", "{a}", "{a}"]), Err(sentence.to_owned()));
    assert_eq!(refused(&["{a}{a}{a}"]), Err(sentence.to_owned()));
    let many: String = (0..1001).map(|number| format!("p{number}&")).collect();
    let plan = rule(vec![], vec![run(&[])]).plan(&message(&many), "d");
    assert_eq!(
        plan.expect_err("too many").to_string(),
        "the message has 1001 properties, but a program gets at most 1000: send fewer, or use the body"
    );
    // A pin has no such limit.
    let pin = Step::Gpio { pin: "p".into(), change: GpioStep::Set(Setting::Fixed(PinChange::Toggle)) };
    assert!(rule(vec![], vec![pin]).plan(&message(&many), "d").is_ok());
}

#[test]
fn properties_are_the_same_by_their_index_as_one_by_one() {
    let few = "a=1&b=&c&%24.mid=m&iothub-ack=full&%24.method=x";
    let many: String = (0..20).map(|number| format!("&p{number}=v")).collect();
    let [few, many] = [few.to_owned(), few.to_owned() + &many].map(|bag| message(&bag));
    for name in ["a", "b", "c", "d", "$.mid", "$.cid", "iothub-ack", "$.method", "$.source"] {
        let fields = BodyFields::default();
        let [few, many] = [&few, &many].map(|message| Values::of(message, &fields));
        let subject = Subject::parse(name).expect("a name");
        assert_eq!(few.find(&subject), many.find(&subject), "{name}");
    }
}

#[test]
fn templates_fill_one_argument_each() {
    let message = with_body("label=a b;c&%24.mid=m-1&e=", r#"{"zone":"north","n":3}"#);
    let filled = |text| argument(text, vec![], &message);
    assert_eq!(filled("{label}"), Ok("a b;c".into()));
    assert_eq!(filled("--label={label}/{$.mid}"), Ok("--label=a b;c/m-1".into()));
    assert_eq!(filled("{body.zone}-{body.n}"), Ok("north-3".into()));
    assert_eq!(filled("{missing:x:y}"), Ok("x:y".into()));
    assert_eq!(filled("{missing:}"), Ok("".into()));
    assert_eq!(filled("{e:default}"), Ok("".into()), "an empty value is a value");
    assert_eq!(filled("{{{label}}}"), Ok("{a b;c}".into()));
    assert_eq!(filled(""), Ok("".into()));
}

#[test]
fn malformed_templates_are_refused() {
    for (text, expected) in [
        ("{a", "has no }"),
        ("a}", "has no {"),
        ("{}", "is not a name"),
        ("{:x}", "is not a name"),
        ("{$.}", "is not a name"),
        ("{body.}", "is not a name"),
        ("{a{b}}", "inside"),
    ] {
        let error = Template::parse(text).expect_err(text).to_string();
        assert!(error.contains(expected), "{text}: {error}");
    }
}

#[test]
fn values_that_must_not_be_used_make_the_plan_fail_in_words() {
    let message = with_body("o=-rf&nl=a%0Ab&nul=a%00&e=&esc=%1B[0m&c1=%C2%85", r#"{"o":{}}"#);
    let error = |text: &str| argument(text, vec![], &message).expect_err(text);
    assert_eq!(error("{x}"), "the message has no x, which the rule needs, and there is no default");
    assert_eq!(
        error("{body.x.y}"),
        "the message has no body.x.y, which the rule needs, and there is no default"
    );
    assert!(error("{body.o}").starts_with("body.o is a JSON object or array"));
    assert!(error("{o}").starts_with("o is \"-rf\", which a program could read as an option"));
    assert!(error("{e}{o}").contains("\"-rf\""));
    for name in ["nl", "nul", "esc", "c1"] {
        assert!(error(&format!("x{{{name}}}")).contains("control characters"), "{name}");
    }
    assert_eq!(argument("x{o}", vec![], &self::message("o=-rf")), Ok("x-rf".into()));
    assert_eq!(
        argument("{x:-v}", vec![], &self::message("")),
        Ok("-v".into()),
        "the configuration's own text"
    );
}

#[test]
fn an_option_that_a_condition_lists_may_begin_an_argument() {
    let message = message("o=-v");
    assert_eq!(argument("{o}", vec![equals("o", "-v")], &message), Ok("-v".into()));
    let listed = Test::OneOf(Choices::new(vec!["-q".into(), "-v".into()]));
    assert_eq!(argument("{o}", vec![when("o", listed)], &message), Ok("-v".into()));
    assert!(argument("{o}", vec![equals("p", "-v")], &message).is_err());
    assert!(argument("{o}", vec![when("o", Test::Prefix("-".into()))], &message).is_err());
}

#[test]
fn pin_steps_take_their_values_from_the_message() {
    let gpio = |change| Step::Gpio { pin: "p".into(), change };
    let filled = |text| Setting::Filled(template(text));
    let set = rule(vec![], vec![gpio(GpioStep::Set(filled("{state}")))]);
    let pulse = rule(vec![], vec![gpio(GpioStep::Pulse(Setting::Filled(template("{d}"))))]);
    let blink = GpioStep::Blink {
        times: Setting::Filled(template("{n}")),
        period: Setting::Filled(template("{p:400ms}")),
    };
    let blink = rule(vec![], vec![gpio(blink)]);
    let change = |rule: &Rule, bag: &str| match rule.plan(&message(bag), "d") {
        Ok(Plan { steps, .. }) => match steps.as_slice() {
            [PlannedStep::Gpio { change, .. }] => Ok(*change),
            other => Err(format!("{other:?}")),
        },
        Err(error) => Err(error.to_string()),
    };
    assert_eq!(change(&set, "state=on"), Ok(PinChange::Set(PinState::On)));
    assert_eq!(change(&set, "state=toggle"), Ok(PinChange::Toggle));
    assert_eq!(change(&set, "state=up"), Err("set would be \"up\", but must be on, off or toggle".into()));
    assert_eq!(change(&pulse, "d=2s"), Ok(PinChange::Pulse(Duration::from_secs(2))));
    let period = Duration::from_millis(400);
    assert_eq!(change(&blink, "n=3"), Ok(PinChange::Blink { times: 3, period }));
    for (rule, bag) in
        [(&pulse, "d=0s"), (&pulse, "d=2"), (&blink, "n=0"), (&blink, "n=1001"), (&blink, "n=1&p=19ms")]
    {
        assert!(change(rule, bag).is_err_and(|error| error.contains("must be a")), "{bag}");
    }
    for (rule, bag) in
        [(&pulse, "d=30s"), (&blink, "n=75"), (&pulse, "d=10years"), (&blink, "n=999&p=9years")]
    {
        assert!(change(rule, bag).is_err_and(|error| error.contains("timeout is 30s")), "{bag}");
    }
}

#[test]
fn the_environment_of_a_child_is_sorted_and_leaves_colliding_names_out() {
    let message = message("%24.mid=m-1&%24.cid=&zone=n%0A1&a-b=1&a_b=2&A.B=3&flag&%C3%A9=x");
    let plan =
        rule(vec![], vec![Step::Shell { text: "echo {x}".into() }]).plan(&message, "dev").expect("a plan");
    assert_eq!(plan.steps, [PlannedStep::Shell { text: "echo {x}".into() }], "braces are the shell's own");
    let environment: Vec<_> =
        plan.environment.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    assert_eq!(
        environment,
        [
            ("C2D_DEVICE_ID", "dev"),
            ("C2D_MESSAGE_ID", "m-1"),
            ("C2D_PROPERTIES", r#"{"A.B":"3","a-b":"1","a_b":"2","flag":"","zone":"n\n1","é":"x"}"#),
            ("C2D_PROPERTY_FLAG", ""),
            ("C2D_PROPERTY_ZONE", "n\n1"),
            ("C2D_PROPERTY__", "x"),
            ("C2D_RULE", "r"),
        ]
    );
}

#[test]
fn no_property_passes_for_a_tested_one_in_the_environment() {
    let shell = || vec![Step::Shell { text: "rm -r /data/$C2D_PROPERTY_DIR".into() }];
    let tested = rule(vec![equals("dir", "a"), when("force", Test::Absent), equals("$.cid", "1")], shell());
    let plan = |bag: &str| tested.plan(&message(bag), "d");
    let variables = plan("%24.cid=1&dir=a&other=1&OTHER=2&__cid=x").expect("a plan").environment;
    assert!(variables.contains(&("C2D_PROPERTY_DIR".into(), "a".into())), "{variables:?}");
    let error = plan("%24.cid=1&dir=a&Dir=b").expect_err("a lookalike").to_string();
    assert_eq!(
        error,
        "the property \"Dir\" would set $C2D_PROPERTY_DIR for a program, but $C2D_PROPERTY_DIR is for \
         \"dir\", which the rule's conditions test"
    );
    assert!(matches!(plan("%24.cid=1&dir=a&FORCE=1"), Err(PlanError::Lookalike { .. })));
    let no_child = rule(vec![equals("dir", "a")], vec![]);
    assert!(no_child.plan(&message("dir=a&DIR=b"), "d").is_ok());
}

#[test]
fn a_nul_fails_plans_with_a_child_and_no_others() {
    let message = message("a=%00");
    let with_child = rule(vec![], vec![Step::Shell { text: "true".into() }]).plan(&message, "d");
    assert_eq!(with_child, Err(PlanError::Nul("a".into())));
    let plan = rule(vec![], vec![]).plan(&message, "d").expect("a plan");
    assert!(plan.steps.is_empty() && plan.environment.is_empty());
}

proptest! {
    #[test]
    fn a_message_never_begins_an_argument_with_a_dash_unless_listed(
        first in "[-a]{0,3}", second in "[-a]{0,3}", listed in "[-a]{1,3}"
    ) {
        let mut message = C2dMessage::default();
        message.application.set("first", first.clone());
        message.application.set("second", second.clone());
        let lists = equals("first", &listed);
        if let Ok(argument) = argument("{first}{second}", vec![lists], &message) {
            let allowed = !first.is_empty() && first == listed;
            prop_assert!(!argument.starts_with('-') || allowed, "{}", argument);
            prop_assert_eq!(argument, format!("{first}{second}"));
        }
    }

    #[test]
    fn any_text_is_a_template_or_is_refused_and_filling_it_does_not_panic(text in "[{}:.$a-]{0,24}|.{0,40}") {
        if let Ok(template) = Template::parse(&text) {
            let step = Step::Run { program: "/p".into(), arguments: vec![template.clone()], is_command: false };
            let planned = rule(vec![], vec![step]).plan(&message("a=-x&b"), "d");
            if let Some(literal) = template.literal() {
                prop_assert!(planned.is_ok());
                prop_assert!(literal.len() <= text.len());
            }
        }
    }

    #[test]
    fn any_body_can_be_asked_for_a_field(body in ".{0,80}|[\\[{\":,0-9a}\\]]{0,40}") {
        let message = with_body("", &body);
        let present = takes(when("body.a", Test::Present), &message);
        prop_assert_eq!(present, !takes(when("body.a", Test::Absent), &message));
    }
}

#[test]
fn the_nearest_rule_is_the_one_of_which_the_fewest_conditions_do_not_hold() {
    let named = |name: &str, conditions: Vec<Condition>| {
        Rule::new(name.into(), conditions, vec![], Duration::from_secs(30), Policy::default())
    };
    let on_or_off = when("state", Test::OneOf(Choices::new(vec!["on".into(), "off".into()])));
    let rules = Rules::new(vec![
        named("backup", vec![equals("action", "backup")]),
        named("all", vec![equals("action", "pump"), equals("a", "1"), equals("b", "2")]),
        named("pump", vec![equals("action", "pump"), on_or_off]),
        named("later", vec![equals("action", "pump"), equals("state", "auto")]),
    ]);
    let why = |bag: &str| rules.why_none(&message(bag));
    assert_eq!(
        why("action=pump&state=On"),
        "the nearest match is rule \"pump\", but state is \"On\", not one of \"on\", \"off\""
    );
    assert_eq!(why("x=1"), "the nearest match is rule \"backup\", but action is missing, not \"backup\"");
    // A wrong value is more likely a mistake than a missing one.
    let rules =
        Rules::new(vec![named("n", vec![equals("n", "1")]), named("new", vec![equals("action", "new")])]);
    let why = rules.why_none(&message("action=old"));
    assert_eq!(why, "the nearest match is rule \"new\", but action is \"old\", not \"new\"");
    assert_eq!(Rules::new(vec![]).why_none(&message("x=1")), "there are no rules");
}

#[test]
fn why_no_rule_takes_a_message_is_short_whatever_rules_and_message_hold() {
    let many: Vec<String> = (0..5_000).map(|n| format!("{n}{}", "x".repeat(100))).collect();
    let conditions =
        (0..50).map(|n| when(&format!("n{n}"), Test::OneOf(Choices::new(Vec::clone(&many))))).collect();
    let long = format!("n0={}", "y".repeat(50_000));
    let why = Rules::new(vec![rule(conditions, vec![])]).why_none(&message(&long));
    assert!(why.len() < 1_500 && why.contains("; n3 is missing") && !why.contains("n4"), "{why}");
}
