//! A hub over AMQP that follows a script, frame by frame.
//!
//! Owns: the server's end of sign-in, links and deliveries. Must not know: which conditions there are, commands.

use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};

use rustls::{ServerConnection, StreamOwned};

use crate::frames::{
    ACCEPTED, ATTACH, BEGIN, DATA, DETACH, DISPOSITION, ERROR, FLOW, Frame, OPEN, PLAIN_HEADER, Peer,
    SASL_HEADER, SASL_INIT, SASL_MECHANISMS, SASL_OUTCOME, TRANSFER, Value, message,
};
use crate::harness::DEADLINE;
use crate::proxied::server_config;

/// The description that the hub sends with its condition.
pub(crate) const WORDS: &str = "words of the hub";

const CLOSE: u64 = 0x18;
const END: u64 = 0x17;

/// A hub, for `localhost`.
pub(crate) struct ServicePeer {
    /// The address of the hub.
    pub(crate) address: SocketAddr,
    /// The hub's certificate, which clients must trust.
    pub(crate) ca_file: PathBuf,
}

/// One connection, signed in, with its session.
pub(crate) struct Session(pub(crate) Peer<StreamOwned<ServerConnection, TcpStream>>);

/// What the hub ends for a client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// The link, closed.
    Link,
    /// The link, detached without a close: it could be attached again.
    Suspended,
    /// The session.
    Session,
    /// The connection.
    Connection,
}

impl ServicePeer {
    /// Writes the hub's certificate into `dir`. `script` gets each connection with its number. When `script` returns,
    /// the connection is cut.
    pub(crate) fn playing(dir: &Path, script: impl Fn(usize, &mut Session) + Send + 'static) -> Self {
        Self::before_sign_in(dir, move |number, session| {
            session.sasl();
            session.open(Vec::new());
            session.begin(Vec::new());
            script(number, session);
        })
    }

    /// As [`ServicePeer::playing`], from the first byte on.
    pub(crate) fn before_sign_in(dir: &Path, script: impl Fn(usize, &mut Session) + Send + 'static) -> Self {
        let (config, ca_file) = server_config(dir, "peer.pem", "localhost", None);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for (number, client) in listener.incoming().flatten().enumerate() {
                client.set_read_timeout(Some(DEADLINE)).expect("a socket");
                let connection = ServerConnection::new(config.clone()).expect("a connection");
                let mut session = Session(Peer(StreamOwned::new(connection, client)));
                script(number, &mut session);
            }
        });
        Self { address, ca_file }
    }

    /// The connection string of a policy of this hub.
    pub(crate) fn service_string(&self) -> String {
        let port = self.address.port();
        format!("HostName=localhost:{port};SharedAccessKeyName=service;SharedAccessKey=AAAA")
    }
}

/// The error of a detach, an end or a close.
fn error(condition: &str) -> Value {
    Value::composite(ERROR, vec![Value::symbol(condition), Value::text(WORDS)])
}

impl Session {
    /// Signs in a back end.
    pub(crate) fn sasl(&mut self) {
        assert_eq!(&self.0.header(), SASL_HEADER);
        self.0.write(SASL_HEADER);
        self.0.send_sasl(SASL_MECHANISMS, vec![Value::symbol("PLAIN")]);
        self.0.expect(SASL_INIT);
        self.0.send_sasl(SASL_OUTCOME, vec![Value::Ubyte(0)]);
    }

    /// Opens the connection, with these fields after the container's id.
    pub(crate) fn open(&mut self, more: Vec<Value>) {
        assert_eq!(&self.0.header(), PLAIN_HEADER);
        self.0.write(PLAIN_HEADER);
        self.0.expect(OPEN);
        self.0.send(0, OPEN, [vec![Value::text("peer")], more].concat(), &[]);
    }

    /// Begins the session, with these fields after the windows.
    pub(crate) fn begin(&mut self, more: Vec<Value>) {
        self.0.expect(BEGIN);
        let window = || Value::Uint(1_000);
        let fields = vec![Value::Ushort(0), Value::Uint(0), window(), window()];
        self.0.send(0, BEGIN, [fields, more].concat(), &[]);
    }

    /// The client's next link, not yet answered.
    pub(crate) fn asked_for_link(&mut self) -> Frame {
        self.0.expect(ATTACH)
    }

    /// Attaches a link, and gives credit to a sender.
    pub(crate) fn attach(&mut self, link: &Frame) {
        let is_receiver = link.field(2) == &Value::Bool(true);
        self.answer_attach(link, link.field(5).clone(), link.field(6).clone());
        if !is_receiver {
            self.give_credit(link);
        }
    }

    /// Lets a sender send.
    pub(crate) fn give_credit(&mut self, link: &Frame) {
        let window = || Value::Uint(1_000);
        let head = vec![Value::Uint(0), window(), Value::Uint(0), window()];
        let tail = vec![link.field(1).clone(), Value::Uint(0), Value::Uint(100)];
        self.0.send(0, FLOW, [head, tail].concat(), &[]);
    }

