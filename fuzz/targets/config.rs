//! Any text as a configuration; the rules of one that is valid meet a handful of messages. A form feed, which TOML does
//! not know, parts the main file from drop-ins. The same text as rules of the twin, beside a configuration that takes them.
//!
//! Shared by the fuzz target and by `tests/it/corpora.rs`, so that both check the same.

use std::path::{Path, PathBuf};

use bytes::Bytes;
use c2d_agent::config;
use c2d_agent::message::C2dMessage;
use c2d_agent::rules::{PlannedStep, Rules};

const DEVICE: &str =
    "HostName=hub.example;DeviceId=dev1;SharedAccessKey=c2VjcmV0IHNlY3JldCBzZWNyZXQgc2VjcmV0IHNlY3I=";

/// The key of the corpus.
const KEY: &str = "c2VjcmV0IHNlY3JldCBz";

/// Takes rules from the twin, and allows little.
const ACCEPTING: &str = "[gpio.pins]\npump = { line = 1 }\nlamp = { line = 2 }\n[twin]\naccept = [\"rules\"]\n\
                         [allow]\npins = [\"pump\"]\ncommands.run = [\"/bin/true\", \"{file}\"]\n";

/// What the twin has beside the text.
const PUMP: &str =
    "[[rule]]\nname = \"pump of the twin\"\nwhen = { a = 1 }\ndo = [{ gpio = \"pump\", set = \"on\" }]\n";

/// Bags and bodies that meet rules such as those of the corpus.
const MESSAGES: [(&str, &[u8]); 6] = [
    ("", b""),
    ("%24.mid=m-1&%24.cid=c-1&action=pump&state=on", b""),
    ("action=blink&times=3&flag&empty=", b"not JSON"),
    (
        "action=run&file=report.txt&text=-rf%20%2F&line=a%0Ab",
        b"{\"zone\": \"north\", \"level\": 7.5, \"on\": true}",
    ),
    (
        "action=run&file=-x&n=99999999999999999999&text=%24%28id%29%3B%60id%60",
        b"{\"zone\": null, \"deep\": {\"er\": [1]}}",
    ),
    ("action=caf%C3%A9&times=0&state=off&n=-1", b"\xff\xfe"),
];

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let env = |name: &str| (name == "C2D_DEVICE_CONNECTION_STRING").then(|| DEVICE.to_owned());
    let paths = ["config.toml", "config.d/1.toml", "config.d/2.toml"]
        .map(|name| Path::new("/nonexistent").join(name));
    let files: Vec<_> = paths.iter().map(PathBuf::as_path).zip(text.splitn(paths.len(), '\x0c')).collect();
    let inspection = config::inspect_texts(&files, &env);
    assert_eq!(inspection.files, paths[..files.len()]);
    let report = inspection.report.to_string();
    // A key is known by the name before it.
    if text.matches(KEY).count() == text.matches(&format!("SharedAccessKey={KEY}")).count() {
        assert!(!report.contains(KEY), "the report shows a key: {report}");
    }
    if let Some(rules) = &inspection.rules {
        meet(rules);
    }
    let problems = inspection.report.problems();
    assert_eq!(inspection.into_config().is_ok(), problems == 0, "{report}");
    of_the_twin(text);
}

/// As rules of the twin a text runs no command that is not allowed, and no shell.
fn of_the_twin(text: &str) {
    let env = |name: &str| (name == "C2D_DEVICE_CONNECTION_STRING").then(|| DEVICE.to_owned());
    let path = Path::new("/nonexistent/config.toml");
    let local = config::inspect_text(ACCEPTING, path, &env).into_config().expect("valid");
    let texts = [("a".to_owned(), PUMP.to_owned()), ("b".to_owned(), text.to_owned())].into();
    let Ok((with, _)) = local.with_twin(&config::TwinRules { version: 1, texts }) else { return };
    assert_eq!((&with.gpio, &with.identities), (&local.gpio, &local.identities));
    for rule in with.rules.iter() {
        assert!(
            rule.programs().all(|program| program == "/bin/true" && rule.has_command()) && !rule.has_shell(),
            "{}",
            rule.name()
        );
    }
    meet(&with.rules);
}

fn meet(rules: &Rules) {
    for (bag, body) in MESSAGES {
        let topic = format!("devices/dev1/messages/devicebound/{bag}");
        let message = C2dMessage::from_topic("dev1", &topic, Bytes::from_static(body)).expect("a message");
        let first = rules.iter().nth(rules.mismatches(&message).len());
        assert_eq!(rules.match_message(&message).map(|rule| rule.name()), first.map(|rule| rule.name()));
        for rule in rules.iter() {
            let Ok(plan) = rule.plan(&message, "dev1") else { continue };
            for step in &plan.steps {
                if let PlannedStep::Run { argv } = step {
                    assert!(argv[0].starts_with('/'), "{argv:?}");
                    assert!(!argv.iter().any(|argument| argument.contains('\0')), "{argv:?}");
                }
            }
            let names: Vec<_> = plan.environment.iter().map(|(name, _)| name).collect();
            assert!(names.is_sorted() && names.iter().all(|name| name.starts_with("C2D_")), "{names:?}");
            assert!(!plan.environment.iter().any(|(_, value)| value.contains('\0')));
        }
    }
}
