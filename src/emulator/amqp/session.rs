//! One AMQP session: which links it may have, and its end when the token expires.
//!
//! Owns: attaches and refusals. Must not know: SASL, the messages on a link.

use std::net::SocketAddr;
use std::sync::Arc;

use fe2o3_amqp::acceptor::{
    LinkAcceptor, LinkEndpoint, ListenerSessionHandle, SupportedReceiverSettleModes,
    SupportedSenderSettleModes,
};
use fe2o3_amqp::types::definitions::{AmqpError, Error, ReceiverSettleMode, Role, SenderSettleMode};
use fe2o3_amqp::types::messaging::TargetArchetype;
use fe2o3_amqp::types::performatives::Attach;
use fe2o3_amqp::types::primitives::{Symbol, Value};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::address::Address;
use super::claims::{Claims, NO_MODULES};
use super::condition::LinkRefusal;
use super::consumer_link::{self, Reading};
use super::ending::ANSWER_TIMEOUT;
use super::enrollee::Enrollee;
use super::frames::{MAX_D2C, MAX_MESSAGE};
use super::requests::RequestNode;
use super::twin_link::{self, Pairs, TwinLinks};
use super::{
    c2d_link, cbs, device_link, events_link, feedback_link, management, method_link, registration_link,
    silent_link,
};
use crate::emulator::hub::ConnectionId;
use crate::message::excerpt;

/// The property of a link in which a device names the DTDL model that it implements. Source: wire reference 2.4.
const MODEL_ID: &str = "com.microsoft:model-id";

/// Most links of one session. SDKs open up to four.
const MAX_LINKS: usize = 64;

/// The highest handle if there are [`MAX_LINKS`] links.
pub(super) const HIGHEST_HANDLE: u32 = 63;

/// The purpose of a link.
enum Purpose {
    /// A client sends tokens or questions to a node.
    Requests(Node),
    /// A client receives a node's replies.
    Replies(Node),
    Messages,
    Feedback,
    /// A back end waits for news of uploaded files.
    FileNotifications,
    /// A back end reads the D2C messages of a partition.
    Consumer(Reading),
    /// A device receives its C2D messages.
    DeviceMessages(String, ConnectionId),
    /// A device sends D2C messages.
    DeviceEvents(String),
    /// A device sends twin requests and reports, and gets the answers.
    Twin(Arc<TwinLinks>),
    /// A device receives method calls, and answers them.
    Methods(String, ConnectionId),
    /// A device asks the provisioning service, and gets its answers.
    Registration(Arc<Enrollee>),
}

/// The nodes of a session that answer requests.
enum Node {
    Cbs,
    Management,
}

/// Serves a session until it ends or the connection's token expires, which ends the connection, too. The handle must live until then.
pub(super) async fn run(
    mut session: ListenerSessionHandle,
    claims: Arc<Claims>,
    pairs: Pairs,
    peer: SocketAddr,
) {
    let tokens = RequestNode::new(Arc::clone(&claims), cbs::put);
    let management = RequestNode::new(Arc::clone(&claims), management::read);
    let mut links = JoinSet::new();
    loop {
        let attach = tokio::select! {
            Some(_ended) = links.join_next() => continue,
            () = claims.expired() => {
                tracing::info!(%peer, "ended a connection: its token has expired");
                // Only the end of its session tells a Node back end why. Devices and readers of D2C messages do not
                // sign in again after such an error, but after a lost connection they do.
                if claims.are_of_a_back_end() {
                    let error = Error::from(&LinkRefusal::unauthorized("the token has expired"));
                    report_end(timeout(ANSWER_TIMEOUT, session.end_with_error(error)).await, peer);
                }
                claims.cut();
                return;
            }
            attach = session.next_incoming_attach() => attach,
        };
        let Some(attach) = attach else { return };
        let link = attach.name.clone();
        let decided = if links.len() < MAX_LINKS {
            purpose(&attach, &claims, &pairs)
        } else {
            let limit = format!("the session has {MAX_LINKS} links already");
            Err(LinkRefusal::new(AmqpError::ResourceLimitExceeded, limit))
        };
        // Handle one attach at a time, and finish each refusal. The crate frees a handle when it sends the detach. A
        // new link on that handle would take the client's answer for its own.
        match decided {
            Err(refusal) => {
                tracing::warn!(%peer, link, reason = refusal.description, "refused a link");
                refuse(attach, &refusal, &mut session, peer).await;
            }
            Ok(purpose) => match accept(attach, &purpose, &mut session).await {
                Some(endpoint) => start(endpoint, purpose, &mut links, [&tokens, &management], &claims),
                None => tracing::info!(%peer, link, "a link could not be attached"),
            },
        }
    }
}