    /// Attaches a link without a terminus, which means a refusal, and detaches it.
    pub(crate) fn refuse(&mut self, link: &Frame, condition: &str) {
        let is_receiver = link.field(2) == &Value::Bool(true);
        let (source, target) = if is_receiver {
            (Value::Null, link.field(6).clone())
        } else {
            (link.field(5).clone(), Value::Null)
        };
        self.answer_attach(link, source, target);
        self.take(link, Level::Link, Some(condition));
    }

    /// Answers a link's attach.
    pub(crate) fn answer_attach(&mut self, link: &Frame, source: Value, target: Value) {
        let Value::Bool(is_receiver) = link.field(2) else { panic!("no role: {link:?}") };
        let head = vec![link.field(0).clone(), link.field(1).clone(), Value::Bool(!is_receiver)];
        let modes = vec![Value::Ubyte(2), Value::Ubyte(0), source, target, Value::Null, Value::Null];
        // A sender must give its initial delivery count.
        let count = if *is_receiver { Value::Uint(0) } else { Value::Null };
        self.0.send(0, ATTACH, [head, modes, vec![count]].concat(), &[]);
    }

    /// Ends a link, a session or the connection, with or without a condition, and waits for the client's answer.
    pub(crate) fn take(&mut self, link: &Frame, level: Level, condition: Option<&str>) {
        let error = condition.map_or(Value::Null, error);
        let is_closed = Value::Bool(level == Level::Link);
        let (kind, fields) = match level {
            Level::Link | Level::Suspended => (DETACH, vec![link.field(1).clone(), is_closed, error]),
            Level::Session => (END, vec![error]),
            Level::Connection => (CLOSE, vec![error]),
        };
        self.0.send(0, kind, fields, &[]);
        self.wait_for_end(kind);
    }

    /// Reads until a frame of this kind, or the end of the connection.
    fn wait_for_end(&mut self, kind: u64) {
        while self.0.try_next().is_some_and(|frame| frame.kind != kind) {}
    }

    /// Answers the client's detach of a link.
    pub(crate) fn let_go(&mut self) {
        let detach = self.0.expect(DETACH);
        self.0.send(0, DETACH, vec![detach.field(0).clone(), Value::Bool(true)], &[]);
    }

    /// The client's next message, without an answer to it.
    pub(crate) fn message(&mut self) -> Frame {
        self.0.expect(TRANSFER)
    }

    /// Accepts a message.
    pub(crate) fn accept(&mut self, message: &Frame) {
        let state = Value::composite(ACCEPTED, Vec::new());
        let fields = vec![Value::Bool(true), message.field(1).clone(), Value::Null, Value::Bool(true), state];
        self.0.send(0, DISPOSITION, fields, &[]);
    }

    /// Waits until the reader of this link has given credit.
    pub(crate) fn wait_for_credit(&mut self) {
        self.0.expect(FLOW);
    }

    /// Sends a feedback batch.
    pub(crate) fn deliver(&mut self, link: &Frame, delivery: u32, body: &str) {
        let sections = [(DATA, Value::Binary(body.as_bytes().to_vec()))];
        self.deliver_parts(link, delivery, &[&message(&sections)]);
    }

    /// Sends a message in one frame for each part.
    pub(crate) fn deliver_parts(&mut self, link: &Frame, delivery: u32, parts: &[&[u8]]) {
        for (number, part) in parts.iter().enumerate() {
            let tag = Value::Binary(delivery.to_be_bytes().to_vec());
            let head = vec![link.field(1).clone(), Value::Uint(delivery), tag, Value::Uint(0)];
            let flags = vec![Value::Bool(false), Value::Bool(number + 1 < parts.len())];
            self.0.send(0, TRANSFER, [head, flags].concat(), part);
        }
    }

    /// The receiver's decision on this delivery.
    pub(crate) fn decision(&mut self, delivery: u32) -> Value {
        loop {
            let frame = self.0.next();
            let (first, last) = (frame.field(1), frame.field(2));
            if frame.kind == DISPOSITION && frame.field(0) == &Value::Bool(true) {
                assert!(
                    first == &Value::Uint(delivery) && [&Value::Null, first].contains(&last),
                    "{frame:?}"
                );
                return frame.field(4).clone();
            }
        }
    }

    /// Waits until the reader has accepted a batch.
    pub(crate) fn wait_for_completion(&mut self) {
        let settled = self.0.expect(DISPOSITION);
        assert_eq!(settled.field(4), &Value::composite(ACCEPTED, Vec::new()), "{settled:?}");
    }

    /// Follows the client to the end of its connection.
    pub(crate) fn wait_for_close(&mut self) {
        self.wait_for_end(CLOSE);
        self.0.send(0, CLOSE, Vec::new(), &[]);
    }
}
