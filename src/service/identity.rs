//! Who signs in to which hub.
//!
//! Owns: the hub, the proof, and the words for both in errors. Must not know: how a token is obtained or sent.

use std::fmt;
use std::sync::Arc;
use std::time::SystemTime;

use super::{EARLIEST_PLAUSIBLE, EntraTokens};
use crate::credentials::{HostPort, ServiceConnectionString, ServiceSecret};

/// A back end's identity at one hub.
#[derive(Debug, Clone)]
pub struct ServiceIdentity {
    /// The IoT Hub.
    pub host: HostPort,
    /// The proof.
    pub proof: ServiceProof,
}

/// How a back end proves that it may use the hub.
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum ServiceProof {
    /// As a shared access policy.
    Policy {
        /// Its name, such as `service`.
        name: String,
        /// Its key, or a token of it.
        secret: ServiceSecret,
    },
    /// With tokens of Microsoft Entra. All connections share them.
    Entra(Arc<EntraTokens>),
}

impl From<ServiceConnectionString> for ServiceIdentity {
    fn from(string: ServiceConnectionString) -> Self {
        let ServiceConnectionString { host, policy: name, secret } = string;
        Self { host, proof: ServiceProof::Policy { name, secret } }
    }
}

impl ServiceIdentity {
    pub(super) fn who(&self) -> Who {
        match &self.proof {
            ServiceProof::Policy { name, .. } => Who::Policy(name.clone()),
            ServiceProof::Entra(_) => Who::Entra,
        }
    }
}

/// The subject of an error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Who {
    /// The policy of this name.
    Policy(String),
    /// A principal of Entra. Its token knows its name; the hub repeats it.
    Entra,
}

impl fmt::Display for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Policy(name) => write!(f, "the policy \"{name}\""),
            Self::Entra => f.write_str("the token of Microsoft Entra"),
        }
    }
}

impl Who {
    /// What to check when the hub refuses this principal. `right` is what the request needs of a policy.
    pub(super) fn remedy(&self, now: SystemTime, right: &str) -> String {
        let clock = humantime::format_rfc3339_seconds(now);
        if now < SystemTime::UNIX_EPOCH + EARLIEST_PLAUSIBLE {
            return format!("this machine's clock says {clock}, so its tokens are not valid: set the clock");
        }
        match self {
            Self::Policy(_) => {
                format!("check its name and key, that it has {right}, and this machine's clock ({clock})")
            }
            Self::Entra => format!("{NEEDED_ROLE}; c2d-agent auth --check says who the principal is"),
        }
    }

    /// What the hub must allow before it takes messages.
    pub(super) fn needed(&self) -> &'static str {
        match self {
            Self::Policy(_) => "it needs the permission ServiceConnect, and its current key",
            Self::Entra => NEEDED_ROLE,
        }
    }
}

/// Source: Microsoft's page "Control access to IoT Hub by using Microsoft Entra ID".
const NEEDED_ROLE: &str = "its principal needs a role at this hub, such as IoT Hub Data Contributor, and a new role \
                           takes some minutes to count";
