//! What back ends do at the provisioning service: make, change, read and delete enrolments and registrations.
//!
//! Owns: who may, the conditions of a change, and the bounds. Must not know: HTTP, how a device registers.
//!
//! Source: `provisioningserviceclient.ts` of Microsoft's Node SDK (`provisioning/service`). Choices where it is silent: an
//! enrolment that exists is only changed with its etag or with `*`, and the numbers of the errors 409 and 412.

use std::time::SystemTime;

use serde_json::Value;

use super::answer::DpsRefusal;
use super::assigning::initial_write;
use super::attestation::EnrolmentKind;
use super::book::MAX_REGISTRATIONS;
use super::desk::ProvisioningDesk;
use super::enrolment::{EnrolmentBody, EnrolmentRecord};
use super::opening::POLICY;
use super::registration::RegistrationRecord;
use super::settings::MAX_GROUPS;
use crate::credentials::SasToken;
use crate::emulator::hub::Hub;
use crate::emulator::registrar::Expected;
use crate::emulator::registry::AuthError;
use crate::emulator::state_dir::make_keys;
use crate::message::{excerpt, format_time};

/// Most changes of one bulk request, as at the real service.
const MAX_BULK: usize = 10;

/// What a bulk request does with its enrolments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum BulkMode {
    Create,
    Update,
    UpdateIfMatch,
    Delete,
}

