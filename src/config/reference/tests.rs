//! Compares the reference with the parsers: the keys must be equal, and a default must be what an absent key means.

use std::collections::BTreeSet;
use std::path::Path;

use super::*;
use crate::config::{Inspection, inspect_text, read_tests};

fn inspect(text: &str) -> Inspection {
    inspect_text(text, Path::new("config.toml"), &|_| None)
}

/// Each section with a file in which `{}` stands for its keys.
fn files() -> Vec<(&'static Section, String)> {
    let rule = |keys: &str| format!("[[rule]]\nname = \"r\"\nwhen = \"any\"\n{keys}\n");
    let with_header = |section: &'static Section| (section, format!("{}\n{{}}\n", section.header));
    let pin = "[gpio.pins.p]\nline = 1\n";
    let mut files: Vec<_> = [&DEVICE, &INBOX, &REPORT, &ACTIONS, &TWIN, &ALLOW, &METRICS, &GPIO]
        .into_iter()
        .map(with_header)
        .collect();
    files.extend([
        (&PIN, format!("{pin}{{}}\n")),
        (&DISCONNECTED, format!("{pin}on_disconnect = {{ {{}} }}\n")),
        (&RULE, rule("do = [ { run = [\"/bin/true\"] } ]\n{}")),
        (&STEPS, rule("do = [ { {}, run = [\"/bin/true\"] } ]")),
        (
            &STEPS,
            rule("do = [ { {}, gpio = \"p\", set = \"on\" }, { {}, gpio = \"p\", pulse = \"1s\" } ]") + pin,
        ),
        (&STEPS, rule("do = [ { {}, gpio = \"p\", blink = { times = 1, period = \"1s\" } } ]") + pin),
        (&TEST, "[[test]]\nmessage = \"\"\n{}\n".to_owned()),
        (&WAVE, rule("do = [ { gpio = \"p\", blink = { {} } } ]") + pin),
    ]);
    files
}

/// The keys that a parser lists in its problem about an unknown key.
fn offered(text: &str) -> BTreeSet<String> {
    let inspection = inspect(&text.replace("{}", "zzz = 1"));
    let report = format!("{}{}", inspection.report, read_tests(&inspection).1);
    let lists = report.split("(its keys are ").skip(1).filter_map(|rest| rest.split(')').next());
    lists.flat_map(|list| list.split(", ")).map(str::to_owned).collect()
}

#[test]
fn the_reference_has_the_keys_that_the_parsers_offer() {
    for section in [
        &DEVICE,
        &INBOX,
        &REPORT,
        &ACTIONS,
        &TWIN,
        &ALLOW,
        &METRICS,
        &GPIO,
        &PIN,
        &DISCONNECTED,
        &RULE,
        &STEPS,
        &WAVE,
        &TEST,
    ] {
        let described: BTreeSet<_> = section.keys.iter().map(|key| key.name().to_owned()).collect();
        let files = files();
        let texts = files.iter().filter(|(of, _)| of.header == section.header).map(|(_, text)| text);
        let found: BTreeSet<_> = texts.flat_map(|text| offered(text)).collect();
        assert_eq!(found, described, "{}", section.header);
    }
}

#[test]
fn the_schema_has_the_tables_that_the_parser_offers_at_the_top() {
    let schema = crate::config::schema::schema();
    let described: BTreeSet<_> =
        schema["properties"].as_object().expect("properties").keys().cloned().collect();
    assert_eq!(offered("{}"), described);
}

#[test]
fn a_default_is_what_an_absent_key_means() {
    let meaning = |text: &str| {
        let it = inspect(text);
        format!(
            "{:#?}",
            (
                (it.token_lifetime, it.transport, it.route, it.gpio, it.rules, it.twin),
                (it.inbox, it.metrics, it.max_children, it.reports, it.unmatched),
            )
        )
    };
    let mut tried = 0;
    for (section, text) in files().into_iter().chain([(&TOP, "{}\n".to_owned())]) {
        for key in section.keys {
            let Absent::Means(default) = key.absent() else { continue };
            let value = match key.shape() {
                Shape::Whole(..) => default.to_owned(),
                _ => format!("\"{default}\""),
            };
            let [without, with] =
                [String::new(), format!("{} = {value}", key.name())].map(|line| text.replace("{}", &line));
            let report = inspect(&with).report.to_string();
            assert!(!report.contains(key.name()) || key.name() == "backoff", "{report}");
            assert_eq!(meaning(&with), meaning(&without), "{} {}", section.header, key.name());
            tried += 1;
        }
    }
    assert!(tried >= 20, "only {tried} defaults");
}
