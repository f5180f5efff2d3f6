//! Device and service connection strings.
//!
//! Owns: their syntax, and recognising the kind. Must not know: files, how long tokens live, TLS.
//!
//! Syntax: `Key=Value` pairs separated by `;`. Only the first `=` of a pair separates. Sources: wire reference 7.3.

use std::fmt;
use std::net::Ipv6Addr;

use super::excerpt;
use super::hub_name::check_device_host;
use super::sas::{SasError, SasToken, SharedAccessKey};

/// The longest device id in characters. Source: wire reference 4.5.
const MAX_DEVICE_ID_CHARS: usize = 128;

/// A host name with the port that may follow it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostPort {
    /// DNS name or IP address, as given.
    pub name: String,
    /// The port to dial instead of the protocol's standard port.
    pub port: Option<u16>,
}

impl HostPort {
    /// Reads `name` or `name:port`. An IPv6 address with a port stands in brackets.
    pub fn parse(text: &str) -> Option<Self> {
        let (name, port) = match text.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, "")) => (address, None),
            Some((address, rest)) => (address, Some(rest.strip_prefix(':')?)),
            None => match text.split_once(':') {
                Some((name, port)) if !port.contains(':') => (name, Some(port)),
                Some(_) => (text, None),
                None => (text, None),
            },
        };
        let port = match port {
            Some(digits) => Some(digits.parse().ok().filter(|port| *port != 0)?),
            None => None,
        };
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_' | ':');
        if name.is_empty() || name.len() > 253 || !name.chars().all(allowed) {
            return None;
        }
        if name.contains(':') && name.parse::<Ipv6Addr>().is_err() {
            return None;
        }
        Some(Self { name: name.to_owned(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bracketed = self.name.contains(':');
        match (self.port, bracketed) {
            (Some(port), true) => write!(f, "[{}]:{port}", self.name),
            (Some(port), false) => write!(f, "{}:{port}", self.name),
            (None, _) => f.write_str(&self.name),
        }
    }
}

/// How a device proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum DeviceSecret {
    /// A key. Tokens are made from it when needed.
    Key(SharedAccessKey),
    /// A ready-made token, valid until it expires.
    Token(SasToken),
    /// `x509=true`: the certificate is configured elsewhere.
    X509,
}

/// `HostName=…;DeviceId=…;SharedAccessKey=…`, or with `SharedAccessSignature=…` or `x509=true`. `GatewayHostName=…` is
/// optional. With `ModuleId=…` the string belongs to a module on the device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DeviceConnectionString {
    /// The IoT Hub: its name is in user names and tokens. It is dialled if there is no gateway.
    pub host: HostPort,
    /// The device.
    pub device_id: String,
    /// The module on the device. A caller that needs a device refuses it with [`CredentialError::ModuleString`].
    pub module_id: Option<String>,
    /// An IoT Edge gateway to dial instead of the hub.
    pub gateway: Option<HostPort>,
    /// The proof.
    pub secret: DeviceSecret,
}

