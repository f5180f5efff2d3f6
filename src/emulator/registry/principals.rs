//! What a principal of Microsoft Entra may do at the hub.
//!
//! Owns: which role has which right. Must not know: tokens.
//!
//! Source: the data actions of the four roles on Microsoft's page "Control access to IoT Hub by using Microsoft Entra ID".

use super::BackEndRight;
use crate::emulator::entra::EntraRole;

/// Whether one of the roles has the right.
pub(super) fn may(roles: &[EntraRole], right: BackEndRight) -> bool {
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
