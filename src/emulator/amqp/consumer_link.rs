//! The link on which a back end reads the D2C messages of one partition.
//!
//! Owns: which messages are sent, and who reads. Must not know: how a message is encoded (`event_message`), what a
//! partition keeps.
//!
//! Source: Microsoft's SDKs for Event Hubs. They attach to `NAME/ConsumerGroups/GROUP/Partitions/N` with a filter (see
//! `selector`), and with an epoch in the link's properties. Messages are sent settled, because a reader does not take
//! them from the partition.

use std::pin::pin;

use fe2o3_amqp::Sender;
use fe2o3_amqp::link::delivery::Sendable;
use fe2o3_amqp::types::definitions::{AmqpError, LinkError};
use fe2o3_amqp::types::performatives::Attach;
use fe2o3_amqp::types::primitives::{Symbol, Value};

use super::claims::Claims;
use super::condition::LinkRefusal;
use super::ending::goodbye;
use super::{event_message, selector};
use crate::emulator::hub::{ConsumerError, ConsumerId, PARTITIONS};
use crate::emulator::shared::SharedHub;
use crate::message::excerpt;

/// The link's property with the epoch of a reader, also called its owner level.
const EPOCH: &str = "com.microsoft:epoch";

/// The longest name of a consumer group. Source: quotas of Event Hubs.
const MAX_GROUP: usize = 50;

/// A reader of a partition. Dropping it ends the reading.
pub(super) struct Reading {
    hub: SharedHub,
    id: ConsumerId,
    partition: usize,
    /// The number of the next message.
    next: u64,
    /// The group and the partition, for the log.
    name: String,
}

impl Reading {
    /// Begins to read as the link asks for it.
    pub(super) fn begin(
        claims: &Claims,
        attach: &Attach,
        group: &str,
        partition: &str,
    ) -> Result<Self, LinkRefusal> {
        let allowed = |c: char| c.is_ascii_alphanumeric() || "$._-".contains(c);
        if group.is_empty() || group.len() > MAX_GROUP || !group.chars().all(allowed) {
            let words = format!(
                "\"{}\" is not the name of a consumer group: it has at most {MAX_GROUP} letters, digits, dots, \
                 hyphens and underscores, or is $Default",
                excerpt(group)
            );
            return Err(LinkRefusal::no_address(words));
        }
        let number = partition.parse().ok().filter(|number| *number < PARTITIONS);
        let number = number.ok_or_else(|| {
            let last = PARTITIONS - 1;
            let words = format!("there is no partition \"{}\": they are 0 to {last}", excerpt(partition));
            LinkRefusal::no_address(words)
        })?;
        let position = attach.source.as_deref().map(selector::position).transpose()?;
        let position = position.ok_or_else(|| LinkRefusal::argument("the link has no source"))?;
        let epoch = epoch(attach)?;
        let begun = claims.hub().with(|hub, _| {
            let id = hub.begin_reading(group, number, epoch)?;
            Ok((id, hub.first_number(number, position)))
        });
        let (id, next) = begun.map_err(|error: ConsumerError| {
            let condition = match error {
                ConsumerError::Taken(_) => LinkError::Stolen.into(),
                ConsumerError::TooMany(_) => AmqpError::ResourceLimitExceeded.into(),
            };
            LinkRefusal { condition, ..LinkRefusal::new(AmqpError::NotAllowed, error.to_string()) }
        })?;
        let name = format!("{group}/{number}");
        tracing::info!(reader = name, next, "a back end reads D2C messages");
        Ok(Self { hub: claims.hub().clone(), id, partition: number, next, name })
    }

    fn is_current(&self) -> bool {
        self.hub.with(|hub, _| hub.is_reading(self.id))
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.hub.with(|hub, _| hub.end_reading(self.id));
    }
}

/// The epoch in the link's properties. SDKs write a long; any whole number is taken.
fn epoch(attach: &Attach) -> Result<Option<i64>, LinkRefusal> {
    let value = attach.properties.as_ref().and_then(|fields| fields.get(&Symbol::from(EPOCH)));
    Ok(match value {
        None | Some(Value::Null) => None,
        Some(Value::Long(epoch)) => Some(*epoch),
        Some(Value::Int(epoch)) => Some((*epoch).into()),
        Some(Value::Uint(epoch)) => Some((*epoch).into()),
        Some(_) => return Err(LinkRefusal::argument(format!("the property {EPOCH} must be a long"))),
    })
}

/// Sends messages as they come, when the reader gives credit, until the link ends or another reader takes the
/// partition over.
pub(super) async fn deliver(mut link: Sender, mut reading: Reading) {
    let hub = reading.hub.clone();
    let mut changed = hub.watch_events();
    loop {
        changed.mark_unchanged();
        if !reading.is_current() {
            break;
        }
        let Some(event) = hub.with(|hub, _| hub.event_from(reading.partition, reading.next)) else {
            tokio::select! {
                biased;
                reason = link.on_detach() => {
                    return tracing::debug!(reader = reading.name, %reason, "a reader of D2C messages ended");
                }
                // The hub holds the sender, so this is always a change.
                _changed = changed.changed() => continue,
            }
        };
        let message = Sendable::builder().message(event_message::of(&event)).settled(true).build();
        let sent = {
            let mut sending = pin!(link.send(message));
            loop {
                tokio::select! {
                    biased;
                    // The sending waits for credit. Meanwhile another reader can take the partition over.
                    sent = &mut sending => break Some(sent),
                    _changed = changed.changed() => {
                        if !reading.is_current() {
                            break None;
                        }
                    }
                }
            }
        };
        match sent {
            Some(Ok(_outcome)) => reading.next = event.sequence_number.saturating_add(1),
            Some(Err(error)) => {
                return tracing::debug!(reader = reading.name, %error, "a reader of D2C messages ended");
            }
            None => break,
        }
    }
    let words = "a reader with a higher or equal epoch has this partition now";
    tracing::info!(reader = reading.name, "ended a reader of D2C messages: {words}");
    goodbye(link, &reading.name, &LinkRefusal::new(LinkError::Stolen, words)).await;
}
