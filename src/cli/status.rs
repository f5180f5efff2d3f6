//! `status`: shows what the running agent says about itself.
//!
//! Owns: its arguments, the lines, the exit code. Must not know: sockets, where the agent's facts come from.

use std::path::PathBuf;
use std::time::SystemTime;

use serde::Serialize;

use crate::agent::control::client::ClientError;
use crate::agent::status::{
    CertificateStatus, ConnectionState, ConnectionStatus, ProvisioningStatus, Status,
};
use crate::config::counted;
use crate::inbox::{Counts, InboxError};
use crate::outcome::{DesiredReport, DesiredStatus, Totals};

use super::reach::{Reached, reach, settings};
use super::shown::{Output, aligned, plain, relative, since, size, width};
use super::{DEFAULT_CONFIG, Exit, Failure};

/// Show the state of the running agent: its connection, its messages, its pins.
///
/// If no agent runs, it shows what is in the inbox's file. Only the user who runs the agent, and root, may do this.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Exit codes: 0 an agent runs, connected or not; 1 no agent runs, or it does not answer; 2 \
                  the configuration does not say where the inbox is."
)]
pub(super) struct StatusArgs {
    /// The configuration file, which says where the inbox and the agent's control socket are.
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG)]
    config: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// The object of `--json`: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
#[serde(untagged)]
enum ShownStatus<'a> {
    Running {
        running: bool,
        #[serde(flatten)]
        status: &'a Status,
    },
    Stopped {
        running: bool,
        inbox: FileStatus<'a>,
    },
}

/// The inbox's file when no agent runs.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct FileStatus<'a> {
    path: String,
    counts: Option<&'a Counts>,
    /// Why the counts are missing.
    trouble: Option<&'a str>,
}

/// Prints the status.
///
/// # Errors
/// When no agent runs, or the agent does not answer.
pub(super) fn run(args: &StatusArgs) -> Result<Exit, Failure> {
    let settings = settings(&args.config)?;
    let mut out = Output::new();
    let counts = match reach(&settings) {
        Ok(Reached::Agent(mut client)) => {
            let status = client.status().map_err(anyhow::Error::new)?;
            if args.json {
                out.json(&ShownStatus::Running { running: true, status: &status })?;
            } else {
                print(&mut out, &rows(&status, SystemTime::now()))?;
            }
            out.flush()?;
            return Ok(Exit::Done);
        }
        Ok(Reached::File(file)) => Ok(file.counts()),
        Err(error) if error.is::<InboxError>() => Err(error.to_string()),
        Err(error) => return Err(error.into()),
    };
    not_running(&mut out, args.json, settings.path.display().to_string(), counts)?;
    out.flush()?;
    Err(anyhow::Error::new(ClientError::NotRunning(settings.socket.display().to_string())).into())
}

/// Prints what the inbox's file says.
fn not_running(
    out: &mut Output,
    json: bool,
    path: String,
    counts: Result<Counts, String>,
) -> anyhow::Result<()> {
    if json {
        let (counts, trouble) = (counts.as_ref().ok(), counts.as_ref().err().map(String::as_str));
        let inbox = FileStatus { path, counts, trouble };
        return out.json(&ShownStatus::Stopped { running: false, inbox });
    }
    let mut rows = vec![("agent", "not running".to_owned())];
    match counts {
        Ok(counts) => rows.extend(inbox_rows(&path, &counts)),
        Err(sentence) => rows.push(("inbox", plain(&sentence))),
    }
    print(out, &rows)
}

fn print(out: &mut Output, rows: &[(&str, String)]) -> anyhow::Result<()> {
    aligned(rows, width()).iter().try_for_each(|line| out.line(line))
}

