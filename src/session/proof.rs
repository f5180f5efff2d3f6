//! What a connection is made with: a sign-in, and the roots that TLS trusts.
//!
//! Owns: asking the workload API for both, if a module has neither key nor roots. Must not know: connections, retries.

use std::sync::Arc;

use rustls::ClientConfig;

use super::failure::Fault;
use super::signin::{Draft, SignIn};
use super::terms::{LoadedPair, Settings, Terms};
use crate::credentials::{DeviceAuth, WorkloadAccess};
use crate::tls;
use crate::workload::{self, WorkloadError};

/// Valid for one connection.
pub(super) struct Proof {
    pub(super) sign_in: SignIn,
    pub(super) tls: Arc<ClientConfig>,
}

/// The last trust bundle, and the TLS configuration made of it. It is kept because reading the system's roots takes a
/// moment on a small gateway. Valid for one set of terms.
#[derive(Default)]
pub(super) struct Trusted(Option<(String, Arc<ClientConfig>)>);

impl Terms {
    /// Makes the proof for the next connection, with the certificate of `pair` if there is one. It asks for a
    /// module's trust bundle each time, so that a new authority of the gateway is known at once. Takes at most a
    /// minute. Cancel safe.
    ///
    /// # Errors
    /// The faults that are known before dialling.
    pub(super) async fn proof(&self, trusted: &mut Trusted, pair: &LoadedPair) -> Result<Proof, Fault> {
        let tls = match &self.settings.identity.auth {
            DeviceAuth::Workload(access) => self.module_tls(access, trusted).await?,
            _ => Arc::clone(&pair.tls),
        };
        Ok(Proof { sign_in: self.sign_in().await?, tls })
    }

    /// Makes a new sign-in. Cancel safe.
    ///
    /// # Errors
    /// As [`Self::proof`].
    pub(super) async fn sign_in(&self) -> Result<SignIn, Fault> {
        let Settings { identity, token_lifetime, clock, issuing, .. } = &self.settings;
        let now = clock();
        match SignIn::draft(identity, *token_lifetime, issuing.at_hub, now)? {
            Draft::Ready(sign_in) => Ok(sign_in),
            Draft::Unsigned { token, access } => {
                let digest = workload::sign(access, &token.text_to_sign()).await.map_err(fault)?;
                Ok(SignIn::signed(identity, &token.signed(digest), now))
            }
        }
    }

    async fn module_tls(
        &self,
        access: &WorkloadAccess,
        trusted: &mut Trusted,
    ) -> Result<Arc<ClientConfig>, Fault> {
        let bundle = workload::trust_bundle(access).await.map_err(fault)?;
        if let Some((last, tls)) = &trusted.0
            && *last == bundle
        {
            return Ok(Arc::clone(tls));
        }
        let tls =
            tls::client_config_trusting(self.settings.ca_file.as_deref(), &bundle).map_err(|error| {
                let socket = access.socket.display();
                Fault::Workload {
                    sentence: format!(
                        "the workload API at {socket} gives a trust bundle that cannot be used: {error}"
                    ),
                }
            })?;
        trusted.0 = Some((bundle, Arc::clone(&tls)));
        Ok(tls)
    }
}

fn fault(error: WorkloadError) -> Fault {
    let sentence = error.to_string();
    if error.is_final() { Fault::Gone { sentence } } else { Fault::Workload { sentence } }
}
