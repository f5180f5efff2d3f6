//! A stand-in for Microsoft Entra: applications, the tokens that they get, and how the hub knows these tokens again.
//!
//! Owns: what an application must prove, what a token says, its signature. Must not know: HTTP, what a role allows at the
//! hub, the clock (`now` is an argument).
//!
//! Sources: wire reference 4.7, Microsoft's pages "Access token claims reference" (version 1.0) and of error codes
//! (AADSTS). A hub of Azure looks up the roles of the principal of a token; so does this one.
//! Tokens are signed with ES256 and the key of the emulator's authority, so that they outlive a restart.

use std::collections::BTreeMap;
use std::fmt;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::credentials::ENTRA_RESOURCE;
use crate::message::excerpt;

mod assertion;
mod settings;

pub use settings::{AppOption, AppOptionError, AppSecret, EntraRole, EntraSettings};

/// The fields of a form or of a query.
pub(super) type Fields = BTreeMap<String, String>;

/// The authority and its applications.
pub struct EntraIssuer {
    apps: Vec<RegisteredApp>,
    key: EcdsaKeyPair,
    lifetime: Duration,
}

/// An application with its certificate read.
struct RegisteredApp {
    option: AppOption,
    certificate: Option<CertificateDer<'static>>,
}

/// A token, for the answer.
pub(super) struct IssuedToken {
    pub(super) text: String,
    pub(super) resource: String,
    pub(super) issued: u64,
    pub(super) expires: u64,
}

/// A refusal as Entra words it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct TokenRefusal {
    /// The status of the answer.
    pub(super) status: u16,
    /// The word of OAuth.
    pub(super) error: &'static str,
    /// The number after AADSTS.
    pub(super) code: u32,
    pub(super) sentence: String,
}

/// Whom a valid token is for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Principal {
    /// The id to which roles are assigned.
    pub oid: String,
    /// The roles at the hub.
    pub roles: Vec<EntraRole>,
    /// When the token ends, by the clock of the issuer.
    pub expires: SystemTime,
}

/// Why the hub does not take a token. Foreign text is short and escaped.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BearerError {
    /// There is no issuer.
    #[error("the emulator has no application of Microsoft Entra: start it with --entra-app")]
    NoIssuer,
    /// The text is no token.
    #[error("the token of Microsoft Entra is not a JWT with the usual claims")]
    Malformed,
    /// Another issuer has signed it.
    #[error("the token of Microsoft Entra is not one of this emulator's issuer")]
    Signature,
    /// It is for another service.
    #[error("the token of Microsoft Entra is for \"{0}\", but must be for {ENTRA_RESOURCE}")]
    Audience(String),
    /// The application is not there any more.
    #[error("the emulator has no application \"{0}\": it was started without it")]
    Application(String),
}

/// What the hub reads of a token.
#[derive(Deserialize)]
struct ReadClaims {
    aud: String,
    appid: String,
    tid: String,
    exp: u64,
}

