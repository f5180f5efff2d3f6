//! What an enrolment wants to see: keys, or certificates.
//!
//! Owns: whether a proof is the right one, and which credential the device then has at its hub. Must not know: who is
//! enrolled, tokens' form and expiry (`claim`).
//!
//! Source: wire reference 12.2. The key of a device in a group is HMAC-SHA256 of its registration id under the key of
//! the group.

use std::time::SystemTime;

use rustls::pki_types::CertificateDer;

use super::claim::{Proof, RegistrationClaim};
use crate::credentials::SharedAccessKey;
use crate::emulator::registry::{DeviceCredential, KeyPair, Thumbprint};
use crate::emulator::tls::DeviceAuthority;

/// Whom an enrolment is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::emulator) enum EnrolmentKind {
    /// One device.
    Individual,
    /// All devices whose key derives from the group's, or whose certificate its authority has signed.
    Group,
}

/// What the clients of an enrolment must prove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::emulator) enum Attestation {
    /// A key of the device or of the group.
    Keys(KeyPair),
    /// Certificates, in DER: those of the device, or authorities of the group. One or two.
    Certificates(Vec<CertificateDer<'static>>),
}

impl EnrolmentKind {
    /// The name in sentences.
    pub(in crate::emulator) fn word(self) -> &'static str {
        match self {
            Self::Individual => "individual",
            Self::Group => "group",
        }
    }
}

impl Attestation {
    /// Judges a proof. `spelling` is the registration id as it was first written: the key of a group's device derives
    /// from it, so that it is the same key however the client writes the id. Certificates must be valid at `now`, the
    /// real time. Returns what the device must prove at its hub from now on.
    ///
    /// # Errors
    /// The reason, for the log.
    pub(super) fn judge(
        &self,
        kind: EnrolmentKind,
        claim: &RegistrationClaim,
        spelling: &str,
        now: SystemTime,
    ) -> Result<DeviceCredential, String> {
        let id = claim.registration_id.as_str();
        match (self, &claim.proof) {
            (Self::Keys(keys), Proof::Token(token)) => {
                let own = match kind {
                    EnrolmentKind::Individual => keys.clone(),
                    EnrolmentKind::Group => derived(keys, spelling),
                };
                if own.signed(token) {
                    return Ok(DeviceCredential::Keys(own));
                }
                if kind == EnrolmentKind::Group && spelling != id && derived(keys, id).signed(token) {
                    return Err(format!(
                        "the key derives from \"{id}\", but the device registered as \"{spelling}\": derive it from that"
                    ));
                }
                Err("the token's signature does not match: it was made with another key".to_owned())
            }
            (Self::Certificates(known), Proof::Certificate(shown)) => {
                let name = shown.common_name().unwrap_or_default();
                if !name.eq_ignore_ascii_case(id) {
                    let name = crate::message::excerpt(&name);
                    return Err(format!(
                        "the certificate is for \"{name}\": its CN must be the registration id"
                    ));
                }
                match kind {
                    EnrolmentKind::Individual => {
                        if !known.iter().any(|own| own.as_ref() == shown.leaf()) {
                            return Err("the client certificate is not the enrolled one".to_owned());
                        }
                        if !shown.is_valid_at(now) {
                            return Err("the client certificate is not valid yet, or not any more".to_owned());
                        }
                        let mut own = known.iter().map(|own| Thumbprint::of(own).to_hex());
                        let primary = own.next().unwrap_or_default();
                        Ok(DeviceCredential::Thumbprints { primary, secondary: own.next() })
                    }
                    EnrolmentKind::Group => {
                        let signed = known
                            .iter()
                            .map(|authority| DeviceAuthority::new(authority.clone())?.check(shown, now));
                        let mut failed = None;
                        for result in signed {
                            match result {
                                Ok(()) => {
                                    let primary = Thumbprint::of(shown.leaf()).to_hex();
                                    return Ok(DeviceCredential::Thumbprints { primary, secondary: None });
                                }
                                Err(error) => failed = failed.or(Some(error)),
                            }
                        }
                        let reason = failed.map(|error| error.to_string()).unwrap_or_default();
                        Err(format!("the certificate does not lead to the authority of the group: {reason}"))
                    }
                }
            }
            (Self::Keys(_), Proof::Certificate(_)) => {
                Err("the enrolment has a key, but the client has shown a certificate".to_owned())
            }
            (Self::Certificates(_), Proof::Token(_)) => {
                Err("the enrolment has a certificate, but the client has sent a token".to_owned())
            }
        }
    }
}

