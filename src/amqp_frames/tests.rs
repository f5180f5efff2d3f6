//! The guard with frames of every kind, and with the decoder that it protects.
//!
//! Owns: small frames and values, byte by byte. Must not know: hubs.

use super::values::Flaw;
use super::*;

mod decoder;
mod stream;

const OPENING: &[u8] = b"\x00\x53\x10\xc0\x04\x01\xa1\x01x";
const LIMITS: Limits = Limits { frame: 256 * 1024, message: 1000 };

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

/// A null with this many descriptors before it, each one a number.
fn described(levels: usize) -> Vec<u8> {
    [b"\x00\x53\x01".repeat(levels), vec![0x40]].concat()
}

fn section(value: &[u8]) -> Vec<u8> {
    [&b"\x00\x53\x77"[..], value].concat()
}

/// A transfer on handle 1, with these fields after its flag for more.
fn transfer_with(more: bool, fields: &[u8], count: u8, payload: &[u8]) -> Vec<u8> {
    let flag = if more { 0x41 } else { 0x42 };
    let list = [&[0x52, 1, 0x43, 0xa0, 1, 7, 0x43, 0x42, flag], fields].concat();
    let size = u8::try_from(list.len() + 1).expect("short");
    frame(0, &[&[0, 0x53, 0x14, 0xc0, size, 6 + count][..], &list, payload].concat())
}

fn transfer(more: bool, payload: &[u8]) -> Vec<u8> {
    transfer_with(more, &[], 0, payload)
}

fn abort(payload: &[u8]) -> Vec<u8> {
    transfer_with(true, &[0x40, 0x40, 0x40, 0x41], 4, payload)
}

/// What the last frame was for a message.
#[derive(Debug, PartialEq, Eq)]
enum Last {
    Nothing,
    Begun,
    Whole(Vec<u8>),
    Refused(Flaw),
}

fn fed(frames: &[Vec<u8>]) -> Result<Last, GuardError> {
    let mut guard = Guard::new(LIMITS);
    let mut last = Last::Nothing;
    for bytes in [vec![frame(0, OPENING)], frames.to_vec()].concat() {
        guard.feed(&bytes, |frame| {
            last = match &frame.part {
                MessagePart::None => Last::Nothing,
                MessagePart::Begun => Last::Begun,
                MessagePart::Whole(Ok(message)) => Last::Whole(message.to_vec()),
                MessagePart::Whole(Err(flaw)) => Last::Refused(*flaw),
            };
            Ok(())
        })?;
    }
    Ok(last)
}

#[test]
fn headers_and_frames_pass_in_any_pieces() {
    let body = section(&nested(10));
    let frames = [b"AMQP\x03\x01\x00\x00".to_vec(), b"AMQP\x00\x01\x00\x00".to_vec(), frame(0, OPENING)];
    let more = [frame(0, b""), transfer(true, &body[..50]), transfer(false, &body[50..])];
    let all = [frames.concat(), more.concat()].concat();
    assert_eq!(fed(std::slice::from_ref(&all)), Ok(Last::Whole(body.clone())));
    assert_eq!(fed(&all.iter().map(|byte| vec![*byte]).collect::<Vec<_>>()), Ok(Last::Whole(body)));
}

#[test]
fn values_that_nest_too_deep_are_refused_wherever_they_stand() {
    let in_descriptors = [vec![0; 40], vec![0x40; 41]].concat();
    let of_lists = b"\xe0\x04\x01\xc0\x01\x00".to_vec();
    for deep in [nested(40), in_descriptors, described(40), of_lists] {
        let performative = [&b"\x00\x53\x11\xd0"[..], &[0, 0, 0, 4 + deep.len() as u8], &[0, 0, 0, 1], &deep];
        if deep.len() < 250 {
            let expected = Err(GuardError::Frame(Flaw::TooDeep));
            assert_eq!(fed(&[frame(0, &performative.concat())]), expected, "{deep:x?}");
        }
        assert_eq!(fed(&[transfer(false, &section(&deep))]), Ok(Last::Refused(Flaw::TooDeep)), "{deep:x?}");
    }
}

#[test]
fn a_message_in_several_frames_is_looked_at_as_one() {
    let deep = section(&nested(40));
    let too_deep = Ok(Last::Refused(Flaw::TooDeep));
    assert_eq!(fed(&[transfer(true, &deep[..100]), transfer(false, &deep[100..])]), too_deep);
    // An incomplete message that was dropped does not hide the next one.
    let swallowing = transfer(true, b"\x00\x53\x75\xb0\x00\x0f\x00\x00");
    let detach = frame(0, b"\x00\x53\x16\xc0\x03\x01\x52\x01");
    let end = frame(0, b"\x00\x53\x17\x45");
    for forgotten in [abort(b""), detach, end] {
        let after = [swallowing.clone(), forgotten, transfer(false, &deep)];
        assert_eq!(fed(&after), too_deep);
    }
    // A part that was dropped is not a part of the next message.
    let whole = section(b"\x40");
    let after = [transfer(true, &whole[..2]), abort(&deep), transfer(false, &whole)];
    assert_eq!(fed(&after), Ok(Last::Whole(whole)));
}

#[test]
fn a_message_that_is_too_large_is_refused_and_nothing_of_it_is_kept() {
    let part = transfer(true, &[0; 600]);
    assert_eq!(fed(&[part.clone(), part.clone()]), Ok(Last::Begun));
    let refused = Ok(Last::Refused(Flaw::TooLarge(1000)));
    assert_eq!(fed(&[part.clone(), part, transfer(false, &[])]), refused);
    assert_eq!(fed(&[transfer(false, &[0; 1001])]), refused);
}

