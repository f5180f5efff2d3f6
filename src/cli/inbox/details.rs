//! Everything about one record, for `inbox show`.
//!
//! Owns: the lines of output. Must not know: where the record comes from.

use std::time::SystemTime;

use crate::cli::shown::{aligned, plain, plain_lines, relative, took};
use crate::inbox::{Record, Settled, State};
use crate::message::{C2dMessage, parse_time};
use crate::outcome::OutcomeReport;

use super::present::{RulesNow, was_unmatched};
use super::table::{state, time};

/// Most bytes of a binary body that are shown.
const HEX_BYTES: usize = 64;
const HEX_PER_LINE: usize = 16;

/// The record in aligned lines, with properties, body and output below.
pub(super) fn lines(
    record: &Record,
    message: Option<&C2dMessage>,
    rules_now: Option<&RulesNow>,
    now: SystemTime,
    width: usize,
) -> Vec<String> {
    let text = |text: Option<&String>| text.map_or("none".to_owned(), |text| plain(text));
    let mut rows = vec![
        ("number", format!("#{}", record.number.0)),
        ("message id", text(record.message_id.as_ref())),
        ("state", state_in_words(record)),
        ("rule", text(record.rule.as_ref())),
    ];
    rows.extend(rules_now.map(|rules| ("rules now", plain(&rules.sentence()))));
    rows.extend([
        ("received", relative(time(record.received_ms), now)),
        ("completed", settled(record.settled).to_owned()),
        ("attempts", attempts(record, now)),
    ]);
    if let Some(outcome) = &record.outcome {
        rows.extend(outcome_rows(outcome, now));
    }
    let mut lines = aligned(&rows, width);
    match message {
        Some(message) => lines.extend(message_lines(message)),
        None if record.state == State::Finished => {
            lines.extend(["".into(), "The message itself is not kept once it is finished.".into()]);
        }
        None => lines.extend(["".into(), "The message itself is not recorded.".into()]),
    }
    if let Some(outcome) = record.outcome.as_ref().filter(|outcome| !outcome.output.is_empty()) {
        lines.extend(["".into(), output_heading(outcome)]);
        lines.extend(plain_lines(&outcome.output).map(|line| format!("  {line}")));
        if !outcome.output_end.is_empty() {
            lines.extend(["".into(), "… and the last of them:".into()]);
            lines.extend(plain_lines(&outcome.output_end).map(|line| format!("  {line}")));
        }
    }
    lines
}

fn state_in_words(record: &Record) -> String {
    let means = match record.state {
        State::Accepted if record.attempts > 0 => "waits for its next attempt",
        State::Accepted => "waits for its turn",
        State::Started => "its action has begun",
        State::Finished => "nothing is left to do",
        State::Dead if record.abandoned => {
            "given back to the hub: when it comes again, the agent runs it again"
        }
        State::Dead if was_unmatched(record) => {
            "no rule matched it: `inbox retry` runs it once a rule does, `inbox drop` gives it up"
        }
        State::Dead => "a dead letter: `inbox retry` runs it again, `inbox drop` gives it up",
    };
    format!("{} ({means})", state(record.state))
}

fn settled(settled: Settled) -> &'static str {
    match settled {
        Settled::AfterAction => "at the hub after its action",
        Settled::OnAccept => "at the hub when it was recorded",
    }
}

fn attempts(record: &Record, now: SystemTime) -> String {
    match record.started_ms {
        Some(started) if record.attempts > 0 => {
            format!("{}, the last begun {}", record.attempts, relative(time(started), now))
        }
        _ => record.attempts.to_string(),
    }
}

fn outcome_rows(outcome: &OutcomeReport, now: SystemTime) -> Vec<(&'static str, String)> {
    let ended = match parse_time(&outcome.ended) {
        Some(ended) => relative(ended, now),
        None => plain(&outcome.ended),
    };
    let mut rows = vec![("outcome", plain(&outcome.text)), ("ended", ended)];
    rows.extend(outcome.duration_ms.map(|duration| ("took", took(duration))));
    rows.extend(outcome.exit_code.map(|code| ("exit code", code.to_string())));
    rows
}

fn message_lines(message: &C2dMessage) -> Vec<String> {
    let mut lines = Vec::new();
    for (heading, properties) in
        [("System properties", &message.system), ("Application properties", &message.application)]
    {
        if properties.is_empty() {
            continue;
        }
        lines.extend(["".into(), format!("{heading}:")]);
        lines.extend(properties.iter().map(|(name, value)| match value {
            Some(value) => format!("  {} = {}", plain(name), plain(value)),
            None => format!("  {} (without a value)", plain(name)),
        }));
    }
    lines.push(String::new());
    lines.extend(body_lines(&message.body));
    lines
}