/// The keys of one device of a group.
fn derived(group: &KeyPair, registration_id: &str) -> KeyPair {
    let key = |key: &SharedAccessKey| SharedAccessKey::from_bytes(key.digest(registration_id.as_bytes()));
    KeyPair { primary: key(&group.primary), secondary: key(&group.secondary) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::SasToken;
    use crate::emulator::certificates::{make_authority, make_device, make_vouched_device};
    use crate::emulator::tls::ShownChain;
    use rustls::pki_types::pem::PemObject as _;
    use std::time::Duration;

    const NOW: SystemTime = SystemTime::UNIX_EPOCH;

    fn key(text: &str) -> SharedAccessKey {
        SharedAccessKey::from_base64(text).expect("base64")
    }

    fn by_token(id: &str, key: &SharedAccessKey) -> RegistrationClaim {
        let token = SasToken::sign(key, &format!("s/registrations/{id}"), None, NOW + Duration::from_secs(9));
        RegistrationClaim { registration_id: id.to_owned(), proof: Proof::Token(token) }
    }

    fn by_certificate(id: &str, pem: &str) -> RegistrationClaim {
        let shown = ShownChain::new(&[der(pem)]).expect("one certificate");
        RegistrationClaim { registration_id: id.to_owned(), proof: Proof::Certificate(shown) }
    }

    fn der(pem: &str) -> CertificateDer<'static> {
        CertificateDer::from_pem_slice(pem.as_bytes()).expect("PEM")
    }

    /// Source of the vectors: wire reference 12.2.
    #[test]
    fn a_group_admits_the_key_that_derives_from_its_own_and_hands_it_to_the_hub() {
        let group = key("AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=");
        let attestation = Attestation::Keys(KeyPair { primary: key("c2Vjb25k"), secondary: group.clone() });
        let device = key("loIcOklwYeGOA435V7aqfiADrvH7eV6ntyrboHz4F4E=");
        let judged = attestation.judge(EnrolmentKind::Group, &by_token("reg-01", &device), "reg-01", NOW);
        let Ok(DeviceCredential::Keys(keys)) = judged else { panic!("{judged:?}") };
        assert_eq!(keys.secondary, device);
        for (id, wrong) in [("reg-02", &device), ("reg-01", &group)] {
            let said =
                attestation.judge(EnrolmentKind::Group, &by_token(id, wrong), id, NOW).expect_err("refused");
            assert!(said.contains("another key"), "{said}");
        }
        let own = attestation.judge(EnrolmentKind::Individual, &by_token("reg-01", &group), "reg-01", NOW);
        assert!(own.is_ok());
    }

    #[test]
    fn an_individual_certificate_is_known_by_itself_and_by_its_name() {
        let now = NOW + Duration::from_secs(1_800_000_000);
        let [own, other] = ["a", "a"].map(|name| make_device(name, now).expect("made").certificate);
        let attestation = Attestation::Certificates(vec![der(&own)]);
        let judge = |claim| attestation.judge(EnrolmentKind::Individual, &claim, "a", now);
        let Ok(DeviceCredential::Thumbprints { primary, secondary: None }) = judge(by_certificate("A", &own))
        else {
            panic!("refused")
        };
        assert_eq!(primary, Thumbprint::of(&der(&own)).to_hex());
        assert!(judge(by_certificate("a", &other)).expect_err("refused").contains("not the enrolled one"));
        for then in [NOW, now + Duration::from_secs(11 * 365 * 24 * 3600)] {
            let claim = by_certificate("a", &own);
            let said = attestation.judge(EnrolmentKind::Individual, &claim, "a", then).expect_err("refused");
            assert!(said.contains("not valid yet, or not any more"), "{said}");
        }
        assert!(judge(by_certificate("b", &own)).expect_err("refused").contains("for \"a\""));
        assert!(judge(by_token("a", &key("eA=="))).expect_err("refused").contains("has sent a token"));
    }

    #[test]
    fn a_group_admits_what_its_authority_has_signed_while_it_is_valid() {
        let now = NOW + Duration::from_secs(1_800_000_000);
        let [authority, foreign] = [0, 0].map(|_| make_authority(now).expect("made"));
        let attestation =
            Attestation::Certificates(vec![der(&foreign.certificate), der(&authority.certificate)]);
        let own = make_vouched_device(&authority, "a", now).expect("made").certificate;
        let judge =
            |pem: &str, now| attestation.judge(EnrolmentKind::Group, &by_certificate("a", pem), "a", now);
        assert!(judge(&own, now).is_ok());
        let expired = judge(&own, now + Duration::from_secs(11 * 365 * 24 * 3600)).expect_err("refused");
        assert!(expired.contains("does not lead to the authority"), "{expired}");
        let alone = make_device("a", now).expect("made").certificate;
        assert!(judge(&alone, now).is_err());
    }
}
