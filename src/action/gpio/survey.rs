//! What a backend would find, for `doctor`. No pin is claimed, and no level changes.
//!
//! Owns: the shapes of the answer. Must not know: how a backend finds out, how to judge the answer.

use std::collections::BTreeMap;

use super::GpioError;
use crate::config::GpioSettings;

/// What the configured backend finds on this machine.
#[derive(Debug)]
pub struct Survey {
    /// The backend that would drive the pins: `rppal`, `cdev` or `simulated`.
    pub backend: &'static str,
    /// What it drives, in words.
    pub found: String,
    /// Why it is not the backend of first choice.
    pub second_choice: Option<String>,
    /// The use of each pin's line, by pin name.
    pub pins: BTreeMap<String, Result<LineUse, GpioError>>,
}

/// Who holds a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LineUse {
    /// The line is not held.
    Free,
    /// A program or the kernel holds it. This is the name that it gave, empty if it gave none.
    Held(String),
    /// There is no record of it.
    Untold,
}

/// Finds out through what the pins of `settings` would be driven.
///
/// # Errors
/// The backend is not available.
pub fn survey(settings: &GpioSettings) -> Result<Survey, GpioError> {
    let (mut survey, refused) = super::choose(settings, &super::SURVEY)?;
    survey.second_choice = refused.map(|error| error.to_string());
    Ok(survey)
}

/// The survey of simulated pins, which are always free.
pub(super) fn simulated(settings: &GpioSettings) -> Result<Survey, GpioError> {
    let pins = settings.pins.keys().map(|pin| (pin.clone(), Ok(LineUse::Free))).collect();
    Ok(Survey { backend: "simulated", found: "no output".to_owned(), second_choice: None, pins })
}
