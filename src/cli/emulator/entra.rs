//! The arguments for the emulator's stand-in for Microsoft Entra.
//!
//! Owns: these arguments, and what people hear of the applications. Must not know: tokens.

use std::time::Duration;

use crate::emulator::{AppOption, Emulator, EntraSettings, Options};

// Not a doc comment, which would become part of the help of the command.
// Applications, their tokens, the identity of a machine.
#[derive(Debug, clap::Args)]
pub(super) struct EntraArgs {
    /// An application of Microsoft Entra that may sign in to the hubs; may be given several times. PROOF is a secret, or a
    /// file that ends with .pem and has the application's certificate. ROLE is data-contributor, data-reader,
    /// registry-contributor, twin-contributor, several joined by +, or none [default: data-contributor].
    #[arg(long = "entra-app", value_name = "TENANT/CLIENT=PROOF[:ROLE]")]
    entra_apps: Vec<AppOption>,
    /// How long a token of --entra-app is valid, from 1s to 1day.
    #[arg(long, value_name = "TIME", default_value = "1h", value_parser = token_lifetime)]
    entra_token_lifetime: Duration,
    /// Port on loopback where a machine gets the tokens of its managed identity: those of the first --entra-app; 0 means
    /// any free port.
    #[arg(long, value_name = "PORT", requires = "entra_apps")]
    imds_port: Option<u16>,
}

impl EntraArgs {
    /// The issuer to start, if there are applications.
    pub(super) fn settings(self) -> Option<EntraSettings> {
        let Self { entra_apps: apps, entra_token_lifetime: token_lifetime, imds_port } = self;
        (!apps.is_empty()).then_some(EntraSettings { apps, token_lifetime, imds_port })
    }
}

/// Says how each application signs in; its secret is not told.
pub(super) fn announce(options: &Options, emulator: &Emulator) {
    let (host, port) = (&options.hostname, emulator.https_address().port());
    for app in options.entra.iter().flat_map(|entra| &entra.apps) {
        tracing::info!(
            "an application signs in with: AZURE_AUTHORITY_HOST=https://{host}:{port} AZURE_TENANT_ID={} AZURE_CLIENT_ID={} \
             C2D_HUB={host}:{}",
            app.tenant,
            app.client_id,
            emulator.amqp_address().port()
        );
    }
}

fn token_lifetime(text: &str) -> Result<Duration, String> {
    let limits = Duration::from_secs(1)..=Duration::from_secs(24 * 60 * 60);
    let lifetime = humantime::parse_duration(text).ok().filter(|lifetime| limits.contains(lifetime));
    lifetime.ok_or_else(|| "give a time from 1s to 1day, such as 5m".to_owned())
}
