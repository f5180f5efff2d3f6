//! Signing in to the hub with Microsoft Entra: where a back end gets its token, and the token itself.
//!
//! Owns: the choice, read from an argument and the environment; what is missing for it; tokens, which cannot be
//! printed. Must not know: files, the environment itself, requests, clocks.
//!
//! The variables are those of Microsoft's SDKs: wire reference 4.7, and azure-identity of Python for
//! `AZURE_POD_IDENTITY_AUTHORITY_HOST`.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

use super::excerpt;

mod endpoint;

pub use endpoint::{EndpointError, TokenEndpoint};

/// What tokens for a hub are for; the scope adds `/.default`. Source: wire reference 4.7.
pub const ENTRA_RESOURCE: &str = "https://iothubs.azure.net";

const TENANT: &str = "AZURE_TENANT_ID";
const CLIENT: &str = "AZURE_CLIENT_ID";
const SECRET: &str = "AZURE_CLIENT_SECRET";
const CERTIFICATE: &str = "AZURE_CLIENT_CERTIFICATE_PATH";
const FEDERATED: &str = "AZURE_FEDERATED_TOKEN_FILE";
const AUTHORITY: &str = "AZURE_AUTHORITY_HOST";
const IDENTITY: &str = "IDENTITY_ENDPOINT";
const IDENTITY_HEADER: &str = "IDENTITY_HEADER";
const IMDS: &str = "IMDS_ENDPOINT";
const POD_IMDS: &str = "AZURE_POD_IDENTITY_AUTHORITY_HOST";

const PUBLIC_AUTHORITY: &str = "https://login.microsoftonline.com";
const IMDS_HOST: &str = "http://169.254.169.254";
const IMDS_PATH: &str = "/metadata/identity/oauth2/token";
const ARC_ENDPOINT: &str = "http://localhost:40342/metadata/identity/oauth2/token";
/// Where the agent of Azure Arc writes the keys of its challenges. Source: wire reference 4.7.
const ARC_KEYS: &str = "/var/opt/azcmagent/tokens";

/// How a back end signs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthMethod {
    /// With the key or token of a service connection string.
    Sas,
    /// As the account of the Azure CLI.
    Az,
    /// As an application with a client secret.
    Secret,
    /// As an application with a certificate.
    Certificate,
    /// As an application with a token of another issuer, as in Kubernetes.
    Federated,
    /// As the managed identity of the machine or of the app service.
    Managed,
    /// As the identity of a server that Azure Arc manages.
    Arc,
}

impl AuthMethod {
    /// The word for `--auth`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Sas => "sas",
            Self::Az => "az",
            Self::Secret => "secret",
            Self::Certificate => "certificate",
            Self::Federated => "federated",
            Self::Managed => "managed",
            Self::Arc => "arc",
        }
    }

    /// The method that the environment declares, and the variable that declares it. No variable declares `az`, or the
    /// identity of a machine.
    pub fn declared(variable: Variables<'_>) -> Option<(Self, &'static str)> {
        let is_set = |name: &str| value(variable, name).is_some();
        let declared: [(_, &'static str, bool); 6] = [
            (Self::Secret, SECRET, is_set(SECRET)),
            (Self::Certificate, CERTIFICATE, is_set(CERTIFICATE)),
            (Self::Federated, FEDERATED, is_set(FEDERATED)),
            (Self::Arc, IMDS, is_set(IDENTITY) && is_set(IMDS)),
            (Self::Managed, IDENTITY, is_set(IDENTITY) && is_set(IDENTITY_HEADER)),
            (Self::Managed, POD_IMDS, is_set(POD_IMDS)),
        ];
        declared.into_iter().find_map(|(method, name, is_it)| is_it.then_some((method, name)))
    }
}

/// Looks up a variable of the environment.
pub type Variables<'a> = &'a dyn Fn(&str) -> Option<String>;

