//! How the emulator ends a WebSocket whose client breaks the rules of the protocol inside: with a close frame that says
//! why, and with the end of the connection, in bounded time.
//!
//! Owns: a raw WebSocket client. Must not know: how the emulator closes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::time::{Duration, Instant};

use crate::harness::Emulator;
use crate::rest::{Tls, dial};

/// Far below any time-out of the emulator for silent clients.
const SOON: Duration = Duration::from_secs(10);

const SASL_HEADER: &[u8] = b"AMQP\x03\x01\x00\x00";
const AMQP_HEADER: &[u8] = b"AMQP\x00\x01\x00\x00";

/// A Begin frame, which may come only after Open.
const BEGIN: &[u8] = b"\x00\x00\x00\x14\x02\x00\x00\x00\x00\x53\x11\xc0\x07\x04\x40\x43\x52\x0a\x52\x0a";

const TEXT: u8 = 0x1;
const BINARY: u8 = 0x2;
const CLOSE: u8 = 0x8;

/// A client that sends any bytes that the test gives it.
pub(crate) struct Socket {
    stream: BufReader<Tls>,
}

impl Socket {
    fn open(emulator: &Emulator, subprotocol: &str) -> Self {
        let (socket, head) = Self::open_at(emulator, "/$iothub/websocket", subprotocol);
        assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
        socket
    }

    /// Opens a WebSocket at any path. Also returns the head of the answer.
    pub(crate) fn open_at(emulator: &Emulator, path: &str, subprotocol: &str) -> (Self, String) {
        let mut stream = dial(emulator);
        let request = format!(
            "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\
             Sec-WebSocket-Protocol: {subprotocol}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).and_then(|()| stream.flush()).expect("sent");
        let mut stream = BufReader::new(stream);
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            assert!(stream.read_line(&mut head).expect("an answer") > 0, "{head}");
        }
        (Self { stream }, head)
    }

    /// Sends one frame, masked with zeros, which is allowed.
    pub(crate) fn send(&mut self, opcode: u8, payload: &[u8]) {
        let mut frame = vec![0x80 | opcode];
        match payload.len() {
            length @ ..126 => frame.push(0x80 | length as u8),
            length @ ..0x1_0000 => {
                frame.push(0x80 | 126);
                frame.extend_from_slice(&(length as u16).to_be_bytes());
            }
            length => {
                frame.push(0x80 | 127);
                frame.extend_from_slice(&(length as u64).to_be_bytes());
            }
        }
        frame.extend_from_slice(&[0; 4]);
        frame.extend_from_slice(payload);
        let stream = self.stream.get_mut();
        // The emulator may close before it has read everything.
        drop(stream.write_all(&frame).and_then(|()| stream.flush()));
    }

    /// The next frame: its opcode and payload.
    pub(crate) fn receive(&mut self) -> (u8, Vec<u8>) {
        let mut head = [0; 2];
        self.stream.read_exact(&mut head).expect("a frame");
        assert_eq!(head[0] & 0xF0, 0x80, "one whole message in a frame");
        let mut length = usize::from(head[1]);
        if length == 126 {
            let mut long = [0; 2];
            self.stream.read_exact(&mut long).expect("a length");
            length = u16::from_be_bytes(long).into();
        }
        let mut payload = vec![0; length];
        self.stream.read_exact(&mut payload).expect("a payload");
        (head[0] & 0x0F, payload)
    }

    /// The bytes of all binary frames before the close frame, and the code and reason of the close frame. Then the
    /// connection must end, although this client sends nothing more.
    fn end(mut self) -> (Vec<u8>, u16, String) {
        let begun = Instant::now();
        let mut bytes = Vec::new();
        let close = loop {
            match self.receive() {
                (CLOSE, payload) => break payload,
                (BINARY, payload) => bytes.extend(payload),
                other => panic!("{other:?}"),
            }
        };
        let mut rest = Vec::new();
        let ended = self.stream.read_to_end(&mut rest);
        assert!(ended.is_ok() && rest.is_empty(), "TLS is closed in good order: {ended:?} {rest:?}");
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        let (code, reason) = close.split_at(2);
        (bytes, u16::from_be_bytes([code[0], code[1]]), String::from_utf8(reason.to_vec()).expect("UTF-8"))
    }
}

/// Sends these frames and reads to the end.
fn played(emulator: &Emulator, frames: &[(u8, &[u8])]) -> (Vec<u8>, u16, String) {
    let mut socket = Socket::open(emulator, "AMQPWSB10");
    for (opcode, payload) in frames {
        socket.send(*opcode, payload);
    }
    socket.end()
}

