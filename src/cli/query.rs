//! `c2d-agent query`: asks the hub's query language.
//!
//! Owns: its arguments, the order of columns. Must not know: HTTP, pages.

use anyhow::{Context as _, anyhow};
use futures_util::StreamExt as _;
use serde_json::Value;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;

use super::back_end::{self, HubArgs, OutputArgs};
use super::rows::{self, RowsOutput};
use super::{Exit, Failure, found, transport};
use crate::service::TOKEN_LIFETIME;

/// Ask the hub for devices, twins, modules or the results of jobs.
///
/// The query is SQL as IoT Hub has it: SELECT … FROM devices, devices.modules or devices.jobs. A condition alone, as behind
/// WHERE, finds the ids of devices: those that c2d-send, invoke-method and twin patch mean with the same --query. The hub's
/// index is some seconds to minutes behind the twins.
///
/// The service connection string comes from --connection-string-file or from the variable
/// C2D_SERVICE_CONNECTION_STRING, never from an argument.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  c2d-agent query \"tags.site = '12'\"
  c2d-agent query \"SELECT deviceId, tags.site FROM devices\"
  c2d-agent query \"SELECT COUNT() AS n FROM devices WHERE status = 'disabled'\"
  c2d-agent query \"SELECT * FROM devices.jobs\" --json --limit 10000

Exit codes: 0 done, even if nothing was found; 1 an error; 2 the query or the arguments are wrong.", mut_arg("transport", |argument| transport::only(argument, transport::OF_REST)))]
pub(super) struct QueryArgs {
    /// The query, or only the condition behind WHERE.
    #[arg(value_name = "SQL")]
    sql: String,
    #[command(flatten)]
    limit: LimitArgs,
    #[command(flatten)]
    output: OutputArgs,
    #[command(flatten)]
    hub: HubArgs,
}

// How much is shown.
#[derive(Debug, clap::Args)]
pub(super) struct LimitArgs {
    /// Print at most this many.
    #[arg(long, value_name = "N", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
}

impl LimitArgs {
    pub(super) fn rows(&self) -> usize {
        usize::try_from(self.limit).unwrap_or(usize::MAX)
    }
}

/// Asks until all is printed.
///
/// # Errors
/// When the hub cannot be reached or refuses the query.
pub(super) fn run(args: &QueryArgs) -> Result<Exit, Failure> {
    let sql = found::whole(&args.sql);
    let wanted = RowsOutput {
        json: args.output.json,
        limit: args.limit.rows(),
        columns: columns(&sql),
        shape: &Value::clone,
    };
    ask(&args.hub, &sql, &wanted)
}

/// Asks the hub, and prints what it finds.
///
/// # Errors
/// As [`run`].
pub(super) fn ask(hub: &HubArgs, sql: &str, wanted: &RowsOutput<'_>) -> Result<Exit, Failure> {
    let rest = hub.rest().map_err(Failure::usage)?;
    super::block_on(async {
        back_end::end_at_the_second_signal().context("signals cannot be received")?;
        let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
        let mut service = rest.service(TOKEN_LIFETIME).map_err(anyhow::Error::new)?;
        tokio::select! {
            printed = rows::print(&mut service, sql, wanted) => printed.map(|()| Exit::Done),
            Some(_signal) = signals.next() => Err(anyhow!("interrupted by a signal").into()),
        }
    })
}

/// The names of the columns in the order of a query: what follows AS, or else the last name of a path. What this does
/// not understand comes later in the table, and is not lost.
fn columns(sql: &str) -> Vec<String> {
    let words: Vec<&str> = sql.split_whitespace().collect();
    let end = words.iter().position(|word| word.eq_ignore_ascii_case("from")).unwrap_or(words.len());
    let list = words.get(1..end).unwrap_or_default().join(" ");
    let name = |part: &str| {
        let last = part.split_whitespace().next_back().unwrap_or_default();
        last.rsplit('.').next().unwrap_or_default().trim_matches(['[', ']']).to_owned()
    };
    list.split(',').map(name).collect()
}

#[cfg(test)]
mod tests {
    use super::columns;

    #[test]
    fn columns_are_those_of_the_query() {
        let of = |sql: &str| columns(sql).join(" ");
        assert_eq!(of("SELECT tags.site, COUNT() AS n from devices"), "site n");
        assert_eq!(of("select TOP 3 deviceId , tags.[[group]]\nFROM devices"), "deviceId group");
        assert_eq!(of("SELECT * FROM devices"), "*");
        assert_eq!(of(""), "");
    }
}
