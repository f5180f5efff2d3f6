//! Why nothing was done with a message.
//!
//! Owns: the reasons, their sentences, and how each becomes an [`OutcomeReport`]. Must not know: when anything is
//! written or sent.

use std::time::SystemTime;

use crate::message::format_time;
use crate::outcome::{OutcomeKind, OutcomeReport};

/// Why nothing was done with a message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum PassedOver {
    /// Its property bag could not be decoded.
    #[error("undecodable: {0}")]
    Undecodable(String),
    /// It expired before its turn came.
    #[error("expired: it was valid until {expiry}, and this machine's clock says {now}")]
    Expired {
        /// Its expiry.
        expiry: String,
        /// The time at which it counted as expired.
        now: String,
    },
    /// No rule matches it.
    #[error("unmatched: no rule matches it")]
    Unmatched,
    /// The rule's values could not be filled in.
    #[error("refused: {0}")]
    Refused(String),
    /// A guard of the rule did not let it begin.
    #[error("refused: {0}")]
    Guarded(String),
    /// It is a call, and its caller could not receive the answer any more when its turn came.
    #[error(
        "expired: the call was not begun, because its connection had ended or was ending, or the inbox could \
         not record it: call again"
    )]
    CallerGone,
    /// A crash interrupted its action, and the rule says not to run it again.
    #[error("interrupted: the agent ended during the action, and does not run it again by itself")]
    Crashed,
}

impl PassedOver {
    /// Why a message that only the inbox has cannot run after its rule was removed.
    pub(crate) fn no_rule_any_more() -> Self {
        let remedy = "no rule matches it any more: put its rule back into the configuration, restart or \
                      reload the agent, and run the message again with `c2d-agent inbox retry`";
        Self::Refused(remedy.to_owned())
    }

    fn kind(&self) -> OutcomeKind {
        match self {
            Self::Undecodable(_) => OutcomeKind::Undecodable,
            Self::Expired { .. } | Self::CallerGone => OutcomeKind::Expired,
            Self::Unmatched => OutcomeKind::Unmatched,
            Self::Refused(_) | Self::Guarded(_) => OutcomeKind::Refused,
            Self::Crashed => OutcomeKind::Interrupted,
        }
    }

    pub(crate) fn report(
        &self,
        message_id: Option<&str>,
        rule: Option<&str>,
        attempts: u32,
        now: SystemTime,
    ) -> OutcomeReport {
        OutcomeReport {
            message_id: message_id.map(str::to_owned),
            rule: rule.map(str::to_owned),
            attempt: attempts,
            ..OutcomeReport::without_action(self.kind(), self.to_string(), format_time(now))
        }
    }
}
