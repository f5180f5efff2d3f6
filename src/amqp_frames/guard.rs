//! Checks every frame of a peer, and every whole message, before the AMQP crate decodes it.
//!
//! Owns: where a frame ends, which frames make one message, what may be decoded. Must not know: what happens to
//! refused input.
//!
//! Source: AMQP 1.0, 2.3.1 (frames) and 2.7.5 (transfer).

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::values::{self, Flaw, MAX_DEPTH, fields, is_true, unsigned};

/// The largest frame of a peer until its Open, which is included, and in SASL. Each side must accept this size, and
/// the crate accepts no more. Source: AMQP 1.0, 2.4.1 and 5.3.1.
const MAX_FIRST_FRAME: u32 = 512;

/// How many messages of one connection may be incomplete at a time. An SDK sends one at a time on a link.
const MAX_UNFINISHED: usize = 8;

/// Most frames of one message. A message of 1 MiB in the smallest frames that each side must accept has half as many.
const MAX_PARTS: usize = 4096;

/// Most deliveries of one disposition. The crate searches each number in turn, and has no more open deliveries.
const MAX_DECIDED: u64 = 5000;

/// The first bytes of a protocol header, which has eight bytes and stands in place of a frame.
pub(crate) const MAGIC: &[u8; 4] = b"AMQP";
const HEADER_BYTES: usize = 8;

/// Performatives by the number that describes them.
pub(crate) const OPEN: u64 = 0x10;
pub(crate) const TRANSFER: u64 = 0x14;
pub(crate) const DISPOSITION: u64 = 0x15;
const DETACH: u64 = 0x16;
pub(crate) const END: u64 = 0x17;
/// Performatives of SASL; Open comes after them.
const SASL: std::ops::RangeInclusive<u64> = 0x40..=0x44;
/// Fields of a transfer, by their place in its list. The first one is also a field of a detach.
const HANDLE: usize = 0;
const MORE: usize = 5;
const STATE: usize = 7;
const RESUME: usize = 8;
const ABORTED: usize = 9;
/// Fields of a disposition.
pub(crate) const FIRST: usize = 1;
pub(crate) const LAST: usize = 2;

/// Why a connection must end; the words before it are "the client sent" or "the hub sent".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GuardError {
    #[error("a frame of {0} bytes")]
    FrameSize(usize),
    #[error("a frame of {0} bytes before its connection was open: at most {MAX_FIRST_FRAME} then")]
    FirstFrameSize(u32),
    #[error("another frame before Open")]
    NotOpen,
    #[error("a frame that cannot be read: {0}")]
    Frame(Flaw),
    #[error("a message that cannot be read: {0}")]
    Message(Flaw),
    #[error("the beginnings of more than {MAX_UNFINISHED} messages and the end of none")]
    Unfinished,
    #[error("a message in more than {MAX_PARTS} frames")]
    Parts,
    #[error("a message to be resumed")]
    Resumed,
    #[error("a decision on more than {MAX_DECIDED} messages")]
    Decided,
}

/// The limits for input.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Limits {
    /// Bytes of a frame after Open. The peer must have got this value in this side's Open.
    pub(crate) frame: u32,
    /// Bytes of a message.
    pub(crate) message: usize,
}

/// A frame that may be handed on. A protocol header counts as one.
pub(crate) struct Frame<'a> {
    /// The whole frame.
    pub(crate) bytes: &'a [u8],
    pub(crate) channel: u16,
    /// The number of the performative; 0 for an empty frame and for a header.
    pub(crate) kind: u64,
    /// The fields of the performative.
    pub(crate) fields: Vec<&'a [u8]>,
    /// The frame without the payload after its performative.
    pub(crate) head: &'a [u8],
    pub(crate) part: MessagePart<'a>,
}

/// Which part of a message a frame is.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum MessagePart<'a> {
    /// No part, or the end of an aborted message.
    None,
    /// A part, and more parts follow.
    Begun,
    /// The last part: the whole message, or why it may not be decoded.
    Whole(Result<Cow<'a, [u8]>, Flaw>),
}

