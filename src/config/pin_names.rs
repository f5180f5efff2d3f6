//! Names of pins in sentences.
//!
//! Owns: what is said of a name that no pin has. Must not know: keys, what a pin is.

use super::field::shown;

/// The sentence for a name that no pin has.
pub(super) fn unknown_pin(name: &str, names: &[String]) -> String {
    let (name, known) = (shown(name), known_pins(names));
    let remedy = match name.parse::<u32>() {
        Ok(_) => "give the pin's name, not its line".to_owned(),
        Err(_) => format!("add [gpio.pins.{name}]"),
    };
    format!("there is no pin \"{name}\" ({known}): {remedy}")
}

/// The names that exist, for a sentence.
pub(super) fn known_pins(names: &[String]) -> String {
    if names.is_empty() {
        return "no pin is configured".to_owned();
    }
    format!("the pins are {}", names.iter().map(|pin| shown(pin)).collect::<Vec<_>>().join(", "))
}
