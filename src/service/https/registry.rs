//! Reads and changes the hub's registry of devices, as a back end does.
//!
//! Owns: its requests, and what its refusals mean. Must not know: how a device is shown, files.
//!
//! Source: the REST definitions in Microsoft's Python service SDK (azure-iot-hub, `protocol/`), and
//! `DeviceRegistryOperationError` there for the words of the errors.

use hyper::{Method, StatusCode};
use percent_encoding::utf8_percent_encode;
use serde_json::{Value, json};

use super::{API_VERSION, HttpsService, ServiceRequest, answer};
use crate::credentials::SharedAccessKey;
use crate::service::ServiceError;
use crate::service::target::ENCODED;

/// Most bytes of a device's identity; a hub's has about 2 KiB.
const MAX_IDENTITY: usize = 64 * 1024;

/// The right to read the registry, in words for a remedy.
const TO_READ: &str = "the permission RegistryRead, as iothubowner has";
/// The right to change it.
const TO_WRITE: &str = "the permission RegistryReadWrite, as iothubowner has";

/// How a new device signs in.
#[derive(Debug, Clone)]
pub enum NewCredential {
    /// By two keys that the hub makes.
    MadeKeys,
    /// By these two keys.
    Keys(DeviceKeys),
    /// By a certificate with one of these thumbprints: 40 or 64 hexadecimal digits.
    Thumbprints {
        /// The first.
        primary: String,
        /// The second, for a change of certificates.
        secondary: Option<String>,
    },
    /// By a certificate that an authority known to the hub has signed.
    Authority,
}

/// The two keys of a device. They cannot be printed.
#[derive(Debug, Clone)]
pub struct DeviceKeys {
    /// The key of its connection string.
    pub primary: SharedAccessKey,
    /// The key that signs in, too, while the first one is changed.
    pub secondary: SharedAccessKey,
}

/// A device in the registry.
#[derive(Debug, Clone)]
pub struct RegisteredDevice {
    /// The identity as the hub has it, but without its keys.
    pub identity: Value,
    /// Its keys; `None` if it signs in with a certificate.
    pub keys: Option<DeviceKeys>,
}

impl HttpsService {
    /// Reads a device.
    ///
    /// # Errors
    /// As for [`HttpsService::twin`].
    ///
    /// # Cancel safety
    /// As for [`HttpsService::twin`].
    pub async fn device(&mut self, device_id: &str) -> Result<RegisteredDevice, ServiceError> {
        let ask = ServiceRequest::new(Method::GET, path(device_id), MAX_IDENTITY);
        self.registered(ask, device_id, TO_READ).await
    }

    /// Registers a device.
    ///
    /// # Errors
    /// As for [`HttpsService::twin`]; or [`ServiceError::Exists`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the device may or may not be registered.
    pub async fn create_device(
        &mut self,
        device_id: &str,
        credential: &NewCredential,
        is_edge: bool,
    ) -> Result<RegisteredDevice, ServiceError> {
        let mut ask = ServiceRequest::new(Method::PUT, path(device_id), MAX_IDENTITY);
        let body = json!({
            "deviceId": device_id,
            "status": "enabled",
            "authentication": credential.sent(),
            "capabilities": { "iotEdge": is_edge },
        });
        ask.body = body.to_string().into();
        self.registered(ask, device_id, TO_WRITE).await
    }

    /// Removes a device with its twin, its modules and the messages that wait for it.
    ///
    /// # Errors
    /// As for [`HttpsService::twin`].
    ///
    /// # Cancel safety
    /// If the future is dropped, the device may or may not be removed.
    pub async fn delete_device(&mut self, device_id: &str) -> Result<(), ServiceError> {
        let mut ask = ServiceRequest::new(Method::DELETE, path(device_id), MAX_IDENTITY);
        // Whatever its etag is.
        ask.if_match = Some("*".to_owned());
        let (head, body) = self.exchange(ask).await?;
        match head.status {
            StatusCode::OK | StatusCode::NO_CONTENT => Ok(()),
            status => Err(self.registry_refusal(status, &body, device_id, TO_WRITE)),
        }
    }

    async fn registered(
        &mut self,
        ask: ServiceRequest,
        device_id: &str,
        right: &str,
    ) -> Result<RegisteredDevice, ServiceError> {
        let (head, body) = self.exchange(ask).await?;
        match head.status {
            StatusCode::OK => RegisteredDevice::read(&body)
                .ok_or_else(|| answer::no_hub(&self.host, "status 200 without a device")),
            status => Err(self.registry_refusal(status, &body, device_id, right)),
        }
    }

    fn registry_refusal(
        &self,
        status: StatusCode,
        body: &[u8],
        device_id: &str,
        right: &str,
    ) -> ServiceError {
        let said = answer::hub_message(body).unwrap_or_default();
        match status {
            // A hub that is full answers 403, too.
            StatusCode::FORBIDDEN if said.contains("Quota") || said.contains("TooManyDevices") => {
                ServiceError::Answer(format!("{} takes no further device ({said}): delete others", self.host))
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => self.lacks(right, body),
            StatusCode::CONFLICT if said.contains("AlreadyExists") => {
                ServiceError::Exists(device_id.to_owned())
            }
            StatusCode::BAD_REQUEST if !said.is_empty() => ServiceError::Answer(format!(
                "{} refuses the device (status 400: {said}): correct the arguments",
                self.host
            )),
            status => self.refusal(status, body, device_id),
        }
    }
}

impl RegisteredDevice {
    fn read(body: &[u8]) -> Option<Self> {
        let mut identity: Value = serde_json::from_slice(body).ok()?;
        identity.get("deviceId")?.as_str()?;
        let keys = match identity.get_mut("authentication").and_then(Value::as_object_mut) {
            Some(authentication) => authentication.remove("symmetricKey"),
            None => None,
        };
        let key = |name: &str| SharedAccessKey::from_base64(keys.as_ref()?.get(name)?.as_str()?).ok();
        let keys = key("primaryKey").zip(key("secondaryKey"));
        Some(Self { identity, keys: keys.map(|(primary, secondary)| DeviceKeys { primary, secondary }) })
    }
}

impl NewCredential {
    fn sent(&self) -> Value {
        match self {
            Self::MadeKeys => json!({ "type": "sas" }),
            Self::Keys(DeviceKeys { primary, secondary }) => json!({
                "type": "sas",
                "symmetricKey": {
                    "primaryKey": primary.expose_base64(),
                    "secondaryKey": secondary.expose_base64(),
                },
            }),
            Self::Thumbprints { primary, secondary } => json!({
                "type": "selfSigned",
                "x509Thumbprint": { "primaryThumbprint": primary, "secondaryThumbprint": secondary },
            }),
            Self::Authority => json!({ "type": "certificateAuthority" }),
        }
    }
}

fn path(device_id: &str) -> String {
    format!("/devices/{}?api-version={API_VERSION}", utf8_percent_encode(device_id, ENCODED))
}
