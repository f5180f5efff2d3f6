//! Reads the messages of devices from all partitions.
//!
//! Owns: a link for each partition, credit, where each begins. Must not know: what a message is for, when to connect again.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::{Duration, SystemTime};

use fe2o3_amqp::Receiver;
use fe2o3_amqp::link::RecvError;
use fe2o3_amqp::link::receiver::CreditMode;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::messaging::{Body, Source};
use fe2o3_amqp::types::primitives::{Symbol, Value};
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use serde_amqp::described::Described;
use serde_amqp::descriptor::Descriptor;

use super::{EventHubAccess, EventHubSession, HubEvent};
use crate::amqp_frames;
use crate::service::refusal::RefusedRequest;
use crate::service::{ServiceError, answered, failure};

/// As many as an Event Hub of IoT Hub has at most. Source: azure-docs, iot-hub-devguide-endpoints.
pub(super) const MOST_PARTITIONS: usize = 128;
/// Messages that a partition may send before they are read. With 256 KiB each it is 4 MiB.
const CREDIT: u32 = 16;
/// How often a waiting link sends a flow, so that the endpoint does not take silence for a lost connection.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Source: `event_position_selector` of azure-eventhub 5.15 for Python.
const FILTER: &str = "apache.org:selector-filter:string";
const FILTER_CODE: u64 = 0x0000_468C_0000_0004;

/// Where reading begins, if nothing was read before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventStart {
    /// With what comes.
    Latest,
    /// With what the hub got after this time.
    After(SystemTime),
}

/// Where reading begins.
#[derive(Debug, Clone)]
pub struct EventsFrom {
    /// The consumer group, such as `$Default`.
    pub group: String,
    /// For a partition without an offset.
    pub start: EventStart,
    /// The offset of the last message that was read from a partition.
    pub offsets: BTreeMap<String, String>,
}

type Received = (PartitionLink, Result<HubEvent, ServiceError>);

/// A reader of all partitions. Its drop ends it.
pub struct EventReader {
    // Before the session and its connection, which go last.
    receiving: FuturesUnordered<BoxFuture<'static, Received>>,
    session: EventHubSession,
}

struct PartitionLink {
    partition: String,
    link: Receiver,
    /// Messages that may still come.
    credit: u32,
}

impl EventReader {
    /// Connects, signs in, and attaches a link to each partition. With [`EventStart::Latest`], `from` gets the offset at
    /// which each partition ends now, so that a later connection passes over nothing.
    ///
    /// # Errors
    /// When the endpoint cannot be reached, or refuses.
    ///
    /// # Cancel safety
    /// A drop of the future closes everything that was open.
    pub async fn open(
        access: &EventHubAccess,
        ca_file: Option<&Path>,
        from: &mut EventsFrom,
        now: SystemTime,
    ) -> Result<Self, ServiceError> {
        let mut session = access.open(ca_file, now).await?;
        let mut management = session.management().await?;
        let partitions = session.partitions(&mut management, &access.name).await?;
        let receiving = FuturesUnordered::new();
        for partition in partitions {
            if from.start == EventStart::Latest
                && !from.offsets.contains_key(&partition)
                && let Some(end) = session.end_of(&mut management, &access.name, &partition).await?
            {
                from.offsets.insert(partition.clone(), end);
            }
            let attached = PartitionLink::attach(&mut session.session, &access.name, partition, from);
            receiving.push(answered("an answer to the link of a partition", attached).await?.next().boxed());
        }
        Ok(Self { receiving, session })
    }

    /// Waits for the next message of any partition.
    ///
    /// # Errors
    /// When the connection or a link is lost, or the endpoint ends it.
    ///
    /// # Cancel safety
    /// No message is lost if the future is dropped: the next call returns it.
    pub async fn next(&mut self) -> Result<HubEvent, ServiceError> {
        let lost = || ServiceError::Lost("no partition is left".to_owned());
        let (link, received) = self.receiving.next().await.ok_or_else(lost)?;
        if received.is_ok() {
            self.receiving.push(link.next().boxed());
        }
        received.map_err(|error| failure::explained(error, &self.session.failed))
    }
}

impl PartitionLink {
    async fn attach(
        session: &mut SessionHandle<()>,
        name: &str,
        partition: String,
        from: &EventsFrom,
    ) -> Result<Self, ServiceError> {
        let described = Described {
            descriptor: Descriptor::Code(FILTER_CODE),
            value: Value::String(from.selector(&partition)),
        };
        let source = Source::builder()
            .address(format!("{name}/ConsumerGroups/{}/Partitions/{partition}", from.group))
            .add_to_filter(Symbol::from(FILTER), described)
            .build();
        let attached = Receiver::builder()
            .name(format!("c2d-events-{partition}-{}", uuid::Uuid::new_v4()))
            .source(source)
            .credit_mode(CreditMode::Manual)
            .auto_accept(true)
            .attach(session)
            .await;
        let asked = RefusedRequest::Events { group: &from.group };
        let link = attached.map_err(|error| failure::of_receiver_attach(error, asked))?;
        Ok(Self { partition, link, credit: 0 })
    }

    /// The next message that can be read.
    async fn next(mut self) -> Received {
        loop {
            let received = match self.received().await {
                Ok(Some(message)) => Ok(message),
                Ok(None) => continue,
                Err(error) => Err(error),
            };
            return (self, received);
        }
    }

    /// A message; `None` if it cannot be read.
    async fn received(&mut self) -> Result<Option<HubEvent>, ServiceError> {
        if self.credit < CREDIT / 2 {
            self.ask(CREDIT).await?;
        }
        let received = loop {
            match tokio::time::timeout(KEEP_ALIVE, self.link.recv::<Body<Value>>()).await {
                Ok(received) => break received,
                Err(_) => self.ask(self.credit).await?,
            }
        };
        self.credit = self.credit.saturating_sub(1);
        let partition = &self.partition;
        match received {
            Ok(delivery) => {
                let message = delivery.into_message();
                if let Some(reason) = amqp_frames::refusal(&message.body) {
                    tracing::warn!(partition, "passed over a message that cannot be read: {reason}");
                    return Ok(None);
                }
                Ok(Some(HubEvent::read(message, partition)))
            }
            Err(RecvError::MessageDecode(error)) => {
                let reason = error.source.to_string();
                tracing::warn!(partition, "passed over a message that cannot be read: {reason}");
                Ok(None)
            }
            Err(error) => Err(failure::of_receive(error)),
        }
    }

    async fn ask(&mut self, credit: u32) -> Result<(), ServiceError> {
        self.link.set_credit(credit).await.map_err(failure::of_settlement)?;
        self.credit = credit;
        Ok(())
    }
}

impl EventsFrom {
    /// Source: as [`FILTER`].
    fn selector(&self, partition: &str) -> String {
        match (self.offsets.get(partition), self.start) {
            (Some(offset), _) => {
                let plain: String = offset.chars().filter(|c| *c != '\'').collect();
                format!("amqp.annotation.x-opt-offset > '{plain}'")
            }
            (None, EventStart::Latest) => "amqp.annotation.x-opt-offset > '@latest'".to_owned(),
            (None, EventStart::After(time)) => {
                let since = time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
                format!("amqp.annotation.x-opt-enqueued-time > '{}'", since.as_millis())
            }
        }
    }
}