impl DeviceConnectionString {
    /// Reads a device connection string.
    ///
    /// # Errors
    /// [`CredentialError`], which never repeats a key. It recognises a service string.
    pub fn parse(text: &str) -> Result<Self, CredentialError> {
        let fields = StringFields::parse(text)?;
        if fields.get("SharedAccessKeyName").is_some() && fields.get("DeviceId").is_none() {
            return Err(CredentialError::ServiceInsteadOfDevice);
        }
        fields.only(&[
            "HostName",
            "DeviceId",
            "SharedAccessKey",
            "SharedAccessSignature",
            "x509",
            "GatewayHostName",
            "ModuleId",
            "SharedAccessKeyName",
        ])?;
        if fields.get("SharedAccessKeyName").is_some() {
            return Err(CredentialError::PolicyInDeviceString);
        }
        let host = fields.host("HostName")?.ok_or(CredentialError::Missing("HostName", "device"))?;
        check_device_host(&host)?;
        let device_id = fields.get("DeviceId").ok_or(CredentialError::Missing("DeviceId", "device"))?;
        check_device_id(device_id)?;
        let module_id = fields.get("ModuleId");
        module_id.map_or(Ok(()), check_module_id)?;
        let x509 = match fields.get("x509") {
            Some(word) if word.eq_ignore_ascii_case("true") => true,
            Some(word) if word.eq_ignore_ascii_case("false") => false,
            Some(word) => return Err(CredentialError::X509Flag(excerpt(word, 20))),
            None => false,
        };
        let secret = match (fields.get("SharedAccessKey"), fields.get("SharedAccessSignature"), x509) {
            (Some(key), None, false) => DeviceSecret::Key(SharedAccessKey::from_base64(key)?),
            (None, Some(token), false) => DeviceSecret::Token(SasToken::parse(token)?),
            (None, None, true) => DeviceSecret::X509,
            (None, None, false) => return Err(CredentialError::Missing("SharedAccessKey", "device")),
            _ => return Err(CredentialError::TwoSecrets),
        };
        let (device_id, module_id) = (device_id.to_owned(), module_id.map(str::to_owned));
        Ok(Self { host, device_id, module_id, gateway: fields.host("GatewayHostName")?, secret })
    }
}

/// How a back end proves which policy it uses.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceSecret {
    /// The policy's key. Tokens are made from it when needed.
    Key(SharedAccessKey),
    /// A ready-made token, valid until it expires.
    Token(SasToken),
}

/// `HostName=…;SharedAccessKeyName=…;SharedAccessKey=…`, or with `SharedAccessSignature=…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServiceConnectionString {
    /// The IoT Hub.
    pub host: HostPort,
    /// The shared access policy, such as `service`.
    pub policy: String,
    /// The proof.
    pub secret: ServiceSecret,
}

impl ServiceConnectionString {
    /// Reads a service connection string.
    ///
    /// # Errors
    /// [`CredentialError`], which never repeats a key. It recognises a device string.
    pub fn parse(text: &str) -> Result<Self, CredentialError> {
        let fields = StringFields::parse(text)?;
        if fields.get("DeviceId").is_some() {
            return Err(CredentialError::DeviceInsteadOfService);
        }
        fields.only(&["HostName", "SharedAccessKeyName", "SharedAccessKey", "SharedAccessSignature"])?;
        let host = fields.host("HostName")?.ok_or(CredentialError::Missing("HostName", "service"))?;
        let policy = fields
            .get("SharedAccessKeyName")
            .ok_or(CredentialError::Missing("SharedAccessKeyName", "service"))?;
        let secret = match (fields.get("SharedAccessKey"), fields.get("SharedAccessSignature")) {
            (Some(key), None) => ServiceSecret::Key(SharedAccessKey::from_base64(key)?),
            (None, Some(token)) => ServiceSecret::Token(SasToken::parse(token)?),
            (None, None) => return Err(CredentialError::Missing("SharedAccessKey", "service")),
            (Some(_), Some(_)) => return Err(CredentialError::TwoSecrets),
        };
        Ok(Self { host, policy: policy.to_owned(), secret })
    }

    /// The hub in a string that need not have a policy, because the back end signs in with Microsoft Entra. The flag says
    /// whether it has more than the hub.
    ///
    /// # Errors
    /// As for [`ServiceConnectionString::parse`].
    pub fn hub(text: &str) -> Result<(HostPort, bool), CredentialError> {
        let fields = StringFields::parse(text)?;
        if fields.get("DeviceId").is_some() {
            return Err(CredentialError::DeviceInsteadOfService);
        }
        let host = fields.host("HostName")?.ok_or(CredentialError::Missing("HostName", "service"))?;
        Ok((host, fields.0.len() > 1))
    }
}

