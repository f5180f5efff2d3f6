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

use crate::config::MetricsSettings;
use crate::metrics::{Endpoint, Figures, Labels, Metric, Scrape, Unit};

use super::Agent;
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
}

impl Agent {
    /// All figures at this moment.
    pub(super) fn figures(&mut self) -> Vec<Metric> {
        let Self { scraper, config, .. } = self;
        scraper.tally.know(config.rules.iter().map(|rule| rule.name()));
        let status = self.status();
        let mut metrics = vec![
            Metric {
                name: "build",
                unit: None,
                help: "The version of this agent.",
                figures: Figures::Info(label("version", &status.version)),
            },
            Metric {
                name: "start_timestamp",
                unit: Some(Unit::Seconds),
                help: "When this agent started.",
                figures: one(since_1970(status.started)),
            },
            Metric {
                name: "configuration_timestamp",
                unit: Some(Unit::Seconds),
                help: "When the current configuration was applied.",
                figures: one(since_1970(status.configured.unwrap_or(status.started))),
            },
            Metric {
                name: "reload_refused",
                unit: None,
                help: "Whether the last reload was refused (1), so that an older configuration is in use.",
                figures: one(is(status.refused_reload.is_some())),
            },
            Metric {
                name: "messages",
                unit: None,
                help: "Messages that have ended, by the rule that matched (none: no rule) and by outcome.",
                figures: self.scraper.tally.messages(),
            },
            Metric {
                name: "action_duration",
                unit: Some(Unit::Seconds),
                help: "How long attempts at actions took, by rule.",
                figures: self.scraper.tally.durations(),
            },
        ];
        metrics.extend(self.of_connection(&status));
        metrics.extend(self.of_inbox(&status));
        metrics.push(Metric {
            name: "pin_on",
            unit: None,
            help: "Whether a pin is on (1) or off (0).",
            figures: pins(&status.pins),
        });
        metrics
    }

    fn of_connection(&self, status: &Status) -> Vec<Metric> {
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
            Metric {
                name: "connection_state",
                unit: None,
                help: "Whether the connection to the hub is in this state (1) or not (0).",
                figures: Figures::Gauge(states.into()),
            },
            Metric {
                name: "connection_transport",
                unit: None,
                help: "The transport of the connection to the hub (1); 0 for the others, and without a \
                       connection.",
                figures: Figures::Gauge(transports.into()),
            },
            Metric {
                name: "reconnects",
                unit: None,
                help: "Connections made after the first one, including renewals of the token.",
                figures: Figures::Counter(vec![(Labels::new(), status.connection.reconnects)]),
            },
        ];
        metrics.extend(status.module.as_ref().map(|module| Metric {
            name: "module_connected",
            unit: None,
            help: "Whether the module that signs in beside the device is connected to its gateway (1).",
            figures: one(is(module.connection.state == ConnectionState::Connected)),
        }));
        let times = [
            (
                "token_expiry_timestamp",
                "When the SAS token of the last sign-in expires.",
                self.board.token_expiry(),
            ),
            ("token_renewal_timestamp", "When the SAS token is renewed next.", status.next_token_renewal),
            ("last_message_timestamp", "When the last message arrived.", status.last_message_received),
        ];
        metrics.extend(times.into_iter().filter_map(|(name, help, time)| {
            Some(Metric { name, unit: Some(Unit::Seconds), help, figures: one(since_1970(time?)) })
        }));
        metrics
    }

    fn of_inbox(&self, status: &Status) -> Vec<Metric> {
        let counts = &status.inbox.counts;
        let finished = counts.records.saturating_sub(counts.unfinished).saturating_sub(counts.dead);
        let by_state = |figures: &[(&str, u64)]| {
            Figures::Gauge(
                figures.iter().map(|(state, count)| (label("state", state), *count as f64)).collect(),
            )
        };
        vec![
            Metric {
                name: "actions",
                unit: None,
                help: "Actions that have not ended: running, or waiting for their turn or their next attempt.",
                figures: by_state(&[
                    ("running", status.actions.running),
                    ("waiting", status.actions.waiting),
                ]),
            },
            Metric {
                name: "inbox_messages",
                unit: None,
                help: "Messages recorded in the inbox: not ended yet, finished, or dead letters.",
                figures: by_state(&[
                    ("unfinished", counts.unfinished),
                    ("finished", finished),
                    ("dead", counts.dead),
                ]),
            },
            Metric {
                name: "inbox_size",
                unit: Some(Unit::Bytes),
                help: "Records, messages and reports in the inbox.",
                figures: one(counts.bytes as f64),
            },
            Metric {
                name: "inbox_limit",
                unit: Some(Unit::Bytes),
                help: "The inbox's max_size.",
                figures: one(self.config.inbox.max_size as f64),
            },
            Metric {
                name: "inbox_trouble",
                unit: None,
                help: "Whether the inbox cannot take messages (1): its disk is in trouble, or it is full.",
                figures: one(is(status.inbox.trouble.is_some())),
            },
            Metric {
                name: "reports_waiting",
                unit: None,
                help: "Outcome reports by telemetry that wait for the hub.",
                figures: one(counts.reports as f64),
            },
            Metric {
                name: "reports_dropped",
                unit: None,
                help: "Outcome reports dropped because too many waited, since the inbox was created.",
                figures: Figures::Counter(vec![(Labels::new(), counts.reports_dropped)]),
            },
        ]
    }
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

/// Seconds since 1970, as scrapers expect. A clock before 1970 counts as 1970.
fn since_1970(time: SystemTime) -> f64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

#[cfg(test)]
mod tests;
