//! A client's stream: what the AMQP crate reads from it.

use std::io::ErrorKind;
use std::sync::Arc;

use fe2o3_amqp::types::messaging::Body;
use fe2o3_amqp::types::messaging::message::DecodeIntoMessage as _;
use fe2o3_amqp::types::primitives::Value;
use serde_amqp::read::SliceReader;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinSet;

use super::*;

/// What is read of these bytes after an Open, and how the stream ends.
async fn read_of(bytes: &[u8]) -> (Vec<u8>, Result<(), (ErrorKind, String)>) {
    let open = frame(0, OPENING);
    let (near, mut far) = tokio::io::duplex(64);
    let sent = [&open[..], bytes].concat();
    let mut sender = JoinSet::new();
    sender.spawn(async move { far.write_all(&sent).await });
    let failed = Failed::default();
    let mut stream = Guarded::new(near, Arc::clone(&failed));
    let mut read = Vec::new();
    let ended = stream.read_to_end(&mut read).await;
    sender.abort_all();
    let ended = ended
        .map(drop)
        .map_err(|error| (error.kind(), failed.get().map(ToString::to_string).unwrap_or_default()));
    (read.strip_prefix(&open[..]).expect("the Open").to_vec(), ended)
}

#[tokio::test]
async fn frames_pass_as_they_came_and_the_parts_of_a_message_in_its_last_frame() {
    let whole = section(b"\xa1\x05hello");
    let single = [frame(0, b""), transfer(false, &whole), abort(b"x")].concat();
    assert_eq!(read_of(&single).await, (single, Ok(())));
    let parts = [transfer(true, &whole[..3]), transfer(true, &whole[3..5]), transfer(false, &whole[5..])];
    let joined = [transfer(true, b""), transfer(true, b""), transfer(false, &whole)].concat();
    assert_eq!(read_of(&parts.concat()).await, (joined, Ok(())));
}

#[tokio::test]
async fn a_message_that_is_refused_is_replaced_by_one_that_says_why() {
    let deep = section(&nested(100));
    let after = transfer(false, &section(b"\x40"));
    for sent in [
        vec![transfer(false, &deep)],
        vec![transfer(true, &deep[..100]), transfer(true, &deep[100..200]), transfer(false, &deep[200..])],
    ] {
        let (read, ended) = read_of(&[sent.concat(), after.clone()].concat()).await;
        assert_eq!(ended, Ok(()));
        let read = read.strip_suffix(&after[..]).expect("what follows is handed on");
        let empty = transfer(true, b"").repeat(sent.len() - 1);
        let last = read.strip_prefix(&empty[..]).expect("parts without a payload");
        let head = transfer(false, b"").len();
        assert_eq!(last.get(..4), Some(&u32::try_from(last.len()).expect("short").to_be_bytes()[..]));
        let message = Body::<Value>::decode_message_from_reader(SliceReader::new(&last[head..]));
        let body = message.expect("a message").body;
        assert_eq!(refusal(&body).as_deref(), Some("its values nest more than 16 deep"));
    }
}

#[tokio::test]
async fn a_frame_that_is_refused_ends_the_stream_behind_what_came_before_it() {
    let before = transfer(false, &section(b"\x40"));
    let deep = nested(40);
    let size = u32::try_from(deep.len() + 4).expect("short").to_be_bytes();
    let begin = frame(0, &[&b"\x00\x53\x11\xd0"[..], &size, &[0, 0, 0, 1], &deep].concat());
    let (read, ended) = read_of(&[before.clone(), begin, before.clone()].concat()).await;
    assert_eq!(read, before);
    let why = "the hub sent a frame that cannot be read: its values nest more than 16 deep";
    assert_eq!(ended, Err((ErrorKind::InvalidData, why.to_owned())));
}

#[test]
fn the_body_of_another_message_is_no_refusal() {
    for body in [Body::Empty, Body::Value(fe2o3_amqp::types::messaging::AmqpValue(Value::List(Vec::new())))] {
        assert_eq!(refusal(&body), None);
    }
}