/// An empty variable counts as absent.
fn value(variable: Variables<'_>, name: &str) -> Option<String> {
    variable(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
}

/// Where tokens come from, with all that the environment says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntraLogin {
    /// `az account get-access-token` prints them.
    Az {
        /// The tenant, if it is not the account's own.
        tenant: Option<String>,
    },
    /// The token endpoint of the authority gives them to an application.
    App {
        /// The application.
        app: EntraApp,
        /// Its proof.
        proof: AppProof,
    },
    /// An endpoint of this machine gives them.
    Managed {
        /// The endpoint.
        endpoint: TokenEndpoint,
        /// The secret header of App Service, Container Apps and Functions; `None` at the endpoint of a virtual machine
        /// (IMDS).
        header: Option<HiddenText>,
        /// The client id of a user-assigned identity.
        client_id: Option<String>,
    },
    /// The agent of Azure Arc gives them.
    Arc {
        /// The endpoint.
        endpoint: TokenEndpoint,
        /// The only directory whose files may be sent to the agent as an answer to its challenge.
        keys: PathBuf,
    },
}

/// An application that is registered in Entra.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntraApp {
    /// The tenant's id or domain.
    pub tenant: String,
    /// The application's id.
    pub client_id: String,
    /// The authority; its path is empty.
    pub authority: TokenEndpoint,
}

/// How an application proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AppProof {
    /// A client secret.
    Secret(HiddenText),
    /// A PEM file with the certificate and its private key.
    Certificate(PathBuf),
    /// A file with a token of another issuer. It is read for each request, because its writer renews it.
    Federated(PathBuf),
}

impl EntraLogin {
    /// Reads what `method` needs from the environment.
    ///
    /// # Errors
    /// [`EntraError`] names all variables that are missing, or the one that cannot be used.
    pub fn read(method: AuthMethod, variable: Variables<'_>) -> Result<Self, EntraError> {
        let get = |name: &str| value(variable, name);
        let endpoint = |name: &'static str, text: &str| {
            TokenEndpoint::parse(text).map_err(|error| EntraError::Endpoint(name, error))
        };
        let proof: fn(String) -> AppProof = match method {
            AuthMethod::Sas => return Err(EntraError::NotEntra),
            AuthMethod::Az => return Ok(Self::Az { tenant: get(TENANT) }),
            AuthMethod::Managed => {
                let client_id = get(CLIENT);
                if let (Some(text), Some(header)) = (get(IDENTITY), get(IDENTITY_HEADER)) {
                    let (endpoint, header) = (endpoint(IDENTITY, &text)?, Some(HiddenText::new(header)));
                    return Ok(Self::Managed { endpoint, header, client_id });
                }
                let host = get(POD_IMDS).unwrap_or_else(|| IMDS_HOST.to_owned());
                let endpoint = endpoint(POD_IMDS, &host)?.at(IMDS_PATH);
                return Ok(Self::Managed { endpoint, header: None, client_id });
            }
            AuthMethod::Arc => {
                let text = get(IDENTITY).unwrap_or_else(|| ARC_ENDPOINT.to_owned());
                return Ok(Self::Arc { endpoint: endpoint(IDENTITY, &text)?, keys: ARC_KEYS.into() });
            }
            AuthMethod::Secret => |text| AppProof::Secret(HiddenText::new(text)),
            AuthMethod::Certificate => |text| AppProof::Certificate(text.into()),
            AuthMethod::Federated => |text| AppProof::Federated(text.into()),
        };
        let name = match method {
            AuthMethod::Certificate => CERTIFICATE,
            AuthMethod::Federated => FEDERATED,
            _ => SECRET,
        };
        let (tenant, client_id, given) = match (get(TENANT), get(CLIENT), get(name)) {
            (Some(tenant), Some(client_id), Some(given)) => (tenant, client_id, given),
            (tenant, client_id, given) => {
                let all = [(TENANT, tenant), (CLIENT, client_id), (name, given)];
                let missing = all.into_iter().filter(|(_, value)| value.is_none()).map(|(name, _)| name);
                return Err(EntraError::Missing(method.name(), missing.collect()));
            }
        };
        // It becomes part of a path.
        if !tenant.chars().all(|c| c.is_ascii_alphanumeric() || c == '-' || c == '.') {
            return Err(EntraError::Tenant(excerpt(&tenant, 60)));
        }
        let authority = get(AUTHORITY).unwrap_or_else(|| PUBLIC_AUTHORITY.to_owned());
        // Microsoft's SDKs take a host name alone, too.
        let scheme = if authority.contains("://") { "" } else { "https://" };
        let authority = endpoint(AUTHORITY, &format!("{scheme}{}", authority.trim_end_matches('/')))?;
        Ok(Self::App { app: EntraApp { tenant, client_id, authority }, proof: proof(given) })
    }
}

