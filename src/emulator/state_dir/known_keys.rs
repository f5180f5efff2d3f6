//! Keys that everybody knows, so that a connection string can be part of a document or of a file under version control.
//!
//! Owns: these keys, and that none of them is used after the emulator that was started with them.
//! Must not know: files, listeners.

use super::disk::StateDirError;
use super::secrets::{Secrets, StoredKeys};
use crate::credentials::SharedAccessKey;
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
    /// and this stored the key. So did a registration.
    pub(super) fn forget_known_keys(&mut self) -> Result<(), StateDirError> {
        let Self { policies, devices, registered, .. } = self;
        let is_known = |key: &str| WELL_KNOWN_KEYS.contains(&key.trim());
        for keys in policies.values_mut().chain(devices.values_mut()) {
            if is_known(&keys.primary) || is_known(&keys.secondary) {
                *keys = StoredKeys::make()?;
            }
        }
        for (id, device) in registered {
            let derived = derived(id);
            let is_known = |key: &str| is_known(key) || derived.iter().any(|own| own == key.trim());
            let keys = device.keys.as_mut();
            if let Some(keys) = keys.filter(|keys| is_known(&keys.primary) || is_known(&keys.secondary)) {
                *keys = StoredKeys::make()?;
            }
        }
        Ok(())
    }
}

/// The keys that a device with this id has after it registered in a group of the provisioning service whose keys were
/// the well-known ones. Source: wire reference 12.2.
fn derived(id: &str) -> Vec<String> {
    let pair = pair().into_iter().flat_map(|pair| [pair.primary, pair.secondary]);
    pair.map(|key| SharedAccessKey::from_bytes(key.digest(id.as_bytes())).expose_base64()).collect()
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
