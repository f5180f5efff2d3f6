//! What is done at the hubs for a registration.
//!
//! Owns: the order of the steps, and that a registration that was interrupted is finished. Must not know: protocols,
//! who may register.
//!
//! First the file of the service notes what is to be done. Then the device is made at its hub, gets its twin, and both
//! are on disk. Then it is deleted at the hub that it leaves, and at last the registration is written, which ends the
//! note. Each step may be done again. So after a crash or a full disk the next start, or the next registration of the
//! device, does what is left.

use std::time::SystemTime;

use serde_json::{Map, Value};

use super::answer::DpsRefusal;
use super::desk::ProvisioningDesk;
use super::issuing;
use super::registration::{Allotment, RegistrationRecord, Substatus};
use super::request::RegisterRequest;
use crate::emulator::hub::{TwinError, TwinWrite};
use crate::emulator::registrar::{Expected, Registrar, RegistrarError, Wanted, WantedCredential};
use crate::emulator::registry::DeviceCredential;

impl ProvisioningDesk {
    /// Does at the hubs what was decided, and records it. Returns what the answer has beside the registration. `real`
    /// is the real time.
    ///
    /// # Errors
    /// 409 if the device is one of the command line, 400 for a wrong certificate request, and those of
    /// [`Self::carry_out`].
    pub(super) async fn assign(
        &self,
        mut allotment: Allotment,
        request: RegisterRequest,
        real: SystemTime,
    ) -> Result<Vec<(&'static str, Value)>, DpsRefusal> {
        let registrar = self.registrar(&allotment.record)?;
        let (device_id, registration_id) =
            (allotment.record.device_id.clone(), allotment.record.registration_id.clone());
        let present = registrar.hub().with(|hub, _| hub.identity(&device_id));
        let is_registered = self.with(|book| {
            let before = book.registration(&registration_id);
            before.is_some_and(|own| {
                own.device_id == device_id && own.hub.eq_ignore_ascii_case(&allotment.record.hub)
            })
        });
        if present.is_some() && !is_registered && registrar.is_of_command_line(&device_id) {
            let reason = format!(
                "the device \"{device_id}\" of {} is one of the command line (--device): give the enrolment another \
                 deviceId, or start the emulator without that device",
                allotment.record.hub
            );
            return Err(DpsRefusal::exists(reason));
        }
        allotment.is_new = present.is_none();
        let left = allotment.leaves.as_ref().and_then(|(hub, id)| Some((self.hub_named(hub)?, id)));
        let left = left.and_then(|(left, id)| left.hub().with(|hub, _| hub.identity(id)));
        if left.is_none()
            && allotment.leaves.is_some()
            && allotment.record.substatus == Substatus::DeviceDataMigrated
        {
            tracing::warn!(
                registration_id,
                "the twin is not migrated: the hub that the device leaves does not have it any more"
            );
            allotment.record.substatus = Substatus::DeviceDataReset;
        }
        let issued =
            request.csr.map(|csr| issuing::issued_chain(&mut allotment, &csr, registrar.hub(), real));
        let chain = issued.transpose().map_err(DpsRefusal::bad_request)?.flatten();
        let has_certificate =
            [present, left].into_iter().flatten().any(|own| own.device.credential.is_issued());
        if chain.is_none() && has_certificate {
            // A client that asks for no new certificate may still use the one that it has.
            allotment.credential = DeviceCredential::Issued(Box::new(allotment.credential));
        }
        let noted = allotment.clone();
        self.store(move |store| store.write_unfinished(&noted)).await.map_err(DpsRefusal::internal)?;
        self.with(|book| book.note_begun(allotment.clone()));
        self.carry_out(&allotment).await?;
        let payload = request.payload.filter(|_| allotment.echoes).map(|payload| ("payload", payload));
        Ok(payload.into_iter().chain(chain.map(|chain| ("issuedCertificateChain", chain.into()))).collect())
    }

