//! Enrolments and registrations as a pure state machine: no hub, no socket, no clock.
//!
//! Owns: which enrolment a client belongs to, what is to be done at the hubs, and what the client is told. Must not know:
//! how a hub is changed, files, protocols.
//!
//! Source: wire reference 12. A choice: registration ids are compared without case, and a key of a group derives from
//! the id as the client wrote it when it first registered.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde_json::{Value, json};
use uuid::Uuid;

use super::allocation::{AllocationPolicy, another};
use super::answer::{DpsAnswer, DpsRefusal, Ending};
use super::attestation::EnrolmentKind;
use super::claim::RegistrationClaim;
use super::enrolment::EnrolmentRecord;
use super::faults::{DpsFault, DpsFaultName, DpsFaults};
use super::operations::{Operation, Operations};
use super::registration::{Allotment, RegistrationRecord, Substatus};
use crate::emulator::registry::DeviceCredential;
use crate::message::format_time;

/// Most registrations: as many as there may be devices.
pub(super) const MAX_REGISTRATIONS: usize = 10_000;

/// Most characters of a reason in the log: each group adds its own.
const MAX_REASON: usize = 1_000;

/// The state of the service.
#[derive(Debug)]
pub(super) struct ProvisioningBook {
    id_scope: String,
    /// By kind, and id in small letters.
    enrolments: BTreeMap<(EnrolmentKind, String), EnrolmentRecord>,
    /// By registration id in small letters.
    registrations: BTreeMap<String, RegistrationRecord>,
    /// What was begun at the hubs and not finished, in the same way.
    begun: BTreeMap<String, Allotment>,
    operations: Operations,
    pub(super) faults: DpsFaults,
}

/// What becomes of a registration that was let in.
#[derive(Debug)]
pub(super) enum Decision {
    /// This must be done first.
    Assign(Box<Allotment>),
    /// It ends without a hub.
    End(Ending),
}

impl ProvisioningBook {
    /// A service without enrolments.
    pub(super) fn new(id_scope: String) -> Self {
        Self {
            id_scope,
            enrolments: BTreeMap::new(),
            registrations: BTreeMap::new(),
            begun: BTreeMap::new(),
            operations: Operations::default(),
            faults: DpsFaults::default(),
        }
    }

    /// The ID scope.
    pub(super) fn id_scope(&self) -> &str {
        &self.id_scope
    }

    /// Adds an enrolment, or replaces the one with its kind and id.
    pub(super) fn enrol(&mut self, record: EnrolmentRecord) {
        self.enrolments.insert((record.kind, record.id.to_ascii_lowercase()), record);
    }

    /// Removes an enrolment. Its registrations stay, as at the real service.
    pub(super) fn remove_enrolment(&mut self, kind: EnrolmentKind, id: &str) -> bool {
        self.enrolments.remove(&(kind, id.to_ascii_lowercase())).is_some()
    }

    /// An enrolment.
    pub(super) fn enrolment(&self, kind: EnrolmentKind, id: &str) -> Option<&EnrolmentRecord> {
        self.enrolments.get(&(kind, id.to_ascii_lowercase()))
    }

    /// The enrolments, individual ones first, sorted by id.
    pub(super) fn enrolments(&self) -> impl Iterator<Item = &EnrolmentRecord> {
        self.enrolments.values()
    }

    /// Restores a registration.
    pub(super) fn restore(&mut self, record: RegistrationRecord) {
        self.registrations.insert(record.registration_id.to_ascii_lowercase(), record);
    }

    /// A registration.
    pub(super) fn registration(&self, id: &str) -> Option<&RegistrationRecord> {
        self.registrations.get(&id.to_ascii_lowercase())
    }

    /// Removes a registration. The device stays at its hub.
    pub(super) fn remove_registration(&mut self, id: &str) {
        self.registrations.remove(&id.to_ascii_lowercase());
        self.give_up(id);
    }

    /// Notes what is begun at the hubs.
    pub(super) fn note_begun(&mut self, allotment: Allotment) {
        self.begun.insert(allotment.record.registration_id.to_ascii_lowercase(), allotment);
    }

