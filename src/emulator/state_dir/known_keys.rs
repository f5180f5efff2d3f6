//! Keys that everybody knows, so that a connection string can be part of a document or of a file under version control.
//!
//! Owns: these keys, and that none of them is used after the emulator that was started with them.
//! Must not know: files, listeners.

use super::disk::StateDirError;
use super::secrets::{Secrets, StoredKeys};
use crate::emulator::registry::KeyPair;

/// The primary and the secondary key of every policy, and of every device and module named at the start, in base64.
pub const WELL_KNOWN_KEYS: [&str; 2] =
    ["c2dAgentEmulatorWellKnownKeyThatIsNoSecret0=", "c2dAgentEmulatorWellKnownKeyThatIsNoSecret4="];

/// The well-known keys; never `None`.
pub(super) fn pair() -> Option<KeyPair> {
    let [primary, secondary] = WELL_KNOWN_KEYS.map(str::to_owned);
    StoredKeys { primary, secondary }.read()
}

impl Secrets {
    /// Replaces all well-known keys by new ones. A back end may have changed a device while it had a well-known key,
    /// and this stored the key.
    pub(super) fn forget_known_keys(&mut self) -> Result<(), StateDirError> {
        let Self { policies, devices, registered, .. } = self;
        let registered = registered.values_mut().filter_map(|device| device.keys.as_mut());
        for keys in policies.values_mut().chain(devices.values_mut()).chain(registered) {
            let known = |key: &String| WELL_KNOWN_KEYS.contains(&key.trim());
            if known(&keys.primary) || known(&keys.secondary) {
                *keys = StoredKeys::make()?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_well_known_keys_are_two_keys_of_the_usual_length() {
        let pair = pair().expect("base64");
        let keys = [pair.primary, pair.secondary].map(|key| key.expose_base64());
        assert_eq!(keys, WELL_KNOWN_KEYS);
        assert_eq!(keys[0].len(), 44);
    }
}
