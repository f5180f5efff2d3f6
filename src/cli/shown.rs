//! How times, durations, sizes and foreign text are shown to people, and how results are written to standard output.
//!
//! Owns: the wording of values, aligned lines, lines of JSON, a pipe that closes early. Must not know: what the values
//! mean.

use std::io::{self, BufWriter, IsTerminal as _, StdoutLock, Write as _};
use std::time::{Duration, SystemTime};

use anyhow::Context as _;
use serde::Serialize;

use crate::message::format_time;

/// The least width of output and the greatest width of sentences, whatever the terminal has.
const NARROWEST: usize = 80;
const WIDEST: usize = 120;

/// Standard output. It is no error if the reader ends early (`| head`): the rest is dropped.
pub(super) struct Output {
    out: BufWriter<StdoutLock<'static>>,
    closed: bool,
}

impl Output {
    pub(super) fn new() -> Self {
        Self { out: BufWriter::new(io::stdout().lock()), closed: false }
    }

    /// Writes a line.
    ///
    /// # Errors
    /// When standard output cannot be written, unless the reader has closed it.
    pub(super) fn line(&mut self, text: &str) -> anyhow::Result<()> {
        if self.closed {
            return Ok(());
        }
        let written = writeln!(self.out, "{text}");
        self.check(written)
    }

    /// Writes an object as a line of JSON.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub(super) fn json(&mut self, object: &impl Serialize) -> anyhow::Result<()> {
        self.line(&json(object)?)
    }

    /// Whether more can be written.
    pub(super) fn is_open(&self) -> bool {
        !self.closed
    }

    /// Writes what is still buffered.
    ///
    /// # Errors
    /// As [`Output::line`].
    pub(super) fn flush(&mut self) -> anyhow::Result<()> {
        let written = self.out.flush();
        self.check(written)
    }

    fn check(&mut self, written: io::Result<()>) -> anyhow::Result<()> {
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => self.closed = true,
            written => written.context("standard output cannot be written")?,
        }
        Ok(())
    }
}

/// How wide sentences may be: as wide as the terminal, within bounds.
pub(super) fn width() -> usize {
    terminal_width().map_or(WIDEST, |columns| columns.min(WIDEST))
}

/// The width of the terminal, but at least [`NARROWEST`]. `None` when standard output is no terminal.
pub(super) fn terminal_width() -> Option<usize> {
    let stdout = io::stdout();
    let size = if stdout.is_terminal() { rustix::termios::tcgetwinsize(&stdout).ok() } else { None };
    size.map(|size| usize::from(size.ws_col).max(NARROWEST))
}

/// An object as one line of JSON, safe for a terminal.
///
/// # Errors
/// No error is known: all objects that are shown have text keys.
pub(super) fn json(object: &impl Serialize) -> anyhow::Result<String> {
    let text = serde_json::to_string(object).context("the result cannot be written as JSON")?;
    Ok(without_controls(&text))
}

/// Escapes the control characters that JSON allows in a text and that a terminal obeys; the result is still JSON.
/// Control characters between tokens become blanks (a device's own JSON is passed on as it came).
pub(super) fn without_controls(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        match c {
            '\n' | '\r' | '\t' => text.push(' '),
            c if c.is_control() => text.push_str(&format!("\\u{:04x}", u32::from(c))),
            c => text.push(c),
        }
    }
    text
}

/// Foreign text on one line, safe for a terminal.
pub(super) fn plain(text: &str) -> String {
    text.chars().fold(String::with_capacity(text.len()), |mut plain, c| {
        match c {
            ' '..='~' => plain.push(c),
            c => plain.extend(c.escape_debug()),
        }
        plain
    })
}

/// Foreign text with its own lines, safe for a terminal.
pub(super) fn plain_lines(text: &str) -> impl Iterator<Item = String> {
    text.lines().map(|line| plain(line).replace("\\t", "    "))
}

/// The text as one word of a shell, safe for a terminal.
pub(super) fn shell(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "/._-:@%+=,".contains(c);
    if !text.is_empty() && text.chars().all(is_plain) {
        return text.to_owned();
    }
    if text.chars().any(char::is_control) {
        let escaped = |c: char| match c {
            '\'' | '\\' => format!("\\{c}"),
            c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
            c => c.to_string(),
        };
        return format!("$'{}'", text.chars().map(escaped).collect::<String>());
    }
    format!("'{}'", text.replace('\'', "'\\''"))
}

/// At most `width` characters of a text, with … if the text was cut.
pub(super) fn shorten(text: &str, width: usize) -> String {
    match text.char_indices().nth(width) {
        None => text.to_owned(),
        Some(_) => text.chars().take(width.saturating_sub(1)).chain(['…']).collect(),
    }
}

/// A time, to the second, in UTC, without the zone; [`moment`] adds the zone. A time from a damaged file may have no date:
/// it becomes the nearest one that has.
pub(super) fn clock(time: SystemTime) -> String {
    let mut text = format_time(time).replace('T', " ");
    text.truncate("9999-12-31 23:59:59".len());
    text
}

/// A time in UTC.
pub(super) fn moment(time: SystemTime) -> String {
    format!("{} UTC", clock(time))
}

/// A time, and how far it is in the past or the future.
pub(super) fn relative(time: SystemTime, now: SystemTime) -> String {
    match now.duration_since(time) {
        Ok(past) => format!("{} ({} ago)", moment(time), span(past)),
        Err(ahead) => format!("{} (in {})", moment(time), span(ahead.duration())),
    }
}

/// A time, and how much time has passed since.
pub(super) fn since(time: SystemTime, now: SystemTime) -> String {
    format!("since {} ({})", moment(time), span(now.duration_since(time).unwrap_or_default()))
}