/// The purpose of a new link, or why it is refused.
fn purpose(attach: &Attach, claims: &Claims, pairs: &Pairs) -> Result<Purpose, LinkRefusal> {
    let address = match attach.role {
        Role::Sender => attach.target.as_deref().and_then(|target| match target {
            TargetArchetype::Target(target) => target.address.as_deref(),
        }),
        Role::Receiver => attach.source.as_deref().and_then(|source| source.address.as_deref()),
    };
    let address = address.unwrap_or_default();
    let parsed = Address::parse(address);
    if !matches!(parsed, Address::Cbs | Address::Registration(..)) {
        claims.settle_hub(address);
    }
    let purpose = match (&attach.role, parsed) {
        (Role::Sender, Address::Cbs) => return Ok(Purpose::Requests(Node::Cbs)),
        (Role::Receiver, Address::Cbs) => return Ok(Purpose::Replies(Node::Cbs)),
        (Role::Sender, Address::DeviceBound) => Purpose::Messages,
        (Role::Receiver, Address::Feedback) => Purpose::Feedback,
        (Role::Receiver, Address::FileNotifications) => Purpose::FileNotifications,
        (Role::Sender, Address::Feedback | Address::FileNotifications) => {
            return Err(LinkRefusal::no_address("feedback can be received, not sent"));
        }
        (_, Address::Management) => {
            claims.check_reader()?;
            let sends = attach.role == Role::Sender;
            return Ok(if sends { Purpose::Requests } else { Purpose::Replies }(Node::Management));
        }
        (_, Address::HubEvents(below)) => {
            claims.check_reader()?;
            return Err(LinkRefusal::redirect(claims.hub().with(|hub, _| hub.event_hub()), below));
        }
        (Role::Receiver, Address::Partition { event_hub, group, partition }) => {
            claims.check_reader()?;
            let own = claims.hub().with(|hub, _| hub.event_hub());
            if !own.is_named(&event_hub) {
                let (shown, own) = (excerpt(&event_hub), own.name);
                let words = format!("the hub has no Event Hub \"{shown}\": its name is {own}");
                return Err(LinkRefusal::no_address(words));
            }
            return Reading::begin(claims, attach, &group, &partition).map(Purpose::Consumer);
        }
        (Role::Sender, Address::Partition { .. }) => {
            return Err(LinkRefusal::no_address("D2C messages can be read here, not sent"));
        }
        (Role::Receiver, Address::DeviceBound) => {
            return Err(LinkRefusal::no_address("a back end can send C2D messages, not receive them"));
        }
        (Role::Receiver, Address::Device(device_id)) => {
            let connection = device(attach, claims, &device_id)?;
            return Ok(Purpose::DeviceMessages(device_id, connection));
        }
        (Role::Sender, Address::Events(device_id)) => {
            // A device that only sends also needs the hub's connection, so that it replaces an older one.
            device(attach, claims, &device_id)?;
            return Ok(Purpose::DeviceEvents(device_id));
        }
        (_, Address::Twin(device_id)) => {
            let connection = device(attach, claims, &device_id)?;
            return Ok(Purpose::Twin(pairs.of(attach, device_id, connection)));
        }
        (_, Address::Methods(device_id)) => {
            let connection = device(attach, claims, &device_id)?;
            return Ok(Purpose::Methods(device_id, connection));
        }
        (_, Address::Device(_) | Address::Events(_)) => {
            return Err(LinkRefusal::no_address("a device receives at devicebound, and sends to events"));
        }
        (_, Address::Registration(id_scope, registration_id)) => {
            return claims.enrollee(attach, &id_scope, &registration_id).map(Purpose::Registration);
        }
        (_, Address::Module | Address::OtherOfDevice) => {
            return Err(LinkRefusal::new(AmqpError::NotImplemented, NO_MODULES));
        }
        (_, Address::Unknown) => {
            return Err(LinkRefusal::no_address(format!("the hub has no address \"{}\"", excerpt(address))));
        }
    };
    // Only links of back ends come here: the other cases have returned above.
    if claims.are_valid() {
        Ok(purpose)
    } else {
        let words =
            "not signed in: put a token of a policy with ServiceConnect to $cbs first, or use SASL PLAIN";
        Err(LinkRefusal::unauthorized(words))
    }
}

/// The hub's connection for a device that may attach a link, and may name its model with it.
fn device(attach: &Attach, claims: &Claims, device_id: &str) -> Result<ConnectionId, LinkRefusal> {
    claims.check_device(device_id)?;
    let connection = claims.connection(device_id)?;
    if let Some(Value::String(model_id)) =
        attach.properties.as_ref().and_then(|fields| fields.get(&Symbol::from(MODEL_ID)))
    {
        claims.hub().with(|hub, _| hub.set_model_id(device_id, model_id.clone()));
    }
    Ok(connection)
}

