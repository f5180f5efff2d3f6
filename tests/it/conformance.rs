//! The checklist, wire reference 8. Each line has a test of its name, for a behaviour on which unmodified SDKs depend.
//!
//! Owns: nothing. Must not know: SDKs, which have their own tests.

mod amqp;
mod https;
mod mqtt;
mod semantics;
