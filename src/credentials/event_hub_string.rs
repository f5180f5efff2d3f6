//! The connection string of the Event Hubs endpoint of a hub.
//!
//! Owns: its syntax. Must not know: files, tokens.
//!
//! Source: Microsoft's documents on the built-in endpoint. Other fields, such as those of Entra, are not known here.

use super::connection_string::{CredentialError, HostPort};
use super::excerpt;
use super::sas::SharedAccessKey;

/// What it is called in errors.
const KIND: &str = "Event Hubs";
const FIELDS: [&str; 4] = ["Endpoint", "SharedAccessKeyName", "SharedAccessKey", "EntityPath"];

/// `Endpoint=sb://HOST/;SharedAccessKeyName=…;SharedAccessKey=…;EntityPath=…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EventHubConnectionString {
    /// The namespace.
    pub host: HostPort,
    /// The Event Hub.
    pub name: String,
    /// The shared access policy.
    pub policy: String,
    /// Its key.
    pub key: SharedAccessKey,
}

impl EventHubConnectionString {
    /// Reads a connection string.
    ///
    /// # Errors
    /// [`CredentialError`], which never repeats a key.
    pub fn parse(text: &str) -> Result<Self, CredentialError> {
        let mut found = [None; FIELDS.len()];
        let parts = text.trim().split(';').enumerate().filter(|(_, part)| !part.trim().is_empty());
        for (number, part) in parts {
            let (name, value) = part.split_once('=').ok_or(CredentialError::NotAPair(number + 1))?;
            let at = FIELDS.iter().position(|own| own.eq_ignore_ascii_case(name.trim()));
            match at.and_then(|at| Some((FIELDS[at], found.get_mut(at)?))) {
                Some((name, Some(_))) => return Err(CredentialError::Doubled(name)),
                Some((_, place)) => *place = Some(value.trim()),
                None => return Err(CredentialError::NotAPair(number + 1)),
            }
        }
        let [endpoint, policy, key, name] = found;
        let missing = |at: usize| CredentialError::Missing(FIELDS[at], KIND);
        let endpoint = endpoint.ok_or_else(|| missing(0))?;
        let host = endpoint.strip_prefix("sb://").map(|rest| rest.trim_end_matches('/'));
        let host = host.and_then(HostPort::parse);
        Ok(Self {
            host: host.ok_or_else(|| CredentialError::Host("Endpoint", excerpt(endpoint, 80)))?,
            policy: policy.ok_or_else(|| missing(1))?.to_owned(),
            key: SharedAccessKey::from_base64(key.ok_or_else(|| missing(2))?)?,
            name: name.filter(|name| !name.is_empty()).ok_or_else(|| missing(3))?.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_string_of_the_endpoint_is_read_and_what_it_lacks_is_named() {
        let whole = "Endpoint=sb://ns.servicebus.windows.net/;SharedAccessKeyName=service;SharedAccessKey=a2V5;\
                     EntityPath=iothub-ehub-h-1-2";
        let read = EventHubConnectionString::parse(whole).expect("valid");
        assert_eq!((read.host.name.as_str(), read.host.port), ("ns.servicebus.windows.net", None));
        assert_eq!((read.policy.as_str(), read.name.as_str()), ("service", "iothub-ehub-h-1-2"));
        let local =
            EventHubConnectionString::parse(&whole.replace(".windows.net/", ":15671")).expect("valid");
        assert_eq!(local.host.port, Some(15671));
        let error = |text: &str| EventHubConnectionString::parse(text).expect_err("refused").to_string();
        let (short, _) = whole.rsplit_once(';').expect("fields");
        assert!(error(short).contains("the Event Hubs connection string lacks EntityPath"));
        assert!(error("HostName=h;SharedAccessKey=a2V5").contains("part 1 of the connection string"));
        assert!(error(&whole.replace("sb://ns", "https://ns")).starts_with("Endpoint is \"https://ns"));
        assert!(!error(&whole.replace("a2V5", "no key")).contains("no key"));
    }
}
