//! The text of a first configuration.
//!
//! Owns: the tables and comments, and how a value is written in TOML. Must not know: where the values come from, files.

use std::path::Path;

use super::device::ROOT_FILE;
use super::duty::What;
use super::toml::quoted;
use super::{DEVICE, NewConfiguration};

/// The path where the Debian package puts the schema. An editor checks the file with it.
const SCHEMA: &str = "/usr/share/doc/c2d-agent/config.schema.json";
const PAGE: &str = "/usr/share/doc/c2d-agent/docs/src/reference/configuration.md";

/// The configuration of a plan, with this table and its lines for who signs in.
pub(super) fn configuration(plan: &NewConfiguration, (table, lines): &(&str, String)) -> String {
    let mut text = String::new();
    if Path::new(SCHEMA).exists() {
        text += &format!("#:schema {SCHEMA}\n");
    }
    text += "# The configuration of c2d-agent. After a change, run c2d-agent check.\n";
    if Path::new(PAGE).exists() {
        text += &format!("# All keys: {PAGE}\n");
    }
    text += &format!("\n{table}\n{lines}");
    if plan.ca_file.is_some() {
        if *table != DEVICE {
            text += &format!("\n{DEVICE}\n");
        }
        text +=
            &format!("# A private root to trust, beside those of the system.\nca_file = \"{ROOT_FILE}\"\n");
    }
    if !plan.is_of_the_service() {
        text += "\n# The record of each message: none is lost, and none is acted on twice.\n[inbox]\npath = \"inbox.journal\"\n";
    }
    if plan.is_simulated {
        let folder = if plan.is_of_the_service() { "/var/lib/c2d-agent/" } else { "" };
        text += &format!(
            "\n# No hardware: the states of the pins are in this file and in the log.\n[gpio]\nbackend = \"simulated\"\n\
             state_file = \"{folder}pins.json\"\n"
        );
    }
    for duty in &plan.duties {
        let name = &duty.name;
        text += &match &duty.what {
            What::Pin(line) => format!(
                r#"
# An output. On a Raspberry Pi the line is the BCM number of the pin.
[gpio.pins.{name}]
line = {line}
initial = "off"      # when the agent starts
on_exit = "off"      # when it ends
# active = "low"     # for a relay board that switches on a low level
# max_on = "10m"     # never on for longer than this

# A message with the properties action = {name} and state = on switches it on.
# off and toggle work, too.
[[rule]]
name = "{name}"
when = {{ action = "{name}", state = {{ one_of = ["on", "off", "toggle"] }} }}
do = [ {{ gpio = "{name}", set = "{{state}}" }} ]
"#
            ),
            What::Run(argv) => {
                let argv: Vec<String> = argv.iter().map(|argument| quoted(argument)).collect();
                format!(
                    r#"
# A message with the property action = {name} runs the program, without a shell.
# {{label}} in an argument would become the property label of the message.
[[rule]]
name = "{name}"
when = {{ action = "{name}" }}
do = [ {{ run = [{}] }} ]
"#,
                    argv.join(", ")
                )
            }
        };
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::config::inspect_text;

    proptest! {
        #[test]
        fn the_reader_of_the_configuration_gets_each_argument_as_it_was_given(argument in "[^\0{}]*") {
            let text = format!(
                "[[rule]]\nname = \"r\"\nwhen = \"any\"\ndo = [ {{ run = [\"/bin/true\", {}] }} ]\n",
                quoted(&argument)
            );
            let inspection = inspect_text(&text, Path::new("config.toml"), &|_| None);
            let rules = inspection.rules.expect("rules without a problem");
            let message = crate::message::C2dMessage::from_bag("", bytes::Bytes::new()).expect("an empty bag");
            let plan = rules.iter().next().expect("a rule").plan(&message, "d").expect("a plan");
            let argv = vec!["/bin/true".to_owned(), argument];
            prop_assert_eq!(plan.steps, vec![crate::rules::PlannedStep::Run { argv }]);
        }
    }
}
