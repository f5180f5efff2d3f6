//! Metrics of the agent: the figures that a scraper gets.
//!
//! Owns: which figures there are, with names and help; opening the endpoint, with retries. Must not know: HTTP, the
//! text format.
//!
//! docs/src/reference/metrics.md has the table of all metrics. A name never changes; new ones are added.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use tokio::time::Instant;

use crate::config::{Config, MetricsSettings};
use crate::metrics::{Endpoint, Figures, Labels, Metric, Scrape, Unit};

use super::board::Board;
use super::status::{ConnectionState, Status};
use super::tally::Tally;

/// How long to wait after the address could not be opened. Messages matter more than metrics, so the agent goes on.
const RETRY: Duration = Duration::from_secs(30);

/// Serves scrapers, if the configuration asks for it, and counts for them.
pub(super) struct Scraper {
    pub(super) tally: Tally,
    listen: Option<SocketAddr>,
    endpoint: Option<Endpoint>,
    /// When to open the endpoint, if it is closed.
    open_at: Option<Instant>,
    /// Whether the log says already that it cannot be opened.
    told: bool,
}

impl Scraper {
    /// Serves from the first call of [`Scraper::next`].
    pub(super) fn new(settings: Option<&MetricsSettings>) -> Self {
        let listen = settings.map(|settings| settings.listen);
        let open_at = listen.map(|_| Instant::now());
        Self { tally: Tally::default(), listen, endpoint: None, open_at, told: false }
    }

    /// Serves at another address from now on, or stops. The counts stay.
    pub(super) fn change(&mut self, settings: Option<&MetricsSettings>) {
        let listen = settings.map(|settings| settings.listen);
        if listen != self.listen {
            (self.listen, self.told) = (listen, false);
            self.open_at = listen.map(|_| Instant::now());
        }
    }

    /// The next scrape. If nothing is served, it never resolves. Cancel safe.
    pub(super) async fn next(&mut self) -> Scrape {
        loop {
            match (&mut self.endpoint, self.open_at) {
                (Some(endpoint), None) if self.listen.is_some() => return endpoint.next().await,
                // The port must be free before another endpoint is opened.
                (Some(endpoint), _) => {
                    endpoint.close().await;
                    tracing::info!(address = %endpoint.address(), "metrics are no longer served");
                    self.endpoint = None;
                }
                (None, Some(at)) => {
                    tokio::time::sleep_until(at).await;
                    self.open();
                }
                (None, None) => return std::future::pending().await,
            }
        }
    }

    fn open(&mut self) {
        self.open_at = None;
        let Some(listen) = self.listen else { return };
        match Endpoint::open(listen) {
            Ok(endpoint) => {
                tracing::info!(address = %endpoint.address(), "metrics are served");
                (self.endpoint, self.told) = (Some(endpoint), false);
            }
            Err(error) => {
                self.open_at = error.may_pass().then(|| Instant::now() + RETRY);
                if !self.told {
                    tracing::error!(%error, "there are no metrics");
                }
                self.told = true;
            }
        }
    }

    /// All figures at this moment.
    pub(super) fn figures(&mut self, status: &Status, board: &Board, config: &Config) -> Vec<Metric> {
        self.tally.know(config.rules.iter().map(|rule| rule.name()));
        let mut metrics = vec![
            plain("build", "The version of this agent.", Figures::Info(label("version", &status.version))),
            time("start_timestamp", "When this agent started.", status.started),
            time(
                "configuration_timestamp",
                "When the current configuration was applied.",
                status.configured.unwrap_or(status.started),
            ),
            plain(
                "reload_refused",
                "Whether the last reload was refused (1), so that an older configuration is in use.",
                one(is(status.refused_reload.is_some())),
            ),
            plain(
                "messages",
                "Messages that have ended, by the rule that matched (none: no rule) and by outcome.",
                self.tally.messages(),
            ),
            Metric {
                name: "action_duration",
                unit: Some(Unit::Seconds),
                help: "How long attempts at actions took, by rule.",
                figures: self.tally.durations(),
            },
        ];
        metrics.extend(of_connection(status, board));
        metrics.extend(of_inbox(status, config.inbox.max_size));
        metrics.push(plain("pin_on", "Whether a pin is on (1) or off (0).", pins(&status.pins)));
        metrics
    }
}

