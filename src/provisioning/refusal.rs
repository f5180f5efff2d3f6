//! Why there is no assignment.
//!
//! Owns: what each refusal means for a user, and its remedy. Must not know: the bodies of answers.

use std::time::Duration;

/// Why there is no assignment. Its `Display` is one sentence without the name of the service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationRefusal {
    /// The service does not know this device, or its proof is wrong (401, 404).
    #[error(
        "it refused the registration id {registration_id} ({said}): the enrolment does not exist or is disabled, the \
         key or certificate is another one, the ID scope belongs to another service, or this machine's clock is wrong"
    )]
    Unauthorized {
        /// Who asked.
        registration_id: String,
        /// The words of the service.
        said: String,
    },
    /// The enrolment is disabled.
    #[error("the enrolment of {registration_id} is disabled: enable it at the provisioning service")]
    Disabled {
        /// Who asked.
        registration_id: String,
    },
    /// The allocation failed. Source of the codes: wire reference 12.3.
    #[error("it could not assign a hub: {sentence}")]
    NoHub {
        /// What went wrong, and where to mend it.
        sentence: String,
    },
    /// Too many requests, or the service has trouble: the same request may be good later.
    #[error("it is busy (status {status}), and asks for a pause of {} s: ask it again later", wait.as_secs())]
    Busy {
        /// 429, or from 500 on.
        status: u16,
        /// How long the service wants to be left alone.
        wait: Duration,
    },
    /// The hub is of a kind that has no cloud-to-device messages.
    #[error(
        "the hub {hub} that it assigns speaks MQTT 5 and has no cloud-to-device messages: assign a classic hub, or use \
         direct methods through another program"
    )]
    NoC2d {
        /// The hub.
        hub: String,
    },
    /// The answer makes no sense.
    #[error(
        "its answer cannot be used ({0}): check endpoint in [provisioning], and the registration at the service"
    )]
    Unusable(String),
}

impl RegistrationRefusal {
    /// Whether the same request may be good later.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Busy { .. } | Self::Unusable(_))
    }
}
