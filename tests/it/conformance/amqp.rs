//! Lines 11 to 15, 17, 19 and 20: AMQP from its first byte to the answer to each message.
//!
//! Owns: a client that signs in and attaches links. Must not know: how bytes are made (`frames`).

use std::time::{Duration, Instant, SystemTime};

use c2d_agent::credentials::{SasToken, SharedAccessKey};

use crate::emulator_websocket::Socket;
use crate::frames::{
    ACCEPTED, AMQP_VALUE, APPLICATION_PROPERTIES, ATTACH, BEGIN, DATA, DETACH, DISPOSITION, ERROR, FLOW,
    Frame, OPEN, PLAIN_HEADER, PROPERTIES, Peer, REJECTED, SASL_HEADER, SASL_INIT, SASL_MECHANISMS,
    SASL_OUTCOME, TRANSFER, Value, message,
};
use crate::harness::Emulator;
use crate::rest::service_token;
use crate::rest_ask::{ask, device_token};

mod deliveries;
mod events;

/// The address that back ends attach.
const DEVICEBOUND: &str = "/messages/devicebound";
/// The address that a device attaches.
const OF_DEV1: &str = "/devices/dev1/messages/devicebound";

const MECHANISMS: [&str; 4] = ["MSSBCBS", "PLAIN", "ANONYMOUS", "EXTERNAL"];

/// The initial response of SASL PLAIN.
fn plain(user: &str, password: &str) -> Value {
    Value::Binary(format!("\0{user}\0{password}").into_bytes())
}

/// Runs SASL, and returns the code of its outcome.
fn sasl(peer: &mut Peer, mechanism: &str, response: Value) -> Value {
    peer.write(SASL_HEADER);
    assert_eq!(&peer.header(), SASL_HEADER);
    let offered = peer.expect(SASL_MECHANISMS);
    assert_eq!(offered.field(0), &Value::Array(MECHANISMS.map(Value::symbol).to_vec()), "all, in this order");
    peer.send_sasl(SASL_INIT, vec![Value::symbol(mechanism), response]);
    peer.expect(SASL_OUTCOME).field(0).clone()
}

/// Opens a connection with an idle time-out in milliseconds, and begins one session.
fn open(peer: &mut Peer, idle: Value) {
    peer.write(PLAIN_HEADER);
    assert_eq!(&peer.header(), PLAIN_HEADER);
    let (name, host) = (Value::text("conformance"), Value::text("localhost"));
    peer.send(0, OPEN, vec![name, host, Value::Null, Value::Null, idle], &[]);
    peer.expect(OPEN);
    let window = || Value::Uint(1_000);
    peer.send(0, BEGIN, vec![Value::Null, Value::Uint(0), window(), window()], &[]);
    peer.expect(BEGIN);
}

/// A back end or device that has signed in with SASL PLAIN and has a session.
fn signed_in(emulator: &Emulator, user: &str, token: &str) -> Peer {
    let mut peer = Peer::dial(emulator);
    assert_eq!(sasl(&mut peer, "PLAIN", plain(user, token)), Value::Ubyte(0));
    open(&mut peer, Value::Null);
    peer
}

fn service(emulator: &Emulator) -> Peer {
    signed_in(emulator, "service@sas.root.localhost", &service_token(emulator))
}

fn device(emulator: &Emulator) -> Peer {
    signed_in(emulator, "dev1@sas.localhost", &device_token(emulator, "dev1"))
}

/// Asks for a link, as the sender to `address` or the receiver from it, with the receiver's settle mode.
fn attach(peer: &mut Peer, handle: u32, is_receiver: bool, address: &str, settle: u8) -> Frame {
    let terminus = |kind| Value::composite(kind, vec![Value::text(address)]);
    let own = |kind| Value::composite(kind, vec![Value::text("own")]);
    let (source, target) =
        if is_receiver { (terminus(0x28), own(0x29)) } else { (own(0x28), terminus(0x29)) };
    let name = Value::text(&format!("link-{handle}"));
    let modes = [Value::Ubyte(0), Value::Ubyte(settle)];
    let head = [name, Value::Uint(handle), Value::Bool(is_receiver)];
    let tail = [source, target, Value::Null, Value::Null, Value::Uint(0)];
    peer.send(0, ATTACH, [&head[..], &modes, &tail].concat(), &[]);
    peer.expect(ATTACH)
}