    /// What was begun for a registration and not finished.
    pub(super) fn begun(&self, id: &str) -> Option<&Allotment> {
        self.begun.get(&id.to_ascii_lowercase())
    }

    /// All that was begun and not finished.
    pub(super) fn all_begun(&self) -> Vec<Allotment> {
        self.begun.values().cloned().collect()
    }

    /// Forgets what was begun.
    pub(super) fn give_up(&mut self, id: &str) {
        self.begun.remove(&id.to_ascii_lowercase());
    }

    /// The registrations, sorted by id.
    pub(super) fn registrations(&self) -> impl Iterator<Item = &RegistrationRecord> {
        self.registrations.values()
    }

    /// The enrolment of a client, and what it must prove at its hub. An individual enrolment takes precedence over
    /// groups. `real` is the real time, by which tokens and certificates are judged.
    ///
    /// # Errors
    /// 401.
    pub(super) fn admit(
        &self,
        claim: &RegistrationClaim,
        real: SystemTime,
    ) -> Result<(&EnrolmentRecord, DeviceCredential), DpsRefusal> {
        let id = claim.registration_id.as_str();
        let spelling = self.registration(id).map_or(id, |present| &present.registration_id);
        if claim.has_expired(real) {
            return Err(DpsRefusal::unauthorized("the token has expired"));
        }
        if let Some(own) = self.enrolment(EnrolmentKind::Individual, id) {
            let judged = own.attestation.judge(own.kind, claim, spelling, real);
            return judged.map(|credential| (own, credential)).map_err(DpsRefusal::unauthorized);
        }
        let mut reason = format!("no enrolment is for \"{id}\"");
        for group in self.enrolments.values().filter(|own| own.kind == EnrolmentKind::Group) {
            match group.attestation.judge(group.kind, claim, spelling, real) {
                Ok(credential) => return Ok((group, credential)),
                Err(wrong) => reason = format!("{reason}, and group \"{}\" refuses it: {wrong}", group.id),
            }
        }
        Err(DpsRefusal::unauthorized(reason.chars().take(MAX_REASON).collect::<String>()))
    }

    /// Lets a client in that wants to register: before its request is read, and before it waits for others.
    ///
    /// # Errors
    /// The errors of faults and of [`Self::admit`].
    pub(super) fn receive(&mut self, claim: &RegistrationClaim, real: SystemTime) -> Result<(), DpsRefusal> {
        self.fail(&claim.registration_id)?;
        self.admit(claim, real).map(drop)
    }

