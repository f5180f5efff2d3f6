//! The renewal of the device's certificate: the parts of the agent that it needs, put together.
//!
//! Owns: what follows from a sign-in, a refusal, an answer of the hub and a change of the files, for the certificate.
//! Must not know: when to renew (`certificates.rs`), files, topics.
//!
//! A new pair is on disk before the session signs in with it, and becomes the current one after that has worked. What
//! is said there in order is said in `certificate/pairs.rs`.

use tokio::time::Instant;

use crate::certificate::{
    CertificateFacts, CertificateKey, IssuedPairs, NextPair, RenewalAnswer, renewal_body,
};
use crate::config::Config;
use crate::credentials::DeviceAuth;
use crate::message::format_time;
use crate::session::{CertificateAnswer, PublishError};

use super::assigning::{self, Assigning, EnrolmentStep, Reassigned};
use super::certificates::{CertificateWish, Issuer, NextState};
use super::desk::Desk;
use super::sessions::Role;

/// The configuration is another one, or the agent has started.
pub(super) fn configured(desk: &mut Desk) {
    let certificate = desk.sessions.certificate();
    let has_files = pair_of_another(desk.rules.config()).is_some();
    desk.certificates.configured(certificate, has_files);
}

/// Does what is due.
pub(super) fn look(desk: &mut Desk, assigning: &mut Assigning) {
    let (now, time) = (Instant::now(), desk.now());
    let config = desk.rules.config();
    let is_issued = pairs(config).is_some_and(|pairs| pairs.file().is_some());
    let is_connected = desk.watch.board.connection(Role::Device).is_some_and(|view| view.is_connected());
    let issuer = match (is_connected, is_issued) {
        (false, _) => Issuer::Unavailable,
        (true, false) => Issuer::First,
        (true, true) if desk.certificates.hub_issues() => Issuer::Hub,
        (true, true) => Issuer::Service,
    };
    let next = match pairs(config).map(|pairs| &pairs.next) {
        None => NextState::Unwanted,
        Some(NextPair::Absent) => NextState::Absent,
        Some(NextPair::Requested(_)) => NextState::Asked,
        Some(NextPair::Issued(facts)) => NextState::Issued(*facts),
    };
    match desk.certificates.look(now, time, next, issuer) {
        None => {}
        Some(CertificateWish::MakeKey { refused }) => {
            if refused.is_some() {
                tracing::warn!("the certificate that the hub refused gives way to a new key");
            }
            assigning.want(EnrolmentStep::NewKey { refused });
        }
        Some(CertificateWish::TakeUp) => assigning.want(EnrolmentStep::TakeUp),
        Some(CertificateWish::LookAtFiles) => assigning.want(EnrolmentStep::LookAtFiles),
        Some(CertificateWish::AskService) => desk.sessions.register_again(),
        Some(CertificateWish::AskHub { replaces }) => ask_hub(desk, replaces),
    }
    if let Some(facts) = desk.certificates.warning(now, time, is_issued) {
        let until = format_time(facts.not_after);
        if facts.not_after <= time {
            tracing::error!(until, "the device's certificate is over: the hub will refuse it");
        } else {
            tracing::warn!(
                until,
                "less than a fifth of the life of the device's certificate is left: renew it"
            );
        }
    }
}

fn ask_hub(desk: &mut Desk, replaces: bool) {
    let config = desk.rules.config();
    let Some((key, device)) = key(config).zip(config.identities.device()) else { return };
    match key.request(&device.device_id) {
        Ok(csr) => {
            tracing::info!(request = key.request_id(), replaces, "asking the hub for the next certificate");
            let body = renewal_body(&device.device_id, &csr, replaces);
            desk.sessions.ask_for_certificate(key.request_id(), body);
        }
        Err(error) => tracing::error!(%error, "the next certificate cannot be asked for"),
    }
}

/// The device has signed in with this certificate. `hub_issues`: whether the hub takes requests for the next one.
pub(super) fn signed_in(desk: &mut Desk, certificate: Option<CertificateFacts>, hub_issues: bool) {
    // The next look takes the pair up, or makes another key in its place, as often as the disk needs.
    desk.certificates.signed_in(certificate, hub_issues);
    let next = pairs(desk.rules.config()).map(|pairs| &pairs.next);
    if let (Some(NextPair::Issued(facts)), Some(certificate)) = (next, certificate)
        && *facts == certificate
    {
        let until = format_time(certificate.not_after);
        tracing::info!(
            until,
            "signed in with the certificate that was issued: it takes the place of the earlier one"
        );
    }
}