/// Follows the bytes of one peer.
pub(crate) struct Guard {
    limits: Limits,
    /// Whether Open has come. Without Open, the crate would wait for ever for a Close.
    opened: bool,
    /// Whether any frame has come.
    begun: bool,
    /// The bytes of the frame that is arriving.
    frame: Vec<u8>,
    /// Messages that are not complete, by channel and handle; at most [`MAX_UNFINISHED`].
    messages: BTreeMap<(u16, u32), UnfinishedMessage>,
}

struct UnfinishedMessage {
    /// `None` if the message is too large.
    bytes: Option<Vec<u8>>,
    parts: usize,
}

impl Guard {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { limits, opened: false, begun: false, frame: Vec::new(), messages: BTreeMap::new() }
    }

    /// Adds bytes of the peer, in pieces of any size. Each frame that may be handed on goes to `take`, which may
    /// refuse it, too.
    ///
    /// # Errors
    /// When a frame is refused: as soon as it is complete, and before its last byte is handed on.
    pub(crate) fn feed(
        &mut self,
        bytes: &[u8],
        mut take: impl FnMut(&Frame<'_>) -> Result<(), GuardError>,
    ) -> Result<(), GuardError> {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let (taken, rest) = bytes.split_at(self.missing()?.min(bytes.len()));
            self.frame.extend_from_slice(taken);
            bytes = rest;
            if self.missing()? == 0 {
                let frame = std::mem::take(&mut self.frame);
                take(&self.checked(&frame)?)?;
            }
        }
        Ok(())
    }

    /// How many bytes are missing until the end of the frame, or until the end of its length.
    fn missing(&self) -> Result<usize, GuardError> {
        let Some(length) = self.frame.first_chunk::<4>() else { return Ok(4 - self.frame.len()) };
        let whole = match u32::from_be_bytes(*length) {
            _ if length == MAGIC || self.is_another_protocol(length) => HEADER_BYTES,
            length if length < 8 || length > self.limits.frame => {
                return Err(GuardError::FrameSize(length as usize));
            }
            length if self.opened || length <= MAX_FIRST_FRAME => length as usize,
            length => return Err(GuardError::FirstFrameSize(length)),
        };
        Ok(whole.saturating_sub(self.frame.len()))
    }

    /// Whether a peer begins with text, such as `HTTP`. The text is handed on, because the crate then reports that
    /// this is not AMQP. No frame is as long as these letters would say.
    fn is_another_protocol(&self, start: &[u8; 4]) -> bool {
        !self.begun && start.iter().all(u8::is_ascii_graphic)
    }

    fn checked<'a>(&mut self, bytes: &'a [u8]) -> Result<Frame<'a>, GuardError> {
        let malformed = || GuardError::Frame(Flaw::Malformed);
        let nothing =
            Frame { bytes, channel: 0, kind: 0, fields: Vec::new(), head: bytes, part: MessagePart::None };
        let is_text = bytes.first_chunk().is_some_and(|start| self.is_another_protocol(start));
        self.begun = true;
        if is_text || bytes.starts_with(MAGIC) {
            return Ok(nothing);
        }
        // The crate accepts no extended header.
        let (start, body) = bytes.split_first_chunk::<8>().ok_or_else(malformed)?;
        let [_, _, _, _, 2, _, channel @ ..] = start else { return Err(malformed()) };
        if body.is_empty() {
            return Ok(nothing);
        }
        let payload = values::value(body, MAX_DEPTH).map_err(GuardError::Frame)?;
        let head = bytes.get(..bytes.len() - payload.len()).unwrap_or_default();
        let performative = body.get(..body.len() - payload.len()).unwrap_or_default();
        let channel = u16::from_be_bytes(*channel);
        let (kind, fields) = performative_fields(performative).map_err(GuardError::Frame)?;
        self.opened |= kind == OPEN;
        if !self.opened && !SASL.contains(&kind) {
            return Err(GuardError::NotOpen);
        }
        let part = match kind {
            TRANSFER => self.part(channel, &fields, payload)?,
            _ if !payload.is_empty() => return Err(malformed()),
            DISPOSITION if count(&fields) > MAX_DECIDED => return Err(GuardError::Decided),
            // The parts of a message are dropped when its link ends.
            DETACH => {
                self.messages.remove(&(channel, handle(&fields).map_err(GuardError::Frame)?));
                MessagePart::None
            }
            END => {
                self.messages.retain(|(own, _), _| *own != channel);
                MessagePart::None
            }
            _ => MessagePart::None,
        };
        Ok(Frame { bytes, channel, kind, fields, head, part })
    }

    fn part<'a>(
        &mut self,
        channel: u16,
        fields: &[&[u8]],
        payload: &'a [u8],
    ) -> Result<MessagePart<'a>, GuardError> {
        let transfer = Transfer::read(fields).map_err(GuardError::Frame)?;
        let link = (channel, transfer.handle);
        let before = self.messages.remove(&link);
        // With a message in several frames, the crate forgets a part that has a state, and skips a part that resumes a
        // message it does not know. Then it would decode other bytes than those that were checked. No hub and no SDK
        // sends such parts.
        let is_split = transfer.more || before.is_some();
        if is_true(fields.get(RESUME)) || (is_split && !matches!(fields.get(STATE), None | Some([0x40]))) {
            return Err(GuardError::Resumed);
        }
        if transfer.aborted {
            return Ok(MessagePart::None);
        }
        let parts = before.as_ref().map_or(1, |before| before.parts + 1);
        if parts > MAX_PARTS {
            return Err(GuardError::Parts);
        }
        let limit = self.limits.message;
        let whole = match before {
            None => Some(Cow::Borrowed(payload)),
            Some(before) => before.bytes.map(|mut bytes| {
                bytes.extend_from_slice(payload);
                Cow::Owned(bytes)
            }),
        };
        let whole = whole.filter(|whole| whole.len() <= limit);
        if transfer.more {
            self.messages.insert(link, UnfinishedMessage { bytes: whole.map(Cow::into_owned), parts });
            return if self.messages.len() > MAX_UNFINISHED {
                Err(GuardError::Unfinished)
            } else {
                Ok(MessagePart::Begun)
            };
        }
        let whole = whole.ok_or(Flaw::TooLarge(limit));
        Ok(MessagePart::Whole(whole.and_then(|whole| check_message(&whole).map(|()| whole))))
    }
}

