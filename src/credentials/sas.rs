//! Shared access keys and SAS tokens.
//!
//! Owns: signing, parsing and verifying tokens. Must not know: connection strings, clocks.
//!
//! Format (wire reference 4.2): `SharedAccessSignature sr={sr}&sig={sig}&se={unix seconds}[&skn={policy}]`. The fields
//! may have any order. `sig` is the escaped base64 of HMAC-SHA256 over `{sr}\n{se}`, with `sr` as it stands in the
//! token.

use std::fmt;
use std::ops::RangeInclusive;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use ring::hmac;

use super::excerpt;

const ESCAPED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
const SCHEME: &str = "SharedAccessSignature ";
const KEY_BYTES: RangeInclusive<usize> = 16..=64;

/// A symmetric key. It cannot be printed; `Debug` is redacted.
#[derive(Clone, PartialEq, Eq)]
pub struct SharedAccessKey(Vec<u8>);

impl SharedAccessKey {
    /// Makes a key of raw bytes, as the emulator needs it.
    pub fn from_bytes(bytes: impl Into<Vec<u8>>) -> Self {
        Self(bytes.into())
    }

    /// Reads the base64 form of a connection string.
    ///
    /// # Errors
    /// [`SasError::Key`] when it is not standard base64 or empty. The error does not repeat the text.
    pub fn from_base64(text: &str) -> Result<Self, SasError> {
        let bytes = BASE64.decode(text.trim()).map_err(|_| SasError::Key)?;
        if bytes.is_empty() { Err(SasError::Key) } else { Ok(Self(bytes)) }
    }

    /// As [`Self::from_base64`], for a key of an enrolment or a device, which the services take in 16 to 64 bytes only.
    /// Source: azure-docs, iot-dps, concepts-symmetric-key-attestation.
    ///
    /// # Errors
    /// As [`Self::from_base64`], and [`SasError::KeyLength`].
    pub fn from_base64_in_limits(text: &str) -> Result<Self, SasError> {
        let key = Self::from_base64(text)?;
        let length = key.0.len();
        if KEY_BYTES.contains(&length) { Ok(key) } else { Err(SasError::KeyLength(length)) }
    }

    /// The base64 form, for writing a connection string. Never log it.
    pub fn expose_base64(&self) -> String {
        BASE64.encode(&self.0)
    }

    /// HMAC-SHA256 of any bytes: the answer of a workload API that signs. Source: wire reference 6.5.
    pub fn digest(&self, data: &[u8]) -> Vec<u8> {
        hmac::sign(&self.mac(), data).as_ref().to_vec()
    }

    fn mac(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.0)
    }
}

impl fmt::Debug for SharedAccessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SharedAccessKey(redacted)")
    }
}

/// A signed proof of a key, limited in time. It cannot be printed; `Debug` shows the resource and expiry only.
#[derive(Clone, PartialEq, Eq)]
pub struct SasToken {
    text: String,
    /// `sr` exactly as it stands in the token: the signature covers these bytes.
    raw_resource: String,
    signature: Vec<u8>,
    expiry: u64,
    policy: Option<String>,
}

impl SasToken {
    /// Signs a token for `resource` (unescaped, such as `myhub.azure-devices.net/devices/dev1`) that is valid until
    /// `expiry`, rounded down to seconds.
    pub fn sign(key: &SharedAccessKey, resource: &str, policy: Option<&str>, expiry: SystemTime) -> Self {
        let unsigned = UnsignedToken::new(resource, expiry);
        let signature = key.digest(unsigned.text_to_sign().as_bytes());
        let mut token = unsigned.signed(signature);
        if let Some(policy) = policy {
            token.text.push_str("&skn=");
            token.text.push_str(&escape(policy));
        }
        Self { policy: policy.map(str::to_owned), ..token }
    }

