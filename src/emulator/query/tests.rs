//! What queries find, and what is said about wrong ones.
//!
//! Owns: nothing. Must not know: the hub, HTTP.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::Expression;
use super::lexer::QueryError;
use super::{MAX_NESTING, RowGroups, TwinQuery};

/// Four twins that differ in what conditions ask for.
fn twins() -> Vec<Value> {
    vec![
        json!({
            "deviceId": "pi-01", "status": "enabled", "connectionState": "Connected", "version": 4,
            "lastActivityTime": "2026-11-30T10:00:00.0000000Z", "capabilities": { "iotEdge": true },
            "tags": { "site": "b43", "floor": 2, "old": null, "group": "a", "Site": "other" },
            "properties": {
                "desired": { "interval": 60, "$version": 2 },
                "reported": { "interval": 60, "led": { "on": true }, "list": ["a", 1], "$version": 7 },
            },
            "parentScopes": ["ms-azure-iot-edge://gw-1"],
        }),
        json!({
            "deviceId": "pi-02", "status": "enabled", "connectionState": "Disconnected", "version": 2,
            "lastActivityTime": "0001-01-01T00:00:00Z", "capabilities": { "iotEdge": false },
            "tags": { "site": "B43", "floor": "2", "my-tag": 1 },
            "properties": { "desired": { "interval": 30, "$version": 1 }, "reported": { "$version": 1 } },
        }),
        json!({
            "deviceId": "it's", "status": "disabled", "connectionState": "Disconnected", "version": 2,
            "lastActivityTime": "2026-01-01T00:00:00.0000000Z", "capabilities": { "iotEdge": false },
            "tags": { "site": "a", "floor": 1.5, "wet": true },
            "properties": { "desired": { "interval": -1, "$version": 1 }, "reported": { "interval": "60" } },
        }),
        json!({
            "deviceId": "plain", "status": "enabled", "connectionState": "Disconnected", "version": 2,
            "tags": {}, "properties": { "desired": {}, "reported": {} },
        }),
    ]
}

/// All twins for which a condition holds.
fn with(condition: &str) -> Result<TwinQuery, QueryError> {
    TwinQuery::parse(&format!("SELECT * FROM devices WHERE {condition}"))
}

/// The ids of the twins for which a condition holds.
fn found(condition: &str) -> Vec<String> {
    let query = format!("SELECT deviceId FROM devices WHERE {condition}");
    let query = TwinQuery::parse(&query).unwrap_or_else(|error| panic!("{condition}: {error}"));
    let rows = twins().into_iter().filter_map(|twin| query.row(twin));
    rows.map(|row| row["deviceId"].as_str().expect("an id").to_owned()).collect()
}

