//! AMQP 1.0 byte by byte: values, frames, and a peer that sends any bytes. Nothing here comes from a library.
//!
//! Owns: the encoding. Must not know: the hub's addresses and messages.
//!
//! Source: AMQP 1.0, 1.6 (encodings), 2.3 (frames) and 2.7 (performatives).

use std::io::{Read, Write};
use std::net::TcpStream;

use rustls::{ClientConnection, StreamOwned};

use crate::harness::{DEADLINE, Emulator};
use crate::rest::Tls;

pub(crate) const PLAIN_HEADER: &[u8; 8] = b"AMQP\x00\x01\x00\x00";
pub(crate) const SASL_HEADER: &[u8; 8] = b"AMQP\x03\x01\x00\x00";

pub(crate) const OPEN: u64 = 0x10;
pub(crate) const BEGIN: u64 = 0x11;
pub(crate) const ATTACH: u64 = 0x12;
pub(crate) const FLOW: u64 = 0x13;
pub(crate) const TRANSFER: u64 = 0x14;
pub(crate) const DISPOSITION: u64 = 0x15;
pub(crate) const DETACH: u64 = 0x16;
pub(crate) const ERROR: u64 = 0x1d;
pub(crate) const ACCEPTED: u64 = 0x24;
pub(crate) const REJECTED: u64 = 0x25;
pub(crate) const RELEASED: u64 = 0x26;
pub(crate) const SASL_MECHANISMS: u64 = 0x40;
pub(crate) const SASL_INIT: u64 = 0x41;
pub(crate) const SASL_OUTCOME: u64 = 0x44;
pub(crate) const DELIVERY_ANNOTATIONS: u64 = 0x71;
pub(crate) const MESSAGE_ANNOTATIONS: u64 = 0x72;
pub(crate) const PROPERTIES: u64 = 0x73;
pub(crate) const APPLICATION_PROPERTIES: u64 = 0x74;
pub(crate) const DATA: u64 = 0x75;
pub(crate) const AMQP_VALUE: u64 = 0x77;
pub(crate) const FOOTER: u64 = 0x78;

/// A value with its type.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Ubyte(u8),
    Ushort(u16),
    Uint(u32),
    Ulong(u64),
    Int(i32),
    Timestamp(i64),
    Uuid([u8; 16]),
    Binary(Vec<u8>),
    Text(String),
    Symbol(String),
    List(Vec<Value>),
    Map(Vec<(Value, Value)>),
    Array(Vec<Value>),
    Described(u64, Box<Value>),
    /// Bytes that are already encoded; only for sending.
    Raw(Vec<u8>),
}

impl Value {
    pub(crate) fn text(text: &str) -> Self {
        Self::Text(text.to_owned())
    }

    pub(crate) fn symbol(text: &str) -> Self {
        Self::Symbol(text.to_owned())
    }

    /// A list with a descriptor, as performatives and outcomes are.
    pub(crate) fn composite(kind: u64, fields: Vec<Value>) -> Self {
        Self::Described(kind, Box::new(Self::List(fields)))
    }

    /// The fields of a composite; empty for other values.
    pub(crate) fn fields(&self) -> &[Value] {
        match self {
            Self::Described(_, inside) => inside.fields(),
            Self::List(fields) => fields,
            _ => &[],
        }
    }

    /// The value that a map has under a text or symbol.
    pub(crate) fn get(&self, name: &str) -> Option<&Value> {
        let Self::Map(entries) = self else { return None };
        let named = |key: &Value| matches!(key, Self::Text(own) | Self::Symbol(own) if own == name);
        entries.iter().find(|(key, _)| named(key)).map(|(_, value)| value)
    }

    pub(crate) fn encode(&self, out: &mut Vec<u8>) {
        let variable = |out: &mut Vec<u8>, code: u8, bytes: &[u8]| {
            out.push(code);
            out.extend(u32::try_from(bytes.len()).expect("short").to_be_bytes());
            out.extend(bytes);
        };
        let compound = |out: &mut Vec<u8>, code: u8, values: &[&Value]| {
            let mut bytes = u32::try_from(values.len()).expect("few").to_be_bytes().to_vec();
            values.iter().for_each(|value| value.encode(&mut bytes));
            variable(out, code, &bytes);
        };
        match self {
            Self::Null => out.push(0x40),
            Self::Bool(flag) => out.push(if *flag { 0x41 } else { 0x42 }),
            Self::Ubyte(number) => out.extend([0x50, *number]),
            Self::Ushort(number) => out.extend([&[0x60][..], &number.to_be_bytes()].concat()),
            Self::Uint(number) => out.extend([&[0x70][..], &number.to_be_bytes()].concat()),
            Self::Ulong(number) => out.extend([&[0x80][..], &number.to_be_bytes()].concat()),
            Self::Int(number) => out.extend([&[0x71][..], &number.to_be_bytes()].concat()),
            Self::Timestamp(time) => out.extend([&[0x83][..], &time.to_be_bytes()].concat()),
            Self::Uuid(bytes) => out.extend([&[0x98][..], bytes].concat()),
            Self::Binary(bytes) => variable(out, 0xb0, bytes),
            Self::Text(text) => variable(out, 0xb1, text.as_bytes()),
            Self::Symbol(text) => variable(out, 0xb3, text.as_bytes()),
            Self::List(values) => compound(out, 0xd0, &values.iter().collect::<Vec<_>>()),
            Self::Map(entries) => {
                let values: Vec<_> = entries.iter().flat_map(|(key, value)| [key, value]).collect();
                compound(out, 0xd1, &values);
            }
            Self::Array(values) => panic!("nobody sends one here: {values:?}"),
            Self::Raw(bytes) => out.extend(bytes),
            Self::Described(kind, value) => {
                out.extend([0, 0x53, u8::try_from(*kind).expect("small")]);
                value.encode(out);
            }
        }
    }

