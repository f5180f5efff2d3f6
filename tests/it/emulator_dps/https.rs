//! The provisioning service over HTTPS, request by request, and over an MQTT WebSocket on the same port.
//!
//! Owns: what a device sees there. Must not know: our agent's client.

use serde_json::{Value, json};

use super::client::{Certificates, device_key, token};
use super::emulator;
use crate::harness::Emulator;
use crate::rest_ask::{Answer, ask, ask_as};

const BASE: &str = "/0ne00000001/registrations/reg-01";

fn request(emulator: &Emulator, line: &str, body: &str) -> Answer {
    let token = token("reg-01", &device_key(emulator, "reg-01"));
    ask(emulator, line, &token, "Content-Type: application/json; charset=utf-8\r\n", body.as_bytes())
}

#[test]
fn a_registration_is_put_and_its_operation_is_polled() {
    let emulator = emulator();
    // The words of the path are compared without case.
    for path in [BASE, "/0ne00000001/Registrations/reg-01"] {
        let line = format!("PUT {path}/register?api-version=2019-03-31");
        let begun = request(&emulator, &line, r#"{"registrationId":"reg-01"}"#);
        assert_eq!((begun.status, begun.header("retry-after")), (202, Some("1")), "{begun:?}");
        assert_eq!(begun.header("content-type"), Some("application/json; charset=utf-8"));
        let operation = begun.json()["operationId"].as_str().expect("an id").to_owned();
        assert_eq!(begun.header("location"), Some(format!("{BASE}/operations/{operation}").as_str()));
        // Node sends a body with GET.
        for body in ["", "{}"] {
            let line = format!("GET {path}/operations/{operation}?api-version=2019-03-31");
            let ended = request(&emulator, &line, body);
            assert_eq!((ended.status, ended.header("retry-after")), (200, None), "{ended:?}");
            let state = &ended.json()["registrationState"];
            assert_eq!(
                (&state["status"], &state["deviceId"]),
                (&json!("assigned"), &json!("reg-01")),
                "{state}"
            );
        }
    }
    let looked = request(&emulator, &format!("POST {BASE}?api-version=2021-06-01"), "{}");
    assert_eq!((looked.status, &looked.json()["status"]), (200, &json!("assigned")));
}

#[test]
fn what_is_wrong_gets_the_error_body_of_the_service() {
    let emulator = emulator();
    let good = token("reg-01", &device_key(&emulator, "reg-01"));
    let register = format!("PUT {BASE}/register?api-version=2021-06-01");
    for (line, token, status) in [
        (register.as_str(), "", 401),
        (&register, "nonsense", 401),
        ("PUT /0ne2/registrations/reg-01/register?api-version=1", &good, 401),
        ("PUT /0ne00000001/registrations/reg-02/register?api-version=1", &good, 401),
    ] {
        let refused = ask(&emulator, line, token, "", b"{}");
        assert_eq!(refused.status, status, "{line}: {refused:?}");
        let body = refused.json();
        assert_eq!((&body["errorCode"], &body["message"]), (&json!(401_002), &json!("Unauthorized")));
    }
    let unversioned = request(&emulator, &format!("PUT {BASE}/register"), "{}");
    assert_eq!(unversioned.status, 400, "{unversioned:?}");
    let unknown = request(&emulator, &format!("GET {BASE}/operations/5.1.x?api-version=1"), "");
    assert_eq!((unknown.status, &unknown.json()["errorCode"]), (404, &json!(404_201)));
    let none = Emulator::start();
    let closed = ask(&none, &register, &good, "", b"{}");
    let said = closed.json();
    assert!(
        closed.status == 404 && said["message"].as_str().is_some_and(|text| text.contains("--dps-device")),
        "{said}"
    );
}

#[test]
fn a_certificate_of_the_connection_is_the_proof() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = Certificates::make(dir.path());
    let group = format!("fleet={}", made.path("ca.pem").display());
    let emulator = Emulator::start_with(&["--dps-group", &group]);
    let put = |id: &str, name: &str| {
        let line = format!("PUT /0ne00000001/registrations/{id}/register?api-version=2021-06-01");
        ask_as(&emulator, Some(&made.of(name)), &line, "", b"")
    };
    assert_eq!(put("pump-1", "pump-1").status, 202);
    assert_eq!(put("foreign", "foreign").status, 401);
}

#[test]
fn an_html_page_of_a_proxy_can_be_the_answer() {
    let emulator = Emulator::start_with(&["--dps-device", "reg-01", "--fault", "dps-html=1"]);
    let line = format!("PUT {BASE}/register?api-version=2021-06-01");
    let page = request(&emulator, &line, "{}");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    assert!(serde_json::from_str::<Value>(&page.body).is_err());
    assert_eq!(request(&emulator, &line, "{}").status, 202);
}