fn rows(status: &Status, now: SystemTime) -> Vec<(&'static str, String)> {
    let Status { version, pid, device_id, hub, started, actions, inbox, .. } = status;
    let running = since(*started, now);
    let version = plain(version);
    let mut rows = vec![
        ("agent", format!("running {running}, version {version}, process {pid}")),
        match &status.module_id {
            None if is_unassigned(status) => {
                ("device", format!("not assigned yet: asking {} as {}", plain(hub), plain(device_id)))
            }
            None => ("device", format!("{} on hub {}", plain(device_id), plain(hub))),
            Some(module) => {
                ("module", format!("{}/{} of hub {}", plain(device_id), plain(module), plain(hub)))
            }
        },
    ];
    rows.extend(status.provisioning.as_ref().and_then(|enrolled| assigned(enrolled, now)));
    rows.push(("connection", connection(&status.connection, now)));
    rows.extend(status.connection.reason.as_deref().map(|reason| ("", plain(reason))));
    if let Some(module) = &status.module {
        rows.push(("module", format!("{} by {}", plain(&module.id), plain(&module.hub))));
        rows.push(("connection", connection(&module.connection, now)));
        rows.extend(module.connection.reason.as_deref().map(|reason| ("", plain(reason))));
    }
    if let Some(configured) = status.configured.filter(|configured| configured > started) {
        rows.push(("configured", format!("{}, while running", relative(configured, now))));
    }
    if let Some(problems) = status.refused_reload {
        let problems = counted(problems, "problem");
        rows.push((
            "RELOAD",
            format!("the last one was refused ({problems}): see the log, or run c2d-agent check"),
        ));
    }
    rows.extend(status.desired.as_ref().and_then(|desired| of_twin(desired, status.twin_rules)));
    // The device and the module have a renewal each; the earlier one is shown.
    let renewals =
        [status.next_token_renewal, status.module.as_ref().and_then(|module| module.next_token_renewal)];
    let renewal = renewals.into_iter().flatten().min();
    let renewal = renewal.map(|time| ("token", format!("renewed next {}", relative(time, now))));
    rows.extend(renewal);
    rows.extend(status.certificate.as_ref().map(|certificate| of_certificate(certificate, now)));
    let last = status.last_message_received.map_or("none yet".to_owned(), |time| relative(time, now));
    rows.push(("last message", last));
    rows.push(("actions", format!("{} running, {} waiting", actions.running, actions.waiting)));
    rows.extend(inbox_rows(&inbox.path, &inbox.counts));
    rows.extend(inbox.trouble.as_deref().map(|sentence| ("TROUBLE", plain(sentence))));
    if !status.pins.is_empty() {
        let pins = status.pins.iter().map(|(pin, state)| format!("{} {}", plain(pin), plain(state)));
        rows.push(("pins", pins.collect::<Vec<_>>().join(", ")));
    }
    rows
}

/// Whether the device asks the provisioning service for its first hub.
fn is_unassigned(status: &Status) -> bool {
    status.provisioning.as_ref().is_some_and(|enrolled| enrolled.assigned.is_none())
}

/// Who has assigned the hub, and when.
fn assigned(enrolled: &ProvisioningStatus, now: SystemTime) -> Option<(&'static str, String)> {
    let ProvisioningStatus { service, registration_id, assigned, .. } = enrolled;
    let at = relative((*assigned)?, now);
    Some(("assigned", format!("{at} by {}, to {}", plain(service), plain(registration_id))))
}

/// When the certificate ends. A fifth of its life before that, the name of the row is in capitals.
fn of_certificate(certificate: &CertificateStatus, now: SystemTime) -> (&'static str, String) {
    let CertificateStatus { valid_from, valid_until, renewal } = certificate;
    let until = relative(*valid_until, now);
    let Ok(left) = valid_until.duration_since(now) else {
        return ("CERTIFICATE", format!("expired {until}"));
    };
    let life = valid_until.duration_since(*valid_from).unwrap_or_default();
    let name = if left < life / 5 { "CERTIFICATE" } else { "certificate" };
    let renewal = renewal.map_or(String::new(), |at| format!(", renewed {}", relative(at, now)));
    (name, format!("valid until {until}{renewal}"))
}

/// The state of the rules in the twin; `None` if the twin has no rules.
fn of_twin(desired: &DesiredReport, rules: usize) -> Option<(&'static str, String)> {
    let DesiredReport { version, status, problems } = desired;
    match (status, problems.first()) {
        (DesiredStatus::Applied, _) if rules == 0 => None,
        (DesiredStatus::Applied, _) => {
            Some(("twin", format!("{} of twin version {version} applied", counted(rules, "rule"))))
        }
        (DesiredStatus::Refused, problem) => {
            let first = problem.map_or(String::new(), |problem| format!(": {}", plain(problem)));
            let more = problems.len().saturating_sub(1);
            let more = if more > 0 { format!(" (and {more} more: see the log)") } else { String::new() };
            Some(("TWIN", format!("rules of twin version {version} refused{first}{more}")))
        }
    }
}