    /// Decodes one value at the beginning of `bytes`, and moves `bytes` past it.
    pub(crate) fn decode(bytes: &mut &[u8]) -> Self {
        let [code] = take(bytes);
        Self::of(code, bytes)
    }

    fn of(code: u8, bytes: &mut &[u8]) -> Self {
        match code {
            0x00 => {
                let kind = match Self::decode(bytes) {
                    Self::Ulong(kind) => kind,
                    other => panic!("described by {other:?}"),
                };
                Self::Described(kind, Box::new(Self::decode(bytes)))
            }
            0x40 => Self::Null,
            0x41 | 0x42 => Self::Bool(code == 0x41),
            0x56 => Self::Bool(take::<1>(bytes) == [1]),
            0x50 => Self::Ubyte(take::<1>(bytes)[0]),
            0x43 => Self::Uint(0),
            0x52 => Self::Uint(take::<1>(bytes)[0].into()),
            0x70 => Self::Uint(u32::from_be_bytes(take(bytes))),
            0x44 => Self::Ulong(0),
            0x53 => Self::Ulong(take::<1>(bytes)[0].into()),
            0x80 => Self::Ulong(u64::from_be_bytes(take(bytes))),
            0x54 => Self::Int(i8::from_be_bytes(take(bytes)).into()),
            0x71 => Self::Int(i32::from_be_bytes(take(bytes))),
            0x60 => Self::Ushort(u16::from_be_bytes(take(bytes))),
            0x83 => Self::Timestamp(i64::from_be_bytes(take(bytes))),
            0x98 => Self::Uuid(take(bytes)),
            0xa0 | 0xb0 => Self::Binary(sized(code, bytes).to_vec()),
            0xa1 | 0xb1 => Self::Text(String::from_utf8(sized(code, bytes).to_vec()).expect("UTF-8")),
            0xa3 | 0xb3 => Self::Symbol(String::from_utf8(sized(code, bytes).to_vec()).expect("ASCII")),
            0x45 => Self::List(Vec::new()),
            0xc0 | 0xd0 => Self::List(elements(code, bytes)),
            0xc1 | 0xd1 => {
                let mut values = elements(code, bytes).into_iter();
                let mut entries = Vec::new();
                while let (Some(key), Some(value)) = (values.next(), values.next()) {
                    entries.push((key, value));
                }
                Self::Map(entries)
            }
            0xe0 | 0xf0 => {
                let mut inside = sized(code, bytes);
                let count = if code == 0xe0 {
                    take::<1>(&mut inside)[0].into()
                } else {
                    u32::from_be_bytes(take(&mut inside))
                };
                let [code] = take(&mut inside);
                Self::Array((0..count).map(|_| Self::of(code, &mut inside)).collect())
            }
            other => panic!("a value of the code {other:#x}"),
        }
    }
}

fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (taken, rest) = bytes.split_first_chunk().expect("more bytes");
    *bytes = rest;
    *taken
}

/// The bytes behind a length. The length has one byte for 0xA_, 0xC_, 0xE_, and four bytes otherwise.
fn sized<'a>(code: u8, bytes: &mut &'a [u8]) -> &'a [u8] {
    let length = if (code >> 4).is_multiple_of(2) {
        usize::from(take::<1>(bytes)[0])
    } else {
        u32::from_be_bytes(take(bytes)) as usize
    };
    let (taken, rest) = bytes.split_at(length);
    *bytes = rest;
    taken
}

fn elements(code: u8, bytes: &mut &[u8]) -> Vec<Value> {
    let mut inside = sized(code, bytes);
    let count = if (code >> 4).is_multiple_of(2) {
        take::<1>(&mut inside)[0].into()
    } else {
        u32::from_be_bytes(take(&mut inside))
    };
    (0..count).map(|_| Value::decode(&mut inside)).collect()
}

