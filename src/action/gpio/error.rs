//! What can go wrong with pins, in words.
//!
//! Owns: the sentences, each with the wrong value and the remedy. Must not know: how a backend finds out.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use crate::rules::PinState;

/// Why a pin cannot be claimed or driven.
#[derive(Debug, thiserror::Error)]
pub enum GpioError {
    /// `backend = "auto"` found nothing.
    #[error(
        "no GPIO found: run on a board with /dev/gpiochip0, map it into the container with --device /dev/gpiochip0, \
         or set backend = \"simulated\" in [gpio] to try without"
    )]
    NoGpio,
    /// The binary has no hardware backends.
    #[error(
        "this c2d-agent was built without GPIO hardware support: install a build with the cargo feature \"gpio\", \
         or set backend = \"simulated\" in [gpio]"
    )]
    NotBuilt,
    /// `backend = "rppal"` is set on another board.
    #[error("rppal does not know this board: set backend = \"cdev\" in [gpio]")]
    NotARaspberryPi,
    /// `rppal` has no access to the registers.
    #[error(
        "rppal needs /dev/gpiomem (/dev/gpiomem0 on a Raspberry Pi 5) and /dev/gpiochip0, and one of them is not there: \
         in a container pass both with --device; where the kernel has no /dev/gpiomem set backend = \"cdev\" in [gpio]"
    )]
    NoRegisters,
    /// The chip does not exist.
    #[error(
        "GPIO chip {chip} does not exist: check `chip` in [gpio] against `gpiodetect`, or map the device into the \
         container with --device"
    )]
    NoChip {
        /// The chip, as configured or as searched for.
        chip: String,
    },
    /// The device that `chip` names is not a GPIO chip.
    #[error("{chip} is not a GPIO chip: check `chip` in [gpio] against `gpiodetect`")]
    NotAChip {
        /// The chip, as configured.
        chip: String,
    },
    /// The agent may not open the device file.
    #[error(
        "permission denied on {}: add the service's user to group {group} (on Raspberry Pi OS `usermod -aG gpio USER`); \
         in a container pass --device {} --group-add {group}",
        path.display(), path.display()
    )]
    Denied {
        /// The device file.
        path: PathBuf,
        /// Number of the group that owns it.
        group: u32,
    },
    /// The line does not exist.
    #[error("pin {pin}: line {line} does not exist on {chip}: compare with `gpioinfo`")]
    NoLine {
        /// The pin's name in the configuration.
        pin: String,
        /// Its configured line.
        line: String,
        /// The chip, or where the line was searched for.
        chip: String,
    },
    /// Another program, or the kernel, holds the line.
    #[error(
        "pin {pin}: line {line} of {chip} is in use by {consumer}: stop that program or choose another line"
    )]
    Busy {
        /// The pin's name in the configuration.
        pin: String,
        /// Its configured line.
        line: String,
        /// The chip.
        chip: String,
        /// The holder, as the kernel knows it.
        consumer: String,
    },
    /// `rppal` takes BCM numbers only.
    #[error(
        "pin {pin}: backend \"rppal\" takes the BCM number as line, not the name {line:?}: set line = NUMBER or backend = \"cdev\""
    )]
    NeedsNumber {
        /// The pin's name in the configuration.
        pin: String,
        /// Its configured line.
        line: String,
    },
    /// The backend reported another error while claiming.
    #[error("pin {pin}: cannot claim line {line}: {reason}")]
    Claim {
        /// The pin's name in the configuration.
        pin: String,
        /// Its configured line.
        line: String,
        /// The backend's message.
        reason: String,
    },
    /// The backend could not be opened at all.
    #[error("cannot open {what}: {reason}")]
    Open {
        /// What was opened.
        what: String,
        /// The backend's message.
        reason: String,
    },
    /// The pin could not be driven.
    #[error("pin {pin} could not be turned {state}: {reason}")]
    Drive {
        /// The pin's name in the configuration.
        pin: String,
        /// The wanted state.
        state: PinState,
        /// The backend's message.
        reason: String,
    },
    /// The new settings have another line or active level for a claimed pin.
    #[error("pin {pin} is claimed with another line or active level: restart the agent to move it")]
    Claimed {
        /// The pin's name, before and after.
        pin: String,
    },
    /// The new settings claim this line under another name.
    #[error("pin {pin}: its line is claimed as pin {other}: restart the agent to give it another name")]
    ClaimedAs {
        /// The new name.
        pin: String,
        /// The present name.
        other: String,
    },
    /// The new settings interlock pins that are both on.
    #[error(
        "pins {one} and {other} are both on, so they cannot be interlocked now: turn one of them off first"
    )]
    BothOn {
        /// A pin that is on.
        one: String,
        /// The other pin that is on.
        other: String,
    },
    /// The new settings have another backend while pins are claimed.
    #[error(
        "backend, chip and state_file in [gpio] cannot be changed while pins are claimed: restart the agent"
    )]
    OtherBackend,
    /// A plan names a pin that is not configured.
    #[error("pin {pin} is not configured: add [gpio.pins.{pin}]")]
    UnknownPin {
        /// The name in the plan.
        pin: String,
    },
    /// Another pin of its group is on.
    #[error(
        "pin {pin} cannot be turned on while pin {other} is: they are interlocked, so turn {other} off first"
    )]
    Interlocked {
        /// The pin that was to be turned on.
        pin: String,
        /// The other pin.
        other: String,
    },
    /// A pulse, or half a period of a blink, is longer than `max_on`.
    #[error(
        "pin {pin} would be on for {}, but its max_on is {}: ask for less, or set a longer max_on",
        humantime::format_duration(*on), humantime::format_duration(*max_on)
    )]
    TooLong {
        /// The pin.
        pin: String,
        /// How long it was to be on.
        on: Duration,
        /// Its limit.
        max_on: Duration,
    },
    /// The system cannot start another thread.
    #[error(
        "cannot start the thread that switches pins in time: {source}; check TasksMax= of the service and \
         `ulimit -u`"
    )]
    NoThread {
        /// Why.
        source: io::Error,
    },
    /// The simulated backend could not write the states.
    #[error("cannot write the pins' states to {}: {source}; check `state_file` in [gpio]", path.display())]
    StateFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Some pins are not in their `on_exit` state.
    #[error("not every pin was left as on_exit says: {problems}")]
    OnExit {
        /// One sentence per pin.
        problems: String,
    },
}
