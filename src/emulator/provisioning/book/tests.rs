//! The state machine of the provisioning service: who is let in, which hub, and what is answered.

use super::*;
use crate::credentials::{SasToken, SharedAccessKey};
use crate::emulator::provisioning::attestation::Attestation;
use crate::emulator::registry::KeyPair;
use std::time::Duration;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;
const HUBS: [&str; 2] = ["a.test", "b.test"];

fn key() -> SharedAccessKey {
    SharedAccessKey::from_bytes([7; 32])
}

fn enrolment(kind: EnrolmentKind, id: &str) -> EnrolmentRecord {
    EnrolmentRecord {
        kind,
        id: id.to_owned(),
        attestation: Attestation::Keys(KeyPair { primary: key(), secondary: key() }),
        enabled: true,
        device_id: None,
        hubs: Vec::new(),
        allocation: AllocationPolicy::Hashed,
        moves: true,
        migrates: true,
        initial_twin: None,
        is_edge: false,
        echoes: true,
        created: NOW,
        updated: NOW,
    }
}

fn book(enrolments: impl IntoIterator<Item = EnrolmentRecord>) -> ProvisioningBook {
    let mut book = ProvisioningBook::new("s".to_owned());
    enrolments.into_iter().for_each(|enrolment| book.enrol(enrolment));
    book
}

fn individual(id: &str) -> EnrolmentRecord {
    enrolment(EnrolmentKind::Individual, id)
}

fn claim_with(id: &str, key: &SharedAccessKey) -> RegistrationClaim {
    let token = SasToken::sign(key, &format!("s/registrations/{id}"), None, NOW + Duration::from_secs(60));
    RegistrationClaim::new("s", id, Some(token.expose()), None, NOW).expect("a claim")
}

fn claim(id: &str) -> RegistrationClaim {
    claim_with(id, &key())
}

/// The decision about a registration, with the hubs already changed.
fn register(book: &mut ProvisioningBook, id: &str) -> Allotment {
    let Ok(Decision::Assign(allotment)) = book.decide(&claim(id), &HUBS, NOW, NOW) else {
        panic!("not assigned")
    };
    book.assigned(allotment.record.clone());
    *allotment
}

fn set(book: &mut ProvisioningBook, fault: &str) {
    book.faults.set(fault.parse().expect("a fault")).expect("set");
}

#[test]
fn a_registration_is_assigning_first_and_assigned_when_the_client_asks_again() {
    let mut book = book([individual("reg-01")]);
    let allotment = register(&mut book, "reg-01");
    assert_eq!((allotment.record.hub.as_str(), allotment.record.device_id.as_str()), ("a.test", "reg-01"));
    let extra = vec![("payload", json!({ "site": 12 }))];
    let begun = book.begin(&claim("reg-01"), Ending::Assigned, extra, (Uuid::nil(), NOW));
    assert_eq!((begun.status, begun.retry_after), (202, Some(1)));
    let operation = begun.body["operationId"].as_str().expect("an id").to_owned();
    assert_eq!(begun.body["status"], "assigning");
    let answer = book.poll(&claim("reg-01"), &operation, None, NOW, NOW).expect("an answer");
    assert_eq!((answer.status, &answer.body["status"]), (200, &json!("assigned")));
    let state = &answer.body["registrationState"];
    assert_eq!((&state["assignedHub"], &state["substatus"]), (&json!("a.test"), &json!("initialAssignment")));
    assert_eq!((&state["deviceId"], &state["payload"]), (&json!("reg-01"), &json!({ "site": 12 })));
    assert_eq!(state["createdDateTimeUtc"], "1970-01-01T00:00:00.0000000Z");
    let at_port = book.poll(&claim("reg-01"), &operation, Some(18883), NOW, NOW).expect("an answer");
    assert_eq!(at_port.body["registrationState"]["assignedHub"], "a.test:18883");
    let refused = book.poll(&claim("reg-01"), "5.1.other", None, NOW, NOW).expect_err("no such operation");
    assert_eq!(refused.status, 404);
}

#[test]
fn who_is_not_enrolled_or_has_another_key_gets_the_same_401_and_the_log_the_reason() {
    let mut book = book([individual("reg-01"), enrolment(EnrolmentKind::Group, "fleet")]);
    let other = SharedAccessKey::from_bytes([8; 32]);
    let cases = [
        ("reg-01", other.clone(), "another key"),
        (
            "reg-02",
            other,
            "no enrolment is for \"reg-02\", and group \"fleet\" refuses it: the token's signature",
        ),
    ];
    for (id, key, reason) in cases {
        let refused = book.decide(&claim_with(id, &key), &HUBS, NOW, NOW).expect_err("refused");
        assert!(refused.reason.contains(reason), "{}", refused.reason);
        let body = refused.answer(Uuid::nil(), NOW).body;
        assert_eq!((&body["errorCode"], &body["message"]), (&json!(401_002), &json!("Unauthorized")));
    }
    let late = NOW + Duration::from_secs(61);
    let expired = book.decide(&claim("reg-01"), &HUBS, late, late).expect_err("refused");
    assert_eq!((expired.status, expired.reason.as_str()), (401, "the token has expired"));
}

