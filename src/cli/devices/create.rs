//! How a new device signs in, as `devices create` takes it.
//!
//! Owns: these options. Must not know: the hub.

use std::path::PathBuf;

use anyhow::anyhow;
use ring::rand::SystemRandom;

use crate::cli::{back_end, check_is_no_secret};
use crate::credentials::SharedAccessKey;
use crate::service::{DeviceKeys, NewCredential};

/// Two keys in base64 are much shorter.
const MAX_KEY_FILE: usize = 4 * 1024;

// How a new device signs in.
#[derive(Debug, clap::Args)]
pub(super) struct NewDeviceArgs {
    /// It signs in with a certificate of this thumbprint: SHA-1 or SHA-256, in hexadecimal digits. A second one is for a
    /// change of certificates.
    #[arg(long, value_name = "HEX", num_args = 1..=2, conflicts_with_all = ["x509_ca", "key_file"])]
    x509_thumbprint: Vec<String>,
    /// It signs in with a certificate that an authority known to the hub has signed.
    #[arg(long, conflicts_with = "key_file")]
    x509_ca: bool,
    /// It signs in with the key in this file, in base64. A second line is its secondary key; without one, a random key is
    /// made. - is standard input.
    #[arg(long, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// It is an IoT Edge device.
    #[arg(long)]
    pub(super) edge: bool,
}

impl NewDeviceArgs {
    /// # Errors
    /// When a thumbprint or a key cannot be one.
    pub(super) fn credential(&self) -> anyhow::Result<NewCredential> {
        if self.x509_ca {
            return Ok(NewCredential::Authority);
        }
        if let Some((primary, rest)) = self.x509_thumbprint.split_first() {
            let primary = thumbprint(primary)?;
            let secondary = rest.first().map(|text| thumbprint(text)).transpose()?;
            return Ok(NewCredential::Thumbprints { primary, secondary });
        }
        let Some(path) = &self.key_file else { return Ok(NewCredential::MadeKeys) };
        check_is_no_secret("--key-file", path)?;
        let text = back_end::text_of("key", None, Some(path), MAX_KEY_FILE)?;
        let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
        let wrong = |words: &str| anyhow!("{} {words}", path.display());
        let key = |line: &str| {
            SharedAccessKey::from_base64(line)
                .map_err(|_| wrong("has a line that is no key in base64: write the key alone on its line"))
        };
        let primary = key(lines.next().ok_or_else(|| wrong("is empty: write the key into it"))?)?;
        let secondary = lines.next().map_or_else(random_key, key)?;
        match lines.next() {
            None => Ok(NewCredential::Keys(DeviceKeys { primary, secondary })),
            Some(_) => Err(wrong("has more than two lines: write one or two keys into it")),
        }
    }
}

/// A key of 32 bytes, as the hub makes them.
fn random_key() -> anyhow::Result<SharedAccessKey> {
    let bytes: [u8; 32] = ring::rand::generate(&SystemRandom::new())
        .map_err(|_| {
            anyhow!("the system gives no random bytes for a secondary key: write one into the file")
        })?
        .expose();
    Ok(SharedAccessKey::from_bytes(bytes))
}

/// A thumbprint without the colons that openssl writes.
fn thumbprint(text: &str) -> anyhow::Result<String> {
    let digits: String = text.trim().chars().filter(|c| *c != ':').collect();
    if ![40, 64].contains(&digits.len()) || !digits.chars().all(|c| c.is_ascii_hexdigit()) {
        return Err(anyhow!(
            "\"{}\" is no thumbprint: it has 40 (SHA-1) or 64 (SHA-256) hexadecimal digits",
            crate::cli::shown::shorten(&crate::cli::shown::plain(text), 100)
        ));
    }
    Ok(digits.to_ascii_uppercase())
}
