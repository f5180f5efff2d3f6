//! The proof of an application with a certificate.
//!
//! Owns: which assertions are accepted, and why others are not. Must not know: what follows.
//!
//! Source: wire reference 4.7.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::{URL_SAFE, URL_SAFE_NO_PAD};
use ring::digest;
use ring::signature::{self, RsaParameters, UnparsedPublicKey};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer as _;

#[derive(Deserialize)]
struct AssertionHead {
    alg: String,
    x5t: Option<String>,
    #[serde(rename = "x5t#S256")]
    x5t_s256: Option<String>,
}

#[derive(Deserialize)]
struct AssertionClaims {
    aud: String,
    iss: String,
    sub: String,
    /// Python writes a fraction.
    exp: f64,
}

/// Checks an assertion of `client_id` for the address that ends with `endpoint`.
pub(super) fn check(
    assertion: &str,
    certificate: &[u8],
    (client_id, endpoint): (&str, &str),
    now: SystemTime,
) -> Result<(), &'static str> {
    let (signed, signature) = assertion.rsplit_once('.').ok_or("it is not a JWT")?;
    let (head, claims) = signed.split_once('.').ok_or("it is not a JWT")?;
    let head: AssertionHead = part(head)?;
    let claims: AssertionClaims = part(claims)?;
    let algorithm: &RsaParameters = match head.alg.as_str() {
        "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
        "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
        _ => return Err("its algorithm is neither PS256 nor RS256"),
    };
    let is_thumbprint = |shown: &Option<String>, algorithm| {
        let shown = shown.as_deref().map(|text| text.trim_end_matches('='));
        shown.is_none_or(|text| text == URL_SAFE_NO_PAD.encode(digest::digest(algorithm, certificate)))
    };
    let has_one = head.x5t.is_some() || head.x5t_s256.is_some();
    if !has_one
        || !is_thumbprint(&head.x5t, &digest::SHA1_FOR_LEGACY_USE_ONLY)
        || !is_thumbprint(&head.x5t_s256, &digest::SHA256)
    {
        return Err("its thumbprint is not that of the registered certificate");
    }
    let read =
        X509Certificate::from_der(certificate).map_err(|_| "the registered certificate cannot be read")?;
    let key = &read.1.public_key().subject_public_key.data;
    let signature = URL_SAFE_NO_PAD.decode(signature).map_err(|_| "its signature is not base64url")?;
    let verified = UnparsedPublicKey::new(algorithm, key).verify(signed.as_bytes(), &signature);
    verified.map_err(|_| "its signature was made with another key")?;
    let is_address = claims.aud.to_ascii_lowercase().ends_with(&endpoint.to_ascii_lowercase());
    if !is_address || [&claims.iss, &claims.sub].iter().any(|id| !id.eq_ignore_ascii_case(client_id)) {
        return Err("its audience, issuer or subject is another one");
    }
    let now = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    if claims.exp <= now { Err("it is not within its valid time range") } else { Ok(()) }
}

fn part<T: DeserializeOwned>(text: &str) -> Result<T, &'static str> {
    let bytes = URL_SAFE_NO_PAD.decode(text).or_else(|_| URL_SAFE.decode(text));
    let bytes = bytes.map_err(|_| "it is not base64url")?;
    serde_json::from_slice(&bytes).map_err(|_| "it lacks the usual claims")
}
