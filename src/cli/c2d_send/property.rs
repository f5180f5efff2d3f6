//! `--property K=V`.
//!
//! Owns: its syntax, which names belong to other options, which text a real hub takes. Must not know: messages.

use crate::message::{self, Properties};

/// Allowed beside ASCII letters and digits. Source: wire reference 5.1.
const PUNCTUATION: &str = "! # $ % & ' * + - . ^ _ ` | ~";

/// Splits at the first `=`.
pub(super) fn parse(text: &str) -> Result<(String, String), String> {
    let (name, value) = text.split_once('=').ok_or("write NAME=VALUE")?;
    if name.is_empty() {
        return Err("the name before = is empty".to_owned());
    }
    if !message::is_system_property(name) {
        return Ok((name.to_owned(), value.to_owned()));
    }
    let option = match name {
        message::MESSAGE_ID => "--message-id",
        message::CORRELATION_ID => "--correlation-id",
        message::USER_ID => "--user-id",
        message::CONTENT_TYPE => "--content-type",
        message::CONTENT_ENCODING => "--content-encoding",
        message::EXPIRY => "--expiry",
        message::TO => "--device",
        crate::feedback::ACK_PROPERTY => "--ack",
        _ => return Err(format!("{name} is a system property, which IoT Hub sets itself")),
    };
    Err(format!("{name} is a system property: use {option}"))
}

/// Warns of a name or value that a real hub may refuse.
pub(super) fn warn_of_odd(properties: &Properties) {
    for (name, value) in properties.iter() {
        let texts = [name, value.unwrap_or_default()];
        if let Some(text) = texts.into_iter().find(|text| !is_hub_text(text)) {
            tracing::warn!(
                property = name,
                "a real hub may refuse \"{}\": it takes ASCII letters, digits and {PUNCTUATION}",
                text.escape_debug()
            );
        }
    }
}

/// Whether a real hub takes the text as a name or value. Source: wire reference 5.1.
fn is_hub_text(text: &str) -> bool {
    let mark = |c: char| c != ' ' && PUNCTUATION.contains(c);
    text.chars().all(|c| c.is_ascii_alphanumeric() || mark(c))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_equals_sign_separates() {
        assert_eq!(parse("a=b=c"), Ok(("a".into(), "b=c".into())));
        assert_eq!(parse("a="), Ok(("a".into(), String::new())));
        assert!(parse("a").is_err() && parse("=v").is_err());
    }

    #[test]
    fn a_system_property_is_refused_with_the_option_to_use() {
        assert_eq!(parse("$.cid=1"), Err("$.cid is a system property: use --correlation-id".into()));
        assert_eq!(parse("iothub-ack=full"), Err("iothub-ack is a system property: use --ack".into()));
        assert!(parse("$.ctime=1").is_err());
    }

    #[test]
    fn a_real_hub_takes_no_spaces_and_no_letters_beyond_ascii() {
        assert!(is_hub_text("a-B.9_~"));
        assert!(!is_hub_text("a b") && !is_hub_text("é") && !is_hub_text("a:b"));
    }
}