fn of_connection(status: &Status, board: &Board) -> Vec<Metric> {
    let states = [
        ("connected", ConnectionState::Connected),
        ("connecting", ConnectionState::Connecting),
        ("disconnected", ConnectionState::Disconnected),
    ];
    let states = states.map(|(name, state)| (label("state", name), is(status.connection.state == state)));
    let transports = ["mqtt", "mqtt-ws", "amqp", "amqp-ws"];
    let over = |name| is(status.connection.transport.as_deref() == Some(name));
    let transports = transports.map(|name| (label("transport", name), over(name)));
    let mut metrics = vec![
        plain(
            "connection_state",
            "Whether the connection to the hub is in this state (1) or not (0).",
            Figures::Gauge(states.into()),
        ),
        plain(
            "connection_transport",
            "The transport of the connection to the hub (1); 0 for the others, and without a \
                   connection.",
            Figures::Gauge(transports.into()),
        ),
        plain(
            "reconnects",
            "Connections made after the first one, including renewals of the token.",
            Figures::Counter(vec![(Labels::new(), status.connection.reconnects)]),
        ),
    ];
    metrics.extend(status.provisioning.as_ref().map(|enrolled| {
        plain(
            "assigned",
            "Whether the provisioning service has assigned a hub (1).",
            one(is(enrolled.assigned.is_some())),
        )
    }));
    metrics.extend(status.module.as_ref().map(|module| {
        plain(
            "module_connected",
            "Whether the module that signs in beside the device is connected to its gateway (1).",
            one(is(module.connection.state == ConnectionState::Connected)),
        )
    }));
    let certificate = status.certificate.as_ref().map(|certificate| certificate.valid_until);
    let times = [
        ("certificate_expiry_timestamp", "When the certificate of the device expires.", certificate),
        ("token_expiry_timestamp", "When the SAS token of the last sign-in expires.", board.token_expiry()),
        ("token_renewal_timestamp", "When the SAS token is renewed next.", status.next_token_renewal),
        ("last_message_timestamp", "When the last message arrived.", status.last_message_received),
        (
            "assignment_timestamp",
            "When the provisioning service assigned the hub.",
            status.provisioning.as_ref().and_then(|enrolled| enrolled.assigned),
        ),
    ];
    metrics.extend(times.into_iter().filter_map(|(name, help, at)| Some(time(name, help, at?))));
    metrics
}

fn of_inbox(status: &Status, max_size: u64) -> Vec<Metric> {
    let counts = &status.inbox.counts;
    let finished = counts.records.saturating_sub(counts.unfinished).saturating_sub(counts.dead);
    let by_state = |figures: &[(&str, u64)]| {
        Figures::Gauge(figures.iter().map(|(state, count)| (label("state", state), *count as f64)).collect())
    };
    vec![
        plain(
            "actions",
            "Actions that have not ended: running, or waiting for their turn or their next attempt.",
            by_state(&[("running", status.actions.running), ("waiting", status.actions.waiting)]),
        ),
        plain(
            "inbox_messages",
            "Messages recorded in the inbox: not ended yet, finished, or dead letters.",
            by_state(&[("unfinished", counts.unfinished), ("finished", finished), ("dead", counts.dead)]),
        ),
        bytes("inbox_size", "Records, messages and reports in the inbox.", counts.bytes),
        bytes("inbox_limit", "The inbox's max_size.", max_size),
        plain(
            "inbox_trouble",
            "Whether the inbox cannot take messages (1): its disk is in trouble, or it is full.",
            one(is(status.inbox.trouble.is_some())),
        ),
        plain(
            "reports_waiting",
            "Outcome reports by telemetry that wait for the hub.",
            one(counts.reports as f64),
        ),
        plain(
            "reports_dropped",
            "Outcome reports dropped because too many waited, since the inbox was created.",
            Figures::Counter(vec![(Labels::new(), counts.reports_dropped)]),
        ),
    ]
}

fn plain(name: &'static str, help: &'static str, figures: Figures) -> Metric {
    Metric { name, unit: None, help, figures }
}

/// A time as seconds since 1970, as scrapers expect. A clock before 1970 counts as 1970.
fn time(name: &'static str, help: &'static str, time: SystemTime) -> Metric {
    let seconds = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64();
    Metric { name, unit: Some(Unit::Seconds), help, figures: one(seconds) }
}

fn bytes(name: &'static str, help: &'static str, bytes: u64) -> Metric {
    Metric { name, unit: Some(Unit::Bytes), help, figures: one(bytes as f64) }
}

fn pins(states: &BTreeMap<String, String>) -> Figures {
    Figures::Gauge(states.iter().map(|(pin, state)| (label("pin", pin), is(state == "on"))).collect())
}

fn label(name: &'static str, value: &str) -> Labels {
    vec![(name, value.to_owned())]
}

fn is(so: bool) -> f64 {
    if so { 1.0 } else { 0.0 }
}

fn one(value: f64) -> Figures {
    Figures::Gauge(vec![(Labels::new(), value)])
}

#[cfg(test)]
mod tests;
