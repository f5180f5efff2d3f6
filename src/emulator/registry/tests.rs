//! Who may sign in, and with which proof.

use super::*;
use std::time::Duration;

const NOW: SystemTime = SystemTime::UNIX_EPOCH;

fn later(seconds: u64) -> SystemTime {
    NOW + Duration::from_secs(seconds)
}

fn keys(seed: u8) -> KeyPair {
    KeyPair {
        primary: SharedAccessKey::from_bytes([seed; 32]),
        secondary: SharedAccessKey::from_bytes([seed + 1; 32]),
    }
}

fn registry() -> Registry {
    let policy = |name: &str, seed, service_connect, device_connect| AccessPolicy {
        name: name.to_owned(),
        keys: keys(seed),
        service_connect,
        device_connect,
        registry: RegistryRight::None,
    };
    let policies = vec![policy("service", 10, true, false), policy("device", 20, false, true)];
    let mut registry = Registry::new("Hub.local.test", policies);
    registry.add_device(Device { id: "dev1".into(), credential: DeviceCredential::Keys(keys(1)) });
    let certificate = DeviceCredential::Certificate(Thumbprint::of(b"certificate"));
    registry.add_device(Device { id: "cert1".into(), credential: certificate });
    registry
}

fn token(key: &SharedAccessKey, resource: &str, policy: Option<&str>) -> String {
    SasToken::sign(key, resource, policy, later(100)).expose().to_owned()
}

#[test]
fn both_keys_of_a_device_are_valid_until_the_token_expires() {
    let registry = registry();
    for key in [keys(1).primary, keys(1).secondary] {
        let token = token(&key, "hub.local.test/devices/dev1", None);
        let grant = registry.authenticate_device("dev1", Some(&token), None, NOW).expect("granted");
        assert_eq!(grant, Grant { expires: Some(later(100)), policy: None });
        let late = registry.authenticate_device("dev1", Some(&token), None, later(100));
        assert!(matches!(late, Err(AuthError::Expired(_))), "{late:?}");
    }
}

#[test]
fn a_wrong_key_resource_or_device_is_refused() {
    let registry = registry();
    let sign_in = |id: &str, token: &str| registry.authenticate_device(id, Some(token), None, NOW);
    let wrong_key = token(&keys(7).primary, "hub.local.test/devices/dev1", None);
    assert_eq!(sign_in("dev1", &wrong_key), Err(AuthError::WrongSignature));
    let other = token(&keys(1).primary, "hub.local.test/devices/dev2", None);
    assert!(matches!(sign_in("dev1", &other), Err(AuthError::WrongResource { .. })));
    let other_hub = token(&keys(1).primary, "other/devices/dev1", None);
    assert!(matches!(sign_in("dev1", &other_hub), Err(AuthError::WrongResource { .. })));
    assert_eq!(sign_in("none", &other), Err(AuthError::UnknownDevice("none".into())));
    assert!(matches!(sign_in("dev1", "secret"), Err(AuthError::Token(SasError::Scheme))));
    let forged = token(&keys(1).primary, "x\nINFO all is well", None);
    let reason = sign_in("dev1", &forged).expect_err("refused").to_string();
    assert!(reason.contains("\"x\\nINFO all is well\"") && !reason.contains('\n'), "{reason}");
}

#[test]
fn a_token_may_be_for_any_name_of_the_hub() {
    let registry = registry();
    for name in ["hub.local.test", "hub.device.local.test", "hub.SERVICE.local.test:5671"] {
        let own = token(&keys(1).primary, &format!("{name}/devices/dev1"), None);
        assert!(registry.authenticate_device("dev1", Some(&own), None, NOW).is_ok(), "{name}");
        let back_end = token(&keys(10).primary, name, Some("service"));
        let granted = registry.authenticate_back_end(&back_end, BackEndRight::ServiceConnect, NOW);
        assert!(granted.is_ok(), "{name}: {granted:?}");
    }
    let other = token(&keys(10).primary, "hub.devices.local.test", Some("service"));
    let refused = registry.authenticate_back_end(&other, BackEndRight::ServiceConnect, NOW);
    assert!(matches!(refused, Err(AuthError::WrongResource { .. })), "{refused:?}");
}

#[test]
fn a_policy_signs_for_devices_only_with_device_connect() {
    let registry = registry();
    let device = token(&keys(20).primary, "hub.local.test", Some("device"));
    assert!(registry.authenticate_device("dev1", Some(&device), None, NOW).is_ok());
    let missing = registry.authenticate_device("none", Some(&device), None, NOW);
    assert_eq!(missing, Err(AuthError::MissingDevice("none".into())));
    let forged = token(&keys(7).primary, "hub.local.test", Some("device"));
    let refused = registry.authenticate_device("none", Some(&forged), None, NOW);
    assert_eq!(refused, Err(AuthError::WrongSignature));
    let service = token(&keys(10).primary, "hub.local.test", Some("service"));
    let refused = registry.authenticate_device("dev1", Some(&service), None, NOW);
    assert_eq!(refused, Err(AuthError::Forbidden("service".into(), "DeviceConnect")));
}

