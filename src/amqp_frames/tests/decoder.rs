//! Input that the guard accepts goes to the decoder that it protects, on a small stack: an overflow ends the test
//! program.

use std::thread;

use fe2o3_amqp::frames::amqp::FrameDecoder;
use fe2o3_amqp::types::messaging::Body;
use fe2o3_amqp::types::messaging::message::DecodeIntoMessage as _;
use fe2o3_amqp::types::primitives::Value;
use proptest::prelude::*;
use serde_amqp::read::SliceReader;
use tokio_util::codec::Decoder as _;

use super::*;

const SMALL_STACK: usize = 256 * 1024;

/// Values of every kind. Some have wrong lengths, counts and codes.
fn any_value() -> impl Strategy<Value = Vec<u8>> {
    let code = |code: u8, bytes: Vec<u8>| [&[code][..], &bytes].concat();
    let sized = |code: u8, bytes: &[u8]| {
        let length = u32::try_from(bytes.len()).expect("short");
        if (code >> 4).is_multiple_of(2) {
            [&[code, length as u8], bytes].concat()
        } else {
            [&[code][..], &length.to_be_bytes(), bytes].concat()
        }
    };
    let plain = prop_oneof![
        prop::sample::select(vec![0x40u8, 0x41, 0x42, 0x43, 0x44, 0x45]).prop_map(|code| vec![code]),
        (0x50u8..0xa0, any::<[u8; 16]>())
            .prop_map(move |(c, bytes)| code(c, bytes[..1 << ((c >> 4) - 5)].to_vec())),
        (prop::sample::select(vec![0xa0u8, 0xa1, 0xa3, 0xb0, 0xb1, 0xb3]), "[a-z]{0,6}")
            .prop_map(move |(code, text)| sized(code, text.as_bytes())),
        (
            prop::sample::select(vec![0xe0u8, 0xf0]),
            prop::sample::select(vec![0x40u8, 0x41, 0x50, 0xa0, 0xc0]),
            0u8..3
        )
            .prop_map(move |(array, code, count)| {
                let count_bytes = if array == 0xe0 { vec![count] } else { vec![0, 0, 0, count] };
                let element: &[u8] = if code < 0x50 {
                    &[]
                } else if code == 0x50 {
                    &[7]
                } else {
                    &[1, 0x40]
                };
                sized(array, &[count_bytes, vec![code], element.repeat(count.into())].concat())
            }),
    ];
    plain.prop_recursive(40, 200, 4, move |inside| {
        let compound = prop::sample::select(vec![0xc0u8, 0xc1, 0xd0, 0xd1]);
        prop_oneof![
            (compound, prop::collection::vec(inside.clone(), 0..4)).prop_filter_map(
                "too long",
                move |(code, all)| {
                    let count = u8::try_from(all.len()).expect("few");
                    let bytes = all.concat();
                    if (code >> 4).is_multiple_of(2) {
                        (bytes.len() < 255).then(|| sized(code, &[&[count][..], &bytes].concat()))
                    } else {
                        Some(sized(code, &[&[0, 0, 0, count][..], &bytes].concat()))
                    }
                }
            ),
            (0x70u8..0x79, inside.clone()).prop_map(|(code, value)| [&[0, 0x53, code][..], &value].concat()),
            (inside.clone(), inside).prop_map(|(descriptor, value)| [&[0][..], &descriptor, &value].concat()),
        ]
    })
}

/// Bytes, some of them changed.
fn mutated(bytes: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    let change = (any::<prop::sample::Index>(), any::<u8>());
    (bytes, prop::collection::vec(change, 0..3)).prop_map(|(mut bytes, changes)| {
        for (at, byte) in changes {
            if !bytes.is_empty() {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
        }
        bytes
    })
}

/// Runs the function on a small stack, where an overflow comes soon.
fn on_a_small_stack<T: Send + 'static>(run: impl FnOnce() -> T + Send + 'static) -> T {
    let thread = thread::Builder::new().stack_size(SMALL_STACK).spawn(run).expect("a thread");
    thread.join().expect("no panic")
}

/// Decodes what the guard accepts of these bytes, once as a message, and once as a frame after a length.
fn decode(bytes: Vec<u8>) {
    on_a_small_stack(move || {
        let mut guard = Guard::new(LIMITS);
        let frames = [frame(0, OPENING), transfer(false, &bytes), frame(0, &bytes)];
        // Bytes after a refused frame are not handed on either.
        let _either_is_fine = guard.feed(&frames.concat(), |frame| {
            let mut body = frame.bytes.get(4..).unwrap_or_default().into();
            drop(FrameDecoder {}.decode(&mut body));
            if let MessagePart::Whole(Ok(message)) = &frame.part {
                drop(Body::<Value>::decode_message_from_reader(SliceReader::new(message)));
            }
            Ok(())
        });
    });
}

#[test]
fn the_deepest_that_passes_is_decoded_on_a_small_stack() {
    let depth = values::MAX_DEPTH;
    // The section is one level.
    for deepest in [nested(depth - 2), described(depth - 2)] {
        assert!(values::value(&section(&deepest), depth).is_ok());
        let decoded = on_a_small_stack(move || {
            let message = section(&deepest);
            Body::<Value>::decode_message_from_reader(SliceReader::new(&message)).map(drop)
        });
        decoded.expect("decoded");
    }
    assert!(values::value(&section(&nested(depth - 1)), depth).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1000))]

    #[test]
    fn random_bytes_never_overflow_a_small_stack(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        decode(bytes);
    }

    #[test]
    fn values_of_every_kind_and_their_mutations_do_not_either(value in mutated(any_value())) {
        decode(section(&value));
        decode(value);
    }

    #[test]
    fn nor_does_a_message_with_values_in_every_section(
        parts in prop::collection::vec((0x70u8..0x79, any_value()), 1..9),
    ) {
        let sections: Vec<_> = parts.iter().map(|(code, value)| [&[0, 0x53, *code][..], value].concat()).collect();
        decode(sections.concat());
    }
}
