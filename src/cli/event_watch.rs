//! The messages of devices as they reach the hub, over connections that are made again.
//!
//! Owns: when to connect again, what was read last. Must not know: what a message is for, AMQP.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use crate::service::{EventHubAccess, EventReader, EventStart, EventsFrom, HubEvent, ServiceError};

/// The first and the longest delay before another attempt.
const FIRST_DELAY: Duration = Duration::from_secs(1);
const LONGEST_DELAY: Duration = Duration::from_secs(60);
/// After a connection that held this long, the delays start again with the first.
const STABLE: Duration = Duration::from_secs(60);

/// Reads all partitions. Its drop ends it.
pub(super) struct EventWatch {
    access: EventHubAccess,
    ca_file: Option<PathBuf>,
    from: EventsFrom,
    reader: Option<EventReader>,
    connected: Instant,
    delay: Duration,
}

impl EventWatch {
    /// Connects once, so that a wrong argument is told at once.
    ///
    /// # Errors
    /// When the endpoint cannot be reached, or refuses.
    pub(super) async fn open(
        access: EventHubAccess,
        ca_file: Option<PathBuf>,
        group: String,
        start: EventStart,
    ) -> Result<Self, ServiceError> {
        let mut from = EventsFrom { group, start, offsets: BTreeMap::new() };
        let reader = EventReader::open(&access, ca_file.as_deref(), &mut from, SystemTime::now()).await?;
        let (reader, connected) = (Some(reader), Instant::now());
        Ok(Self { access, ca_file, from, reader, connected, delay: FIRST_DELAY })
    }

    /// Waits for the next message. A connection that is lost is made again, and `note` tells so.
    ///
    /// # Errors
    /// When the endpoint refuses for good.
    ///
    /// # Cancel safety
    /// No message is lost. A connection that is being made is begun anew.
    pub(super) async fn next(&mut self, note: impl Fn(&str)) -> Result<HubEvent, ServiceError> {
        loop {
            let error = match &mut self.reader {
                Some(reader) => match reader.next().await {
                    Ok(event) => {
                        if let Some(offset) = &event.offset {
                            self.from.offsets.insert(event.partition.clone(), offset.clone());
                        }
                        return Ok(event);
                    }
                    Err(error) => {
                        self.reader = None;
                        if self.connected.elapsed() >= STABLE {
                            self.delay = FIRST_DELAY;
                        }
                        error
                    }
                },
                None => {
                    let (ca_file, now) = (self.ca_file.as_deref(), SystemTime::now());
                    match EventReader::open(&self.access, ca_file, &mut self.from, now).await {
                        Ok(reader) => {
                            (self.reader, self.connected) = (Some(reader), Instant::now());
                            note("connected again");
                            continue;
                        }
                        Err(error) => error,
                    }
                }
            };
            if !error.is_passing() && error.refusal().is_none_or(|refusal| refusal.is_lasting()) {
                return Err(error);
            }
            note(&format!("{error}; trying again in {} s", self.delay.as_secs()));
            tokio::time::sleep(self.delay).await;
            self.delay = (self.delay * 2).min(LONGEST_DELAY);
        }
    }
}