/// The error of a detach or an outcome: its condition, and its tracking id and code.
fn error(error: &Value) -> (String, bool, Option<i32>) {
    assert!(matches!(error, Value::Described(ERROR, _)), "no error: {error:?}");
    let fields = error.fields();
    let Value::Symbol(condition) = &fields[0] else { panic!("{error:?}") };
    assert!(matches!(&fields[1], Value::Text(text) if !text.is_empty()), "no description: {error:?}");
    let info = fields.get(2).unwrap_or(&Value::Null);
    let tracked = matches!(info.get("com.microsoft:tracking-id"), Some(Value::Text(id)) if id.len() == 36);
    let code = match info.get("com.microsoft:error-code") {
        Some(Value::Int(code)) => Some(*code),
        _ => None,
    };
    (condition.clone(), tracked, code)
}

/// The properties of a message: message id, no user id, to.
fn properties(id: Value, to: &str) -> (u64, Value) {
    (PROPERTIES, Value::List(vec![id, Value::Null, Value::text(to)]))
}

fn full_ack() -> (u64, Value) {
    (APPLICATION_PROPERTIES, Value::Map(vec![(Value::text("iothub-ack"), Value::text("full"))]))
}

fn body(bytes: &[u8]) -> (u64, Value) {
    (DATA, Value::Binary(bytes.to_vec()))
}

/// Fits into a frame of 64 KiB with what is around it.
const LARGEST_PART: usize = 65_000;

/// Sends a message unsettled, and returns its outcome, which must be the only answer.
#[track_caller]
fn sent(peer: &mut Peer, handle: u32, delivery: u32, sections: &[(u64, Value)]) -> Value {
    transfer(peer, handle, delivery, 0, &message(sections));
    let answer = peer.expect(DISPOSITION);
    assert_eq!(answer.field(0), &Value::Bool(true), "from the receiver: {answer:?}");
    assert_eq!(answer.field(1), &Value::Uint(delivery), "{answer:?}");
    assert!([&Value::Null, &Value::Uint(delivery)].contains(&answer.field(2)), "{answer:?}");
    assert_eq!(answer.field(3), &Value::Bool(true), "settled: {answer:?}");
    answer.field(4).clone()
}

/// Sends the bytes of a message in frames that are no larger than the emulator takes.
fn transfer(peer: &mut Peer, handle: u32, delivery: u32, format: u32, bytes: &[u8]) {
    let parts: Vec<_> = bytes.chunks(LARGEST_PART).collect();
    for (at, part) in parts.iter().enumerate() {
        let tag = Value::Binary(delivery.to_be_bytes().to_vec());
        let more = Value::Bool(at + 1 < parts.len());
        let head = vec![Value::Uint(handle), Value::Uint(delivery), tag, Value::Uint(format)];
        peer.send(0, TRANSFER, [head, vec![Value::Bool(false), more]].concat(), part);
    }
}

fn accepted() -> Value {
    Value::composite(ACCEPTED, Vec::new())
}

#[test]
fn line_11_the_header_decides_on_sasl_which_offers_four_mechanisms() {
    let emulator = Emulator::start();
    for mechanism in ["MSSBCBS", "ANONYMOUS", "EXTERNAL"] {
        let mut peer = Peer::dial(&emulator);
        let response = if mechanism == "EXTERNAL" { Value::Binary(Vec::new()) } else { Value::Null };
        assert_eq!(sasl(&mut peer, mechanism, response), Value::Ubyte(0), "{mechanism}");
        open(&mut peer, Value::Null);
    }
    let (user, token) = ("service@sas.root.localhost", service_token(&emulator));
    let mut peer = Peer::dial(&emulator);
    assert_eq!(sasl(&mut peer, "PLAIN", plain(user, &token)), Value::Ubyte(0));
    open(&mut peer, Value::Null);
    let wrong = token.replace("sig=", "sig=AAAA");
    let mut peer = Peer::dial(&emulator);
    assert_eq!(sasl(&mut peer, "PLAIN", plain(user, &wrong)), Value::Ubyte(1), "auth");
    assert!(peer.has_ended());

    // Without SASL a connection is also possible; then a link needs a token.
    let mut peer = Peer::dial(&emulator);
    open(&mut peer, Value::Null);
    attach(&mut peer, 0, false, DEVICEBOUND, 0);
    let refused = peer.expect(DETACH);
    assert_eq!(error(refused.field(2)).0, "amqp:unauthorized-access");
}