impl ProvisioningDesk {
    /// Checks the token of a back end for one of `hosts`.
    ///
    /// # Errors
    /// [`AuthError`] gives the reason.
    pub(in crate::emulator) fn authorise<'h>(
        &self,
        token: Option<&str>,
        mut hosts: impl Iterator<Item = &'h str>,
        real: SystemTime,
    ) -> Result<(), AuthError> {
        let token = SasToken::parse(token.ok_or(AuthError::NoProof)?)?;
        if !hosts.any(|host| token.covers(host)) {
            let needed = "the host name of the emulator".to_owned();
            return Err(AuthError::WrongResource { token: excerpt(&token.resource()), needed });
        }
        if token.expiry() <= real {
            return Err(AuthError::Expired(format_time(token.expiry())));
        }
        let policy = token.policy().unwrap_or_default();
        if policy != POLICY {
            return Err(AuthError::UnknownPolicy(excerpt(policy)));
        }
        let keys = self.owner();
        let signed = token.is_signed_by(&keys.primary) || token.is_signed_by(&keys.secondary);
        if signed { Ok(()) } else { Err(AuthError::WrongSignature) }
    }

    /// Makes or changes an enrolment from the JSON of a back end.
    ///
    /// # Errors
    /// 400, 403, 404, 409 or 412; nothing has changed then.
    pub(in crate::emulator) async fn put_enrolment(
        &self,
        kind: EnrolmentKind,
        id: &str,
        body: &[u8],
        expected: Expected,
    ) -> Result<EnrolmentRecord, DpsRefusal> {
        let body = serde_json::from_slice(body)
            .map_err(|error| DpsRefusal::bad_request(format!("the body is no enrollment: {error}")))?;
        let _one_at_a_time = self.one_at_a_time().await;
        self.put(kind, id, body, expected).await
    }

    async fn put(
        &self,
        kind: EnrolmentKind,
        id: &str,
        body: EnrolmentBody,
        expected: Expected,
    ) -> Result<EnrolmentRecord, DpsRefusal> {
        let (present, count) = self.with(|book| {
            let count = book.enrolments().filter(|own| own.kind == kind).count();
            (book.enrolment(kind, id).cloned(), count)
        });
        let most = match kind {
            EnrolmentKind::Individual => MAX_REGISTRATIONS,
            EnrolmentKind::Group => MAX_GROUPS,
        };
        match (&present, expected) {
            (Some(_), Expected::Unsaid) => {
                return Err(DpsRefusal::exists(format!(
                    "the {} enrollment \"{}\" exists: send its etag to change it",
                    kind.word(),
                    excerpt(id)
                )));
            }
            (Some(present), expected) => check_etag(&expected, &present.etag())?,
            (None, Expected::Etag(_)) => return Err(no_enrolment(kind, id)),
            (None, _) if count >= most => {
                return Err(DpsRefusal::full(format!(
                    "there are {most} such enrollments, which is the most"
                )));
            }
            (None, _) => {}
        }
        let fresh = make_keys().map_err(|error| DpsRefusal::internal(error.to_string()))?;
        let id = present.as_ref().map_or(id, |present| present.id.as_str()).to_owned();
        let record = body.record(kind, &id, present.as_ref(), fresh, self.times().1);
        let record = record.map_err(DpsRefusal::bad_request)?;
        let initial = record.initial_twin.as_ref().map(|initial| Hub::check_twin(&initial_write(initial)));
        initial.transpose().map_err(|error| {
            DpsRefusal::bad_request(format!("the initialTwin cannot be that of a device: {error}"))
        })?;
        let kept = record.clone();
        let written = self.store(move |store| store.write_enrolment(kind, &kept.id, Some(&kept))).await;
        written.map_err(DpsRefusal::internal)?;
        self.with(|book| book.enrol(record.clone()));
        self.note_change();
        tracing::info!(enrolment = record.id, kind = kind.word(), "a back end wrote an enrolment");
        Ok(record)
    }

    /// Deletes an enrolment. Its registrations and devices stay.
    ///
    /// # Errors
    /// 404 or 412.
    pub(in crate::emulator) async fn delete_enrolment(
        &self,
        kind: EnrolmentKind,
        id: &str,
        expected: Expected,
    ) -> Result<(), DpsRefusal> {
        let _one_at_a_time = self.one_at_a_time().await;
        self.delete(kind, id, expected).await
    }

    async fn delete(&self, kind: EnrolmentKind, id: &str, expected: Expected) -> Result<(), DpsRefusal> {
        check_etag(&expected, &self.enrolment(kind, id)?.etag())?;
        let own = id.to_owned();
        let written = self.store(move |store| store.write_enrolment(kind, &own, None)).await;
        written.map_err(DpsRefusal::internal)?;
        self.with(|book| book.remove_enrolment(kind, id));
        self.note_change();
        tracing::info!(enrolment = id, kind = kind.word(), "a back end deleted an enrolment");
        Ok(())
    }

    /// An enrolment.
    ///
    /// # Errors
    /// 404.
    pub(in crate::emulator) fn enrolment(
        &self,
        kind: EnrolmentKind,
        id: &str,
    ) -> Result<EnrolmentRecord, DpsRefusal> {
        self.with(|book| book.enrolment(kind, id).cloned()).ok_or_else(|| no_enrolment(kind, id))
    }

    /// Changes many individual enrolments, and returns the id and the error of each that failed.
    ///
    /// # Errors
    /// 400 if the request as a whole is wrong; nothing has changed then.
    pub(in crate::emulator) async fn change_enrolments(
        &self,
        request: &Value,
    ) -> Result<Vec<(String, DpsRefusal)>, DpsRefusal> {
        let mode = match request["mode"].as_str() {
            Some("create") => BulkMode::Create,
            Some("update") => BulkMode::Update,
            Some("updateIfMatchETag" | "updateIfMatchEtag") => BulkMode::UpdateIfMatch,
            Some("delete") => BulkMode::Delete,
            _ => {
                let sentence = "the mode must be create, update, updateIfMatchETag or delete";
                return Err(DpsRefusal::bad_request(sentence.to_owned()));
            }
        };
        let sent = request["enrollments"].as_array().map_or(&[][..], Vec::as_slice);
        if sent.is_empty() || sent.len() > MAX_BULK {
            let sentence = format!("give 1 to {MAX_BULK} enrollments, not {}", sent.len());
            return Err(DpsRefusal::bad_request(sentence));
        }
        let _one_at_a_time = self.one_at_a_time().await;
        let mut failed = Vec::new();
        for enrolment in sent {
            let id = enrolment["registrationId"].as_str().unwrap_or_default().to_owned();
            if let Err(refusal) = self.change(mode, &id, enrolment).await {
                failed.push((id, refusal));
            }
        }
        Ok(failed)
    }

    async fn change(&self, mode: BulkMode, id: &str, sent: &Value) -> Result<(), DpsRefusal> {
        let kind = EnrolmentKind::Individual;
        let body: EnrolmentBody = serde_json::from_value(sent.clone())
            .map_err(|error| DpsRefusal::bad_request(format!("it is no enrollment: {error}")))?;
        let expected = match (mode, body.etag()) {
            (BulkMode::Create, _) => Expected::Unsaid,
            (BulkMode::UpdateIfMatch | BulkMode::Delete, Some(etag)) => Expected::Etag(etag.to_owned()),
            _ => Expected::Any,
        };
        if mode == BulkMode::Delete {
            return self.delete(kind, id, expected).await;
        }
        if mode != BulkMode::Create {
            self.enrolment(kind, id)?;
        }
        self.put(kind, id, body, expected).await.map(drop)
    }

    /// Enrolments of a kind after an id, in the order of their ids in small letters.
    pub(in crate::emulator) fn enrolments_after(
        &self,
        kind: EnrolmentKind,
        after: &str,
        most: usize,
    ) -> Vec<EnrolmentRecord> {
        self.with(|book| {
            let of_kind = book.enrolments().filter(|own| own.kind == kind);
            of_kind.filter(|own| own.id.to_ascii_lowercase().as_str() > after).take(most).cloned().collect()
        })
    }

    /// Registrations of a group after an id, in the same order; without a group, all.
    pub(in crate::emulator) fn registrations_after(
        &self,
        group: Option<&str>,
        after: &str,
        most: usize,
    ) -> Vec<RegistrationRecord> {
        self.with(|book| {
            let of_group = book.registrations().filter(|own| {
                group
                    .is_none_or(|group| own.group.as_ref().is_some_and(|own| own.eq_ignore_ascii_case(group)))
            });
            let rest = of_group.filter(|own| own.registration_id.to_ascii_lowercase().as_str() > after);
            rest.take(most).cloned().collect()
        })
    }

    /// How many enrolments and registrations there are.
    pub(in crate::emulator) fn counts(&self) -> (usize, usize) {
        self.with(|book| (book.enrolments().count(), book.registrations().count()))
    }

    /// A registration.
    ///
    /// # Errors
    /// 404.
    pub(in crate::emulator) fn registration(&self, id: &str) -> Result<RegistrationRecord, DpsRefusal> {
        let missing = || DpsRefusal::not_found(format!("\"{}\" has not registered", excerpt(id)));
        self.with(|book| book.registration(id).cloned()).ok_or_else(missing)
    }

    /// Forgets a registration. Its device stays at its hub.
    ///
    /// # Errors
    /// 404 or 412.
    pub(in crate::emulator) async fn delete_registration(
        &self,
        id: &str,
        expected: Expected,
    ) -> Result<(), DpsRefusal> {
        let _one_at_a_time = self.one_at_a_time().await;
        check_etag(&expected, &self.registration(id)?.etag())?;
        let own = id.to_owned();
        self.store(move |store| store.write_registration(&own, None)).await.map_err(DpsRefusal::internal)?;
        self.with(|book| book.remove_registration(id));
        self.note_change();
        tracing::info!(registration_id = id, "a back end deleted a registration");
        Ok(())
    }
}

fn check_etag(expected: &Expected, present: &str) -> Result<(), DpsRefusal> {
    match expected {
        Expected::Etag(etag) | Expected::EtagOrMissing(etag) if etag != present => Err(DpsRefusal::changed()),
        _ => Ok(()),
    }
}

fn no_enrolment(kind: EnrolmentKind, id: &str) -> DpsRefusal {
    DpsRefusal::not_found(format!("there is no {} enrollment \"{}\"", kind.word(), excerpt(id)))
}
