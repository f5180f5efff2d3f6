//! The link on which a device receives its C2D messages.
//!
//! Owns: when a message is sent, and what each outcome does in the hub. Must not know: how a message is encoded
//! (`device_message.rs`), queues.
//! Source: wire reference 2.4 and 2.6.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use fe2o3_amqp::Sender;
use fe2o3_amqp::link::SendError;
use fe2o3_amqp::link::delivery::DeliveryFut;
use fe2o3_amqp::types::messaging::Outcome;
use futures_util::future::BoxFuture;
use futures_util::stream::FuturesUnordered;
use futures_util::{FutureExt as _, StreamExt as _};
use tokio::time::{Instant, sleep_until};

use super::claims::Claims;
use super::device_message;
use super::ending::steal;
use crate::emulator::hub::{ConnectionId, Locked, Subscription};

/// How long a message stays locked for a device that gives no credit. This must be well below the lock time.
const CREDIT_PATIENCE: Duration = Duration::from_secs(20);

/// Messages whose outcome has not come yet.
type Unsettled = FuturesUnordered<BoxFuture<'static, (Locked, SendResult)>>;

/// Sends messages when the device gives credit, until the link ends or another connection of the device replaces it.
/// What the device settled before that counts.
pub(super) async fn deliver(mut link: Sender, claims: Arc<Claims>, device_id: String, own: ConnectionId) {
    let mut unsettled = Unsettled::new();
    let replaced = serve(&mut link, &claims, &device_id, own, &mut unsettled).await;
    while let Some(Some((locked, outcome))) = unsettled.next().now_or_never() {
        settle(&claims, &device_id, &locked, outcome);
    }
    if replaced {
        steal(link, claims.hub(), &device_id).await;
    }
}

/// Returns whether another connection of the device has replaced this one.
async fn serve(
    link: &mut Sender,
    claims: &Claims,
    device_id: &str,
    own: ConnectionId,
    unsettled: &mut Unsettled,
) -> bool {
    let hub = claims.hub().clone();
    let mut changed = hub.watch_device(device_id);
    hub.with(|hub, _| hub.subscribe(device_id, own, Subscription::DeviceBound, 1));
    loop {
        changed.mark_unchanged();
        if !hub.with(|hub, _| hub.is_current(device_id, own)) {
            return true;
        }
        let Some(locked) = hub.with(|hub, now| hub.next_delivery(device_id, own, now)) else {
            tokio::select! {
                biased;
                Some((locked, outcome)) = unsettled.next() => settle(claims, device_id, &locked, outcome),
                reason = link.on_detach() => {
                    tracing::debug!(device_id, %reason, "a device's link ended");
                    return false;
                }
                // The hub holds the sender, so this is always a change.
                _changed = changed.changed() => {}
            }
            continue;
        };
        if !claims.count_packet(device_id) {
            hub.with(|hub, _| hub.put_back(device_id, &locked));
            return false;
        }
        let patience = Instant::now() + CREDIT_PATIENCE;
        let sent = {
            let mut sending = pin!(link.send_batchable(device_message::of(&locked)));
            loop {
                tokio::select! {
                    biased;
                    // The sending waits for credit. Meanwhile other messages can be settled, and the wait is limited.
                    sent = &mut sending => break Some(sent),
                    Some((locked, outcome)) = unsettled.next() => settle(claims, device_id, &locked, outcome),
                    _changed = changed.changed() => {
                        if !hub.with(|hub, _| hub.is_current(device_id, own)) {
                            break None;
                        }
                    }
                    () = sleep_until(patience) => break None,
                }
            }
        };
        match sent {
            Some(Ok(settled)) => {
                let (message_id, redelivered) = (locked.message.message_id(), locked.redelivered);
                tracing::debug!(device_id, message_id, redelivered, "delivered a C2D message");
                unsettled.push(outcome(locked, settled).boxed());
            }
            Some(Err(error)) => {
                tracing::debug!(device_id, %error, "a device's link ended");
                hub.with(|hub, _| hub.put_back(device_id, &locked));
                return false;
            }
            None => hub.with(|hub, _| hub.put_back(device_id, &locked)),
        }
    }
}

type SendResult = Result<Outcome, SendError>;

async fn outcome(locked: Locked, settled: DeliveryFut<SendResult>) -> (Locked, SendResult) {
    (locked, settled.await)
}

/// Carries out an outcome. SDKs do not use `Modified`; that it gives the message back is a choice.
fn settle(claims: &Claims, device_id: &str, locked: &Locked, settled: SendResult) {
    let outcome = match settled {
        Ok(outcome) => outcome,
        Err(error) => return tracing::debug!(device_id, %error, "a device left a message unsettled"),
    };
    if !claims.count_packet(device_id) {
        return;
    }
    let (lock, message_id) = (locked.lock, locked.message.message_id());
    let settled = claims.hub().with(|hub, now| {
        hub.touch(device_id, now);
        match outcome {
            Outcome::Accepted(_) => hub.complete(device_id, lock, now),
            Outcome::Rejected(_) => hub.reject(device_id, lock, now),
            Outcome::Released(_) | Outcome::Modified(_) => hub.abandon(device_id, lock, now),
        }
    });
    claims.answers.answer(device_message::lock_token(locked), settled.is_ok());
    match settled {
        Ok(()) => tracing::debug!(device_id, message_id, "settled a C2D message"),
        Err(error) => {
            tracing::info!(device_id, message_id, %error, "a late settlement: the hub delivers the message again");
        }
    }
}
