//! What a backend would find, for `doctor`: nothing is claimed, and no level changes.
//!
//! Owns: the shapes of the answer. Must not know: how a backend finds out, what is good or bad about it.

use std::collections::BTreeMap;

use super::GpioError;
use crate::config::GpioSettings;

/// What the configured backend finds on this machine.
#[derive(Debug)]
pub struct Survey {
    /// Who would drive the pins: `rppal`, `cdev` or `simulated`.
    pub backend: &'static str,
    /// What it drives, in words.
    pub found: String,
    /// Why it is not the backend that would have been the first choice.
    pub second_choice: Option<String>,
    /// Each pin, by name.
    pub pins: BTreeMap<String, Result<LineUse, GpioError>>,
}

/// Who has a line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LineUse {
    /// Nobody.
    Free,
    /// A program or the kernel, by the name that it gave; empty when it gave none.
    Held(String),
    /// Nobody keeps a record.
    Untold,
}

/// Looks at what the pins of `settings` would be driven through.
///
/// # Errors
/// The backend is not available.
pub fn survey(settings: &GpioSettings) -> Result<Survey, GpioError> {
    let (mut survey, refused) = super::choose(settings, &super::SURVEY)?;
    survey.second_choice = refused.map(|error| error.to_string());
    Ok(survey)
}

/// Of pins that are nobody's.
pub(super) fn simulated(settings: &GpioSettings) -> Result<Survey, GpioError> {
    let pins = settings.pins.keys().map(|pin| (pin.clone(), Ok(LineUse::Free))).collect();
    Ok(Survey { backend: "simulated", found: "no output".to_owned(), second_choice: None, pins })
}
