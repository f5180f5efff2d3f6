//! The bytes to one client: the AMQP crate's frames, corrected where the crate cannot do it, and the emulator's own
//! frames between them.
//!
//! Owns: where a frame ends, and the delivery tags. Must not know: links, the content of a message.
//!
//! The tag of a delivery is its lock token, a GUID in the byte order of .NET. C# turns the tag back into the token
//! (wire reference 2.5 and 4.4). The crate only has tags that count up in four bytes, so this file takes the token from
//! the message's annotations and writes it as the tag.
//!
//! The crate leaves out fields at the end that are null, as AMQP 1.0, 1.4, allows. The AMQP of azure-eventhub counts on
//! all of them (`_decode.py` and `_connection.py` of version 5.15), so each performative gets them.

use std::collections::BTreeMap;

use uuid::Uuid;

use super::answers::{self, Answers};
use crate::amqp_frames::values::{self, MAX_DEPTH, is_true};
use crate::amqp_frames::{DISPOSITION, END, MAGIC, OPEN, TRANSFER, Transfer, performative_fields};

/// The annotation that contains the lock token as text.
pub(in super::super) const LOCK_TOKEN: &str = "x-opt-lock-token";

/// An empty frame.
const EMPTY: &[u8] = b"\x00\x00\x00\x08\x02\x00\x00\x00";

const BEGIN: u64 = 0x11;

/// The performatives and how many fields each has: Open, Begin, Attach, Flow, Transfer, Disposition, Detach, End, Close.
/// Source: AMQP 1.0, 2.7.
const FIELDS: [(u64, usize); 9] = [
    (OPEN, 10),
    (BEGIN, 8),
    (0x12, 14),
    (0x13, 11),
    (TRANSFER, 11),
    (DISPOSITION, 6),
    (0x16, 3),
    (END, 1),
    (0x18, 1),
];

/// How much a correction may add to a frame: a tag, and fields that are null.
pub(super) const ROOM: u64 = 64;

const NULL: &[u8] = &[0x40];
/// Positions of fields: the first in Begin, the others in a transfer.
const REMOTE_CHANNEL: usize = 0;
const DELIVERY_ID: usize = 1;
const TAG: usize = 2;
const SETTLED: usize = 4;

/// The beginning of a tag that the crate writes.
const OWN_TAG: [u8; 2] = [0xa0, 4];

/// Frames that wait to be sent.
pub(super) struct Outgoing {
    /// The part of a frame that the crate has written so far.
    begun: Vec<u8>,
    /// Complete frames.
    pub(super) ready: Vec<u8>,
    /// The tags of messages that need several frames, by channel and handle. At most as many as links.
    tags: BTreeMap<(u16, u32), Uuid>,
    /// The largest frame that the client accepts.
    pub(super) max_frame: usize,
    answers: Answers,
}

impl Outgoing {
    pub(super) fn new(answers: Answers) -> Self {
        Self { begun: Vec::new(), ready: Vec::new(), tags: BTreeMap::new(), max_frame: usize::MAX, answers }
    }

    /// Takes bytes from the crate, in pieces of any size.
    pub(super) fn push(&mut self, bytes: &[u8]) {
        self.begun.extend_from_slice(bytes);
        let mut written = std::mem::take(&mut self.begun);
        let mut at = 0;
        while let Some(frame) = written.get(at..).and_then(whole) {
            at += frame.len();
            match self.edited(frame) {
                Some(frame) => self.ready.extend(frame),
                None => self.ready.extend_from_slice(frame),
            }
        }
        written.drain(..at);
        self.begun = written;
    }

    /// Adds an empty frame, so that the client knows that the connection is alive.
    pub(super) fn beat(&mut self) {
        self.ready.extend_from_slice(EMPTY);
    }