#[test]
fn a_condition_finds_the_twins_for_which_it_holds() {
    const ALL: &[&str] = &["pi-01", "pi-02", "it's", "plain"];
    let cases: &[(&str, &[&str])] = &[
        ("deviceId = 'pi-01'", &["pi-01"]),
        ("deviceid = 'pi-01' or DEVICEID = \"pi-02\"", &["pi-01", "pi-02"]),
        ("devices.deviceId = 'pi-01'", &["pi-01"]),
        ("deviceId = 'it''s'", &["it's"]),
        ("deviceId = 'it\\'s'", &["it's"]),
        ("deviceId = \"it's\"", &["it's"]),
        ("deviceId = '\\u0070lain'", &["plain"]),
        ("tags.site = 'b43'", &["pi-01"]),
        // Names in tags do not ignore case, and neither do strings.
        ("tags.Site = 'other'", &["pi-01"]),
        ("tags.SITE = 'b43'", &[]),
        ("tags.[[my-tag]] = 1", &["pi-02"]),
        ("tags.[[group]] = 'a'", &["pi-01"]),
        // A twin without the property is not found, whatever the comparison.
        ("tags.site != 'b43'", &["pi-02", "it's"]),
        ("tags.site <> 'b43'", &["pi-02", "it's"]),
        ("NOT tags.site = 'b43'", &["pi-02", "it's"]),
        ("tags.site = 'b43' OR NOT IS_DEFINED(tags.site)", &["pi-01", "plain"]),
        ("tags.site >= 'a'", &["pi-01", "it's"]),
        // A number is not a string.
        ("tags.floor = 2", &["pi-01"]),
        ("tags.floor = 2.0", &["pi-01"]),
        ("tags.floor = 0x2", &["pi-01"]),
        ("tags.floor = '2'", &["pi-02"]),
        ("tags.floor < 2", &["it's"]),
        ("tags.floor <= 2e0", &["pi-01", "it's"]),
        ("tags.floor > '1'", &["pi-02"]),
        ("tags.floor IN [2, '2']", &["pi-01", "pi-02"]),
        ("tags.floor in [-1, 1.5]", &["it's"]),
        ("tags.floor NIN [2]", &["pi-02", "it's"]),
        ("tags.floor % 2 = 0", &["pi-01"]),
        ("properties.desired.interval = -1", &["it's"]),
        ("properties.desired.interval + 2 * 15 = 90", &["pi-01"]),
        ("(properties.desired.interval + 2) * 15 = 930", &["pi-01"]),
        ("10 - 4 - 3 = 3 AND 100 / 10 / 5 = 2", ALL),
        ("properties.desired.interval / 0 = 1", &[]),
        ("properties.desired.interval = properties.reported.interval", &["pi-01"]),
        ("properties.reported.$version > 1", &["pi-01"]),
        ("PROPERTIES.Reported.led.on", &["pi-01"]),
        ("properties.reported.led = properties.reported.led", &[]),
        ("tags.wet = true", &["it's"]),
        ("tags.wet > false", &[]),
        ("tags.wet", &["it's"]),
        ("tags.site", &[]),
        ("tags.old = null", &["pi-01"]),
        ("IS_DEFINED(tags.old) AND is_null(tags.old)", &["pi-01"]),
        ("tags.old = undefined", &[]),
        ("capabilities.iotEdge = true", &["pi-01"]),
        ("capabilities.iotedge = false", &["pi-02", "it's"]),
        ("status = 'enabled' AND connectionState = 'Disconnected'", &["pi-02", "plain"]),
        ("lastActivityTime < '2026-06-01'", &["pi-02", "it's"]),
        ("configurations.[[my-config]].status = 'Applied'", &[]),
        ("NOT IS_DEFINED(configurations.[[my-config]])", ALL),
        ("IS_STRING(tags.floor)", &["pi-02"]),
        ("IS_NUMBER(tags.floor)", &["pi-01", "it's"]),
        ("IS_BOOL(tags.wet)", &["it's"]),
        ("IS_OBJECT(properties.reported.led) OR IS_PRIMITIVE(tags.wet)", &["pi-01", "it's"]),
        ("IS_ARRAY(properties.reported.list)", &["pi-01"]),
        ("STARTSWITH(deviceId, 'pi-')", &["pi-01", "pi-02"]),
        ("STARTS_WITH(tags.floor, '2')", &["pi-02"]),
        ("ENDSWITH(deviceId, '-02') OR ends_with(deviceId, '-01')", &["pi-01", "pi-02"]),
        ("CONTAINS(deviceId, 'i')", &["pi-01", "pi-02", "it's", "plain"]),
        ("array_contains(parentScopes, 'ms-azure-iot-edge://gw-1')", &["pi-01"]),
        // AND before OR, NOT before both.
        ("true OR true AND false", ALL),
        ("(true OR true) AND false", &[]),
        ("NOT false AND false", &[]),
        ("NOT (false AND false)", ALL),
        ("tags.site = 'b43' AND NOT NOT true", &["pi-01"]),
        ("tags.none = 1 OR true", ALL),
        ("NOT (tags.none = 1 AND false)", ALL),
        ("NOT (tags.none = 1 AND true)", &[]),
    ];
    for (condition, expected) in cases {
        assert_eq!(found(condition), *expected, "{condition}");
    }
}