/// A SASL frame with an init of PLAIN.
fn sasl_plain(user: &str, password: &str) -> Vec<u8> {
    let response = format!("\0{user}\0{password}");
    let mut list = b"\xa3\x05PLAIN\xa0".to_vec();
    list.push(u8::try_from(response.len()).expect("short"));
    list.extend_from_slice(response.as_bytes());
    let body = [&[0, 0x53, 0x41, 0xc0, u8::try_from(list.len() + 1).expect("short"), 2][..], &list].concat();
    let size = u32::try_from(8 + body.len()).expect("short").to_be_bytes();
    [&size[..], &[2, 1, 0, 0], &body].concat()
}

#[test]
fn each_early_mistake_over_amqp_is_closed_with_its_reason() {
    let emulator = Emulator::start();
    // For another protocol, the emulator sends the header that it understands, then ends. Source: AMQP 1.0, 2.2.
    for header in [
        &b"GET / HTTP/1.1\r\n\r\n"[..],
        b"AMQP\x00\x00\x09\x01",
        b"AMQP\x02\x01\x00\x00",
        b"AMQP\x01\x01\x00\x00",
    ] {
        let (bytes, code, reason) = played(&emulator, &[(BINARY, header)]);
        assert_eq!((bytes.as_slice(), code), (AMQP_HEADER, 1002), "{reason}");
        assert_eq!(reason, "the first bytes are not those of AMQP 1.0");
    }
    // A header in several frames counts as one header.
    let (bytes, ..) = played(&emulator, &[(BINARY, b"GET "), (BINARY, b"/ HT")]);
    assert_eq!(bytes, AMQP_HEADER);

    // If a sign-in is refused, the outcome comes before the end.
    let init = sasl_plain("service@sas.root.localhost", "SharedAccessSignature sr=localhost&sig=AAAA&se=9");
    let (bytes, code, reason) = played(&emulator, &[(BINARY, SASL_HEADER), (BINARY, &init)]);
    assert!(bytes.starts_with(SASL_HEADER), "{bytes:?}");
    assert!(bytes.windows(3).any(|part| part == [0, 0x53, 0x44]), "no SASL outcome: {bytes:?}");
    assert_eq!((code, reason.as_str()), (1008, "the sign-in was refused: check the user name and the token"));

    // The frames are too large: one before the connection is open, and one with an impossible size.
    let (_, code, reason) =
        played(&emulator, &[(BINARY, AMQP_HEADER), (BINARY, b"\x7f\xff\xff\xff\x02\x00\x00\x00")]);
    assert_eq!((code, reason.as_str()), (1002, "the client sent a frame of 2147483647 bytes"));
    let (_, code, reason) = played(&emulator, &[(BINARY, AMQP_HEADER), (BINARY, BEGIN)]);
    assert_eq!((code, reason.as_str()), (1002, "the client sent another frame before Open"));
    let (_, code, reason) = played(&emulator, &[(BINARY, AMQP_HEADER), (BINARY, b"\x00\x00\x02\x01")]);
    assert_eq!(code, 1002);
    assert!(
        reason.starts_with("the client sent a frame of 513 bytes before its connection was open"),
        "{reason}"
    );

    // A text frame is refused, and so is a message that is too large for the emulator's WebSockets.
    let (bytes, code, reason) = played(&emulator, &[(TEXT, b"hello")]);
    assert_eq!((bytes.as_slice(), code), (&b""[..], 1003));
    assert!(reason.contains("a text message came"), "{reason}");
    let (_, code, reason) = played(&emulator, &[(BINARY, AMQP_HEADER), (TEXT, b"AMQP")]);
    assert!(code == 1003 && reason.contains("a text message came"), "{code} {reason}");
    let (_, code, reason) = played(&emulator, &[(BINARY, &vec![0; 600 * 1024])]);
    assert!(code == 1009 && reason.contains("above 512 KiB"), "{code} {reason}");

    // A client that closes at once gets an answer.
    let (_, code, _) = played(&emulator, &[(CLOSE, &1000_u16.to_be_bytes())]);
    assert_eq!(code, 1000);
    // The emulator still works.
    emulator.send("dev1", &["--transport", "amqp-ws", "--https-port", &emulator.https.port().to_string()]);
}