#[test]
fn line_12_websockets_are_at_both_paths_with_the_subprotocol_of_amqp() {
    let emulator = Emulator::start();
    for path in ["/$iothub/websocket", "/$servicebus/websocket"] {
        for end in ["", "/"] {
            let (mut socket, head) = Socket::open_at(&emulator, &format!("{path}{end}"), "AMQPWSB10");
            assert!(head.starts_with("HTTP/1.1 101 "), "{path}{end}: {head}");
            let chosen = head.to_ascii_lowercase().contains("\r\nsec-websocket-protocol: amqpwsb10\r\n");
            assert!(chosen, "{head}");
            socket.send(0x2, SASL_HEADER);
            let (opcode, bytes) = socket.receive();
            assert_eq!(opcode, 0x2, "binary");
            assert!(bytes.starts_with(SASL_HEADER), "{bytes:?}");
        }
    }
    let (_, head) = Socket::open_at(&emulator, "/$iothub/websockets", "AMQPWSB10");
    assert!(head.starts_with("HTTP/1.1 404 "), "{head}");
}

#[test]
fn line_13_cbs_settles_the_request_and_replies_with_an_id_of_the_same_type() {
    let emulator = Emulator::start();
    let mut peer = Peer::dial(&emulator);
    assert_eq!(sasl(&mut peer, "MSSBCBS", Value::Null), Value::Ubyte(0));
    open(&mut peer, Value::Null);
    attach(&mut peer, 0, false, "$cbs", 1);
    attach(&mut peer, 1, true, "$cbs", 0);
    let window = || Value::Uint(1_000);
    let credit =
        vec![Value::Uint(0), window(), Value::Uint(0), window(), Value::Uint(1), Value::Uint(0), window()];
    peer.send(0, FLOW, credit, &[]);
    let token = service_token(&emulator);
    let ids = [
        Value::Ulong(0),
        Value::text("4a8f7d34-0000-0000-0000-000000000001"),
        Value::Uuid([7; 16]),
        Value::Binary(vec![1, 2]),
    ];
    let mut put = |delivery: u32, id: Value, kind: &str, token: &str| {
        let request = [("operation", "put-token"), ("type", kind), ("name", "https://localhost")];
        let request = request.map(|(name, value)| (Value::text(name), Value::text(value))).to_vec();
        // The settled answer comes first: `sent` takes no reply before it.
        let outcome = sent(
            &mut peer,
            0,
            delivery,
            &[
                (PROPERTIES, Value::List(vec![id.clone()])),
                (APPLICATION_PROPERTIES, Value::Map(request)),
                (AMQP_VALUE, Value::text(token)),
            ],
        );
        assert_eq!(outcome, accepted());
        let reply = peer.expect(TRANSFER);
        let own = reply.field(1).clone();
        peer.send(
            0,
            DISPOSITION,
            vec![Value::Bool(true), own, Value::Null, Value::Bool(true), accepted()],
            &[],
        );
        assert_eq!(reply.section(PROPERTIES).fields().get(5), Some(&id), "the correlation id keeps its type");
        let application = reply.section(APPLICATION_PROPERTIES);
        assert!(matches!(application.get("status-description"), Some(Value::Text(_))), "{application:?}");
        application.get("status-code").cloned()
    };
    let sas = "servicebus.windows.net:sastoken";
    for (n, id) in (0..).zip(ids) {
        assert_eq!(put(n, id, sas, &token), Some(Value::Int(200)));
    }
    let wrong = token.replace("sig=", "sig=AAAA");
    assert_eq!(put(4, Value::Ulong(4), sas, &wrong), Some(Value::Int(401)));
    assert_eq!(put(5, Value::Ulong(5), sas, "no token"), Some(Value::Int(400)));
    assert_eq!(put(6, Value::Ulong(6), "unknown", &token), Some(Value::Int(400)));
    // The token opens the links.
    let attached = attach(&mut peer, 2, false, DEVICEBOUND, 0);
    assert_ne!(attached.field(6), &Value::Null, "a target: {attached:?}");
}

