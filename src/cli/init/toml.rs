//! How a text stands in a TOML file.
//!
//! Owns: quotes and escapes. Must not know: keys.

/// A text as a basic string of TOML. Source: TOML 1.0, String.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => quoted += &format!("\\u{:04X}", u32::from(c)),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}