#[test]
fn messages_that_are_begun_and_never_finished_do_not_pile_up() {
    let begin = |handle| {
        frame(0, &[&b"\x00\x53\x14\xc0\x08\x06\x52"[..], &[handle], b"\x43\x40\x43\x42\x41x"].concat())
    };
    let begun: Vec<_> = (0..8).map(begin).collect();
    assert_eq!(fed(&begun), Ok(Last::Begun));
    assert_eq!(fed(&[begun, vec![begin(8)]].concat()), Err(GuardError::Unfinished));
    assert_eq!(fed(&vec![transfer(true, b""); 4096]), Ok(Last::Begun));
    assert_eq!(fed(&vec![transfer(true, b""); 4097]), Err(GuardError::Parts));
}

#[test]
fn a_delivery_that_is_resumed_or_cut_by_its_state_is_refused() {
    let resumed = transfer_with(true, &[0x40, 0x40, 0x41], 3, b"x");
    assert_eq!(fed(&[resumed]), Err(GuardError::Resumed));
    let received = b"\x40\x00\x53\x23\xc0\x03\x02\x43\x44";
    let cut = transfer_with(true, received, 2, b"x");
    assert_eq!(fed(std::slice::from_ref(&cut)), Err(GuardError::Resumed));
    assert_eq!(fed(&[transfer(true, b"x"), cut]), Err(GuardError::Resumed));
    let whole = section(b"\x40");
    assert_eq!(fed(&[transfer_with(false, received, 2, &whole)]), Ok(Last::Whole(whole)));
}

#[test]
fn a_decision_on_every_delivery_that_there_may_be_is_refused() {
    let disposition = |last: u32| {
        let list = [&b"\x42\x43\x70"[..], &last.to_be_bytes()].concat();
        frame(0, &[&b"\x00\x53\x15\xc0\x08\x03"[..], &list].concat())
    };
    assert_eq!(fed(&[disposition(4_999)]), Ok(Last::Nothing));
    assert_eq!(fed(&[disposition(5_000)]), Err(GuardError::Decided));
    assert_eq!(fed(&[disposition(u32::MAX)]), Err(GuardError::Decided));
}

#[test]
fn lengths_that_lie_are_refused() {
    let message = |value: &[u8]| fed(&[transfer(false, &section(value))]);
    let malformed = || Ok(Last::Refused(Flaw::Malformed));
    // The length of the list ends before its element does.
    assert_eq!(message(&[&b"\xd0\x00\x00\x00\x04\x00\x00\x00\x01"[..], &nested(40)].concat()), malformed());
    assert_eq!(message(b"\xf0\x00\x00\x00\x05\xff\xff\xff\xff\x41"), malformed());
    assert_eq!(message(b"\xd0\x00\x00\x00\x04\xff\xff\xff\xff"), malformed());
    assert_eq!(message(b"\xb0\xff\xff\xff\xff"), malformed());
    // The map has a key without a value.
    assert_eq!(message(b"\xc1\x02\x01\x40"), malformed());
    assert_eq!(message(b"\x3f"), malformed());
    assert_eq!(fed(&[b"\x00\x00\x00\x07\x02\x00\x00\x00".to_vec()]), Err(GuardError::FrameSize(7)));
    assert_eq!(fed(&[b"\x7f\x00\x00\x00\x02\x00\x00\x00".to_vec()]), Err(GuardError::FrameSize(0x7f00_0000)));
    // The header is extended, where the crate expects the performative.
    let extended = b"\x00\x00\x00\x0f\x03\x00\x00\x00\x00\x53\x17\x45\x00\x53\x17".to_vec();
    assert_eq!(fed(&[extended]), Err(GuardError::Frame(Flaw::Malformed)));
}

#[test]
fn an_empty_array_whose_constructor_the_decoder_takes_for_a_value_is_refused() {
    // The crate takes the constructor, a binary with an 8-bit length, for the second element. That element has 0xb0
    // bytes, which end within the third one. The bytes there would be decoded without a limit.
    let hidden = [vec![0; 0xaf], nested(500)].concat();
    let length = u32::try_from(hidden.len()).expect("short").to_be_bytes();
    let elements = [&b"\xe0\x02\x00\xa0"[..], b"\xb0", &length, &hidden].concat();
    let size = u32::try_from(elements.len() + 4).expect("short").to_be_bytes();
    let value = [&[0xd0][..], &size, &[0, 0, 0, 2], &elements].concat();
    assert_eq!(values::value(&value, values::MAX_DEPTH), Err(Flaw::Malformed));
}

#[test]
fn nothing_but_sasl_and_short_frames_comes_before_open() {
    let begin = frame(0, b"\x00\x53\x11\x45");
    let init = frame(0, b"\x00\x53\x41\xc0\x03\x01\xa3\x00");
    let feed = |bytes: &[u8]| Guard::new(LIMITS).feed(bytes, |_| Ok(()));
    assert_eq!(feed(&[&init[..], &begin].concat()), Err(GuardError::NotOpen));
    assert_eq!(feed(&[init, frame(0, OPENING), begin].concat()), Ok(()));
    assert_eq!(feed(b"\x00\x00\x02\x00"), Ok(()));
    assert_eq!(feed(b"\x00\x00\x02\x01"), Err(GuardError::FirstFrameSize(513)));
}
