//! The requests for a token, and what the answers mean.
//!
//! Owns: each source's protocol, tries and their limits. Must not know: when a token is due, sockets.
//!
//! Source: wire reference 4.7.

use std::io::Read as _;
use std::path::Path;
use std::time::{Duration, SystemTime};

use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue, WWW_AUTHENTICATE};
use percent_encoding::utf8_percent_encode;
use serde::Deserialize;
use serde_json::Value;

use super::http::{self, TokenAnswer, TokenRequest};
use super::{EntraRoute, TokenFailure, assertion, az, in_time};
use crate::credentials::{
    AppProof, BearerToken, ENTRA_RESOURCE, EntraApp, EntraLogin, HiddenText, TokenEndpoint,
};
use crate::service::refusal::excerpt;
use crate::service::target::ENCODED;

const OF_A_MACHINE: &str = "2018-02-01";
const OF_AN_APP_SERVICE: &str = "2019-08-01";
const OF_ARC: &str = "2021-02-01";
const METADATA: HeaderName = HeaderName::from_static("metadata");
const IDENTITY_HEADER: HeaderName = HeaderName::from_static("x-identity-header");

/// How often, and for how long, the endpoint of a machine is asked that is not ready.
const TRIES: u32 = 7;
const FIRST_PAUSE: Duration = Duration::from_millis(1_340);
const ALL_TRIES: Duration = Duration::from_secs(72);

/// A federated token has a few KiB, and a key of Azure Arc at most 4 KiB.
const MAX_FILE: u64 = 64 * 1024;
const MAX_ARC_KEY: u64 = 4 * 1024;

/// Asks the source once.
pub(super) async fn ask(
    login: &EntraLogin,
    route: &EntraRoute,
    clock: fn() -> SystemTime,
) -> Result<BearerToken, TokenFailure> {
    match login {
        EntraLogin::Az { tenant } => az::ask(tenant.as_deref(), clock).await,
        EntraLogin::App { app, proof } => of_app(app, proof, route, clock).await,
        EntraLogin::Managed { endpoint, header, client_id } => {
            let asked = of_machine(endpoint, header.as_ref(), client_id.as_deref(), route, clock);
            let late = || TokenFailure::Passing(format!("{} is not ready", endpoint.authority()));
            tokio::time::timeout(ALL_TRIES, asked).await.map_err(|_| late())?
        }
        EntraLogin::Arc { endpoint, keys } => of_arc(endpoint, keys, route, clock).await,
    }
}

async fn of_app(
    app: &EntraApp,
    proof: &AppProof,
    route: &EntraRoute,
    clock: fn() -> SystemTime,
) -> Result<BearerToken, TokenFailure> {
    let endpoint = app.authority.at(&format!("{}/{}/oauth2/v2.0/token", app.authority.path, app.tenant));
    let scope = format!("{ENTRA_RESOURCE}/.default");
    let mut form = vec![
        ("grant_type", "client_credentials".to_owned()),
        ("client_id", app.client_id.clone()),
        ("scope", scope),
    ];
    let signed = match proof {
        AppProof::Secret(secret) => {
            form.push(("client_secret", secret.expose().to_owned()));
            None
        }
        AppProof::Certificate(path) => {
            Some(assertion::sign(path, &app.client_id, &endpoint.to_string(), clock())?)
        }
        AppProof::Federated(path) => Some(read(path, MAX_FILE, "AZURE_FEDERATED_TOKEN_FILE")?),
    };
    if let Some(signed) = signed {
        let kind = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer";
        form.extend([("client_assertion_type", kind.to_owned()), ("client_assertion", signed)]);
    }
    let pairs = form.iter().map(|(name, value)| format!("{name}={}", utf8_percent_encode(value, ENCODED)));
    let form = Some(pairs.collect::<Vec<_>>().join("&"));
    let server = endpoint.authority();
    let answer =
        http::send(TokenRequest { endpoint, query: String::new(), headers: Vec::new(), form }, route).await?;
    token(&answer, &server, clock())
}