impl fmt::Display for EntraLogin {
    /// Who asks whom, without any secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Az { tenant: None } => f.write_str("the account of the Azure CLI (az)"),
            Self::Az { tenant: Some(tenant) } => {
                write!(f, "the account of the Azure CLI (az) in tenant {}", excerpt(tenant, 60))
            }
            Self::App { app: EntraApp { tenant, client_id, authority }, proof } => {
                let proof = match proof {
                    AppProof::Secret(_) => "its client secret".to_owned(),
                    AppProof::Certificate(path) => format!("the certificate in {}", path.display()),
                    AppProof::Federated(path) => format!("the token in {}", path.display()),
                };
                let client_id = excerpt(client_id, 60);
                write!(f, "application {client_id} of tenant {tenant} at {authority}, with {proof}")
            }
            Self::Managed { endpoint, client_id, .. } => match client_id {
                Some(id) => write!(f, "the managed identity {} at {endpoint}", excerpt(id, 60)),
                None => write!(f, "the managed identity at {endpoint}"),
            },
            Self::Arc { endpoint, .. } => write!(f, "the identity of this Azure Arc server at {endpoint}"),
        }
    }
}

/// Why there is no way to a token. No variant holds a secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EntraError {
    /// Variables that are not set.
    #[error("--auth {0} needs {names} in the environment: set what is missing", names = .1.join(" and "))]
    Missing(&'static str, Vec<&'static str>),
    /// A variable that is no endpoint.
    #[error("{0} {1}")]
    Endpoint(&'static str, EndpointError),
    /// The tenant cannot be part of an address.
    #[error("AZURE_TENANT_ID is \"{0}\": give the id of a tenant, or its domain")]
    Tenant(String),
    /// The other way to sign in.
    #[error("--auth sas has no token of Microsoft Entra")]
    NotEntra,
}

/// A text that cannot be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct HiddenText(String);

impl HiddenText {
    /// Hides a text.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into())
    }

    /// The text itself. Never log it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HiddenText {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HiddenText(…)")
    }
}

/// A token of Entra, with the time of its end. It cannot be printed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BearerToken {
    text: HiddenText,
    end: SystemTime,
}

/// Whom a token is for, as it says itself. Nothing of it is checked: only the hub can do that.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct TokenClaims {
    /// The application's id.
    #[serde(alias = "azp")]
    pub appid: Option<String>,
    /// The id of the principal, to which roles are assigned.
    pub oid: Option<String>,
    /// The tenant.
    pub tid: Option<String>,
    /// The name of a person.
    #[serde(alias = "upn", alias = "preferred_username")]
    pub unique_name: Option<String>,
}

impl BearerToken {
    /// A token that ends at this time; `None` if the text is not one that a header can hold.
    pub fn new(text: &str, end: SystemTime) -> Option<Self> {
        let is_token = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_token.then(|| Self { text: HiddenText::new(text), end })
    }

    /// When the token ends.
    pub fn end(&self) -> SystemTime {
        self.end
    }

    /// `Bearer` and the token, for a header or a CBS request. Never log it.
    pub fn expose(&self) -> String {
        format!("Bearer {}", self.text.expose())
    }

    /// What the token says of its principal; `None` if it is not a JWT.
    pub fn claims(&self) -> Option<TokenClaims> {
        let payload = self.text.expose().split('.').nth(1)?;
        serde_json::from_slice(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok()
    }
}

#[cfg(test)]
mod tests;