#[test]
fn columns_have_the_names_that_programs_read() {
    let first = |query: &str| {
        let query = TwinQuery::parse(query).unwrap_or_else(|error| panic!("{query}: {error}"));
        (query.item_type(), query.row(twins().remove(0)).expect("a row"))
    };
    let twin = twins().remove(0);
    assert_eq!(first("select * from devices"), ("Twin", twin.clone()));
    assert_eq!(first("SELECT TOP 3 *\nFROM\tDevices.Modules"), ("Twin", twin.clone()));
    assert_eq!(
        first("SELECT * FROM devices.jobs WHERE devices.jobs.deviceId = 'pi-01'"),
        ("DeviceJob", twin)
    );
    let rows = [
        (
            "DeviceId, LastActivityTime",
            json!({ "deviceId": "pi-01", "lastActivityTime": "2026-11-30T10:00:00.0000000Z" }),
        ),
        ("properties.reported.led.on, tags.none", json!({ "on": true })),
        (
            "tags.site AS where1, tags AS [[all tags]]",
            json!({ "where1": "b43", "all tags": twins()[0]["tags"] }),
        ),
        ("tags.none", json!({})),
    ];
    for (columns, row) in rows {
        assert_eq!(first(&format!("SELECT {columns} FROM devices")), ("Raw", row), "{columns}");
    }
    let modules = "SELECT devices.modules.deviceId, devices.status FROM devices.modules WHERE devices.modules.version = 4";
    assert_eq!(first(modules).1, json!({ "deviceId": "pi-01", "status": "enabled" }));
}

/// One row could otherwise be hundreds of times as large as its twin.
#[test]
fn a_query_names_few_properties_and_its_groups_are_not_large() {
    let many = |item: &str, count: usize| vec![item; count].join(", ");
    for (query, place) in [
        (format!("SELECT {} FROM devices", many("properties", 17)), "column 8"),
        (format!("SELECT COUNT() FROM devices GROUP BY {}", many("tags.a", 17)), "column 29"),
    ] {
        let refused = TwinQuery::parse(&query).expect_err("too many").to_string();
        assert!(refused.contains(place) && refused.contains("17 properties here, more than 16"), "{refused}");
    }
    let query = format!("SELECT {} FROM devices", many("properties", 16));
    assert!(TwinQuery::parse(&query).is_ok());
    let query = TwinQuery::parse("SELECT COUNT() FROM devices GROUP BY tags.a").expect("a query");
    let mut groups = RowGroups::default();
    for number in 0..16 {
        assert!(!groups.are_too_large(), "{number}");
        let text = format!("{number}{}", "x".repeat(1 << 20));
        // One that comes again takes no more.
        (0..50).for_each(|_| query.count(json!({ "tags": { "a": text } }), &mut groups));
    }
    assert!(groups.are_too_large());
}

#[test]
fn counts_are_of_all_or_of_each_group() {
    let counted = |query: &str| {
        let query = TwinQuery::parse(query).unwrap_or_else(|error| panic!("{query}: {error}"));
        assert!(query.has_groups() && query.item_type() == "Raw");
        let mut groups = RowGroups::default();
        twins().into_iter().for_each(|twin| query.count(twin, &mut groups));
        Value::Array(query.group_rows(groups))
    };
    assert_eq!(counted("SELECT COUNT() AS n FROM devices WHERE version = 2"), json!([{ "n": 3 }]));
    assert_eq!(counted("SELECT count() FROM devices WHERE false"), json!([{ "$1": 0 }]));
    assert_eq!(
        counted("SELECT status AS s, COUNT() AS n FROM devices GROUP BY status"),
        json!([{ "s": "disabled", "n": 1 }, { "s": "enabled", "n": 3 }])
    );
    // Twins without the property are a group of their own, without the column.
    assert_eq!(
        counted("SELECT capabilities.iotEdge, COUNT() FROM devices GROUP BY capabilities.iotEdge, version"),
        json!([{ "$1": 1 }, { "iotEdge": false, "$1": 2 }, { "iotEdge": true, "$1": 1 }])
    );
    assert_eq!(
        counted("SELECT version FROM devices GROUP BY version"),
        json!([{ "version": 2 }, { "version": 4 }])
    );
    assert_eq!(counted("SELECT version FROM devices WHERE false GROUP BY version"), json!([]));
}

