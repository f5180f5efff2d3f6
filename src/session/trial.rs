//! Which certificate a session signs in with: that of its terms, or an earlier one if the hub refuses it.
//!
//! Owns: the way back. Pure. Must not know: files, connections.
//!
//! A certificate that has never signed in is on trial. If the hub refuses it, the session goes back to the one that has
//! signed in before: in this process, or, after a restart, as the terms say. It keeps that one in memory, because the
//! files of the present one may have taken its place. If the hub refuses that one, too, both are tried in turn.

use std::sync::Arc;

use super::failure::{Failure, Fault};
use super::terms::{LoadedPair, Terms};
use crate::certificate::CertificateFacts;
use crate::credentials::DeviceIdentity;

/// How often in a row a peer may hang up before it answers the sign-in, until that counts as a refusal. Once may be the
/// network.
const MOST_CLOSED: u32 = 3;

/// The certificate on trial.
#[derive(Default)]
pub(super) struct Trial {
    /// What the other fields are about.
    terms: Option<Arc<Terms>>,
    goes_back: bool,
    told: bool,
    closed: u32,
    /// The pair of the last sign-in that worked, and whose it was.
    proven: Option<(DeviceIdentity, LoadedPair)>,
}

/// The hub refused what the device signed in with, which was a certificate.
pub(super) struct TrialRefusal {
    /// That of the terms.
    pub(super) certificate: CertificateFacts,
    /// Whether there is another one.
    pub(super) goes_back: bool,
    /// Whether the certificate of the terms is on trial, and this is its first refusal: the other one is tried at once.
    pub(super) is_news: bool,
}

impl Trial {
    /// What to sign in with now.
    pub(super) fn pair(&mut self, terms: &Arc<Terms>) -> LoadedPair {
        if self.terms.as_ref().is_none_or(|before| !Arc::ptr_eq(before, terms)) {
            let proven = self.proven.take();
            *self = Self { terms: Some(Arc::clone(terms)), proven, ..Self::default() };
        }
        let earlier = self.earlier(terms).filter(|_| self.goes_back);
        earlier.unwrap_or(terms.pair()).clone()
    }

    /// The hub has accepted `pair`.
    pub(super) fn signed_in(&mut self, terms: &Terms, pair: LoadedPair) {
        self.proven = Some((terms.settings.identity.clone(), pair));
        self.closed = 0;
    }

    /// A sign-in has failed. Tells whether the hub has refused the certificate.
    pub(super) fn failed(&mut self, terms: &Terms, failure: &Failure) -> Option<TrialRefusal> {
        let hung_up = matches!(failure.fault, Fault::ClosedBeforeSignIn);
        self.closed = if hung_up { self.closed + 1 } else { 0 };
        if !failure.is_of_certificate() && self.closed < MOST_CLOSED {
            return None;
        }
        let certificate = terms.certificate()?;
        let is_proven =
            self.proven.as_ref().is_some_and(|(_, pair)| pair.fingerprint == terms.pair().fingerprint);
        let goes_back = self.earlier(terms).is_some();
        (self.goes_back, self.closed) = (goes_back && !self.goes_back, 0);
        let is_news = !is_proven && !std::mem::replace(&mut self.told, true);
        Some(TrialRefusal { certificate, goes_back, is_news })
    }

