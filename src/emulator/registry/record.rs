//! What the registry keeps of an identity beside its credential: generation, status, capabilities, parent.
//!
//! Owns: these facts, and the scopes that follow from them. Must not know: credentials, files, HTTP.
//!
//! Source of the scopes: `create_device_with_sas` in Microsoft's Python service SDK, which describes them, and the az
//! extension (`az iot hub device-identity parent`, `children`), which takes them apart. An edge device has a scope of its
//! own, which the hub makes and which never changes; its `parentScopes` has the scope of its parent. The `deviceScope`
//! of another device is the scope of its parent, and its `parentScopes` says the same.

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// What the scope of an edge device begins with.
const SCOPE: &str = "ms-azure-iot-edge://";

/// What the registry keeps of a device or a module beside its credential.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IdentityRecord {
    /// Made with the identity. It only changes when the identity is deleted and made again.
    pub generation: String,
    /// Whether the device or module may sign in.
    pub enabled: bool,
    /// What a back end has given as the reason of the status.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_reason: Option<String>,
    /// When the status last changed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status_updated: Option<SystemTime>,
    /// Whether the device is an edge device.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub is_edge: bool,
    /// The scope of the edge device that is this device's parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// What manages the module, as the back end that made it says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub managed_by: Option<String>,
}

impl Default for IdentityRecord {
    fn default() -> Self {
        Self::new(format!("{:018}", 1))
    }
}

impl IdentityRecord {
    /// An enabled identity, and nothing more.
    pub fn new(generation: String) -> Self {
        Self {
            generation,
            enabled: true,
            status_reason: None,
            status_updated: None,
            is_edge: false,
            parent: None,
            managed_by: None,
        }
    }

    /// The `deviceScope` of a device: its own if it is an edge device, or that of its parent.
    pub fn device_scope(&self, device_id: &str) -> Option<String> {
        let own = || format!("{SCOPE}{device_id}-{}", self.generation);
        if self.is_edge { Some(own()) } else { self.parent.clone() }
    }
}

/// The id of the edge device that a scope belongs to, if the text has the form of a scope.
pub fn edge_device_of(scope: &str) -> Option<&str> {
    scope.strip_prefix(SCOPE)?.rsplit_once('-').map(|(device_id, _)| device_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_edge_device_has_its_own_scope_and_another_one_that_of_its_parent() {
        let parent = IdentityRecord { is_edge: true, ..IdentityRecord::new("42".to_owned()) };
        let scope = parent.device_scope("edge-1").expect("its own");
        assert_eq!(
            (scope.as_str(), edge_device_of(&scope)),
            ("ms-azure-iot-edge://edge-1-42", Some("edge-1"))
        );
        let child = IdentityRecord { parent: Some(scope.clone()), ..IdentityRecord::default() };
        assert_eq!(child.device_scope("leaf"), Some(scope));
        assert_eq!(IdentityRecord::default().device_scope("leaf"), None);
        assert_eq!((edge_device_of("edge-1-42"), edge_device_of("ms-azure-iot-edge://x")), (None, None));
    }
}
