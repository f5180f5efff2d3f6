//! Tests of what several files say together, and of findings in their own files.

use proptest::prelude::*;

use super::*;

/// Inspects texts as `/c/config.toml` and `/c/config.d/1.toml`, `/c/config.d/2.toml` …
fn merged(texts: &[&str]) -> Inspection {
    let path = |at| match at {
        0 => "/c/config.toml".to_owned(),
        at => format!("/c/config.d/{at}.toml"),
    };
    let paths: Vec<_> = (0..texts.len()).map(|at| PathBuf::from(path(at))).collect();
    let files: Vec<_> = paths.iter().map(PathBuf::as_path).zip(texts.iter().copied()).collect();
    let env = |name: &str| (name == "C2D_DEVICE_CONNECTION_STRING").then(|| CONNECTION.to_owned());
    inspect_texts(&files, &env)
}

/// The content of a configuration as text, without places.
fn meaning(inspection: Inspection) -> String {
    match inspection.into_config() {
        Ok(config) => format!("{:#?}", bare(config)),
        Err(report) => panic!("{report}"),
    }
}

fn bare(config: Config) -> Config {
    Config { files: Vec::new(), texts: Texts::default(), warnings: Report::default(), ..config }
}

#[test]
fn tables_merge_key_by_key_however_they_are_written() {
    let whole = "[device]\ntoken_lifetime = \"2h\"\n[gpio.pins.a]\nline = 1\non_exit = \"keep\"\ninitial = \"on\"\n\
                 on_disconnect = { state = \"off\", after = \"5m\" }\n[gpio.pins.b]\nline = 2\n";
    let parts = [
        "gpio = { pins = { a = { line = 1 } } }\n",
        "device.token_lifetime = \"2h\"\n[gpio]\npins.a.on_disconnect.after = \"5m\"\n",
        "[gpio.pins.a.on_disconnect]\nstate = \"off\"\n[gpio.pins]\na.initial = \"on\"\nb = { line = 2 }\n",
        "[gpio.pins.a]\non_exit = \"keep\"\n",
    ];
    let inspection = merged(&parts);
    assert_eq!(inspection.replaced, Vec::<String>::new());
    assert_eq!(meaning(inspection), meaning(merged(&[whole])));
}

#[test]
fn commands_come_from_several_files_and_a_later_one_replaces_one_whole() {
    let inspection = merged(&[
        "[twin]\naccept = [\"rules\"]\n[allow.commands]\na = [\"/bin/true\", \"{x}\"]\nb = [\"/bin/true\"]\n",
        "[allow]\ncommands.a = [\"/bin/false\"]\n[allow.commands.c]\n",
        "[allow]\ncommands = { c = [\"/bin/true\"] }\n",
    ]);
    assert!(
        inspection.report.to_string().contains("[allow.commands] c is of type array here"),
        "{}",
        inspection.report
    );
    let inspection = merged(&[
        "[twin]\naccept = [\"rules\"]\n[allow.commands]\na = [\"/bin/true\", \"{x}\"]\nb = [\"/bin/true\"]\n",
        "[allow]\ncommands.a = [\"/bin/false\"]\n",
        "[allow]\ncommands = { c = [\"/bin/true\"] }\n",
    ]);
    let places = "/c/config.d/1.toml:2:10 replaces /c/config.toml:4:1: [allow.commands] a";
    assert_eq!(inspection.replaced, [places]);
    let twin = inspection.into_config().unwrap_or_else(|report| panic!("{report}")).twin;
    assert_eq!(twin.commands().collect::<Vec<_>>(), ["a", "b", "c"]);
    assert_eq!(twin.programs().collect::<Vec<_>>(), ["/bin/false", "/bin/true", "/bin/true"]);
}

