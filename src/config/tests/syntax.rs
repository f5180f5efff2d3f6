//! Tests of texts that are not TOML: each mistake gives one sentence that needs no knowledge of TOML.

use super::report;

/// The first line of the report on a text.
fn first(text: &str) -> String {
    report(text).lines().next().unwrap_or_default().to_owned()
}

#[test]
fn what_belongs_in_quotes_is_shown_in_quotes() {
    for (value, sentence) in [
        ("on", "5: a text needs quotes: write \"on\""),
        ("GPIO17 # the relay", "5: a text needs quotes: write \"GPIO17\""),
        ("10m", "5: a text needs quotes: write \"10m\""),
        ("0.5s", "8: a text needs quotes: write \"0.5s\""),
        ("True", "5: write true, in small letters"),
        ("", "5: a value is missing after ="),
        ("# none", "5: a value is missing after ="),
        ("017", "5: a number must not begin with 0: remove the 0"),
        ("“a”", "5: “ is not a quote in TOML: write \" or '"),
        ("`a`", "5: ` is not a quote in TOML: write \" or '"),
        ("\"a", "7: a text has no closing quote: add it on the same line"),
        ("'a\"", "8: a text has no closing quote: add it on the same line"),
        (
            "\"C:\\path\"",
            "9: \\ has a special meaning between \" and \": write \\\\, or put the text between ' and '",
        ),
        ("1 y = 2", "5: a line can have only one key and value: put the next key on a line of its own"),
        ("{ \"a\": 1 }", "10: write = between a key and its value, not :"),
        ("SharedAccessKey=c2VjcmV0", "5: a text needs quotes: write \"(a secret)\""),
    ] {
        assert_eq!(first(&format!("x = {value}\n")), format!("/nowhere/config.toml:1:{sentence}"), "{value}");
    }
}

#[test]
fn a_line_that_is_none_of_tomls_is_told_how_one_looks() {
    for (line, sentence) in [
        ("backend: \"cdev\"", "8: write = between a key and its value, not :"),
        ("; a comment", "1: this is not a key: write key = value, or begin a comment with #"),
        ("// a comment", "1: this is not a key: write key = value, or begin a comment with #"),
        ("keep_alive", "11: write = and a value after the key, such as transport = \"mqtt\""),
        ("[gpio]", "2: gpio is already in this file, in another place: combine both"),
    ] {
        let text = format!("[gpio]\n{line}\n");
        assert_eq!(first(&text), format!("/nowhere/config.toml:2:{sentence}"), "{line}");
    }
}

#[test]
fn of_each_line_one_problem_is_told() {
    let told = report("a = { \"b\": 1, \"c\": 2 }\nx : y : z\n");
    assert!(told.ends_with("2 problems"), "{told}");
}

#[test]
fn another_format_is_one_problem() {
    for (format, text) in [
        ("JSON", "\n{ \"rule\": [] }\n"),
        ("JSON", "[{ \"name\": \"a\" }]"),
        ("JSON", "[\n  { \"name\": \"a\" }\n]"),
        ("JSON", "[\n  \"a\"\n]"),
        ("YAML", "# the pump\nrule:\n  - name: a\n    when: any\n"),
        ("YAML", "---\nrule: []\n"),
        ("YAML", "backend: cdev\n"),
        ("XML", "<config></config>\n"),
    ] {
        let told = report(text);
        let sentence =
            format!("this is {format}, but a configuration must be TOML: write tables such as [device], and");
        assert!(told.contains(&sentence) && told.ends_with("\n1 problem"), "{told}");
    }
    assert!(!report("[\"gpio\"]\nbackend = cdev\n").contains("JSON"));
}
