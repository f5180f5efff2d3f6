//! Where clients register: the book, its file and the hubs together.
//!
//! Owns: the order of what is done for a registration, and that it is done for one client at a time. Must not know:
//! protocols, how a proof is judged.
//!
//! The device is made at its hub first, then the registration is written, then the client is told. A crash in between
//! leaves a device that the next registration finds as it should be.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use serde_json::{Map, Value};
use uuid::Uuid;

use super::answer::{DpsAnswer, DpsRefusal, Ending};
use super::book::{Allotment, Decision, ProvisioningBook, Substatus};
use super::claim::RegistrationClaim;
use super::faults::{DpsFault, DpsFaultError, DpsFaultName, DpsFaultOrder};
use super::issuing;
use super::request::RegisterRequest;
use super::store::ProvisioningStore;
use crate::emulator::hub::TwinWrite;
use crate::emulator::hubs::Hubs;
use crate::emulator::registrar::{Expected, Registrar, RegistrarError, Wanted, WantedCredential};
use crate::emulator::registry::{Device, KeyPair};
use crate::emulator::state_dir::StateDirError;

/// The provisioning service. All clones are one service.
#[derive(Clone)]
pub(in crate::emulator) struct ProvisioningDesk(Arc<DeskState>);

struct DeskState {
    id_scope: String,
    book: Mutex<ProvisioningBook>,
    store: Mutex<ProvisioningStore>,
    hubs: Hubs,
    /// The keys of back ends.
    owner: KeyPair,
    /// Two registrations of one device at a time could make it at two hubs.
    one_at_a_time: tokio::sync::Mutex<()>,
}

impl ProvisioningDesk {
    /// A service over this book and its file, for these hubs.
    pub(super) fn new(book: ProvisioningBook, store: ProvisioningStore, owner: KeyPair, hubs: Hubs) -> Self {
        Self(Arc::new(DeskState {
            id_scope: book.id_scope().to_owned(),
            book: Mutex::new(book),
            store: Mutex::new(store),
            hubs,
            owner,
            one_at_a_time: tokio::sync::Mutex::default(),
        }))
    }

    /// The ID scope.
    pub(in crate::emulator) fn id_scope(&self) -> &str {
        &self.0.id_scope
    }

    /// The keys of back ends.
    pub(super) fn owner(&self) -> &KeyPair {
        &self.0.owner
    }

    /// Registers a device. The answer is 202; what became of it, [`Self::poll`] tells.
    ///
    /// # Cancel safety
    /// If dropped early, the device may have been made at its hub already. The next registration goes on from there.
    pub(in crate::emulator) async fn register(&self, claim: &RegistrationClaim, body: &[u8]) -> DpsAnswer {
        self.wait_for_fault(claim).await;
        let registration_id = claim.registration_id.as_str();
        match self.try_register(claim, body).await {
            Ok(answer) => answer,
            Err(refusal) => self.refuse(registration_id, "a registration", &refusal),
        }
    }

    /// Answers a question after a registration. `port` is that of the hub if a client cannot know it.
    pub(in crate::emulator) async fn poll(
        &self,
        claim: &RegistrationClaim,
        operation_id: &str,
        port: Option<u16>,
    ) -> DpsAnswer {
        self.wait_for_fault(claim).await;
        let (real, now) = self.times();
        match self.with(|book| book.poll(claim, operation_id, port, real, now)) {
            Ok(answer) => answer,
            Err(refusal) => self.refuse(&claim.registration_id, "a question after a registration", &refusal),
        }
    }

    /// What is registered of a device that asks for itself.
    pub(in crate::emulator) async fn look_up(
        &self,
        claim: &RegistrationClaim,
        port: Option<u16>,
    ) -> DpsAnswer {
        self.wait_for_fault(claim).await;
        let (real, _) = self.times();
        match self.with(|book| book.look_up(claim, port, real)) {
            Ok(answer) => answer,
            Err(refusal) => self.refuse(&claim.registration_id, "a look at a registration", &refusal),
        }
    }

    /// Whether the fault dps-html replaces the next answer.
    pub(in crate::emulator) fn answers_html(&self, registration_id: &str) -> bool {
        self.with(|book| book.faults.use_up(registration_id, DpsFaultName::Html))
    }

