//! Every integration test, in one target: what a user would notice, with real processes and real sockets.

mod check;
mod config;
mod corpora;
mod harness;
mod layering;
mod mosquitto;
mod sdk;