    /// The corrected frame; `None` if it needs no correction.
    fn edited(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let (head, body) = frame.split_first_chunk::<8>().filter(|_| !frame.starts_with(MAGIC))?;
        // The crate writes no extended headers, and frames of the SASL layer need no correction.
        let [_, _, _, _, 2, 0, channel @ ..] = head else { return None };
        let channel = u16::from_be_bytes(*channel);
        let payload = values::value(body, MAX_DEPTH).ok()?;
        let performative = body.get(..body.len() - payload.len())?;
        let (kind, mut fields) = performative_fields(performative).ok()?;
        if kind == BEGIN {
            // Remember both channels, because the client's decisions name its own channel.
            if let Some(theirs) = fields.get(REMOTE_CHANNEL).and_then(|field| values::ushort(field)) {
                self.answers.begun(theirs, channel);
            }
        }
        let tag = if kind == TRANSFER { self.tag(channel, &fields, payload) } else { None };
        if let (Some((_, tag)), Some(own)) = (&tag, fields.get_mut(TAG))
            && own.starts_with(&OWN_TAG)
        {
            *own = tag;
        }
        let (_, all) = FIELDS.iter().find(|(own, _)| *own == kind)?;
        fields.resize(fields.len().max(*all), NULL);
        let body = [&[0, 0x53, u8::try_from(kind).ok()?][..], &answers::list(&fields), payload].concat();
        let size = 8 + body.len();
        if size > self.max_frame {
            tracing::debug!("a frame of the AMQP crate has no room for a correction");
            if let Some((link, _)) = tag {
                self.tags.remove(&link);
            }
            return None;
        }
        let size = u32::try_from(size).ok()?.to_be_bytes();
        let [_, _, _, _, rest @ ..] = head;
        Some([&size[..], rest, &body].concat())
    }

    /// The tag of a message with a lock token, and its link.
    fn tag(&mut self, channel: u16, fields: &[&[u8]], payload: &[u8]) -> Option<((u16, u32), Vec<u8>)> {
        let part = Transfer::read(fields).ok()?;
        let link = (channel, part.handle);
        // Only the first frame of a message has the annotations, so its token is kept for the later frames.
        let known = self.tags.remove(&link);
        let token = known.or_else(|| lock_token(payload))?;
        if known.is_none() {
            let is_settled = is_true(fields.get(SETTLED));
            let id = fields.get(DELIVERY_ID).and_then(|id| values::unsigned(id));
            if let Some(id) = id.and_then(|id| u32::try_from(id).ok()).filter(|_| !is_settled) {
                self.answers.sent(token, channel, id);
            }
        }
        if part.more {
            self.tags.insert(link, token);
        }
        Some((link, [&[0xa0, 16][..], &token.to_bytes_le()].concat()))
    }
}

/// The first frame, if it is complete.
fn whole(bytes: &[u8]) -> Option<&[u8]> {
    let length = match bytes.first_chunk::<4>()? {
        magic if magic == MAGIC => 8,
        length => usize::try_from(u32::from_be_bytes(*length)).ok()?.max(8),
    };
    bytes.get(..length)
}

