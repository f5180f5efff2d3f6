//! The encoding of AMQP values: where a value ends, how deep values nest in it, and the content of simple ones.
//!
//! Owns: what may be decoded. Must not know: frames, messages.
//!
//! Source: AMQP 1.0, 1.2 and 1.6. Everything that does not follow it exactly is refused: a wrong length could hide
//! from this code what the crate would decode.

/// The deepest nesting of values. A message of an SDK nests three deep (a section, its map, a value), a performative
/// at most nine (the unsettled deliveries of an attach, with an error's map). For this depth the crate needs less than
/// 200 KiB of stack, even without optimization.
pub(crate) const MAX_DEPTH: usize = 16;

/// Most elements of an array whose elements need no bytes, such as `true`.
const MAX_EMPTY_ELEMENTS: usize = 1024;

/// Why something cannot be decoded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Flaw {
    #[error("it is malformed")]
    Malformed,
    #[error("its values nest more than {MAX_DEPTH} deep")]
    TooDeep,
    #[error("it has more than {0} bytes")]
    TooLarge(usize),
}

/// Skips one value and returns the bytes after it. `depth` is how many levels may still nest.
pub(crate) fn value(bytes: &[u8], depth: usize) -> Result<&[u8], Flaw> {
    let depth = depth.checked_sub(1).ok_or(Flaw::TooDeep)?;
    let (code, rest) = bytes.split_first().ok_or(Flaw::Malformed)?;
    match code {
        0x00 => value(value(rest, depth)?, depth),
        0x40..=0x4f => Ok(rest),
        0x50..=0x9f => skip(rest, fixed_width(*code)),
        0xa0..=0xbf => variable(rest, length_width(*code)),
        0xc0..=0xdf => {
            let (mut elements, rest) = sized(rest, length_width(*code))?;
            let (count, inside) = number(elements, length_width(*code))?;
            elements = inside;
            // A map has a value for each key.
            if is_map(*code) && !count.is_multiple_of(2) {
                return Err(Flaw::Malformed);
            }
            for _ in 0..count {
                elements = value(elements, depth)?;
            }
            if elements.is_empty() { Ok(rest) } else { Err(Flaw::Malformed) }
        }
        0xe0..=0xff => {
            let (inside, rest) = sized(rest, length_width(*code))?;
            array(inside, length_width(*code))?;
            Ok(rest)
        }
        _ => Err(Flaw::Malformed),
    }
}

/// Checks an array's count, constructor and elements. Arrays of lists, maps, arrays and described values are refused
/// as too deep, because no SDK sends them. An empty array is refused as malformed, because the crate takes its
/// constructor for the next value.
fn array(inside: &[u8], width: usize) -> Result<(), Flaw> {
    let (count, inside) = number(inside, width)?;
    let (code, mut elements) = inside.split_first().filter(|_| count > 0).ok_or(Flaw::Malformed)?;
    match code {
        0x40..=0x4f if count <= MAX_EMPTY_ELEMENTS => {}
        0x50..=0x9f => {
            elements = skip(elements, count.checked_mul(fixed_width(*code)).ok_or(Flaw::Malformed)?)?;
        }
        0xa0..=0xbf => {
            for _ in 0..count {
                elements = variable(elements, length_width(*code))?;
            }
        }
        0x01..=0x4f => return Err(Flaw::Malformed),
        _ => return Err(Flaw::TooDeep),
    }
    if elements.is_empty() { Ok(()) } else { Err(Flaw::Malformed) }
}

/// The elements of a list, each with its constructor.
pub(crate) fn fields(list: &[u8]) -> Result<Vec<&[u8]>, Flaw> {
    match list.first() {
        Some(0x45) => Ok(Vec::new()),
        Some(0xc0 | 0xd0) => elements(list),
        _ => Err(Flaw::Malformed),
    }
}

/// The value of the first entry of a map whose key is these bytes.
pub(crate) fn entry<'a>(map: &'a [u8], key: &[u8]) -> Option<&'a [u8]> {
    map.first().filter(|code| is_map(**code))?;
    let elements = elements(map).ok()?;
    elements.chunks_exact(2).find(|pair| pair.first() == Some(&key)).and_then(|pair| pair.last().copied())
}

fn elements(compound: &[u8]) -> Result<Vec<&[u8]>, Flaw> {
    let (code, bytes) = compound.split_first().ok_or(Flaw::Malformed)?;
    let width = length_width(*code);
    let (_size, bytes) = number(bytes, width)?;
    let (count, mut bytes) = number(bytes, width)?;
    let mut fields = Vec::new();
    for _ in 0..count {
        let rest = value(bytes, MAX_DEPTH)?;
        fields.push(bytes.get(..bytes.len() - rest.len()).unwrap_or_default());
        bytes = rest;
    }
    Ok(fields)
}

/// Whether a boolean is true. A missing one is false.
pub(crate) fn is_true(value: Option<&&[u8]>) -> bool {
    matches!(value, Some([0x41] | [0x56, 1]))
}

/// A ushort.
pub(crate) fn ushort(value: &[u8]) -> Option<u16> {
    let [0x60, digits @ ..] = value else { return None };
    digits.try_into().ok().map(u16::from_be_bytes)
}

/// A uint or ulong, in any of its encodings.
pub(crate) fn unsigned(value: &[u8]) -> Option<u64> {
    match value {
        [0x43 | 0x44] => Some(0),
        [0x52 | 0x53, byte] => Some(u64::from(*byte)),
        [0x70, bytes @ ..] => Some(u64::from(u32::from_be_bytes(bytes.try_into().ok()?))),
        [0x80, bytes @ ..] => Some(u64::from_be_bytes(bytes.try_into().ok()?)),
        _ => None,
    }
}

fn is_map(code: u8) -> bool {
    matches!(code, 0xc1 | 0xd1)
}

/// Bytes of a value of fixed width: 0x5_ has 1, 0x6_ 2, 0x7_ 4, 0x8_ 8, 0x9_ 16.
fn fixed_width(code: u8) -> usize {
    1 << ((code >> 4) - 5)
}

/// Bytes of a length or count: 0xA_, 0xC_ and 0xE_ have 1, 0xB_, 0xD_ and 0xF_ 4.
fn length_width(code: u8) -> usize {
    if (code >> 4).is_multiple_of(2) { 1 } else { 4 }
}

fn variable(bytes: &[u8], width: usize) -> Result<&[u8], Flaw> {
    sized(bytes, width).map(|(_, rest)| rest)
}

/// The bytes whose length stands before them, and the rest.
fn sized(bytes: &[u8], width: usize) -> Result<(&[u8], &[u8]), Flaw> {
    let (length, bytes) = number(bytes, width)?;
    bytes.split_at_checked(length).ok_or(Flaw::Malformed)
}

fn number(bytes: &[u8], width: usize) -> Result<(usize, &[u8]), Flaw> {
    let (digits, rest) = bytes.split_at_checked(width).ok_or(Flaw::Malformed)?;
    Ok((digits.iter().fold(0, |number, byte| (number << 8) | usize::from(*byte)), rest))
}

fn skip(bytes: &[u8], count: usize) -> Result<&[u8], Flaw> {
    bytes.get(count..).ok_or(Flaw::Malformed)
}
