//! The emulator's provisioning service on the wire: MQTT packet by packet, and HTTPS request by request.
//!
//! Owns: what a client of the Device Provisioning Service must see. Must not know: our agent's client.

use std::process::Command;

use c2d_agent::credentials::SharedAccessKey;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{ConnectReturnCode, Packet, PubAck, Publish, SubscribeReasonCode, Unsubscribe};
use serde_json::{Value, json};

use crate::harness::{Emulator, binary, run};

mod back_end;
pub(crate) mod client;
mod https;
mod hubs;
mod interrupted;
mod issued;

use client::{ANSWERS, Client, device_key, registered, token};

const REGISTER: &str = "$dps/registrations/PUT/iotdps-register/?$rid=";

fn emulator() -> Emulator {
    Emulator::start_with(&["--dps-device", "reg-01"])
}

#[test]
fn a_registration_goes_from_puback_to_assigned_and_the_device_signs_in_at_its_hub() {
    let emulator = emulator();
    let key = device_key(&emulator, "reg-01");
    let mut client = Client::sign_in(&emulator, "reg-01", &token("reg-01", &key));
    assert_eq!(
        client.subscribe(&[(ANSWERS, QoS::ExactlyOnce)]),
        [SubscribeReasonCode::Success(QoS::AtLeastOnce)]
    );

    // The PUBACK comes before the answer, and the topic is what the SDKs take apart byte by byte.
    let body = json!({ "registrationId": "reg-01", "payload": { "site": 12 } }).to_string();
    client.publish(&format!("{REGISTER}u-7"), QoS::AtLeastOnce, &body);
    assert!(matches!(client.next(), Some(Packet::PubAck(ack)) if ack.pkid == 9));
    let answer = client.answer();
    assert_eq!(answer.topic, "$dps/registrations/res/202/?$rid=u-7&retry-after=1");
    assert_eq!(answer.qos, QoS::AtLeastOnce);
    let begun: Value = serde_json::from_slice(&answer.payload).expect("JSON");
    assert_eq!(begun["status"], "assigning");
    let operation = begun["operationId"].as_str().expect("an operation").to_owned();
    client.send(Packet::PubAck(PubAck::new(answer.pkid)));

    // Each SDK polls with a body of its own, at QoS 0 or 1.
    for (rid, body) in
        [("1", ""), ("2", " "), ("3", "{}"), ("4", &*json!({ "registrationId": "reg-01" }).to_string())]
    {
        let topic =
            format!("$dps/registrations/GET/iotdps-get-operationstatus/?$rid={rid}&operationId={operation}");
        client.publish(&topic, QoS::AtMostOnce, body);
        let answer = client.answer();
        assert_eq!(answer.topic, format!("$dps/registrations/res/200/?$rid={rid}"));
        let assigned: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        let state = &assigned["registrationState"];
        assert_eq!((&assigned["operationId"], &assigned["status"]), (&json!(operation), &json!("assigned")));
        assert_eq!(state["assignedHub"], format!("localhost:{}", emulator.mqtt.port()));
        assert_eq!((&state["deviceId"], &state["registrationId"]), (&json!("reg-01"), &json!("reg-01")));
        assert_eq!(
            (&state["status"], &state["substatus"]),
            (&json!("assigned"), &json!("initialAssignment"))
        );
        assert_eq!(state["payload"], json!({ "site": 12 }), "a custom payload comes back");
        for field in ["createdDateTimeUtc", "lastUpdatedDateTimeUtc", "etag"] {
            assert!(state[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {state}");
        }
    }
    client.send(Packet::Unsubscribe(Unsubscribe { pkid: 3, topics: vec![ANSWERS.into()] }));
    assert!(matches!(client.next(), Some(Packet::UnsubAck(ack)) if ack.pkid == 3));
    client.send(Packet::Disconnect);
    client.expect_close();

    let connect = client::hub_connect("reg-01", &key, "localhost");
    assert_eq!(Client::dial(&emulator, None).connack_to(connect), ConnectReturnCode::Success);
    emulator.process.stderr.wait_for("a device registered at the provisioning service");
}

#[test]
fn an_unknown_id_and_a_wrong_key_are_refused_in_band_with_one_body() {
    let emulator = Emulator::start_with(&["--dps-device", "reg-01", "--dps-group", "fleet"]);
    let wrong = SharedAccessKey::from_bytes([9; 32]);
    // The proof comes first: without it, a client does not learn what is wrong with its request either.
    for (id, body) in [("reg-01", ""), ("reg-02", ""), ("reg-01", "<html>")] {
        let mut client = Client::sign_in(&emulator, id, &token(id, &wrong));
        client.subscribe(&[(ANSWERS, QoS::AtLeastOnce)]);
        client.publish(&format!("{REGISTER}1"), QoS::AtMostOnce, body);
        let answer = client.answer();
        assert_eq!(answer.topic, "$dps/registrations/res/401/?$rid=1");
        let body: Value = serde_json::from_slice(&answer.payload).expect("JSON");
        assert_eq!((&body["errorCode"], &body["message"]), (&json!(401_002), &json!("Unauthorized")));
        assert!(body["trackingId"].is_string() && body["timestampUtc"].is_string(), "{body}");
    }
    emulator.process.stderr.wait_for("the token's signature does not match");
    emulator.process.stderr.wait_for("no enrolment is for \"reg-02\"");
}

#[test]
fn what_is_wrong_before_an_enrolment_counts_is_refused_at_the_door() {
    let emulator = emulator();
    let key = device_key(&emulator, "reg-01");
    let good = token("reg-01", &key);
    let version = "api-version=2021-06-01&ClientVersion=t";
    let refused = [
        ("0ne00000002/registrations/reg-01/", version, good.as_str(), 5, "the ID scope is \"0ne00000002\""),
        ("0ne00000001/registrations/reg-01/", version, "", 5, "no token and no client certificate"),
        ("0ne00000001/registrations/reg-01/", version, "nonsense", 5, "a SAS token begins with"),
        ("0ne00000001/registrations/reg-01/", "api-version=&ClientVersion=t", &good, 5, "lacks api-version"),
        ("0ne00000001/registrations/reg-02/", version, &good, 2, "the client id is not"),
    ];
    for (user, version, token, code, reason) in refused {
        let connect = client::connect("reg-01", &format!("{user}{version}"), token);
        let answered = Client::dial(&emulator, None).connack_to(connect);
        let expected =
            if code == 5 { ConnectReturnCode::NotAuthorized } else { ConnectReturnCode::BadClientId };
        assert_eq!(answered, expected, "{user}{version}");
        emulator.process.stderr.wait_for(reason);
    }
    let expired = client::token_until("reg-01", &key, 1_000);
    let connect = client::connect("reg-01", &client::user_name("reg-01"), &expired);
    assert_eq!(Client::dial(&emulator, None).connack_to(connect), ConnectReturnCode::NotAuthorized);
    emulator.process.stderr.wait_for("the token expired at 1970-01-01T00:16:40");
}

#[test]
fn an_emulator_without_the_service_says_how_to_start_it() {
    let emulator = Emulator::start();
    let key = SharedAccessKey::from_bytes([9; 32]);
    let connect = client::connect("reg-01", &client::user_name("reg-01"), &token("reg-01", &key));
    assert_eq!(Client::dial(&emulator, None).connack_to(connect), ConnectReturnCode::NotAuthorized);
    emulator.process.stderr.wait_for("this emulator has no provisioning service: start it with --dps-device");
}

#[test]
fn only_the_documented_topics_are_served() {
    let emulator = emulator();
    let key = device_key(&emulator, "reg-01");
    let signed_in = || Client::sign_in(&emulator, "reg-01", &token("reg-01", &key));
    let mut client = signed_in();
    assert_eq!(client.subscribe(&[("$iothub/twin/res/#", QoS::AtLeastOnce)]), [SubscribeReasonCode::Failure]);
    client.expect_close();
    for topic in ["$dps/registrations/PUT/iotdps-register/", "devices/reg-01/messages/events/"] {
        let mut client = signed_in();
        client.publish(topic, QoS::AtMostOnce, "");
        client.expect_close();
    }
    let mut client = signed_in();
    client.publish(&format!("{REGISTER}1"), QoS::ExactlyOnce, "");
    client.expect_close();
    // Nobody listens to the answer, so there is none; the connection goes on.
    let mut client = signed_in();
    client.publish(&format!("{REGISTER}1"), QoS::AtMostOnce, "");
    client.expect_silence();
    let mut client = signed_in();
    client.subscribe(&[(ANSWERS, QoS::AtMostOnce)]);
    client.publish(&format!("{REGISTER}1"), QoS::AtMostOnce, "<html>");
    let answer: Publish = client.answer();
    assert_eq!((answer.topic.as_str(), answer.qos), ("$dps/registrations/res/400/?$rid=1", QoS::AtMostOnce));
}

#[test]
fn a_registration_again_resets_nothing_and_survives_a_restart() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let start = || Emulator::start_in(&state, "0", "0", &["--dps-device", "reg-01", "--dps-group", "fleet"]);
    let emulator = start();
    let key = device_key(&emulator, "reg-01");
    let first = registered(&emulator, "reg-01", &key, "");
    emulator.send("reg-01", &["--message-id", "m-1", "--data", "waits"]);
    assert_eq!(emulator.process.terminate(), Some(0));

    let emulator = start();
    assert_eq!(device_key(&emulator, "reg-01"), key, "a key that was made is kept");
    let second = registered(&emulator, "reg-01", &key, "");
    assert_eq!(second["createdDateTimeUtc"], first["createdDateTimeUtc"]);
    assert_eq!(second["substatus"], "initialAssignment");
    let mut device = Client::dial(&emulator, None);
    let connect = client::hub_connect("reg-01", &key, "localhost");
    assert_eq!(device.connack_to(connect), ConnectReturnCode::Success);
    device.subscribe(&[("devices/reg-01/messages/devicebound/#", QoS::AtLeastOnce)]);
    assert_eq!(&device.answer().payload[..], b"waits", "the queue is the same");

    // Another key of the same enrolment: the device's follows.
    assert_eq!(emulator.process.terminate(), Some(0));
    let other = SharedAccessKey::from_bytes([3; 32]);
    let option = format!("reg-01={}", other.expose_base64());
    let emulator = Emulator::start_in(&state, "0", "0", &["--dps-device", &option]);
    registered(&emulator, "reg-01", &other, "");
    let connect = client::hub_connect("reg-01", &other, "localhost");
    assert_eq!(Client::dial(&emulator, None).connack_to(connect), ConnectReturnCode::Success);
}

#[test]
fn any_device_of_a_group_registers_with_a_derived_key() {
    let emulator = Emulator::start_with(&["--dps-group", "fleet"]);
    let text = std::fs::read_to_string(emulator.state.join("dps/groups/fleet.key")).expect("a key");
    let group = SharedAccessKey::from_base64(&text).expect("base64");
    for id in ["Pump-1", "pump-2"] {
        let key = SharedAccessKey::from_bytes(group.digest(id.as_bytes()));
        assert_eq!(registered(&emulator, id, &key, "")["deviceId"], id);
        let connect = client::hub_connect(id, &key, "localhost");
        assert_eq!(Client::dial(&emulator, None).connack_to(connect), ConnectReturnCode::Success);
    }
}

#[test]
fn well_known_keys_end_with_the_start_that_had_them() {
    let dir = tempfile::tempdir().expect("a directory");
    let start = |option: &[&str]| Emulator::start_in(&dir.path().join("state"), "0", "0", option);
    let key = |emulator: &Emulator| {
        let text = std::fs::read_to_string(emulator.state.join("dps/groups/fleet.key")).expect("a key");
        let group = SharedAccessKey::from_base64(&text).expect("base64");
        SharedAccessKey::from_bytes(group.digest(b"pump-1"))
    };
    let signs_in = |emulator: &Emulator, key: &SharedAccessKey| {
        let connect = client::hub_connect("pump-1", key, "localhost");
        Client::dial(emulator, None).connack_to(connect) == ConnectReturnCode::Success
    };
    let emulator = start(&["--dps-group", "fleet", "--dps-device", "reg-01", "--well-known-keys"]);
    let (known, known_of_one) = (key(&emulator), device_key(&emulator, "reg-01"));
    registered(&emulator, "pump-1", &known, "");
    assert!(signs_in(&emulator, &known));
    // A back end changes the enrolment, and keeps its keys.
    let body = json!({ "registrationId": "reg-01", "attestation": { "type": "symmetricKey" } });
    let changed = back_end::BackEnd::of(&emulator).ask("PUT /enrollments/reg-01", "If-Match: *\r\n", &body);
    assert_eq!(changed.status, 200, "{changed:?}");
    assert_eq!(emulator.process.terminate(), Some(0));

    // Also where this start has no provisioning service.
    let emulator = start(&[]);
    assert!(!signs_in(&emulator, &known));
    assert_eq!(emulator.process.terminate(), Some(0));
    let emulator = start(&["--dps-group", "fleet"]);
    let own = key(&emulator);
    assert!(own != known && !signs_in(&emulator, &known));
    registered(&emulator, "pump-1", &own, "");
    assert!(signs_in(&emulator, &own));
    let refused = client::polled(&emulator, "reg-01", &known_of_one, "");
    assert_eq!(refused[0].0, 401, "the enrolment of the back end has another key now");
}

#[test]
fn certificates_register_by_themselves_or_by_their_authority() {
    let dir = tempfile::tempdir().expect("a directory");
    let made = client::Certificates::make(dir.path());
    let device = format!("solo={}", made.path("solo.pem").display());
    let group = format!("fleet={}", made.path("ca.pem").display());
    let emulator = Emulator::start_with(&["--dps-device", &device, "--dps-group", &group]);
    for id in ["solo", "pump-1"] {
        let state = client::registered_with_certificate(&emulator, id, &made.of(id));
        assert_eq!(state["deviceId"], id);
        let mut device = Client::dial(&emulator, Some(&made.of(id)));
        let connect = client::connect(id, &format!("localhost/{id}/?api-version=2021-04-12"), "");
        assert_eq!(device.connack_to(connect), ConnectReturnCode::Success, "{id} signs in at the hub");
    }
    // A certificate of no known authority, one for another id, and one of the group's authority for another id.
    for (id, shown, reason) in [
        ("solo", "foreign", "the certificate is for \"foreign\""),
        ("foreign", "foreign", "does not lead to the authority of the group"),
        ("pump-2", "pump-1", "the certificate is for \"pump-1\""),
    ] {
        let mut client = Client::dial(&emulator, Some(&made.of(shown)));
        let connect = client::connect(id, &client::user_name(id), "");
        assert_eq!(client.connack_to(connect), ConnectReturnCode::Success);
        client.subscribe(&[(ANSWERS, QoS::AtLeastOnce)]);
        client.publish(&format!("{REGISTER}1"), QoS::AtMostOnce, "");
        assert_eq!(client.answer().topic, "$dps/registrations/res/401/?$rid=1");
        emulator.process.stderr.wait_for(reason);
    }
}

#[test]
fn faults_are_set_at_the_start_and_while_it_runs() {
    let emulator = Emulator::start_with(&[
        "--dps-device",
        "reg-01",
        "--dps-device",
        "reg-02",
        "--fault",
        "dps-throttle=1",
    ]);
    let ask = |id: &str| {
        let mut client = Client::sign_in(&emulator, id, &token(id, &device_key(&emulator, id)));
        client.subscribe(&[(ANSWERS, QoS::AtLeastOnce)]);
        client.publish(&format!("{REGISTER}1"), QoS::AtMostOnce, "");
        client.answer()
    };
    let throttled = ask("reg-01");
    assert_eq!(throttled.topic, "$dps/registrations/res/429/?$rid=1&retry-after=1");
    let body: Value = serde_json::from_slice(&throttled.payload).expect("JSON");
    assert_eq!(body["errorCode"], 429_001);
    let faults = |arguments: &[&str]| {
        let mut command: Command = binary();
        command.args(["emulator", "faults", "--state-dir"]).arg(&emulator.state);
        let output = run(command.args(arguments));
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert_eq!(
        faults(&["dps-assigning=1", "dps-slow=1ms"]),
        "provisioning service  dps-assigning=1 dps-slow=1ms\n"
    );
    let one = faults(&["--device", "reg-02", "dps-failed=400208"]);
    assert!(one.ends_with("registration reg-02  dps-failed=400208\n"), "{one}");

    let key = |id| device_key(&emulator, id);
    let failed = client::polled(&emulator, "reg-02", &key("reg-02"), "");
    assert_eq!(failed.iter().map(|answer| answer.0).collect::<Vec<_>>(), [202, 202, 200]);
    assert_eq!(failed[1].1["registrationState"]["status"], "assigning");
    let end = &failed[2].1;
    assert_eq!((&end["status"], &end["registrationState"]["errorCode"]), (&json!("failed"), &json!(400_208)));
    let shown = faults(&[]);
    assert!(shown.contains("provisioning service  dps-assigning=1 dps-slow=1ms\n"), "{shown}");
    assert!(faults(&["--clear"]).ends_with("provisioning service  no faults\n"));
    assert_eq!(client::polled(&emulator, "reg-02", &key("reg-02"), "").len(), 2);

    let other = Emulator::start();
    let mut command = binary();
    let command = command.args(["emulator", "faults", "dps-move", "--state-dir"]).arg(&other.state);
    let refused = run(command);
    let said = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(refused.status.code() == Some(1) && said.contains("there is no provisioning service"), "{said}");
}

#[test]
fn wrong_options_are_told_and_nothing_starts() {
    let dir = tempfile::tempdir().expect("a directory");
    std::fs::write(dir.path().join("not.pem"), "x").expect("written");
    let file = format!("a={}", dir.path().join("not.pem").display());
    let missing = format!("a={}", dir.path().join("none.pem").display());
    for (arguments, said) in [
        (&["--dps-device", "a b"][..], "is not a registration id"),
        (&["--dps-device", "a=no+base64!"], "neither a key in base64 nor a PEM file"),
        (&["--dps-device", &file], "the certificate is neither PEM nor DER in base64"),
        (&["--dps-group", &missing], "there is no such file"),
        (&["--dps-device", "a", "--dps-device", "A"], "is given twice"),
        (&["--id-scope", "a/b"], "is not an ID scope"),
        (&["--fault", "dps-move"], "there is no provisioning service for the fault dps-move"),
        (
            &["--dps-device", "a", "--fault", "dps-x"],
            "there is no fault \"dps-x\" of the provisioning service",
        ),
    ] {
        let mut command = binary();
        command.args([
            "emulator",
            "--mqtt-port",
            "0",
            "--amqp-port",
            "0",
            "--https-port",
            "0",
            "--state-dir",
        ]);
        let output = run(command.arg(dir.path().join("state")).args(arguments));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(2) && text.contains(said), "{arguments:?}: {text}");
    }
}

#[test]
fn a_damaged_file_of_the_service_is_named_and_left_as_it_is() {
    let dir = tempfile::tempdir().expect("a directory");
    let state = dir.path().join("state");
    let emulator = Emulator::start_in(&state, "0", "0", &["--dps-device", "reg-01"]);
    registered(&emulator, "reg-01", &device_key(&emulator, "reg-01"), "");
    assert_eq!(emulator.process.terminate(), Some(0));
    let file = state.join("provisioning.jsonl");
    let whole = std::fs::read_to_string(&file).expect("text");
    for (line, said) in [
        (
            r#"{"key":"registration/x","value":{"secret":1}}"#,
            "the value of \"registration/x\" does not have its form",
        ),
        (
            r#"{"key":"enrolment/group/x","value":{"attestation":{"type":"tpm"}}}"#,
            "the value of \"enrolment/group/x\"",
        ),
        (
            r#"{"key":"keys/group/x","value":{"primary":"?","secondary":"?"}}"#,
            "the value of \"keys/group/x\"",
        ),
        ("<html>", "provisioning.jsonl cannot be used"),
    ] {
        let damaged = format!("{whole}{line}\n");
        std::fs::write(&file, &damaged).expect("written");
        let mut command = binary();
        command.args([
            "emulator",
            "--mqtt-port",
            "0",
            "--amqp-port",
            "0",
            "--https-port",
            "0",
            "--state-dir",
        ]);
        let output = run(command.arg(&state).args(["--dps-device", "reg-01"]));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(output.status.code() == Some(1) && text.contains(said), "{line}: {text}");
        assert_eq!(std::fs::read_to_string(&file).expect("text"), damaged);
    }
}

#[test]
fn the_environment_names_the_service_and_the_first_device() {
    let emulator = Emulator::start_with(&["--dps-device", "reg-01", "--id-scope", "0ne1234"]);
    let environment = std::fs::read_to_string(emulator.state.join("env")).expect("text");
    let key = device_key(&emulator, "reg-01").expose_base64();
    for line in [
        format!("export C2D_PROVISIONING_ENDPOINT='localhost:{}'", emulator.mqtt.port()),
        "export C2D_PROVISIONING_ID_SCOPE='0ne1234'".to_owned(),
        "export C2D_PROVISIONING_REGISTRATION_ID='reg-01'".to_owned(),
        format!("export C2D_PROVISIONING_KEY='{key}'"),
        "unset C2D_DEVICE_CONNECTION_STRING".to_owned(),
    ] {
        assert!(environment.lines().any(|own| own == line), "{line}\n{environment}");
    }
    // An agent has one identity: beside a device, the scope would be a second one.
    let emulator = Emulator::start_with(&["--dps-device", "reg-01", "--device", "dev1"]);
    let environment = std::fs::read_to_string(emulator.state.join("env")).expect("text");
    assert!(environment.contains("export C2D_PROVISIONING_ENDPOINT="), "{environment}");
    assert!(!environment.contains("export C2D_PROVISIONING_ID_SCOPE"), "{environment}");
}
