//! Message ids that are a key by themselves.
//!
//! Owns: what counts as a UUID in an id. Pure. Must not know: who makes ids, who compares them.

/// Whether a text is or contains a UUID, with hyphens or without. The UUID of zeros does not count, because it means
/// that none was made.
pub fn contains_uuid(text: &str) -> bool {
    let runs = text.split(|c: char| !c.is_ascii_hexdigit() && c != '-');
    runs.into_iter().any(|run| {
        let groups: Vec<&str> = run.split('-').collect();
        let plain = groups.iter().any(|group| group.len() == 32 && !is_zero(group));
        let hyphenated = groups.windows(5).any(|five| {
            let lengths = five.iter().map(|group| group.len());
            // More groups may stand before and after it, for example in a name that ends with `-` and a UUID.
            lengths.eq([8, 4, 4, 4, 12]) && !five.iter().all(|group| is_zero(group))
        });
        plain || hyphenated
    })
}

fn is_zero(digits: &str) -> bool {
    digits.bytes().all(|digit| digit == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uuid_is_found_wherever_it_stands_in_an_id() {
        for id in [
            "6e9ab0f3-1b59-4c4f-8e1d-1f6a2f0a3f11",
            "6E9AB0F31B594C4F8E1D1F6A2F0A3F11",
            "{6e9ab0f3-1b59-4c4f-8e1d-1f6a2f0a3f11}",
            "order-17-6e9ab0f3-1b59-4c4f-8e1d-1f6a2f0a3f11-retry",
            "urn:uuid:6e9ab0f3-1b59-4c4f-8e1d-1f6a2f0a3f11",
        ] {
            assert!(contains_uuid(id), "{id}");
        }
        for id in [
            "",
            "message_0",
            "My Message ID",
            "00000000-0000-0000-0000-000000000000",
            "6e9ab0f3-1b59-4c4f-8e1d-1f6a2f0a3f1",
            "2026-11-29-18-47-33-000000000001",
            "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
        ] {
            assert!(!contains_uuid(id), "{id}");
        }
    }
}