#[test]
fn line_14_addresses_come_bare_or_whole_in_any_case_and_escaped() {
    let emulator = Emulator::start_with(&["--device", "dev1", "--device", "a:b"]);
    let mut peer = service(&emulator);
    let port = emulator.amqp.port();
    let of_services = [
        (false, DEVICEBOUND.to_owned()),
        (false, "messages/deviceBound".to_owned()),
        (false, "amqps://localhost/messages/deviceBound".to_owned()),
        (false, format!("amqps://localhost:{port}/Messages/DEVICEBOUND/")),
        (true, "/messages/serviceBound/feedback".to_owned()),
        (true, "amqps://localhost/messages/servicebound/FEEDBACK".to_owned()),
    ];
    let taken = |peer: &mut Peer, handle, is_receiver, address: &str| {
        let answer = attach(peer, handle, is_receiver, address, 0);
        let terminus = answer.field(if is_receiver { 5 } else { 6 });
        assert_eq!(terminus.fields().first(), Some(&Value::text(address)), "echoed as it came");
    };
    for (handle, (is_receiver, address)) in (0..).zip(&of_services) {
        taken(&mut peer, handle, *is_receiver, address);
    }
    let mut peer = signed_in(&emulator, "a:b@sas.localhost", &device_token(&emulator, "a:b"));
    let of_devices = [
        (true, "/devices/a:b/messages/devicebound"),
        (false, "/devices/a%3Ab/messages/events"),
        (false, "amqps://localhost:5671/devices/a%3ab/Messages/Events"),
        (true, "amqps://localhost/Devices/a:b/TWIN"),
    ];
    for (handle, (is_receiver, address)) in (0..).zip(of_devices) {
        taken(&mut peer, handle, is_receiver, address);
    }
    // Ids are compared with case. A device gets no link of another device.
    attach(&mut peer, 9, true, "/devices/A:B/messages/devicebound", 0);
    peer.expect(DETACH);
    // The `to` of a message follows the same rule, and reaches the device as it was written.
    let mut peer = service(&emulator);
    attach(&mut peer, 0, false, DEVICEBOUND, 0);
    for (n, to) in
        ["amqps://localhost/Devices/dev1/messages/deviceBound", "/devices/dev%31/messages/devicebound"]
            .into_iter()
            .enumerate()
    {
        let n = u32::try_from(n).expect("few");
        assert_eq!(sent(&mut peer, 0, n, &[properties(Value::text("m"), to), body(b"x")]), accepted());
        let next = "GET /devices/dev1/messages/devicebound?api-version=1";
        let received = ask(&emulator, next, &device_token(&emulator, "dev1"), "", b"");
        assert_eq!(received.header("iothub-to"), Some(to));
    }
}

