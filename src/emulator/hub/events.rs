//! The last D2C messages of a device.
//!
//! Owns: how many are kept. Must not know: topics, who reads the messages, the clock.
//!
//! A real hub passes these messages to its Event Hubs endpoint. This emulator has none, so it keeps a few for viewers.

use std::collections::VecDeque;
use std::time::SystemTime;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use super::encoding;
use crate::message::Properties;

/// Most D2C messages kept for each device.
pub const MAX_EVENTS: usize = 100;

/// Most bytes of bodies and properties kept for each device. A single message always fits: a packet has at most 256
/// KiB.
pub const MAX_EVENT_BYTES: usize = 1024 * 1024;

/// A D2C message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct D2cMessage {
    /// The message's number; each device counts from 1.
    pub number: u64,
    /// When the hub accepted the message.
    pub enqueued: SystemTime,
    /// System and application properties together, as they came over the wire.
    #[serde(with = "encoding::properties")]
    pub properties: Properties,
    /// The body; may be empty.
    #[serde(with = "encoding::body")]
    pub body: Bytes,
}

/// The last D2C messages of one device, oldest first.
#[derive(Debug, Default)]
pub(super) struct Events {
    kept: VecDeque<D2cMessage>,
    bytes: usize,
    last_number: u64,
}

impl Events {
    pub(super) fn push(&mut self, properties: Properties, body: Bytes, enqueued: SystemTime) {
        self.last_number += 1;
        let event = D2cMessage { number: self.last_number, enqueued, properties, body };
        self.bytes += size(&event);
        self.kept.push_back(event);
        while self.kept.len() > MAX_EVENTS || self.bytes > MAX_EVENT_BYTES {
            let Some(oldest) = self.kept.pop_front() else { break };
            self.bytes -= size(&oldest);
        }
    }

    pub(super) fn restore(kept: Vec<D2cMessage>) -> Self {
        let mut events = Self::default();
        for D2cMessage { number, enqueued, properties, body } in kept {
            events.last_number = number.saturating_sub(1);
            events.push(properties, body, enqueued);
        }
        events
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &D2cMessage> {
        self.kept.iter()
    }
}

fn size(event: &D2cMessage) -> usize {
    let properties = event.properties.iter().map(|(name, value)| name.len() + value.map_or(0, str::len));
    event.body.len() + properties.sum::<usize>()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn numbers(events: &Events) -> Vec<u64> {
        events.iter().map(|event| event.number).collect()
    }

    #[test]
    fn the_last_hundred_are_kept_and_numbers_go_on() {
        let mut events = Events::default();
        for n in 1..=103_u64 {
            events.push(Properties::default(), Bytes::from(n.to_string()), NOW);
        }
        assert_eq!(numbers(&events), (4..=103).collect::<Vec<_>>());
        assert_eq!(events.iter().next().map(|event| event.body.clone()), Some(Bytes::from_static(b"4")));
    }

    #[test]
    fn all_of_them_take_at_most_a_mebibyte() {
        let mut events = Events::default();
        let mut properties = Properties::default();
        properties.set("name", "x".repeat(1020));
        for _ in 0..10 {
            events.push(properties.clone(), Bytes::from(vec![0; 249 * 1024]), NOW);
        }
        assert_eq!(numbers(&events), [7, 8, 9, 10]);
        assert_eq!(events.bytes, 4 * 250 * 1024);
    }
}
