//! A private key that never leaves the device, and the request for a certificate of it (PKCS#10).
//!
//! Owns: the form of a request. Must not know: files, who is asked.
//!
//! The request is written by hand, because the crate that could do it adds 318 KB to the image of a device.
//! Source of the form: RFC 2986; of the key's algorithm: RFC 5480; of the signature's: RFC 5758, 3.2.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use ring::digest::{SHA256, digest};
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _};

use super::der::{
    BIT_STRING, COMMON_NAME, CONTEXT_0, INTEGER, OBJECT_ID, SEQUENCE, SET, UTF8_STRING, element,
};
use super::pem::pem;

/// id-ecPublicKey, 1.2.840.10045.2.1.
const EC_PUBLIC_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 2, 1];
/// secp256r1 (P-256), 1.2.840.10045.3.1.7.
const P256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 3, 1, 7];
/// ecdsa-with-SHA256, 1.2.840.10045.4.3.2.
const ECDSA_WITH_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 4, 3, 2];

/// A P-256 key of this device.
#[derive(Clone, PartialEq, Eq)]
pub struct CertificateKey {
    /// PKCS#8.
    document: Vec<u8>,
    /// The `SubjectPublicKeyInfo` of its certificate, in DER.
    public: Vec<u8>,
}

/// The system gave no random bytes, or the bytes are no P-256 key in PKCS#8.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("no P-256 key in PKCS#8")]
pub struct KeyError;

/// Without the key.
impl fmt::Debug for CertificateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "CertificateKey({})", self.request_id())
    }
}

impl CertificateKey {
    /// Makes a new key.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub fn generate() -> Result<Self, KeyError> {
        let made = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &SystemRandom::new());
        Self::from_pkcs8(made.map_err(|_unspecified| KeyError)?.as_ref())
    }

    /// Reads a key in PKCS#8.
    ///
    /// # Errors
    /// When it is none, or of another kind.
    pub fn from_pkcs8(document: &[u8]) -> Result<Self, KeyError> {
        let pair = key_pair(document)?;
        let algorithm =
            element(SEQUENCE, &[&element(OBJECT_ID, &[EC_PUBLIC_KEY]), &element(OBJECT_ID, &[P256])]);
        let public =
            element(SEQUENCE, &[&algorithm, &element(BIT_STRING, &[&[0], pair.public_key().as_ref()])]);
        Ok(Self { document: document.to_owned(), public })
    }

    /// The key as PEM: a secret.
    pub fn to_pem(&self) -> String {
        pem("PRIVATE KEY", &self.document)
    }

    /// Its `SubjectPublicKeyInfo`, in DER.
    pub(super) fn public(&self) -> &[u8] {
        &self.public
    }

    /// The id of the request for a certificate of this key: 32 hexadecimal digits, the same each time. So it need not
    /// be kept, and a request that is sent again is known as the same one. Source of its form: wire reference 12.6.
    pub fn request_id(&self) -> String {
        digest(&SHA256, &self.public).as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
    }

    /// A request for a certificate of this key with `common_name`, in base64 of its DER without line breaks.
    ///
    /// # Errors
    /// When the system has no random bytes for the signature.
    pub fn request(&self, common_name: &str) -> Result<String, KeyError> {
        let attribute =
            [element(OBJECT_ID, &[COMMON_NAME]), element(UTF8_STRING, &[common_name.as_bytes()])].concat();
        let subject = element(SEQUENCE, &[&element(SET, &[&element(SEQUENCE, &[&attribute])])]);
        let (version, no_attributes) = (element(INTEGER, &[&[0]]), element(CONTEXT_0, &[]));
        let info = element(SEQUENCE, &[&version, &subject, &self.public, &no_attributes]);
        let signature = key_pair(&self.document)?.sign(&SystemRandom::new(), &info);
        let signature = signature.map_err(|_unspecified| KeyError)?;
        let algorithm = element(SEQUENCE, &[&element(OBJECT_ID, &[ECDSA_WITH_SHA256])]);
        let signed = element(BIT_STRING, &[&[0], signature.as_ref()]);
        Ok(BASE64_STANDARD.encode(element(SEQUENCE, &[&info, &algorithm, &signed])))
    }
}

fn key_pair(document: &[u8]) -> Result<EcdsaKeyPair, KeyError> {
    let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, document, &SystemRandom::new());
    pair.map_err(|_rejected| KeyError)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn others_read_the_request_and_its_signature_holds(name in "[a-z0-9._:-]{1,128}|\\PC{1,64}") {
            let key = CertificateKey::generate().expect("a key");
            let request = key.request(&name).expect("a request");
            let der = BASE64_STANDARD.decode(&request).expect("base64 without line breaks");
            // rcgen parses it with x509-parser, and checks the signature.
            let read = rcgen::CertificateSigningRequestParams::from_der(&der.clone().into()).expect("a request");
            let common_name = read.params.distinguished_name.get(&rcgen::DnType::CommonName);
            prop_assert_eq!(common_name, Some(&rcgen::DnValue::Utf8String(name)));
            let public = read.public_key;
            prop_assert_eq!(rcgen::PublicKeyData::subject_public_key_info(&public), key.public());
            let mut other = der;
            other[20] ^= 1;
            prop_assert!(rcgen::CertificateSigningRequestParams::from_der(&other.into()).is_err());
        }
    }

    #[test]
    fn a_key_survives_pem_and_is_not_shown() {
        let key = CertificateKey::generate().expect("a key");
        let text = key.to_pem();
        let read = rcgen::KeyPair::from_pem(&text).expect("a key in PEM");
        assert_eq!(CertificateKey::from_pkcs8(read.serialized_der()), Ok(key.clone()));
        assert_eq!(format!("{key:?}"), format!("CertificateKey({})", key.request_id()));
        let id = key.request_id();
        assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()), "{id}");
        assert_eq!(CertificateKey::from_pkcs8(b"none"), Err(KeyError));
    }
}
