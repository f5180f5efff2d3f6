//! What the commands of the back end share: which hub, as whom, and how values are read.
//!
//! Owns: the arguments for the service connection string and the roots. Must not know: what a command does with them.
//! Used by: `cli` (c2d-send, c2d-feedback, c2d-purge).

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};

use crate::credentials::ServiceConnectionString;
use crate::service::HTTPS_PORT;

const CONNECTION_STRING_VARIABLE: &str = "C2D_SERVICE_CONNECTION_STRING";
const CA_FILE_VARIABLE: &str = "C2D_CA_FILE";

// Not a doc comment, which would become part of the help of each command.
// The hub, and who asks.
#[derive(Debug, clap::Args)]
pub(super) struct HubArgs {
    /// A file with the service connection string.
    #[arg(long, value_name = "FILE")]
    connection_string_file: Option<PathBuf>,
    /// A PEM file with further roots, such as the emulator's ca.pem [default: the file in C2D_CA_FILE, if set].
    #[arg(long, value_name = "FILE")]
    ca_file: Option<PathBuf>,
}

impl HubArgs {
    /// An empty variable counts as none, as it does for the agent.
    pub(super) fn ca_file(&self) -> Option<PathBuf> {
        let variable = || std::env::var_os(CA_FILE_VARIABLE).filter(|path| !path.is_empty());
        self.ca_file.clone().or_else(|| variable().map(PathBuf::from))
    }

    /// From the file, or else from the variable.
    ///
    /// # Errors
    /// When there is none, or it is not one of a service.
    pub(super) fn identity(&self) -> anyhow::Result<ServiceConnectionString> {
        let (origin, text) = match &self.connection_string_file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .with_context(|| format!("cannot read the connection string from {}", path.display()))?;
                (path.display().to_string(), text)
            }
            None => {
                let text = std::env::var(CONNECTION_STRING_VARIABLE).map_err(|_| {
                    anyhow!(
                        "no service connection string: give --connection-string-file, or set \
                         {CONNECTION_STRING_VARIABLE}"
                    )
                })?;
                (CONNECTION_STRING_VARIABLE.to_owned(), text)
            }
        };
        ServiceConnectionString::parse(&text).with_context(|| origin)
    }
}

/// A port; an empty variable counts as none.
pub(super) fn port(text: &str) -> Result<u16, String> {
    match text.parse() {
        _ if text.is_empty() => Ok(HTTPS_PORT),
        Ok(port) if port > 0 => Ok(port),
        _ => Err("use a number from 1 to 65535".to_owned()),
    }
}

/// A duration such as `10m`, more than zero.
pub(super) fn duration(text: &str) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(Duration::ZERO) => Err("must be more than 0".to_owned()),
        Ok(duration) => Ok(duration),
        Err(_) => Err("use a number with a unit, such as 30s, 10m or 2h".to_owned()),
    }
}