async fn of_machine(
    endpoint: &TokenEndpoint,
    header: Option<&HiddenText>,
    client_id: Option<&str>,
    route: &EntraRoute,
    clock: fn() -> SystemTime,
) -> Result<BearerToken, TokenFailure> {
    let (version, header) = match header {
        Some(secret) => (OF_AN_APP_SERVICE, (IDENTITY_HEADER, sensitive(secret.expose())?)),
        None => (OF_A_MACHINE, (METADATA, HeaderValue::from_static("true"))),
    };
    let mut pause = FIRST_PAUSE;
    let mut left = TRIES;
    loop {
        left -= 1;
        let answer =
            http::send(of_this_machine(endpoint, version, client_id, vec![header.clone()]), route).await;
        let answer = answer.map_err(|failure| match failure {
            TokenFailure::Passing(reason) => TokenFailure::Passing(format!(
                "{reason}: only a machine or a service of Azure has a managed identity"
            )),
            lasting => lasting,
        })?;
        let is_unready = answer.status.is_server_error()
            || [StatusCode::NOT_FOUND, StatusCode::GONE, StatusCode::TOO_MANY_REQUESTS]
                .contains(&answer.status);
        if !is_unready || left == 0 {
            return token(&answer, &endpoint.authority(), clock());
        }
        tracing::debug!(status = %answer.status, "the endpoint of the managed identity is not ready");
        tokio::time::sleep(pause).await;
        pause *= 2;
    }
}

async fn of_arc(
    endpoint: &TokenEndpoint,
    keys: &Path,
    route: &EntraRoute,
    clock: fn() -> SystemTime,
) -> Result<BearerToken, TokenFailure> {
    let ask = |further: Option<(HeaderName, HeaderValue)>| {
        let mut headers = vec![(METADATA, HeaderValue::from_static("true"))];
        headers.extend(further);
        http::send(of_this_machine(endpoint, OF_ARC, None, headers), route)
    };
    let server = endpoint.authority();
    let challenged = ask(None).await.map_err(|failure| {
        TokenFailure::Passing(format!(
            "{failure}: only a server with the agent of Azure Arc has this identity"
        ))
    })?;
    match challenged.status {
        StatusCode::UNAUTHORIZED => {}
        StatusCode::OK => {
            let words = format!("{server} answers without a challenge: it is not the agent of Azure Arc");
            return Err(TokenFailure::Lasting(words));
        }
        _ => return Err(refused(&challenged, &server)),
    }
    let realm = challenged.headers.get(WWW_AUTHENTICATE).and_then(|value| value.to_str().ok());
    let path = realm
        .and_then(|text| text.strip_prefix("Basic realm="))
        .map(|text| Path::new(text.trim_matches('"')));
    // Another program could listen there and ask for any file.
    let is_key =
        |path: &&Path| path.parent() == Some(keys) && path.extension().is_some_and(|end| end == "key");
    let path = path.filter(is_key).ok_or_else(|| {
        let keys = keys.display();
        TokenFailure::Lasting(format!(
            "{server} asks for a file that is not a .key file in {keys}: it is not the agent of Azure Arc"
        ))
    })?;
    let key =
        read(path, MAX_ARC_KEY, "the key of Azure Arc, for which this user must be in the group himds")?;
    let answer = ask(Some((AUTHORIZATION, sensitive(&format!("Basic {key}"))?))).await?;
    token(&answer, &server, clock())
}

fn of_this_machine(
    endpoint: &TokenEndpoint,
    version: &str,
    client_id: Option<&str>,
    headers: Vec<(HeaderName, HeaderValue)>,
) -> TokenRequest {
    let encoded = |text: &str| utf8_percent_encode(text, ENCODED).to_string();
    let id = client_id.map(|id| format!("&client_id={}", encoded(id))).unwrap_or_default();
    let query = format!("?api-version={version}&resource={}{id}", encoded(ENTRA_RESOURCE));
    TokenRequest { endpoint: endpoint.clone(), query, headers, form: None }
}

