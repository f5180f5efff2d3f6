//! The link on which a back end reads feedback.
//!
//! Owns: the AMQP form of a batch, and what its outcome does. Must not know: how batches are made.
//! Source: wire reference 4.4.

use std::sync::Arc;
use std::time::SystemTime;

use fe2o3_amqp::Sender;
use fe2o3_amqp::types::messaging::{Data, Message, MessageAnnotations, Outcome, Properties};
use fe2o3_amqp::types::primitives::{Binary, Symbol, Timestamp, Value};
use uuid::Uuid;

use super::claims::Claims;
use super::frames::LOCK_TOKEN;
use crate::emulator::hub::{FeedbackLock, LOCK_TIME, LockedBatch};
use crate::emulator::shared::SharedHub;
use crate::feedback::{FEEDBACK_CONTENT_TYPE, encode_batch};

/// Sends batches when they are due, one at a time, until the link ends.
pub(super) async fn deliver(mut link: Sender, claims: Arc<Claims>) {
    let hub = claims.hub();
    let mut changed = hub.watch();
    loop {
        changed.mark_unchanged();
        let Some((held, batch)) = HeldBatch::next(hub) else {
            tokio::select! {
                // The hub holds the sender, so this is always a change.
                _changed = changed.changed() => continue,
                reason = link.on_detach() => {
                    tracing::debug!(%reason, "a feedback link ended");
                    return;
                }
            }
        };
        let hostname = hub.with(|hub, _| hub.hostname().to_owned());
        let sent = link.send(message(&batch, &hostname));
        // This also waits for credit. The time limit is the lock time: after it, another link may have the batch.
        let sent = tokio::select! {
            sent = sent => sent,
            () = hub.passed(LOCK_TIME) => {
                tracing::info!("a feedback batch was not settled within a minute: the hub delivers it again");
                continue;
            }
        };
        match sent {
            Ok(outcome) => {
                let is_held = held.settle(&outcome, batch.records.len());
                claims.answers.answer(lock_token(batch.lock), is_held);
            }
            Err(error) => {
                tracing::debug!(%error, "a feedback link ended");
                return;
            }
        }
    }
}

fn message(batch: &LockedBatch, hub: &str) -> Message<Data> {
    let properties = Properties {
        user_id: Some(Binary::from(hub.as_bytes())),
        content_type: Some(Symbol::from(FEEDBACK_CONTENT_TYPE)),
        ..Properties::default()
    };
    let since = batch.enqueued.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    let enqueued = Timestamp::from_milliseconds(i64::try_from(since.as_millis()).unwrap_or(i64::MAX));
    let annotations = MessageAnnotations::builder()
        .insert(Symbol::from("iothub-enqueuedtime"), Value::Timestamp(enqueued))
        .insert(Symbol::from(LOCK_TOKEN), Value::String(lock_token(batch.lock).to_string()))
        .build();
    Message::builder()
        .message_annotations(annotations)
        .properties(properties)
        .data(Data(Binary::from(encode_batch(&batch.records))))
        .build()
}

/// The token of a batch's lock, equal to the one over HTTPS.
fn lock_token(lock: FeedbackLock) -> Uuid {
    Uuid::from_u64_pair(0, lock.number())
}

/// A batch that is out. If it is dropped unsettled, for example because the link has ended, the hub gets it back.
struct HeldBatch<'a> {
    hub: &'a SharedHub,
    lock: Option<FeedbackLock>,
}

impl<'a> HeldBatch<'a> {
    fn next(hub: &'a SharedHub) -> Option<(Self, LockedBatch)> {
        let batch = hub.with(|hub, now| hub.next_feedback_batch(now))?;
        Some((Self { hub, lock: Some(batch.lock) }, batch))
    }

    /// Settles the batch. Returns whether the lock was still held.
    fn settle(mut self, outcome: &Outcome, records: usize) -> bool {
        let Some(lock) = self.lock.take() else { return false };
        let settled = self.hub.with(|hub, _| match outcome {
            Outcome::Accepted(_) => hub.complete_feedback(lock),
            Outcome::Rejected(_) => {
                tracing::warn!(records, "a back end rejected a feedback batch: the hub deleted it");
                hub.complete_feedback(lock)
            }
            Outcome::Released(_) | Outcome::Modified(_) => hub.abandon_feedback(lock),
        });
        if let Err(error) = &settled {
            tracing::info!(%error, "a feedback batch was settled too late: the hub delivers it again");
        }
        settled.is_ok()
    }
}

impl Drop for HeldBatch<'_> {
    fn drop(&mut self) {
        let Some(lock) = self.lock.take() else { return };
        if let Err(error) = self.hub.with(|hub, _| hub.release_feedback(lock)) {
            tracing::debug!(%error, "a feedback batch was already returned");
        }
    }
}
