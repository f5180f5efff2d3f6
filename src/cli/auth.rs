//! `c2d-agent auth`: says who would sign in to the hub as a back end, and what is missing for it.
//!
//! Owns: its arguments, what is printed, the exit code. Must not know: how a token is obtained.

use std::fs::File;
use std::path::Path;

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use serde::Serialize;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

use super::back_end::{self, HubArgs, OutputArgs, Proof, print};
use super::shown::{json, without_controls};
use super::{Exit, Failure, sentence, transport};
use crate::credentials::{AppProof, BearerToken, EntraLogin};
use crate::service::az_program;
use crate::trust;

/// Say who would sign in to the hub as a back end, and why, and what is missing.
///
/// It says which way the options and the environment choose, and looks for the files and programs that it needs. With --check it
/// also asks Microsoft Entra for a token and says who the token is for. The token itself is never printed.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent auth
  c2d-agent auth --hub myhub.azure-devices.net --auth az --check
  c2d-agent auth --json

Exit codes: 0 nothing is missing, and with --check there is a token; 1 there is no token; 2 the arguments are wrong, or \
something is missing.", mut_arg("transport", |argument| transport::only(argument, transport::OF_REST).hide(true)), mut_arg("https_port", |argument| argument.hide(true)))]
pub(super) struct AuthArgs {
    /// Ask for a token, and say who it is for.
    #[arg(long)]
    check: bool,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    hub: HubArgs,
}

/// The objects of `--json`: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
#[serde(tag = "event", rename_all = "kebab-case", rename_all_fields = "camelCase")]
enum AuthLine<'a> {
    SignsIn { hub: String, auth: &'a str, because: &'a str, principal: String },
    Token(TokenShown),
    Failed { error: String },
}

/// What a token says of itself.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct TokenShown {
    #[serde(skip_serializing_if = "Option::is_none")]
    application: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tenant: Option<String>,
    valid_until: String,
}

/// Says who would sign in.
///
/// # Errors
/// When no way is chosen, something is missing, or with `--check` there is no token.
pub(super) fn run(args: &AuthArgs) -> Result<Exit, Failure> {
    let as_json = args.output.json;
    let failed = |failure: Failure| match as_json {
        true => match print_line(&AuthLine::Failed { error: sentence(&failure.error) }) {
            Ok(()) => failure,
            Err(error) => error.into(),
        },
        false => failure,
    };
    look(args).map_err(failed)
}

fn look(args: &AuthArgs) -> Result<Exit, Failure> {
    let as_json = args.output.json;
    let chosen = args.hub.sign_in().map_err(Failure::usage)?;
    let principal = match &chosen.proof {
        Proof::Policy(string) => format!("the shared access policy \"{}\"", string.policy),
        Proof::Entra(Ok(login)) => login.to_string(),
        Proof::Entra(Err(_)) => "not known yet".to_owned(),
    };
    let (hub, auth, because) = (chosen.host.to_string(), chosen.method.name(), chosen.reason.as_str());
    if as_json {
        print_line(&AuthLine::SignsIn { hub, auth, because, principal })?;
    } else {
        print(&format!("hub: {hub}\nauth: {auth} ({because})\nsigns in: {}", without_controls(&principal)))?;
    }
    let login = match chosen.proof {
        Proof::Policy(_) => {
            if args.check && !as_json {
                print(
                    "not checked: a policy needs no token of Microsoft Entra; c2d-agent devices list asks the hub",
                )?;
            }
            return Ok(Exit::Done);
        }
        Proof::Entra(login) => login.map_err(Failure::usage)?,
    };
    check_parts(&login).map_err(Failure::usage)?;
    if !args.check {
        return Ok(Exit::Done);
    }
    let tokens = args.hub.tokens(login).map_err(Failure::usage)?;
    super::block_on(async {
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
        let token = tokio::select! {
            token = tokens.token() => token.map_err(|error| back_end::failed(error.into()))?,
            Some(_signal) = signals.next() => return Err(anyhow!("interrupted by a signal").into()),
        };
        let shown = shown(&token);
        if as_json {
            print_line(&AuthLine::Token(shown))?
        } else {
            print(&told(&shown))?
        }
        Ok(Exit::Done)
    })
}

fn print_line(line: &AuthLine<'_>) -> anyhow::Result<()> {
    print(&json(line)?)
}

/// Looks for the file of a proof, or the program, before it is needed.
fn check_parts(login: &EntraLogin) -> anyhow::Result<()> {
    let look = |path: &Path, variable: &str| {
        File::open(path).map(drop).map_err(|error| {
            let (path, error) = (path.display(), trust::in_words(&error));
            anyhow!("cannot read {path}: {error}; correct {variable}, or the file's owner and mode")
        })
    };
    match login {
        EntraLogin::App { proof: AppProof::Certificate(path), .. } => {
            look(path, "AZURE_CLIENT_CERTIFICATE_PATH")
        }
        EntraLogin::App { proof: AppProof::Federated(path), .. } => look(path, "AZURE_FEDERATED_TOKEN_FILE"),
        EntraLogin::Az { .. } => az_program().map(drop).map_err(anyhow::Error::msg),
        _ => Ok(()),
    }
}

fn shown(token: &BearerToken) -> TokenShown {
    let claims = token.claims().unwrap_or_default();
    TokenShown {
        application: claims.appid,
        name: claims.unique_name,
        object: claims.oid,
        tenant: claims.tid,
        valid_until: humantime::format_rfc3339_seconds(token.end()).to_string(),
    }
}

fn told(shown: &TokenShown) -> String {
    let parts = [
        ("application", &shown.application),
        ("name", &shown.name),
        ("object", &shown.object),
        ("tenant", &shown.tenant),
    ];
    let parts: Vec<_> = parts
        .into_iter()
        .filter_map(|(what, value)| Some(format!("{what} {}", without_controls(value.as_deref()?))))
        .collect();
    let of = if parts.is_empty() { "a principal that it does not name".to_owned() } else { parts.join(", ") };
    format!("token: for {of}; valid until {}", shown.valid_until)
}
