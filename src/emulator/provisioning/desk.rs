//! Where clients register: the book, its file and the hubs together.
//!
//! Owns: who is answered when, and that registrations are made one at a time and to their end. Must not know: protocols,
//! how a proof is judged, what is done at a hub.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::SystemTime;

use tokio::sync::oneshot;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::answer::{DpsAnswer, DpsRefusal, Ending};
use super::book::{Decision, ProvisioningBook};
use super::claim::RegistrationClaim;
use super::faults::{DpsFault, DpsFaultError, DpsFaultName, DpsFaultOrder};
use super::request::RegisterRequest;
use super::store::ProvisioningStore;
use crate::emulator::hubs::Hubs;
use crate::emulator::registrar::Registrar;
use crate::emulator::registry::KeyPair;
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
    one_at_a_time: Arc<tokio::sync::Mutex<()>>,
    /// The registration under way.
    work: Mutex<JoinSet<()>>,
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
            one_at_a_time: Arc::default(),
            work: Mutex::default(),
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
    /// If dropped early, what was begun at the hubs is finished all the same.
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
    pub(super) async fn one_at_a_time(&self) -> tokio::sync::OwnedMutexGuard<()> {
        Arc::clone(&self.0.one_at_a_time).lock_owned().await
    }

    /// The hub that has this host name.
    pub(super) fn hub_named(&self, host: &str) -> Option<&Registrar> {
        self.0.hubs.named(host)
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
        // The proof comes first: a client that has none costs nothing more.
        let (real, _) = self.times();
        self.with(|book| book.receive(claim, real))?;
        let request = RegisterRequest::read(&claim.registration_id, body)?;
        let one_at_a_time = self.one_at_a_time().await;
        let (own, claim) = (self.clone(), claim.clone());
        // A task of its own goes on when the client has gone. There is one at a time, because it holds the lock.
        let (tell, told) = oneshot::channel();
        {
            let mut work = self.0.work.lock().unwrap_or_else(PoisonError::into_inner);
            while work.try_join_next().is_some() {}
            work.spawn(async move {
                // If the client has gone, its answer is lost, and it registers again.
                drop(tell.send(own.register_alone(&claim, request).await));
                drop(one_at_a_time);
            });
        }
        told.await.unwrap_or_else(|_| Err(DpsRefusal::internal("the registration was given up")))
    }

    async fn register_alone(
        &self,
        claim: &RegistrationClaim,
        request: RegisterRequest,
    ) -> Result<DpsAnswer, DpsRefusal> {
        let begun = self.with(|book| book.begun(&claim.registration_id).cloned());
        if let Some(begun) = begun.filter(|begun| self.hub_named(&begun.record.hub).is_some()) {
            self.carry_out(&begun).await?;
        }
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
        Ok(self.with(|book| book.begin(claim, ending, extra, (Uuid::new_v4(), real))))
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
