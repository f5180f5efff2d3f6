//! Tests of the inbox on real files.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use tempfile::TempDir;

use super::*;
use crate::config::InboxSettings;
use crate::message::C2dMessage;
use crate::outcome::{OutcomeKind, OutcomeReport};

fn message(id: Option<&str>, body: &str) -> C2dMessage {
    let bag = match id {
        Some(id) => format!("%24.mid={id}&action=pump"),
        None => "action=pump".to_owned(),
    };
    C2dMessage::from_bag(&bag, Bytes::copy_from_slice(body.as_bytes())).expect("a bag")
}

fn outcome(kind: OutcomeKind) -> OutcomeReport {
    OutcomeReport {
        message_id: None,
        rule: Some("pump".into()),
        outcome: kind,
        text: kind.to_string(),
        exit_code: None,
        duration_ms: Some(3),
        attempt: 1,
        ended: crate::message::format_time(SystemTime::now()),
        output: String::new(),
        output_end: String::new(),
        output_bytes: 0,
    }
}

fn arrival(ticket: u64, message: C2dMessage, intent: Intent) -> Op {
    Op::Accept(Box::new(Arrival {
        ticket,
        message: Some(message),
        connection: 1,
        redelivered: false,
        sequence: None,
        received: SystemTime::now(),
        rule: Some("pump".into()),
        settled: Settled::AfterAction,
        intent,
    }))
}

fn settings() -> (TempDir, InboxSettings) {
    let directory = tempfile::tempdir().expect("a directory");
    let settings = InboxSettings::at(directory.path().join("inbox.journal"));
    (directory, settings)
}

mod again;
mod any_byte;
mod damage;
mod disk;
mod model;
mod origins;
mod place;
mod random;
mod room;
mod steps;

async fn done(inbox: &mut Inbox) -> (Vec<Written>, Counts) {
    loop {
        match tokio::time::timeout(Duration::from_secs(20), inbox.next()).await.expect("news") {
            News::Done { answers, counts } => return (answers, counts),
            News::Opened(_) => {}
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn a_message_is_recorded_ended_and_known_after_a_restart() {
    let (_directory, settings) = settings();
    let mut inbox = Inbox::open(&Inbox::claim(&settings), &settings, SystemTime::now);
    let start = Start { at: SystemTime::now(), retry_on_crash: false };
    inbox.submit(arrival(1, message(Some("m-1"), "on"), Intent::Start(start)));
    inbox.submit(arrival(2, message(Some("m-2"), "on"), Intent::Wait));
    let (answers, counts) = done(&mut inbox).await;
    assert!(
        matches!(answers[0], Written::Accepted { ticket: 1, verdict: Verdict::New(Number(1)) }),
        "{answers:?}"
    );
    assert_eq!((counts.records, counts.unfinished), (2, 2));
    inbox.submit(Op::End {
        number: Number(1),
        outcome: Box::new(outcome(OutcomeKind::Succeeded)),
        abandoned: false,
        report: None,
    });
    let answers = inbox.close().await;
    assert!(matches!(answers[..], [Written::Ended(Number(1))]), "{answers:?}");

    let mut inbox = Inbox::open(&Inbox::claim(&settings), &settings, SystemTime::now);
    inbox.submit(arrival(3, message(Some("m-1"), "on"), Intent::Wait));
    let News::Opened(opened) = inbox.next().await else { panic!("not opened") };
    assert_eq!(opened.unfinished.len(), 1);
    assert_eq!(opened.unfinished[0].message, message(Some("m-2"), "on"));
    assert_eq!(opened.counts.totals[&OutcomeKind::Succeeded], 1);
    let (answers, _) = done(&mut inbox).await;
    assert!(
        matches!(
            answers[0],
            Written::Accepted { ticket: 3, verdict: Verdict::Ended(Past { number: Number(1), .. }) }
        ),
        "{answers:?}"
    );
}

#[tokio::test]
async fn beginnings_of_the_last_hour_and_the_last_of_each_rule_are_known_after_a_restart() {
    let (_directory, settings) = settings();
    let mut inbox = Inbox::open(&Inbox::claim(&settings), &settings, SystemTime::now);
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    let ago = |minutes: u64| now - Duration::from_secs(minutes * 60);
    for (ticket, rule, minutes) in
        [(1, "busy", 50), (2, "seldom", 900), (3, "seldom", 800), (4, "busy", 70), (5, "busy", 1)]
    {
        let start = Start { at: ago(minutes), retry_on_crash: false };
        let Op::Accept(mut arrival) =
            arrival(ticket, message(None, &ticket.to_string()), Intent::Start(start))
        else {
            panic!("not an arrival")
        };
        arrival.rule = Some(rule.to_owned());
        inbox.submit(Op::Accept(arrival));
    }
    inbox.close().await;
    let mut inbox = Inbox::open(&Inbox::claim(&settings), &settings, || {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    });
    let News::Opened(opened) = inbox.next().await else { panic!("not opened") };
    let expected = [("seldom", 800), ("busy", 50), ("busy", 1)];
    assert_eq!(opened.starts, expected.map(|(rule, minutes)| (rule.to_owned(), ago(minutes))));
}

#[tokio::test]
async fn a_busy_rule_does_not_make_the_beginnings_of_another_forgotten() {
    let (_directory, settings) = settings();
    let mut inbox = Inbox::open(&Inbox::claim(&settings), &settings, SystemTime::now);
    let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
    for ticket in 0..1_102 {
        let rule = if ticket < 2 { "guarded" } else { "busy" };
        let start = Start { at: now - Duration::from_secs(2_000 - ticket), retry_on_crash: false };
        let Op::Accept(mut arrival) = arrival(ticket, message(None, ""), Intent::Start(start)) else {
            panic!("not an arrival")
        };
        arrival.rule = Some(rule.to_owned());
        inbox.submit(Op::Accept(arrival));
    }
    // Closing takes at most a second, which may be too short on a busy machine for so many operations.
    let mut told = 0;
    while told < 1_102 {
        told += done(&mut inbox).await.0.len();
    }
    inbox.close().await;
    let mut inbox = Inbox::open(&Inbox::claim(&settings), &settings, || {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000)
    });
    let News::Opened(opened) = inbox.next().await else { panic!("not opened") };
    let of = |rule: &str| opened.starts.iter().filter(|(own, _)| own == rule).count();
    assert_eq!((of("guarded"), of("busy")), (2, 1_000));
}
