//! Registrations under way: what a client asks after until it is over.
//!
//! Owns: the ids of operations, how often each is still "assigning", and the bound on their number and size. Must not
//! know: enrolments, hubs.
//!
//! Operations end with the process: a client that asks after one of an earlier process registers anew. One that a client
//! may still ask for is not given up for a new one: then the new registration is refused, and its client comes again.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use serde_json::Value;
use uuid::Uuid;

use super::answer::Ending;

/// Most operations that are kept.
const MAX_OPERATIONS: usize = 20_000;
/// Most bytes that they keep of payloads and certificates. The last one may go beyond it.
const MAX_BYTES: usize = 16 * 1024 * 1024;
/// Most operations of one registration: the present one, and the one before for an answer that came late.
const MAX_OF_ONE: usize = 2;
/// How long an operation is kept after the last question. Clients give up after a minute: see wire reference 12.4.
const KEPT: Duration = Duration::from_secs(5 * 60);

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
    /// The real time when a client last asked.
    pub(super) asked: SystemTime,
}

/// The operations.
#[derive(Debug, Default)]
pub(super) struct Operations {
    /// By registration, with their ids; the oldest first.
    by_registration: BTreeMap<String, Vec<(String, Operation)>>,
    last: u64,
    count: usize,
    bytes: usize,
}

impl Operation {
    fn bytes(&self) -> usize {
        self.extra.iter().map(|(_, value)| value.to_string().len()).sum()
    }
}

impl Operations {
    /// Whether one more of this registration can be kept at `now`, the real time. Those that no client asks for any more
    /// make room.
    pub(super) fn has_room(&mut self, registration: &str, now: SystemTime) -> bool {
        let is_full = |own: &Self| {
            let replaces =
                own.by_registration.get(registration).is_some_and(|of_one| of_one.len() >= MAX_OF_ONE);
            (own.count >= MAX_OPERATIONS && !replaces) || own.bytes >= MAX_BYTES
        };
        if is_full(self) {
            self.by_registration.retain(|_, own| {
                own.retain(|(_, operation)| {
                    now.duration_since(operation.asked).is_ok_and(|since| since < KEPT)
                });
                !own.is_empty()
            });
            let kept = self.by_registration.values().flatten();
            (self.count, self.bytes) =
                kept.fold((0, 0), |(count, bytes), (_, own)| (count + 1, bytes + own.bytes()));
        }
        !is_full(self)
    }

    /// Keeps an operation, and returns its id. Of its registration, the oldest ones make room.
    pub(super) fn begin(&mut self, operation: Operation, unique: Uuid) -> String {
        self.last += 1;
        // The form of a real one: a digit, a number, and a UUID.
        let id = format!("5.{:016x}.{unique}", self.last);
        self.count += 1;
        self.bytes += operation.bytes();
        let own = self.by_registration.entry(operation.registration.clone()).or_default();
        own.push((id.clone(), operation));
        if own.len() > MAX_OF_ONE {
            let (_, oldest) = own.remove(0);
            self.count -= 1;
            self.bytes -= oldest.bytes();
        }
        id
    }

    /// An operation of this registration, for a client that asks for it at `now`.
    pub(super) fn get_mut(
        &mut self,
        id: &str,
        registration: &str,
        now: SystemTime,
    ) -> Option<&mut Operation> {
        let own = self.by_registration.get_mut(registration)?;
        let (_, operation) = own.iter_mut().find(|(own, _)| own == id)?;
        operation.asked = now;
        Some(operation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn operation(registration: &str, extra: Vec<(&'static str, Value)>) -> Operation {
        let registration = registration.to_owned();
        Operation { registration, ending: Ending::Assigned, assigning: 0, extra, asked: NOW }
    }

    #[test]
    fn an_operation_belongs_to_its_registration() {
        let mut operations = Operations::default();
        let id = operations.begin(operation("a", Vec::new()), Uuid::from_u128(7));
        assert_eq!(id, "5.0000000000000001.00000000-0000-0000-0000-000000000007");
        assert!(operations.get_mut(&id, "a", NOW).is_some());
        assert!(operations.get_mut(&id, "b", NOW).is_none());
        assert!(operations.get_mut("5.1.x", "a", NOW).is_none());
    }

    #[test]
    fn one_that_a_client_asks_for_stays_and_a_new_one_waits_for_room() {
        let mut operations = Operations::default();
        let first = operations.begin(operation("a", Vec::new()), Uuid::nil());
        for number in 1..MAX_OPERATIONS {
            assert!(operations.has_room("new", NOW));
            operations.begin(operation(&number.to_string(), Vec::new()), Uuid::nil());
        }
        assert!(!operations.has_room("new", NOW));
        operations.begin(operation("a", Vec::new()), Uuid::nil());
        assert!(operations.has_room("a", NOW), "it takes the place of one of its own");
        let later = NOW + KEPT - Duration::from_secs(1);
        assert!(operations.get_mut(&first, "a", later).is_some());
        assert!(!operations.has_room("new", later));
        // The clients of the others have given up.
        assert!(operations.has_room("new", NOW + KEPT));
        assert!(operations.get_mut(&first, "a", NOW + KEPT).is_some());
        assert_eq!(operations.count, 1);
    }

    #[test]
    fn of_one_registration_the_last_two_stay_and_their_bytes_have_a_bound() {
        let mut operations = Operations::default();
        let ids = [0; 3].map(|_| operations.begin(operation("a", Vec::new()), Uuid::nil()));
        let found = ids.map(|id| operations.get_mut(&id, "a", NOW).is_some());
        assert_eq!((found, operations.count), ([false, true, true], 2));
        let large = Value::from("x".repeat(96 * 1024));
        let mut begun = 0;
        while operations.has_room("new", NOW) {
            let extra = vec![("payload", large.clone())];
            operations.begin(operation(&begun.to_string(), extra), Uuid::nil());
            begun += 1;
        }
        assert!((100..200).contains(&begun), "{begun}");
    }
}
