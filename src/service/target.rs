//! The subject of a back end's request over HTTPS: a device, or one of its modules.
//!
//! Owns: its path and its name in sentences. Must not know: requests.

use std::fmt;

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};

use crate::credentials::{CredentialError, check_device_id, check_module_id};

/// The characters that a path must escape. Source: RFC 3986, unreserved characters.
pub(super) const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// A device, or a module of it. It is displayed as `device pi-01`, or as `module relay of device pi-01`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Addressee {
    device_id: String,
    module_id: Option<String>,
}

impl Addressee {
    /// # Errors
    /// When one of the two is not an id.
    pub fn new(device_id: &str, module_id: Option<&str>) -> Result<Self, CredentialError> {
        check_device_id(device_id)?;
        module_id.map_or(Ok(()), check_module_id)?;
        Ok(Self { device_id: device_id.to_owned(), module_id: module_id.map(str::to_owned) })
    }

    /// The device. For a module, the device that it belongs to.
    pub fn device_id(&self) -> &str {
        &self.device_id
    }

    /// The module, if it is one.
    pub fn module_id(&self) -> Option<&str> {
        self.module_id.as_deref()
    }

    /// The path of its twin. Source: the REST definitions in Microsoft's Python service SDK.
    pub(super) fn twin_path(&self) -> String {
        let device = utf8_percent_encode(&self.device_id, ENCODED);
        match &self.module_id {
            Some(module) => format!("/twins/{device}/modules/{}", utf8_percent_encode(module, ENCODED)),
            None => format!("/twins/{device}"),
        }
    }
}

impl fmt::Display for Addressee {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.module_id {
            Some(module) => write!(f, "module {module} of device {}", self.device_id),
            None => write!(f, "device {}", self.device_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_keeps_every_id_apart() {
        let of = |device, module| Addressee::new(device, module).expect("ids");
        assert_eq!(of("pi-01", None).twin_path(), "/twins/pi-01");
        assert_eq!(of("a%b", Some("m:1")).twin_path(), "/twins/a%25b/modules/m%3A1");
        assert_eq!(of("pi", Some("relay")).to_string(), "module relay of device pi");
        assert!(Addressee::new("a/b", None).is_err() && Addressee::new("a", Some("")).is_err());
    }
}
