//! Who gets feedback from the watch.
//!
//! Owns: what the watch asks of a reader. Must not know: how records come, how they are shown.

use crate::service::FeedbackBatch;

/// Who gets the records of a batch before it is completed at the hub.
pub(in crate::cli) trait BatchReader {
    /// Shows those records that the user wants.
    ///
    /// # Errors
    /// When they cannot be shown. The batch is not completed then.
    fn print(&mut self, batch: &FeedbackBatch) -> anyhow::Result<()>;

    /// Counts the records of a batch that were not shown: the hub forgets them.
    fn consumed(&mut self, batch: &FeedbackBatch);

    /// How many records were shown.
    fn printed(&self) -> u64;

    /// Whether the reader of what is shown is still there.
    fn is_open(&self) -> bool;

    /// Tells people a line about the watch itself.
    fn note(&self, line: &str);
}
