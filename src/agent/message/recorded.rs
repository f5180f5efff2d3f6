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
            for answer in answers {
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

/// The inbox has done something, and it is on disk.
pub(crate) fn recorded(desk: &mut Desk, requests: &mut Requests, answer: Written) {
    match answer {
        Written::Accepted { ticket, verdict } => arrive::verdict(desk, ActionId(ticket), verdict),
        Written::Started(number) => act::start_recorded(desk, number),
        Written::Ended(number) => end::ended(desk, number),
        Written::Again | Written::Confirmed | Written::ReportsDone => {}
        Written::PinsOn => {
            let now = desk.now();
            desk.pins_noted.recorded(&desk.machine, &mut desk.inbox, now);
        }
        Written::Reports(reports) => desk.reports.fetched(reports),
        Written::Reply { ticket, reply } => requests.answered(desk, ticket, *reply),
    }
}
