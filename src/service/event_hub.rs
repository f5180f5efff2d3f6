//! The hub's Event Hubs endpoint, where back ends read the messages of devices.
//!
//! Owns: where it is, signing in there. Must not know: the command line, who reads what.
//!
//! Sources: Microsoft's documents on the built-in endpoint; `hub_target_builder.py` of the extension of `az` for IoT, which
//! lets the hub redirect it to the endpoint with the key of the hub's policy; azure-eventhub 5.15 for Python.
//!
//! - `message` is what a message says; `reader` reads all partitions.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::link::{LinkStateError, ReceiverAttachError, RecvError};
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::types::definitions;
use fe2o3_amqp::types::messaging::Body;
use fe2o3_amqp::types::primitives::{SimpleValue, Symbol, Value};
use fe2o3_amqp::{Connection, Receiver, Session};

use super::node::{AmqpNode, NodeReply};
use super::refusal::RefusedRequest;
use super::{
    CONNECT_TIMEOUT, Service, ServiceError, ServiceIdentity, ServiceProof, ServiceTransport, TOKEN_LIFETIME,
    answered, dial, failure,
};
use crate::amqp_frames::{Failed, Guarded, MAX_FRAME};
use crate::credentials::{
    EventHubConnectionString, HostPort, SasToken, ServiceConnectionString, ServiceSecret,
};
use crate::websocket::SERVICE_BUS_PATH;

mod message;
mod reader;

pub use message::HubEvent;
pub use reader::{EventReader, EventStart, EventsFrom};

/// Below this, the hub redirects. Source: `hub_target_builder.py`.
const AT_HUB: &str = "messages/events/$management";
const REDIRECT: &str = "amqp:link:redirect";
/// How long a token is valid. A reader that reads for longer gets a new one with its next connection.
const READER_TOKEN: Duration = Duration::from_secs(24 * 3600);

/// The endpoint of one hub, and the policy to sign in as.
#[derive(Debug, Clone)]
pub struct EventHubAccess {
    /// The host of the endpoint, the policy and its key.
    identity: ServiceConnectionString,
    /// The Event Hub.
    name: String,
    way: ServiceTransport,
}

impl EventHubAccess {
    /// The endpoint of a connection string.
    pub fn given(string: EventHubConnectionString, way: ServiceTransport) -> Self {
        let EventHubConnectionString { host, name, policy, key } = string;
        let identity = ServiceConnectionString { host, policy, secret: ServiceSecret::Key(key) };
        Self { identity, name, way }
    }

    /// Asks the hub where its endpoint is. The same way leads to both.
    ///
    /// # Errors
    /// When the hub cannot be reached, refuses, or does not redirect; when the connection string has no key.
    ///
    /// # Cancel safety
    /// A drop of the future closes everything that was open.
    pub async fn of_hub(
        identity: &ServiceIdentity,
        way: &ServiceTransport,
        ca_file: Option<&Path>,
        now: SystemTime,
    ) -> Result<Self, ServiceError> {
        let ServiceProof::Policy { name: policy, secret: secret @ ServiceSecret::Key(_) } = &identity.proof
        else {
            return Err(ServiceError::Events(format!(
                "{} does not sign in at the hub's Event Hubs endpoint: give a connection string with the key of a \
                 policy, or --event-hub-connection-string-file",
                match identity.proof {
                    ServiceProof::Policy { .. } => "a SAS token of the hub",
                    ServiceProof::Entra(_) => "a token of Microsoft Entra",
                }
            )));
        };
        let mut service = Service::connect_by(way, identity, ca_file, TOKEN_LIFETIME, now).await?;
        let redirected = answered("where the messages of devices are", service.redirected()).await;
        service.close().await;
        let (host, name) = redirected?;
        let (policy, secret, way) = (policy.clone(), secret.clone(), way.clone());
        Ok(Self { identity: ServiceConnectionString { host, policy, secret }, name, way })
    }

