//! What a principal of Microsoft Entra may do at the hub.
//!
//! Owns: whether a token of theirs counts, which role has which right. Must not know: how a token is signed.
//!
//! Source: the data actions of the four roles on Microsoft's page "Control access to IoT Hub by using Microsoft Entra ID".

use std::sync::Arc;
use std::time::SystemTime;

use super::{AuthError, BackEndRight, Grant, Registry};
use crate::emulator::entra::{BearerError, EntraIssuer, EntraRole};
use crate::message::format_time;

impl Registry {
    /// Lets principals of Entra sign in with tokens of this issuer.
    pub fn set_issuer(&mut self, issuer: Arc<EntraIssuer>) {
        self.issuer = Some(issuer);
    }

    /// The issuer of tokens of Entra, if there is one.
    pub fn issuer(&self) -> Option<&Arc<EntraIssuer>> {
        self.issuer.as_ref()
    }

    pub(super) fn authenticate_principal(
        &self,
        bearer: &str,
        right: BackEndRight,
        now: SystemTime,
    ) -> Result<Grant, AuthError> {
        let principal = self.issuer.as_ref().ok_or(BearerError::NoIssuer)?.check(bearer)?;
        let expires = self.clock_offset.of(principal.expires);
        if expires <= now {
            return Err(AuthError::Expired(format_time(principal.expires)));
        }
        match may(&principal.roles, right) {
            true => Ok(Grant { expires: Some(expires), policy: None }),
            false => Err(AuthError::NoRole(principal.oid)),
        }
    }
}

/// Whether one of the roles has the right.
fn may(roles: &[EntraRole], right: BackEndRight) -> bool {
    use EntraRole::{DataContributor, DataReader, RegistryContributor, TwinContributor};
    let needed: &[EntraRole] = match right {
        BackEndRight::ServiceConnect => &[DataContributor],
        BackEndRight::TwinRead => &[DataContributor, DataReader, TwinContributor],
        BackEndRight::TwinWrite => &[DataContributor, TwinContributor],
        BackEndRight::RegistryRead => &[DataContributor, DataReader, RegistryContributor],
        BackEndRight::RegistryWrite => &[DataContributor, RegistryContributor],
    };
    roles.iter().any(|role| needed.contains(role))
}

#[cfg(test)]
mod tests {
    use super::*;
    use BackEndRight::{RegistryRead, RegistryWrite, ServiceConnect, TwinRead, TwinWrite};

    #[test]
    fn each_role_has_its_rights_and_roles_add_up() {
        let rights = |roles: &[EntraRole]| {
            let all = [ServiceConnect, TwinRead, TwinWrite, RegistryRead, RegistryWrite];
            all.into_iter().filter(|right| may(roles, *right)).collect::<Vec<_>>()
        };
        let (registry, twins) = (EntraRole::RegistryContributor, EntraRole::TwinContributor);
        assert_eq!(rights(&[EntraRole::DataContributor]).len(), 5);
        assert_eq!(rights(&[EntraRole::DataReader]), [TwinRead, RegistryRead]);
        assert_eq!(rights(&[registry]), [RegistryRead, RegistryWrite]);
        assert_eq!(rights(&[registry, twins]), [TwinRead, TwinWrite, RegistryRead, RegistryWrite]);
        assert_eq!(rights(&[]), []);
    }
}
