//! DER: as much of it as a certificate and a request for one need.
//!
//! Owns: tags, lengths, and the walk from one element to the next. Must not know: what elements mean.
//!
//! The reader never goes deeper by itself and never leaves its bytes, so its work is bounded by their number.
//! Source: X.690, 8.1 and 10.1.

pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OBJECT_ID: u8 = 0x06;
pub(super) const UTF8_STRING: u8 = 0x0c;
pub(super) const PRINTABLE_STRING: u8 = 0x13;
pub(super) const IA5_STRING: u8 = 0x16;
pub(super) const UTC_TIME: u8 = 0x17;
pub(super) const GENERALIZED_TIME: u8 = 0x18;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;
/// `[0]`, constructed.
pub(super) const CONTEXT_0: u8 = 0xa0;

/// commonName, 2.5.4.3. Source: RFC 5280, appendix A.1.
pub(super) const COMMON_NAME: &[u8] = &[0x55, 4, 3];

/// One element.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Element<'d> {
    pub(super) tag: u8,
    pub(super) content: &'d [u8],
    /// With tag and length.
    pub(super) whole: &'d [u8],
}

impl<'d> Element<'d> {
    /// The elements inside, if this one has `tag`.
    pub(super) fn inside(self, tag: u8) -> Option<DerReader<'d>> {
        (self.tag == tag).then_some(DerReader(self.content))
    }
}

/// Reads elements that stand one after the other.
pub(super) struct DerReader<'d>(pub(super) &'d [u8]);

impl<'d> DerReader<'d> {
    /// The next element with `tag`. None at the end, for another tag, and for bytes that are no DER.
    pub(super) fn tagged(&mut self, tag: u8) -> Option<Element<'d>> {
        self.next().filter(|element| element.tag == tag)
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }
}

impl<'d> Iterator for DerReader<'d> {
    type Item = Element<'d>;

    fn next(&mut self) -> Option<Element<'d>> {
        let (&[tag, first], rest) = self.0.split_first_chunk::<2>()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            // A certificate has less than 64 KiB; more length bytes, and none (BER's open end), are refused.
            0x81 => (usize::from(*rest.first()?), rest.get(1..)?),
            0x82 => (usize::from(u16::from_be_bytes(*rest.first_chunk()?)), rest.get(2..)?),
            _ => return None,
        };
        let content = rest.get(..length)?;
        let whole = self.0.get(..self.0.len() - rest.len() + length)?;
        self.0 = &rest[length..];
        Some(Element { tag, content, whole })
    }
}

/// One element with these parts as its content, which have less than 64 KiB together.
pub(super) fn element(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let content = parts.concat();
    let length = u16::try_from(content.len()).unwrap_or(u16::MAX).to_be_bytes();
    let mut der = match (content.len(), length) {
        (0..0x80, [_, low]) => vec![tag, low],
        (0x80..0x100, [_, low]) => vec![tag, 0x81, low],
        (_, [high, low]) => vec![tag, 0x82, high, low],
    };
    der.extend(content);
    der
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9000), 0..4),
        ) {
            let written: Vec<u8> = parts.iter().flat_map(|part| element(SET, &[part])).collect();
            let read: Vec<_> = DerReader(&written).map(|element| element.content.to_vec()).collect();
            prop_assert_eq!(read, parts);
        }

        #[test]
        fn any_bytes_are_walked_to_an_end(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            let walked: usize = DerReader(&bytes).map(|element| element.whole.len()).sum();
            prop_assert!(walked <= bytes.len());
        }
    }

    #[test]
    fn open_ends_and_lengths_past_the_end_are_no_elements() {
        for bytes in [
            &[0x30][..],
            &[0x30, 1],
            &[0x30, 0x80, 0, 0],
            &[0x30, 0x81],
            &[0x30, 0x82, 0],
            &[0x30, 0x83, 0, 0, 0],
        ] {
            assert_eq!(DerReader(bytes).next(), None, "{bytes:x?}");
        }
        assert_eq!(DerReader(&[0x30, 0]).tagged(SET), None, "another tag");
    }
}