    fn earlier<'t>(&'t self, terms: &'t Terms) -> Option<&'t LoadedPair> {
        let own = terms.pair();
        own.certificate?;
        let who = |identity: &DeviceIdentity| (identity.hub.clone(), identity.client_id());
        let proven = self.proven.as_ref().filter(|(identity, pair)| {
            who(identity) == who(&terms.settings.identity)
                && pair.certificate.is_some()
                && pair.fingerprint != own.fingerprint
        });
        proven.map(|(_, pair)| pair).or(terms.earlier())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::credentials::{DeviceAuth, HostPort, Route, Transport};
    use crate::session::failure::Who;
    use crate::session::terms::{HubSource, Issuing, Settings};
    use crate::tls::ClientCertificate;

    fn pair(dir: &Path, name: &str) -> ClientCertificate {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        let file = dir.join(name);
        std::fs::write(&file, made.cert.pem() + &made.signing_key.serialize_pem()).expect("written");
        ClientCertificate { certificate: file.clone(), private_key: file }
    }

    fn terms(pair: ClientCertificate, earlier: Option<ClientCertificate>) -> Arc<Terms> {
        let auth = DeviceAuth::Certificate { certificate: pair.certificate, private_key: pair.private_key };
        let hub = HostPort { name: "hub".into(), port: None };
        let identity = DeviceIdentity { hub, device_id: "d".into(), module_id: None, gateway: None, auth };
        let settings = Settings {
            identity,
            hub_source: HubSource::Configured,
            transport: Transport::Mqtt,
            ca_file: None,
            token_lifetime: Duration::from_secs(60),
            route: Route::default(),
            clock: SystemTime::now,
            twin: false,
            methods: false,
            desired: false,
            alone: true,
            issuing: Issuing { earlier, ..Issuing::default() },
        };
        Arc::new(Terms::read(settings).expect("terms"))
    }

    fn failure(fault: Fault) -> Failure {
        Failure { peer: "hub:8883".into(), who: Who { kind: "device", id: "d".into() }, fault }
    }

    fn refusal() -> Failure {
        failure(Fault::NotAuthorised { now: SystemTime::UNIX_EPOCH })
    }

    #[test]
    fn a_refused_pair_gives_way_to_the_one_in_memory_although_its_file_has_gone() {
        let dir = tempfile::tempdir().expect("a directory");
        let mut trial = Trial::default();
        let first = terms(pair(dir.path(), "pair"), None);
        let old = trial.pair(&first);
        trial.signed_in(&first, old.clone());
        let news = |trial: &mut Trial, terms| trial.failed(terms, &refusal()).map(|refused| refused.is_news);
        assert_eq!(news(&mut trial, &first), Some(false), "it has signed in before: that is no trial");

        let second = terms(pair(dir.path(), "pair"), None);
        assert!(second.differ(&first));
        assert_eq!(trial.pair(&second).fingerprint, second.pair().fingerprint);
        let told = trial.failed(&second, &refusal()).expect("it was on trial");
        assert!(told.is_news && told.goes_back && Some(told.certificate) == second.certificate());
        assert_eq!(trial.pair(&second).fingerprint, old.fingerprint);
        // If the hub refuses both, they take turns, and the log has it once.
        assert_eq!(news(&mut trial, &second), Some(false));
        assert_eq!(trial.pair(&second).fingerprint, second.pair().fingerprint);
        assert_eq!(news(&mut trial, &second), Some(false));
        let signed_in = trial.pair(&second);
        assert_eq!(signed_in.fingerprint, old.fingerprint);
        trial.signed_in(&second, signed_in);
        assert_eq!(trial.pair(&second).fingerprint, old.fingerprint, "it stays with what works");
    }

    #[test]
    fn after_a_restart_the_terms_name_the_way_back() {
        let dir = tempfile::tempdir().expect("a directory");
        let (current, next) = (pair(dir.path(), "current"), pair(dir.path(), "next"));
        let mut trial = Trial::default();
        let both = terms(next, Some(current.clone()));
        assert_eq!(trial.pair(&both).fingerprint, both.pair().fingerprint);
        assert!(trial.failed(&both, &refusal()).is_some_and(|told| told.goes_back));
        assert_eq!(trial.pair(&both).fingerprint, terms(current, None).pair().fingerprint);
    }

    #[test]
    fn the_network_is_no_refusal_but_a_peer_that_keeps_hanging_up_is() {
        let dir = tempfile::tempdir().expect("a directory");
        let both = terms(pair(dir.path(), "next"), Some(pair(dir.path(), "current")));
        let mut trial = Trial::default();
        trial.pair(&both);
        for fault in [Fault::Refused, Fault::Silent, Fault::ClosedBeforeSignIn, Fault::Unavailable] {
            assert!(trial.failed(&both, &failure(fault)).is_none());
        }
        let hang_up = || failure(Fault::ClosedBeforeSignIn);
        assert!(trial.failed(&both, &hang_up()).is_none());
        assert!(trial.failed(&both, &hang_up()).is_none());
        assert!(trial.failed(&both, &hang_up()).is_some());
        let alert = Fault::CertificateRefused { sentence: "no".into() };
        let alone = terms(pair(dir.path(), "alone"), None);
        trial.pair(&alone);
        let told = trial.failed(&alone, &failure(alert)).expect("told");
        assert!(!told.goes_back);
        assert_eq!(trial.pair(&alone).fingerprint, alone.pair().fingerprint);
    }
}
