//! One argument that names many devices: `load-{0000..9999}`.
//!
//! Owns: this form, which is the one of a shell. Must not know: what a device id may be.

use crate::emulator::MAX_DEVICES;

/// The devices that an argument names: one, or those of a range. An id can have no brace, so no id is taken for a
/// range.
///
/// # Errors
/// A sentence, if braces do not hold a range of numbers, or if the range is too large.
pub(super) fn devices(text: &str) -> Result<Vec<String>, String> {
    let Some((before, rest)) = text.split_once('{') else { return Ok(vec![text.to_owned()]) };
    let wrong = || {
        let shown: String = text.chars().take(200).flat_map(char::escape_debug).collect();
        format!(
            "--device \"{shown}\" is not a range: write one as in load-{{0000..9999}}, the lower number first"
        )
    };
    let (range, after) = rest.split_once('}').ok_or_else(wrong)?;
    let (first, last) = range.split_once("..").ok_or_else(wrong)?;
    let number = |digits: &str| {
        let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
        digits.parse::<usize>().ok().filter(|_| is_number)
    };
    let (low, high) = number(first).zip(number(last)).filter(|(low, high)| low <= high).ok_or_else(wrong)?;
    if high - low >= MAX_DEVICES {
        return Err(format!(
            "--device \"{text}\" names more than {MAX_DEVICES} devices, the most that there can be"
        ));
    }
    // As in a shell: with a zero in front, all numbers are as long as the longer one.
    let padded = [first, last].iter().any(|digits| digits.len() > 1 && digits.starts_with('0'));
    let width = if padded { first.len().max(last.len()) } else { 0 };
    Ok((low..=high).map(|number| format!("{before}{number:0width$}{after}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_names_its_devices_as_a_shell_would() {
        for (text, ids) in [
            ("pi-01", &["pi-01"][..]),
            ("{1..3}", &["1", "2", "3"]),
            ("a{08..10}b", &["a08b", "a09b", "a10b"]),
            ("a{8..10}", &["a8", "a9", "a10"]),
            ("a{0..0}", &["a0"]),
        ] {
            assert_eq!(devices(text).expect(text), ids);
        }
        let many = devices("load-{0000..9999}").expect("ten thousand");
        assert_eq!((many.len(), many[0].as_str(), many[9_999].as_str()), (10_000, "load-0000", "load-9999"));
    }

    #[test]
    fn what_is_no_range_is_named() {
        for text in
            ["{", "a{1..2", "a{1-2}", "a{2..1}", "a{..2}", "a{+1..2}", "{a..b}", "{1..99999999999999999999}"]
        {
            let refused = devices(text).expect_err(text);
            assert!(refused.starts_with(&format!("--device \"{text}\" is not a range: ")), "{refused}");
        }
        let refused = devices("a{0..10000}").expect_err("too many");
        assert_eq!(
            refused,
            "--device \"a{0..10000}\" names more than 10000 devices, the most that there can be"
        );
    }
}
