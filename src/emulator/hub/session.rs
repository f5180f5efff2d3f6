//! One device's session: its connection, and its subscriptions, which can outlive the connection.
//!
//! Owns: "the newer connection wins", clean and persistent sessions. Must not know: queues, MQTT packets.
//! Source: wire reference 1.4 and 1.6.

use serde::{Deserialize, Serialize};

/// Most subscriptions of one session. Source: wire reference 1.4.
pub const MAX_SUBSCRIPTIONS: usize = 5;

/// The id of one connection of a device. A hub never uses an id twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ConnectionId(pub(super) u64);

/// What a device may subscribe to. Source: wire reference 1.5 and 1.7.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum Subscription {
    /// C2D messages of a device, or messages for a module's inputs.
    DeviceBound,
    /// Direct methods.
    Methods,
    /// Answers to twin requests.
    TwinResponses,
    /// Changes of desired properties.
    DesiredProperties,
    /// Answers to requests for a certificate.
    CertificateAnswers,
}

/// The result of a new connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connected {
    /// The new connection.
    pub connection: ConnectionId,
    /// Whether the device has subscriptions from an earlier connection.
    pub session_present: bool,
    /// The connection that this one has replaced.
    pub displaced: Option<ConnectionId>,
}

#[derive(Debug, Default)]
pub(super) struct DeviceSession {
    connection: Option<ConnectionId>,
    /// Whether a persistent session exists, with or without subscriptions.
    stored: bool,
    subscriptions: Vec<(Subscription, u8)>,
}

impl DeviceSession {
    /// Whether the session is persistent, and its subscriptions.
    pub(super) fn snapshot(&self) -> (bool, Vec<(Subscription, u8)>) {
        (self.stored, if self.stored { self.subscriptions.clone() } else { Vec::new() })
    }

    /// Restores a session without a connection.
    pub(super) fn restore(stored: bool, subscriptions: Vec<(Subscription, u8)>) -> Self {
        Self { connection: None, stored, subscriptions }
    }

    pub(super) fn connect(&mut self, connection: ConnectionId, clean: bool) -> Connected {
        if clean {
            self.subscriptions.clear();
        }
        let session_present = self.stored && !clean;
        self.stored = !clean;
        let displaced = self.connection.replace(connection);
        Connected { connection, session_present, displaced }
    }

    /// Ends a connection. Returns whether it was the current one.
    pub(super) fn disconnect(&mut self, connection: ConnectionId) -> bool {
        if self.connection != Some(connection) {
            return false;
        }
        self.connection = None;
        if !self.stored {
            self.subscriptions.clear();
        }
        true
    }

    pub(super) fn is_current(&self, connection: ConnectionId) -> bool {
        self.connection == Some(connection)
    }

    pub(super) fn current(&self) -> Option<ConnectionId> {
        self.connection
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    pub(super) fn subscribe(&mut self, subscription: Subscription, qos: u8) -> bool {
        self.unsubscribe(subscription);
        if self.subscriptions.len() >= MAX_SUBSCRIPTIONS {
            return false;
        }
        self.subscriptions.push((subscription, qos));
        true
    }

    pub(super) fn unsubscribe(&mut self, subscription: Subscription) {
        self.subscriptions.retain(|(own, _)| *own != subscription);
    }

    pub(super) fn granted(&self, subscription: Subscription) -> Option<u8> {
        self.subscriptions.iter().find(|(own, _)| *own == subscription).map(|(_, qos)| *qos)
    }
}