#[test]
fn a_group_takes_any_device_whose_key_derives_from_its_own() {
    let mut book = book([enrolment(EnrolmentKind::Group, "fleet")]);
    let device = SharedAccessKey::from_bytes(key().digest(b"Pump-12"));
    let decided = book.decide(&claim_with("Pump-12", &device), &HUBS, NOW, NOW);
    let Ok(Decision::Assign(allotment)) = decided else { panic!("{decided:?}") };
    assert_eq!(
        (allotment.record.group.as_deref(), allotment.record.device_id.as_str()),
        (Some("fleet"), "Pump-12")
    );
    assert_eq!(
        allotment.credential,
        DeviceCredential::Keys(KeyPair { primary: device.clone(), secondary: device })
    );
}

#[test]
fn devices_are_spread_evenly_and_stay_where_they_are() {
    let mut book = book(["a", "b", "c"].map(individual));
    let hubs = ["a", "b", "c"].map(|id| register(&mut book, id).record.hub);
    assert_eq!(hubs, ["a.test", "b.test", "a.test"]);
    let again = register(&mut book, "B");
    assert_eq!((again.record.hub.as_str(), again.record.registration_id.as_str()), ("b.test", "b"));
    assert!(again.leaves.is_none());
    assert_eq!(again.record.substatus, Substatus::InitialAssignment);
}

#[test]
fn a_changed_allocation_moves_the_device_as_its_policy_says() {
    for (moves, migrates, hub, substatus) in [
        (true, true, "b.test", Substatus::DeviceDataMigrated),
        (true, false, "b.test", Substatus::DeviceDataReset),
        (false, true, "a.test", Substatus::InitialAssignment),
    ] {
        let mut book = book([individual("a")]);
        assert_eq!(register(&mut book, "a").record.hub, "a.test");
        let allocation = AllocationPolicy::Static;
        let hubs = vec!["B.TEST".to_owned()];
        book.enrol(EnrolmentRecord { allocation, hubs, moves, migrates, ..individual("a") });
        let moved = register(&mut book, "a");
        assert_eq!((moved.record.hub.as_str(), moved.record.substatus), (hub, substatus));
        assert_eq!(moved.leaves, (hub == "b.test").then(|| ("a.test".to_owned(), "a".to_owned())));
    }
}

#[test]
fn a_hub_that_is_not_linked_and_a_disabled_enrolment_end_the_registration() {
    let (allocation, hubs) = (AllocationPolicy::Static, vec!["c.test".to_owned()]);
    let mut book = book([
        EnrolmentRecord { allocation, hubs, ..individual("a") },
        EnrolmentRecord { enabled: false, ..individual("b") },
    ]);
    for (id, status) in [("a", "failed"), ("b", "disabled")] {
        let Ok(Decision::End(ending)) = book.decide(&claim(id), &HUBS, NOW, NOW) else {
            panic!("{id}: it went on")
        };
        let begun = book.begin(&claim(id), ending, Vec::new(), (Uuid::nil(), NOW));
        let operation = begun.body["operationId"].as_str().expect("an id").to_owned();
        let answer = book.poll(&claim(id), &operation, None, NOW, NOW).expect("an answer");
        assert_eq!((answer.status, &answer.body["status"]), (200, &json!(status)));
        let state = &answer.body["registrationState"];
        assert_eq!(state["errorCode"], if id == "a" { json!(400_208) } else { Value::Null });
    }
}

#[test]
fn faults_come_before_what_would_be_answered() {
    let mut book = book([individual("a")]);
    for (fault, status) in [("dps-throttle=1", 429), ("dps-error=1", 500), ("a:dps-refuse=1", 401)] {
        set(&mut book, fault);
        let refused = book.receive(&claim("a"), NOW).expect_err(fault);
        assert_eq!(refused.status, status, "{fault}");
        assert_eq!(refused.answer(Uuid::nil(), NOW).retry_after.is_some(), status > 401);
    }
    set(&mut book, "dps-assigning=2");
    register(&mut book, "a");
    let begun = book.begin(&claim("a"), Ending::Assigned, Vec::new(), (Uuid::nil(), NOW));
    let operation = begun.body["operationId"].as_str().expect("an id").to_owned();
    let statuses =
        [0; 3].map(|_| book.poll(&claim("a"), &operation, None, NOW, NOW).expect("an answer").status);
    assert_eq!(statuses, [202, 202, 200]);
    set(&mut book, "dps-failed=400207");
    let Ok(Decision::End(Ending::Failed(code, _))) = book.decide(&claim("a"), &HUBS, NOW, NOW) else {
        panic!("it went on")
    };
    assert_eq!(code, 400_207);
}

