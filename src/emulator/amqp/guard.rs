//! Looks at every frame of a client before the AMQP crate does: the crate decodes nested values by recursion without a
//! limit, so that a few kilobytes of lists in lists would overflow the stack and end the whole process.
//!
//! Owns: frames, the encoding of values, and how deep they may nest; messages in several frames are put together here for
//! that, and what the emulator must know of frames is noted. Must not know: what messages mean.
//! Used by: `amqp::stream`; how values are passed over by `amqp::outgoing`, too.
//!
//! Source: AMQP 1.0, 1.2 (encoding of types), 2.3.1 (frames) and 2.7.5 (transfer). What does not follow it to the letter
//! is refused as well: a length that lies here could hide from this what the crate would decode.

use std::collections::BTreeMap;

/// Largest frame; the emulator says so in its Open.
pub(super) const MAX_FRAME: u32 = 256 * 1024;

/// Largest frame of a client before and with its Open, and of SASL: the least that every peer must take, and the most that the
/// crate does. Source: AMQP 1.0, 2.4.1 and 5.3.1.
const MAX_FIRST_FRAME: u32 = 512;

/// Values in values. SDKs nest four deep; a body that is an AMQP map may go deeper.
pub(super) const MAX_DEPTH: usize = 32;

/// Messages of one connection that may be on their way in several frames at a time. An SDK sends one on a link.
const MAX_UNFINISHED: usize = 8;

/// Elements of an array that need no bytes at all, such as `true`.
const MAX_EMPTY_ELEMENTS: usize = 1024;

/// The first bytes of a protocol header, which is eight bytes long and stands where a frame would.
pub(super) const MAGIC: &[u8; 4] = b"AMQP";
const HEADER_BYTES: usize = 8;

/// Performatives by the number that describes them.
const OPEN: u64 = 0x10;
pub(super) const TRANSFER: u64 = 0x14;
const DISPOSITION: u64 = 0x15;
const DETACH: u64 = 0x16;
const END: u64 = 0x17;
/// Those of SASL; Open comes after them.
const SASL: std::ops::RangeInclusive<u64> = 0x40..=0x44;
/// Fields of a transfer, by their place in its list; the first one is a detach's, too.
const HANDLE: usize = 0;
/// Of Open.
const PEER_MAX_FRAME: usize = 2;
const IDLE_TIME_OUT: usize = 4;
/// Of a disposition.
const ROLE: usize = 0;
const FIRST: usize = 1;
const LAST: usize = 2;
const DECIDED: usize = 3;
/// Of a transfer again.
const MORE: usize = 5;
const ABORTED: usize = 9;

/// Why a connection must end.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum GuardError {
    #[error("the client sent a frame of {0} bytes")]
    FrameSize(u32),
    #[error(
        "the client sent a frame of {0} bytes before its connection was open: at most {MAX_FIRST_FRAME} then"
    )]
    FirstFrameSize(u32),
    #[error("the client sent another frame before Open")]
    NotOpen,
    #[error("the client sent a malformed frame or message")]
    Malformed,
    #[error("the client sent values that nest more than {MAX_DEPTH} deep")]
    TooDeep,
    #[error("the client began more than {MAX_UNFINISHED} messages and finished none")]
    Unfinished,
}

/// What the emulator does something about that the crate does not.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    /// The client has opened its connection. Its idle time-out is in milliseconds.
    Open { max_frame: Option<u64>, idle: Option<u64> },
    /// The receiver of deliveries has decided on them, from the first to the last.
    Decided { channel: u16, first: u32, last: u32, settled: bool },
    /// The client has ended a session.
    End { channel: u16 },
}

/// Follows the bytes of one client.
pub(super) struct Guard {
    /// Whether Open has come. Without it the crate waits for ever for a Close.
    opened: bool,
    /// The frame that is arriving.
    frame: Vec<u8>,
    /// Messages of which more frames follow, by channel and handle, at most [`MAX_UNFINISHED`]. `None`: too large, which
    /// ends the link.
    messages: BTreeMap<(u16, u32), Option<Vec<u8>>>,
    /// In order; whoever feeds it takes them.
    pub(super) seen: Vec<Seen>,
    /// No message is larger; the crate detaches a link that exceeds this.
    max_message: usize,
}

impl Guard {
    pub(super) fn new(max_message: usize) -> Self {
        Self { opened: false, frame: Vec::new(), messages: BTreeMap::new(), seen: Vec::new(), max_message }
    }