#[test]
fn single_values_and_lists_are_replaced_and_both_places_are_told() {
    let main = "[gpio]\ninterlock = [[\"a\", \"b\"]]\n[gpio.pins]\na.line = 1\nb.line = 2\nc.line = 3\n[report]\noutcomes = \"none\"\n";
    let inspection = merged(&[
        main,
        "[gpio]\ninterlock = [[\"b\", \"c\"]]\npins.a.line = \"GPIO1\"\n",
        "\n[report]\noutcomes = [\"twin\"]\n[gpio.pins.a]\n  line = 4\n",
    ]);
    assert_eq!(
        inspection.replaced,
        [
            "/c/config.d/1.toml:2:1 replaces /c/config.toml:2:1: [gpio] interlock",
            "/c/config.d/1.toml:3:8 replaces /c/config.toml:4:3: [gpio.pins.a] line",
            "/c/config.d/2.toml:5:3 replaces /c/config.d/1.toml:3:8: [gpio.pins.a] line",
            "/c/config.d/2.toml:3:1 replaces /c/config.toml:8:1: [report] outcomes",
        ]
    );
    let config = inspection.into_config().expect("valid");
    assert_eq!(config.gpio.interlocks, [["b", "c"]]);
    assert_eq!(config.gpio.pins["a"].line, LineName::Number(4));
    assert_eq!(config.reports, ReportTo { telemetry: false, twin: true });
}

#[test]
fn rules_are_appended_however_they_are_written() {
    let rule = |name: &str| format!("[[rule]]\nname = \"{name}\"\nwhen = {{ a = \"{name}\" }}\ndo = []\n");
    let inline = "rule = [{ name = \"c\", when = { a = \"c\" }, do = [] }]\n";
    let inspection = merged(&[&rule("b"), inline, "rule = []\n", &rule("a")]);
    assert_eq!(inspection.replaced, Vec::<String>::new());
    let rules = inspection.rules.expect("rules");
    assert_eq!(rules.iter().map(|rule| rule.name()).collect::<Vec<_>>(), ["b", "c", "a"]);
}

#[test]
fn a_list_of_rules_that_is_none_in_any_file_is_one_problem() {
    let inspection = merged(&["rule = 1\n", "rule = \"a\"\n"]);
    assert_eq!(inspection.report.problems(), 1);
    let printed = inspection.report.to_string();
    assert!(
        printed.starts_with(
            "/c/config.d/1.toml:1:8: rule is a string, but must be a list of tables: write [[rule]]"
        ),
        "{printed}"
    );
}

#[test]
fn a_long_list_of_replaced_values_is_cut_off() {
    let text: String = (0..30).map(|n| format!("[gpio.pins.p{n}]\nline = {n}\n")).collect();
    let replaced = merged(&[&text, &text]).replaced;
    assert_eq!(replaced.len(), 21);
    assert_eq!(replaced[20], "… and 10 more values are replaced");
}

#[test]
fn a_key_that_looks_like_a_secret_is_not_told() {
    let text = "\"HostName=h;SharedAccessKey=c2VjcmV0\" = 1\n";
    let inspection = merged(&[text, text]);
    assert_eq!(inspection.replaced, ["/c/config.d/1.toml:1:1 replaces /c/config.toml:1:1: (a secret)"]);
    assert!(!inspection.report.to_string().contains("c2VjcmV0"));
}

#[test]
fn where_the_inbox_is_is_unknown_when_the_files_contradict_each_other() {
    let other = "[inbox]\npath = \"/a/b.journal\"\n";
    assert_eq!(merged(&["", other]).inbox, Some(InboxSettings::at("/a/b.journal")));
    assert_eq!(merged(&[other, "inbox = \"/b.journal\"\n"]).inbox, None);
    assert_eq!(merged(&[other, "[inbox\n"]).inbox, None);
}

#[test]
fn the_end_of_a_file_is_not_the_begin_of_the_next() {
    let printed = merged(&["a = ", "", "b = \"", ""]).report.to_string();
    let places: Vec<_> = printed.lines().filter(|line| line.starts_with("/c/")).collect();
    assert!(places[0].starts_with("/c/config.toml:1:5: "), "{printed}");
    assert!(places[1].starts_with("/c/config.d/2.toml:1:6: "), "{printed}");
}

