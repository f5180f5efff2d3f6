//! The guard of every AMQP connection: it refuses input that the AMQP crate cannot decode safely.
//!
//! Owns: frames, the encoding of values, how deep they may nest, messages in several frames, and the substitute for a
//! refused message. Must not know: what messages mean, links, who may do what.
//!
//! The crate decodes nested values by recursion without a limit. So a few kilobytes of lists in lists would overflow
//! the stack and end the whole process. This is a protection, not a protocol: it says whether bytes may be decoded,
//! but not what they should be. So the emulator may share it with the code under test.
//!
//! - `values` skips one value, and recurses no deeper than the limit.
//! - `guard` follows the bytes of a peer, frame by frame and message by message.
//! - `stream` is a client's stream: a refused frame ends it, and a `note` replaces a refused message.

mod guard;
mod note;
mod stream;
pub(crate) mod values;

#[allow(unused_imports)] // Only the emulator uses the guard itself.
pub(crate) use guard::{
    DISPOSITION, END, FIRST, Frame, Guard, GuardError, LAST, Limits, MAGIC, MessagePart, OPEN, TRANSFER,
    Transfer, check_message, performative_fields,
};
#[allow(unused_imports)] // Only the clients use the stream.
pub(crate) use note::refusal;
#[allow(unused_imports)] // Only the clients use the stream.
pub(crate) use stream::{Failed, Guarded, MAX_FRAME};

#[cfg(test)]
mod tests;
