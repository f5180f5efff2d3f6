//! The c2d-agent binary: everything is in the library.

fn main() -> std::process::ExitCode {
    c2d_agent::cli::run(std::env::args_os())
}