/// The parts of a configuration that any file may hold: a table's header and one of its keys.
const KEYS: &[(&str, &str)] = &[
    ("[device]", "token_lifetime = \"2h\""),
    ("[inbox]", "path = \"/nowhere/i.journal\""),
    ("[inbox]", "keep = \"3h\""),
    ("[inbox]", "max_size = 2097152"),
    ("[actions]", "max_children = 2"),
    ("[report]", "outcomes = [\"twin\"]"),
    ("[gpio]", "backend = \"simulated\""),
    ("[gpio]", "interlock = [[\"a\", \"b\"]]"),
    ("[gpio.pins.a]", "line = 1"),
    ("[gpio.pins.a]", "active = \"low\""),
    ("[gpio.pins.a]", "max_on = \"1m\""),
    ("[gpio.pins.b]", "line = 2"),
    ("[gpio.pins.b.on_disconnect]", "state = \"off\""),
    ("[gpio.pins.b.on_disconnect]", "after = \"5m\""),
];

const RULES: &[&str] = &["x", "y", "z"];

const FILES: usize = 4;

/// The text of a file with the keys that `is_here` selects; keys of one table stand together.
fn text_of(is_here: impl Fn(usize) -> bool, rules: impl Fn(usize) -> bool) -> String {
    let (mut text, mut header) = (String::new(), "");
    for (_, (table, key)) in KEYS.iter().enumerate().filter(|(at, _)| is_here(*at)) {
        if *table != header {
            (text, header) = (text + table + "\n", table);
        }
        text = text + key + "\n";
    }
    for (_, name) in RULES.iter().enumerate().filter(|(at, _)| rules(*at)) {
        text += &format!("[[rule]]\nname = \"{name}\"\nwhen = {{ action = \"{name}\" }}\n");
        text += "do = [ { gpio = \"a\", set = \"on\" } ]\n";
    }
    text
}

proptest! {
    #[test]
    fn a_file_split_into_parts_means_the_same(
        homes in proptest::collection::vec(0..FILES, KEYS.len()),
        mut rule_homes in proptest::collection::vec(0..FILES, RULES.len()),
    ) {
        rule_homes.sort_unstable();
        let parts: Vec<_> =
            (0..FILES).map(|file| text_of(|at| homes[at] == file, |at| rule_homes[at] == file)).collect();
        let parts: Vec<_> = parts.iter().map(String::as_str).collect();
        let split = merged(&parts);
        prop_assert_eq!(&split.replaced, &Vec::<String>::new());
        prop_assert_eq!(meaning(split), meaning(merged(&[&text_of(|_| true, |_| true)])));
    }

    #[test]
    fn the_last_file_that_has_a_key_counts(
        copies in proptest::collection::vec(proptest::option::of(1u32..100), 1..6),
    ) {
        let texts: Vec<_> = copies
            .iter()
            .map(|line| line.map_or(String::new(), |line| format!("[gpio.pins.p]\nline = {line}\n")))
            .collect();
        let inspection = merged(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let last = copies.iter().flatten().last().map(|line| LineName::Number(*line));
        let found = inspection.gpio.pins.get("p").map(|pin| pin.line.clone());
        prop_assert_eq!(found, last);
        prop_assert_eq!(inspection.replaced.len(), copies.iter().flatten().count().saturating_sub(1));
    }

    /// A text has one meaning as the only file and as a drop-in beside files that say nothing.
    #[test]
    fn findings_keep_their_places_in_a_drop_in(
        parts in proptest::collection::vec(prop::sample::select(PARTS), 0..24),
        before in "(# [aé日]{0,5}\n){0,3}",
    ) {
        let text = parts.concat();
        let path = Path::new("/nowhere/config.toml");
        let env = |name: &str| (name == "C2D_DEVICE_CONNECTION_STRING").then(|| CONNECTION.to_owned());
        let drop_in = inspect_texts(&[(path, &before), (path, &text), (path, "# the end")], &env).report;
        prop_assert_eq!(drop_in.to_string(), report(&text));
    }

    #[test]
    fn any_mix_of_known_words_in_several_files_is_read_without_a_panic(
        files in proptest::collection::vec(proptest::collection::vec(prop::sample::select(PARTS), 0..8), 1..5)
    ) {
        let texts: Vec<_> = files.iter().map(|parts| parts.concat()).collect();
        let inspection = merged(&texts.iter().map(String::as_str).collect::<Vec<_>>());
        let problems = inspection.report.problems();
        let report = &inspection.report;
        let have_places =
            report.problem_lines().chain(report.warning_lines()).all(|line| line.starts_with("/c/config."));
        prop_assert!(have_places, "{}", report);
        prop_assert_eq!(inspection.into_config().is_ok(), problems == 0);
    }
}