/// Checks that all sections of an encoded message may be decoded. A message in a message needs this, too.
pub(crate) fn check_message(message: &[u8]) -> Result<(), Flaw> {
    let mut sections = message;
    while !sections.is_empty() {
        sections = values::value(sections, MAX_DEPTH)?;
    }
    Ok(())
}

/// How many deliveries a disposition covers.
fn count(fields: &[&[u8]]) -> u64 {
    let number = |at: usize| fields.get(at).and_then(|number| unsigned(number));
    let first = number(FIRST).unwrap_or_default();
    number(LAST).map_or(1, |last| last.saturating_sub(first).saturating_add(1))
}

/// The fields that decide which frames make one message.
pub(crate) struct Transfer {
    pub(crate) handle: u32,
    pub(crate) more: bool,
    aborted: bool,
}

impl Transfer {
    pub(crate) fn read(fields: &[&[u8]]) -> Result<Self, Flaw> {
        let flag = |at: usize| is_true(fields.get(at));
        Ok(Self { handle: handle(fields)?, more: flag(MORE), aborted: flag(ABORTED) })
    }
}

/// The number of a performative, and its fields.
pub(crate) fn performative_fields(performative: &[u8]) -> Result<(u64, Vec<&[u8]>), Flaw> {
    let described = performative.strip_prefix(&[0]).ok_or(Flaw::Malformed)?;
    let list = values::value(described, MAX_DEPTH)?;
    let descriptor = described.get(..described.len() - list.len()).unwrap_or_default();
    // The descriptor could also be a symbol, but no SDK writes it so.
    Ok((unsigned(descriptor).ok_or(Flaw::Malformed)?, fields(list)?))
}

fn handle(fields: &[&[u8]]) -> Result<u32, Flaw> {
    let number = fields.get(HANDLE).and_then(|handle| unsigned(handle));
    number.and_then(|number| u32::try_from(number).ok()).ok_or(Flaw::Malformed)
}
