//! The ids of messages whose action has ended, as far back as memory goes.
//!
//! Owns: which message must not be acted on again. Pure. Must not know: why a message came again. Used by: `agent`.
//!
//! This protects one process life only: a message whose PUBACK was lost with its connection is completed, and not
//! acted on, when it comes again. It forgets at exit; a durable record of messages is a later step.

use std::collections::{HashSet, VecDeque};
use std::sync::Arc;

/// The hub keeps at most 50 messages of a device, so a message that comes again is among the newest 50 by far; the
/// rest is room for brokers with longer queues.
const CAPACITY: usize = 1024;

/// A bounded set of message ids: the oldest makes room for the newest.
#[derive(Debug, Default)]
pub(super) struct RecentIds {
    order: VecDeque<Arc<str>>,
    known: HashSet<Arc<str>>,
}

impl RecentIds {
    /// Whether a message with this id was acted on.
    pub(super) fn contains(&self, id: &str) -> bool {
        self.known.contains(id)
    }

    /// Remembers an id.
    pub(super) fn insert(&mut self, id: &str) {
        let id: Arc<str> = id.into();
        if !self.known.insert(Arc::clone(&id)) {
            return;
        }
        self.order.push_back(id);
        if self.order.len() > CAPACITY
            && let Some(oldest) = self.order.pop_front()
        {
            self.known.remove(&oldest);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_remembered_until_1024_newer_ones_came() {
        let mut recent = RecentIds::default();
        recent.insert("first");
        for n in 1..CAPACITY {
            recent.insert(&n.to_string());
        }
        assert!(recent.contains("first"));
        recent.insert("one more");
        assert!(!recent.contains("first"));
        assert!(recent.contains("1") && recent.contains("one more"));
    }

    #[test]
    fn an_id_that_comes_again_takes_no_second_place() {
        let mut recent = RecentIds::default();
        for _ in 0..3 * CAPACITY {
            recent.insert("again");
        }
        recent.insert("other");
        assert!(recent.contains("again") && recent.contains("other"));
        assert_eq!(recent.order.len(), 2);
    }
}
