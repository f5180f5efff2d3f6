//! Where C2D messages came from: the hub, and the device there.
//!
//! Owns: which records are of the present origin, how many changes are remembered. Must not know: how an origin is named,
//! what a change means for a record (`departure.rs`).
//!
//! Numbers of records count up, so it is enough to keep with which number each origin began. The earlier ones are kept as
//! long as there are records of theirs: a device may go back to a hub, which then sends again what it still has.

use super::codec;

/// How many origins are remembered. Records from before them count as those of another origin.
const MOST: usize = 64;

/// The origins of all records, oldest first, each with the number of the record with which it began.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Origins(Vec<(String, u64)>);

impl Origins {
    /// None if none was ever told.
    pub(super) fn present(&self) -> Option<&str> {
        self.0.last().map(|(name, _)| name.as_str())
    }

    pub(super) fn are_known(&self) -> bool {
        !self.0.is_empty()
    }

    /// Whether this record is of the present origin. True while none is known.
    pub(super) fn is_present(&self, number: u64) -> bool {
        let after = self.0.partition_point(|(_, since)| *since <= number);
        let of_it = after.checked_sub(1).and_then(|at| self.0.get(at)).map(|(name, _)| name.as_str());
        !self.are_known() || of_it == self.present()
    }

    /// Record `next` is the first of `name`, and `first` the oldest that there is.
    pub(super) fn begin(&mut self, name: &str, first: u64, next: u64) {
        // Records of a time that knew no origins are of the first one that is told.
        let since = if self.are_known() { next } else { 0 };
        let ends: Vec<u64> = self.0.iter().skip(1).map(|(_, since)| *since).chain([next]).collect();
        let mut ends = ends.into_iter();
        // One without a record is not needed any more.
        self.0.retain(|(_, since)| ends.next().is_some_and(|end| end > first.max(*since)));
        if self.present() != Some(name) {
            self.0.push((name.to_owned(), since));
        }
        self.0.drain(..self.0.len().saturating_sub(MOST));
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        self.0.iter().for_each(|(name, since)| codec::encode_named(out, name, *since));
    }

    /// An error is a reason for a sentence about a damaged file.
    pub(super) fn decode(payload: &[u8]) -> Result<Self, String> {
        codec::decode_named(payload, "the origins").map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(all: &[(&str, u64)]) -> Origins {
        Origins(all.iter().map(|(name, since)| ((*name).to_owned(), *since)).collect())
    }

    #[test]
    fn records_are_of_the_origin_in_whose_time_they_came() {
        let mut origins = Origins::default();
        assert!(origins.is_present(3), "nothing is known");
        origins.begin("a", 1, 5);
        assert!([1, 4, 5].iter().all(|number| origins.is_present(*number)), "those of before are a's");
        origins.begin("b", 1, 10);
        assert_eq!([4, 9, 10].map(|number| origins.is_present(number)), [false, false, true]);
        origins.begin("a", 1, 20);
        assert_eq!(
            [4, 9, 10, 19, 20].map(|number| origins.is_present(number)),
            [true, true, false, false, true]
        );
    }

    #[test]
    fn origins_without_a_record_are_forgotten_and_of_the_others_the_last_64_are_kept() {
        let mut origins = of(&[("a", 0), ("b", 10), ("c", 20)]);
        origins.begin("d", 10, 30);
        assert_eq!(origins, of(&[("b", 10), ("c", 20), ("d", 30)]), "no record of a is left");
        origins.begin("e", 15, 30);
        assert_eq!(origins, of(&[("b", 10), ("c", 20), ("e", 30)]), "none came from d");
        origins.begin("c", 15, 30);
        assert_eq!(origins, of(&[("b", 10), ("c", 20)]), "back at once");
        let mut origins = Origins::default();
        for at in 1..=65 {
            origins.begin(&format!("hub-{at}"), 1, at * 10);
        }
        assert_eq!((origins.0.len(), origins.0[0].0.as_str()), (MOST, "hub-2"));
        assert!(!origins.is_present(1) && origins.is_present(650));
        let mut bytes = Vec::new();
        origins.encode(&mut bytes);
        assert_eq!(Origins::decode(&bytes), Ok(origins));
        assert_eq!(Origins::decode(&bytes[1..]), Err("the origins cannot be read".to_owned()));
    }
}