#[test]
fn a_fault_is_named_with_its_place() {
    let long = format!("SELECT * FROM devices WHERE tags.x = '{}'", "x".repeat(8_192));
    let cases = [
        ("", "line 1, column 1: expected SELECT, but found the end"),
        ("DELETE FROM devices", "line 1, column 1: expected SELECT, but found \"DELETE\""),
        (
            "SELECT * FROM c",
            "line 1, column 15: expected devices, devices.modules or devices.jobs after FROM, but found \"c\"",
        ),
        (
            "SELECT * FROM devices ORDER BY x",
            "column 23: expected WHERE, GROUP BY or the end, but found \"ORDER\"",
        ),
        (
            "SELECT\n  *\n  FROM devices\n  WHERE tags.ü = ",
            "line 4, column 18: expected a property, but found the end",
        ),
        ("SELECT * FROM devices WHERE tags.x = 'a", "line 1, column 38: the string has no closing '"),
        ("SELECT * FROM devices WHERE tags.x = 'a\\b'", "column 40: a backslash in a string stands before"),
        ("SELECT * FROM devices WHERE tags.x = '\\uD800'", "a backslash in a string stands before"),
        (
            "SELECT * FROM devices WHERE tags.group = 1",
            "column 34: expected a name after the dot; write [[NAME]] for a name with other characters, or [[group]] for a name that is a word of the language, but found \"group\"",
        ),
        ("SELECT * FROM devices WHERE tags.1 = 1", "column 34: expected a name after the dot"),
        (
            "SELECT * FROM devices WHERE x = 1 = 1",
            "column 35: expected WHERE, GROUP BY or the end, but found \"=\"",
        ),
        ("SELECT * FROM devices WHERE (x = 1", "column 35: expected AND, OR or \")\", but found the end"),
        ("SELECT * FROM devices WHERE x IN (1)", "column 34: expected \"[\" and constants, but found \"(\""),
        ("SELECT * FROM devices WHERE x IN [y]", "column 35: expected a constant, but found \"y\""),
        ("SELECT * FROM devices WHERE x IN [-'a']", "expected a constant"),
        (
            "SELECT * FROM devices WHERE LOWER(x) = 'a'",
            "column 29: this emulator has no function LOWER(): it has IS_DEFINED, ",
        ),
        (
            "SELECT * FROM devices WHERE STARTSWITH(x)",
            "column 41: expected \",\" and a second argument, but found \")\"",
        ),
        ("SELECT * FROM devices WHERE x ~ 1", "column 31: the query language has no \"~\""),
        ("SELECT * FROM devices WHERE x = 1e", "column 33: \"1e\" is not a number"),
        ("SELECT * FROM devices WHERE x = 0x", "column 33: \"0x\" is not a number"),
        ("SELECT * FROM devices WHERE [[x = 1", "column 29: the name has no \"]]\""),
        ("SELECT deviceId, FROM devices", "column 18: expected a property, or [[FROM]]"),
        ("SELECT *, deviceId FROM devices", "column 9: expected FROM, but found \",\""),
        ("SELECT TOP -1 * FROM devices", "column 12: expected a whole number after TOP, but found \"-\""),
        (
            "SELECT AVG(tags.x) FROM devices",
            "column 8: this emulator has no AVG(): of the aggregates, it has COUNT() only",
        ),
        ("SELECT x(y) FROM devices", "column 8: SELECT takes properties and COUNT(), not x()"),
        (
            "SELECT COUNT(x) FROM devices",
            "column 14: expected \")\": COUNT() has no argument, but found \"x\"",
        ),
        ("SELECT status, COUNT() FROM devices", "column 8: \"status\" must also stand after GROUP BY, or go"),
        ("SELECT * FROM devices GROUP BY status", "column 23: GROUP BY does not go with SELECT *"),
        ("SELECT jobId FROM devices.jobs", "column 8: FROM devices.jobs takes SELECT * only"),
        (&long, "line 1, column 1: the query has 8231 characters, more than 8192"),
    ];
    for (query, said) in cases {
        let error = TwinQuery::parse(query).expect_err(query).to_string();
        assert!(error.starts_with("line ") && error.contains(said), "{query}\n{error}");
    }
}