/// The hub has refused a certificate that has never signed in.
pub(super) fn refused(desk: &mut Desk, certificate: CertificateFacts, goes_back: bool, reason: &str) {
    let what_next = match goes_back {
        true => "the earlier one is used, from memory: after a restart it would be the refused one",
        false => "there is no earlier one",
    };
    match pairs(desk.rules.config()).map(|pairs| &pairs.next) {
        Some(NextPair::Issued(facts)) if *facts == certificate => {
            if goes_back {
                tracing::warn!(
                    reason,
                    "no sign-in with the certificate that was issued: trying the earlier one"
                );
                return desk.certificates.suspect(certificate);
            }
            tracing::error!(
                reason,
                "the hub refused the certificate that was issued: another one is asked for"
            );
            desk.certificates.refused(certificate);
        }
        _ if pair_of_another(desk.rules.config()).is_some() => {
            tracing::error!(reason, "the hub refused the certificate in the files: {what_next}");
        }
        _ => {}
    }
}

/// The hub has answered a request for a certificate.
pub(super) fn answered(desk: &mut Desk, assigning: &mut Assigning, answer: &CertificateAnswer) {
    let CertificateAnswer { request, status, body } = answer;
    let Some(own) = key(desk.rules.config()).map(CertificateKey::request_id).filter(|own| own == request)
    else {
        return tracing::debug!(request, status, "ignored an answer to another request for a certificate");
    };
    match RenewalAnswer::read(*status, body) {
        RenewalAnswer::Accepted => {
            tracing::info!(request, "the hub issues the next certificate");
            desk.certificates.accepted();
        }
        RenewalAnswer::Issued(chain) => assigning.want(EnrolmentStep::Issued(chain)),
        // The answer to an earlier attempt was lost, and this device's own request is still under way.
        RenewalAnswer::Refused(refusal) if refusal.under_way.as_ref() == Some(&own) => {
            desk.certificates.accepted()
        }
        RenewalAnswer::Refused(refusal) => {
            tracing::warn!(reason = %refusal, "there is no new certificate yet");
            desk.certificates.hub_failed(refusal.under_way.is_some());
        }
    }
}

/// The hub has a request for a certificate, or does not.
pub(super) fn published(desk: &mut Desk, result: &Result<(), PublishError>) {
    if let Err(error) = result {
        tracing::warn!(%error, "the hub was not asked for a certificate");
        desk.certificates.failed(false);
    }
}

/// A step is done.
pub(super) fn done(desk: &mut Desk, reassigned: Reassigned) {
    match &reassigned.step {
        EnrolmentStep::LookAtFiles => return looked(desk, reassigned),
        EnrolmentStep::Again => return assigning::tried_again(desk, reassigned),
        EnrolmentStep::Issued(_) if reassigned.trouble.is_some() => desk.certificates.hub_failed(false),
        _ => {}
    }
    assigning::moved(desk, reassigned);
}

/// The files of the pair were read.
fn looked(desk: &mut Desk, reassigned: Reassigned) {
    if let Some(reason) = reassigned.trouble {
        tracing::warn!("{reason}");
    }
    match reassigned.terms {
        Some(Ok(terms)) => {
            let changed = desk.sessions.change(terms);
            desk.certificates.fit(desk.sessions.certificate());
            if changed {
                tracing::info!("the files of the certificate have changed: signing in with the new pair");
            }
        }
        // The files are again as they were.
        None => desk.certificates.fit(desk.sessions.certificate()),
        Some(Err(error)) if desk.certificates.unfit(Instant::now()) => {
            tracing::warn!(%error, "the certificate's files have changed and cannot be used: the earlier pair stays");
        }
        Some(Err(_)) => {}
    }
}

/// The files of a pair that another program renews, if the device signs in with one.
fn pair_of_another(config: &Config) -> Option<&DeviceAuth> {
    let auth = &config.identities.device()?.auth;
    let issued = pairs(config).and_then(IssuedPairs::file);
    match auth {
        DeviceAuth::Certificate { certificate, .. } if issued != Some(certificate) => Some(auth),
        _ => None,
    }
}

fn pairs(config: &Config) -> Option<&IssuedPairs> {
    config.provisioning.as_ref()?.pairs.as_ref()
}

fn key(config: &Config) -> Option<&CertificateKey> {
    pairs(config)?.key()
}