    /// Connects to the endpoint, and signs in.
    async fn open(&self, ca_file: Option<&Path>, now: SystemTime) -> Result<EventHubSession, ServiceError> {
        let Self { identity, name, way } = self;
        let host = &identity.host;
        let opening = async {
            let failed = Failed::default();
            let builder = Connection::builder()
                .container_id(uuid::Uuid::new_v4().to_string())
                .max_frame_size(MAX_FRAME)
                .hostname(host.name.as_str())
                // TLS is done already; for "amqps" the crate would start its own.
                .scheme("amqp")
                .sasl_profile(SaslProfile::Anonymous);
            let opened = match way {
                ServiceTransport::Amqp => {
                    let stream = dial::dial_amqp(host, ca_file).await?;
                    builder.open_with_stream(Guarded::new(stream, Arc::clone(&failed))).await
                }
                ServiceTransport::WebSocket(way) => {
                    let stream = dial::dial_websocket(&host.name, SERVICE_BUS_PATH, way, ca_file).await?;
                    builder.open_with_stream(Guarded::new(stream, Arc::clone(&failed))).await
                }
            };
            let signed_in = async {
                let who = ServiceIdentity::from(identity.clone());
                let mut connection = opened.map_err(|error| failure::of_open(error, &who, now))?;
                let mut session = Session::begin(&mut connection).await.map_err(failure::of_begin)?;
                let audience = format!("sb://{}/{name}", host.name);
                let token = match &identity.secret {
                    ServiceSecret::Key(key) => {
                        SasToken::sign(key, &audience, Some(&identity.policy), now + READER_TOKEN)
                    }
                    ServiceSecret::Token(token) => token.clone(),
                };
                let mut claims = AmqpNode::attach(&mut session, "$cbs", RefusedRequest::Connection).await?;
                let request = [
                    ("operation", "put-token"),
                    ("type", "servicebus.windows.net:sastoken"),
                    ("name", &audience),
                ];
                let answer = claims.ask(&request, Value::String(token.expose().to_owned())).await?;
                if !(200..300).contains(&answer.status) {
                    let right = format!("{} for the Event Hub \"{name}\"", failure::TO_CONNECT);
                    return Err(ServiceError::NotAuthorised {
                        host: host.to_string(),
                        who: who.who().to_string(),
                        remedy: who.who().remedy(now, &right),
                    });
                }
                let failed = Arc::clone(&failed);
                Ok(EventHubSession { _claims: claims, session, connection, token, failed })
            };
            signed_in.await.map_err(|error| failure::explained(error, &failed))
        };
        let late = || {
            let (seconds, port) = (CONNECT_TIMEOUT.as_secs(), way.port_in_words());
            ServiceError::Unreachable(format!(
                "{host} did not answer within {seconds} s: check whether a firewall drops {port}"
            ))
        };
        tokio::time::timeout(CONNECT_TIMEOUT, opening).await.map_err(|_| late())?
    }
}

/// A connection to the endpoint, signed in.
#[derive(Debug)]
struct EventHubSession {
    // Fields drop in this order: the links and the session must go before their connection.
    _claims: AmqpNode,
    session: SessionHandle<()>,
    #[allow(dead_code)] // Its drop ends the connection.
    connection: ConnectionHandle<()>,
    token: SasToken,
    failed: Failed,
}

impl EventHubSession {
    /// The node that knows the partitions.
    async fn management(&mut self) -> Result<AmqpNode, ServiceError> {
        AmqpNode::attach(&mut self.session, "$management", RefusedRequest::Connection).await
    }

    /// The partitions of an Event Hub.
    async fn partitions(&self, management: &mut AmqpNode, name: &str) -> Result<Vec<String>, ServiceError> {
        let answer = self.read(management, &[("type", "com.microsoft:eventhub"), ("name", name)]).await?;
        let ids = match field(&answer, "partition_ids") {
            Some(Value::Array(ids)) => ids.0.clone(),
            Some(Value::List(ids)) => ids.clone(),
            _ => Vec::new(),
        };
        let texts = ids.into_iter().filter_map(|id| match id {
            Value::String(id) => Some(id),
            _ => None,
        });
        let ids: Vec<String> = texts.take(reader::MOST_PARTITIONS).collect();
        if ids.is_empty() {
            let NodeReply { status, description: said, .. } = answer;
            return Err(ServiceError::Events(format!(
                "the Event Hubs endpoint does not tell the partitions of \"{name}\" (status {status}: {said}): check \
                 EntityPath, and that the policy has ServiceConnect"
            )));
        }
        Ok(ids)
    }

    /// The offset of the last message of a partition, if the endpoint tells it.
    async fn end_of(
        &self,
        management: &mut AmqpNode,
        name: &str,
        partition: &str,
    ) -> Result<Option<String>, ServiceError> {
        let request = [("type", "com.microsoft:partition"), ("name", name), ("partition", partition)];
        let answer = self.read(management, &request).await?;
        Ok(match field(&answer, "last_enqueued_offset") {
            Some(Value::String(offset)) => Some(offset.clone()),
            _ => None,
        })
    }

    async fn read(&self, management: &mut AmqpNode, of: &[(&str, &str)]) -> Result<NodeReply, ServiceError> {
        let token = self.token.expose().to_owned();
        let request = [&[("operation", "READ"), ("security_token", &token)], of].concat();
        management.ask(&request, Value::Null).await
    }
}

