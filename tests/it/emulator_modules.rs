//! Modules of an edge device: how they sign in, what reaches their inputs, what back ends can do with modules.
//!
//! Owns: nothing. Must not know: how the emulator keeps modules.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;

use c2d_agent::credentials::{SasToken, SharedAccessKey};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v4::{Connect, ConnectReturnCode, Packet, PubAck, Publish, SubscribeReasonCode};
use serde_json::{Value, json};

use crate::emulator_methods::{called, respond};
use crate::emulator_mqtt::device::Device;
use crate::harness::{Emulator, Process, binary, run};
use crate::invoke_method::{back_end, seen};
use crate::rest::service_token;
use crate::rest_ask::ask;
use crate::sdk::{python, script};

const ROUTE: &str =
    "FROM /messages/modules/sensor/outputs/alarms INTO BrokeredEndpoint(\"/modules/filter/inputs/in\")";
const MODULES: [&str; 6] = ["--module", "edge1/filter", "--module", "edge1/sensor", "--route", ROUTE];

fn key(emulator: &Emulator, module: &str) -> SharedAccessKey {
    let file = emulator.ca_file().with_file_name(format!("modules/edge1/{module}.connection-string"));
    let text = std::fs::read_to_string(file).expect("a connection string");
    let start = format!("DeviceId=edge1;ModuleId={module};SharedAccessKey=");
    let (_, key) = text.trim().split_once(&start).expect(&text);
    SharedAccessKey::from_base64(key).expect("base64")
}

fn token(key: &SharedAccessKey, resource: &str) -> String {
    let expiry = std::time::SystemTime::now() + std::time::Duration::from_secs(600);
    SasToken::sign(key, resource, None, expiry).expose().to_owned()
}

/// The answer to a sign-in of the module `filter`.
fn sign_in(emulator: &Emulator, client_id: &str, password: String) -> (Device, ConnectReturnCode) {
    let config = c2d_agent::tls::client_config(Some(&emulator.ca_file()), None).expect("a configuration");
    let mut device = Device::dial_with(emulator.mqtt, config);
    let mut connect = Connect::new(client_id);
    connect.clean_session = false;
    connect.set_login("localhost/edge1/filter/?api-version=2021-04-12", password);
    device.send(Packet::Connect(connect));
    let code = device.connack().code;
    (device, code)
}

/// A module of `edge1`, signed in.
pub(crate) fn module(emulator: &Emulator, name: &str) -> Device {
    let config = c2d_agent::tls::client_config(Some(&emulator.ca_file()), None).expect("a configuration");
    let mut device = Device::dial_with(emulator.mqtt, config);
    let mut connect = Connect::new(format!("edge1/{name}"));
    connect.clean_session = false;
    let password = token(&key(emulator, name), &format!("localhost/devices/edge1/modules/{name}"));
    connect.set_login(format!("localhost/edge1/{name}/?api-version=2021-04-12"), password);
    device.send(Packet::Connect(connect));
    assert_eq!(device.connack().code, ConnectReturnCode::Success);
    device
}

pub(crate) fn feed(emulator: &Emulator, path: &str, form: &Value) -> (u16, Value) {
    let line = format!("POST /emulator/devices/{path}");
    let answer = ask(emulator, &line, &service_token(emulator), "", form.to_string().as_bytes());
    (answer.status, answer.json())
}

#[test]
fn a_module_signs_in_with_its_own_key_for_its_own_resource_alone() {
    let emulator = Emulator::start_with(&MODULES);
    let (own, other) = (key(&emulator, "filter"), key(&emulator, "sensor"));
    let resource = "localhost/devices/edge1/modules/filter";
    let code = |client_id, password| sign_in(&emulator, client_id, password).1;
    assert_eq!(code("edge1/filter", token(&own, resource)), ConnectReturnCode::Success);
    assert_eq!(code("edge1/filter", token(&other, resource)), ConnectReturnCode::NotAuthorized);
    // A token for the whole device covers its modules if the module's key signed it. The device's key is wrong.
    let device = emulator.device_string("edge1");
    let (_, device) = device.split_once("SharedAccessKey=").expect("a key");
    let device = SharedAccessKey::from_base64(device).expect("base64");
    assert_eq!(
        code("edge1/filter", token(&device, "localhost/devices/edge1")),
        ConnectReturnCode::NotAuthorized
    );
    assert_eq!(code("edge1", token(&own, resource)), ConnectReturnCode::BadClientId);
    let elsewhere = "localhost/devices/edge1/modules/sensor";
    assert_eq!(code("edge1/filter", token(&own, elsewhere)), ConnectReturnCode::NotAuthorized);
}