    /// The real time, and that of the emulator's clock.
    pub(in crate::emulator) fn times(&self) -> (SystemTime, SystemTime) {
        let hub = self.0.hubs.main().hub();
        (hub.clock().0, hub.now())
    }

    /// Waits until no other task changes enrolments or registrations, and keeps them away.
    pub(super) async fn one_at_a_time(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.0.one_at_a_time.lock().await
    }

    /// Sets a fault.
    ///
    /// # Errors
    /// [`DpsFaultError::TooMany`].
    pub(in crate::emulator) fn set_fault(&self, order: DpsFaultOrder) -> Result<(), DpsFaultError> {
        self.with(|book| book.faults.set(order))?;
        self.note_change();
        Ok(())
    }

    /// Ends faults: this one or all, of this registration or of all.
    pub(in crate::emulator) fn clear_faults(
        &self,
        registration_id: Option<&str>,
        name: Option<DpsFaultName>,
    ) {
        self.with(|book| book.faults.clear(registration_id, name));
        self.note_change();
    }

    /// The faults that are set, and whom they are for.
    pub(in crate::emulator) fn faults(&self) -> Vec<(Option<String>, DpsFault)> {
        self.with(|book| book.faults.iter().map(|(id, fault)| (id.map(str::to_owned), fault)).collect())
    }

    /// Wakes those who show the service.
    pub(super) fn note_change(&self) {
        for registrar in self.0.hubs.iter() {
            registrar.hub().with(|hub, _| hub.note_change());
        }
    }

    /// Runs `act` on the book. The closure must be short.
    pub(super) fn with<T>(&self, act: impl FnOnce(&mut ProvisioningBook) -> T) -> T {
        // A panic elsewhere under this lock leaves the book usable, because every operation is complete within one call.
        act(&mut self.0.book.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Runs `act` on the file, on a blocking thread because it waits for the disk.
    ///
    /// # Errors
    /// The error of `act` in words, also for the log.
    pub(super) async fn store(
        &self,
        act: impl FnOnce(&mut ProvisioningStore) -> Result<(), StateDirError> + Send + 'static,
    ) -> Result<(), String> {
        let own = self.clone();
        let written = tokio::task::spawn_blocking(move || {
            act(&mut own.0.store.lock().unwrap_or_else(PoisonError::into_inner))
        });
        let failed = match written.await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the emulator is stopping".to_owned(),
        };
        tracing::error!("the provisioning service cannot save a change: {failed}");
        Err(failed)
    }

    async fn try_register(&self, claim: &RegistrationClaim, body: &[u8]) -> Result<DpsAnswer, DpsRefusal> {
        let request = RegisterRequest::read(&claim.registration_id, body)?;
        let _one_at_a_time = self.one_at_a_time().await;
        let (real, now) = self.times();
        let names: Vec<&str> = self.0.hubs.names().collect();
        let decision = self.with(|book| book.decide(claim, &names, real, now))?;
        let (ending, extra) = match decision {
            Decision::End(ending) => {
                tracing::warn!(
                    registration_id = claim.registration_id,
                    "a registration ends as {}: {}",
                    ending.word(),
                    match &ending {
                        Ending::Failed(code, said) => format!("{code}, {said}"),
                        _ => "its enrolment is disabled".to_owned(),
                    }
                );
                (ending, Vec::new())
            }
            Decision::Assign(allotment) => (Ending::Assigned, self.assign(*allotment, request, real).await?),
        };
        Ok(self.with(|book| book.begin(claim, ending, extra, Uuid::new_v4())))
    }

    /// Does at the hubs what was decided, and records it. Returns what the answer has beside the registration.
    async fn assign(
        &self,
        mut allotment: Allotment,
        request: RegisterRequest,
        real: SystemTime,
    ) -> Result<Vec<(&'static str, Value)>, DpsRefusal> {
        let hub = self.0.hubs.main().hub();
        let issued = request.csr.map(|csr| issuing::issued_chain(&mut allotment, &csr, hub, real));
        let chain = issued.transpose().map_err(DpsRefusal::bad_request)?.flatten();
        let Allotment { record, credential, is_edge, initial_twin, leaves, echoes } = allotment;
        let missing = || DpsRefusal::internal(format!("there is no hub \"{}\"", record.hub));
        let registrar = self.0.hubs.named(&record.hub).ok_or_else(missing)?;
        let device = Device { id: record.device_id.clone(), credential };
        let is_new = make(registrar, device, is_edge).await.map_err(|error| match error {
            RegistrarError::TooMany => DpsRefusal::full(error.to_string()),
            error => DpsRefusal::internal(error.to_string()),
        })?;
        if is_new {
            let migrates = record.substatus == Substatus::DeviceDataMigrated;
            let old = leaves.as_ref().filter(|_| migrates).and_then(|(hub, device_id)| {
                let hub = self.0.hubs.named(hub)?.hub();
                hub.with(|hub, _| Some((hub.twin_tags(device_id), hub.twin_properties(device_id)?)))
            });
            write_twin(registrar, &record.device_id, old, initial_twin.as_ref());
        }
        if let Some((hub, device_id)) = &leaves
            && let Some(left) = self.0.hubs.named(hub)
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
            left = leaves.map(|(hub, _)| hub),
            "a device registered at the provisioning service"
        );
        self.with(|book| book.assigned(record));
        self.note_change();
        let payload = request.payload.filter(|_| echoes).map(|payload| ("payload", payload));
        Ok(payload.into_iter().chain(chain.map(|chain| ("issuedCertificateChain", chain.into()))).collect())
    }

