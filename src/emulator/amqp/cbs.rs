//! Claims-based security: tokens that clients send to `$cbs`.
//!
//! Owns: which requests are tokens, and the status of each. Must not know: what a token allows, links.
//! Source: wire reference 2.3.

use fe2o3_amqp::types::messaging::{AmqpValue, Body};
use fe2o3_amqp::types::primitives::Value;

use super::claims::{ClaimError, Claims};
use super::requests::{self, NodeAnswer, NodeRequest};
use crate::emulator::registry::AuthError;

/// Types of tokens, compared without case. The second is for Entra tokens; Node sends those with the first type, and other
/// services of Azure name them as the third.
const TOKEN_TYPES: [&str; 3] = ["servicebus.windows.net:sastoken", "bearer", "jwt"];

/// Takes the token of a request.
pub(super) fn put(claims: &Claims, request: &NodeRequest) -> NodeAnswer {
    let (token, audience) = match token_of(request) {
        Ok(found) => found,
        Err(words) => return NodeAnswer::new(400, words),
    };
    match claims.put(token, audience) {
        Ok(()) => NodeAnswer::new(200, "OK"),
        Err(ClaimError::Auth(AuthError::Token(error))) => NodeAnswer::new(400, error.to_string()),
        Err(error) => {
            tracing::warn!(%error, "refused a token");
            let status = if matches!(error, ClaimError::Module) { 501 } else { 401 };
            NodeAnswer::new(status, error.to_string())
        }
    }
}

/// The token, and the audience that it is for.
fn token_of(request: &NodeRequest) -> Result<(&str, &str), &'static str> {
    let text = |name| requests::text(request, name);
    if !text("operation").is_some_and(|operation| operation.eq_ignore_ascii_case("put-token")) {
        return Err("the operation is not put-token");
    }
    let known = |kind: &str| TOKEN_TYPES.iter().any(|own| own.eq_ignore_ascii_case(kind));
    if !text("type").is_some_and(known) {
        return Err("the type is neither servicebus.windows.net:sastoken nor Bearer nor jwt");
    }
    match &request.body {
        Body::Value(AmqpValue(Value::String(token))) => Ok((token, text("name").unwrap_or_default())),
        _ => Err("the body is not a token in an AMQP string"),
    }
}
