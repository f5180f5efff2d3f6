//! The common name of a certificate.
//!
//! Owns: finding it in DER. Must not know: whether a certificate is trusted, files.
//!
//! A crate that reads certificates as a whole is not in the small build, and this needs only one field. Source: RFC 5280,
//! section 4.1.

use rustls::pki_types::CertificateDer;

/// The tags of DER that lead to the name.
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const OBJECT_ID: u8 = 0x06;
/// `[0]`, which stands before the version of a certificate.
const VERSION: u8 = 0xA0;
/// UTF8String, PrintableString and IA5String, which are UTF-8.
const TEXTS: [u8; 3] = [0x0C, 0x13, 0x16];
/// 2.5.4.3: the common name. Source: RFC 5280, appendix A.1.
const COMMON_NAME: [u8; 3] = [0x55, 0x04, 0x03];

/// The common name (CN) of the subject; `None` if there is none, or if the bytes are no certificate. The first of
/// several counts.
pub fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let mut whole = Members(certificate);
    let mut signed = Members(Members(whole.member(SEQUENCE)?).member(SEQUENCE)?);
    if signed.0.first() == Some(&VERSION) {
        signed.next();
    }
    // The serial number, the algorithm, the issuer and the validity stand before the subject.
    for _ in 0..4 {
        signed.next()?;
    }
    let attributes =
        Members(signed.member(SEQUENCE)?).filter(|(tag, _)| *tag == SET).flat_map(|(_, set)| Members(set));
    attributes.filter(|(tag, _)| *tag == SEQUENCE).find_map(|(_, attribute)| {
        let mut attribute = Members(attribute);
        if attribute.member(OBJECT_ID)? != COMMON_NAME {
            return None;
        }
        let (tag, text) = attribute.next()?;
        TEXTS.contains(&tag).then(|| String::from_utf8(text.to_vec()).ok())?
    })
}

/// The members of a constructed value: tag and content of each. It ends where the bytes make no sense.
struct Members<'d>(&'d [u8]);

impl<'d> Members<'d> {
    /// The content of the next member, if it has this tag.
    fn member(&mut self, tag: u8) -> Option<&'d [u8]> {
        self.next().filter(|(found, _)| *found == tag).map(|(_, content)| content)
    }
}

impl<'d> Iterator for Members<'d> {
    type Item = (u8, &'d [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let (&[tag, first], rest) = self.0.split_first_chunk()?;
        let (length, rest) = match first {
            0..=0x7F => (usize::from(first), rest),
            0x81 => {
                let (&[length], rest) = rest.split_first_chunk()?;
                (usize::from(length), rest)
            }
            0x82 => {
                let (length, rest) = rest.split_first_chunk()?;
                (usize::from(u16::from_be_bytes(*length)), rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some((tag, content))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    fn named(names: &[(DnType, &str)]) -> CertificateDer<'static> {
        let mut params = CertificateParams::new(["a.example".to_owned()]).expect("names");
        params.distinguished_name = rcgen::DistinguishedName::new();
        for (kind, name) in names {
            params.distinguished_name.push(kind.clone(), *name);
        }
        let made = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate");
        made.der().clone()
    }

    #[test]
    fn the_common_name_is_found_among_the_names() {
        let of = |names: &[(DnType, &str)]| common_name(&named(names));
        let organization = (DnType::OrganizationName, "Example");
        assert_eq!(of(&[organization.clone(), (DnType::CommonName, "pump-12")]), Some("pump-12".to_owned()));
        let long = "é".repeat(150);
        assert_eq!(of(&[(DnType::CommonName, &long)]), Some(long.clone()));
        assert_eq!(of(&[organization]), None);
        assert_eq!(of(&[]), None);
    }

    #[test]
    fn damaged_bytes_have_no_name_and_do_no_harm() {
        let good = named(&[(DnType::CommonName, "pump-12")]);
        for length in 0..good.len() {
            assert_eq!(common_name(&good[..length].to_vec().into()), None, "cut at {length}");
        }
        // Whatever byte is another one, the answer is a name or none.
        for at in 0..good.len() {
            let mut bytes = good.to_vec();
            bytes[at] ^= 0xFF;
            drop(common_name(&bytes.into()));
        }
    }
}