#[test]
fn nesting_has_a_limit_in_every_form() {
    let nested = |open: &str, close: &str, levels: usize| {
        format!("{}true{}", open.repeat(levels), close.repeat(levels))
    };
    for (open, close) in [("(", ")"), ("NOT ", ""), ("-", ""), ("IS_BOOL(", ")"), ("1 = (", ")")] {
        let most = MAX_NESTING;
        let deepest = with(&nested(open, close, most)).expect(open);
        drop(deepest.row(Value::Null));
        for levels in [most + 1, 800] {
            let error = with(&nested(open, close, levels)).expect_err(open).to_string();
            assert!(error.contains("the condition is nested more than 64 levels deep"), "{open}: {error}");
        }
    }
    // What is only long has the limit of the query's length.
    for (first, next) in [("true", " AND true"), ("false", " OR true"), ("1 = 0", "+1")] {
        let long = format!("{first}{}", next.repeat(800));
        drop(with(&long).expect(next).row(Value::Null));
    }
}

#[test]
fn the_condition_of_a_job_may_be_a_star() {
    assert!(Expression::parse(" * ").expect("all").holds(&json!({})));
    let some = Expression::parse("deviceId IN ['a', 'b']").expect("a list");
    assert!(!some.holds(&json!({ "deviceId": "c" })) && some.holds(&json!({ "deviceId": "b" })));
    let error = Expression::parse("SELECT * FROM devices").expect_err("a whole query").to_string();
    assert!(error.starts_with("line 1, column 1: expected a property"), "{error}");
    assert!(Expression::parse("* AND true").is_err() && Expression::parse("").is_err());
}

/// A condition with its truth, put together of constants, so that the truth is known without the evaluation.
fn known_condition() -> impl Strategy<Value = (String, Option<bool>)> {
    let leaf = prop_oneof![
        Just(("true".to_owned(), Some(true))),
        Just(("1 = 2".to_owned(), Some(false))),
        Just(("tags.none = 1".to_owned(), None)),
        Just(("'a' IN ['a', null]".to_owned(), Some(true))),
    ];
    leaf.prop_recursive(4, 24, 2, |inner| {
        let and = |left: Option<bool>, right: Option<bool>| match (left, right) {
            (Some(false), _) | (_, Some(false)) => Some(false),
            (Some(true), Some(true)) => Some(true),
            _ => None,
        };
        prop_oneof![
            inner.clone().prop_map(|(text, truth)| (format!("not ({text})"), truth.map(|truth| !truth))),
            (inner.clone(), inner.clone())
                .prop_map(move |(a, b)| (format!("({}) AND\n({})", a.0, b.0), and(a.1, b.1))),
            (inner.clone(), inner).prop_map(move |(a, b)| {
                let either = and(a.1.map(|truth| !truth), b.1.map(|truth| !truth));
                (format!("({}) Or ({})", a.0, b.0), either.map(|neither| !neither))
            }),
        ]
    })
}

proptest! {
    #[test]
    fn any_text_is_read_or_refused(text in ".{0,200}") {
        drop((TwinQuery::parse(&text), with(&text)));
    }

    /// Texts of the language's own words come further than any text.
    #[test]
    fn any_row_of_words_is_read_or_refused(
        words in proptest::collection::vec(
            proptest::sample::select(vec![
                "SELECT", "*", "FROM", "devices", ".jobs", ".modules", "WHERE", "a", ".", "b", "=", "<>", "'x'", "\"", "'",
                "1", "0x", "-", "(", ")", "[", "]", "[[", "]]", "IN", "NIN", "NOT", "AND", "OR", "IS_DEFINED(",
                "STARTSWITH(", ",", "GROUP", "BY", "COUNT()", "AS", "TOP", "\\", "\n", "é", "undefined", "%",
            ]),
            0..30,
        ),
    ) {
        let text = words.join(" ");
        if let Ok(query) = with(&text) {
            twins().into_iter().for_each(|twin| drop(query.row(twin)));
        }
        drop(TwinQuery::parse(&text));
    }

    #[test]
    fn a_condition_has_the_truth_of_its_parts((text, truth) in known_condition()) {
        let holds = |text: &str| with(text).expect("a condition").row(json!({ "tags": {} })).is_some();
        prop_assert_eq!(holds(&text), truth == Some(true), "{}", text);
        prop_assert_eq!(holds(&format!("NOT ({text})")), truth == Some(false), "NOT ({})", text);
    }
}
