//! `healthcheck`: says by its exit code whether the running agent works, for a container engine.
//!
//! Owns: its arguments, what counts as healthy. Must not know: sockets, where the agent's facts come from.
//!
//! An agent without a connection to its hub is healthy. A restart would not repair the network, but it would switch the
//! pins each time.

use std::path::PathBuf;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};

use crate::agent::control::client::Client;
use crate::agent::status::{ConnectionState, ConnectionStatus, Status};

use super::reach::settings;
use super::shown::{Output, plain, since};
use super::{DEFAULT_CONFIG, Exit, Failure, duration};

/// Show by the exit code whether the agent is healthy, for HEALTHCHECK of a container or a monitoring system.
///
/// An agent is healthy if its loop answers and its inbox can be written. An agent without a connection to the hub is
/// also healthy, because a restart does not repair the network; --max-offline changes that.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 healthy; 1 not healthy, or no agent runs: the sentence says why; 2 the \
                  configuration does not say where the agent is."
)]
pub(super) struct HealthcheckArgs {
    /// The configuration file, which says where the agent's control socket is.
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// An agent is not healthy if it has had no connection to the hub for this long, such as 15m.
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    max_offline: Option<Duration>,
    /// How long the agent may take to answer.
    #[arg(long, value_name = "DURATION", default_value = "3s", value_parser = duration)]
    timeout: Duration,
}

/// Asks the agent.
///
/// # Errors
/// A sentence that says why the agent is not healthy.
pub(super) fn run(args: &HealthcheckArgs) -> Result<Exit, Failure> {
    let socket = settings(&args.config)?.socket;
    let (answer, answered) = sync_channel(1);
    // The client's own limits are made for people and may be too long here. A thread that hangs ends with this process.
    let asking = move || {
        // After the timeout the receiver is gone, and the answer is dropped.
        drop(answer.send(Client::connect(&socket).and_then(|mut client| client.status())));
    };
    std::thread::Builder::new().spawn(asking).context("the agent cannot be asked")?;
    let status = match answered.recv_timeout(args.timeout) {
        Ok(answer) => answer.map_err(anyhow::Error::new)?,
        Err(RecvTimeoutError::Timeout | RecvTimeoutError::Disconnected) => {
            let limit = humantime::format_duration(args.timeout);
            return Err(anyhow!("not healthy: the agent did not answer within {limit}").into());
        }
    };
    if let Some(illness) = illness(&status, args.max_offline, SystemTime::now()) {
        return Err(anyhow!("not healthy: {illness}").into());
    }
    let mut out = Output::new();
    let is = |state| connections(&status).any(|connection| connection.state == state);
    let connection = match () {
        () if is(ConnectionState::Disconnected) => "not connected, trying again",
        () if is(ConnectionState::Connecting) => "connecting",
        () => "connected",
    };
    out.line(&format!("healthy: {connection}"))?;
    out.flush()?;
    Ok(Exit::Done)
}

/// The connections of the agent: as a device, as a module, or both.
fn connections(status: &Status) -> impl Iterator<Item = &ConnectionStatus> {
    std::iter::once(&status.connection).chain(status.module.as_ref().map(|module| &module.connection))
}

/// What is wrong with the agent, in one sentence.
fn illness(status: &Status, max_offline: Option<Duration>, now: SystemTime) -> Option<String> {
    if let Some(trouble) = &status.inbox.trouble {
        return Some(format!("the inbox: {}", plain(trouble)));
    }
    let limit = max_offline?;
    let away = |connection: &&ConnectionStatus| {
        let offline = now.duration_since(connection.since).unwrap_or_default();
        connection.state != ConnectionState::Connected && offline >= limit
    };
    let connection = connections(status).find(away)?;
    let reason = connection.reason.as_deref().map_or(String::new(), |reason| format!(": {}", plain(reason)));
    Some(format!("no connection to the hub {}{reason}", since(connection.since, now)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::status::ModuleStatus;

    fn status(connection: &str, trouble: &str) -> Status {
        let text = format!(
            r#"{{"version":"1","pid":1,"deviceId":"d","hub":"h","started":"2026-11-24T00:00:00Z",
            "connection":{{"state":"{connection}","since":"2026-11-24T00:00:00Z","reason":"the cable is cut","reconnects":0}},
            "actions":{{"running":0,"waiting":0}},"pins":{{}},
            "inbox":{{"path":"p","counts":{},"trouble":{trouble}}}}}"#,
            serde_json::to_string(&crate::inbox::Counts::default()).unwrap()
        );
        serde_json::from_str(&text).unwrap()
    }

    fn at(connection: &ConnectionStatus, seconds: u64) -> SystemTime {
        connection.since + Duration::from_secs(seconds)
    }

    #[test]
    fn an_agent_without_a_hub_is_ill_only_when_that_is_asked_for_and_has_lasted() {
        let away = status("disconnected", "null");
        let (soon, late) = (at(&away.connection, 59), at(&away.connection, 60));
        let limit = Some(Duration::from_secs(60));
        assert_eq!(illness(&away, None, late), None);
        assert_eq!(illness(&away, limit, soon), None);
        let sentence = illness(&away, limit, late).unwrap();
        assert!(
            sentence.starts_with("no connection to the hub") && sentence.ends_with("the cable is cut"),
            "{sentence}"
        );
        let mut there = status("connected", "null");
        assert_eq!(illness(&there, limit, late), None);
        // A module beside the device has its own connection.
        let (id, hub, connection) = ("d/m".to_owned(), "gateway".to_owned(), away.connection.clone());
        there.module = Some(ModuleStatus { id, hub, connection, next_token_renewal: None });
        assert_eq!(illness(&there, limit, soon), None);
        assert!(illness(&there, limit, late).is_some());
    }

    #[test]
    fn an_inbox_in_trouble_is_an_illness() {
        let trouble = status("connected", "\"the disk is full\"");
        let sentence = illness(&trouble, None, trouble.connection.since);
        assert_eq!(sentence.as_deref(), Some("the inbox: the disk is full"));
    }
}
