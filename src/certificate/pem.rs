//! PEM, as this program writes it.
//!
//! Owns: its form. Must not know: what is in it.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// One block of PEM. Source: RFC 7468, 3.
pub(super) fn pem(label: &str, der: &[u8]) -> String {
    // Lines of 64 characters are 48 bytes each.
    let lines: String = der.chunks(48).map(|line| BASE64_STANDARD.encode(line) + "\n").collect();
    format!("-----BEGIN {label}-----\n{lines}-----END {label}-----\n")
}

/// The blocks of a PEM text as this program writes it: labels, and DER. None if it is another text.
pub(super) fn pem_blocks(text: &str) -> Option<Vec<(&str, Vec<u8>)>> {
    let mut blocks = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        let (label, body) = rest.strip_prefix("-----BEGIN ")?.split_once("-----\n")?;
        let (body, after) = body.split_once("-----END ")?;
        rest = after.strip_prefix(label)?.strip_prefix("-----\n")?;
        let lines: String = body.lines().collect();
        blocks.push((label, BASE64_STANDARD.decode(lines).ok()?));
    }
    Some(blocks)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn blocks_are_read_as_they_were_written(
            ders in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 0..4),
        ) {
            let text: String = ders.iter().map(|der| pem("X Y", der)).collect();
            let read: Vec<_> = pem_blocks(&text).expect("blocks").into_iter().map(|(_, der)| der).collect();
            prop_assert_eq!(read, ders);
        }

        #[test]
        fn any_text_is_read_to_an_end(text in "(-----(BEGIN|END) X-----\n|[A-Z\n=-]){0,60}") {
            let _ = pem_blocks(&text);
        }
    }
}
