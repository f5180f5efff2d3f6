//! Inputs of modules: messages that modules of one device send to each other by routes.
//!
//! Owns: how a message for an input is stored, and its topic. Must not know: the form of a route (`routes`), files.
//!
//! Source: wire reference 6.3. Choices: messages of an input wait in the module's queue with the limits of a device's
//! C2D messages (50, an hour, 64 KiB); a real edgeHub keeps more. If the queue is full, the message is dropped, because
//! its sender cannot be told. Messages of modules are kept for the back end even if no route goes to `$upstream`.

use std::ops::Bound;
use std::time::SystemTime;

use bytes::Bytes;

use super::routes::InputRoute;
use super::state::{EnqueueError, Hub, QueuedMessage};
use crate::credentials::check_module_id;
use crate::emulator::identity;
use crate::feedback::DeliveryAck;
use crate::message::{self, C2dMessage, Properties, excerpt};

/// The device that sent the message for an input. Source: wire reference 6.3.
pub const SOURCE_DEVICE: &str = "$.cdid";
/// The module that sent the message for an input.
pub(super) const SOURCE_MODULE: &str = "$.cmid";
/// The output that the module used to send.
pub(super) const OUTPUT: &str = "$.on";

/// The `$.to` of a message for an input. In a C2D message, `$.to` begins differently.
fn address(id: &str, input: &str) -> String {
    format!("/{}/inputs/{input}", identity::path(id))
}

/// The topic on which a message reaches its input. Node needs the slash after the input. Source: wire reference 6.3.
pub fn input_topic(message: &C2dMessage) -> String {
    let to = message.system.get(message::TO).unwrap_or_default();
    let rest = message.system.iter().filter(|(name, _)| *name != message::TO);
    let all = rest.chain(message.application.iter());
    let bag: Properties = all.map(|(name, value)| (name.to_owned(), value.map(str::to_owned))).collect();
    format!("{}/{}", to.trim_start_matches('/'), bag.encode())
}

/// Why a message for an input was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InputError {
    /// The module does not exist.
    #[error("device \"{0}\" has no module \"{1}\"")]
    UnknownModule(String, String),
    /// The name of the input is not valid.
    #[error("\"{0}\" is not a valid name of an input: use letters, digits, - and _")]
    Name(String),
    /// The message cannot be queued.
    #[error(transparent)]
    Queue(#[from] EnqueueError),
}

impl Hub {
    /// Replaces all routes.
    pub fn set_input_routes(&mut self, routes: Vec<InputRoute>) {
        self.input_routes = routes;
    }

    /// The ids of a device's modules.
    pub fn modules_of(&self, device_id: &str) -> Vec<String> {
        let first = identity::join(device_id, Some(""));
        let own = self.devices.ids_from(Bound::Included(&first)).take_while(|id| id.starts_with(&first));
        own.map(str::to_owned).collect()
    }

    /// Puts a message for an input at the end of the module's queue.
    ///
    /// # Errors
    /// [`InputError`]; in this case nothing has changed.
    pub fn send_to_input(
        &mut self,
        id: &str,
        input: &str,
        mut message: C2dMessage,
        now: SystemTime,
    ) -> Result<(), InputError> {
        let (device, module) = identity::split(id);
        let Some(module) = module.filter(|_| self.devices.contains(id)) else {
            let module = module.unwrap_or_default();
            return Err(InputError::UnknownModule(excerpt(device), excerpt(module)));
        };
        check_module_id(input).map_err(|_| InputError::Name(excerpt(input)))?;
        message.system.set(message::TO, address(id, input));
        tracing::debug!(device_id = id, module, input, "queued a message for an input");
        let device_id = id.to_owned();
        self.push(QueuedMessage { device_id, message, ack: DeliveryAck::None, expiry: None }, now)?;
        Ok(())
    }

    /// Passes on a module's message along the routes. For a device, nothing happens.
    pub fn route(&mut self, id: &str, properties: &Properties, body: &Bytes, now: SystemTime) {
        let (device, Some(module)) = identity::split(id) else { return };
        let output = properties.get(OUTPUT);
        let routes = self.input_routes.iter().filter_map(|route| route.leads(module, output));
        for (into, input) in routes.cloned().collect::<Vec<_>>() {
            let mut message = C2dMessage { body: body.clone(), ..C2dMessage::default() };
            message.system.set(SOURCE_DEVICE, device);
            message.system.set(SOURCE_MODULE, module);
            for (name, value) in properties.iter() {
                let bag = if message::is_system_property(name) {
                    &mut message.system
                } else {
                    &mut message.application
                };
                // A property without a value is passed on with an empty value, because SDKs fail on a key without a
                // value.
                bag.set(name, value.unwrap_or_default());
            }
            let target = identity::join(device, Some(&into));
            if let Err(error) = self.send_to_input(&target, &input, message, now) {
                tracing::warn!(device_id = id, into, input, "dropped a message on its route: {error}");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inputs_topic_has_its_source_and_no_address() {
        let mut message = C2dMessage::default();
        message.system.set(message::TO, address("edge1/filter", "in 1"));
        message.system.set(SOURCE_DEVICE, "edge1");
        message.application.set("level", "a b");
        assert_eq!(
            input_topic(&message),
            "devices/edge1/modules/filter/inputs/in 1/%24.cdid=edge1&level=a%20b"
        );
    }
}