/// A field of an answer that has a map.
fn field<'a>(answer: &'a NodeReply, name: &str) -> Option<&'a Value> {
    match &answer.value {
        Value::Map(map) if answer.status == 200 => map.get(&Value::String(name.to_owned())),
        _ => None,
    }
}

impl Service {
    /// The host and the name of the Event Hub that the hub redirects to.
    async fn redirected(&mut self) -> Result<(HostPort, String), ServiceError> {
        let who = self.who.clone();
        let attached = Receiver::builder()
            .name(format!("c2d-events-{}", uuid::Uuid::new_v4()))
            .source(AT_HUB)
            .attach(&mut self.session)
            .await;
        let error = match attached {
            Err(ReceiverAttachError::RemoteClosedWithError(error)) => error,
            Err(error) => {
                return Err(failure::of_receiver_attach(error, RefusedRequest::Link { who: &who }));
            }
            // The reason can follow the attach.
            Ok(mut link) => match link.recv::<Body<Value>>().await {
                Err(RecvError::LinkStateError(
                    LinkStateError::RemoteDetachedWithError(error)
                    | LinkStateError::RemoteClosedWithError(error),
                )) => error,
                Err(error) => return Err(failure::of_receive(error)),
                Ok(_) => return Err(no_redirect("it sends messages there itself")),
            },
        };
        let redirects = symbol(&error.condition) == REDIRECT;
        if !redirects {
            return Err(failure::refused(&error, RefusedRequest::Link { who: &who }));
        }
        target(&error).ok_or_else(|| no_redirect("its redirect has no address"))
    }
}

fn no_redirect(why: &str) -> ServiceError {
    ServiceError::Events(format!(
        "the hub does not say where its Event Hubs endpoint is ({why}): give --event-hub-connection-string-file"
    ))
}

fn symbol(condition: &definitions::ErrorCondition) -> String {
    let symbol: Symbol = match condition {
        definitions::ErrorCondition::LinkError(error) => error.into(),
        definitions::ErrorCondition::Custom(symbol) => symbol.clone(),
        _ => return String::new(),
    };
    symbol.into_inner()
}

/// The host and the first part of the path in the address of a redirect.
fn target(error: &definitions::Error) -> Option<(HostPort, String)> {
    let address = match error.info.as_ref()?.get(&Symbol::from("address"))? {
        Value::String(address) => address,
        _ => return None,
    };
    let (host, path) = address.strip_prefix("amqps://")?.split_once('/')?;
    // The extension of `az` finds a user and a token here.
    let host = HostPort::parse(host.rsplit_once('@').map_or(host, |(_, host)| host))?;
    let name = path.split('/').next().filter(|name| !name.is_empty())?;
    Some((host, name.to_owned()))
}

/// A simple value as text.
fn text_of(value: &SimpleValue) -> Option<String> {
    Some(match value {
        SimpleValue::String(text) => text.clone(),
        SimpleValue::Symbol(symbol) => symbol.as_str().to_owned(),
        SimpleValue::Bool(value) => value.to_string(),
        SimpleValue::Int(number) => number.to_string(),
        SimpleValue::Uint(number) => number.to_string(),
        SimpleValue::Long(number) => number.to_string(),
        SimpleValue::Ulong(number) => number.to_string(),
        SimpleValue::Double(number) => number.0.to_string(),
        SimpleValue::Null => String::new(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use fe2o3_amqp::types::definitions::{Error, Fields, LinkError};

    #[test]
    fn the_address_of_a_redirect_says_the_host_and_the_event_hub() {
        let of = |address: &str| {
            let mut info = Fields::new();
            info.insert(Symbol::from("address"), Value::String(address.to_owned()));
            target(&Error::new(LinkError::Redirect, None, info))
        };
        let found = |address: &str| of(address).map(|(host, name)| format!("{host} {name}"));
        let real = "amqps://iothub-ns-h-1-2.servicebus.windows.net:5671/iothub-ehub-h-1-2/$management";
        let expected = "iothub-ns-h-1-2.servicebus.windows.net:5671 iothub-ehub-h-1-2";
        assert_eq!(found(real).as_deref(), Some(expected));
        let signed_in = real.replace("amqps://", "amqps://service%40sas.root.h:SharedAccessSignature%20sr@");
        assert_eq!(found(&signed_in).as_deref(), Some(expected));
        for wrong in ["", "amqps://h", "amqps://h/", "http://h/name", "amqps://a b/name"] {
            assert_eq!(found(wrong), None, "{wrong}");
        }
        assert_eq!(target(&Error::new(LinkError::Redirect, None, None)), None);
    }
}
