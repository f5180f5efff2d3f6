//! `schema`: the JSON Schema of the configuration, for editors.
//!
//! Owns: the output. Must not know: which keys there are.

use std::io::Write as _;

use anyhow::Context as _;

use crate::config::schema::schema;

use super::{Exit, Failure};

/// Print a JSON Schema of the configuration, for editors that know Taplo or "Even Better TOML".
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  c2d-agent schema > config.schema.json\n  Then write this as the first line of \
                  config.toml:\n  #:schema ./config.schema.json\n\nA schema checks the form of one file. \
                  c2d-agent check checks everything."
)]
pub(super) struct SchemaArgs {}

/// Prints the schema.
///
/// # Errors
/// When standard output cannot be written.
pub(super) fn run(_: &SchemaArgs) -> Result<Exit, Failure> {
    writeln!(std::io::stdout(), "{:#}", schema()).context("the schema cannot be written")?;
    Ok(Exit::Done)
}
