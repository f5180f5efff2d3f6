//! The costliest rules that are accepted, with their costliest messages: none may block the agent's loop for long.
//!
//! The test measures the time that its thread had a processor, and the best of a few runs counts, because other programs
//! run, too. An optimized build must stay below 5 ms. A build without optimization and with all checks may take twenty times that.

use std::fmt::Write as _;

use bytes::Bytes;

use super::*;

const LIMIT: Duration = Duration::from_millis(if cfg!(debug_assertions) { 100 } else { 5 });
const MOST_BYTES: usize = 64 * 1024;

/// Rules of 100 conditions each. In each rule only the last condition does not hold.
#[derive(Default)]
struct Written {
    text: String,
    conditions: usize,
}

impl Written {
    fn add(&mut self, name: &str, test: &str) {
        if self.conditions.is_multiple_of(99) {
            self.close();
            writeln!(self.text, "[[rule]]\nname = \"{}\"\ndo = []", self.conditions).unwrap();
        }
        self.conditions += 1;
        writeln!(self.text, "when.\"{name}\" = {test}").unwrap();
    }

    /// Ends the last rule with a condition that is not met.
    fn close(&mut self) {
        if !self.text.is_empty() {
            self.text += "when.never = { present = true }\n";
        }
    }
}

fn message(bag: &str, body: &str) -> C2dMessage {
    assert!(bag.len() <= MOST_BYTES && body.len() <= MOST_BYTES, "{} {}", bag.len(), body.len());
    C2dMessage::from_bag(bag, Bytes::from(body.to_owned())).expect("a bag")
}

/// How long this thread has had a processor.
fn busy() -> Duration {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::try_from(time).expect("a time since the start of the thread")
}

/// Checks everything that the loop does with a message and the rules: the choice, the reasons for no match, and the
/// plan.
fn is_quick(what: &str, text: &str, message: &C2dMessage) {
    let inspection = inspected(text);
    assert_eq!(inspection.report.problems(), 0, "{what}: {:.500}", inspection.report.to_string());
    let rules = inspection.rules.expect("rules");
    let work = || {
        let begin = busy();
        let rule = rules.match_message(message);
        let planned = rule.map(|rule| rule.plan(message, "dev").is_ok());
        if rule.is_none() {
            std::hint::black_box(rules.why_none(message));
        }
        (busy() - begin, planned)
    };
    let (best, _) = (0..7).map(|_| work()).min().expect("a run");
    eprintln!("{what}: {best:?} of {LIMIT:?}, {:?}", work().1);
    assert!(best < LIMIT, "{what} took {best:?}");
}

#[test]
fn patterns_of_stars_on_the_longest_text_that_they_look_at() {
    // Each pattern is searched to the end of the text.
    for (one, name) in [("a", "ascii"), ("%C3%A9", "wide")] {
        let letter = if name == "ascii" { "a" } else { "é" };
        let size = if name == "ascii" { 512 } else { 256 };
        let mut written = Written::default();
        for number in 0..495 {
            let stars = format!("*{letter}").repeat(40);
            written.add(&format!("f{}", number % 99), &format!("{{ glob = \"{stars}[!{number}]*\" }}"));
        }
        written.close();
        let bag: Vec<String> = (0..99).map(|field| format!("f{field}={}", one.repeat(size))).collect();
        let message = C2dMessage::from_bag(&bag.join("&"), Bytes::new()).expect("a bag");
        is_quick(name, &written.text, &message);
    }
}

#[test]
fn rules_of_a_twin_full_of_patterns_on_one_huge_field() {
    // An attacker could send this: 28 KB of rules, and a field of 60 KB.
    let mut text = String::new();
    let mut number = 0;
    while text.len() < 28_000 {
        write!(text, "[[rule]]\nname=\"{number}\"\ndo=[]\nwhen.a.glob=\"*a*a*a*a*a*a*a*a{number}\"\n")
            .unwrap();
        number += 1;
    }
    is_quick("twin", &text, &message(&format!("a={}", "a".repeat(60_000)), ""));
}

