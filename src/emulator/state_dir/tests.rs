//! The state directory: what it writes, and what it finds again after a restart.
