//! The agent as it ships, and beside it a thread that panics on purpose when standard input has a line.
//!
//! Owns: that thread. Must not know: what the agent does in a panic. scripts/test-pi.sh runs it.

use std::process::ExitCode;

fn main() -> ExitCode {
    std::thread::spawn(|| {
        if std::io::stdin().read_line(&mut String::new()).is_ok() {
            panic!("a panic on purpose");
        }
    });
    c2d_agent::cli::run(std::env::args_os())
}
