//! What the back end's commands have in common on the command line: the same options, with the same help and the same
//! errors. Each command has the transports that the hub offers for it.
//!
//! Must not know: how the options are declared.

use crate::harness::{binary, run};

/// Each command with its required arguments, and its transports.
const COMMANDS: [(&str, &[&str]); 6] = [
    ("c2d-send", &["amqp", "amqp-ws"]),
    ("c2d-feedback", &["amqp", "amqp-ws", "https"]),
    ("c2d-purge", &["https"]),
    ("invoke-method --method m", &["https"]),
    ("twin get", &["https"]),
    ("monitor", &["amqp", "amqp-ws"]),
];

/// The part of the help that all these commands share.
fn shared_help(command: &str) -> String {
    let output = run(binary().args(command.split(' ')).arg("--help").env("COLUMNS", "80"));
    let text = String::from_utf8(output.stdout).expect("UTF-8");
    let begin = text.find("      --json").expect("--json");
    let end = text.find("  -h, --help").expect("--help");
    text[begin..end].to_owned()
}

#[test]
fn the_shared_options_have_one_help_text_which_differs_in_the_transports_alone() {
    let same = |command: &str| {
        let is_own =
            |line: &&str| ["- amqp", "- https", "[default: "].iter().any(|own| line.trim().starts_with(own));
        shared_help(command).lines().filter(|line| !is_own(line)).collect::<Vec<_>>().join("\n")
    };
    let [first, others @ ..] = COMMANDS.map(|(command, _)| same(command));
    others.iter().for_each(|other| assert_eq!(&first, other));
    for (command, transports) in COMMANDS {
        let help = shared_help(command);
        let (_, of_transport) = help.split_once("--transport").expect("the option");
        let listed: Vec<_> =
            of_transport.lines().filter_map(|line| line.trim().strip_prefix("- ")?.split_once(':')).collect();
        assert_eq!(listed.iter().map(|(name, _)| *name).collect::<Vec<_>>(), transports);
        assert!(help.contains(&format!("[default: {}]", transports[0])), "{help}");
        // An option with a default is not required.
        let output = run(binary().args(command.split(' ')).arg("--help"));
        let text = String::from_utf8(output.stdout).expect("UTF-8");
        let usage = text.lines().find(|line| line.starts_with("Usage:")).expect("a usage");
        assert!(!usage.contains("--transport"), "{usage}");
    }
    // An option that all share must not speak of one command.
    COMMANDS.iter().for_each(|(command, _)| assert!(!shared_help(command).contains("c2d-"), "{command}"));
    insta::assert_snapshot!(shared_help("c2d-feedback"));
}

#[test]
fn what_is_wrong_with_a_shared_option_is_said_in_the_same_words() {
    let said = |command: &str, arguments: &[&str]| {
        let output = run(binary().args(command.split(' ')).args(["--device", "dev1"]).args(arguments));
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        String::from_utf8(output.stderr).expect("UTF-8")
    };
    for (command, transports) in COMMANDS {
        let words = said(command, &["--transport", "mqtt"]);
        let has = format!(
            "error: invalid value 'mqtt' for '--transport <TRANSPORT>'\n  [possible values: {}]",
            transports.join(", ")
        );
        assert!(words.starts_with(&has), "{words}");
        let words = said(command, &["--https-port", "0"]);
        assert!(words.contains("for '--https-port <PORT>': use a number from 1 to 65535"), "{words}");
        let words = said(command, &["--connection-string-file", "/nowhere"]);
        assert!(words.starts_with("c2d-agent: cannot read the connection string from /nowhere: "), "{words}");
        let words = said(command, &[]);
        assert!(
            words.starts_with("c2d-agent: no service connection string: give --connection-string-file"),
            "{words}"
        );
    }
    for (command, lacks) in [("c2d-send", "https"), ("c2d-purge", "amqp"), ("c2d-purge", "amqp-ws")] {
        let words = said(command, &["--transport", lacks]);
        assert!(words.contains(&format!("invalid value '{lacks}'")), "{words}");
    }
}

#[test]
fn a_connection_string_where_its_file_should_be_is_refused_and_not_repeated() {
    for (command, _) in COMMANDS {
        let string = "HostName=hub.example;SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0";
        let mut sent = binary();
        sent.args(command.split(' ')).args(["--device", "dev1", "--connection-string-file", string]);
        let said = String::from_utf8_lossy(&run(&mut sent).stderr).into_owned();
        assert!(said.contains("every user of this machine can read arguments"), "{said}");
        assert!(!said.contains("c2VjcmV0"), "{said}");
    }
}