#[test]
fn an_input_gets_what_is_routed_to_it_until_it_settles_it() {
    let emulator = Emulator::start_with(&MODULES);
    let mut filter = module(&emulator, "filter");
    filter.subscribe(&[("devices/edge1/modules/filter/inputs/#", QoS::AtLeastOnce)]);
    let mut sensor = module(&emulator, "sensor");
    let send = |sensor: &mut Device, id: u16, output: &str, body: &str| {
        let topic = format!(
            "devices/edge1/modules/sensor/messages/events/%24.on={output}&%24.mid=m-{id}&level=a%20b/"
        );
        let mut publish = Publish::new(topic, QoS::AtLeastOnce, body);
        publish.pkid = id;
        sensor.send(Packet::Publish(publish));
        assert!(matches!(sensor.next(), Some(Packet::PubAck(ack)) if ack.pkid == id));
    };
    send(&mut sensor, 1, "other", "not routed");
    send(&mut sensor, 2, "alarms", "hot");
    let first = filter.publish();
    let topic = "devices/edge1/modules/filter/inputs/in/%24.cdid=edge1&%24.cmid=sensor&%24.on=alarms&%24.mid=m-2&level=a%20b";
    assert_eq!(
        (first.topic.as_str(), &first.payload[..], first.qos, first.dup),
        (topic, &b"hot"[..], QoS::AtLeastOnce, false)
    );

    // The message was not settled, so it comes again on the next connection, before the one from the control API.
    drop(filter);
    let mut filter = module(&emulator, "filter");
    let form = json!({ "messageId": "m-3", "properties": { "level": "low" }, "body": "cold" });
    assert_eq!(
        feed(&emulator, "edge1/modules/filter/inputs/in2", &form),
        (200, json!({ "messageId": "m-3" }))
    );
    let (again, fed) = (filter.publish(), filter.publish());
    assert_eq!((again.topic.as_str(), again.dup), (topic, true));
    assert_eq!(fed.topic, "devices/edge1/modules/filter/inputs/in2/%24.mid=m-3&%24.cdid=edge1&level=low");
    filter.send(Packet::PubAck(PubAck::new(again.pkid)));
    filter.send(Packet::PubAck(PubAck::new(fed.pkid)));
    filter.expect_silence();

    for (path, status, part) in [
        ("edge1/modules/none/inputs/in", 404, "device \"edge1\" has no module \"none\""),
        ("edge1/modules/filter/inputs/a%20b", 400, "\"a b\" is not a valid name of an input"),
        ("edge1%2Ffilter/messages", 400, "the hub sends no C2D messages to modules"),
    ] {
        let (code, body) = feed(&emulator, path, &form);
        assert!(
            code == status && body.to_string().replace("\\\"", "\"").contains(part),
            "{path}: {code} {body}"
        );
    }
    let mut send = binary();
    send.args(["c2d-send", "--device", "edge1/filter"])
        .env("C2D_SERVICE_CONNECTION_STRING", emulator.service_string());
    let (_, stderr, code) = seen(&run(&mut send));
    assert!(stderr.contains("\"edge1/filter\" is not a device id") && code == Some(2), "{stderr}");
    // A module may subscribe to C2D messages, but gets none.
    let asked =
        filter.subscribe(&[("devices/edge1/modules/filter/messages/devicebound/#", QoS::AtLeastOnce)]);
    assert_eq!(asked.return_codes, [SubscribeReasonCode::Success(QoS::AtLeastOnce)]);
    filter.expect_silence();
}