#[test]
fn as_many_conditions_as_there_may_be_on_as_many_properties_as_there_may_be() {
    let mut written = Written::default();
    for number in 0..4950 {
        written.add(&format!("{number:x}"), "{ one_of = [\"\", \"x\"] }");
    }
    written.close();
    let bag: Vec<String> = (0..13_000).map(|number| format!("{number:x}")).collect();
    is_quick("properties", &written.text, &message(&bag.join("&"), ""));
}

#[test]
fn as_many_conditions_as_there_may_be_on_fields_of_the_costliest_json() {
    let mut written = Written::default();
    for number in 0..4950 {
        written.add(&format!("body.{number:x}"), "{ range = [0, 1e99] }");
    }
    written.close();
    let fields: Vec<String> = (0..4950).map(|number| format!("\"{number:x}\":1e9")).collect();
    is_quick("fields", &written.text, &message("", &format!("{{{}}}", fields.join(","))));
    let objects = vec!["{\"a\":0}"; 8000].join(",");
    is_quick("objects", &written.text, &message("", &format!("{{\"0\":[{objects}]}}")));
    let deep = "[".repeat(30_000) + &"]".repeat(30_000);
    is_quick("depth", &written.text, &message("", &format!("{{\"0\":{deep}}}")));
}

#[test]
fn numbers_as_long_as_they_are_read_and_longer() {
    let mut written = Written::default();
    for number in 0..4950 {
        written.add(&format!("n{}", number % 99), &format!("{{ range = [{number}, 1e99] }}"));
    }
    written.close();
    let digits = "9".repeat(64);
    let bag: Vec<String> = (0..99).map(|field| format!("n{field}={digits}")).collect();
    is_quick("digits", &written.text, &message(&bag.join("&"), ""));
    is_quick("60 KB of digits", &written.text, &message(&format!("n0={}", "9".repeat(60_000)), ""));
}

#[test]
fn lists_of_as_many_values_as_a_file_holds() {
    let mut written = Written::default();
    let values: Vec<String> = (0..2000).map(|number| format!("\"{number:05x}\"")).collect();
    for number in 0..40 {
        written.add(&format!("v{number}"), &format!("{{ one_of = [{}] }}", values.join(",")));
    }
    written.close();
    let bag: Vec<String> = (0..40).map(|number| format!("v{number}={:05x}", 1999 - number)).collect();
    is_quick("lists", &written.text, &message(&bag.join("&"), ""));
}

#[test]
fn a_rule_that_fills_in_as_many_values_as_it_may() {
    // Each message value begins with a dash, so it is searched in the list of its condition.
    let listed: Vec<String> = (0..2000).map(|number| format!("\"-{number}\"")).collect();
    let mut text = "[[rule]]\nname = \"r\"\n".to_owned();
    for number in 0..99 {
        writeln!(text, "when.v{number} = {{ one_of = [{}] }}", listed[..900].join(",")).unwrap();
    }
    let arguments: Vec<String> = (0..999).map(|number| format!("\"{{v{}}}\"", number % 99)).collect();
    writeln!(text, "do = [{{ run = [\"/bin/true\", {}] }}]", arguments.join(",")).unwrap();
    let mut bag: Vec<String> = (0..99).map(|number| format!("v{number}=-899")).collect();
    bag.extend((0..900).map(|number| format!("p{number}={}", "x".repeat(60))));
    is_quick("values", &text, &message(&bag.join("&"), ""));
    let many: Vec<String> = (0..12_000).map(|number| format!("{number:x}")).collect();
    let bag = format!("{}&{}", bag[..99].join("&"), many.join("&"));
    is_quick(
        "values, and more properties than a program gets",
        &text,
        &message(&bag[..MOST_BYTES.min(bag.len())], ""),
    );
}