#[test]
fn line_15_each_message_of_a_back_end_gets_one_settled_answer_and_credit_is_plenty() {
    let emulator = Emulator::start();
    for settle in [0, 1] {
        let mut peer = service(&emulator);
        let attached = attach(&mut peer, 0, false, DEVICEBOUND, settle);
        let first = [Value::Null, Value::Ubyte(0)]; // null is the default, which is first
        assert!(first.contains(attached.field(4)), "{attached:?}");
        let credit = peer.expect(FLOW);
        // Plenty, but not without an end: a back end must not fill the memory with what is not answered yet.
        assert!(matches!(credit.field(6), Value::Uint(100..=200)), "{credit:?}");
        let good = [properties(Value::text("m-1"), OF_DEV1), body(b"x")];
        let bad = [properties(Value::text("m-2"), "/devices/nope/messages/devicebound"), body(b"x")];
        // Each message waits for its answer, so a second answer would be taken for the answer to the next message.
        assert_eq!(sent(&mut peer, 0, 0, &good), accepted());
        let Value::Described(REJECTED, refused) = sent(&mut peer, 0, 1, &bad) else { panic!("not rejected") };
        assert_eq!(error(&refused.fields()[0]).0, "amqp:not-found");
        assert_eq!(sent(&mut peer, 0, 2, &good), accepted());
        // No answer is left over.
        attach(&mut peer, 1, false, DEVICEBOUND, settle);
    }
}

#[test]
fn line_17_ids_that_are_uuids_or_numbers_go_out_as_text() {
    let emulator = Emulator::start();
    let mut peer = service(&emulator);
    attach(&mut peer, 0, false, DEVICEBOUND, 1);
    let bytes = [0x4A, 0xF0, 0, 0, 0xAB, 0xCD, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xFF];
    let ids = [
        (Value::Uuid(bytes), "4af00000-abcd-0000-0000-0000000000ff"),
        (Value::Ulong(18_446_744_073_709_551_615), "18446744073709551615"),
        (Value::text("as it is"), "as it is"),
    ];
    let mut receiver = device(&emulator);
    attach(&mut receiver, 0, true, OF_DEV1, 0);
    deliveries::give_credit(&mut receiver, 0, 10);
    let mut told = Vec::new();
    for (n, (id, text)) in (0..).zip(ids) {
        let id_only = id != Value::text("as it is");
        if !id_only {
            // The id has characters that no id may have.
            let Value::Described(REJECTED, refused) =
                sent(&mut peer, 0, n, &[properties(id, OF_DEV1), full_ack(), body(b"x")])
            else {
                panic!("not rejected")
            };
            assert_eq!(error(&refused.fields()[0]).0, "com.microsoft:argument-error");
            continue;
        }
        let section =
            Value::List(vec![id.clone(), Value::Null, Value::text(OF_DEV1), Value::Null, Value::Null, id]);
        assert_eq!(sent(&mut peer, 0, n, &[(PROPERTIES, section), full_ack(), body(b"x")]), accepted());
        let delivery = receiver.expect(TRANSFER);
        let section = delivery.section(PROPERTIES);
        assert_eq!((&section.fields()[0], &section.fields()[5]), (&Value::text(text), &Value::text(text)));
        deliveries::settle(&mut receiver, &delivery, ACCEPTED);
        told.push(text);
    }
    let mut records = Vec::new();
    let end = Instant::now() + crate::harness::DEADLINE;
    while records.len() < told.len() {
        assert!(Instant::now() < end, "{records:?}");
        let batch = ask(
            &emulator,
            "GET /messages/serviceBound/feedback?api-version=1",
            &service_token(&emulator),
            "",
            b"",
        );
        if batch.status == 200 {
            let batch = batch.json();
            let batch = batch.as_array().expect("an array").iter();
            records
                .extend(batch.map(|record| record["originalMessageId"].as_str().expect("an id").to_owned()));
        }
    }
    assert_eq!(records, told);
}

