//! The door of the provisioning service: the same over each protocol.
//!
//! Owns: whether there is a service, and which scope is its own. Must not know: packets, enrolments.

use std::time::SystemTime;

use super::claim::{DoorError, RegistrationClaim};
use super::desk::ProvisioningDesk;
use super::opening::OpenedProvisioning;
use crate::emulator::hubs::Hubs;
use crate::emulator::listener::{AMQP_PORT, HTTPS_PORT, MQTT_PORT};
use crate::emulator::state_dir::StateDirError;
use crate::emulator::tls::ShownChain;
use crate::message::excerpt;

/// The provisioning service as one connection sees it.
#[derive(Clone)]
pub(in crate::emulator) struct Reception {
    /// The service; `None` if the emulator was started without one.
    pub(in crate::emulator) desk: Option<ProvisioningDesk>,
    /// The port of the hubs' MQTT, if a client would dial another one.
    pub(in crate::emulator) mqtt_port: Option<u16>,
    /// The same of AMQP.
    pub(in crate::emulator) amqp_port: Option<u16>,
    /// What the client has shown in its TLS handshake.
    pub(in crate::emulator) shown: Option<ShownChain>,
}

impl Reception {
    /// The service for these hubs. The ports are those of MQTT, AMQP and HTTPS. Writes the connection string of back
    /// ends.
    ///
    /// # Errors
    /// Fails if that file cannot be written.
    pub(in crate::emulator) async fn new(
        opened: Option<OpenedProvisioning>,
        hubs: &Hubs,
        [mqtt, amqp, https]: [u16; 3],
    ) -> Result<Self, StateDirError> {
        let other_than = |port: u16, standard| Some(port).filter(|port| *port != standard);
        let desk = match opened {
            Some(opened) => Some(opened.serve(hubs.clone(), other_than(https, HTTPS_PORT)).await?),
            None => None,
        };
        let (mqtt_port, amqp_port) = (other_than(mqtt, MQTT_PORT), other_than(amqp, AMQP_PORT));
        Ok(Self { desk, mqtt_port, amqp_port, shown: None })
    }

    /// The same for one connection.
    pub(in crate::emulator) fn of(&self, connection: &rustls::ServerConnection) -> Self {
        // Without a service the chain is not needed.
        let shown = self.desk.as_ref().and_then(|_| ShownChain::of(connection));
        Self { shown, ..self.clone() }
    }

    /// Lets a client in that says who it is and shows a proof of good form, and returns the desk that serves it. `now`
    /// is the real time.
    ///
    /// # Errors
    /// [`DoorError`]; a client must only learn that it is not authorised.
    pub(in crate::emulator) fn admit(
        &self,
        id_scope: &str,
        registration_id: &str,
        token: Option<&str>,
        now: SystemTime,
    ) -> Result<(ProvisioningDesk, RegistrationClaim), DoorError> {
        let desk = self.desk.as_ref().ok_or(DoorError::Closed)?;
        if !id_scope.eq_ignore_ascii_case(desk.id_scope()) {
            return Err(DoorError::Scope(excerpt(id_scope), desk.id_scope().to_owned()));
        }
        let claim = RegistrationClaim::new(id_scope, registration_id, token, self.shown.as_ref(), now)?;
        Ok((desk.clone(), claim))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// For tests of protocols, which are in other files.
    impl Reception {
        /// As of an emulator without the service.
        pub(in crate::emulator) fn closed() -> Self {
            Self { desk: None, mqtt_port: None, amqp_port: None, shown: None }
        }
    }
}