#[test]
fn a_back_end_needs_service_connect_for_the_whole_hub() {
    let registry = registry();
    let service = token(&keys(10).secondary, "hub.local.test", Some("service"));
    assert!(registry.authenticate_back_end(&service, BackEndRight::ServiceConnect, NOW).is_ok());
    let device = token(&keys(20).primary, "hub.local.test", Some("device"));
    let refused = registry.authenticate_back_end(&device, BackEndRight::ServiceConnect, NOW);
    assert_eq!(refused, Err(AuthError::Forbidden("device".into(), "ServiceConnect")));
    let narrow = token(&keys(10).primary, "hub.local.test/devices/dev1", Some("service"));
    assert!(matches!(
        registry.authenticate_back_end(&narrow, BackEndRight::ServiceConnect, NOW),
        Err(AuthError::WrongResource { .. })
    ));
    let unnamed = token(&keys(1).primary, "hub.local.test", None);
    assert!(matches!(
        registry.authenticate_back_end(&unnamed, BackEndRight::ServiceConnect, NOW),
        Err(AuthError::UnknownPolicy(_))
    ));
}

#[test]
fn a_certificate_signs_in_the_device_whose_thumbprint_it_has() {
    let registry = registry();
    let shown =
        |id: &str, der: &[u8]| registry.authenticate_device(id, None, Some(&Thumbprint::of(der)), NOW);
    assert_eq!(shown("cert1", b"certificate"), Ok(Grant { expires: None, policy: None }));
    assert_eq!(shown("cert1", b"another"), Err(AuthError::WrongCertificate));
    assert!(matches!(shown("dev1", b"certificate"), Err(AuthError::WrongKind(_))));
    assert_eq!(registry.authenticate_device("cert1", None, None, NOW), Err(AuthError::NoProof));
}

#[test]
fn the_authority_vouches_for_one_device_with_each_certificate() {
    let mut registry = registry();
    for id in ["ca1", "ca2"] {
        registry.add_device(Device { id: id.into(), credential: DeviceCredential::Authority });
    }
    let shown = |id: &str, proof| registry.authenticate_device(id, None, Some(&proof), NOW);
    assert_eq!(shown("ca1", Thumbprint::vouched(b"x", "ca1")), Ok(Grant { expires: None, policy: None }));
    for proof in [Thumbprint::vouched(b"x", "ca2"), Thumbprint::vouched(b"x", "CA1"), Thumbprint::of(b"x")] {
        assert_eq!(shown("ca1", proof), Err(AuthError::NotVouchedFor));
    }
    let token = token(&keys(1).primary, "hub.local.test/devices/ca1", None);
    let with_token = registry.authenticate_device("ca1", Some(&token), None, NOW);
    assert!(matches!(with_token, Err(AuthError::WrongKind(_))), "{with_token:?}");
    // A thumbprint counts with any issuer.
    assert!(shown("cert1", Thumbprint::vouched(b"certificate", "other")).is_ok());
}

#[test]
fn another_credential_changes_nothing_that_is_recorded_of_a_device() {
    let mut registry = registry();
    let recorded = IdentityRecord { is_edge: true, ..IdentityRecord::new("42".to_owned()) };
    registry.set_record("dev1", recorded.clone());
    registry.add_device(Device { id: "dev1".into(), credential: DeviceCredential::Keys(keys(5)) });
    assert_eq!(registry.device("dev1").map(|(_, record)| record), Some(&recorded));
    registry.remove_device("dev1");
    registry.add_device(Device { id: "dev1".into(), credential: DeviceCredential::Keys(keys(5)) });
    assert_ne!(registry.generation("dev1"), Some("42"), "it is another device");
}

#[test]
fn registry_rights_go_up_from_none_to_write() {
    let rights = [RegistryRight::None, RegistryRight::Read, RegistryRight::Write];
    let policies = rights.map(|registry| AccessPolicy {
        name: format!("{registry:?}"),
        keys: keys(30),
        service_connect: false,
        device_connect: false,
        registry,
    });
    let registry = Registry::new("hub.local.test", policies.to_vec());
    let may = |policy: &str, right| {
        let token = token(&keys(30).primary, "hub.local.test", Some(policy));
        registry.authenticate_back_end(&token, right, NOW).is_ok()
    };
    let (read, write) = (BackEndRight::RegistryRead, BackEndRight::RegistryWrite);
    assert_eq!([may("None", read), may("Read", read), may("Write", read)], [false, true, true]);
    assert_eq!([may("None", write), may("Read", write), may("Write", write)], [false, false, true]);
    assert!(!may("Write", BackEndRight::ServiceConnect));
}

#[test]
fn a_registered_thumbprint_may_be_sha_1_or_sha_256_in_either_case() {
    let mut registry = registry();
    // printf certificate | sha1sum; printf certificate | sha256sum
    let sha1 = "735AD571C189D7BA84464BF4A9F1D2280175B128";
    let sha256 = "03D66DD08835C1CA3F128CCEACD1F31AC94163096B20F445AE84285BC0832D72";
    for (primary, secondary) in [(sha1, None), ("00", Some(sha256)), (&*sha256.to_lowercase(), None)] {
        let secondary = secondary.map(str::to_owned);
        let credential = DeviceCredential::Thumbprints { primary: primary.to_owned(), secondary };
        registry.add_device(Device { id: "x".into(), credential });
        let sign_in = |der: &[u8]| registry.authenticate_device("x", None, Some(&Thumbprint::of(der)), NOW);
        assert!(sign_in(b"certificate").is_ok(), "{primary}");
        assert_eq!(sign_in(b"other"), Err(AuthError::WrongCertificate));
    }
    registry.set_record("x", IdentityRecord { enabled: false, ..IdentityRecord::default() });
    let refused = registry.authenticate_device("x", None, Some(&Thumbprint::of(b"certificate")), NOW);
    assert_eq!(refused, Err(AuthError::Disabled("x".into())));
}