/// What is wrong with a connection string. No variant holds secret text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// A service string in place of a device string: the most common mistake.
    #[error(
        "this is a service connection string (it has SharedAccessKeyName), but this needs a device \
         connection string: use the one of the device itself, HostName=…;DeviceId=…;SharedAccessKey=…"
    )]
    ServiceInsteadOfDevice,
    /// A device string in place of a service string.
    #[error(
        "this is a device connection string (it has DeviceId), but this needs a service connection string: \
         use the one of a shared access policy with ServiceConnect, \
         HostName=…;SharedAccessKeyName=…;SharedAccessKey=…"
    )]
    DeviceInsteadOfService,
    /// The string of a module.
    #[error(
        "this is a module connection string (it has ModuleId), and IoT Hub sends no C2D messages to modules: \
         use the connection string of a device, or set EdgeHubConnectionString to this one to sign in as the \
         module"
    )]
    ModuleString,
    /// The string has both a device and a policy.
    #[error(
        "the connection string has both DeviceId and SharedAccessKeyName: use the device's own connection \
         string"
    )]
    PolicyInDeviceString,
    /// The string is empty.
    #[error("the connection string is empty: az prints it with --query connectionString -o tsv")]
    Empty,
    /// The JSON that `az` prints without options for the value alone.
    #[error(
        "this is JSON, not only the connection string: let az print only that, with --query connectionString \
         -o tsv"
    )]
    Json,
    /// Another text, such as a key alone, or a host name.
    #[error(
        "this is not a connection string, which begins with HostName=: az prints it with --query \
         connectionString -o tsv"
    )]
    Foreign,
    /// Text before the string, such as a variable's name with `=`, or a key of YAML.
    #[error("there is text before HostName=, where the connection string begins: remove it")]
    Prefixed,
    /// The string of another service of the same cloud.
    #[error(
        "this is a connection string of Event Hubs or Service Bus (it has Endpoint): use the one of the IoT \
         Hub, which begins with HostName="
    )]
    EventHubs,
    /// The string has quotes. A shell removes them, but an environment file of Docker keeps them.
    #[error("the connection string is in quotes, which do not belong to it: remove them")]
    Quoted,
    /// A pair without `=`.
    #[error("part {0} of the connection string is not Key=Value: copy all of it, on one line")]
    NotAPair(usize),
    /// A field occurs twice.
    #[error("the connection string has {0} twice: keep one connection string, on one line")]
    Doubled(&'static str),
    /// A field that no connection string has.
    #[error("the connection string has the unknown field \"{0}\": remove it, or copy the string again")]
    Unknown(String),
    /// A field is missing: its name, and the kind of string.
    #[error("the {1} connection string lacks {0}: copy all of it, in quotes if a shell reads it")]
    Missing(&'static str, &'static str),
    /// A text that is not a host.
    #[error(
        "{0} is \"{1}\", which is not a host name with an optional port: write it as in myhub.azure-devices.net"
    )]
    Host(&'static str, String),
    /// A device has the hub's name for back ends: that name, and the hub's own.
    #[error("{0} is the hub's name for back ends, which refuses devices: use {1}")]
    ServiceEndpoint(String, String),
    /// A device id that the hub would refuse.
    #[error(
        "\"{0}\" is not a device id: use 1 to 128 of the letters and digits of ASCII and - . _ % * ? ! ( ) , \
         : = @ $ '"
    )]
    DeviceId(String),
    /// A module id has characters that no id may have.
    #[error(
        "\"{0}\" is not a module id: use 1 to 128 of the letters and digits of ASCII and - . _ % * ? ! ( ) , \
         : = @ $ '"
    )]
    ModuleId(String),
    /// `x509` is neither true nor false.
    #[error("x509 is \"{0}\" in the connection string: write x509=true or remove it")]
    X509Flag(String),
    /// The string has several proofs.
    #[error(
        "the connection string has several of SharedAccessKey, SharedAccessSignature and x509=true: keep one"
    )]
    TwoSecrets,
    /// A malformed key or token.
    #[error(transparent)]
    Sas(#[from] SasError),
}

/// Whether `text` may be a device id. A slash or a wildcard would change the meaning of topics and addresses.
///
/// # Errors
/// [`CredentialError::DeviceId`] names the text.
pub fn check_device_id(text: &str) -> Result<(), CredentialError> {
    is_id(text).then_some(()).ok_or_else(|| CredentialError::DeviceId(excerpt(text, 40)))
}