impl EntraIssuer {
    /// `private_key` is the PEM text of an ECDSA key on P-256. Certificates of applications are read.
    ///
    /// # Errors
    /// [`AppOptionError`] names a file that cannot be used, or the key.
    pub(super) fn new(settings: &EntraSettings, private_key: &str) -> Result<Self, AppOptionError> {
        let der = PrivateKeyDer::from_pem_slice(private_key.as_bytes()).map_err(|_| AppOptionError::Key)?;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_der(), &random);
        let key = key.map_err(|_| AppOptionError::Key)?;
        let apps = settings.apps.iter().map(|option| {
            let certificate = option.proof.read_certificate()?;
            Ok::<_, AppOptionError>(RegisteredApp { option: option.clone(), certificate })
        });
        Ok(Self { apps: apps.collect::<Result<_, _>>()?, key, lifetime: settings.token_lifetime })
    }

    /// The answer to a form at the token endpoint of a tenant.
    ///
    /// # Errors
    /// [`TokenRefusal`].
    pub(super) fn grant(
        &self,
        tenant: &str,
        form: &Fields,
        now: SystemTime,
    ) -> Result<IssuedToken, TokenRefusal> {
        let field = |name: &str| form.get(name).map(String::as_str).unwrap_or_default();
        if !self.apps.iter().any(|app| app.option.tenant.eq_ignore_ascii_case(tenant)) {
            let sentence = format!("Tenant '{}' not found.", excerpt(tenant));
            return Err(TokenRefusal { status: 400, error: "invalid_request", code: 90002, sentence });
        }
        if field("grant_type") != "client_credentials" {
            let sentence =
                format!("The app requested an unsupported grant type '{}'.", excerpt(field("grant_type")));
            return Err(TokenRefusal { status: 400, error: "unsupported_grant_type", code: 70003, sentence });
        }
        let client_id = field("client_id");
        let found = |app: &&RegisteredApp| {
            app.option.tenant.eq_ignore_ascii_case(tenant)
                && app.option.client_id.eq_ignore_ascii_case(client_id)
        };
        let app = self.apps.iter().find(found).ok_or_else(|| {
            let (id, tenant) = (excerpt(client_id), excerpt(tenant));
            let sentence =
                format!("Application with identifier '{id}' was not found in the directory '{tenant}'.");
            TokenRefusal { status: 400, error: "unauthorized_client", code: 700016, sentence }
        })?;
        let scope = field("scope");
        let resource =
            scope.split(' ').find_map(|scope| scope.strip_suffix("/.default")).ok_or_else(|| {
                let sentence =
                    format!("The scope '{}' is not valid: it must end with /.default.", excerpt(scope));
                TokenRefusal { status: 400, error: "invalid_scope", code: 1002012, sentence }
            })?;
        let endpoint = format!("/{tenant}/oauth2/v2.0/token");
        app.check(form, &endpoint, now).map_err(|(code, sentence)| TokenRefusal {
            status: 401,
            error: "invalid_client",
            code,
            sentence,
        })?;
        self.issue(&app.option, resource, now)
    }

    /// The token of a machine's identity: the first application, or the one with this id.
    ///
    /// # Errors
    /// [`TokenRefusal`].
    pub(super) fn grant_machine(&self, query: &Fields, now: SystemTime) -> Result<IssuedToken, TokenRefusal> {
        let refused = |sentence: &str| TokenRefusal {
            status: 400,
            error: "invalid_request",
            code: 0,
            sentence: sentence.to_owned(),
        };
        let resource = query.get("resource").filter(|resource| !resource.is_empty());
        let resource = resource.ok_or_else(|| refused("Required query variable 'resource' is missing"))?;
        let wanted = query.get("client_id");
        let is_wanted =
            |app: &&RegisteredApp| wanted.is_none_or(|id| app.option.client_id.eq_ignore_ascii_case(id));
        let app = self.apps.iter().find(is_wanted).ok_or_else(|| refused("Identity not found"))?;
        self.issue(&app.option, resource, now)
    }

    fn issue(&self, app: &AppOption, resource: &str, now: SystemTime) -> Result<IssuedToken, TokenRefusal> {
        let issued = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        let expires = issued.saturating_add(self.lifetime.as_secs());
        let resource = resource.trim_end_matches('/').to_owned();
        let AppOption { tenant, client_id, .. } = app;
        let claims = json!({
            "aud": resource, "iss": format!("https://sts.windows.net/{tenant}/"), "iat": issued, "nbf": issued,
            "exp": expires, "appid": client_id, "appidacr": "1", "idtyp": "app", "oid": app.oid(), "sub": app.oid(),
            "tid": tenant, "ver": "1.0",
        });
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        let signed = format!("{}.{}", part(&json!({ "typ": "JWT", "alg": "ES256" })), part(&claims));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).map_err(|_| TokenRefusal {
            status: 503,
            error: "temporarily_unavailable",
            code: 90006,
            sentence: "The token cannot be signed.".to_owned(),
        })?;
        let text = format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature));
        Ok(IssuedToken { text, resource, issued, expires })
    }

    /// Whom a token is for. The caller compares its end with its clock.
    ///
    /// # Errors
    /// [`BearerError`].
    pub fn check(&self, token: &str) -> Result<Principal, BearerError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(BearerError::Malformed)?;
        let (_, payload) = signed.split_once('.').ok_or(BearerError::Malformed)?;
        let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| BearerError::Malformed)?;
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref());
        public.verify(signed.as_bytes(), &signature).map_err(|_| BearerError::Signature)?;
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| BearerError::Malformed)?;
        let claims: ReadClaims = serde_json::from_slice(&payload).map_err(|_| BearerError::Malformed)?;
        if claims.aud != ENTRA_RESOURCE {
            return Err(BearerError::Audience(excerpt(&claims.aud)));
        }
        let is_it =
            |app: &&RegisteredApp| app.option.tenant == claims.tid && app.option.client_id == claims.appid;
        let app = self.apps.iter().find(is_it).map(|app| &app.option);
        let app = app.ok_or_else(|| BearerError::Application(excerpt(&claims.appid)))?;
        let expires = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp));
        let expires = expires.ok_or(BearerError::Malformed)?;
        Ok(Principal { oid: app.oid(), roles: app.roles.clone(), expires })
    }
}

impl fmt::Debug for EntraIssuer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "EntraIssuer({} applications)", self.apps.len())
    }
}

impl RegisteredApp {
    /// Checks the proof in a form.
    fn check(&self, form: &Fields, endpoint: &str, now: SystemTime) -> Result<(), (u32, String)> {
        let secret = form.get("client_secret");
        let assertion = form.get("client_assertion");
        let Some(shown) = secret.or(assertion) else {
            let sentence = "The request body must contain the following parameter: 'client_assertion' or 'client_secret'.";
            return Err((7000218, sentence.to_owned()));
        };
        match (&self.certificate, assertion) {
            (Some(certificate), Some(assertion)) => {
                assertion::check(assertion, certificate, (&self.option.client_id, endpoint), now)
                    .map_err(|reason| (700027, format!("The client assertion is not accepted: {reason}.")))
            }
            (Some(_), None) => Err((7000215, "Invalid client secret provided.".to_owned())),
            // The token of another issuer is compared with the secret.
            (None, _) if self.option.proof.is_text(shown) => Ok(()),
            (None, Some(_)) => Err((700213, "No matching federated identity record found.".to_owned())),
            (None, None) => Err((7000215, "Invalid client secret provided.".to_owned())),
        }
    }
}

/// The token in an `Authorization` header or in the body of a CBS request; `None` for a SAS token. In CBS it may stand
/// without its scheme.
pub(super) fn bearer(text: &str) -> Option<&str> {
    match text.split_at_checked(7) {
        Some((scheme, token)) if scheme.eq_ignore_ascii_case("bearer ") => Some(token.trim()),
        _ if text.starts_with("eyJ") => Some(text.trim()),
        _ => None,
    }
}

/// Compares the digests of secrets: the time that it takes says nothing about the secrets.
fn is_same(one: &str, other: &str) -> bool {
    let hash = |text: &str| digest::digest(&digest::SHA256, text.as_bytes());
    hash(one).as_ref() == hash(other).as_ref()
}

/// The pairs of a form or a query.
pub(super) fn fields(text: &str) -> Fields {
    let decoded = |text: &str| {
        percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned()
    };
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (decoded(name), decoded(value))).collect()
}

#[cfg(test)]
mod tests;
