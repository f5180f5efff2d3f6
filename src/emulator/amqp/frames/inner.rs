//! A message in a message, such as one of a batch.
//!
//! Owns: whether the crate may decode it. Must not know: batches.

use crate::amqp_frames::check_message;

/// Checks that the crate may decode the message. It has no limit on nesting, and the guard of the stream has not looked
/// into the data of the outer message.
///
/// # Errors
/// Why not, in words.
pub(in super::super) fn check(message: &[u8]) -> Result<(), String> {
    check_message(message).map_err(|flaw| flaw.to_string())
}
