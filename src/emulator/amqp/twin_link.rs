//! The pair of links on which a device gets its twin, reports properties, and receives changes of desired ones.
//!
//! Owns: requests and their answers, which links make a pair. Must not know: merging, who writes desired properties.
//! Source: wire reference 2.4 and 2.7.
//!
//! Choices where the reference is silent: a device without `com.microsoft:channel-correlation-id` has one pair; every
//! success has the status 200; the annotation `version` of an answer to PATCH is a long; a request that fails is
//! answered with 400 and with the body that MQTT uses. An answer that the device does not accept within
//! [`ANSWER_TIMEOUT`] is dropped.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use fe2o3_amqp::link::RecvError;
use fe2o3_amqp::types::definitions::{AmqpError, Error};
use fe2o3_amqp::types::messaging::annotations::OwnedKey;
use fe2o3_amqp::types::messaging::{Body, Data, Message, MessageAnnotations, MessageId, Properties};
use fe2o3_amqp::types::performatives::Attach;
use fe2o3_amqp::types::primitives::{Binary, Symbol, Value};
use fe2o3_amqp::{Receiver, Sender};
use serde_json::json;
use tokio::sync::{Mutex as AsyncMutex, mpsc};
use tokio::time::timeout;

use super::claims::Claims;
use super::condition::LinkRefusal;
use super::convert;
use super::ending::{ANSWER_TIMEOUT, goodbye, steal};
use crate::emulator::hub::{ConnectionId, Metered, Subscription};
use crate::message::excerpt;

/// Most answers that wait for the device.
const MAX_WAITING: usize = 16;

/// The property whose value the two links of a pair share. Source: wire reference 2.4.
const CORRELATION: &str = "com.microsoft:channel-correlation-id";

const REPORTED: &str = "/properties/reported";
const DESIRED: &str = "/notifications/twin/properties/desired";

/// The error code of a request that fails, as over MQTT.
const BAD_REQUEST: u32 = 400_004;

/// The error code of throttling, as over MQTT.
const THROTTLED: u32 = 429_001;

type TwinReply = Message<Data>;

/// A device, and the value that its two links share.
type Name = (String, String);

/// The pairs of one connection.
#[derive(Clone, Default)]
pub(super) struct Pairs(Arc<Mutex<BTreeMap<Name, Weak<TwinLinks>>>>);

/// The two links of a pair, or the first of them.
pub(super) struct TwinLinks {
    device_id: String,
    connection: ConnectionId,
    /// Whether the device asked on this pair for changes of desired properties.
    listens: AtomicBool,
    queue: mpsc::Sender<TwinReply>,
    /// The link that sends answers holds the lock.
    replies: AsyncMutex<mpsc::Receiver<TwinReply>>,
}

impl Pairs {
    /// The pair of a link.
    pub(super) fn of(&self, attach: &Attach, device_id: String, connection: ConnectionId) -> Arc<TwinLinks> {
        let named = attach.properties.as_ref().and_then(|fields| fields.get(&Symbol::from(CORRELATION)));
        let correlation = match named {
            Some(Value::String(text)) => text.clone(),
            Some(Value::Symbol(symbol)) => symbol.as_str().to_owned(),
            _ => String::new(),
        };
        // Nothing panics while this lock is held, so the data is valid even if the lock is poisoned.
        let mut pairs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        pairs.retain(|_, pair| pair.strong_count() > 0);
        let name = (device_id.clone(), correlation);
        let present = pairs.get(&name).and_then(Weak::upgrade);
        present.filter(|pair| pair.connection == connection).unwrap_or_else(|| {
            let (queue, replies) = mpsc::channel(MAX_WAITING);
            let replies = AsyncMutex::new(replies);
            let pair = Arc::new(TwinLinks {
                device_id,
                connection,
                listens: AtomicBool::new(false),
                queue,
                replies,
            });
            pairs.insert(name, Arc::downgrade(&pair));
            pair
        })
    }
}