async fn accept(
    attach: Attach,
    purpose: &Purpose,
    session: &mut ListenerSessionHandle,
) -> Option<LinkEndpoint> {
    let largest = if matches!(purpose, Purpose::DeviceEvents(_)) { MAX_D2C } else { MAX_MESSAGE };
    let builder = LinkAcceptor::builder().max_message_size(largest as u64);
    let acceptor = match attach.role {
        // Readers do not settle D2C messages: Python's never do.
        Role::Receiver if matches!(purpose, Purpose::Consumer(_)) => builder
            .supported_sender_settle_modes(SupportedSenderSettleModes::Settled)
            .fallback_sender_settle_mode(SenderSettleMode::Settled)
            .build(),
        // Always use first mode: then one settled disposition answers each message. Python asks for second mode, and
        // then waits for a settled disposition for ever.
        Role::Sender => builder
            .supported_receiver_settle_modes(SupportedReceiverSettleModes::First)
            .fallback_receiver_settle_mode(ReceiverSettleMode::First)
            .build(),
        Role::Receiver => builder.build(),
    };
    let attached = timeout(ANSWER_TIMEOUT, acceptor.accept_incoming_attach(attach, session)).await;
    match attached {
        Ok(Ok(endpoint)) => Some(endpoint),
        Ok(Err(error)) => {
            tracing::debug!(%error, "the attach failed");
            None
        }
        Err(_) => None,
    }
}

/// Attaches without a terminus and then detaches. The missing terminus tells the client that a detach with the reason
/// follows.
async fn refuse(
    mut attach: Attach,
    refusal: &LinkRefusal,
    session: &mut ListenerSessionHandle,
    peer: SocketAddr,
) {
    match attach.role {
        Role::Sender => attach.target = None,
        Role::Receiver => attach.source = None,
    }
    let acceptor =
        LinkAcceptor::builder().verify_incoming_source(false).verify_incoming_target(false).build();
    let refused = async {
        let error = Error::from(refusal);
        match acceptor.accept_incoming_attach(attach, session).await {
            Ok(LinkEndpoint::Sender(link)) => link.close_with_error(error).await.map_err(|e| e.to_string()),
            Ok(LinkEndpoint::Receiver(link)) => link.close_with_error(error).await.map_err(|e| e.to_string()),
            Err(error) => Err(error.to_string()),
        }
    };
    report_end(timeout(ANSWER_TIMEOUT, refused).await, peer);
}

fn start(
    endpoint: LinkEndpoint,
    purpose: Purpose,
    links: &mut JoinSet<()>,
    [tokens, management]: [&RequestNode; 2],
    claims: &Arc<Claims>,
) {
    let claims = Arc::clone(claims);
    let of_node = |node: &Node| match node {
        Node::Cbs => tokens.clone(),
        Node::Management => management.clone(),
    };
    match (purpose, endpoint) {
        (Purpose::Requests(node), LinkEndpoint::Receiver(link)) => {
            links.spawn(of_node(&node).answer_requests(link));
        }
        (Purpose::Replies(node), LinkEndpoint::Sender(link)) => {
            links.spawn(of_node(&node).send_replies(link));
        }
        (Purpose::FileNotifications, LinkEndpoint::Sender(link)) => {
            links.spawn(silent_link::wait(link));
        }
        (Purpose::Consumer(reading), LinkEndpoint::Sender(link)) => {
            links.spawn(consumer_link::deliver(link, reading));
        }
        (Purpose::Messages, LinkEndpoint::Receiver(link)) => {
            links.spawn(c2d_link::receive(link, claims));
        }
        (Purpose::Feedback, LinkEndpoint::Sender(link)) => {
            links.spawn(feedback_link::deliver(link, claims));
        }
        (Purpose::DeviceMessages(device_id, connection), LinkEndpoint::Sender(link)) => {
            links.spawn(device_link::deliver(link, claims, device_id, connection));
        }
        (Purpose::DeviceEvents(device_id), LinkEndpoint::Receiver(link)) => {
            links.spawn(events_link::receive(link, claims, device_id));
        }
        (Purpose::Twin(pair), LinkEndpoint::Receiver(link)) => {
            links.spawn(twin_link::receive(link, claims, pair));
        }
        (Purpose::Twin(pair), LinkEndpoint::Sender(link)) => {
            links.spawn(twin_link::send(link, claims, pair));
        }
        (Purpose::Methods(device_id, connection), LinkEndpoint::Receiver(link)) => {
            links.spawn(method_link::receive(link, claims, device_id, connection));
        }
        (Purpose::Methods(device_id, connection), LinkEndpoint::Sender(link)) => {
            links.spawn(method_link::send(link, claims, device_id, connection));
        }
        (Purpose::Registration(enrollee), LinkEndpoint::Receiver(link)) => {
            links.spawn(registration_link::receive(link, enrollee));
        }
        (Purpose::Registration(enrollee), LinkEndpoint::Sender(link)) => {
            links.spawn(registration_link::send(link, enrollee));
        }
        // The link's role decided both its purpose and its direction, so this cannot happen.
        (_, LinkEndpoint::Receiver(_) | LinkEndpoint::Sender(_)) => {
            tracing::error!("a link has the wrong direction");
        }
    }
}

fn report_end<E: std::fmt::Display>(
    ended: Result<Result<(), E>, tokio::time::error::Elapsed>,
    peer: SocketAddr,
) {
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%peer, %error, "a link or session did not close cleanly"),
        Err(_) => tracing::debug!(%peer, "a client did not answer the close of a link or session"),
    }
}
