//! Which hub a device gets.
//!
//! Owns: the policies, and when a device that has a hub gets another one. Must not know: proofs, what a hub is.
//!
//! Source: the allocation and re-provisioning policies of the service API (azure-docs, `how-to-use-allocation-policies`
//! and `concepts-device-reprovision`). Choices: `hashed` takes the hub with the fewest registrations, and a device stays
//! where it is as long as it may; `geoLatency` takes the first hub of the list, as if it were the nearest; `custom` calls
//! no webhook and is as `hashed`, and its answer has the payload of the request.

/// How a hub is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::emulator) enum AllocationPolicy {
    /// Evenly.
    Hashed,
    /// The first one of the list.
    GeoLatency,
    /// The one that the enrolment names.
    Static,
    /// As evenly; the device gets its payload back.
    Custom,
}

/// Each policy and its word in the service API.
const WORDS: [(AllocationPolicy, &str); 4] = [
    (AllocationPolicy::Hashed, "hashed"),
    (AllocationPolicy::GeoLatency, "geoLatency"),
    (AllocationPolicy::Static, "static"),
    (AllocationPolicy::Custom, "custom"),
];

impl AllocationPolicy {
    /// The policy with this word.
    pub(super) fn read(word: &str) -> Option<Self> {
        WORDS.iter().find(|(_, own)| own.eq_ignore_ascii_case(word)).map(|(policy, _)| *policy)
    }

    /// Its word.
    pub(super) fn word(self) -> &'static str {
        WORDS.iter().find(|(policy, _)| *policy == self).map_or("", |(_, word)| word)
    }

    /// Chooses one of `hubs`, which have so many registrations each. `present` is the hub that the device has.
    pub(super) fn choose<'h>(self, hubs: &[(&'h str, usize)], present: Option<&str>) -> Option<&'h str> {
        let first = hubs.first().map(|(name, _)| *name);
        match self {
            Self::Static | Self::GeoLatency => first,
            Self::Hashed | Self::Custom => {
                let kept =
                    hubs.iter().find(|(name, _)| present.is_some_and(|own| own.eq_ignore_ascii_case(name)));
                let fewest = hubs.iter().min_by_key(|(_, registrations)| *registrations);
                kept.or(fewest).map(|(name, _)| *name)
            }
        }
    }
}

/// The hub after the present one, in a circle; `None` if there is no other.
pub(super) fn another<'h>(hubs: &[&'h str], present: &str) -> Option<&'h str> {
    let at = hubs.iter().position(|name| name.eq_ignore_ascii_case(present)).map_or(0, |at| at + 1);
    hubs.iter().cycle().skip(at).take(hubs.len()).find(|name| !name.eq_ignore_ascii_case(present)).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_policy_chooses_its_hub() {
        let hubs = [("a", 2), ("b", 1), ("c", 1)];
        assert_eq!(AllocationPolicy::Hashed.choose(&hubs, None), Some("b"));
        assert_eq!(AllocationPolicy::Hashed.choose(&hubs, Some("A")), Some("a"));
        assert_eq!(AllocationPolicy::Custom.choose(&hubs, Some("gone")), Some("b"));
        assert_eq!(AllocationPolicy::GeoLatency.choose(&hubs, Some("c")), Some("a"));
        assert_eq!(AllocationPolicy::Static.choose(&hubs[2..], Some("a")), Some("c"));
        assert_eq!(AllocationPolicy::Hashed.choose(&[], Some("a")), None);
        assert_eq!(AllocationPolicy::read("GEOLATENCY").map(AllocationPolicy::word), Some("geoLatency"));
    }

    #[test]
    fn another_hub_is_the_next_one_in_a_circle() {
        assert_eq!(another(&["a", "b", "c"], "b"), Some("c"));
        assert_eq!(another(&["a", "b", "c"], "C"), Some("a"));
        assert_eq!(another(&["a", "b"], "gone"), Some("a"));
        assert_eq!((another(&["a"], "a"), another(&[], "a")), (None, None));
    }
}
