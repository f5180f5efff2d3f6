//! Reads of a certificate what its owner must know: whose it is, its public key, when it begins and ends.
//!
//! Owns: where these stand in a certificate. Must not know: whether it is trusted, files, the clock.
//!
//! Source of the form: RFC 5280, 4.1.

use std::time::{Duration, SystemTime};

use ring::digest::{SHA256, digest};

use super::der::{
    COMMON_NAME, CONTEXT_0, DerReader, Element, GENERALIZED_TIME, IA5_STRING, INTEGER, OBJECT_ID,
    PRINTABLE_STRING, SEQUENCE, SET, UTC_TIME, UTF8_STRING,
};

/// When a certificate is valid, and which one it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CertificateFacts {
    /// SHA-256 of its DER.
    pub fingerprint: [u8; 32],
    /// From when on it is valid.
    pub not_before: SystemTime,
    /// Until when it is valid.
    pub not_after: SystemTime,
}

/// Whose a certificate is.
pub(super) struct Subject<'d> {
    /// The common name.
    pub(super) common_name: Option<&'d str>,
    /// Its `SubjectPublicKeyInfo`, in DER.
    pub(super) public: &'d [u8],
}

impl CertificateFacts {
    /// Reads a certificate in DER. None if the bytes are none.
    pub fn read(der: &[u8]) -> Option<Self> {
        Some(read(der)?.0)
    }

    /// How much of its life is left at `now`: from 1 to 0. Before it begins, all of it.
    pub fn share_left(&self, now: SystemTime) -> f64 {
        let left = self.not_after.duration_since(now).unwrap_or_default();
        let life = self.life();
        if life.is_zero() { 0.0 } else { (left.as_secs_f64() / life.as_secs_f64()).min(1.0) }
    }