#[test]
fn the_fault_that_moves_a_device_waits_until_one_has_moved() {
    let mut book = book([individual("a"), EnrolmentRecord { enabled: false, ..individual("off") }]);
    register(&mut book, "a");
    set(&mut book, "dps-move");
    let is_set = |book: &ProvisioningBook| book.faults.get("a", DpsFaultName::Move).is_some();
    let other = claim_with("a", &SharedAccessKey::from_bytes([8; 32]));
    book.receive(&other, NOW).expect_err("another key");
    assert!(matches!(book.decide(&claim("off"), &HUBS, NOW, NOW), Ok(Decision::End(_))));
    let alone = book.decide(&claim("a"), &HUBS[..1], NOW, NOW);
    assert!(matches!(alone, Ok(Decision::Assign(own)) if own.record.hub == "a.test"), "no other hub");
    // What was decided and not done, as on a full disk, is decided again.
    let decided = book.decide(&claim("a"), &HUBS, NOW, NOW);
    assert!(matches!(decided, Ok(Decision::Assign(own)) if own.record.hub == "b.test"));
    assert!(is_set(&book));
    assert_eq!(register(&mut book, "a").record.hub, "b.test");
    assert!(!is_set(&book));
    assert_eq!(register(&mut book, "a").record.hub, "b.test");
}

#[test]
fn a_device_of_a_group_has_one_key_however_its_id_is_written() {
    let mut book = book([enrolment(EnrolmentKind::Group, "fleet")]);
    let key_of = |id: &str| SharedAccessKey::from_bytes(key().digest(id.as_bytes()));
    let decided = |book: &mut ProvisioningBook, id: &str, key: &SharedAccessKey| {
        book.decide(&claim_with(id, key), &HUBS, NOW, NOW).map(|decision| match decision {
            Decision::Assign(allotment) => *allotment,
            Decision::End(ending) => panic!("{ending:?}"),
        })
    };
    let first = decided(&mut book, "Pump-12", &key_of("Pump-12")).expect("a device of the group");
    book.assigned(first.record.clone());
    let again = decided(&mut book, "PUMP-12", &key_of("Pump-12")).expect("the same device");
    assert_eq!(again.credential, first.credential);
    let refused = decided(&mut book, "pump-12", &key_of("pump-12")).expect_err("another key");
    let remedy = "the key derives from \"pump-12\", but the device registered as \"Pump-12\"";
    assert!(refused.status == 401 && refused.reason.contains(remedy), "{}", refused.reason);
}

#[test]
fn a_device_of_one_group_is_not_taken_over_by_another_one_that_has_the_same_key() {
    let mut book = book(["one", "two"].map(|name| enrolment(EnrolmentKind::Group, name)));
    let claim = claim_with("pump-12", &SharedAccessKey::from_bytes(key().digest(b"pump-12")));
    let Ok(Decision::Assign(first)) = book.decide(&claim, &HUBS, NOW, NOW) else { panic!("not assigned") };
    assert_eq!(first.record.group.as_deref(), Some("one"));
    // As an earlier start had it, in which the other group came first.
    book.assigned(RegistrationRecord { group: Some("two".to_owned()), ..first.record });
    let refused = book.decide(&claim, &HUBS, NOW, NOW).expect_err("another group");
    assert!(refused.status == 401 && refused.reason.contains("by the group \"two\""), "{}", refused.reason);
    // A group that is gone has no say.
    assert!(book.remove_enrolment(EnrolmentKind::Group, "two"));
    assert!(matches!(book.decide(&claim, &HUBS, NOW, NOW), Ok(Decision::Assign(_))));
}

#[test]
fn a_device_id_of_another_registration_is_refused() {
    let as_a = |id: &str| EnrolmentRecord { device_id: Some("pump".to_owned()), ..individual(id) };
    let mut book = book([as_a("a"), as_a("b")]);
    book.decide(&claim("b"), &HUBS[..1], NOW, NOW).expect("free");
    register(&mut book, "a");
    let refused = book.decide(&claim("b"), &["A.TEST"], NOW, NOW).expect_err("taken");
    assert!(refused.status == 409 && refused.reason.contains("that of a"), "{}", refused.reason);
}

#[test]
fn the_name_of_a_hub_counts_without_its_case() {
    let mut book = book([individual("a")]);
    register(&mut book, "a");
    let Ok(Decision::Assign(again)) = book.decide(&claim("a"), &["A.test", "B.test"], NOW, NOW) else {
        panic!("not assigned")
    };
    assert_eq!(
        (again.record.hub.as_str(), &again.leaves),
        ("A.test", &None),
        "it stays, and nothing is deleted"
    );
}