/// A text body as it is; the beginning of a binary body in hexadecimal.
fn body_lines(body: &[u8]) -> Vec<String> {
    let length = body.len();
    match std::str::from_utf8(body) {
        Ok("") => vec!["Body: empty".into()],
        Ok(text) => {
            let heading = format!("Body, {length} bytes of text:");
            std::iter::once(heading).chain(plain_lines(text).map(|line| format!("  {line}"))).collect()
        }
        Err(_) => {
            let shown = body.get(..HEX_BYTES).unwrap_or(body);
            let heading = if shown.len() < length {
                format!("Body, {length} bytes, the first {HEX_BYTES} of them (--json has all):")
            } else {
                format!("Body, {length} bytes:")
            };
            let hex = shown.chunks(HEX_PER_LINE).map(|chunk| {
                let bytes: Vec<String> = chunk.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("  {}", bytes.join(" "))
            });
            std::iter::once(heading).chain(hex).collect()
        }
    }
}

fn output_heading(outcome: &OutcomeReport) -> String {
    let (kept, all) = (outcome.output.len() as u64, outcome.output_bytes);
    if kept < all { format!("Output, {all} bytes, the first of them:") } else { "Output:".to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::Number;
    use crate::outcome::OutcomeKind;
    use bytes::Bytes;

    fn record(state: State) -> Record {
        Record {
            number: Number(12),
            message_id: Some("m-1".into()),
            rule: Some("backup".into()),
            state,
            settled: Settled::OnAccept,
            received_ms: 1_795_469_405_000,
            attempts: 2,
            started_ms: Some(1_795_469_410_000),
            retry_on_crash: false,
            abandoned: false,
            outcome: None,
        }
    }

    fn now() -> SystemTime {
        parse_time("2026-11-23T21:42:05Z").expect("a time")
    }

    #[test]
    fn a_dead_letter_is_told_whole() {
        let mut record = record(State::Dead);
        record.outcome = Some(OutcomeReport {
            message_id: Some("m-1".into()),
            rule: Some("backup".into()),
            outcome: OutcomeKind::Failed,
            text: "failed: run /usr/local/bin/backup: exit code 3".into(),
            exit_code: Some(3),
            duration_ms: Some(1250),
            attempt: 2,
            ended: "2026-11-23T21:30:11.2500000Z".into(),
            output: "cannot open \x1b[1m/dev/sda\nbye\n".into(),
            output_end: String::new(),
            output_bytes: 5000,
        });
        let body = Bytes::from_static(b"{\"zone\": \"north\"}\n\x07");
        let message = C2dMessage::from_bag("$.mid=m-1&action=backup&flag", body).expect("a message");
        assert_eq!(
            lines(&record, Some(&message), None, now(), 80).join("\n"),
            "number      #12\n\
             message id  m-1\n\
             state       dead (a dead letter: `inbox retry` runs it again, `inbox drop` gives\n\
             \x20           it up)\n\
             rule        backup\n\
             received    2026-11-23 21:30:05 UTC (12 min ago)\n\
             completed   at the hub when it was recorded\n\
             attempts    2, the last begun 2026-11-23 21:30:10 UTC (11 min ago)\n\
             outcome     failed: run /usr/local/bin/backup: exit code 3\n\
             ended       2026-11-23 21:30:11 UTC (11 min ago)\n\
             took        1.2 s\n\
             exit code   3\n\
             \n\
             System properties:\n\
             \x20 $.mid = m-1\n\
             \n\
             Application properties:\n\
             \x20 action = backup\n\
             \x20 flag (without a value)\n\
             \n\
             Body, 19 bytes of text:\n\
             \x20 {\"zone\": \"north\"}\n\
             \x20 \\u{7}\n\
             \n\
             Output, 5000 bytes, the first of them:\n\
             \x20 cannot open \\u{1b}[1m/dev/sda\n\
             \x20 bye"
        );
    }

    #[test]
    fn a_binary_body_is_begun_in_hexadecimal() {
        let shown = body_lines(&[0xff; 70]);
        assert_eq!(shown[0], "Body, 70 bytes, the first 64 of them (--json has all):");
        assert_eq!(shown[1], format!("  {}", ["ff"; 16].join(" ")));
        assert_eq!(shown.len(), 5);
        assert_eq!(body_lines(&[0xff, 0]), ["Body, 2 bytes:", "  ff 00"]);
        assert_eq!(body_lines(b""), ["Body: empty"]);
    }

    #[test]
    fn a_message_that_is_gone_is_explained() {
        let shown = lines(&record(State::Finished), None, None, now(), 80);
        assert!(
            shown.contains(&"The message itself is not kept once it is finished.".to_owned()),
            "{shown:?}"
        );
    }
}
