//! Replaces a refused message by one that says why, so that it is settled like any other unusable message.
//!
//! Owns: its form. Must not know: who reads it.
//!
//! A hub could also send such a note itself. Then only its own message is refused, and any useless message has that
//! effect.

use fe2o3_amqp::types::messaging::{AmqpValue, Body};
use fe2o3_amqp::types::primitives::Value;

use super::values::Flaw;
use crate::message::excerpt;

const MARK: &str = "c2d-agent:refused";

/// An amqp-value section with a list of two: the mark as a symbol, and the reason as a text.
pub(super) fn note(flaw: Flaw) -> Vec<u8> {
    let reason = flaw.to_string();
    let short = |bytes: usize| u8::try_from(bytes).unwrap_or(u8::MAX);
    let inside =
        [&[2, 0xa3, short(MARK.len())][..], MARK.as_bytes(), &[0xa1, short(reason.len())], reason.as_bytes()]
            .concat();
    [&[0x00, 0x53, 0x77, 0xc0, short(inside.len())][..], &inside].concat()
}

/// Why the message with this body was refused; `None` if it was not.
pub(crate) fn refusal(body: &Body<Value>) -> Option<String> {
    let Body::Value(AmqpValue(Value::List(parts))) = body else { return None };
    match parts.as_slice() {
        [Value::Symbol(mark), Value::String(reason)] if mark.as_str() == MARK => Some(excerpt(reason)),
        _ => None,
    }
}
