//! The daily way of a message, from its arrival to its end.
//!
//! Owns: which files the way has. Must not know: what they do.
//!
//! Read them in this order: `in_hand.rs` (what is known of a message), `arrive.rs` (what is it, and is it new),
//! `lanes.rs` and `guards.rs` (whose turn it is), `act.rs` (begin, and try again), `end.rs` (how it ended). `calls.rs`
//! has what is special for direct methods, and `life.rs` when a message has expired.

pub(super) mod act;
pub(super) mod arrive;
pub(super) mod calls;
pub(super) mod end;
pub(super) mod guards;
pub(super) mod in_hand;
pub(super) mod lanes;
pub(super) mod life;