fn connection(connection: &ConnectionStatus, now: SystemTime) -> String {
    let state = match connection.state {
        ConnectionState::Connected => "connected",
        ConnectionState::Connecting => "connecting",
        ConnectionState::Disconnected => "NOT CONNECTED",
    };
    let since = since(connection.since, now);
    let reconnects = usize::try_from(connection.reconnects).unwrap_or(usize::MAX);
    let over = connection.transport.as_deref().map(|transport| format!(" over {}", plain(transport)));
    format!("{state} {since}{}, {}", over.unwrap_or_default(), counted(reconnects, "reconnect"))
}

fn inbox_rows(path: &str, counts: &Counts) -> Vec<(&'static str, String)> {
    let count = |count: u64, what| counted(usize::try_from(count).unwrap_or(usize::MAX), what);
    let Counts { records, unfinished, dead, bytes, reports, reports_dropped, totals } = counts;
    let records = count(*records, "record");
    let dead = count(*dead, "dead letter");
    let mut rows = vec![
        ("inbox", plain(path)),
        ("", format!("{records} ({unfinished} not ended, {dead}), {}", size(*bytes))),
        ("outcomes", outcomes(totals)),
    ];
    if *reports > 0 || *reports_dropped > 0 {
        let reports = count(*reports, "report");
        rows.push(("reports", format!("{reports} waiting for the hub, {reports_dropped} dropped")));
    }
    rows
}

