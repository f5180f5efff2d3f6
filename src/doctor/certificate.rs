//! Reads a certificate: its names, its issuer, and its dates.
//!
//! Owns: everything that names the `x509-parser` crate. Must not know: files, connections, whether a certificate is
//! trusted.

use std::time::{Duration, SystemTime};

use x509_parser::certificate::X509Certificate;
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::FromDer as _;
use x509_parser::time::ASN1Time;
use x509_parser::x509::X509Name;

/// The parts of a certificate that the doctor uses. The texts may come from a stranger: control characters are removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Certificate {
    /// The common name, or the whole name if there is no common name.
    pub(super) subject: String,
    /// The name of the issuer, in the same form.
    pub(super) issuer: String,
    /// The organization of the issuer.
    pub(super) issuer_organization: Option<String>,
    /// The first few host names that the certificate is for.
    pub(super) hosts: Vec<String>,
    pub(super) not_before: SystemTime,
    pub(super) not_after: SystemTime,
}

/// Most host names that are shown.
const MAX_HOSTS: usize = 4;
/// Most characters of a name.
const MAX_NAME: usize = 80;

impl Certificate {
    /// Reads a certificate in DER. `None` if the bytes are no certificate.
    pub(super) fn read(der: &[u8]) -> Option<Self> {
        let (_, read) = X509Certificate::from_der(der).ok()?;
        let names = read.subject_alternative_name().ok().flatten();
        let hosts = names.iter().flat_map(|names| &names.value.general_names).filter_map(|name| match name {
            GeneralName::DNSName(name) => Some(shown(name)),
            _ => None,
        });
        Some(Self {
            subject: name_of(read.subject()),
            issuer: name_of(read.issuer()),
            issuer_organization: text(read.issuer().iter_organization().next()),
            hosts: hosts.take(MAX_HOSTS).collect(),
            not_before: time(read.validity().not_before),
            not_after: time(read.validity().not_after),
        })
    }

    /// How long the certificate is valid.
    pub(super) fn life(&self) -> Duration {
        self.not_after.duration_since(self.not_before).unwrap_or_default()
    }

    /// Whether the certificate is valid now.
    pub(super) fn age(&self, now: SystemTime) -> Age {
        match self.not_after.duration_since(now) {
            _ if now < self.not_before => Age::NotYet,
            Ok(left) => Age::Good { left },
            Err(_) => Age::Expired,
        }
    }
}

/// The validity of a certificate now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Age {
    NotYet,
    Good { left: Duration },
    Expired,
}

/// A day, for people.
pub(super) fn day(time: SystemTime) -> String {
    crate::message::format_time(time).chars().take(10).collect()
}

fn name_of(name: &X509Name<'_>) -> String {
    text(name.iter_common_name().next()).unwrap_or_else(|| shown(&name.to_string()))
}

fn text(attribute: Option<&x509_parser::x509::AttributeTypeAndValue<'_>>) -> Option<String> {
    attribute.and_then(|value| value.as_str().ok()).map(shown)
}

fn shown(text: &str) -> String {
    text.chars().take(MAX_NAME).flat_map(char::escape_debug).collect()
}

fn time(time: ASN1Time) -> SystemTime {
    let seconds = time.timestamp();
    let away = Duration::from_secs(seconds.unsigned_abs());
    let epoch = SystemTime::UNIX_EPOCH;
    let moved = if seconds < 0 { epoch.checked_sub(away) } else { epoch.checked_add(away) };
    moved.unwrap_or(epoch)
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DnType, KeyPair};

    #[test]
    fn names_and_dates_are_read() {
        let mut params =
            CertificateParams::new(["a.example".to_owned(), "b.example".to_owned()]).expect("names");
        params.distinguished_name.push(DnType::CommonName, "pi\u{7}-01");
        params.distinguished_name.push(DnType::OrganizationName, "Example");
        params.not_before = rcgen::date_time_ymd(2020, 1, 2);
        params.not_after = rcgen::date_time_ymd(2060, 3, 4);
        let made = params.self_signed(&KeyPair::generate().expect("a key")).expect("a certificate");
        let read = Certificate::read(made.der()).expect("readable");
        assert_eq!((read.subject.as_str(), read.issuer.as_str()), ("pi\\u{7}-01", "pi\\u{7}-01"));
        assert_eq!(read.issuer_organization.as_deref(), Some("Example"));
        assert_eq!(read.hosts, ["a.example", "b.example"]);
        assert_eq!([day(read.not_before), day(read.not_after)], ["2020-01-02", "2060-03-04"]);
        let second = Duration::from_secs(1);
        assert_eq!(read.age(read.not_before - second), Age::NotYet);
        assert_eq!(read.age(read.not_after - second), Age::Good { left: second });
        assert_eq!(read.age(read.not_after + second), Age::Expired);
        assert_eq!(Certificate::read(b"none"), None);
    }
}