#[test]
fn a_back_end_calls_a_module_and_patches_its_twin() {
    let emulator = Emulator::start_with(&MODULES);
    let mut filter = module(&emulator, "filter");
    filter.subscribe(&[
        ("$iothub/methods/POST/#", QoS::AtMostOnce),
        ("$iothub/twin/PATCH/properties/desired/#", QoS::AtMostOnce),
    ]);
    let target = ["--device", "edge1", "--module", "filter"];
    let all = |arguments: &[&'static str]| [arguments, &target].concat();
    std::thread::scope(|scope| {
        let mut command = back_end(&emulator, &all(&["invoke-method", "--method", "ping"]));
        let caller = scope.spawn(move || seen(&run(&mut command)));
        let (_, rid, _) = called(&mut filter);
        respond(&mut filter, "200", &rid, "1");
        let (stdout, _, code) = caller.join().expect("an answer");
        assert!(
            stdout.starts_with("module filter of device edge1 answered ping with status 200"),
            "{stdout}"
        );
        assert_eq!(code, Some(0));
    });
    let patch = all(&["twin", "patch", "--desired", r#"{"interval": 5}"#]);
    assert_eq!(run(&mut back_end(&emulator, &patch)).status.code(), Some(0));
    assert_eq!(filter.publish().topic, "$iothub/twin/PATCH/properties/desired/?$version=2");
    let (stdout, _, _) = seen(&run(&mut back_end(&emulator, &all(&["twin", "get", "--json"]))));
    let twin: Value = serde_json::from_str(&stdout).expect("JSON");
    assert_eq!((twin["deviceId"].as_str(), twin["moduleId"].as_str()), (Some("edge1"), Some("filter")));
    // The device has another twin, and modules are not devices of the registry.
    let (stdout, _, _) =
        seen(&run(&mut back_end(&emulator, &["twin", "get", "--device", "edge1", "--json"])));
    let twin: Value = serde_json::from_str(&stdout).expect("JSON");
    let version = &twin["properties"]["desired"]["$version"];
    assert_eq!((twin.get("moduleId"), version), (None, &json!(1)));
    let listed = ask(
        &emulator,
        "GET /devices?api-version=1",
        &crate::rest::policy_token(&emulator, "iothubowner"),
        "",
        b"",
    );
    let ids: Vec<_> =
        listed.json().as_array().expect("a list").iter().map(|device| device["deviceId"].clone()).collect();
    assert_eq!(ids, ["edge1"]);
    for path in
        ["/devices/edge1%2Ffilter", "/devices/edge1%2Ffilter/messages/devicebound", "/twins/edge1%2Ffilter"]
    {
        let line = format!("GET {path}?api-version=1");
        assert_eq!(ask(&emulator, &line, &service_token(&emulator), "", b"").status, 404, "{path}");
    }
}

/// One request to a workload socket: status and body.
pub(crate) fn workload(path: &std::path::Path, request: &str, body: &str) -> (u16, Value) {
    let mut socket = UnixStream::connect(path).expect("a socket");
    let head = format!("{request} HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len());
    socket.write_all(head.as_bytes()).expect("sent");
    let mut answer = String::new();
    socket.read_to_string(&mut answer).expect("an answer, then the end");
    let (head, body) = answer.split_once("\r\n\r\n").expect(&answer);
    let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).expect(head);
    (status, serde_json::from_str(body).expect(body))
}

#[test]
fn the_workload_socket_signs_for_a_module_and_gives_the_roots() {
    let dir = tempfile::tempdir().expect("a directory");
    let path = dir.path().join("workload.sock");
    let arguments = [&MODULES[..], &["--workload-socket", path.to_str().expect("UTF-8")]].concat();
    let emulator = Emulator::start_with(&arguments);
    let environment = emulator.ca_file().with_file_name("modules/edge1/filter.env");
    let environment = std::fs::read_to_string(environment).expect("an environment");
    let value = |name: &str| {
        let start = format!("{name}=");
        environment.lines().find_map(|line| line.strip_prefix(&start)).expect(name).to_owned()
    };
    assert_eq!(value("IOTEDGE_WORKLOADURI"), format!("unix://{}", path.display()));
    assert_eq!(value("IOTEDGE_GATEWAYHOSTNAME"), format!("localhost:{}", emulator.mqtt.port()));
    let (status, body) = workload(&path, "GET /trust-bundle?api-version=2019-01-30", "");
    let ca = std::fs::read_to_string(emulator.ca_file()).expect("a CA");
    assert_eq!((status, body["certificate"].as_str()), (200, Some(ca.as_str())));

    let generation = value("IOTEDGE_MODULEGENERATIONID");
    let sign = |module: &str, generation: &str, body: &str| {
        let request = format!("POST /modules/{module}/genid/{generation}/sign?api-version=2018-06-28");
        workload(&path, &request, body)
    };
    // "localhost%2Fdevices%2Fedge1%2Fmodules%2Ffilter\n1893456000" in base64.
    let data = "bG9jYWxob3N0JTJGZGV2aWNlcyUyRmVkZ2UxJTJGbW9kdWxlcyUyRmZpbHRlcgoxODkzNDU2MDAw";
    let request = json!({ "keyId": "primary", "algo": "HMACSHA256", "data": data }).to_string();
    let (status, body) = sign("filter", &generation, &request);
    let digest = body["digest"].as_str().expect("a digest");
    let digest = percent_encoding::utf8_percent_encode(digest, percent_encoding::NON_ALPHANUMERIC);
    let token = format!(
        "SharedAccessSignature sr=localhost%2Fdevices%2Fedge1%2Fmodules%2Ffilter&sig={digest}&se=1893456000"
    );
    assert_eq!(status, 200);
    assert_eq!(sign_in(&emulator, "edge1/filter", token).1, ConnectReturnCode::Success);

    for (answer, status, part) in [
        (sign("filter", "1", &request), 404, "the module \"filter\" has no generation \"1\""),
        (sign("none", &generation, &request), 404, "there is no module \"none\""),
        (sign("filter", &generation, "{}"), 400, "data cannot be read: missing field `data`"),
        (
            workload(&path, "GET /trust-bundle?api-version=2017-01-01", ""),
            400,
            "\"2017-01-01\" is not an api-version",
        ),
        (
            workload(&path, "GET /modules?api-version=2018-06-28", ""),
            404,
            "only signs and gives its trust bundle",
        ),
    ] {
        let message = answer.1["message"].as_str().expect("a message").to_owned();
        assert!(answer.0 == status && message.contains(part), "{answer:?}");
    }
    assert_eq!(emulator.process.terminate(), Some(0));
    assert!(!path.exists(), "the socket is gone with the emulator");
}

#[test]
fn wrong_modules_routes_and_sockets_are_refused_at_the_start() {
    for (arguments, part) in [
        (&["--module", "edge1"][..], "\"\" is not a module id"),
        (&["--module", "a b/m"], "\"a b\" is not a device id"),
        (&["--module", "a/m", "--module", "a/m"], "\"a/m\" is named twice"),
        (&["--route", "FROM x INTO y"], "\"FROM x INTO y\" is not a route that the emulator knows"),
        (&["--workload-socket", "w.sock"], "--workload-socket serves one edge device"),
        (
            &["--workload-socket", "w.sock", "--module", "a/m", "--module", "b/m"],
            "with the same DEVICE in all of them",
        ),
    ] {
        let dir = tempfile::tempdir().expect("a directory");
        let mut command = binary();
        command.current_dir(dir.path()).args([
            "emulator",
            "--state-dir",
            "state",
            "--mqtt-port",
            "0",
            "--amqp-port",
            "0",
        ]);
        let (_, stderr, code) = seen(&run(command.args(["--https-port", "0"]).args(arguments)));
        assert!(stderr.contains(part) && code == Some(2), "{arguments:?}: {code:?} {stderr}");
    }
}

#[test]
fn the_sdks_module_runs_with_nothing_but_the_environment_of_edge_agent() {
    let Some(python) = python("the SDK's module from its edge environment") else { return };
    let socket = tempfile::tempdir().expect("a directory");
    let socket = socket.path().join("workload.sock");
    let arguments = [&MODULES[..], &["--workload-socket", socket.to_str().expect("UTF-8")]].concat();
    let (emulator, _dir) = crate::sdk::emulator(&arguments);
    let environment = emulator.ca_file().with_file_name("modules/edge1/filter.env");
    let environment = std::fs::read_to_string(environment).expect("an environment");
    let mut module = script(&python, "edge_module.py");
    module.envs(environment.lines().filter_map(|line| line.split_once('=')));
    let module = Process::spawn(&mut module);
    module.stdout.wait_for("ready");
    let form = json!({ "messageId": "m-1", "properties": { "zone": "nörd" }, "body": "hello" });
    assert_eq!(feed(&emulator, "edge1/modules/filter/inputs/in", &form).0, 200);
    let line = module.stdout.wait_for("input");
    let line: Value = serde_json::from_str(&line).expect("JSON");
    let properties = json!({ "$.cdid": "edge1", "zone": "nörd" });
    assert_eq!(line, json!({ "input": "in", "body": "hello", "properties": properties }));
    emulator.process.stderr.wait_for("answers=m-1");
    let arguments = ["invoke-method", "--device", "edge1", "--module", "filter", "--method", "end", "--json"];
    let (stdout, stderr, code) = seen(&run(&mut back_end(&emulator, &arguments)));
    assert!(
        stdout.contains(r#""payload":{"name": "end", "given": null}"#) && code == Some(0),
        "{stdout} {stderr}"
    );
    assert_eq!(module.wait_exit().code(), Some(0), "{}", module.stderr.text());
    let twin = ["twin", "get", "--device", "edge1", "--module", "filter", "--json"];
    let (stdout, _, _) = seen(&run(&mut back_end(&emulator, &twin)));
    assert!(stdout.contains(r#""last":"end""#), "{stdout}");
}
