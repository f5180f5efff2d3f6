//! Inputs of modules: messages that modules of one device send to each other by routes.
//!
//! Owns: routes, which outputs lead to which inputs, and how a message for an input is stored.
//! Must not know: topics, files.
//!
//! Source: wire reference 6.3, and Microsoft's page "Learn how to deploy modules and establish routes in IoT Edge". The
//! emulator supports FROM without WHERE, modules as sources, and both sinks. Choices: messages of an input wait in the
//! module's queue with the limits of a device's C2D messages (50, an hour, 64 KiB); a real edgeHub keeps more. If the
//! queue is full, the message is dropped, because its sender cannot be told. Messages of modules are kept for the back
//! end even if no route goes to `$upstream`.

use std::fmt;
use std::str::FromStr;
use std::time::SystemTime;

use bytes::Bytes;

use super::{DeliveryAck, EnqueueError, Hub, QueuedMessage};
use crate::credentials::check_module_id;
use crate::emulator::identity;
use crate::message::{self, C2dMessage, Properties, excerpt};

/// The device that sent the message for an input. Source: wire reference 6.3.
pub const SOURCE_DEVICE: &str = "$.cdid";
/// The module that sent the message for an input.
pub(super) const SOURCE_MODULE: &str = "$.cmid";
/// The output that the module used to send.
pub(super) const OUTPUT: &str = "$.on";

/// A route from outputs of modules to an input, for every device that has these modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRoute {
    /// `None` means any module.
    module: Option<String>,
    /// `None` means any output, and messages without an output.
    output: Option<String>,
    /// Module and input; `None` means the hub, which gets all messages anyway.
    into: Option<(String, String)>,
}

/// Why a route cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a route that the emulator knows: write FROM /messages/modules/MODULE/outputs/OUTPUT INTO \
     BrokeredEndpoint(\"/modules/MODULE/inputs/INPUT\"), with * for any module or output, or INTO $upstream; \
     WHERE is not supported"
)]
pub struct RouteError(String);

impl FromStr for InputRoute {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Self, RouteError> {
        Self::read(text).ok_or_else(|| RouteError(excerpt(text)))
    }
}

impl InputRoute {
    fn read(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (from, source, into, sink) = match words.as_slice() {
            [from, source, into, sink] => (from, source, into, *sink),
            _ => return None,
        };
        if !from.eq_ignore_ascii_case("from") || !into.eq_ignore_ascii_case("into") {
            return None;
        }
        let name = |text: &str| check_module_id(text).is_ok().then(|| text.to_owned());
        let any = |text: &str| if text == "*" { Some(None) } else { name(text).map(Some) };
        let source: Vec<&str> = source.strip_prefix('/')?.split('/').collect();
        let (module, output) = match source.as_slice() {
            ["*"] | ["messages", "*"] | ["messages", "modules", "*"] => (None, None),
            ["messages", "modules", module, "*"] => (any(module)?, None),
            ["messages", "modules", module, "outputs", output] => (any(module)?, any(output)?),
            _ => return None,
        };
        if sink.eq_ignore_ascii_case("$upstream") {
            return Some(Self { module, output, into: None });
        }
        let endpoint = sink.strip_prefix("BrokeredEndpoint(")?.strip_suffix(')')?;
        let endpoint = endpoint.strip_prefix('"')?.strip_suffix('"')?;
        let sink: Vec<&str> = endpoint.split('/').collect();
        match sink.as_slice() {
            ["", "modules", into, "inputs", input] => {
                Some(Self { module, output, into: Some((name(into)?, name(input)?)) })
            }
            _ => None,
        }
    }

    /// The module and input that a message goes to, if the route matches.
    fn leads(&self, module: &str, output: Option<&str>) -> Option<&(String, String)> {
        let is = |wanted: &Option<String>, own: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == own)
        };
        self.into.as_ref().filter(|_| is(&self.module, Some(module)) && is(&self.output, output))
    }
}

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
        let of = |id: &&str| matches!(identity::split(id), (device, Some(_)) if device == device_id);
        self.device_ids().filter(of).map(str::to_owned).collect()
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
        let Some(module) = module.filter(|_| self.devices.contains_key(id)) else {
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

impl fmt::Display for InputRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let any = |name: &Option<String>| name.clone().unwrap_or_else(|| "*".to_owned());
        write!(f, "FROM /messages/modules/{}/outputs/{} INTO ", any(&self.module), any(&self.output))?;
        match &self.into {
            Some((module, input)) => write!(f, "BrokeredEndpoint(\"/modules/{module}/inputs/{input}\")"),
            None => write!(f, "$upstream"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(text: &str) -> InputRoute {
        text.parse().expect(text)
    }

    #[test]
    fn routes_of_manifests_are_read() {
        for (text, module, output, leads) in [
            ("FROM /messages/* INTO BrokeredEndpoint(\"/modules/b/inputs/in\")", "a", None, true),
            (
                "from /messages/modules/a/* into BrokeredEndpoint(\"/modules/b/inputs/in\")",
                "a",
                Some("x"),
                true,
            ),
            (
                "FROM /messages/modules/a/outputs/x INTO BrokeredEndpoint(\"/modules/b/inputs/in\")",
                "a",
                Some("x"),
                true,
            ),
            (
                "FROM /messages/modules/a/outputs/x INTO BrokeredEndpoint(\"/modules/b/inputs/in\")",
                "a",
                Some("y"),
                false,
            ),
            (
                "FROM /messages/modules/a/outputs/x INTO BrokeredEndpoint(\"/modules/b/inputs/in\")",
                "a",
                None,
                false,
            ),
            (
                "FROM /messages/modules/a/outputs/* INTO BrokeredEndpoint(\"/modules/b/inputs/in\")",
                "c",
                Some("x"),
                false,
            ),
            ("FROM /messages/modules/a/outputs/* INTO $upstream", "a", Some("x"), false),
        ] {
            let expected = leads.then(|| ("b".to_owned(), "in".to_owned()));
            assert_eq!(route(text).leads(module, output), expected.as_ref(), "{text}");
            assert_eq!(route(&route(text).to_string()), route(text));
        }
        for text in [
            "",
            "FROM /messages/*",
            "FROM /messages/* WHERE a = 1 INTO $upstream",
            "FROM /messages/modules/a b/* INTO $upstream",
            "FROM /twinChangeNotifications INTO $upstream",
            "FROM /messages/* INTO BrokeredEndpoint(\"/modules/b\")",
        ] {
            let error = text.parse::<InputRoute>().expect_err(text);
            assert!(error.to_string().contains("is not a route that the emulator knows"), "{error}");
        }
    }

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
