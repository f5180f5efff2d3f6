//! The message and the fields of a text log line: `message name=value name="a value"`.
//!
//! Owns: which value is quoted, and that no value can control a terminal or begin another line. Must not know: events.

use std::fmt::{self, Debug, Display};

use crate::cli::shown::plain;

use tracing_subscriber::field::{RecordFields, Visit};
use tracing_subscriber::fmt::FormatFields;
use tracing_subscriber::fmt::format::Writer;

/// Formats fields. A text is always quoted; any other value is quoted if it is more than one word.
pub(super) struct LogFields;

impl<'w> FormatFields<'w> for LogFields {
    fn format_fields<R: RecordFields>(&self, writer: Writer<'w>, fields: R) -> fmt::Result {
        let mut line = LogLine { writer, is_first: true, result: Ok(()) };
        fields.record(&mut line);
        line.result
    }
}

struct LogLine<'w> {
    writer: Writer<'w>,
    is_first: bool,
    result: fmt::Result,
}

impl LogLine<'_> {
    fn put(&mut self, name: &str, value: impl Display) -> fmt::Result {
        if !std::mem::take(&mut self.is_first) {
            self.writer.write_char(' ')?;
        }
        match name {
            "message" => write!(self.writer, "{value}"),
            name if self.writer.has_ansi_escapes() => {
                write!(self.writer, "\x1b[3m{name}\x1b[0m\x1b[2m=\x1b[0m{value}")
            }
            name => write!(self.writer, "{name}={value}"),
        }
    }
}

impl Visit for LogLine<'_> {
    fn record_str(&mut self, field: &tracing::field::Field, value: &str) {
        if self.result.is_ok() {
            self.result = self.put(field.name(), format_args!("{value:?}"));
        }
    }

    fn record_debug(&mut self, field: &tracing::field::Field, value: &dyn Debug) {
        let value = format!("{value:?}");
        let shown = match field.name() {
            // A message is a sentence, which may have quotes of its own.
            "message" => plain(&value),
            _ => one_word(value),
        };
        if self.result.is_ok() {
            self.result = self.put(field.name(), shown);
        }
    }
}

fn one_word(value: String) -> String {
    // Most words need no closer look.
    let is_simple = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/".contains(&byte);
    if !value.is_empty() && value.bytes().all(is_simple) {
        return value;
    }
    let quoted = format!("{value:?}");
    let is_plain = quoted.len() == value.len() + 2 && !value.is_empty() && !value.contains([' ', '=']);
    if is_plain { value } else { quoted }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io;
    use std::sync::{Arc, Mutex};
    use tracing_subscriber::fmt;
    use tracing_subscriber::layer::SubscriberExt as _;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Written {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().expect("bytes").extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn line(coloured: bool, log: impl FnOnce()) -> String {
        let written = Written::default();
        let writer = written.clone();
        let layer = fmt::layer().without_time().with_target(false).with_level(false).with_ansi(coloured);
        let layer = layer.fmt_fields(LogFields).with_writer(move || writer.clone());
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), log);
        let bytes = written.0.lock().expect("bytes").clone();
        String::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn a_value_that_is_not_one_word_is_quoted_and_a_text_always() {
        let log = || {
            let outcome = format_args!("failed: run /bin/x: exit code 3");
            let (path, empty, some) = ("/etc/a b", "", Some(2));
            tracing::info!(rule = "pump", %outcome, path = %path, empty = %empty, n = 1, yes = true, ?some, ok = %"timed-out", "action ended");
        };
        assert_eq!(
            line(false, log),
            "action ended rule=\"pump\" outcome=\"failed: run /bin/x: exit code 3\" path=\"/etc/a b\" empty=\"\" n=1 yes=true \
             some=Some(2) ok=timed-out\n"
        );
    }

    #[test]
    fn nothing_in_a_value_or_a_message_begins_another_line_or_drives_a_terminal() {
        let log = || {
            let foreign = "x\"\n2026 INFO\u{9b}2J\\";
            tracing::warn!(text = foreign, shown = %foreign, "the device said \"{foreign}\"");
        };
        let escaped = r#""x\"\n2026 INFO\u{9b}2J\\""#;
        let sentence = r#"the device said "x"\n2026 INFO\u{9b}2J\""#;
        assert_eq!(line(false, log), format!("{sentence} text={escaped} shown={escaped}\n"));
    }

    #[test]
    fn on_a_terminal_names_stand_out() {
        assert_eq!(line(true, || tracing::info!(n = 1, "a")), "a \u{1b}[3mn\u{1b}[0m\u{1b}[2m=\u{1b}[0m1\n");
    }
}
