//! The device's own certificate: a key that never leaves the device, the request for a certificate, and what was
//! issued.
//!
//! Owns: the forms of request, certificate and chain; what is asked of a hub and answered; the files of the pairs,
//! and that one of them works at any moment. Must not know: sockets, the clock (`now` is an argument), when to renew.
//!
//! A pair is a private key and its certificate with the chain. Sources: wire reference 12.6.

mod chain;
mod der;
mod facts;
mod pairs;
mod pem;
mod renewal;
mod request;

pub use chain::{ChainError, IssuedChain};
pub use facts::{CertificateFacts, common_name};
pub use pairs::{IssuedPairs, NextPair};
pub use renewal::{RenewalAnswer, RenewalRefusal, renewal_body};
pub use request::{CertificateKey, KeyError};