fn outcomes(totals: &Totals) -> String {
    let counts =
        totals.iter().filter(|(_, count)| **count > 0).map(|(kind, count)| format!("{count} {kind}"));
    let text = counts.collect::<Vec<_>>().join(", ");
    if text.is_empty() { "none yet".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::status::{ActionCounts, InboxStatus};
    use crate::message::parse_time;
    use crate::outcome::OutcomeKind;

    fn at(text: &str) -> SystemTime {
        parse_time(text).expect("a time")
    }

    fn status() -> Status {
        Status {
            version: "0.1.0".into(),
            pid: 4711,
            device_id: "pi-01".into(),
            module_id: None,
            provisioning: None,
            module: None,
            desired: None,
            twin_rules: 0,
            hub: "myhub.azure-devices.net".into(),
            configured: None,
            refused_reload: None,
            started: at("2026-11-23T21:18:01Z"),
            connection: ConnectionStatus {
                state: ConnectionState::Connected,
                transport: Some("mqtt-ws".into()),
                since: at("2026-11-23T21:30:05Z"),
                reason: None,
                reconnects: 1,
            },
            certificate: None,
            next_token_renewal: Some(at("2026-11-23T22:18:05Z")),
            last_message_received: Some(at("2026-11-23T21:41:12Z")),
            actions: ActionCounts { running: 1, waiting: 3 },
            inbox: InboxStatus {
                path: "/var/lib/c2d-agent/inbox.journal".into(),
                counts: Counts {
                    records: 1204,
                    unfinished: 4,
                    dead: 1,
                    bytes: 524_288,
                    totals: [(OutcomeKind::Succeeded, 1180), (OutcomeKind::TimedOut, 20)].into(),
                    ..Counts::default()
                },
                trouble: None,
            },
            pins: [("door".to_owned(), "off".to_owned()), ("pump".to_owned(), "on".to_owned())].into(),
        }
    }

    fn shown(status: &Status) -> String {
        aligned(&rows(status, at("2026-11-23T21:42:05Z")), 80).join("\n")
    }

    #[test]
    fn an_agent_that_is_well_is_told_in_aligned_lines() {
        assert_eq!(
            shown(&status()),
            "agent         running since 2026-11-23 21:18:01 UTC (24 min), version 0.1.0,\n\
             \x20             process 4711\n\
             device        pi-01 on hub myhub.azure-devices.net\n\
             connection    connected since 2026-11-23 21:30:05 UTC (12 min) over mqtt-ws, 1\n\
             \x20             reconnect\n\
             token         renewed next 2026-11-23 22:18:05 UTC (in 36 min)\n\
             last message  2026-11-23 21:41:12 UTC (53 s ago)\n\
             actions       1 running, 3 waiting\n\
             inbox         /var/lib/c2d-agent/inbox.journal\n\
             \x20             1204 records (4 not ended, 1 dead letter), 512.0 KiB\n\
             outcomes      1180 succeeded, 20 timed-out\n\
             pins          door off, pump on"
        );
    }

    #[test]
    fn an_enrolment_is_told_before_and_after_the_assignment() {
        let mut status = status();
        status.provisioning = Some(ProvisioningStatus {
            service: "dps.example".into(),
            id_scope: "0ne00012345".into(),
            registration_id: "reg-01".into(),
            assigned: Some(at("2026-11-20T21:42:05Z")),
        });
        let lines = "device        pi-01 on hub myhub.azure-devices.net\n\
                     assigned      2026-11-20 21:42:05 UTC (3 d 0 h ago) by dps.example, to reg-01\n";
        assert!(shown(&status).contains(lines), "{}", shown(&status));
        (status.hub, status.device_id) = ("dps.example".into(), "reg-01".into());
        status.provisioning.as_mut().expect("an enrolment").assigned = None;
        let lines = "device        not assigned yet: asking dps.example as reg-01\nconnection    ";
        assert!(shown(&status).contains(lines), "{}", shown(&status));
    }

    #[test]
    fn the_end_of_a_certificate_is_told_in_capitals_when_it_is_near() {
        let mut status = status();
        let mut row = |until: &str, renewal: Option<&str>| {
            let (valid_from, valid_until) = (at("2026-11-01T00:00:00Z"), at(until));
            let renewal = renewal.map(at);
            status.certificate = Some(CertificateStatus { valid_from, valid_until, renewal });
            let rows = rows(&status, at("2026-11-23T21:42:05Z"));
            let (name, text) =
                rows.into_iter().find(|(name, _)| name.eq_ignore_ascii_case("certificate")).expect("a row");
            format!("{name} {text}")
        };
        assert_eq!(
            row("2027-01-30T00:00:00Z", None),
            "certificate valid until 2027-01-30 00:00:00 UTC (in 67 d 2 h)"
        );
        assert_eq!(
            row("2026-12-01T00:00:00Z", Some("2026-11-25T00:00:00Z")),
            "certificate valid until 2026-12-01 00:00:00 UTC (in 7 d 2 h), renewed 2026-11-25 00:00:00 UTC (in 1 d 2 h)"
        );
        assert_eq!(
            row("2026-11-28T00:00:00Z", None),
            "CERTIFICATE valid until 2026-11-28 00:00:00 UTC (in 4 d 2 h)"
        );
        assert_eq!(
            row("2026-11-23T21:00:00Z", None),
            "CERTIFICATE expired 2026-11-23 21:00:00 UTC (42 min ago)"
        );
    }

    #[test]
    fn what_became_of_the_twin_is_told() {
        let mut status = status();
        let without = shown(&status);
        status.desired = Some(DesiredReport::applied(7));
        assert_eq!(shown(&status), without, "a twin that asks for no rules");
        for (rules, line) in
            [(1, "1 rule of twin version 7 applied"), (2, "2 rules of twin version 7 applied")]
        {
            status.twin_rules = rules;
            assert!(shown(&status).contains(&format!("\ntwin          {line}\n")), "{}", shown(&status));
        }
        let problems = ["twin:a:1:1: no\x1b".to_owned(), "twin:b:1:1: no".to_owned()];
        status.desired = Some(DesiredReport::refused(8, problems));
        let lines = "\nTWIN          rules of twin version 8 refused: twin:a:1:1: no\\u{1b} (and 1 more:\n              see the log)\n";
        assert!(shown(&status).contains(lines), "{}", shown(&status));
    }

    #[test]
    fn an_agent_in_trouble_says_what_is_wrong() {
        let mut status = status();
        status.connection = ConnectionStatus {
            state: ConnectionState::Disconnected,
            transport: None,
            since: at("2026-11-23T21:30:05Z"),
            reason: Some("the hub is away\x1b".into()),
            reconnects: 0,
        };
        status.next_token_renewal = None;
        status.last_message_received = None;
        status.inbox.trouble = Some("the disk is full".into());
        status.inbox.counts = Counts { reports: 1, reports_dropped: 2, ..Counts::default() };
        status.pins.clear();
        assert_eq!(
            shown(&status),
            "agent         running since 2026-11-23 21:18:01 UTC (24 min), version 0.1.0,\n\
             \x20             process 4711\n\
             device        pi-01 on hub myhub.azure-devices.net\n\
             connection    NOT CONNECTED since 2026-11-23 21:30:05 UTC (12 min), 0 reconnects\n\
             \x20             the hub is away\\u{1b}\n\
             last message  none yet\n\
             actions       1 running, 3 waiting\n\
             inbox         /var/lib/c2d-agent/inbox.journal\n\
             \x20             0 records (0 not ended, 0 dead letters), 0 bytes\n\
             outcomes      none yet\n\
             reports       1 report waiting for the hub, 2 dropped\n\
             TROUBLE       the disk is full"
        );
    }
}