/// Handles requests until the link ends. The pair's other link sends the answers.
pub(super) async fn receive(mut link: Receiver, claims: Arc<Claims>, pair: Arc<TwinLinks>) {
    let device_id = &pair.device_id;
    loop {
        let (delivery, message) = match link.recv::<Body<Value>>().await {
            Ok(delivery) => delivery.into_parts(),
            Err(RecvError::MessageDecode(error)) => {
                let refusal =
                    LinkRefusal::argument(format!("the message cannot be decoded: {}", error.source));
                match link.reject(error.info, Error::from(&refusal)).await {
                    Ok(()) => continue,
                    Err(error) => return tracing::debug!(device_id, %error, "a twin link ended"),
                }
            }
            Err(error) => return tracing::debug!(device_id, %error, "a twin link ended"),
        };
        if !claims.count_packet(device_id) {
            return;
        }
        // A client that sends settled does not notice a rejection. So a throttled request is accepted, and its answer
        // says why it failed.
        let throttled = claims.hub().with(|hub, _| hub.is_throttled(device_id));
        let allowed = if throttled { Ok(()) } else { claims.check_device(device_id) };
        let settled = match &allowed {
            Ok(()) => link.accept(delivery).await,
            Err(refusal) => link.reject(delivery, Error::from(refusal)).await,
        };
        if let Err(error) = settled {
            return tracing::debug!(device_id, %error, "a twin request could not be settled");
        }
        if allowed.is_err() {
            continue;
        }
        if let Err(error) = pair.queue.try_send(answer(message, &claims, &pair, throttled)) {
            tracing::warn!(device_id, %error, "dropped a twin answer: the device does not receive answers");
        }
    }
}

/// Sends answers, and changes of desired properties if the device asked for them, until the link ends.
pub(super) async fn send(mut link: Sender, claims: Arc<Claims>, pair: Arc<TwinLinks>) {
    let (device_id, own) = (&pair.device_id, pair.connection);
    let Ok(mut replies) = pair.replies.try_lock() else {
        let words = format!("another link has this {CORRELATION} already");
        let refusal = LinkRefusal::new(AmqpError::NotAllowed, words);
        return goodbye(link, device_id, &refusal).await;
    };
    let hub = claims.hub().clone();
    let mut changed = hub.watch_device(device_id);
    loop {
        changed.mark_unchanged();
        if !hub.with(|hub, _| hub.is_current(device_id, own)) {
            return steal(link, &hub, device_id).await;
        }
        // Send answers first: the result of a GET is older than the changes that wait.
        let ready = replies.try_recv().ok().or_else(|| {
            let listens = pair.listens.load(Ordering::Relaxed);
            let change =
                hub.with(|hub, _| listens.then(|| hub.next_desired_change(device_id, own)).flatten());
            change.map(|change| desired(&change.patch))
        });
        let message = if let Some(message) = ready {
            message
        } else {
            tokio::select! {
                // The pair holds the sender, so there is always a next one.
                reply = replies.recv() => match reply {
                    Some(reply) => reply,
                    None => break,
                },
                // The hub holds the sender, so this is always a change.
                _changed = changed.changed() => continue,
                reason = link.on_detach() => {
                    tracing::debug!(device_id, %reason, "a twin link ended");
                    break;
                }
            }
        };
        match timeout(ANSWER_TIMEOUT, link.send(message)).await {
            Ok(Ok(_outcome)) => {}
            Ok(Err(error)) => {
                tracing::debug!(device_id, %error, "a twin link ended");
                break;
            }
            Err(_) => tracing::warn!(
                device_id,
                "dropped a message on a twin link: the device does not receive messages there"
            ),
        }
    }
    if pair.listens.swap(false, Ordering::Relaxed) {
        hub.with(|hub, _| hub.unsubscribe(device_id, own, Subscription::DesiredProperties));
    }
}

/// Carries out a request.
fn answer(request: Message<Body<Value>>, claims: &Claims, pair: &TwinLinks, throttled: bool) -> TwinReply {
    let id = request.properties.as_ref().and_then(|properties| properties.correlation_id.clone());
    let refuse = |status, code, message: &str| {
        tracing::warn!(device_id = pair.device_id, "refused a twin request: {message}");
        let tracking_id = uuid::Uuid::new_v4().simple().to_string();
        let body = json!({ "errorCode": code, "message": message, "trackingId": tracking_id });
        reply(id.clone(), status, None, body.to_string())
    };
    if throttled {
        return refuse(429, THROTTLED, "the hub is throttling the device: try again later");
    }
    if annotation(&request, "operation").eq_ignore_ascii_case("PATCH")
        && let Err(error) = claims.hub().with(|hub, now| hub.meter(Metered::TwinUpdate, 0, now))
    {
        return refuse(429, THROTTLED, &error.to_string());
    }
    match carry_out(request, claims, pair) {
        Ok((version, body)) => reply(id.clone(), 200, version, body),
        Err(message) => refuse(400, BAD_REQUEST, &message),
    }
}

