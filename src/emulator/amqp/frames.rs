//! What changes the bytes between a client and the AMQP crate, because the crate cannot do it itself.
//!
//! Owns: the stream under the crate, and what the rest of the emulator may ask of it. Must not know: links, messages,
//! who may do what.
//!
//! - `stream` is the stream itself: it replays the header, guards what the client sends, and can be cut.
//! - `seen` are the client's frames that the emulator must act on.
//! - `outgoing` corrects the crate's frames: the tag of a delivery becomes its lock token.
//! - `inner` guards a message in a message.
//! - `answers` are the frames that the crate does not send: answers to receivers that settle second.
//!
//! The guard itself is `amqp_frames::guard`, which the clients share.

mod answers;
pub(super) mod inner;
mod outgoing;
mod seen;
mod stream;

pub(super) use answers::Answers;
pub(super) use outgoing::LOCK_TOKEN;
pub(super) use stream::{Breach, FrameStream, MAX_D2C, MAX_FRAME, MAX_MESSAGE, OpenedHost};
