//! Feedback batches on their way to a back end.
//!
//! Owns: what a back end may do with a batch. Must not know: how batches are made (`feedback`), links.

use std::time::SystemTime;

use super::feedback::{FeedbackLock, LockedBatch};
use super::queue::LockLost;
use super::state::Hub;

impl Hub {
    /// The next feedback batch. It is locked until it is settled, given back or its lock lapses. `None` while another
    /// batch is out, or if none is due. Source: wire reference 4.4.
    pub fn next_feedback_batch(&mut self, now: SystemTime) -> Option<LockedBatch> {
        let lock = FeedbackLock(self.next_id());
        self.feedback.next_batch(lock, now)
    }

    /// The back end has accepted the batch.
    ///
    /// # Errors
    /// [`LockLost`]; in this case the batch will come again.
    pub fn complete_feedback(&mut self, lock: FeedbackLock) -> Result<(), LockLost> {
        self.version += 1;
        self.feedback.complete(lock)
    }

    /// The back end gives the batch back, and its delivery count rises. At [`super::MAX_DELIVERY_COUNT`] the batch is
    /// dropped.
    ///
    /// # Errors
    /// [`LockLost`]; in this case the batch will come again.
    pub fn abandon_feedback(&mut self, lock: FeedbackLock) -> Result<(), LockLost> {
        self.version += 1;
        self.feedback.abandon(lock)
    }

    /// The link that carried the batch has ended. The batch will come again, with an unchanged delivery count.
    ///
    /// # Errors
    /// [`LockLost`]; in this case the batch will come again.
    pub fn release_feedback(&mut self, lock: FeedbackLock) -> Result<(), LockLost> {
        self.version += 1;
        self.feedback.release(lock)
    }
}