    /// Does what is left to be done of a registration that was begun.
    ///
    /// # Errors
    /// 403 if the hub has no room for the device, in which case nothing has changed, and 500. After 500 the rest is done
    /// at the next registration or at the next start.
    pub(super) async fn carry_out(&self, allotment: &Allotment) -> Result<(), DpsRefusal> {
        let Allotment { record, leaves, .. } = allotment;
        let registrar = self.registrar(record)?;
        if let Err(error) = make(registrar, allotment).await {
            // The hubs have not changed, so nothing is left to be done.
            self.give_up(&record.registration_id).await?;
            return Err(match error {
                RegistrarError::TooMany => DpsRefusal::full(error.to_string()),
                error => DpsRefusal::internal(error.to_string()),
            });
        }
        let migrates = leaves.is_some() && record.substatus == Substatus::DeviceDataMigrated;
        // If the old device is gone, its twin was migrated before.
        let old = leaves.as_ref().filter(|_| migrates).and_then(|(hub, device_id)| {
            let left = self.hub_named(hub)?.hub();
            left.with(|hub, _| Some((hub.twin_tags(device_id), hub.twin_properties(device_id)?)))
        });
        let initial = allotment.initial_twin.as_ref().filter(|_| allotment.is_new && !migrates);
        if old.is_some() || initial.is_some() {
            write_twin(registrar, &record.device_id, old, initial).map_err(|error| {
                DpsRefusal::internal(format!(
                    "the twin of \"{}\" cannot be written at {}: {error}",
                    record.device_id, record.hub
                ))
            })?;
            // The old device goes next, and its twin with it.
            if !registrar.save().await {
                let hub = &record.hub;
                return Err(DpsRefusal::internal(format!("the twin cannot be saved in the files of {hub}")));
            }
        }
        if let Some((hub, device_id)) = leaves
            && let Some(left) = self.hub_named(hub)
            // It may be another name of the same hub.
            && !(std::ptr::eq(left, registrar) && *device_id == record.device_id)
        {
            match left.delete(device_id.clone(), Expected::Any).await {
                Ok(()) | Err(RegistrarError::Missing(_)) => {}
                Err(error) => return Err(DpsRefusal::internal(error.to_string())),
            }
        }
        let (id, kept) = (record.registration_id.clone(), record.clone());
        let written = self.store(move |store| store.write_registration(&id, Some(&kept))).await;
        written.map_err(DpsRefusal::internal)?;
        tracing::info!(
            registration_id = record.registration_id,
            device_id = record.device_id,
            hub = record.hub,
            group = record.group,
            left = leaves.as_ref().map(|(hub, _)| hub),
            "a device registered at the provisioning service"
        );
        self.with(|book| book.assigned(record.clone()));
        self.note_change();
        Ok(())
    }

    /// Finishes at the start what an earlier emulator had begun. What fails is logged, and tried again when the device
    /// registers.
    pub(super) async fn finish_begun(&self) {
        for allotment in self.with(|book| book.all_begun()) {
            let RegistrationRecord { registration_id, hub, .. } = &allotment.record;
            match self.carry_out(&allotment).await {
                Ok(()) => tracing::info!(registration_id, hub, "finished a registration of an earlier start"),
                Err(refusal) => tracing::error!(
                    registration_id,
                    hub,
                    "a registration of an earlier start cannot be finished: {}",
                    refusal.reason
                ),
            }
        }
    }

    /// Forgets what was begun for a registration.
    async fn give_up(&self, registration_id: &str) -> Result<(), DpsRefusal> {
        let id = registration_id.to_owned();
        self.store(move |store| store.end_unfinished(&id)).await.map_err(DpsRefusal::internal)?;
        self.with(|book| book.give_up(registration_id));
        Ok(())
    }

    fn registrar(&self, record: &RegistrationRecord) -> Result<&Registrar, DpsRefusal> {
        let hub = &record.hub;
        self.hub_named(hub)
            .ok_or_else(|| DpsRefusal::internal(format!("there is no hub \"{hub}\": start it with --hub")))
    }
}

/// Makes the device, or gives it its credential if that is another one.
async fn make(registrar: &Registrar, allotment: &Allotment) -> Result<(), RegistrarError> {
    let Allotment { record, credential, is_edge, .. } = allotment;
    let present = registrar.hub().with(|hub, _| hub.identity(&record.device_id));
    let (enabled, status_reason) = match present {
        // Nothing is reset: neither what a back end has changed, nor queue and twin.
        Some(present) if present.device.credential == *credential => return Ok(()),
        Some(present) => (present.record.enabled, present.record.status_reason),
        None => (true, None),
    };
    let wanted = Wanted {
        id: record.device_id.clone(),
        credential: WantedCredential::Given(credential.clone()),
        enabled,
        status_reason,
        is_edge: is_edge.then_some(true),
        device_scope: None,
        parent_scope: None,
        managed_by: None,
    };
    registrar.put(wanted, Expected::AnyOrMissing).await.map(drop)
}

/// Writes the twin that the device had at another hub, or the one of its enrolment.
fn write_twin(
    registrar: &Registrar,
    device_id: &str,
    old: Option<(Value, Value)>,
    initial: Option<&Value>,
) -> Result<(), TwinError> {
    let (write, reported) = match (old, initial) {
        (Some((tags, properties)), _) => {
            let (tags, desired) = (own_fields(&tags), own_fields(&properties["desired"]));
            (TwinWrite::Replace { tags, desired }, own_fields(&properties["reported"]))
        }
        (None, Some(initial)) => (initial_write(initial), Map::new()),
        (None, None) => return Ok(()),
    };
    registrar.hub().with(|hub, now| {
        hub.write_twin(device_id, write, None, now)?;
        if reported.is_empty() {
            return Ok(());
        }
        hub.patch_reported(device_id, &reported.into(), now).map(drop)
    })
}

/// What the `initialTwin` of an enrolment writes.
pub(super) fn initial_write(initial: &Value) -> TwinWrite {
    let (tags, desired) = (own_fields(&initial["tags"]), own_fields(&initial["properties"]["desired"]));
    TwinWrite::Replace { tags, desired }
}

/// The fields that are no metadata of the hub.
fn own_fields(section: &Value) -> Map<String, Value> {
    let fields = section.as_object().into_iter().flatten();
    fields
        .filter(|(name, _)| !name.starts_with('$'))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}
