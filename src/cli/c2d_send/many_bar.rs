//! How far a run is, on one line of a terminal.
//!
//! Owns: the bar, notes above it, how a rate is written. Must not know: what is counted.

use std::io::IsTerminal as _;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::tell;

/// Without colours, and in ASCII. The crate cuts what is wider than the terminal.
const FORM: &str = "[{bar:12}] {percent:>3} %  {wide_msg}";

/// The bar on standard error, until it is dropped.
pub(super) struct RunBar(ProgressBar);

impl RunBar {
    /// `None` where standard error is no terminal, or one that cannot move its cursor.
    pub(super) fn new(of: usize) -> Option<Self> {
        let style = ProgressStyle::with_template(FORM).ok().filter(|_| std::io::stderr().is_terminal())?;
        let bar = ProgressBar::with_draw_target(u64::try_from(of).ok(), ProgressDrawTarget::stderr());
        bar.set_style(style.progress_chars("=> "));
        (!bar.is_hidden()).then_some(Self(bar))
    }

    pub(super) fn show(&self, done: usize, text: &str) {
        self.0.set_position(u64::try_from(done).unwrap_or(u64::MAX));
        self.0.set_message(text.to_owned());
    }

    /// Writes a line above the bar.
    pub(super) fn note(&self, text: &str) {
        self.0.suspend(|| tell(text));
    }
}

impl Drop for RunBar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

/// A rate in the unit that has a digit before the point.
pub(super) fn per_minute_text(per_minute: f64) -> String {
    match per_minute {
        rate if rate >= 9.95 => format!("{rate:.0}/min"),
        rate if rate >= 0.95 => format!("{rate:.1}/min"),
        rate if rate * 60.0 >= 0.95 => format!("{:.1}/h", rate * 60.0),
        rate => format!("{:.1}/day", rate * 60.0 * 24.0),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_rate_is_not_shown_as_nothing() {
        let shown: Vec<_> =
            [6_000_000.0, 100.0, 9.0, 1.0, 0.5, 1.0 / 60.0, 1.0 / 1440.0].map(per_minute_text).into();
        assert_eq!(shown, ["6000000/min", "100/min", "9.0/min", "1.0/min", "30.0/h", "1.0/h", "1.0/day"]);
    }
}
