//! The checklist, wire reference 8: each line a test, named after it, of what an unmodified SDK breaks on.
//!
//! Owns: nothing. Must not know: SDKs; they have tests of their own.

mod amqp;
mod https;
mod mqtt;
mod semantics;
