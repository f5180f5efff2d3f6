//! Any text as a SAS token.
//!
//! Shared by the fuzz target and by `tests/it/corpora.rs`, so that both check the same.

use std::time::{Duration, SystemTime};

use c2d_agent::credentials::{SasToken, SharedAccessKey};

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let key = SharedAccessKey::from_bytes(*b"a key that signed none of these");
    match SasToken::parse(text) {
        Ok(token) => {
            assert!(!token.is_signed_by(&key), "a token that we did not sign is taken for ours");
            assert!(token.expiry() >= SystemTime::UNIX_EPOCH);
            let _covers: bool = token.covers("myhub.azure-devices.net/devices/dev1");
            assert_eq!(SasToken::parse(token.expose()), Ok(token));
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "an error is one line: {error}"),
    }

    // The text as a resource and as a policy: what we sign reads back as it was.
    let expiry = SystemTime::UNIX_EPOCH + Duration::from_secs(1_900_000_000);
    let policy = Some(text).filter(|name| !name.is_empty());
    if !text.is_empty() {
        let token = SasToken::sign(&key, text, policy, expiry);
        let read = SasToken::parse(token.expose()).expect("our own token is read");
        assert_eq!((read.resource(), read.policy(), read.expiry()), (text.to_owned(), policy, expiry));
        assert!(read.is_signed_by(&key) && read.covers(text));
    }
}
