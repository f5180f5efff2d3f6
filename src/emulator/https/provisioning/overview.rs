//! The provisioning service as the emulator's page shows it.
//!
//! Owns: its form, and how much of it is shown. Must not know: HTTP, what an enrolment means.

use serde_json::{Map, Value, json};

use crate::emulator::provisioning::{EnrolmentKind, ProvisioningDesk};

/// Most enrolments of each kind, and most registrations, that are shown.
const MAX_ROWS: usize = 100;

/// What is shown; null without a service.
pub(in crate::emulator::https) fn of(desk: Option<&ProvisioningDesk>) -> Value {
    let Some(desk) = desk else { return Value::Null };
    let (enrolments, registrations) = desk.counts();
    let rows: Vec<Value> = [EnrolmentKind::Individual, EnrolmentKind::Group]
        .into_iter()
        .flat_map(|kind| desk.enrolments_after(kind, "", MAX_ROWS))
        .map(|own| {
            json!({
                "kind": own.kind.word(),
                "id": own.id,
                "attestation": own.attestation(false)["type"],
                "allocation": own.show(false)["allocationPolicy"],
                "enabled": own.enabled,
            })
        })
        .collect();
    let registered: Vec<Value> = desk
        .registrations_after(None, "", MAX_ROWS)
        .into_iter()
        .map(|own| {
            let mut shown = own.show(None);
            shown["group"] = own.group.into();
            shown
        })
        .collect();
    let faults: Map<String, Value> = desk
        .faults()
        .into_iter()
        .take(MAX_ROWS)
        .map(|(id, fault)| {
            let whose = id.map(|id| format!("{id}:")).unwrap_or_default();
            (format!("{whose}{}", fault.name().as_str()), fault.value().into())
        })
        .collect();
    json!({
        "idScope": desk.id_scope(),
        "faults": faults,
        "enrolmentsLeftOut": enrolments - rows.len(),
        "enrolments": rows,
        "registrationsLeftOut": registrations - registered.len(),
        "registrations": registered,
    })
}
