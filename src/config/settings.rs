//! The typed settings that the mechanisms take.
//!
//! Owns: shapes and defaults. Must not know: TOML. Used by: `config`, `action`, `agent`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use crate::rules::PinState;

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
