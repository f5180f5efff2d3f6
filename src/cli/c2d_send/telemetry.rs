//! The outcomes that devices report by telemetry, at the hub's Event Hubs endpoint: for one message and for a run.
//!
//! Owns: what is a report, what follows where telemetry cannot be read. Must not know: which message is awaited, AMQP.

use std::path::Path;
use std::time::{Duration, SystemTime};

use crate::cli::event_watch::EventWatch;
use crate::outcome::{OutcomeReport, REPORT_PROPERTY};
use crate::service::{EventHubAccess, EventStart, ServiceError, ServiceIdentity, ServiceTransport};

/// How long it may take to begin. Where a firewall drops it, twins must do.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The telemetry of all devices; `None` where it is not read.
#[derive(Default)]
pub(super) struct Telemetry(Option<EventWatch>);

/// A message that says of itself that it is a report.
pub(super) struct ToldReport {
    pub(super) device_id: String,
    /// The message that it is about.
    pub(super) message_id: String,
    body: Vec<u8>,
}

impl Telemetry {
    /// Begins to read. Where that is not possible, it says so, and reads nothing.
    pub(super) async fn open(
        identity: &ServiceIdentity,
        way: &ServiceTransport,
        ca_file: Option<&Path>,
        start: EventStart,
    ) -> Self {
        let opening = async {
            let access = EventHubAccess::of_hub(identity, way, ca_file, SystemTime::now()).await?;
            EventWatch::open(access, ca_file.map(Path::to_owned), "$Default".to_owned(), start).await
        };
        let opened = tokio::time::timeout(TIMEOUT, opening).await.unwrap_or_else(|_| {
            Err(ServiceError::Late { what: "telemetry".to_owned(), seconds: TIMEOUT.as_secs() })
        });
        let warn = |error| {
            tracing::warn!("only twins are read, not telemetry (report = \"telemetry\"): {error}");
        };
        Self(opened.map_err(warn).ok())
    }

    /// Waits for the next report; for ever, where telemetry is not read. `note` hears of lost connections.
    pub(super) async fn next(&mut self, note: impl Fn(&str)) -> ToldReport {
        while let Some(watch) = &mut self.0 {
            let event = match watch.next(|text| note(&format!("telemetry: {text}"))).await {
                Ok(event) => event,
                Err(error) => {
                    note(&format!("telemetry cannot be read any more, only twins: {error}"));
                    self.0 = None;
                    break;
                }
            };
            let (name, value) = REPORT_PROPERTY;
            let is_report = event.application.get(name).is_some_and(|own| own == value);
            if let Some(message_id) = event.system.get("correlation-id").filter(|_| is_report) {
                let message_id = message_id.clone();
                return ToldReport { device_id: event.device_id, message_id, body: event.body.to_vec() };
            }
        }
        std::future::pending().await
    }
}

impl ToldReport {
    /// What it says.
    pub(super) fn read(&self) -> Option<OutcomeReport> {
        read(&self.body)
    }
}

/// The report in the body of a message.
pub(super) fn read(body: &[u8]) -> Option<OutcomeReport> {
    let report = serde_json::from_slice(body);
    report
        .inspect_err(|error| tracing::warn!(%error, "the device's report of the outcome cannot be read"))
        .ok()
}