    /// How long it is valid.
    pub fn life(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// The moment at which `share` of its life is over.
    pub fn at(&self, share: f64) -> SystemTime {
        self.not_before.checked_add(self.life().mul_f64(share)).unwrap_or(self.not_after)
    }
}

/// The common name (CN) of the subject of a certificate in DER; the first one of several. None if there is none, or
/// if the bytes are no certificate.
pub fn common_name(der: &[u8]) -> Option<String> {
    read(der)?.1.common_name.map(str::to_owned)
}

/// Reads a certificate in DER, with nothing behind it.
pub(super) fn read(der: &[u8]) -> Option<(CertificateFacts, Subject<'_>)> {
    let mut file = DerReader(der);
    let mut outer = file.tagged(SEQUENCE)?.inside(SEQUENCE)?;
    let mut fields = outer.tagged(SEQUENCE)?.inside(SEQUENCE)?;
    let _signature = (outer.tagged(SEQUENCE)?, outer.next()?);
    if !file.is_at_end() || !outer.is_at_end() {
        return None;
    }
    let mut serial = fields.next()?;
    if serial.tag == CONTEXT_0 {
        serial = fields.next()?; // what came first was the version
    }
    let _serial = (serial.tag == INTEGER).then_some(serial)?;
    let (_algorithm, _issuer) = (fields.tagged(SEQUENCE)?, fields.tagged(SEQUENCE)?);
    let mut validity = fields.tagged(SEQUENCE)?.inside(SEQUENCE)?;
    let (not_before, not_after) = (time(validity.next()?)?, time(validity.next()?)?);
    let subject = fields.tagged(SEQUENCE)?;
    let public = fields.tagged(SEQUENCE)?.whole;
    let fingerprint = digest(&SHA256, der).as_ref().try_into().ok()?;
    let facts = CertificateFacts { fingerprint, not_before, not_after };
    Some((facts, Subject { common_name: name(subject), public }))
}

/// The first common name of a `Name`.
fn name(name: Element<'_>) -> Option<&str> {
    name.inside(SEQUENCE)?.filter_map(|set| set.inside(SET)).flatten().find_map(|attribute| {
        let mut parts = attribute.inside(SEQUENCE)?;
        let (kind, value) = (parts.tagged(OBJECT_ID)?, parts.next()?);
        let is_text = matches!(value.tag, UTF8_STRING | PRINTABLE_STRING | IA5_STRING);
        let is_name = kind.content == COMMON_NAME && is_text;
        is_name.then(|| std::str::from_utf8(value.content).ok()).flatten()
    })
}

/// `YYMMDDHHMMSSZ`, where years from 50 on are those of the 20th century, or `YYYYMMDDHHMMSSZ`. A time before 1970
/// counts as 1970. Source: RFC 5280, 4.1.2.5.
fn time(element: Element<'_>) -> Option<SystemTime> {
    let text = std::str::from_utf8(element.content).ok()?.strip_suffix('Z')?;
    let (year, rest) = match (element.tag, text.len()) {
        (UTC_TIME, 12) => {
            let (year, rest) = text.split_at_checked(2)?;
            (if year < "50" { format!("20{year}") } else { format!("19{year}") }, rest)
        }
        (GENERALIZED_TIME, 14) => {
            let (year, rest) = text.split_at_checked(4)?;
            (year.to_owned(), rest)
        }
        _ => return None,
    };
    if !year.bytes().chain(rest.bytes()).all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    if *year < *"1970" {
        return Some(SystemTime::UNIX_EPOCH);
    }
    let part = |at: usize| rest.get(at..at + 2);
    let (month, day, hour) = (part(0)?, part(2)?, part(4)?);
    let (minute, second) = (part(6)?, part(8)?);
    humantime::parse_rfc3339(&format!("{year}-{month}-{day}T{hour}:{minute}:{second}Z")).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn made(from: (i32, u8, u8), until: (i32, u8, u8)) -> (Vec<u8>, Vec<u8>) {
        let mut params = CertificateParams::new(["a.example".to_owned()]).expect("names");
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.distinguished_name.push(DnType::CommonName, "pump-12");
        params.not_before = rcgen::date_time_ymd(from.0, from.1, from.2);
        params.not_after = rcgen::date_time_ymd(until.0, until.1, until.2);
        let key = KeyPair::generate().expect("a key");
        let public = rcgen::PublicKeyData::subject_public_key_info(&key);
        (params.self_signed(&key).expect("a certificate").der().to_vec(), public)
    }

    #[test]
    fn dates_name_and_key_are_read() {
        let day = |days: u64| SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400);
        // 2060 has the longer form of a time.
        let (der, key) = made((2020, 1, 2), (2060, 3, 4));
        let (facts, subject) = read(&der).expect("readable");
        assert_eq!((facts.not_before, facts.not_after), (day(18_263), day(32_935)));
        assert_eq!((subject.common_name, subject.public), (Some("pump-12"), &*key));
        let (der, _) = made((1955, 1, 1), (9999, 12, 31));
        let facts = CertificateFacts::read(&der).expect("readable");
        assert_eq!(facts.not_before, SystemTime::UNIX_EPOCH);
    }

    #[test]
    fn a_share_of_the_life_is_left() {
        let at = |seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds);
        let facts = CertificateFacts { fingerprint: [0; 32], not_before: at(1000), not_after: at(2000) };
        assert_eq!(
            [facts.share_left(at(0)), facts.share_left(at(1800)), facts.share_left(at(3000))],
            [1.0, 0.2, 0.0]
        );
        assert_eq!(facts.at(0.8), at(1800));
        let backwards = CertificateFacts { not_after: at(500), ..facts };
        assert_eq!((backwards.share_left(at(0)), backwards.at(0.8)), (0.0, at(1000)));
    }

    #[test]
    fn cut_and_lengthened_certificates_are_none() {
        let (der, _) = made((2020, 1, 2), (2060, 3, 4));
        for length in 0..der.len() {
            assert_eq!(CertificateFacts::read(&der[..length]), None, "{length}");
        }
        assert_eq!(CertificateFacts::read(&[&der[..], &[0]].concat()), None);
    }

    proptest! {
        #[test]
        fn damaged_certificates_do_no_harm(at in 0..200_usize, value in any::<u8>()) {
            let (mut der, _) = made((2020, 1, 2), (2060, 3, 4));
            der[at] = value;
            let _ = CertificateFacts::read(&der);
        }

        #[test]
        fn any_bytes_do_no_harm(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = CertificateFacts::read(&bytes);
        }
    }
}
