//! The chain that was issued: the device's own certificate first, then those that lead to the authority.
//!
//! Owns: what makes a chain usable, and PEM. Must not know: files, who issued it.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

use super::facts::{self, CertificateFacts};
use super::pem::pem;
use super::request::CertificateKey;

/// The most certificates of a chain, and the most bytes of one. Real ones have three, of at most 2 KiB each.
pub(super) const MOST_MEMBERS: usize = 8;
const LARGEST_MEMBER: usize = 16 * 1024;

/// A chain for the key of this device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IssuedChain {
    members: Vec<Vec<u8>>,
    facts: CertificateFacts,
}

/// Why a chain cannot be used. Its `Display` is the end of a sentence about the chain.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChainError {
    /// There is nothing, or too much.
    #[error("it has {0} certificates; it must have 1 to {MOST_MEMBERS}")]
    Length(usize),
    /// A member, counted from 1, is not a certificate in base64.
    #[error("its certificate number {0} cannot be read")]
    Broken(usize),
    /// The first certificate is of another key.
    #[error("its first certificate is for another key than the one that this device made")]
    AnotherKey,
    /// The first certificate is another device's.
    #[error("its first certificate is for \"{}\", and this device is \"{expected}\"", .found.escape_debug())]
    AnotherName {
        /// The common name in the certificate, cut short.
        found: String,
        /// What was asked for.
        expected: String,
    },
}

impl IssuedChain {
    /// Reads a chain in base64 of DER, for a request with `key`. The device has the names `names`: as it is
    /// registered, and as its hub knows it.
    ///
    /// # Errors
    /// [`ChainError`] when it cannot be used.
    pub fn read(members: &[String], key: &CertificateKey, names: &[&str]) -> Result<Self, ChainError> {
        if members.is_empty() || members.len() > MOST_MEMBERS {
            return Err(ChainError::Length(members.len()));
        }
        let read = |(at, text): (usize, &String)| {
            let der = BASE64_STANDARD.decode(text).ok().filter(|der| der.len() <= LARGEST_MEMBER);
            der.filter(|der| facts::read(der).is_some()).ok_or(ChainError::Broken(at + 1))
        };
        let members: Vec<_> = members.iter().enumerate().map(read).collect::<Result<_, _>>()?;
        let (facts, subject) =
            members.first().and_then(|own| facts::read(own)).ok_or(ChainError::Length(0))?;
        if subject.public != key.public() {
            return Err(ChainError::AnotherKey);
        }
        // Names are compared without case, as the service does with ids.
        match subject.common_name {
            Some(found) if names.iter().any(|name| found.eq_ignore_ascii_case(name)) => {
                Ok(Self { facts, members })
            }
            found => Err(ChainError::AnotherName {
                found: found.unwrap_or_default().chars().take(60).collect(),
                expected: names.first().copied().unwrap_or_default().to_owned(),
            }),
        }
    }

    /// The dates of the device's own certificate.
    pub fn facts(&self) -> CertificateFacts {
        self.facts
    }

    /// The chain as PEM, the device's own certificate first.
    pub fn to_pem(&self) -> String {
        self.members.iter().map(|der| pem("CERTIFICATE", der)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, Issuer, KeyPair};

    fn signed(key: &CertificateKey, name: &str) -> String {
        let own = KeyPair::from_pem(&key.to_pem()).expect("a key");
        let authority = Issuer::new(CertificateParams::default(), KeyPair::generate().expect("a key"));
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        BASE64_STANDARD.encode(params.signed_by(&own, &authority).expect("signed").der())
    }

    #[test]
    fn a_chain_of_this_key_becomes_pem() {
        let key = CertificateKey::generate().expect("a key");
        let members = [signed(&key, "Pump-12"), signed(&CertificateKey::generate().expect("a key"), "ca")];
        let chain = IssuedChain::read(&members, &key, &["reg-1", "pump-12"]).expect("a chain");
        let text = key.to_pem() + &chain.to_pem();
        let blocks: Vec<_> =
            rustls_pemfile::read_all(&mut text.as_bytes()).collect::<Result<_, _>>().expect("PEM");
        assert_eq!(blocks.len(), 3);
        assert!(text.lines().all(|line| line.len() <= 64));
        let leaf = BASE64_STANDARD.decode(&members[0]).expect("base64");
        assert_eq!(Some(chain.facts()), CertificateFacts::read(&leaf));
    }

    #[test]
    fn what_cannot_be_used_is_one_sentence() {
        let (key, other) =
            (CertificateKey::generate().expect("a key"), CertificateKey::generate().expect("a key"));
        let good = signed(&key, "pump-12");
        let said = |members: &[String]| {
            IssuedChain::read(members, &key, &["pump-12"]).expect_err("refused").to_string()
        };
        assert_eq!(said(&[]), "it has 0 certificates; it must have 1 to 8");
        assert_eq!(said(&vec![good.clone(); 9]), "it has 9 certificates; it must have 1 to 8");
        for broken in ["", "AAAA", "no base64", &good[..200], &"A".repeat(40_000)] {
            assert_eq!(said(&[good.clone(), broken.to_owned()]), "its certificate number 2 cannot be read");
        }
        assert!(
            said(&[signed(&other, "pump-12")]).contains("for another key than the one that this device made")
        );
        assert_eq!(
            said(&[signed(&key, "a\nb")]),
            "its first certificate is for \"a\\nb\", and this device is \"pump-12\""
        );
    }
}
