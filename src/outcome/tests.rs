//! Tests of the text of an outcome, and of reading it back.

use super::*;

#[test]
fn a_report_survives_json_and_leaves_out_what_is_absent() {
    let report = OutcomeReport {
        message_id: Some("m-1".into()),
        rule: None,
        outcome: OutcomeKind::TimedOut,
        text: "timed out".into(),
        exit_code: None,
        duration_ms: Some(12),
        attempt: 2,
        ended: "2026-01-01T00:00:00.0000000Z".into(),
        output: String::new(),
        output_end: String::new(),
        output_bytes: 0,
    };
    let text = serde_json::to_string(&report).expect("JSON");
    assert_eq!(
        text,
        "{\"messageId\":\"m-1\",\"outcome\":\"timed-out\",\"text\":\"timed out\",\"durationMs\":12,\"attempt\":2,\
         \"ended\":\"2026-01-01T00:00:00.0000000Z\"}"
    );
    assert_eq!(serde_json::from_str::<OutcomeReport>(&text).expect("read"), report);
}

#[test]
fn every_kind_is_written_as_it_says() {
    for kind in [OutcomeKind::Succeeded, OutcomeKind::TimedOut, OutcomeKind::Dropped] {
        assert_eq!(serde_json::to_string(&kind).expect("JSON"), format!("\"{kind}\""));
    }
}

fn report(id: &str, rule: &str, exit_code: Option<i32>) -> OutcomeReport {
    OutcomeReport {
        message_id: Some(id.into()),
        rule: Some(rule.into()),
        outcome: OutcomeKind::Succeeded,
        text: "x".repeat(1_000),
        exit_code,
        duration_ms: Some(1),
        attempt: 1,
        ended: "2026-01-01T00:00:00.0000000Z".into(),
        output: "output".into(),
        output_end: "end".into(),
        output_bytes: 6,
    }
}

#[test]
fn what_the_agent_writes_into_the_twin_a_back_end_reads() {
    let last = LastMessage { message_id: None, received: "2026-01-01T00:00:00Z".into() };
    let mut twin = TwinReport { last_message: Some(last), ..TwinReport::default() };
    twin.totals.insert(OutcomeKind::TimedOut, 3);
    twin.desired = Some(DesiredReport::refused(7, ["a sentence".to_owned()]));
    twin.connection =
        Some(TwinConnection { state: "connected".into(), transport: None, since: "2026".into() });
    (twin.version, twin.configuration) = (Some("1".into()), Some("abc".into()));
    twin.set_pins([("pump".into(), "on".into())]);
    for number in 0..12 {
        twin.record(&report(&format!("m-{number}"), "my rule.$", None));
    }
    let mut patch = twin.patch();
    assert_eq!(patch["c2dAgent"]["rules"]["my_rule__"]["exitCode"], Value::Null);
    assert!(patch["c2dAgent"]["recent"][0].get("exitCode").is_none(), "{patch}");
    assert_eq!(patch["c2dAgent"]["totals"]["timed-out"], 3);
    assert_eq!(TwinReport::read(&patch).as_ref(), Some(&twin));
    let outcomes: Vec<_> = twin.outcomes_of("m-11").collect();
    assert_eq!((outcomes.len(), outcomes[0].output.as_str(), outcomes[0].text.len()), (2, "", 200));
    assert_eq!((twin.recent.len(), twin.outcomes_of("m-1").count()), (10, 0));

    // A later agent may know more kinds of outcomes. The rest must still be read.
    patch["c2dAgent"]["recent"][0]["outcome"] = "postponed".into();
    patch["c2dAgent"]["totals"]["postponed"] = 1.into();
    let read = TwinReport::read(&patch).expect("a section");
    assert_eq!((read.recent.len(), read.rules.len(), read.totals.len()), (9, 1, 0));
    assert_eq!(TwinReport::read(&json!({ "other": 1 })), None);
}

#[test]
fn what_is_gone_is_taken_from_the_hub() {
    let mut twin = TwinReport::default();
    assert!(twin.set_pins([("a".into(), "on".into()), ("b c".into(), "off".into())]));
    assert!(!twin.set_pins([("a".into(), "on".into()), ("b c".into(), "off".into())]));
    twin.record(&report("m-1", "old", None));
    twin.record(&report("m-2", "kept", None));
    assert!(twin.set_pins([("a".into(), "off".into())]));
    let reported =
        json!({ "c2dAgent": { "pins": { "z": "on", "a": "on" }, "rules": { "older": {}, "kept": {} } } });
    assert!(twin.keep_known(|rule| rule == "kept", &reported));
    let section = twin.patch()["c2dAgent"].clone();
    assert_eq!(section["pins"], json!({ "a": "off", "b_c": null, "z": null }));
    assert_eq!((&section["rules"]["old"], &section["rules"]["older"]), (&Value::Null, &Value::Null));
    assert_eq!(section["rules"]["kept"]["messageId"], "m-2");
    twin.gone = Gone::default();
    assert!(!twin.keep_known(|rule| rule == "kept", &Value::Null));
}

#[test]
fn problems_of_desired_properties_are_bounded_and_counted() {
    let refused = |count: usize, text: &str| {
        DesiredReport::refused(7, (0..count).map(|n| format!("{n}{text}"))).problems
    };
    assert_eq!(refused(2, " x"), ["0 x", "1 x"]);
    let many = refused(30, " x");
    assert_eq!((many.len(), many.last().map(String::as_str)), (21, Some("… and 10 more")));
    let long = refused(30, &"é".repeat(500));
    assert!(long[0].len() <= 400 && long.iter().map(String::len).sum::<usize>() <= 4200, "{long:?}");
    assert_eq!((long.len(), long.last().map(String::as_str)), (11, Some("… and 20 more")));
}

#[test]
fn a_full_twin_report_fits_into_the_reported_properties() {
    let mut twin = TwinReport::default();
    for number in 0..100 {
        // Each character has three bytes, because the hub counts bytes.
        let text = "漢".repeat(1_000);
        let report = report(&"m".repeat(128), &format!("{number:0>60}"), Some(-1));
        twin.record(&OutcomeReport { text, ..report });
    }
    twin.set_pins((0..100).map(|number| (format!("{number:0>60}"), "off".to_owned())));
    twin.desired = Some(DesiredReport::refused(u64::MAX, (0..100).map(|_| "漢".repeat(1_000))));
    let size = twin.patch().to_string().len();
    assert!(size < 32 * 1024, "{size} bytes");
}
