//! Who of the back ends may do what, with tokens of the hub's policies.
//!
//! Owns: which right a request needs. Must not know: devices, protocols.

use std::time::SystemTime;

use super::{AuthError, BackEndRight, Grant, Registry, RegistryRight};
use crate::credentials::SasToken;
use crate::emulator::entra;
use crate::emulator::event_hub::EventHub;
use crate::message::excerpt;

impl Registry {
    /// Checks whether a back end has the right `right`.
    ///
    /// # Errors
    /// [`AuthError`] gives the reason.
    pub fn authenticate_back_end(
        &self,
        token: &str,
        right: BackEndRight,
        now: SystemTime,
    ) -> Result<Grant, AuthError> {
        if let Some(bearer) = entra::bearer(token) {
            return self.authenticate_principal(bearer, right, now);
        }
        let token = SasToken::parse(token)?;
        self.check(&token, "", now)?;
        let name = token.policy().ok_or_else(|| AuthError::UnknownPolicy(String::new()))?;
        let policy = self.policy(name)?;
        let (allowed, name) = match right {
            BackEndRight::ServiceConnect | BackEndRight::TwinRead | BackEndRight::TwinWrite => {
                (policy.service_connect, "ServiceConnect")
            }
            BackEndRight::RegistryRead => (policy.registry >= RegistryRight::Read, "RegistryRead"),
            BackEndRight::RegistryWrite => (policy.registry >= RegistryRight::Write, "RegistryWrite"),
        };
        if !allowed {
            return Err(AuthError::Forbidden(policy.name.clone(), name));
        }
        self.grant(&token, policy.keys.signed(&token))
    }

    /// Checks whether a back end may read D2C messages with a token for the Event Hub-compatible endpoint. Its
    /// policies are the hub's.
    ///
    /// # Errors
    /// [`AuthError`] gives the reason.
    pub(in crate::emulator) fn authenticate_reader(
        &self,
        event_hub: &EventHub,
        token: &str,
        now: SystemTime,
    ) -> Result<Grant, AuthError> {
        let token = SasToken::parse(token)?;
        if !event_hub.is_meant(&token.resource()) {
            let needed = format!("{}/{}", event_hub.hostname, event_hub.name);
            return Err(AuthError::WrongResource { token: excerpt(&token.resource()), needed });
        }
        self.check_time(&token, now)?;
        let policy = self.policy(token.policy().unwrap_or_default())?;
        if !policy.service_connect {
            return Err(AuthError::Forbidden(policy.name.clone(), "ServiceConnect"));
        }
        self.grant(&token, policy.keys.as_text().signed(&token) || policy.keys.signed(&token))
    }
}