/// Whether `text` may be a module id: the rules are those of device ids. Source: wire reference 6.3.
///
/// # Errors
/// An error with the start of a text that is no id.
pub fn check_module_id(text: &str) -> Result<(), CredentialError> {
    is_id(text).then_some(()).ok_or_else(|| CredentialError::ModuleId(excerpt(text, 40)))
}

fn is_id(text: &str) -> bool {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-._%*?!(),:=@$'".contains(c);
    !text.is_empty() && text.len() <= MAX_DEVICE_ID_CHARS && text.chars().all(allowed)
}

/// The field names of all connection strings are at most this long.
const MAX_SHOWN_NAME: usize = 24;

/// The field names of any connection string, in the spelling of the documentation.
const KNOWN: [&str; 8] = [
    "HostName",
    "DeviceId",
    "ModuleId",
    "SharedAccessKeyName",
    "SharedAccessKey",
    "SharedAccessSignature",
    "x509",
    "GatewayHostName",
];

/// Repeats only text that looks like a name: a key that lost its own name ends in `=`, so it stands in the place of a
/// name.
fn unknown_field(name: &str, part: usize) -> CredentialError {
    let is_word = name.len() <= MAX_SHOWN_NAME && name.chars().all(|c| c.is_ascii_alphabetic());
    if is_word { CredentialError::Unknown(name.to_owned()) } else { CredentialError::NotAPair(part) }
}

fn known(name: &str) -> Option<&'static str> {
    KNOWN.into_iter().find(|known| known.eq_ignore_ascii_case(name.trim()))
}

struct StringFields<'a>(Vec<(&'static str, &'a str)>);

impl<'a> StringFields<'a> {
    fn parse(text: &'a str) -> Result<Self, CredentialError> {
        // Editors on Windows put a byte order mark before the first letter.
        let text = text.trim_start_matches('\u{feff}').trim();
        match text.chars().next() {
            None => return Err(CredentialError::Empty),
            Some('"' | '\'') => return Err(CredentialError::Quoted),
            Some('{' | '[') => return Err(CredentialError::Json),
            Some(_) => {}
        }
        let first = text.split(';').next().unwrap_or_default().to_ascii_lowercase();
        if first.find("hostname=").is_some_and(|at| at > 0) {
            return Err(CredentialError::Prefixed);
        }
        if first.starts_with("endpoint=") {
            return Err(CredentialError::EventHubs);
        }
        let is_known = |part: &str| part.split_once('=').is_some_and(|(name, _)| known(name).is_some());
        if !text.split(';').any(is_known) {
            return Err(CredentialError::Foreign);
        }
        let mut fields: Vec<(&'static str, &str)> = Vec::new();
        for (index, part) in text.split(';').enumerate().filter(|(_, part)| !part.trim().is_empty()) {
            let (name, value) = part.split_once('=').ok_or(CredentialError::NotAPair(index + 1))?;
            let known = known(name).ok_or_else(|| unknown_field(name.trim(), index + 1))?;
            if fields.iter().any(|(own, _)| *own == known) {
                return Err(CredentialError::Doubled(known));
            }
            fields.push((known, value.trim()));
        }
        Ok(Self(fields))
    }

    fn get(&self, name: &str) -> Option<&'a str> {
        self.0.iter().find(|(own, _)| *own == name).map(|(_, value)| *value)
    }

    fn only(&self, allowed: &[&str]) -> Result<(), CredentialError> {
        match self.0.iter().find(|(name, _)| !allowed.contains(name)) {
            Some((name, _)) => Err(CredentialError::Unknown((*name).to_owned())),
            None => Ok(()),
        }
    }

    fn host(&self, name: &'static str) -> Result<Option<HostPort>, CredentialError> {
        let parse =
            |text: &str| HostPort::parse(text).ok_or_else(|| CredentialError::Host(name, excerpt(text, 60)));
        self.get(name).map(parse).transpose()
    }
}

#[cfg(test)]
mod tests;