    /// Takes in what the client sent, in any pieces.
    ///
    /// # Errors
    /// As soon as a frame is complete, and before its last byte is handed on.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> Result<(), GuardError> {
        let mut bytes = bytes;
        while !bytes.is_empty() {
            let (taken, rest) = bytes.split_at(self.missing()?.min(bytes.len()));
            self.frame.extend_from_slice(taken);
            bytes = rest;
            if self.missing()? == 0 {
                let frame = std::mem::take(&mut self.frame);
                if !frame.starts_with(MAGIC) {
                    self.check(&frame)?;
                }
            }
        }
        Ok(())
    }

    /// How many bytes are missing to the end of the frame, or to the end of its length.
    fn missing(&self) -> Result<usize, GuardError> {
        let Some(length) = self.frame.first_chunk::<4>() else { return Ok(4 - self.frame.len()) };
        let whole = match u32::from_be_bytes(*length) {
            _ if length == MAGIC => HEADER_BYTES,
            length @ (8..=MAX_FRAME) if self.opened || length <= MAX_FIRST_FRAME => length as usize,
            length @ (8..=MAX_FRAME) => return Err(GuardError::FirstFrameSize(length)),
            length => return Err(GuardError::FrameSize(length)),
        };
        Ok(whole.saturating_sub(self.frame.len()))
    }

    fn check(&mut self, frame: &[u8]) -> Result<(), GuardError> {
        let [_, _, _, _, offset, _, channel @ ..] = frame.first_chunk::<8>().ok_or(GuardError::Malformed)?;
        let body = frame.get(usize::from(*offset) * 4..).filter(|_| *offset >= 2);
        let body = body.ok_or(GuardError::Malformed)?;
        if body.is_empty() {
            return Ok(());
        }
        let payload = value(body, MAX_DEPTH)?;
        let performative = body.get(..body.len() - payload.len()).unwrap_or_default();
        let channel = u16::from_be_bytes(*channel);
        let (kind, fields) = performative_fields(performative)?;
        self.opened |= kind == OPEN;
        if !self.opened && !SASL.contains(&kind) {
            return Err(GuardError::NotOpen);
        }
        match kind {
            TRANSFER => self.check_payload(channel, &Transfer::read(&fields)?, payload),
            _ if !payload.is_empty() => Err(GuardError::Malformed),
            OPEN => {
                let number = |at: usize| fields.get(at).and_then(|field| unsigned(field));
                self.seen.push(Seen::Open { max_frame: number(PEER_MAX_FRAME), idle: number(IDLE_TIME_OUT) });
                Ok(())
            }
            DISPOSITION => {
                let number = |at: usize| {
                    fields
                        .get(at)
                        .and_then(|field| unsigned(field))
                        .and_then(|number| u32::try_from(number).ok())
                };
                if let Some(first) = number(FIRST).filter(|_| flag(&fields, ROLE)) {
                    let (last, settled) = (number(LAST).unwrap_or(first), flag(&fields, DECIDED));
                    self.seen.push(Seen::Decided { channel, first, last, settled });
                }
                Ok(())
            }
            // What has arrived of a message is forgotten with its link.
            DETACH => {
                self.messages.remove(&(channel, handle(&fields)?));
                Ok(())
            }
            END => {
                self.messages.retain(|(own, _), _| *own != channel);
                self.seen.push(Seen::End { channel });
                Ok(())
            }
            _ => Ok(()),
        }
    }

    fn check_payload(&mut self, channel: u16, part: &Transfer, payload: &[u8]) -> Result<(), GuardError> {
        let link = (channel, part.handle);
        let before = self.messages.remove(&link);
        if part.aborted {
            return Ok(());
        }
        let whole = before.unwrap_or_else(|| Some(Vec::new())).and_then(|mut whole| {
            whole.extend_from_slice(payload);
            (whole.len() <= self.max_message).then_some(whole)
        });
        if part.more {
            self.messages.insert(link, whole);
            return if self.messages.len() > MAX_UNFINISHED { Err(GuardError::Unfinished) } else { Ok(()) };
        }
        let whole = whole.unwrap_or_default();
        let mut sections = whole.as_slice();
        while !sections.is_empty() {
            sections = value(sections, MAX_DEPTH)?;
        }
        Ok(())
    }
}

/// What decides which frames make one message.
pub(super) struct Transfer {
    pub(super) handle: u32,
    pub(super) more: bool,
    aborted: bool,
}

