//! What a back end sends of a device or a module.
//!
//! Owns: its JSON, and what it asks for. Must not know: routes, what is registered.
//!
//! Source: the classes Device, Module and ExportImportDevice in Microsoft's Python service SDK (azure-iot-hub,
//! `protocol/models`); Node's Registry sends an empty key where it wants one made. Choices: a device that is changed
//! without `authentication` keeps what it has, and one with `sas` and no keys keeps its keys. What else is left out
//! stays, but for the status and its reason.

use serde::Deserialize;

use crate::credentials::{SharedAccessKey, check_device_id};
use crate::emulator::identity;
use crate::emulator::registrar::{Wanted, WantedCredential};
use crate::emulator::registry::{DeviceCredential, KeyPair};
use crate::message::excerpt;

/// Most characters of the reason of a status. Source: the class Device in Microsoft's Python service SDK.
const MAX_REASON: usize = 128;

/// Longest key in base64: those of the hub have 44 or 88 characters.
const MAX_KEY_CHARS: usize = 128;

/// A device or a module as a back end sends it. Other fields are ignored.
#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct IdentityBody {
    device_id: Option<String>,
    module_id: Option<String>,
    status: Option<String>,
    status_reason: Option<String>,
    authentication: Option<Authentication>,
    capabilities: Option<Capabilities>,
    device_scope: Option<String>,
    parent_scopes: Option<Vec<String>>,
    managed_by: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Authentication {
    #[serde(rename = "type")]
    kind: Option<String>,
    symmetric_key: Option<SymmetricKey>,
    x509_thumbprint: Option<X509Thumbprint>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct SymmetricKey {
    primary_key: Option<String>,
    secondary_key: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct X509Thumbprint {
    primary_thumbprint: Option<String>,
    secondary_thumbprint: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Capabilities {
    iot_edge: Option<bool>,
}

impl IdentityBody {
    /// What it asks for, as the identity `id`.
    ///
    /// # Errors
    /// A sentence about the value that is wrong.
    pub(super) fn wanted(self, id: String) -> Result<Wanted, String> {
        let (device, module) = identity::split(&id);
        let checked = if module.is_some() { identity::check_module(&id) } else { check_device_id(device) };
        checked.map_err(|error| error.to_string())?;
        if self.device_id.is_some_and(|sent| sent != device) {
            return Err("the device id in the body is not the one in the path".to_owned());
        }
        if self.module_id.is_some_and(|sent| Some(&*sent) != module) {
            return Err("the module id in the body is not the one in the path".to_owned());
        }
        let enabled = match self.status.as_deref() {
            None | Some("enabled") => true,
            Some("disabled") => false,
            Some(other) => {
                return Err(format!("\"{}\" is not a status: use enabled or disabled", excerpt(other)));
            }
        };
        for (name, text) in [("statusReason", &self.status_reason), ("managedBy", &self.managed_by)] {
            if let Some(length) = text.as_ref().map(|text| text.chars().count())
                && length > MAX_REASON
            {
                return Err(format!("the {name} has {length} characters: use at most {MAX_REASON}"));
            }
        }
        let is_edge = self.capabilities.and_then(|capabilities| capabilities.iot_edge);
        Ok(Wanted {
            credential: self.authentication.map_or(Ok(WantedCredential::Same), Authentication::wanted)?,
            enabled,
            status_reason: self.status_reason.filter(|reason| !reason.is_empty()),
            is_edge: is_edge.filter(|_| module.is_none()),
            device_scope: self.device_scope.filter(|_| module.is_none()),
            parent_scope: self.parent_scopes.filter(|_| module.is_none()).map(only_one).transpose()?,
            managed_by: self.managed_by.filter(|_| module.is_some()),
            id,
        })
    }
}

/// The scope in `parentScopes`, or an empty one.
fn only_one(scopes: Vec<String>) -> Result<String, String> {
    let count = scopes.len();
    let mut scopes = scopes.into_iter();
    match (scopes.next(), scopes.next()) {
        (_, Some(_)) => Err(format!("parentScopes has {count} scopes, but a device has at most one parent")),
        (scope, None) => Ok(scope.unwrap_or_default()),
    }
}

impl Authentication {
    fn wanted(self) -> Result<WantedCredential, String> {
        match self.kind.as_deref() {
            None | Some("sas") => keys(self.symmetric_key.unwrap_or_default()),
            Some("selfSigned") => thumbprints(self.x509_thumbprint.unwrap_or_default()),
            Some("certificateAuthority") => Ok(WantedCredential::Given(DeviceCredential::Authority)),
            Some(other) => {
                let shown = excerpt(other);
                Err(format!(
                    "\"{shown}\" is not an authentication of this emulator: use sas, selfSigned or \
                     certificateAuthority"
                ))
            }
        }
    }
}

fn keys(sent: SymmetricKey) -> Result<WantedCredential, String> {
    let given = |key: Option<String>| key.filter(|key| !key.is_empty());
    let (primary, secondary) = match (given(sent.primary_key), given(sent.secondary_key)) {
        (None, None) => return Ok(WantedCredential::Keys),
        (Some(primary), Some(secondary)) => (primary, secondary),
        _ => return Err("give both keys, or none: the hub then makes both".to_owned()),
    };
    if let Some(length) = [primary.len(), secondary.len()].into_iter().find(|length| *length > MAX_KEY_CHARS)
    {
        return Err(format!("a key has {length} characters: use at most {MAX_KEY_CHARS}"));
    }
    let read = |key: &str| SharedAccessKey::from_base64(key).map_err(|_| "a key is not base64".to_owned());
    let keys = KeyPair { primary: read(&primary)?, secondary: read(&secondary)? };
    Ok(WantedCredential::Given(DeviceCredential::Keys(keys)))
}

fn thumbprints(sent: X509Thumbprint) -> Result<WantedCredential, String> {
    let given = |text: Option<String>| {
        let text = text.filter(|text| !text.is_empty()).map(|text| text.to_ascii_uppercase());
        let hex =
            |text: &String| [40, 64].contains(&text.len()) && text.bytes().all(|c| c.is_ascii_hexdigit());
        match text {
            Some(text) if !hex(&text) => {
                Err("a thumbprint is not 40 (SHA-1) or 64 (SHA-256) hexadecimal digits".to_owned())
            }
            text => Ok(text),
        }
    };
    let (primary, secondary) = (given(sent.primary_thumbprint)?, given(sent.secondary_thumbprint)?);
    let primary = primary.ok_or("a device that signs in with a certificate needs its primary thumbprint")?;
    Ok(WantedCredential::Given(DeviceCredential::Thumbprints { primary, secondary }))
}
