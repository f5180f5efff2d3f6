//! How far a run is, on one line of a terminal.
//!
//! Owns: the bar, notes above it. Must not know: what is counted.

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