fn sensitive(text: &str) -> Result<HeaderValue, TokenFailure> {
    let value = HeaderValue::from_str(text);
    let mut value = value
        .map_err(|_| TokenFailure::Lasting("the secret has characters that no header may have".to_owned()))?;
    value.set_sensitive(true);
    Ok(value)
}

/// A small text file, without white space at its ends.
fn read(path: &Path, limit: u64, what: &str) -> Result<String, TokenFailure> {
    let failed =
        |reason: String| TokenFailure::Lasting(format!("cannot read {} ({what}): {reason}", path.display()));
    let mut text = String::new();
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    file.take(limit + 1).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    if text.len() as u64 > limit {
        return Err(failed(format!("it has more than {} KiB", limit / 1024)));
    }
    Ok(text.trim().to_owned())
}

/// The answer of all sources but `az`. Times are numbers, or the digits of numbers.
#[derive(Deserialize)]
struct Granted {
    access_token: String,
    expires_in: Option<Value>,
    expires_on: Option<Value>,
}

fn token(answer: &TokenAnswer, server: &str, now: SystemTime) -> Result<BearerToken, TokenFailure> {
    if answer.status != StatusCode::OK {
        return Err(refused(answer, server));
    }
    let number =
        |value: Value| value.as_u64().or_else(|| value.as_str().and_then(|digits| digits.parse().ok()));
    let granted = serde_json::from_slice::<Granted>(&answer.body).ok().and_then(|granted| {
        let of = |value: Option<Value>| value.and_then(number).map(Duration::from_secs);
        let end = match (of(granted.expires_on), of(granted.expires_in)) {
            (Some(since), _) => SystemTime::UNIX_EPOCH.checked_add(since)?,
            (None, Some(left)) => now.checked_add(left)?,
            (None, None) => return None,
        };
        BearerToken::new(&granted.access_token, end)
    });
    let token = granted.ok_or_else(|| {
        TokenFailure::Lasting(format!("{server} answers without a token and its end: check the address"))
    })?;
    in_time(token, server, now)
}

/// What to do about the errors that a wrong variable causes. Source: Microsoft's page "Microsoft Entra authentication and
/// authorization error codes".
const REMEDIES: [(&str, &str); 4] = [
    ("AADSTS7000215", "; check AZURE_CLIENT_SECRET: it is the secret's value, not its id"),
    ("AADSTS7000222", "; the secret has expired: make a new one, and set AZURE_CLIENT_SECRET"),
    ("AADSTS700016", "; check AZURE_CLIENT_ID and AZURE_TENANT_ID"),
    ("AADSTS90002", "; check AZURE_TENANT_ID"),
];

/// Source of the fields: the error of the token endpoint in OAuth 2.0 (RFC 6749, 5.2), which all sources use.
fn refused(answer: &TokenAnswer, server: &str) -> TokenFailure {
    let body: Value = serde_json::from_slice(&answer.body).unwrap_or_default();
    let text = |name: &str| body.get(name).and_then(Value::as_str).filter(|text| !text.is_empty());
    // The lines below the first have ids for Microsoft's support.
    let said = text("error_description").or_else(|| text("error")).and_then(|text| text.lines().next());
    let said = said.map_or_else(String::new, |said| format!(": {}", excerpt(said)));
    let status = answer.status;
    let remedy = REMEDIES.iter().find(|(code, _)| said.contains(code)).map_or("", |(_, remedy)| remedy);
    let reason = format!("{server} refuses (status {}{said}){remedy}", status.as_u16());
    match status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        true => TokenFailure::Passing(reason),
        false => TokenFailure::Lasting(reason),
    }
}
