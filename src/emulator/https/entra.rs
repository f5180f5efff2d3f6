//! The token endpoint of Microsoft Entra's stand-in, and what libraries read before they use it.
//!
//! Owns: their answers. Must not know: who gets a token.
//!
//! Sources: RFC 6749 5.1 and 5.2; Microsoft's page "OpenID Connect on the Microsoft identity platform".

use hyper::StatusCode;
use hyper::header::HOST;
use serde_json::json;

use super::call::HttpCall;
use super::reply::{self, HttpReply, HttpResult};
use crate::emulator::entra::{self, TokenRefusal};

/// A certificate's assertion has about 1 KiB.
const MAX_FORM: usize = 64 * 1024;

/// Gives a token to an application.
pub(super) async fn token(call: &mut HttpCall) -> HttpResult {
    let form = call.body(MAX_FORM).await?;
    let form = entra::fields(&String::from_utf8_lossy(&form));
    let Some(issuer) = call.hub.with(|hub, _| hub.issuer()) else { return Ok(no_issuer()) };
    // By the real time: tokens of clients are, too.
    Ok(match issuer.grant(call.segment(0), &form, call.hub.clock().0) {
        Ok(token) => reply::ok(&json!({
            "token_type": "Bearer",
            "expires_in": token.expires - token.issued,
            "ext_expires_in": token.expires - token.issued,
            "access_token": token.text,
        })),
        Err(TokenRefusal { status, error, code, sentence }) => {
            tracing::warn!(code, "refused a token: {sentence}");
            let body = json!({
                "error": error,
                "error_description": format!("AADSTS{code}: {sentence}"),
                "error_codes": [code],
            });
            reply::json_of(StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST), &body)
        }
    })
}

/// Where a tenant's endpoints are.
pub(super) fn discovery(call: &HttpCall) -> HttpResult {
    if call.hub.with(|hub, _| hub.issuer()).is_none() {
        return Ok(no_issuer());
    }
    let host = call.header(HOST.as_str()).unwrap_or("localhost");
    let base = format!("https://{host}/{}", call.segment(0));
    Ok(reply::ok(&json!({
        "issuer": format!("{base}/v2.0"),
        "authorization_endpoint": format!("{base}/oauth2/v2.0/authorize"),
        "token_endpoint": format!("{base}/oauth2/v2.0/token"),
        "jwks_uri": format!("{base}/discovery/v2.0/keys"),
        "response_types_supported": ["code"],
        "subject_types_supported": ["pairwise"],
        "id_token_signing_alg_values_supported": ["ES256"],
        "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt"],
        "scopes_supported": ["openid"],
    })))
}

fn no_issuer() -> HttpReply {
    let sentence = "there is no application of Microsoft Entra: start the emulator with --entra-app";
    reply::error(StatusCode::NOT_FOUND, "ResourceNotFound", sentence)
}
