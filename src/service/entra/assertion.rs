//! The proof of an application that has a certificate: a short JWT, signed with the private key.
//!
//! Owns: its form and its signature. Must not know: where it is sent.
//!
//! Source: wire reference 4.7. RS256 with `x5t`, and RSA only, as in azure_identity of Microsoft's Rust SDK.

use std::path::Path;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::rsa::KeyPair;
use ring::{digest, signature};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};

use super::TokenFailure;
use crate::tls;

const LIFETIME: Duration = Duration::from_secs(5 * 60);

/// Signs for `client_id`, to be shown at the address `audience`.
pub(super) fn sign(
    path: &Path,
    client_id: &str,
    audience: &str,
    now: SystemTime,
) -> Result<String, TokenFailure> {
    let lasting = |reason: String| TokenFailure::Lasting(reason);
    let chain = tls::read_certificates(path).map_err(|error| lasting(error.to_string()))?;
    let key = tls::read_private_key(path).map_err(|error| lasting(error.to_string()))?;
    let key = match &key {
        PrivateKeyDer::Pkcs8(der) => KeyPair::from_pkcs8(der.secret_pkcs8_der()),
        PrivateKeyDer::Pkcs1(der) => KeyPair::from_der(der.secret_pkcs1_der()),
        _ => return Err(lasting(no_rsa(path))),
    };
    let key = key.map_err(|_| lasting(no_rsa(path)))?;
    let thumbprint = chain.first().map(|der| digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, der));
    let thumbprint = URL_SAFE_NO_PAD.encode(thumbprint.as_ref().map_or(&[][..], |digest| digest.as_ref()));
    let seconds = now.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let head = json!({ "alg": "RS256", "typ": "JWT", "x5t": thumbprint });
    let claims = json!({
        "aud": audience,
        "iss": client_id,
        "sub": client_id,
        "jti": uuid::Uuid::new_v4().to_string(),
        "nbf": seconds.as_secs(),
        "exp": (seconds + LIFETIME).as_secs(),
    });
    let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
    let signed = format!("{}.{}", part(&head), part(&claims));
    let mut signature = vec![0; key.public().modulus_len()];
    let random = SystemRandom::new();
    key.sign(&signature::RSA_PKCS1_SHA256, &random, signed.as_bytes(), &mut signature)
        .map_err(|_| lasting(format!("the private key in {} cannot sign", path.display())))?;
    Ok(format!("{signed}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

fn no_rsa(path: &Path) -> String {
    format!(
        "the private key in {} is no RSA key of 2048 to 4096 bits, which Entra needs here: make one of that kind",
        path.display()
    )
}
