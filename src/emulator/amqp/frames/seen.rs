//! The client's frames that the emulator must act on because the AMQP crate does not.
//!
//! Owns: which frames these are. Must not know: what is done about them.

use crate::amqp_frames::values::{is_true, unsigned};
use crate::amqp_frames::{DISPOSITION, END, FIRST, Frame, LAST, OPEN};

/// Fields of Open.
const HOST_NAME: usize = 1;
pub(super) const PEER_MAX_FRAME: usize = 2;
const IDLE_TIME_OUT: usize = 4;
/// More fields of a disposition.
const ROLE: usize = 0;
const DECIDED: usize = 3;

#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The client has opened its connection to this host. The idle time-out is in milliseconds.
    Open { host: Option<String>, max_frame: Option<u64>, idle: Option<u64> },
    /// The receiver has decided on the deliveries from `first` to `last`.
    Decided { channel: u16, first: u32, last: u32, settled: bool },
    /// The client has ended a session.
    End { channel: u16 },
}

impl Seen {
    pub(super) fn of(frame: &Frame<'_>) -> Option<Self> {
        let Frame { channel, kind, fields, .. } = frame;
        let long = |at: usize| fields.get(at).and_then(|field| unsigned(field));
        let number = |at: usize| long(at).and_then(|number| u32::try_from(number).ok());
        match *kind {
            OPEN => {
                let host = fields.get(HOST_NAME).and_then(|field| text(field)).map(str::to_owned);
                Some(Self::Open { host, max_frame: long(PEER_MAX_FRAME), idle: long(IDLE_TIME_OUT) })
            }
            DISPOSITION if is_true(fields.get(ROLE)) => {
                let first = number(FIRST)?;
                let (last, settled) = (number(LAST).unwrap_or(first), is_true(fields.get(DECIDED)));
                Some(Self::Decided { channel: *channel, first, last, settled })
            }
            END => Some(Self::End { channel: *channel }),
            _ => None,
        }
    }
}

/// A string in either of its encodings. The guard has checked its length.
fn text(value: &[u8]) -> Option<&str> {
    match value {
        [0xa1, _, text @ ..] | [0xb1, _, _, _, _, text @ ..] => std::str::from_utf8(text).ok(),
        _ => None,
    }
}
