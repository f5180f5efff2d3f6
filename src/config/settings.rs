//! The typed settings that the mechanisms take.
//!
//! Owns: shapes and defaults. Must not know: TOML.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use crate::rules::{PinState, Step};

/// The `[gpio]` table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct GpioSettings {
    /// Who drives the pins.
    pub backend: GpioBackend,
    /// The chip to use with `cdev`, as a path or a label; absent: the chip that has the header's lines.
    pub chip: Option<String>,
    /// Where the simulated backend writes the pins' states as JSON (`{"pump":"on"}`) after every change.
    pub state_file: Option<PathBuf>,
    /// The pins by name.
    pub pins: BTreeMap<String, PinSettings>,
    /// Names of pins of which at most one is on at any time, group by group.
    pub interlocks: Vec<Vec<String>>,
}

/// Who drives the pins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GpioBackend {
    /// `rppal` on a Raspberry Pi that it knows, `cdev` where there is a `/dev/gpiochip*`, otherwise an error.
    #[default]
    Auto,
    /// Raspberry Pi registers.
    Rppal,
    /// The kernel's character device.
    Cdev,
    /// States in memory, logged; only when asked for.
    Simulated,
}

/// One `[gpio.pins.NAME]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinSettings {
    /// Which line of the chip.
    pub line: Line,
    /// The level that means on.
    pub active: ActiveLevel,
    /// The state at start.
    pub initial: PinState,
    /// The state at exit.
    pub on_exit: OnExit,
    /// Turned off by itself after this long.
    pub max_on: Option<Duration>,
    /// What happens to it when the hub is away.
    pub on_disconnect: Option<OnDisconnect>,
}

/// How a line is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Line {
    /// The BCM number, or the offset on the chip.
    Number(u32),
    /// The line's name, such as `GPIO17`; `cdev` only.
    Name(String),
}

/// The level that means on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum ActiveLevel {
    /// High is on.
    #[default]
    High,
    /// Low is on, as many relay boards have it.
    Low,
}

/// What happens to a pin at exit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExit {
    /// Put it into this state.
    Set(PinState),
    /// Leave it as it is.
    Keep,
}

/// The state that a pin takes when the hub has been away for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnDisconnect {
    /// The state.
    pub state: PinState,
    /// How long the hub must be away.
    pub after: Duration,
}

/// By what a message is known again that comes more than once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KnownBy {
    /// By an id that is or contains a UUID, which cannot have been meant for two messages; else by all that was delivered.
    #[default]
    Auto,
    /// By all that was delivered: no id is looked at by itself.
    Delivery,
    /// By its id, where it has one.
    Id,
}

/// The `[inbox]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxSettings {
    /// The file.
    pub path: PathBuf,
    /// Where `inbox` and `status` reach the running agent: a Unix socket, by default beside the file.
    pub socket: PathBuf,
    /// How long the record of an ended message is kept.
    pub keep: Duration,
    /// How many records of ended messages are kept even if they are older.
    pub keep_at_least: u64,
    /// Bytes of records, messages and reports: past this the oldest ended records go before their time, and then no
    /// message is taken.
    pub max_size: u64,
    /// By what a message is known again.
    pub known_by: KnownBy,
    /// How long a message that equals a completed one counts as that one when it comes on another connection.
    pub digest_window: Duration,
    /// Most telemetry reports that wait for the hub; the oldest are dropped first.
    pub max_reports: u64,
}

impl InboxSettings {
    /// All defaults, with another file.
    pub fn at(path: impl Into<PathBuf>) -> Self {
        let path = path.into();
        Self {
            socket: path.with_extension("sock"),
            path,
            keep: Duration::from_secs(48 * 3600),
            keep_at_least: 1_000,
            max_size: 16 * 1024 * 1024,
            known_by: KnownBy::Auto,
            digest_window: Duration::from_secs(2 * 60),
            max_reports: 1_000,
        }
    }
}

impl Default for InboxSettings {
    fn default() -> Self {
        Self::at("/var/lib/c2d-agent/inbox.redb")
    }
}

/// The `[metrics]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsSettings {
    /// Where to listen. With port 0 the kernel chooses one.
    pub listen: SocketAddr,
}

/// The `[twin]` and `[allow]` tables: what the desired properties of the twin may set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TwinSettings {
    /// Whether rules are taken from there.
    pub accepts_rules: bool,
    /// Whole commands that rules may name, in place of their own; none where one has a problem.
    pub(crate) commands: BTreeMap<String, Option<Step>>,
    /// The pins that such rules may switch.
    pub pins: Vec<String>,
}

impl TwinSettings {
    /// The names of the commands.
    pub fn commands(&self) -> impl Iterator<Item = &str> {
        self.commands.keys().map(String::as_str)
    }

    /// The programs of the commands.
    pub fn programs(&self) -> impl Iterator<Item = &str> {
        self.commands.values().flatten().filter_map(Step::program)
    }
}
