//! The guard of every AMQP connection: the AMQP crate decodes nested values by recursion without a limit, so that a few
//! kilobytes of lists in lists would overflow the stack and end the whole process.
//!
//! Owns: frames, the encoding of values, how deep they may nest, messages that come in several frames, and what stands in
//! for a message that is refused. Must not know: what messages mean, links, who may do what.
//!
//! This is protection and no protocol: it says of bytes whether they may be decoded, and nothing of what they should be.
//! So the emulator may share it with the code under test.
//!
//! - `values` passes over one value without recursion deeper than the limit.
//! - `guard` follows the bytes of a peer, frame by frame and message by message.
//! - `stream` is a client's stream: a frame that is refused ends it, a message that is refused is replaced by a `note`.

mod guard;
mod note;
mod stream;
pub(crate) mod values;

#[allow(unused_imports)] // The emulator uses the guard alone.
pub(crate) use guard::{
    Frame, Guard, GuardError, Limits, MAGIC, Part, TRANSFER, Transfer, performative_fields,
};
#[allow(unused_imports)] // The clients use the stream.
pub(crate) use note::refusal;
#[allow(unused_imports)] // The same.
pub(crate) use stream::{Failed, Guarded, MAX_FRAME};

#[cfg(test)]
mod tests;
