//! The way of a message, from its arrival to its end.
//!
//! Owns: which files the way has. Must not know: what they do.
//!
//! Read them in this order: `in_hand.rs` (what is known of a message), `arrive.rs` (what it is, and whether it came
//! before), `lanes.rs` and `guards.rs` (whether its turn has come), `act.rs` (attempts), `recorded.rs` (what the inbox
//! answers), `end.rs` (how it ended). Beside them, `calls.rs` has all that is special for direct methods, `life.rs`
//! says when a message has expired, and `reason.rs` why nothing was done with one.

pub(super) mod act;
pub(super) mod arrive;
pub(super) mod calls;
pub(super) mod end;
pub(super) mod guards;
pub(super) mod in_hand;
pub(super) mod lanes;
pub(super) mod life;
pub(super) mod reason;
pub(super) mod recorded;