/// An annotation of a request; empty if there is none.
fn annotation<'m>(request: &'m Message<Body<Value>>, name: &'static str) -> &'m str {
    let annotations = request.message_annotations.as_ref().map(|annotations| &annotations.0);
    match annotations.and_then(|all| all.get::<OwnedKey>(&Symbol::from(name).into())) {
        Some(Value::String(text)) => text.as_str(),
        Some(Value::Symbol(symbol)) => symbol.as_str(),
        _ => "",
    }
}

/// The version after a patch and the body of the answer, or the error.
fn carry_out(
    request: Message<Body<Value>>,
    claims: &Claims,
    pair: &TwinLinks,
) -> Result<(Option<u64>, String), String> {
    let (device_id, own) = (pair.device_id.as_str(), pair.connection);
    if !claims.hub().with(|hub, _| hub.is_current(device_id, own)) {
        return Err("another connection of the device replaced it".to_owned());
    }
    let operation = annotation(&request, "operation").to_ascii_uppercase();
    let resource = annotation(&request, "resource").trim_end_matches('/').to_owned();
    match (operation.as_str(), resource.as_str()) {
        ("GET", "") => {
            let twin = claims.hub().with(|hub, _| hub.twin_properties(device_id));
            Ok((None, twin.ok_or("the device was removed")?.to_string()))
        }
        ("PATCH", REPORTED) => {
            let body = convert::body(request.body).map_err(|refusal| refusal.description)?;
            let patch = serde_json::from_slice(&body).map_err(|error| format!("it is not JSON: {error}"))?;
            let patched = claims.hub().with(|hub, now| hub.patch_reported(device_id, &patch, now));
            Ok((Some(patched.map_err(|error| error.to_string())?), String::new()))
        }
        ("PUT", DESIRED) => {
            let subscription = Subscription::DesiredProperties;
            let there = claims.hub().with(|hub, _| hub.subscribe(device_id, own, subscription, 0));
            pair.listens.store(there, Ordering::Relaxed);
            there
                .then_some((None, String::new()))
                .ok_or_else(|| "there are too many subscriptions".to_owned())
        }
        ("DELETE", DESIRED) => {
            if pair.listens.swap(false, Ordering::Relaxed) {
                claims.hub().with(|hub, _| hub.unsubscribe(device_id, own, Subscription::DesiredProperties));
            }
            Ok((None, String::new()))
        }
        (operation, resource) => Err(format!(
            "a twin has no operation \"{}\" on \"{}\": use GET, PATCH on {REPORTED}, PUT or DELETE on \
             {DESIRED}",
            excerpt(operation),
            excerpt(resource)
        )),
    }
}

fn reply(id: Option<MessageId>, status: i32, version: Option<u64>, body: String) -> TwinReply {
    let mut annotations = MessageAnnotations::builder().insert(Symbol::from("status"), Value::Int(status));
    if let Some(version) = version.and_then(|version| i64::try_from(version).ok()) {
        annotations = annotations.insert(Symbol::from("version"), Value::Long(version));
    }
    let properties = Properties { correlation_id: id, ..Properties::default() };
    Message::builder()
        .message_annotations(annotations.build())
        .properties(properties)
        .data(Data(Binary::from(body.into_bytes())))
        .build()
}

/// A change of desired properties. It has no correlation id, because that is how the device tells it from an answer.
fn desired(patch: &serde_json::Value) -> TwinReply {
    let annotations =
        MessageAnnotations::builder().insert(Symbol::from("resource"), Value::String(DESIRED.to_owned()));
    Message::builder()
        .message_annotations(annotations.build())
        .data(Data(Binary::from(patch.to_string().into_bytes())))
        .build()
}