/// A duration in its two largest units.
pub(super) fn span(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (minutes, hours, days) = (seconds / 60, seconds / 3600, seconds / 86_400);
    match (days, hours, minutes) {
        (0, 0, 0) => format!("{seconds} s"),
        (0, 0, _) => format!("{minutes} min"),
        (0, _, _) => format!("{hours} h {} min", minutes % 60),
        _ => format!("{days} d {} h", hours % 24),
    }
}

/// How long something took.
pub(super) fn took(milliseconds: u64) -> String {
    match milliseconds {
        0..1000 => format!("{milliseconds} ms"),
        1000..60_000 => format!("{}.{} s", milliseconds / 1000, milliseconds / 100 % 10),
        _ => span(Duration::from_millis(milliseconds)),
    }
}

/// A number of bytes.
pub(super) fn size(bytes: u64) -> String {
    const UNITS: [(u64, &str); 3] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")];
    match UNITS.iter().find(|(unit, _)| bytes >= *unit) {
        Some((unit, name)) => format!("{}.{} {name}", bytes / unit, bytes % unit * 10 / unit),
        None => format!("{bytes} bytes"),
    }
}

/// Labels and values in two columns; a value that is too long continues on the next line.
pub(super) fn aligned(rows: &[(&str, String)], width: usize) -> Vec<String> {
    let indent = rows.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0) + 2;
    let mut lines = Vec::new();
    for (label, value) in rows {
        let mut label = *label;
        for part in wrapped(value, width.saturating_sub(indent)) {
            lines.push(format!("{label:indent$}{part}"));
            label = "";
        }
    }
    lines
}

/// A text in lines of at most `width` characters; a longer word gets a longer line.
pub(super) fn wrapped(text: &str, width: usize) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split(' ') {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::parse_time;

    #[test]
    fn a_word_of_a_shell_is_what_it_was_and_obeys_no_terminal() {
        for (text, word) in
            [("a/b", "a/b"), ("a b'", r"'a b'\'''"), ("\u{1b}[1m'\\é\u{9b}", r"$'\u001b[1m\'\\é\u009b'")]
        {
            assert_eq!(shell(text), word);
            let script = format!("printf %s {word}");
            let printed = std::process::Command::new("bash")
                .args(["-c", &script])
                .env("LC_ALL", "C.UTF-8")
                .output()
                .expect("bash");
            assert_eq!(printed.stdout, text.as_bytes(), "{word}");
        }
    }

    #[test]
    fn a_time_that_has_no_date_is_shown_as_the_nearest_one() {
        let epoch = SystemTime::UNIX_EPOCH;
        let far = epoch + Duration::from_secs(999_999_999_999);
        assert!(relative(far, epoch).starts_with("9999-12-31 23:59:59 UTC (in "), "{}", relative(far, epoch));
        assert_eq!(moment(epoch - Duration::from_secs(1)), "1970-01-01 00:00:00 UTC");
    }

    #[test]
    fn text_that_would_drive_a_terminal_is_escaped() {
        assert_eq!(plain("a\x1b[31m\"b\"\n\u{9b}c\u{202e}\\"), "a\\u{1b}[31m\"b\"\\n\\u{9b}c\\u{202e}\\");
        assert_eq!(plain("äöü € 漢"), "äöü € 漢");
        assert_eq!(plain_lines("a\tb\r\n\x07c").collect::<Vec<_>>(), ["a    b", "\\u{7}c"]);
        let json = serde_json::to_string("\u{1b}\u{9b}\u{7f}é").expect("JSON");
        let safe = without_controls(&json);
        assert_eq!(safe, "\"\\u001b\\u009b\\u007fé\"");
        assert_eq!(serde_json::from_str::<String>(&safe).expect("JSON"), "\u{1b}\u{9b}\u{7f}é");
        let foreign =
            serde_json::value::RawValue::from_string("{\r\n\t\"a\": \"\\n\"\n}".to_owned()).expect("JSON");
        assert_eq!(super::json(&foreign).expect("JSON"), "{   \"a\": \"\\n\" }");
    }

    #[test]
    fn times_are_absolute_and_relative() {
        let at = |text| parse_time(text).expect("a time");
        let now = at("2026-11-23T21:42:05Z");
        assert_eq!(since(at("2026-11-23T21:30:05.9Z"), now), "since 2026-11-23 21:30:05 UTC (11 min)");
        assert_eq!(relative(at("2026-11-23T21:41:53Z"), now), "2026-11-23 21:41:53 UTC (12 s ago)");
        assert_eq!(relative(at("2026-11-24T00:47:05Z"), now), "2026-11-24 00:47:05 UTC (in 3 h 5 min)");
        assert_eq!(since(at("2026-11-21T17:00:00Z"), now), "since 2026-11-21 17:00:00 UTC (2 d 4 h)");
        assert_eq!(since(at("2027-01-01T00:00:00Z"), now), "since 2027-01-01 00:00:00 UTC (0 s)");
    }

    #[test]
    fn durations_and_sizes_have_units() {
        assert_eq!([took(12), took(1250), took(125_000)], ["12 ms", "1.2 s", "2 min"]);
        assert_eq!(
            [size(0), size(1023), size(1536), size(16 << 20)],
            ["0 bytes", "1023 bytes", "1.5 KiB", "16.0 MiB"]
        );
    }

    #[test]
    fn long_values_go_on_below_themselves() {
        let rows = [("a", "one two three".to_owned()), ("label", "x".repeat(12)), ("b", String::new())];
        assert_eq!(aligned(&rows, 15), ["a      one two", "       three", "label  xxxxxxxxxxxx", "b      "]);
        assert_eq!([shorten("abc", 3), shorten("abcd", 3)], ["abc", "ab…"]);
    }
}
