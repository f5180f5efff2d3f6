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
    /// The chip for `cdev`, as a path or a label; absent: the chip that has the header's lines.
    pub chip: Option<String>,
    /// Where the simulated backend writes the pins' states as JSON (`{"pump":"on"}`) after every change.
    pub state_file: Option<PathBuf>,
    /// The pins by name.
    pub pins: BTreeMap<String, PinSettings>,
    /// Groups of pins by name. In each group, at most one pin is on at any time.
    pub interlocks: Vec<Vec<String>>,
}

/// Who drives the pins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum GpioBackend {
    /// `rppal` on a Raspberry Pi that it knows, `cdev` if there is a `/dev/gpiochip*`, otherwise an error.
    #[default]
    Auto,
    /// Raspberry Pi registers.
    Rppal,
    /// The kernel's character device.
    Cdev,
    /// States in memory, logged. Never chosen automatically.
    Simulated,
}

/// One `[gpio.pins.NAME]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PinSettings {
    /// Which line of the chip.
    pub line: LineName,
    /// The level that means on.
    pub active: ActiveLevel,
    /// The state at start.
    pub initial: PinState,
    /// The state at exit.
    pub on_exit: OnExit,
    /// How long it may be on before it is turned off.
    pub max_on: Option<Duration>,
    /// What happens to it if the hub is away.
    pub on_disconnect: Option<OnDisconnect>,
}

/// How a line is named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LineName {
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

/// The state that a pin takes if the hub was away for a while.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OnDisconnect {
    /// The state.
    pub state: PinState,
    /// How long the hub must be away.
    pub after: Duration,
}

/// How a message that comes more than once is recognised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum KnownBy {
    /// By an id that is or contains a UUID, because such an id cannot belong to two messages. Otherwise by everything
    /// that was delivered.
    #[default]
    Auto,
    /// By everything that was delivered; the id alone is not enough.
    Delivery,
    /// By its id, if it has one.
    Id,
}

/// The `[inbox]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboxSettings {
    /// The file.
    pub path: PathBuf,
    /// Where `inbox` and `status` reach the running agent: a Unix socket. The default is beside the file.
    pub socket: PathBuf,
    /// How long the record of an ended message is kept.
    pub keep: Duration,
    /// How many records of ended messages are kept even if they are older.
    pub keep_at_least: u64,
    /// Most bytes of records, messages and reports. Above this, the oldest ended records are removed early; if that is
    /// not enough, no more messages are taken.
    pub max_size: u64,
    /// How a repeated message is recognised.
    pub known_by: KnownBy,
    /// How long a completed message is remembered: an equal message on another connection counts as that one.
    pub digest_window: Duration,
    /// Most telemetry reports that wait for the hub; the oldest are dropped first.
    pub max_reports: u64,
}

impl InboxSettings {
    /// All defaults, with this file.
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
        Self::at("/var/lib/c2d-agent/inbox.journal")
    }
}

/// The `[metrics]` table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MetricsSettings {
    /// Where to listen. With port 0 the kernel chooses a port.
    pub listen: SocketAddr,
}

/// The `[twin]` and `[allow]` tables: what the desired properties of the twin may set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TwinSettings {
    /// Whether the twin may set rules.
    pub accepts_rules: bool,
    /// Whole commands that the twin's rules may name instead of programs of their own; `None` for a command with a
    /// problem.
    pub(crate) commands: BTreeMap<String, Option<Step>>,
    /// The pins that the twin's rules may switch.
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
