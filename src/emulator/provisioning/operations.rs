//! Registrations under way: what a client asks after until it is over.
//!
//! Owns: the ids of operations, how often each is still "assigning", and the bound on their number and size. Must not
//! know: enrolments, hubs.
//!
//! Operations end with the process: a client that asks after one of an earlier process registers anew.

use std::collections::BTreeMap;

use serde_json::Value;
use uuid::Uuid;

use super::answer::Ending;

/// Most operations that are kept.
const MAX_OPERATIONS: usize = 20_000;
/// Most bytes that they keep of payloads and certificates.
const MAX_BYTES: usize = 16 * 1024 * 1024;

/// A registration under way.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Operation {
    /// The registration id in small letters.
    pub(super) registration: String,
    /// How it ends.
    pub(super) ending: Ending,
    /// So many questions are still answered with "assigning".
    pub(super) assigning: u32,
    /// What the answer has beside the registration: the payload, an issued certificate.
    pub(super) extra: Vec<(&'static str, Value)>,
}

/// The operations. Their ids begin with a number that grows, so the first one is the oldest.
#[derive(Debug, Default)]
pub(super) struct Operations {
    by_id: BTreeMap<String, Operation>,
    last: u64,
    bytes: usize,
}

impl Operation {
    fn bytes(&self) -> usize {
        self.extra.iter().map(|(_, value)| value.to_string().len()).sum()
    }
}

impl Operations {
    /// Keeps an operation, and returns its id. The oldest ones make room.
    pub(super) fn begin(&mut self, operation: Operation, unique: Uuid) -> String {
        self.last += 1;
        // The form of a real one: a digit, a number, and a UUID.
        let id = format!("5.{:016x}.{unique}", self.last);
        self.bytes += operation.bytes();
        self.by_id.insert(id.clone(), operation);
        while self.by_id.len() > MAX_OPERATIONS || (self.bytes > MAX_BYTES && self.by_id.len() > 1) {
            let Some((_, oldest)) = self.by_id.pop_first() else { break };
            self.bytes -= oldest.bytes();
        }
        id
    }

    /// An operation of this registration.
    pub(super) fn get_mut(&mut self, id: &str, registration: &str) -> Option<&mut Operation> {
        self.by_id.get_mut(id).filter(|operation| operation.registration == registration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn operation(registration: &str, extra: Vec<(&'static str, Value)>) -> Operation {
        Operation { registration: registration.to_owned(), ending: Ending::Assigned, assigning: 0, extra }
    }

    #[test]
    fn an_operation_belongs_to_its_registration() {
        let mut operations = Operations::default();
        let id = operations.begin(operation("a", Vec::new()), Uuid::from_u128(7));
        assert_eq!(id, "5.0000000000000001.00000000-0000-0000-0000-000000000007");
        assert!(operations.get_mut(&id, "a").is_some());
        assert!(operations.get_mut(&id, "b").is_none() && operations.get_mut("5.1.x", "a").is_none());
    }

    #[test]
    fn the_oldest_make_room() {
        let mut operations = Operations::default();
        let first = operations.begin(operation("a", Vec::new()), Uuid::nil());
        for _ in 0..MAX_OPERATIONS {
            operations.begin(operation("b", Vec::new()), Uuid::nil());
        }
        assert!(operations.get_mut(&first, "a").is_none());
        assert_eq!(operations.by_id.len(), MAX_OPERATIONS);
        let large = Value::from("x".repeat(96 * 1024));
        for _ in 0..300 {
            operations.begin(operation("c", vec![("payload", large.clone())]), Uuid::nil());
        }
        assert!(operations.bytes <= MAX_BYTES && operations.by_id.len() < 200, "{}", operations.by_id.len());
    }
}
