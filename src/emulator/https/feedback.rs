//! Delivery feedback as a back end reads it over HTTPS.
//!
//! Owns: the routes below `/messages/servicebound/feedback`. Must not know: connections, how batches are made.
//!
//! Source: wire reference 4.4. Choices where it is silent: the answer has the content type that a batch has over AMQP,
//! and says when the batch was made; a batch that is not settled within a minute comes again.

use hyper::header::{CONTENT_TYPE, HeaderValue};
use uuid::Uuid;

use super::call::HttpCall;
use super::reply::{self, HttpResult};
use crate::emulator::hub::{FeedbackLock, Hub, LockLost};
use crate::feedback::{FEEDBACK_CONTENT_TYPE, encode_batch};
use crate::message;

/// The header with the time at which the batch was made.
const ENQUEUED_TIME: &str = "iothub-enqueuedtime";

/// `GET /messages/servicebound/feedback`: the next batch, locked for a minute, or 204.
pub(super) fn receive(call: &HttpCall) -> HttpResult {
    let Some(batch) = call.hub.with(|hub, now| hub.next_feedback_batch(now)) else {
        return Ok(reply::no_content());
    };
    let token = format!("\"{}\"", Uuid::from_u64_pair(0, batch.lock.number()));
    let mut reply = reply::bytes(encode_batch(&batch.records).into())
        .with(CONTENT_TYPE, HeaderValue::from_static(FEEDBACK_CONTENT_TYPE));
    for (name, value) in [("ETag", token), (ENQUEUED_TIME, message::format_time(batch.enqueued))] {
        if let Err(error) = reply.append(name, &value) {
            tracing::warn!(name, "left a header out of a feedback batch over HTTPS: {error}");
        }
    }
    tracing::debug!(records = batch.records.len(), "delivered feedback over HTTPS");
    Ok(reply)
}

/// `DELETE /messages/servicebound/feedback/{lock}`: the back end has accepted the batch.
pub(super) fn complete(call: &HttpCall) -> HttpResult {
    settle(call, Hub::complete_feedback)
}

/// `POST /messages/servicebound/feedback/{lock}/abandon`: the batch must come again.
pub(super) fn abandon(call: &HttpCall) -> HttpResult {
    settle(call, Hub::abandon_feedback)
}