    /// Reads the fields of a token; it verifies nothing.
    ///
    /// # Errors
    /// [`SasError`] says which field is missing, doubled or malformed, without repeating the signature.
    pub fn parse(text: &str) -> Result<Self, SasError> {
        let text = text.trim();
        let fields = text.strip_prefix(SCHEME).ok_or(SasError::Scheme)?;
        let (mut resource, mut signature, mut expiry, mut policy) = (None, None, None, None);
        for field in fields.trim().split('&') {
            let (name, value) = field.split_once('=').ok_or(SasError::Field)?;
            let slot = match name {
                "sr" => &mut resource,
                "sig" => &mut signature,
                "se" => &mut expiry,
                "skn" => &mut policy,
                _ => return Err(SasError::Field),
            };
            if slot.replace(value).is_some() {
                return Err(SasError::Doubled(leak_free_name(name)));
            }
        }
        let raw_resource = resource.filter(|sr| !sr.is_empty()).ok_or(SasError::Missing("sr"))?.to_owned();
        let signature = unescape(signature.ok_or(SasError::Missing("sig"))?).ok_or(SasError::Signature)?;
        let signature = BASE64.decode(signature).map_err(|_| SasError::Signature)?;
        let expiry = expiry.ok_or(SasError::Missing("se"))?;
        let expiry = expiry.parse().map_err(|_| SasError::Expiry(excerpt(expiry, 24)))?;
        // Some helper clients send an empty `skn=` with a device key.
        let policy = match policy.filter(|name| !name.is_empty()) {
            Some(name) => Some(unescape(name).ok_or(SasError::Field)?),
            None => None,
        };
        if unescape(&raw_resource).is_none() {
            return Err(SasError::Field);
        }
        Ok(Self { text: text.to_owned(), raw_resource, signature, expiry, policy })
    }

    /// Whether `key` made this token. Compares in constant time; it ignores the expiry.
    pub fn is_signed_by(&self, key: &SharedAccessKey) -> bool {
        let text = signed_text(&self.raw_resource, self.expiry);
        hmac::verify(&key.mac(), text.as_bytes(), &self.signature).is_ok()
    }

    /// Whether the token is valid for `resource` or for anything below it. The comparison of the host ignores case and
    /// a `:port`. The rest must be equal, in whole path segments.
    pub fn covers(&self, resource: &str) -> bool {
        let own = self.resource();
        let split = |text: &str| -> (String, String) {
            let (host, path) = text.split_once('/').unwrap_or((text, ""));
            let host = host.split_once(':').map_or(host, |(name, _)| name);
            (host.to_ascii_lowercase(), path.trim_end_matches('/').to_owned())
        };
        let ((own_host, own_path), (host, path)) = (split(&own), split(resource));
        own_host == host
            && (own_path.is_empty() || path == own_path || path.starts_with(&format!("{own_path}/")))
    }

    /// `sr`, unescaped.
    pub fn resource(&self) -> String {
        unescape(&self.raw_resource).unwrap_or_default()
    }

    /// `skn`, if the token was made with a policy's key.
    pub fn policy(&self) -> Option<&str> {
        self.policy.as_deref()
    }

    /// When the token expires.
    pub fn expiry(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(self.expiry)).unwrap_or(SystemTime::UNIX_EPOCH)
    }

    /// The token's text, for a password field. Never log it.
    pub fn expose(&self) -> &str {
        &self.text
    }
}

impl fmt::Debug for SasToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SasToken")
            .field("resource", &self.raw_resource)
            .field("expiry", &self.expiry)
            .field("policy", &self.policy)
            .finish_non_exhaustive()
    }
}

/// A token without its signature, for a key that only another program holds, such as a workload API. Source: wire
/// reference 6.5.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UnsignedToken {
    raw_resource: String,
    expiry: u64,
}

impl UnsignedToken {
    /// Resource and expiry as for [`SasToken::sign`].
    pub fn new(resource: &str, expiry: SystemTime) -> Self {
        let expiry = expiry.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs();
        Self { raw_resource: escape(resource), expiry }
    }

    /// What the signature must cover: `{escaped resource}\n{expiry}`.
    pub fn text_to_sign(&self) -> String {
        signed_text(&self.raw_resource, self.expiry)
    }

