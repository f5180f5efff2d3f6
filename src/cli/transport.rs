//! `--transport` of c2d-feedback: how feedback is read.
//!
//! Owns: the words. Must not know: what they mean on the wire. Used by: `cli` (c2d-feedback).

use clap::ValueEnum;

use crate::credentials::ProxySettings;
use crate::service::{FeedbackTransport, Way};

/// How feedback is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(super) enum Transport {
    /// A link that waits, on port 5671.
    Amqp,
    /// The same over a WebSocket on the HTTPS port, through the proxy that HTTPS_PROXY names, except to the hosts in
    /// NO_PROXY.
    AmqpWs,
    /// Polls of the HTTPS port, each 1 to 10 s.
    Https,
}

impl Transport {
    /// With the port that HTTPS has, and the environment's proxies.
    ///
    /// # Errors
    /// When the proxies cannot be read.
    pub(super) fn of_feedback(self, https_port: u16) -> anyhow::Result<FeedbackTransport> {
        Ok(match self {
            Self::Amqp => FeedbackTransport::Amqp(Way::Amqp),
            Self::AmqpWs => {
                let proxies = ProxySettings::read(&|name| std::env::var(name).ok())?;
                FeedbackTransport::Amqp(Way::WebSocket { port: https_port, proxies })
            }
            Self::Https => FeedbackTransport::Https(https_port),
        })
    }
}
