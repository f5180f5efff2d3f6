//! c2d-agent.toml(5): the manual page of the configuration.
//!
//! Owns: the page. Must not know: which keys there are.

use crate::config::reference::{ALL, Described, Section, without_links};

use super::escaped;

/// The page's name, and that of its file.
pub(super) const FILE: &str = "c2d-agent.toml.5";

const BEGIN: &str = r#".SH NAME
c2d\-agent.toml \- the configuration of c2d\-agent
.SH SYNOPSIS
.I /etc/c2d\-agent/config.toml
.br
.I /etc/c2d\-agent/config.d/*.toml
.SH DESCRIPTION
The configuration is TOML. Relative paths are taken from the directory of the main file. Unknown keys are refused.
.B c2d\-agent check
shows all problems at once, and
.B c2d\-agent check \-\-message
shows what a message would do.
.PP
The files in
.I config.d
are read after the main file, in the order of their names. Tables are merged key by key, [[rule]] adds to the rules before it, and
another value replaces the earlier one.
"#;

const END: &str = r#".SH EXAMPLE
.nf
[device]
connection_string_file = "device.connection\-string"

[gpio.pins.pump]
line = 17
max_on = "10m"

[[rule]]
name = "pump"
when = { action = "pump", state = { one_of = ["on", "off"] } }
do = [ { gpio = "pump", set = "{state}" } ]
.fi
.SH SEE ALSO
.BR c2d\-agent\-check (1),
.BR c2d\-agent\-init (1),
.BR c2d\-agent\-run (1)
.PP
/usr/share/doc/c2d\-agent/docs explains rules, and has recipes.
"#;

/// The page in roff.
pub(super) fn page() -> String {
    let title = concat!(".TH c2d\\-agent.toml 5 \"\" \"c2d-agent ", env!("CARGO_PKG_VERSION"), "\"\n");
    let sections = ALL.iter().map(|section| of_section(section));
    [title.to_owned(), BEGIN.to_owned()].into_iter().chain(sections).chain([END.to_owned()]).collect()
}

fn of_section(section: &Section) -> String {
    let keys = section.keys.iter().map(|key| of_key(*key));
    format!(".SH {}\n{}.\n{}", escaped(section.header), upper(section.about), keys.collect::<String>())
}

fn of_key(key: &dyn Described) -> String {
    let (takes, about) = (upper(&marked(&key.takes_in_full())), upper(&marked(key.about())));
    format!(".TP\n.B {}\n{takes}.\n{about}.\n", escaped(key.name()))
}

/// Markdown in roff: text between backticks becomes bold.
fn marked(markdown: &str) -> String {
    let parts = without_links(markdown);
    let parts = parts.split('`').enumerate();
    parts
        .map(|(at, part)| if at % 2 == 1 { format!(r"\fB{}\fR", escaped(part)) } else { escaped(part) })
        .collect()
}

/// Begins a sentence in upper case; a mark at the beginning stays as it is.
fn upper(text: &str) -> String {
    let mut letters = text.chars();
    letters.next().map_or(String::new(), |first| first.to_uppercase().chain(letters).collect())
}