    /// Decides about a request to register. `hubs` are the names of all hubs; `now` is the time by the emulator's clock.
    /// It changes nothing; see [`Self::assigned`].
    ///
    /// # Errors
    /// The errors of [`Self::admit`], 403 if there are too many registrations, and 429 if too many are under way.
    pub(super) fn decide(
        &mut self,
        claim: &RegistrationClaim,
        hubs: &[&str],
        real: SystemTime,
        now: SystemTime,
    ) -> Result<Decision, DpsRefusal> {
        let id = claim.registration_id.clone();
        let (enrolment, credential) = self.admit(claim, real)?;
        let enrolment = enrolment.clone();
        if !self.operations.has_room(&id.to_ascii_lowercase(), real) {
            return Err(DpsRefusal::throttled(
                "too many registrations are under way: the client comes again",
            ));
        }
        if let Some(DpsFault::Failed(code)) = self.faults.get(&id, DpsFaultName::Failed) {
            return Ok(Decision::End(Ending::Failed(code, failure(code).to_owned())));
        }
        if !enrolment.enabled || self.faults.get(&id, DpsFaultName::Disabled).is_some() {
            return Ok(Decision::End(Ending::Disabled));
        }
        let before = self.registration(&id).cloned();
        // The key of one group must not take the device of another one.
        let held_by = before.as_ref().and_then(|before| before.group.as_ref());
        let is_other = |group: &&String| {
            enrolment.kind == EnrolmentKind::Group
                && **group != enrolment.id
                && self.enrolment(EnrolmentKind::Group, group).is_some()
        };
        if let Some(group) = held_by.filter(is_other) {
            let reason = format!("it is registered by the group \"{group}\", and asks with another one");
            return Err(DpsRefusal::unauthorized(reason));
        }
        if before.is_none() && self.registrations.len() >= MAX_REGISTRATIONS {
            let reason = format!("there are {MAX_REGISTRATIONS} registrations, which is the most");
            return Err(DpsRefusal::full(reason));
        }
        let Some(hub) = self.allocate(&enrolment, &id, before.as_ref(), hubs) else {
            return Ok(Decision::End(Ending::Failed(400_208, failure(400_208).to_owned())));
        };
        let registration_id =
            before.as_ref().map_or_else(|| id.clone(), |before| before.registration_id.clone());
        let device_id = enrolment.device_id.clone().unwrap_or_else(|| registration_id.clone());
        let leaves = before.as_ref().map(|before| (before.hub.clone(), before.device_id.clone()));
        let leaves =
            leaves.filter(|(left, left_id)| !left.eq_ignore_ascii_case(&hub) || *left_id != device_id);
        let is_owner = |own: &&RegistrationRecord| {
            own.device_id == device_id
                && own.hub.eq_ignore_ascii_case(&hub)
                && own.registration_id != registration_id
        };
        if let Some(owner) = self.registrations.values().find(is_owner) {
            let reason = format!("the device \"{device_id}\" of {hub} is that of {}", owner.registration_id);
            return Err(DpsRefusal::exists(reason));
        }
        let substatus = match (&before, &leaves) {
            (None, _) => Substatus::InitialAssignment,
            (Some(before), None) => before.substatus,
            (Some(_), Some(_)) if enrolment.migrates => Substatus::DeviceDataMigrated,
            (Some(_), Some(_)) => Substatus::DeviceDataReset,
        };
        let record = RegistrationRecord {
            registration_id,
            group: (enrolment.kind == EnrolmentKind::Group).then(|| enrolment.id.clone()),
            hub,
            device_id,
            substatus,
            created: before.as_ref().map_or(now, |before| before.created),
            updated: now,
        };
        let EnrolmentRecord { is_edge, initial_twin, echoes, .. } = enrolment;
        Ok(Decision::Assign(Box::new(Allotment {
            record,
            credential,
            is_edge,
            initial_twin,
            leaves,
            is_new: false,
            echoes,
        })))
    }

    /// The hub for a device.
    fn allocate(
        &self,
        enrolment: &EnrolmentRecord,
        id: &str,
        before: Option<&RegistrationRecord>,
        hubs: &[&str],
    ) -> Option<String> {
        let linked = |name: &str| hubs.iter().find(|own| own.eq_ignore_ascii_case(name)).copied();
        // The list of the enrolment has its order.
        let candidates: Vec<&str> = match enrolment.hubs.as_slice() {
            [] => hubs.to_vec(),
            named => named.iter().filter_map(|name| linked(name)).collect(),
        };
        let present = before.and_then(|before| linked(&before.hub));
        if let Some(present) = present
            && self.faults.get(id, DpsFaultName::Move).is_some()
        {
            let Some(next) = another(hubs, present) else {
                tracing::warn!(registration_id = id, "the fault dps-move needs a second hub (--hub)");
                return Some(present.to_owned());
            };
            return Some(next.to_owned());
        }
        if let Some(present) = present.filter(|_| !enrolment.moves) {
            return Some(present.to_owned());
        }
        if enrolment.allocation == AllocationPolicy::Static && enrolment.hubs.is_empty() {
            return None;
        }
        let count = |name: &str| self.registrations.values().filter(|own| own.hub == name).count();
        let counted: Vec<_> = candidates.into_iter().map(|name| (name, count(name))).collect();
        enrolment.allocation.choose(&counted, present).map(str::to_owned)
    }

    /// Records what was done at the hubs. Only a device that has moved uses up the fault that moves devices.
    pub(super) fn assigned(&mut self, record: RegistrationRecord) {
        let before = self.registration(&record.registration_id);
        if before.is_some_and(|before| !before.hub.eq_ignore_ascii_case(&record.hub)) {
            self.faults.use_up(&record.registration_id, DpsFaultName::Move);
        }
        self.give_up(&record.registration_id);
        self.restore(record);
    }

