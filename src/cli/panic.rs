//! The end of the process by a panic, which is a defect: the same in every build, also where panics would unwind.
//!
//! Owns: the order of the last acts. Must not know: what failed.
//!
//! The thread that panics may hold locks. So nothing here waits without a limit for one under which code can panic. The
//! queue of the log is not such a lock.

use std::panic::PanicHookInfo;

use rustix::process::{DumpableBehavior, set_dumpable_behavior};

use super::logging::Log;
use super::shown::plain;
use crate::action;

/// From now on a panic of any thread ends the process: the log says where and why, pins go into their `on_exit` state.
#[expect(clippy::disallowed_methods, reason = "the pins have been left before")]
pub(super) fn install(log: Log) {
    std::panic::set_hook(Box::new(move |panic| {
        // In the agent this line goes to a queue, so no reader of the log holds the pins up.
        log.tell(&last_words(panic));
        action::leave_pins_in_panic();
        log.flush_last_word();
        // A core file would hold keys.
        set_dumpable_behavior(DumpableBehavior::NotDumpable).unwrap_or_default();
        std::process::abort()
    }));
}

fn last_words(panic: &PanicHookInfo<'_>) -> String {
    let thread = std::thread::current();
    let name = thread.name().unwrap_or("without a name");
    // "panicked at src/agent.rs:7:5:", a new line, the message, which may quote what came over the wire.
    let what = panic.to_string().replacen('\n', " ", 1);
    let (name, what) = (plain(name), plain(&what));
    format!("c2d-agent: thread {name} {what} (a defect: the program ends; please report this line)")
}
