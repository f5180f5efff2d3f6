//! Connection strings that are accepted, and the sentence for each mistake.

use super::*;
use proptest::prelude::*;

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

fn device(text: &str) -> String {
    DeviceConnectionString::parse(text).expect_err("malformed").to_string()
}

#[test]
fn a_device_string_with_a_gateway_and_a_port() {
    let text = format!("HostName=localhost:18883;DeviceId=dev1;SharedAccessKey={KEY};GatewayHostName=gw");
    let parsed = DeviceConnectionString::parse(&text).expect("valid");
    assert_eq!(parsed.host, HostPort { name: "localhost".into(), port: Some(18883) });
    assert_eq!(parsed.gateway.map(|gateway| gateway.to_string()), Some("gw".into()));
    assert!(matches!(parsed.secret, DeviceSecret::Key(_)));
}

#[test]
fn a_device_string_may_carry_a_token_or_name_x509() {
    let token = "SharedAccessSignature sr=h&sig=Yg%3D%3D&se=1";
    let text = format!("HostName=h;DeviceId=d;SharedAccessSignature={token}");
    assert!(matches!(DeviceConnectionString::parse(&text).expect("valid").secret, DeviceSecret::Token(_)));
    let x509 = DeviceConnectionString::parse("HostName=h;DeviceId=d;x509=true").expect("valid");
    assert_eq!(x509.secret, DeviceSecret::X509);
}

#[test]
fn a_module_string_names_the_module() {
    let text = format!("HostName=h;DeviceId=d;ModuleId=m%1;SharedAccessKey={KEY}");
    let parsed = DeviceConnectionString::parse(&text).expect("valid");
    assert_eq!((parsed.device_id.as_str(), parsed.module_id.as_deref()), ("d", Some("m%1")));
}

#[test]
fn a_service_string_in_a_devices_place_is_named_and_the_reverse() {
    let service = format!("HostName=h;SharedAccessKeyName=service;SharedAccessKey={KEY}");
    assert!(device(&service).contains("this is a service connection string"));
    assert_eq!(ServiceConnectionString::parse(&service).expect("valid").policy, "service");
    let own = format!("HostName=h;DeviceId=d;SharedAccessKey={KEY}");
    let error = ServiceConnectionString::parse(&own).expect_err("a device string").to_string();
    assert!(error.contains("this is a device connection string"));
}

#[test]
fn each_mistake_has_its_sentence() {
    assert!(device("").contains("empty"));
    assert!(device("HostName=h;DeviceId").contains("part 2"));
    assert!(device("HostName=h;DeviceId=d\nHostName=h;DeviceId=e").contains("DeviceId twice: keep one"));
    assert!(device("HostName=h;DeviceId=d").contains("lacks SharedAccessKey"));
    assert!(device("DeviceId=d;SharedAccessKey=AA==").contains("lacks HostName"));
    assert!(device("HostName=h;HostName=h").contains("HostName twice"));
    assert!(device("HostName=h;Colour=red").contains("\"Colour\""));
    assert!(device("HostName=h:x;DeviceId=d;SharedAccessKey=AA==").contains("\"h:x\""));
    assert!(device("HostName=h;DeviceId=a/b;SharedAccessKey=AA==").contains("\"a/b\""));
    assert!(
        device("HostName=h;DeviceId=d;ModuleId=a/b;SharedAccessKey=AA==").contains("\"a/b\" is not a module")
    );
    let key = device("HostName=h;DeviceId=d;SharedAccessKey=not*base64");
    assert!(key.contains("not base64") && !key.contains("not*"), "{key}");
}

#[test]
fn what_is_no_connection_string_is_told_by_its_looks() {
    let string = format!("HostName=h;DeviceId=d;SharedAccessKey={KEY}");
    for (text, sentence) in [
        (format!("{{\n  \"connectionString\": \"{string}\"\n}}"), "this is JSON, not only"),
        (format!("{{'connectionString': '{string}'}}"), "with --query connectionString -o tsv"),
        (format!("[\"{string}\"]"), "this is JSON"),
        (format!("'{string}'"), "remove them"),
        (format!("connectionString: {string}"), "there is text before HostName="),
        (format!("export C2D_DEVICE_CONNECTION_STRING='{string}'"), "there is text before HostName="),
        (KEY.to_owned(), "this is not a connection string"),
        ("myhub.azure-devices.net".to_owned(), "this is not a connection string"),
        (
            format!("Endpoint=sb://x/;SharedAccessKeyName=x;SharedAccessKey={KEY}"),
            "Event Hubs or Service Bus",
        ),
    ] {
        let error = device(&text);
        assert!(error.contains(sentence) && !error.contains(KEY), "{text}: {error}");
    }
    assert!(DeviceConnectionString::parse(&format!("\u{feff}{string}\r\n")).is_ok());
}

#[test]
fn a_key_that_lost_its_name_is_not_repeated() {
    let error = device(&format!("HostName=h;DeviceId=d;{KEY}"));
    assert!(error.contains("part 3 of the connection string is not Key=Value"), "{error}");
    assert!(!error.contains(&KEY[..8]), "{error}");
}

#[test]
fn a_key_whose_separator_was_lost_is_not_repeated() {
    for separator in ["\n", ",", " "] {
        let host = device(&format!("HostName=h{separator}DeviceId=d{separator}SharedAccessKey={KEY}"));
        assert!(host.starts_with("HostName is \"h") && !host.contains(&KEY[..4]), "{host}");
        let id = device(&format!("HostName=h;DeviceId=d{separator}SharedAccessKey={KEY}/"));
        assert!(!id.contains(&KEY[..4]), "{id}");
    }
}

#[test]
fn hosts_may_be_addresses() {
    assert_eq!(HostPort::parse("[::1]:8883").map(|host| host.to_string()), Some("[::1]:8883".into()));
    assert_eq!(HostPort::parse("127.0.0.1").map(|host| host.to_string()), Some("127.0.0.1".into()));
    assert_eq!(HostPort::parse("::1").map(|host| host.name), Some("::1".into()));
    assert_eq!(HostPort::parse("[hub:]"), None, "colons belong to IPv6 addresses only");
    assert_eq!(HostPort::parse("hub:8883:"), None);
    assert_eq!(HostPort::parse("h:0"), None);
    assert_eq!(HostPort::parse("a b"), None);
}

proptest! {
    #[test]
    fn any_text_parses_or_is_refused_without_a_panic(text in ".{0,200}") {
        let device = DeviceConnectionString::parse(&text);
        let service = ServiceConnectionString::parse(&text);
        prop_assert!(device.is_err() || service.is_err(), "no text is both kinds");
    }
}