impl Transfer {
    pub(super) fn read(fields: &[&[u8]]) -> Result<Self, GuardError> {
        Ok(Self { handle: handle(fields)?, more: flag(fields, MORE), aborted: flag(fields, ABORTED) })
    }
}

fn flag(fields: &[&[u8]], at: usize) -> bool {
    matches!(fields.get(at), Some([0x41] | [0x56, 1]))
}

/// The number of a performative, and its fields.
pub(super) fn performative_fields(performative: &[u8]) -> Result<(u64, Vec<&[u8]>), GuardError> {
    let described = performative.strip_prefix(&[0]).ok_or(GuardError::Malformed)?;
    let list = value(described, MAX_DEPTH)?;
    let descriptor = described.get(..described.len() - list.len()).unwrap_or_default();
    // The descriptor could be a symbol, too; no SDK writes it so.
    Ok((unsigned(descriptor).ok_or(GuardError::Malformed)?, fields(list)?))
}

fn handle(fields: &[&[u8]]) -> Result<u32, GuardError> {
    let number = fields.get(HANDLE).and_then(|handle| unsigned(handle));
    number.and_then(|number| u32::try_from(number).ok()).ok_or(GuardError::Malformed)
}

/// The elements of a list, each with its constructor.
fn fields(list: &[u8]) -> Result<Vec<&[u8]>, GuardError> {
    match list.first() {
        Some(0x45) => Ok(Vec::new()),
        Some(0xc0 | 0xd0) => elements(list),
        _ => Err(GuardError::Malformed),
    }
}

/// The value of the first entry of a map whose key is these bytes.
pub(super) fn entry<'a>(map: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    let Some(0xc1 | 0xd1) = map.first() else { return None };
    let elements = elements(map).ok()?;
    elements.chunks_exact(2).find(|pair| pair.first() == Some(&key)).and_then(|pair| pair.last().copied())
}

fn elements(compound: &[u8]) -> Result<Vec<&[u8]>, GuardError> {
    let (code, bytes) = compound.split_first().ok_or(GuardError::Malformed)?;
    let width = length_width(*code);
    let (_size, bytes) = number(bytes, width)?;
    let (count, mut bytes) = number(bytes, width)?;
    let mut fields = Vec::new();
    for _ in 0..count {
        let rest = value(bytes, MAX_DEPTH)?;
        fields.push(bytes.get(..bytes.len() - rest.len()).unwrap_or_default());
        bytes = rest;
    }
    Ok(fields)
}

/// A ushort.
pub(super) fn ushort(value: &[u8]) -> Option<u16> {
    let [0x60, digits @ ..] = value else { return None };
    digits.try_into().ok().map(u16::from_be_bytes)
}

/// A uint or ulong in any of its encodings.
pub(super) fn unsigned(value: &[u8]) -> Option<u64> {
    match value {
        [0x43 | 0x44] => Some(0),
        [0x52 | 0x53, byte] => Some(u64::from(*byte)),
        [0x70, bytes @ ..] => Some(u64::from(u32::from_be_bytes(bytes.try_into().ok()?))),
        [0x80, bytes @ ..] => Some(u64::from_be_bytes(bytes.try_into().ok()?)),
        _ => None,
    }
}

/// Passes over one value and answers with what follows it. `depth` is how many more may stand in each other.
pub(super) fn value(bytes: &[u8], depth: usize) -> Result<&[u8], GuardError> {
    let depth = depth.checked_sub(1).ok_or(GuardError::TooDeep)?;
    let (code, rest) = bytes.split_first().ok_or(GuardError::Malformed)?;
    match code {
        0x00 => value(value(rest, depth)?, depth),
        0x40..=0x4f => Ok(rest),
        0x50..=0x9f => skip(rest, fixed_width(*code)),
        0xa0..=0xbf => variable(rest, length_width(*code)),
        0xc0..=0xdf => {
            let (mut elements, rest) = sized(rest, length_width(*code))?;
            let (count, inside) = number(elements, length_width(*code))?;
            elements = inside;
            for _ in 0..count {
                elements = value(elements, depth)?;
            }
            if elements.is_empty() { Ok(rest) } else { Err(GuardError::Malformed) }
        }
        0xe0..=0xff => {
            let (inside, rest) = sized(rest, length_width(*code))?;
            array(inside, length_width(*code))?;
            Ok(rest)
        }
        _ => Err(GuardError::Malformed),
    }
}