    /// Begins the operation that a client asks after, and returns the answer to its request. It has an id that is
    /// unique, and the real time.
    pub(super) fn begin(
        &mut self,
        claim: &RegistrationClaim,
        ending: Ending,
        extra: Vec<(&'static str, Value)>,
        (unique, asked): (Uuid, SystemTime),
    ) -> DpsAnswer {
        let id = claim.registration_id.as_str();
        let assigning = match self.faults.get(id, DpsFaultName::Assigning) {
            Some(DpsFault::Assigning(times)) => times,
            _ => 0,
        };
        let registration = id.to_ascii_lowercase();
        let operation = Operation { registration, ending, assigning, extra, asked };
        DpsAnswer::assigning(&self.operations.begin(operation, unique), None)
    }

    /// Answers a question after an operation. `port` is that of the hub if a client cannot know it.
    ///
    /// # Errors
    /// The errors of [`Self::admit`] and of faults, and 404 for an operation that does not exist.
    pub(super) fn poll(
        &mut self,
        claim: &RegistrationClaim,
        operation_id: &str,
        port: Option<u16>,
        real: SystemTime,
        now: SystemTime,
    ) -> Result<DpsAnswer, DpsRefusal> {
        let id = claim.registration_id.as_str();
        self.fail(id)?;
        self.admit(claim, real)?;
        let key = id.to_ascii_lowercase();
        let missing = || DpsRefusal::not_found("there is no such operation of this registration");
        let operation = self.operations.get_mut(operation_id, &key, real).ok_or_else(missing)?;
        if operation.assigning > 0 {
            operation.assigning -= 1;
            return Ok(DpsAnswer::assigning(operation_id, Some(id)));
        }
        let operation = operation.clone();
        let mut state = match &operation.ending {
            Ending::Assigned => self.registrations.get(&key).ok_or_else(missing)?.show(port),
            ended => {
                let mut state = json!({
                    "registrationId": id,
                    "status": ended.word(),
                    "createdDateTimeUtc": format_time(now),
                    "lastUpdatedDateTimeUtc": format_time(now),
                });
                if let Ending::Failed(code, message) = ended {
                    state["errorCode"] = (*code).into();
                    state["errorMessage"] = message.clone().into();
                }
                state
            }
        };
        for (name, value) in operation.extra {
            state[name] = value;
        }
        Ok(DpsAnswer::ended(operation_id, &operation.ending, state))
    }

    /// What a client sees of its registration without asking for one.
    ///
    /// # Errors
    /// As [`Self::poll`].
    pub(super) fn look_up(
        &mut self,
        claim: &RegistrationClaim,
        port: Option<u16>,
        real: SystemTime,
    ) -> Result<DpsAnswer, DpsRefusal> {
        self.fail(&claim.registration_id)?;
        self.admit(claim, real)?;
        let found = self.registration(&claim.registration_id).map(|own| DpsAnswer::ok(own.show(port)));
        found.ok_or_else(|| DpsRefusal::not_found("the device has not registered"))
    }

    /// The faults that end any request.
    fn fail(&mut self, id: &str) -> Result<(), DpsRefusal> {
        if self.faults.use_up(id, DpsFaultName::Throttle) {
            return Err(DpsRefusal::throttled("the fault dps-throttle"));
        }
        if self.faults.use_up(id, DpsFaultName::Error) {
            return Err(DpsRefusal::internal("the fault dps-error"));
        }
        if self.faults.use_up(id, DpsFaultName::Refuse) {
            return Err(DpsRefusal::unauthorized("the fault dps-refuse"));
        }
        Ok(())
    }
}

/// The sentence of a code. Source: wire reference 12.3.
fn failure(code: u32) -> &'static str {
    match code {
        400_207 => "Custom allocation failed with an error.",
        400_208 => "IoT Hub not found.",
        400_209 => "The provisioning service is not authorised at the IoT Hub.",
        _ => "The registration failed.",
    }
}

#[cfg(test)]
mod tests;