#[test]
fn what_would_cost_more_is_refused_in_one_sentence() {
    let refused = |text: &str| {
        let report = report(text);
        let first = report.lines().find(|line| line.starts_with('/') && !line.contains(": warning: "));
        let first = first.unwrap_or_default();
        first.split_once(": ").map_or("", |(_, sentence)| sentence).to_owned()
    };
    let rule = |number: usize, when: &str, steps: &str| {
        format!("[[rule]]\nname = \"r{number}\"\nwhen = {{ {when} }}\ndo = [{steps}]\n")
    };
    let conditions = |count: usize, test: &str| {
        (0..count).map(|number| format!("c{number} = {test}")).collect::<Vec<_>>().join(", ")
    };
    assert_eq!(
        refused(&rule(1, &conditions(101, "1"), "")),
        "rule \"r1\" has 101 conditions, but may have at most 100: make several rules of it"
    );
    let many: String =
        (0..51).map(|number| rule(number, &conditions(100, &number.to_string()), "")).collect();
    assert_eq!(
        refused(&many),
        "with rule \"r50\" the rules have more than 5000 conditions together: use one_of in place of several \
         rules"
    );
    let globs: String = (0..6)
        .map(|number| rule(number, &conditions(100, &format!("{{ glob = \"{number}*\" }}")), ""))
        .collect();
    assert_eq!(
        refused(&globs),
        "with rule \"r5\" the rules have more than 500 globs together: use prefix or one_of in place of some"
    );
    let arguments = vec!["\"{c0}x{c0}\""; 501].join(",");
    assert_eq!(
        refused(&rule(1, "c0 = 1", &format!("{{ run = [\"/bin/true\", {arguments}] }}"))),
        "the steps of rule \"r1\" have 1002 arguments and values of messages, but may have at most 1000: let a program read them \
         from its environment or the body"
    );
    assert_eq!(
        refused(&rule(1, "c0 = 1", &vec!["{ shell = \"true\" }"; 101].join(","))),
        "rule \"r1\" has 101 steps, but may have at most 100: let one program do several of them"
    );
}

#[test]
fn as_many_rules_as_there_may_be_found_by_one_value_or_each_by_its_own() {
    let rules = |value: &dyn Fn(u32) -> String| -> String {
        let rule = |number: u32| {
            let when = format!("{}, never = {{ present = true }}", value(number));
            format!("[[rule]]\nname = \"{number}\"\ndo = []\nwhen = {{ {when} }}\n")
        };
        (0..2500).map(rule).collect()
    };
    is_quick("one value", &rules(&|_| "a = 1".to_owned()), &message("a=1", ""));
    let names: Vec<String> = (0..13_000).map(|number| format!("{number:x}")).collect();
    let own = rules(&|number| format!("\"{number:x}\" = \"\""));
    is_quick("a property each", &own, &message(&names.join("&"), ""));
    let own = rules(&|number| format!("\"body.{number:x}\" = \"1000000000\""));
    let fields: Vec<String> = (0..2500).map(|number| format!("\"{number:x}\":1e9")).collect();
    is_quick("a field each", &own, &message("", &format!("{{{}}}", fields.join(","))));
}

#[test]
fn rules_that_never_run_are_checked_about_as_fast_as_others() {
    let took = |when: &dyn Fn(usize) -> String| {
        let rule = |n| format!("[[rule]]\nname = \"{n}\"\nwhen = {}\ndo = []\n", when(n));
        let text: String = (0..4_000).map(rule).collect();
        let begin = busy();
        let inspection = inspected(&text);
        assert_eq!(inspection.report.problems(), 0);
        busy() - begin
    };
    let (others, hidden) = (took(&|n| format!("{{ a = \"{n}\" }}")), took(&|_| "\"any\"".to_owned()));
    assert!(hidden < 3 * others, "{hidden:?}, and {others:?} without");
}
