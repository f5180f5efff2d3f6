//! Every integration test, in one target: what a user would notice, with real processes and real sockets.

#[cfg(all(feature = "service", feature = "emulator"))]
mod agent;
#[cfg(all(feature = "service", feature = "emulator"))]
mod c2d_send;
mod check;
mod config;
mod corpora;
mod faults;
mod harness;
mod layering;
mod mosquitto;
mod sdk;