    async fn wait_for_fault(&self, claim: &RegistrationClaim) {
        let slow = self.with(|book| book.faults.get(&claim.registration_id, DpsFaultName::Slow));
        if let Some(DpsFault::Slow(time)) = slow {
            tokio::time::sleep(time).await;
        }
    }

    fn refuse(&self, registration_id: &str, what: &str, refusal: &DpsRefusal) -> DpsAnswer {
        let tracking_id = Uuid::new_v4();
        let (status, reason) = (refusal.status, &refusal.reason);
        tracing::warn!(registration_id, status, %tracking_id, "refused {what}: {reason}");
        refusal.answer(tracking_id, self.times().1)
    }
}

/// Makes the device, or gives it its credential if that is another one. Returns whether it is new.
async fn make(registrar: &Registrar, device: Device, is_edge: bool) -> Result<bool, RegistrarError> {
    let present = registrar.hub().with(|hub, _| hub.identity(&device.id));
    let (is_new, enabled, reason) = match present {
        // Nothing is reset: neither what a back end has changed, nor queue and twin.
        Some(present) if present.device.credential == device.credential => return Ok(false),
        Some(present) => (false, present.record.enabled, present.record.status_reason),
        None => (true, true, None),
    };
    let wanted = Wanted {
        id: device.id,
        credential: WantedCredential::Given(device.credential),
        enabled,
        status_reason: reason,
        is_edge: is_edge.then_some(true),
        device_scope: None,
        parent_scope: None,
        managed_by: None,
    };
    registrar.put(wanted, Expected::AnyOrMissing).await.map(|_| is_new)
}

/// Writes the twin of a device that is new at its hub: the one that it had at another hub, or the one of its enrolment.
fn write_twin(registrar: &Registrar, device_id: &str, old: Option<(Value, Value)>, initial: Option<&Value>) {
    let (tags, desired, reported) = match (old, initial) {
        (Some((tags, properties)), _) => {
            (own_fields(&tags), own_fields(&properties["desired"]), own_fields(&properties["reported"]))
        }
        (None, Some(initial)) => {
            (own_fields(&initial["tags"]), own_fields(&initial["properties"]["desired"]), Map::new())
        }
        (None, None) => return,
    };
    let written = registrar.hub().with(|hub, now| {
        hub.write_twin(device_id, TwinWrite::Replace { tags, desired }, None, now)?;
        if reported.is_empty() { Ok(0) } else { hub.patch_reported(device_id, &reported.into(), now) }
    });
    if let Err(error) = written {
        tracing::warn!(device_id, "the twin of a new device could not be written: {error}");
    }
}

/// The fields that are no metadata of the hub.
fn own_fields(section: &Value) -> Map<String, Value> {
    let fields = section.as_object().into_iter().flatten();
    fields
        .filter(|(name, _)| !name.starts_with('$'))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect()
}
