//! The user name that a device sends in CONNECT.
//!
//! Owns: its syntax. Must not know: who the devices are, tokens.
//!
//! Syntax (wire reference 1.2): `{hub}/{device}/{query}` or `{hub}/{device}/{module}/{query}`. The query may begin with
//! `?` and must have `api-version`; other keys are ignored.

use percent_encoding::percent_decode_str;

use crate::credentials::HostPort;

/// The parts of a user name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UserName {
    /// The hub's host name, without a port.
    pub host: String,
    /// The device.
    pub device_id: String,
    /// The module, if a module signs in.
    pub module_id: Option<String>,
    /// `DeviceClientType` unchanged: the SDK and its version, percent-encoded.
    pub client_type: Option<String>,
    /// The decoded `model-id`: the DTDL model that the device implements.
    pub model_id: Option<String>,
}

/// Why a user name is not valid.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum UserNameError {
    /// There are too few or too many slashes, or an empty segment.
    #[error("the user name is not {{hub}}/{{device}}/?api-version=…")]
    Segments,
    /// The first segment is not a host name.
    #[error("the user name begins with something that is not a host name")]
    Host,
    /// The query has no `api-version`.
    #[error("the user name lacks api-version")]
    ApiVersion,
}

impl UserName {
    /// Parses a user name. The ids are not percent-decoded, because devices do not encode them there.
    ///
    /// # Errors
    /// [`UserNameError`]; it does not contain the text.
    pub fn parse(text: &str) -> Result<Self, UserNameError> {
        let segments: Vec<&str> = text.splitn(5, '/').collect();
        let (host, device_id, module_id, query) = match segments.as_slice() {
            [host, device, query] => (host, device, None, query),
            [host, device, module, query] => (host, device, Some(*module), query),
            _ => return Err(UserNameError::Segments),
        };
        if device_id.is_empty() || module_id.is_some_and(str::is_empty) {
            return Err(UserNameError::Segments);
        }
        let host = HostPort::parse(host).ok_or(UserNameError::Host)?.name;
        let query = query.strip_prefix('?').unwrap_or(query);
        let value = |name: &str| {
            let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
            pairs.find(|(own, value)| *own == name && !value.is_empty()).map(|(_, value)| value)
        };
        value("api-version").ok_or(UserNameError::ApiVersion)?;
        Ok(Self {
            host,
            device_id: (*device_id).to_owned(),
            module_id: module_id.map(str::to_owned),
            client_type: value("DeviceClientType").map(str::to_owned),
            model_id: value("model-id").map(|id| percent_decode_str(id).decode_utf8_lossy().into_owned()),
        })
    }

    /// The client id that belongs to this user name.
    pub fn client_id(&self) -> String {
        match &self.module_id {
            None => self.device_id.clone(),
            Some(module) => format!("{}/{module}", self.device_id),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse(text: &str) -> UserName {
        UserName::parse(text).expect("valid")
    }

    #[test]
    fn the_user_names_of_the_sdks_are_read() {
        let python = parse(
            "hub.local.test/dev1/?api-version=2019-10-01&DeviceClientType=azure-iot-device-iothub-py%2F2.14.0",
        );
        assert_eq!((python.host.as_str(), python.device_id.as_str()), ("hub.local.test", "dev1"));
        assert_eq!(python.client_type.as_deref(), Some("azure-iot-device-iothub-py%2F2.14.0"));
        let node =
            parse("localhost:18883/dev1/?api-version=2021-04-12&model-id=dtmi%3Aa%3B1&DeviceClientType=n");
        assert_eq!((node.host.as_str(), node.model_id.as_deref()), ("localhost", Some("dtmi:a;1")));
        assert_eq!(parse("h/dev1/api-version=2021-04-12").device_id, "dev1", "without the question mark");
        let module = parse("h/dev1/mod/?api-version=2021-04-12");
        assert_eq!((module.module_id.as_deref(), module.client_id().as_str()), (Some("mod"), "dev1/mod"));
    }

    #[test]
    fn other_texts_are_refused() {
        let error = |text: &str| UserName::parse(text).expect_err("not a user name");
        assert_eq!(error("h/dev1"), UserNameError::Segments);
        assert_eq!(error("h//?api-version=1"), UserNameError::Segments);
        assert_eq!(error("h/a/b/c/?api-version=1"), UserNameError::Segments);
        assert_eq!(error("h/a//?api-version=1"), UserNameError::Segments);
        assert_eq!(error("/dev1/?api-version=1"), UserNameError::Host);
        assert_eq!(error("h:x/dev1/?api-version=1"), UserNameError::Host);
        assert_eq!(error("h/dev1/"), UserNameError::ApiVersion);
        assert_eq!(error("h/dev1/?api-version="), UserNameError::ApiVersion);
        assert_eq!(error("h/dev1/?DeviceClientType=x"), UserNameError::ApiVersion);
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused_without_a_panic(text in "[a-z/?=&:%.\\[\\]-]{0,60}|.{0,60}") {
            if let Ok(name) = UserName::parse(&text) {
                prop_assert!(!name.device_id.is_empty() && !name.device_id.contains('/'));
                prop_assert!(text.contains("api-version="));
            }
        }
    }
}