#[test]
fn line_19_each_error_has_its_symbol() {
    let emulator = Emulator::start();
    let mut peer = service(&emulator);
    // Some refusals come as a detach: the attach is answered without a terminus, and the link closed with the reason.
    for (address, is_receiver, symbol, code) in [
        ("/nowhere", false, "amqp:not-found", Some(404_006)),
        ("/messages/nowhere", true, "amqp:not-found", Some(404_006)),
        (OF_DEV1, true, "amqp:unauthorized-access", Some(401_003)),
        ("/devices/dev1/modules/m/messages/events", false, "amqp:not-implemented", None),
    ] {
        let attached = attach(&mut peer, 7, is_receiver, address, 0);
        assert_eq!(attached.field(if is_receiver { 5 } else { 6 }), &Value::Null, "{attached:?}");
        let detach = peer.expect(DETACH);
        assert_eq!(detach.field(1), &Value::Bool(true), "closed: {detach:?}");
        assert_eq!(error(detach.field(2)), (symbol.to_owned(), true, code), "{address}");
        peer.send(0, DETACH, vec![Value::Uint(7), Value::Bool(true)], &[]);
    }
    // Other refusals come as an outcome, and the link stays.
    attach(&mut peer, 0, false, DEVICEBOUND, 1);
    let to = |to: &str| properties(Value::text("m-1"), to);
    let past = Value::List(
        [Value::text("m-1"), Value::Null, Value::text(OF_DEV1)]
            .into_iter()
            .chain(vec![Value::Null; 5])
            .chain([Value::Timestamp(1_000)])
            .collect(),
    );
    let cases = [
        (vec![to("/devices/nope/messages/devicebound"), body(b"x")], "amqp:not-found", Some(404_001)),
        (vec![to("/devices"), body(b"x")], "com.microsoft:argument-error", Some(400_003)),
        (
            vec![to("/devices/dev1/modules/m/messages/deviceBound"), body(b"x")],
            "com.microsoft:argument-error",
            Some(400_003),
        ),
        (vec![(PROPERTIES, past), body(b"x")], "com.microsoft:argument-error", Some(403_009)),
        (vec![to(OF_DEV1), body(&[0; 70_000])], "amqp:link:message-size-exceeded", Some(413_001)),
    ];
    let mut delivery = 0;
    for (sections, symbol, code) in cases {
        let Value::Described(REJECTED, refused) = sent(&mut peer, 0, delivery, &sections) else {
            panic!("{symbol}: not rejected")
        };
        assert_eq!(error(&refused.fields()[0]), (symbol.to_owned(), true, code));
        delivery += 1;
    }
    for _ in 0..50 {
        assert_eq!(sent(&mut peer, 0, delivery, &[to(OF_DEV1), body(b"x")]), accepted());
        delivery += 1;
    }
    let Value::Described(REJECTED, refused) = sent(&mut peer, 0, delivery, &[to(OF_DEV1), body(b"x")]) else {
        panic!("the 51st is not rejected")
    };
    let full = ("amqp:resource-limit-exceeded".to_owned(), true, Some(403_004));
    assert_eq!(error(&refused.fields()[0]), full);

    // A newer connection of the same device takes the link.
    let mut first = device(&emulator);
    attach(&mut first, 0, true, OF_DEV1, 0);
    let mut second = device(&emulator);
    attach(&mut second, 0, true, OF_DEV1, 0);
    assert_eq!(error(first.expect(DETACH).field(2)).0, "amqp:link:stolen");

    // Now a token expires.
    let secrets = std::fs::read(emulator.state.join("secrets.json")).expect("read");
    let secrets: serde_json::Value = serde_json::from_slice(&secrets).expect("JSON");
    let key = secrets["policies"]["service"]["primary"].as_str().expect("a key");
    let key = SharedAccessKey::from_base64(key).expect("a key");
    let expiry = SystemTime::now() + Duration::from_secs(2);
    let token = SasToken::sign(&key, "localhost", Some("service"), expiry);
    let mut peer = signed_in(&emulator, "service@sas.root.localhost", token.expose());
    let end = peer.expect(0x17);
    assert_eq!(error(end.field(0)).0, "amqp:unauthorized-access");
}

#[test]
fn line_20_empty_frames_come_at_least_each_half_of_the_idle_time_out() {
    let emulator = Emulator::start();
    let mut peer = Peer::dial(&emulator);
    let idle = Duration::from_secs(4);
    open(&mut peer, Value::Uint(4_000));
    let mut last = Instant::now();
    for n in 1..=3 {
        let frame = peer.next();
        assert_eq!((frame.kind, frame.channel), (0, 0), "{frame:?}");
        // The limit is a quarter higher, because the machine may be busy.
        assert!(last.elapsed() < idle / 2 + idle / 4, "the {n}. came after {:?}", last.elapsed());
        last = Instant::now();
    }
}