    /// Makes the token with `digest`, the HMAC-SHA256 of [`Self::text_to_sign`]. It does not check the digest.
    pub fn signed(self, digest: Vec<u8>) -> SasToken {
        let Self { raw_resource, expiry } = self;
        let sig = escape(&BASE64.encode(&digest));
        let text = format!("{SCHEME}sr={raw_resource}&sig={sig}&se={expiry}");
        SasToken { text, raw_resource, signature: digest, expiry, policy: None }
    }
}

/// Why a key or a token could not be read. No variant holds secret text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SasError {
    /// The key is not base64.
    #[error("the shared access key is not base64: copy the whole key, it usually ends with =")]
    Key,
    /// The key is shorter or longer than the services take.
    #[error(
        "the shared access key has {0} bytes (decoded from base64), but Azure takes {min} to {max}: copy the whole key",
        min = KEY_BYTES.start(),
        max = KEY_BYTES.end()
    )]
    KeyLength(usize),
    /// The text does not begin as a token does.
    #[error("a SAS token begins with \"SharedAccessSignature \"")]
    Scheme,
    /// A field that is not one of the four, or is malformed.
    #[error(
        "a SAS token has the fields sr, sig, se and skn, each as name=value and percent-encoded, and no \
         others"
    )]
    Field,
    /// A field is missing.
    #[error("the SAS token lacks the field {0}")]
    Missing(&'static str),
    /// A field occurs twice.
    #[error("the SAS token has the field {0} twice")]
    Doubled(&'static str),
    /// The signature is not percent-encoded base64.
    #[error("the signature (sig) of the SAS token is not percent-encoded base64")]
    Signature,
    /// The expiry is not a number of seconds.
    #[error("the expiry (se) of the SAS token is \"{0}\", not a number of seconds since 1970")]
    Expiry(String),
}

fn leak_free_name(name: &str) -> &'static str {
    match name {
        "sr" => "sr",
        "sig" => "sig",
        "se" => "se",
        _ => "skn",
    }
}

fn signed_text(raw_resource: &str, expiry: u64) -> String {
    format!("{raw_resource}\n{expiry}")
}

fn escape(text: &str) -> String {
    utf8_percent_encode(text, ESCAPED).to_string()
}