/// The token in the annotations of a message. The annotations come before the body.
fn lock_token(payload: &[u8]) -> Option<Uuid> {
    let mut sections = payload;
    loop {
        let rest = values::value(sections, MAX_DEPTH).ok()?;
        let section = sections.get(..sections.len() - rest.len())?;
        match section {
            [0, 0x53, 0x70 | 0x71, ..] => sections = rest,
            [0, 0x53, 0x72, map @ ..] => {
                let key = [&[0xa3, LOCK_TOKEN.len() as u8][..], LOCK_TOKEN.as_bytes()].concat();
                let token = values::entry(map, &key)?;
                return Uuid::try_parse_ascii(token.strip_prefix(&[0xa1, 36])?).ok();
            }
            _ => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(body: &[u8]) -> Vec<u8> {
        let size = u32::try_from(8 + body.len()).expect("short").to_be_bytes();
        [&size[..], &[2, 0, 0, 3], body].concat()
    }

    /// A transfer of delivery 5 on handle 1, with the crate's tag.
    fn transfer(more: bool, payload: &[u8]) -> Vec<u8> {
        let fields =
            [&b"\x52\x01\x52\x05\xa0\x04\x00\x00\x00\x05\x43\x42"[..], &[if more { 0x41 } else { 0x42 }]];
        let inside = fields.concat();
        let list = [&[0xc0, u8::try_from(inside.len() + 1).expect("short"), 6][..], &inside].concat();
        frame(&[b"\x00\x53\x14", &list[..], payload].concat())
    }

    fn annotated(token: &str) -> Vec<u8> {
        let key = [&[0xa3, 16][..], LOCK_TOKEN.as_bytes()].concat();
        let value = [&[0xa1, 36][..], token.as_bytes()].concat();
        let inside = [key, value].concat();
        [b"\x00\x53\x72", &[0xc1, u8::try_from(inside.len() + 1).expect("short"), 2][..], &inside].concat()
    }

    const TOKEN: &str = "00112233-4455-6677-8899-aabbccddeeff";
    /// Source: wire reference 11.
    const AS_TAG: &[u8] = b"\xa0\x10\x33\x22\x11\x00\x55\x44\x77\x66\x88\x99\xaa\xbb\xcc\xdd\xee\xff";

    #[test]
    fn the_lock_token_becomes_the_tag_of_each_frame_of_its_message() {
        let mut outgoing = Outgoing::new(Answers::default());
        let body = b"\x00\x53\x75\xa0\x01x";
        let other = transfer(false, body);
        let header = b"AMQP\x00\x01\x00\x00";
        let first = transfer(true, &[&annotated(TOKEN)[..], &body[..2]].concat());
        let all = [&header[..], &first, &transfer(false, &body[2..]), &other, EMPTY].concat();
        all.chunks(7).for_each(|piece| outgoing.push(piece));
        let tags = outgoing.ready.windows(AS_TAG.len()).filter(|part| *part == AS_TAG).count();
        assert_eq!(tags, 2);
        // Each transfer also gets its last five fields.
        assert_eq!(outgoing.ready.len(), all.len() + 2 * 12 + 3 * 5);
        let tag = b"\xa0\x04\x00\x00\x00\x05\x43\x42\x42\x40\x40\x40\x40\x40";
        let end = [&tag[..], body, EMPTY].concat();
        assert!(outgoing.ready.starts_with(header) && outgoing.ready.ends_with(&end), "the tag of the crate");
    }

    #[test]
    fn each_performative_has_all_of_its_fields() {
        let mut outgoing = Outgoing::new(Answers::default());
        outgoing.push(&frame(b"\x00\x53\x18\x45"));
        outgoing.push(&frame(b"\x00\x53\x16\xc0\x04\x02\x52\x01\x41"));
        let close = frame(b"\x00\x53\x18\xc0\x02\x01\x40");
        let detach = frame(b"\x00\x53\x16\xc0\x05\x03\x52\x01\x41\x40");
        assert_eq!(outgoing.ready, [close, detach].concat());
    }

    #[test]
    fn a_frame_that_is_full_is_left_alone() {
        let mut outgoing = Outgoing::new(Answers::default());
        let full = transfer(false, &annotated(TOKEN));
        outgoing.max_frame = full.len() + 11;
        outgoing.push(&full);
        assert_eq!(outgoing.ready, full);
    }

    #[test]
    fn whoever_settles_second_is_answered_once_with_accepted_or_the_lost_lock() {
        let (answers, token) = (Answers::default(), Uuid::try_parse(TOKEN).expect("a GUID"));
        let mut outgoing = Outgoing::new(answers.clone());
        let context = std::task::Context::from_waker(std::task::Waker::noop());
        let mut answered = |settled, is_held| {
            // The session has channel 3 on this side and channel 7 on the client's.
            outgoing.push(&frame(b"\x00\x53\x11\xc0\x07\x04\x60\x00\x07\x43\x43\x43"));
            outgoing.push(&transfer(false, &annotated(TOKEN)));
            answers.decided(8, 0..=9, false);
            answers.decided(7, 5..=5, settled);
            let mut out = Vec::new();
            for _ in 0..2 {
                answers.answer(token, is_held);
            }
            answers.take(&context, &mut out);
            out
        };
        let accepted = answered(false, true);
        assert_eq!(
            accepted,
            frame(
                b"\x00\x53\x15\xc0\x12\x06\x42\x70\x00\x00\x00\x05\x70\x00\x00\x00\x05\x41\x00\x53\x24\x45\x40"
            )
        );
        let lost = String::from_utf8_lossy(&answered(false, false)).into_owned();
        assert!(lost.contains("com.microsoft:message-lock-lost"), "{lost}");
        assert_eq!(answered(true, true), Vec::<u8>::new(), "it does not wait");
    }
}