/// An array's count, constructor and elements. Arrays of lists, maps, arrays and described values are refused as too
/// deep: no SDK sends them.
fn array(inside: &[u8], width: usize) -> Result<(), GuardError> {
    let (count, inside) = number(inside, width)?;
    let (code, mut elements) = inside.split_first().ok_or(GuardError::Malformed)?;
    match code {
        0x40..=0x4f if count <= MAX_EMPTY_ELEMENTS => {}
        0x50..=0x9f => {
            elements = skip(elements, count.checked_mul(fixed_width(*code)).ok_or(GuardError::Malformed)?)?;
        }
        0xa0..=0xbf => {
            for _ in 0..count {
                elements = variable(elements, length_width(*code))?;
            }
        }
        0x01..=0x4f => return Err(GuardError::Malformed),
        _ => return Err(GuardError::TooDeep),
    }
    if elements.is_empty() { Ok(()) } else { Err(GuardError::Malformed) }
}

/// Bytes of a value of fixed width: 0x5_ has 1, 0x6_ 2, 0x7_ 4, 0x8_ 8, 0x9_ 16.
fn fixed_width(code: u8) -> usize {
    1 << ((code >> 4) - 5)
}

/// Bytes of a length or count: 0xA_, 0xC_ and 0xE_ have 1, 0xB_, 0xD_ and 0xF_ 4.
fn length_width(code: u8) -> usize {
    if (code >> 4).is_multiple_of(2) { 1 } else { 4 }
}

fn variable(bytes: &[u8], width: usize) -> Result<&[u8], GuardError> {
    sized(bytes, width).map(|(_, rest)| rest)
}

/// As many bytes as a length before them says, and the rest.
fn sized(bytes: &[u8], width: usize) -> Result<(&[u8], &[u8]), GuardError> {
    let (length, bytes) = number(bytes, width)?;
    bytes.split_at_checked(length).ok_or(GuardError::Malformed)
}

fn number(bytes: &[u8], width: usize) -> Result<(usize, &[u8]), GuardError> {
    let (digits, rest) = bytes.split_at_checked(width).ok_or(GuardError::Malformed)?;
    Ok((digits.iter().fold(0, |number, byte| (number << 8) | usize::from(*byte)), rest))
}