#[test]
fn an_open_connection_that_breaks_the_rules_is_closed_with_its_reason() {
    let emulator = Emulator::start();
    let mut socket = Socket::open(&emulator, "AMQPWSB10");
    socket.send(BINARY, AMQP_HEADER);
    let open = b"\x00\x00\x00\x11\x02\x00\x00\x00\x00\x53\x10\xc0\x04\x01\xa1\x01x";
    socket.send(BINARY, open);
    let mut greeting = Vec::new();
    while !greeting.windows(3).any(|part| part == [0, 0x53, 0x10]) {
        greeting.extend(socket.receive().1);
    }
    // The frame is one byte larger than Open allows.
    socket.send(BINARY, b"\x00\x04\x00\x01\x02\x00\x00\x00");
    let (_, code, reason) = socket.end();
    assert_eq!((code, reason.as_str()), (1002, "the client sent a frame of 262145 bytes"));
}

#[test]
fn mqtt_inside_a_websocket_ends_in_good_order_too() {
    let emulator = Emulator::start();
    let played = |frames: &[(u8, &[u8])]| {
        let mut socket = Socket::open(&emulator, "mqtt");
        for (opcode, payload) in frames {
            socket.send(*opcode, payload);
        }
        socket.end()
    };
    // The first packet is PINGREQ instead of CONNECT, then a level that is not served, then a text frame.
    let (bytes, code, _) = played(&[(BINARY, &[0xC0, 0])]);
    assert_eq!((bytes.as_slice(), code), (&b""[..], 1000));
    let (bytes, code, _) =
        played(&[(BINARY, &[&[0x10, 0x0D, 0, 4][..], b"MQTT", &[5, 2, 0, 60, 0, 0, 0]].concat())]);
    assert_eq!((bytes.as_slice(), code), (&[0x20, 2, 0, 1][..], 1000));
    let (_, code, reason) = played(&[(TEXT, b"hello")]);
    assert!(code == 1003 && reason.contains("a text message came"), "{code} {reason}");
}

#[test]
fn an_emulator_that_stops_closes_its_websockets() {
    let emulator = Emulator::start();
    let sockets = ["AMQPWSB10", "mqtt"].map(|subprotocol| Socket::open(&emulator, subprotocol));
    emulator.process.signal(rustix::process::Signal::TERM);
    for socket in sockets {
        assert_eq!(socket.end().1, 1001);
    }
    assert_eq!(emulator.process.wait_exit().code(), Some(0));
}

#[test]
fn a_subprotocol_is_known_in_any_case_and_echoed_as_it_was_offered() {
    let emulator = Emulator::start();
    for (offered, echoed) in [
        ("MQTT", "MQTT"),
        ("Mqtt", "Mqtt"),
        ("amqpwsb10", "amqpwsb10"),
        ("mqtt5, AmqpWsB10, mqtt", "AmqpWsB10"),
        ("x\r\nSec-WebSocket-Protocol: MQTT", "MQTT"),
    ] {
        let (_, head) = Socket::open_at(&emulator, "/$iothub/websocket", offered);
        let has = |line: &str| head.lines().any(|own| own == line);
        assert!(has("HTTP/1.1 101 Switching Protocols"), "{offered}: {head}");
        assert!(has(&format!("sec-websocket-protocol: {echoed}")), "{offered}: {head}");
    }
    // It is the protocol of that name: PINGREQ before CONNECT ends MQTT without a word.
    let mut socket = Socket::open(&emulator, "MQTT");
    socket.send(BINARY, &[0xC0, 0]);
    assert_eq!(socket.end().1, 1000);
    let (_, head) = Socket::open_at(&emulator, "/$iothub/websocket", "mqttx, AMQP");
    assert!(head.starts_with("HTTP/1.1 400 "), "{head}");
}

#[test]
fn a_page_of_another_origin_gets_no_websocket() {
    let emulator = Emulator::start();
    let from = |origin: &str| {
        // The helper writes the subprotocol as the last header.
        let (_, head) =
            Socket::open_at(&emulator, "/$iothub/websocket", &format!("mqtt\r\nOrigin: {origin}"));
        head.lines().next().unwrap_or_default().to_owned()
    };
    for origin in ["https://evil.example", "http://localhost", "https://localhost:8443", "null"] {
        assert_eq!(from(origin), "HTTP/1.1 403 Forbidden", "{origin}");
    }
    for origin in ["https://localhost", "https://LOCALHOST:443"] {
        assert_eq!(from(origin), "HTTP/1.1 101 Switching Protocols", "{origin}");
    }
}