fn unescape(text: &str) -> Option<String> {
    percent_decode_str(text).decode_utf8().ok().map(|text| text.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    // Test vectors: wire reference 11.
    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

    fn key() -> SharedAccessKey {
        SharedAccessKey::from_base64(KEY).expect("base64")
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn tokens_match_the_test_vectors() {
        let device = SasToken::sign(&key(), "myhub.local.test/devices/dev1", None, at(1_893_456_000));
        assert_eq!(
            device.expose(),
            "SharedAccessSignature sr=myhub.local.test%2Fdevices%2Fdev1\
             &sig=D6WC8cAd7eTyjLvrQcqiB%2FG6YkR56IpbxzLIrrZMrJc%3D&se=1893456000"
        );
        let service = SasToken::sign(&key(), "myhub.local.test", Some("service"), at(1_893_456_000));
        assert_eq!(
            service.expose(),
            "SharedAccessSignature sr=myhub.local.test\
             &sig=5ORm79fJYI3oldz3KCxbkeKHkaVQt36190v4pFbVHdA%3D&se=1893456000&skn=service"
        );
    }

    #[test]
    fn a_token_signed_elsewhere_is_the_same_one_whatever_the_ids() {
        for ids in ["edge1/modules/filter", "a%b(1)/modules/m:1,='$@", "d!*/modules/_.-?"] {
            let resource = format!("myhub.local.test/devices/{ids}");
            let unsigned = UnsignedToken::new(&resource, at(1_893_456_000));
            let text = unsigned.text_to_sign();
            assert!(
                text.starts_with("myhub.local.test%2Fdevices%2F") && text.ends_with("\n1893456000"),
                "{text}"
            );
            let token = unsigned.signed(key().digest(text.as_bytes()));
            assert_eq!(token, SasToken::sign(&key(), &resource, None, at(1_893_456_000)));
            let parsed = SasToken::parse(token.expose()).expect("a token");
            assert!(parsed.is_signed_by(&key()) && parsed.covers(&resource), "{resource}");
        }
        let odd = UnsignedToken::new("h/devices/a%b/modules/m$1", at(9)).text_to_sign();
        assert_eq!(odd, "h%2Fdevices%2Fa%25b%2Fmodules%2Fm%241\n9");
    }

    #[test]
    fn the_signature_is_checked_over_the_raw_resource() {
        // Node does not encode `sr`, so the signature covers the slashes themselves.
        let raw = "myhub.local.test/devices/dev1";
        let tag = hmac::sign(&key().mac(), format!("{raw}\n1893456000").as_bytes());
        let sig = escape(&BASE64.encode(tag.as_ref()));
        let token = SasToken::parse(&format!("SharedAccessSignature sr={raw}&sig={sig}&skn=&se=1893456000"));
        let token = token.expect("a token");
        assert!(token.is_signed_by(&key()));
        assert_eq!(token.policy(), None);
        assert!(!token.is_signed_by(&SharedAccessKey::from_bytes(*b"another")));
    }

    #[test]
    fn a_resource_covers_itself_and_what_is_below_it() {
        let token = SasToken::sign(&key(), "MyHub.local.test:8883/devices/dev1", None, at(1));
        assert!(token.covers("myhub.local.test/devices/dev1"));
        assert!(token.covers("myhub.local.test/devices/dev1/modules/m"));
        assert!(!token.covers("myhub.local.test/devices/dev10"));
        assert!(!token.covers("myhub.local.test/devices/DEV1"));
        assert!(!token.covers("other/devices/dev1"));
        assert!(SasToken::sign(&key(), "h", Some("service"), at(1)).covers("h/devices/x"));
    }

    #[test]
    fn malformed_tokens_are_named_without_their_secrets() {
        let error = |text: &str| SasToken::parse(text).expect_err("malformed").to_string();
        assert!(error("sr=a&sig=b&se=1").contains("begins with"));
        assert!(error("SharedAccessSignature sr=a&sig=Yg%3D%3D").contains("lacks the field se"));
        assert!(error("SharedAccessSignature sr=a&sr=a&sig=Yg%3D%3D&se=1").contains("sr twice"));
        assert!(error("SharedAccessSignature sr=a&sig=Yg%3D%3D&se=soon").contains("\"soon\""));
        let secret = error("SharedAccessSignature sr=a&sig=!secret!&se=1");
        assert!(secret.contains("sig") && !secret.contains("secret"), "{secret}");
    }

    #[test]
    fn secrets_do_not_print() {
        let token = SasToken::sign(&key(), "h", None, at(9));
        let printed = format!("{:?} {:?}", key(), token);
        assert!(!printed.contains(KEY) && !printed.contains("sig"), "{printed}");
    }

    proptest! {
        #[test]
        fn signed_tokens_parse_and_verify(resource in "[ -~]{1,60}", policy in "[a-zA-Z]{1,12}", seconds in 0u64..1 << 40) {
            let token = SasToken::sign(&key(), &resource, Some(&policy), at(seconds));
            let parsed = SasToken::parse(token.expose()).expect("own token");
            prop_assert_eq!(&parsed, &token);
            prop_assert!(parsed.is_signed_by(&key()));
            prop_assert_eq!(parsed.resource(), resource);
            prop_assert_eq!(parsed.expiry(), at(seconds));
        }

        #[test]
        fn any_text_parses_or_is_refused_without_a_panic(text in ".{0,200}") {
            if let Ok(token) = SasToken::parse(&format!("{SCHEME}{text}")) {
                prop_assert!(token.covers(&token.resource()) || token.resource().is_empty());
                let _expiry = token.expiry();
            }
        }
    }
}
