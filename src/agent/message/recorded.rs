//! What the inbox reports: it has recorded something, or it cannot.
//!
//! Owns: what follows from each answer of the inbox. Must not know: files.

use crate::inbox::{News, Written};

use super::lanes::ActionId;
use super::{act, arrive, calls, end};
use crate::agent::desk::Desk;
use crate::agent::recovery;
use crate::agent::requests::Requests;

/// Handles what the inbox reports.
pub(crate) fn reported(desk: &mut Desk, requests: &mut Requests, news: News) {
    match news {
        News::Opened(opened) => {
            // The socket is in the inbox's directory, which exists now.
            requests.open(&desk.rules.config().inbox.socket);
            recovery::recover(desk, *opened);
        }
        News::Done { answers, counts } => {
            desk.watch.board.counts = counts;
            for answer in starts_first(answers) {
                recorded(desk, requests, answer);
            }
            desk.reports.totals(&desk.watch.board.counts.totals);
        }
        News::Trouble { sentence } => {
            calls::turn_callers_away(desk, &sentence);
            desk.watch.board.trouble = Some(sentence);
            desk.tell_systemd();
        }
        News::Well => {
            desk.watch.board.trouble = None;
            desk.tell_systemd();
        }
    }
}

/// Puts actions that may begin before the rest, because their programs load while the rest is handled. If a client of
/// the control socket has changed something, the order stays, because that may be about the same message.
fn starts_first(mut answers: Vec<Written>) -> Vec<Written> {
    if !answers.iter().any(|answer| matches!(answer, Written::Reply { .. })) {
        answers.sort_by_key(|answer| !matches!(answer, Written::Started(_)));
    }
    answers
}

/// The inbox has done something, and it is on disk.
pub(crate) fn recorded(desk: &mut Desk, requests: &mut Requests, answer: Written) {
    match answer {
        Written::Accepted { ticket, verdict } => arrive::verdict(desk, ActionId(ticket), verdict),
        Written::Started(number) => act::start_recorded(desk, number),
        Written::Ended(number) => end::ended(desk, number),
        Written::Again | Written::Confirmed | Written::ReportsDone => {}
        Written::Origin(left) => recovery::only_here(desk, left),
        Written::PinsOn => {
            let now = desk.now();
            desk.pins_noted.recorded(&desk.machine, &mut desk.inbox, now);
        }
        Written::Reports(reports) => desk.reports.fetched(reports),
        Written::Reply { ticket, reply } => requests.answered(desk, ticket, *reply),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inbox::{Number, Reply};

    #[test]
    fn an_action_begins_before_the_end_of_the_one_before_it_is_settled() {
        let answers = || vec![Written::Again, Written::Ended(Number(1)), Written::Started(Number(2))];
        let sorted = starts_first(answers());
        assert!(
            matches!(sorted[..], [Written::Started(Number(2)), Written::Again, Written::Ended(Number(1))]),
            "{sorted:?}"
        );
        let reply = Written::Reply { ticket: 1, reply: Box::new(Reply::Refused("no".to_owned())) };
        let kept = starts_first(std::iter::once(reply).chain(answers()).collect());
        assert!(matches!(kept[..], [Written::Reply { .. }, _, _, Written::Started(_)]), "{kept:?}");
    }
}
