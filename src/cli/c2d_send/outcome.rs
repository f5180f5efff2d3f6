//! Watches for the outcome that a device reports of one message: in its twin and in its telemetry.
//!
//! Owns: what counts as this message's outcome, and how often to look. Must not know: HTTP, when to give up.

use std::path::Path;
use std::time::{Duration, SystemTime};

use anyhow::Context as _;

use super::telemetry::{self, Telemetry};
use crate::message;
use crate::outcome::{OutcomeReport, REPORT_PROPERTY, TwinReport};
use crate::service::{
    DeviceEvent, EventStart, HttpsService, HttpsWay, OutgoingMessage, ServiceError, ServiceIdentity,
    ServiceTransport,
};

/// The time between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// The longest pause between two looks, while the hub throttles or is away.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// Most looks before sending, while the hub throttles.
const FIRST_LOOKS: u32 = 4;

/// Most pages of earlier events that are skipped before sending; the emulator keeps fewer.
const MAX_PAGES: u32 = 10;

/// Looks for the outcome of one message.
pub(super) struct OutcomeWatch {
    hub: HttpsService,
    device_id: String,
    message_id: String,
    /// Outcomes of this message id in the twin before the message was sent. They belong to an earlier message.
    earlier: Vec<OutcomeReport>,
    /// The last event of the emulator that has been examined; `None` at a real hub.
    last_event: Option<u64>,
    /// That of a real hub.
    telemetry: Telemetry,
}

impl OutcomeWatch {
    /// Reads the outcomes that exist before the message is sent. This also finds an unreachable hub in time. It reads the
    /// telemetry of a real hub, too, over AMQP.
    pub(super) async fn begin(
        (way, amqp): (HttpsWay, &ServiceTransport),
        ca_file: Option<&Path>,
        identity: &ServiceIdentity,
        message: &OutgoingMessage,
        lifetime: Duration,
    ) -> anyhow::Result<Self> {
        let hub = HttpsService::new(identity, way, ca_file, lifetime, SystemTime::now)?;
        let (device_id, message_id) = (message.device_id.clone(), message.message_id.clone());
        let (earlier, last_event, telemetry) = (Vec::new(), None, Telemetry::default());
        let mut watch = Self { hub, device_id, message_id, earlier, last_event, telemetry };
        watch.look_first().await.context("nothing was sent, because its outcome could not be seen")?;
        if !watch.earlier.is_empty() {
            tracing::warn!(
                message_id = watch.message_id,
                "the device has already reported an outcome for this message id, and does not run a message \
                 twice: use another --message-id, or none"
            );
        }
        if watch.last_event.is_none() {
            watch.telemetry = Telemetry::open(identity, amqp, ca_file, EventStart::Latest).await;
        }
        Ok(watch)
    }

    /// Returns the first outcome that did not exist before.
    pub(super) async fn outcome(&mut self) -> anyhow::Result<OutcomeReport> {
        let (device_id, message_id) = (self.device_id.clone(), self.message_id.clone());
        let mut telemetry = std::mem::take(&mut self.telemetry);
        let told = async {
            loop {
                let told = telemetry.next(|note| tracing::warn!("{note}")).await;
                if told.device_id == device_id
                    && told.message_id == message_id
                    && let Some(report) = told.read()
                {
                    return report;
                }
            }
        };
        tokio::select! {
            report = self.looked() => report,
            report = told => Ok(report),
        }
    }

    /// Looks again and again. Retries errors that may pass.
    async fn looked(&mut self) -> anyhow::Result<OutcomeReport> {
        let mut pause = PAUSE;
        loop {
            match self.look().await {
                Ok(Some(report)) => return Ok(report),
                Ok(None) => {
                    if pause > PAUSE {
                        tracing::info!("the hub answers again");
                    }
                    pause = PAUSE;
                }
                Err(error) if error.is_passing() => {
                    if pause == PAUSE {
                        tracing::warn!("the outcome cannot be read now, trying again: {error}");
                    }
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
                Err(error) => return Err(error.into()),
            }
            tokio::time::sleep(pause).await;
        }
    }

    async fn look_first(&mut self) -> Result<(), ServiceError> {
        let mut pause = PAUSE;
        let mut looks = 1;
        let twin = loop {
            match self.hub.twin(&self.device_id).await {
                Err(ServiceError::Throttled(_)) if looks < FIRST_LOOKS => {
                    tokio::time::sleep(pause).await;
                    pause *= 2;
                    looks += 1;
                }
                answer => break answer?,
            }
        };
        if let Some(report) = TwinReport::read(&twin.reported) {
            self.earlier = report.outcomes_of(&self.message_id).cloned().collect();
        }
        if !twin.of_emulator {
            return Ok(());
        }
        let mut last = 0;
        for _ in 0..MAX_PAGES {
            let page = self.hub.emulator_events(&self.device_id, last).await?;
            let Some(newest) = page.last() else { break };
            last = newest.number;
        }
        self.last_event = Some(last);
        Ok(())
    }

    /// Reads telemetry first, because it has the output of programs; the twin does not.
    async fn look(&mut self) -> Result<Option<OutcomeReport>, ServiceError> {
        if let Some(last) = self.last_event {
            let page = self.hub.emulator_events(&self.device_id, last).await?;
            if let Some(newest) = page.last() {
                self.last_event = Some(newest.number);
            }
            if let Some(report) = page.iter().find_map(|event| outcome_in(event, &self.message_id)) {
                return Ok(Some(report));
            }
        }
        let twin = self.hub.twin(&self.device_id).await?;
        let report = TwinReport::read(&twin.reported).unwrap_or_default();
        let new = report.outcomes_of(&self.message_id).find(|report| !self.is_earlier(report));
        Ok(new.cloned())
    }

    /// Compares only when the action ended: after a restart, the device may report the outcome in other words.
    fn is_earlier(&self, report: &OutcomeReport) -> bool {
        self.earlier.iter().any(|earlier| earlier.ended == report.ended)
    }
}

/// The report in an event of the emulator, if the event is a report on this message.
fn outcome_in(event: &DeviceEvent, message_id: &str) -> Option<OutcomeReport> {
    let text = |value: Option<&Option<String>>| value.cloned().flatten().unwrap_or_default();
    let (name, value) = REPORT_PROPERTY;
    let is_report = text(event.application.get(name)) == value;
    if !is_report || text(event.system.get(message::CORRELATION_ID)) != message_id {
        return None;
    }
    telemetry::read(&event.body)
}