fn skip(bytes: &[u8], count: usize) -> Result<&[u8], GuardError> {
    bytes.get(count..).ok_or(GuardError::Malformed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const OPENING: &[u8] = b"\x00\x53\x10\xc0\x04\x01\xa1\x01x";

    fn frame(channel: u8, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(8 + body.len()).expect("short").to_be_bytes();
        [&length[..], &[2, 0, 0, channel], body].concat()
    }

    /// A value with `levels` lists around a null.
    fn nested(levels: usize) -> Vec<u8> {
        (0..levels).fold(vec![0x40], |inside, _| {
            let size = u32::try_from(inside.len() + 4).expect("short").to_be_bytes();
            [&[0xd0][..], &size, &[0, 0, 0, 1], &inside].concat()
        })
    }

    fn section(value: &[u8]) -> Vec<u8> {
        [&b"\x00\x53\x77"[..], value].concat()
    }

    /// A transfer on handle 1.
    fn transfer_frame(more: bool, aborted: bool, payload: &[u8]) -> Vec<u8> {
        let flag = |flag| if flag { 0x41 } else { 0x42 };
        let list = [0x52, 1, 0x43, 0x40, 0x43, 0x42, flag(more), 0x40, 0x40, 0x40, flag(aborted)];
        let size = u8::try_from(list.len() + 1).expect("short");
        frame(0, &[&[0, 0x53, 0x14, 0xc0, size, 10][..], &list, payload].concat())
    }

    fn fed(frames: &[Vec<u8>]) -> Result<(), GuardError> {
        let mut guard = Guard::new(1000);
        guard.feed(&frame(0, OPENING))?;
        frames.iter().try_for_each(|frame| guard.feed(frame))
    }

    #[test]
    fn headers_and_frames_pass_in_any_pieces() {
        let body = section(&nested(20));
        let frames = [b"AMQP\x03\x01\x00\x00".to_vec(), b"AMQP\x00\x01\x00\x00".to_vec(), frame(0, OPENING)];
        let more = [
            frame(0, b""),
            transfer_frame(true, false, &body[..50]),
            transfer_frame(false, false, &body[50..]),
        ];
        let all = [frames.concat(), more.concat()].concat();
        assert_eq!(fed(std::slice::from_ref(&all)), Ok(()));
        assert_eq!(fed(&all.iter().map(|byte| vec![*byte]).collect::<Vec<_>>()), Ok(()));
    }

    #[test]
    fn values_that_nest_too_deep_are_refused_wherever_they_stand() {
        let described = [vec![0; 40], vec![0x40; 41]].concat();
        let chain = [&b"\x00\x44"[..]; 40].concat();
        let of_lists = b"\xe0\x04\x01\xc0\x01\x00".to_vec();
        for deep in [nested(40), described, [&chain[..], b"\x40"].concat(), of_lists] {
            let performative =
                [&b"\x00\x53\x11\xd0"[..], &[0, 0, 0, 4 + deep.len() as u8], &[0, 0, 0, 1], &deep];
            if deep.len() < 250 {
                assert_eq!(fed(&[frame(0, &performative.concat())]), Err(GuardError::TooDeep), "{deep:x?}");
            }
            let message = section(&deep);
            assert_eq!(fed(&[transfer_frame(false, false, &message)]), Err(GuardError::TooDeep), "{deep:x?}");
        }
    }

    #[test]
    fn a_message_in_several_frames_is_looked_at_as_one() {
        let deep = section(&nested(40));
        let parts = [transfer_frame(true, false, &deep[..100]), transfer_frame(false, false, &deep[100..])];
        assert_eq!(fed(&parts), Err(GuardError::TooDeep));
        // What was aborted does not hide what follows.
        let swallowing = transfer_frame(true, false, b"\x00\x53\x75\xb0\x00\x0f\x00\x00");
        let abort = transfer_frame(true, true, b"");
        let detach = frame(0, b"\x00\x53\x16\xc0\x03\x01\x52\x01");
        let end = frame(0, b"\x00\x53\x17\x45");
        for forgotten in [abort, detach, end] {
            let after = [swallowing.clone(), forgotten, transfer_frame(false, false, &deep)];
            assert_eq!(fed(&after), Err(GuardError::TooDeep));
        }
    }

    #[test]
    fn messages_that_are_begun_and_never_finished_do_not_pile_up() {
        let begin = |handle| {
            frame(0, &[&b"\x00\x53\x14\xc0\x08\x06\x52"[..], &[handle], b"\x43\x40\x43\x42\x41x"].concat())
        };
        let begun: Vec<_> = (0..8).map(begin).collect();
        assert_eq!(fed(&begun), Ok(()));
        assert_eq!(fed(&[begun, vec![begin(8)]].concat()), Err(GuardError::Unfinished));
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        // The list says that it ends before its element does.
        let lying = section(&[&b"\xd0\x00\x00\x00\x04\x00\x00\x00\x01"[..], &nested(40)].concat());
        assert_eq!(fed(&[transfer_frame(false, false, &lying)]), Err(GuardError::Malformed));
        assert_eq!(fed(&[b"\x00\x00\x00\x07\x02\x00\x00\x00".to_vec()]), Err(GuardError::FrameSize(7)));
        assert_eq!(
            fed(&[b"\x7f\x00\x00\x00\x02\x00\x00\x00".to_vec()]),
            Err(GuardError::FrameSize(0x7f00_0000))
        );
        let endless = section(b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x41");
        assert_eq!(fed(&[transfer_frame(false, false, &endless)]), Err(GuardError::Malformed));
    }

    #[test]
    fn nothing_but_sasl_and_short_frames_comes_before_open() {
        let begin = frame(0, b"\x00\x53\x11\x45");
        let init = frame(0, b"\x00\x53\x41\xc0\x03\x01\xa3\x00");
        assert_eq!(Guard::new(0).feed(&[&init[..], &begin].concat()), Err(GuardError::NotOpen));
        assert_eq!(Guard::new(0).feed(&[init, frame(0, OPENING), begin].concat()), Ok(()));
        assert_eq!(Guard::new(0).feed(b"\x00\x00\x02\x00"), Ok(()));
        assert_eq!(Guard::new(0).feed(b"\x00\x00\x02\x01"), Err(GuardError::FirstFrameSize(513)));
    }

    proptest! {
        #[test]
        fn any_frame_is_taken_or_refused_without_a_panic(body in proptest::collection::vec(any::<u8>(), 0..80)) {
            let _either_is_fine = fed(&[frame(0, &body), transfer_frame(false, false, &body)]);
        }
    }
}
