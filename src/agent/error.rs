//! Why an agent could not start, or ended.
//!
//! Owns: the errors of an agent. Must not know: how they come about.

use crate::action::ActionError;
use crate::session::SessionError;
use crate::tls::TlsError;

/// Why an agent could not start, or ended without a request to stop.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// A certificate, key or CA file cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A pin cannot be claimed, or could not be left as configured.
    #[error(transparent)]
    Action(#[from] ActionError),
    /// Another process has the inbox, or may have it.
    #[error("{0}")]
    NotAlone(String),
    /// The hub refused the device, and has not accepted it since the start.
    #[error("{0}")]
    Refused(String),
    /// A defect.
    #[error("{0}")]
    Broken(String),
}

impl AgentError {
    /// Whether the configuration is at fault, or a file that it names.
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Tls(_))
    }
}

impl From<SessionError> for AgentError {
    fn from(error: SessionError) -> Self {
        let sentence = error.to_string();
        match error {
            SessionError::Refused(_) => Self::Refused(sentence),
            SessionError::Broken(_) => Self::Broken(sentence),
        }
    }
}