/// A frame: one performative and its payload.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Frame {
    pub(crate) channel: u16,
    /// The performative; 0 for an empty frame.
    pub(crate) kind: u64,
    fields: Vec<Value>,
    pub(crate) payload: Vec<u8>,
}

impl Frame {
    /// A field; a missing field is null.
    pub(crate) fn field(&self, at: usize) -> &Value {
        self.fields.get(at).unwrap_or(&Value::Null)
    }

    /// The sections of the message.
    pub(crate) fn sections(&self) -> Vec<(u64, Value)> {
        let mut bytes = self.payload.as_slice();
        let mut sections = Vec::new();
        while !bytes.is_empty() {
            match Value::decode(&mut bytes) {
                Value::Described(kind, value) => sections.push((kind, *value)),
                other => panic!("no section: {other:?}"),
            }
        }
        sections
    }

    /// One section of the message.
    pub(crate) fn section(&self, kind: u64) -> Value {
        self.sections().into_iter().find(|(own, _)| *own == kind).map_or(Value::Null, |(_, value)| value)
    }
}

/// The bytes of a message.
pub(crate) fn message(sections: &[(u64, Value)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for (kind, value) in sections {
        Value::Described(*kind, Box::new(value.clone())).encode(&mut bytes);
    }
    bytes
}

/// A connection that sends only what the test gives it.
pub(crate) struct Peer<S = Tls>(pub(crate) S);

impl Peer {
    /// Opens a TLS connection to the emulator's AMQP port.
    pub(crate) fn dial(emulator: &Emulator) -> Self {
        let config = c2d_agent::tls::client_config(Some(&emulator.ca_file()), None).expect("a configuration");
        let socket = TcpStream::connect(emulator.amqp).expect("connected");
        socket.set_read_timeout(Some(DEADLINE)).expect("a socket");
        let name = "localhost".try_into().expect("a name");
        Self(StreamOwned::new(ClientConnection::new(config, name).expect("a connection"), socket))
    }
}

impl<S: Read + Write> Peer<S> {
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).and_then(|()| self.0.flush()).expect("sent");
    }

    /// Reads a protocol header of eight bytes.
    pub(crate) fn header(&mut self) -> [u8; 8] {
        let mut header = [0; 8];
        self.0.read_exact(&mut header).expect("a header");
        header
    }

    pub(crate) fn send(&mut self, channel: u8, kind: u64, fields: Vec<Value>, payload: &[u8]) {
        self.frame(0, channel, kind, fields, payload);
    }

    pub(crate) fn send_sasl(&mut self, kind: u64, fields: Vec<Value>) {
        self.frame(1, 0, kind, fields, &[]);
    }

    fn frame(&mut self, layer: u8, channel: u8, kind: u64, fields: Vec<Value>, payload: &[u8]) {
        let mut body = Vec::new();
        Value::composite(kind, fields).encode(&mut body);
        body.extend(payload);
        let size = u32::try_from(8 + body.len()).expect("short").to_be_bytes();
        self.write(&[&size[..], &[2, layer, 0, channel], &body].concat());
    }

    /// The next frame, also an empty one.
    pub(crate) fn next(&mut self) -> Frame {
        self.try_next().expect("a frame")
    }

    /// As `next`; `None` if the connection has ended.
    pub(crate) fn try_next(&mut self) -> Option<Frame> {
        let mut head = [0; 8];
        self.0.read_exact(&mut head).ok()?;
        let size = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
        assert_eq!(head[4], 2, "no extended header");
        let mut body = vec![0; size - 8];
        self.0.read_exact(&mut body).expect("its body");
        let channel = u16::from_be_bytes([head[6], head[7]]);
        let mut rest = body.as_slice();
        if rest.is_empty() {
            return Some(Frame { channel, kind: 0, fields: Vec::new(), payload: Vec::new() });
        }
        match Value::decode(&mut rest) {
            Value::Described(kind, value) => {
                Some(Frame { channel, kind, fields: value.fields().to_vec(), payload: rest.to_vec() })
            }
            other => panic!("no performative: {other:?}"),
        }
    }

    /// The next frame of this kind. Only flow and empty frames may come before it.
    #[track_caller]
    pub(crate) fn expect(&mut self, kind: u64) -> Frame {
        loop {
            let frame = self.next();
            if frame.kind == kind {
                return frame;
            }
            assert!([FLOW, 0].contains(&frame.kind), "waited for {kind:#x}: {frame:?}");
        }
    }

    /// Whether the emulator has closed the connection without more bytes.
    pub(crate) fn has_ended(&mut self) -> bool {
        let mut rest = Vec::new();
        drop(self.0.read_to_end(&mut rest));
        rest.is_empty()
    }
}