fn settle(call: &HttpCall, how: fn(&mut Hub, FeedbackLock) -> Result<(), LockLost>) -> HttpResult {
    let token = call.segment(3).trim_matches('"');
    // The emulator never issued a token of another form. It gets the error of a lock that is no longer held.
    let lock = match Uuid::try_parse(token).map(|uuid| uuid.as_u64_pair()) {
        Ok((0, number)) => Ok(FeedbackLock::from_number(number)),
        _ => Err(LockLost),
    };
    match lock.and_then(|lock| call.hub.with(|hub, _| how(hub, lock))) {
        Ok(()) => Ok(reply::no_content()),
        Err(LockLost) => {
            let token = message::excerpt(token);
            tracing::warn!(token, "refused a late settlement of feedback");
            Err(reply::lock_lost().into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{SasToken, SharedAccessKey};
    use crate::emulator::https::routes;
    use crate::emulator::hub::QueuedMessage;
    use crate::emulator::hubs::Hubs;
    use crate::emulator::provisioning::Reception;
    use crate::emulator::registry::{
        AccessPolicy, Device, DeviceCredential, KeyPair, Registry, RegistryRight,
    };
    use crate::emulator::shared::SharedHub;
    use crate::feedback::{DeliveryAck, decode_batch};
    use crate::message::C2dMessage;
    use http_body_util::{BodyExt as _, Full};
    use hyper::header::AUTHORIZATION;
    use hyper::{Request, Response};
    use serde_json::{Value, json};
    use std::time::{Duration, SystemTime};

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;
    const PATH: &str = "/messages/serviceBound/feedback";

    /// A hub with one batch of two records.
    fn shared() -> SharedHub {
        let key = SharedAccessKey::from_bytes([7; 32]);
        let keys = KeyPair { primary: key.clone(), secondary: key };
        let policy = |name: &str, service_connect| AccessPolicy {
            name: name.to_owned(),
            keys: keys.clone(),
            service_connect,
            device_connect: !service_connect,
            registry: RegistryRight::None,
        };
        let registry = Registry::new("hub.test", vec![policy("service", true), policy("device", false)]);
        let mut hub = Hub::new(registry, Duration::from_secs(15));
        hub.add_device(Device { id: "dev1".into(), credential: DeviceCredential::Keys(keys.clone()) });
        for id in ["m1", "m2"] {
            let mut message = C2dMessage::default();
            message.system.set(message::MESSAGE_ID, id);
            let (device_id, ack) = ("dev1".to_owned(), DeliveryAck::Full);
            hub.enqueue(QueuedMessage { device_id, message, ack, expiry: None }, NOW).expect("room");
        }
        assert_eq!(hub.purge("dev1", NOW), Some(2));
        SharedHub::new(hub, || NOW)
    }

    async fn ask(method: &str, path: &str, policy: &str, hub: &SharedHub) -> (u16, String, Vec<u8>) {
        let key = SharedAccessKey::from_bytes([7; 32]);
        let token = SasToken::sign(&key, "hub.test", Some(policy), NOW + Duration::from_secs(60));
        let request = Request::builder().method(method).uri(format!("{path}?api-version=2021-04-12"));
        let body = Full::default().map_err(|never| match never {}).boxed_unsync();
        let request = request.header(AUTHORIZATION, token.expose()).body(body).expect("a request");
        let peer = ([127, 0, 0, 1], 1).into();
        let reply: Response<_> =
            routes::answer(HttpCall::new(request, None, Reception::closed(), peer, Hubs::of(hub, &[])))
                .await
                .into();
        let etag = reply.headers().get("etag").map(|etag| etag.to_str().expect("text").to_owned());
        let lock = etag.unwrap_or_default().trim_matches('"').to_owned();
        let status = reply.status().as_u16();
        (status, lock, reply.into_body().collect().await.expect("a body").to_bytes().to_vec())
    }

    #[tokio::test]
    async fn a_batch_is_locked_comes_again_when_abandoned_and_goes_when_completed() {
        let hub = shared();
        let (status, first, body) = ask("GET", PATH, "service", &hub).await;
        let records = decode_batch(&body).expect("records");
        let ids: Vec<_> = records.iter().map(|record| record.original_message_id.as_str()).collect();
        assert_eq!((status, ids), (200, vec!["m1", "m2"]));
        assert_eq!(ask("GET", PATH, "service", &hub).await.0, 204, "it is locked");

        assert_eq!(ask("POST", &format!("{PATH}/{first}/abandon"), "service", &hub).await.0, 204);
        let (status, second, again) = ask("GET", PATH, "service", &hub).await;
        assert_eq!((status, again), (200, body));
        assert_ne!(second, first);
        for lost in [first.as_str(), "nonsense"] {
            let (status, _, body) = ask("DELETE", &format!("{PATH}/{lost}"), "service", &hub).await;
            let text = String::from_utf8(body).expect("text");
            assert!(status == 412 && text.contains("LockLost"), "{status} {text}");
        }
        assert_eq!(ask("DELETE", &format!("{PATH}/{second}"), "service", &hub).await.0, 204);
        assert_eq!(ask("GET", PATH, "service", &hub).await.0, 204);
    }

    #[tokio::test]
    async fn only_service_connect_may_read_and_settle_and_purge() {
        let hub = shared();
        let lock = format!("{PATH}/00000000-0000-0000-0000-000000000001");
        let (abandon, commands) = (format!("{lock}/abandon"), "/devices/dev1/commands");
        for (method, path) in [("GET", PATH), ("DELETE", &lock), ("POST", &abandon), ("DELETE", commands)] {
            assert_eq!(ask(method, path, "device", &hub).await.0, 401, "{method} {path}");
            assert_eq!(ask("PUT", path, "service", &hub).await.0, 405, "{path}");
        }
        let (status, _, body) = ask("DELETE", commands, "service", &hub).await;
        let body: Value = serde_json::from_slice(&body).expect("JSON");
        let expected = json!({ "totalMessagesPurged": 0, "deviceId": "dev1", "moduleId": null });
        assert_eq!((status, body), (200, expected));
    }
}
