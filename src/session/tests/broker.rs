//! A broker that follows each test's script, packet by packet, over TLS. Its codec writes bytes by hand.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::server::WebPkiClientVerifier;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::DEADLINE;

/// Listens with a certificate for `localhost` that is its own authority.
pub(super) struct Broker {
    listener: TcpListener,
    idle: Stopped,
}

/// A stopped broker; its port and certificate stay.
pub(super) struct Stopped {
    address: SocketAddr,
    acceptor: TlsAcceptor,
    dir: tempfile::TempDir,
}

impl Broker {
    pub(super) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let idle = Stopped::new(listener.local_addr().expect("an address"));
        Self { listener, idle }
    }

    /// A broker that ends the handshake of a client with a certificate, since it knows no authority but its own.
    pub(super) async fn start_without_certificates() -> Self {
        let mut broker = Self::start().await;
        let own = crate::tls::read_certificates(&broker.ca_file()).expect("a certificate").remove(0);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(own.clone()).expect("a root");
        let judge = WebPkiClientVerifier::builder_with_provider(roots.into(), crate::tls::provider());
        let judge = judge.allow_unauthenticated().build().expect("a judge");
        let key = crate::tls::read_private_key(&broker.idle.dir.path().join("key.pem")).expect("a key");
        let config = rustls::ServerConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(judge)
            .with_single_cert(vec![own], key)
            .expect("a configuration");
        broker.idle.acceptor = TlsAcceptor::from(Arc::new(config));
        broker
    }

    pub(super) fn port(&self) -> u16 {
        self.idle.address.port()
    }

    pub(super) fn ca_file(&self) -> PathBuf {
        self.idle.dir.path().join("ca.pem")
    }

    pub(super) fn stop(self) -> Stopped {
        self.idle
    }

    pub(super) async fn accept(&self) -> Peer {
        timeout(DEADLINE, self.try_accept()).await.expect("a connection in time").expect("a TLS handshake")
    }

    /// A connection of a client that may not trust this broker.
    pub(super) async fn try_accept(&self) -> std::io::Result<Peer> {
        let (socket, _) = self.listener.accept().await.expect("a connection");
        Ok(Peer { stream: self.idle.acceptor.accept(socket).await? })
    }
}

impl Stopped {
    fn new(address: SocketAddr) -> Self {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        let dir = tempfile::tempdir().expect("a directory");
        std::fs::write(dir.path().join("ca.pem"), made.cert.pem()).expect("written");
        std::fs::write(dir.path().join("key.pem"), made.signing_key.serialize_pem()).expect("written");
        let key =
            rustls::pki_types::PrivateKeyDer::try_from(made.signing_key.serialize_der()).expect("a key");
        let config = rustls::ServerConfig::builder_with_provider(crate::tls::provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a configuration");
        Self { address, acceptor: TlsAcceptor::from(Arc::new(config)), dir }
    }

    /// A broker on this port with another certificate, of another authority.
    #[cfg(feature = "full")] // Only the tests of modules have a gateway that gets a new one.
    pub(super) fn renewed(self) -> Self {
        Self::new(self.address)
    }

    pub(super) async fn restart(self) -> Broker {
        Broker { listener: TcpListener::bind(self.address).await.expect("the port again"), idle: self }
    }
}

/// One connection of a client. Its drop cuts it.
pub(super) struct Peer {
    stream: TlsStream<TcpStream>,
}

/// The fields of a CONNECT packet.
pub(super) struct Connect {
    pub(super) protocol: String,
    pub(super) level: u8,
    pub(super) clean_session: bool,
    pub(super) keep_alive: u16,
    pub(super) client_id: String,
    pub(super) user_name: String,
    pub(super) password: Option<String>,
}

impl Peer {
    /// The connection itself, for another protocol.
    #[allow(dead_code)] // Only AMQP uses it, which needs the feature `full`.
    pub(super) fn into_stream(self) -> TlsStream<TcpStream> {
        self.stream
    }

    /// The next packet: its first byte, and what follows the length.
    pub(super) async fn read(&mut self) -> (u8, Vec<u8>) {
        let packet = async {
            let first = self.stream.read_u8().await.expect("a packet");
            let (mut length, mut shift) = (0usize, 0);
            loop {
                let byte = self.stream.read_u8().await.expect("a length");
                length |= usize::from(byte & 0x7F) << shift;
                shift += 7;
                if byte & 0x80 == 0 {
                    break;
                }
            }
            let mut rest = vec![0; length];
            self.stream.read_exact(&mut rest).await.expect("the rest of a packet");
            (first, rest)
        };
        timeout(DEADLINE, packet).await.expect("a packet in time")
    }

    pub(super) async fn send(&mut self, packet: &[u8]) {
        let sent = async {
            self.stream.write_all(packet).await.expect("sent");
            self.stream.flush().await.expect("flushed");
        };
        timeout(Duration::from_secs(30), sent).await.expect("sent in time");
    }

    pub(super) async fn read_connect(&mut self) -> Connect {
        let (first, rest) = self.read().await;
        assert_eq!(first >> 4, 1, "CONNECT");
        let (protocol, rest) = text(&rest);
        let (level, flags) = (rest[0], rest[1]);
        let keep_alive = u16::from_be_bytes([rest[2], rest[3]]);
        let (client_id, rest) = text(&rest[4..]);
        let (user_name, rest) = text(rest);
        let password = (flags & 0x40 != 0).then(|| text(rest).0);
        let clean_session = flags & 0x02 != 0;
        Connect { protocol, level, clean_session, keep_alive, client_id, user_name, password }
    }

    pub(super) async fn send_connack(&mut self, code: u8) {
        self.send(&[0x20, 2, 0, code]).await;
    }

    /// The first filter and the QoS asked for.
    pub(super) async fn read_subscribe(&mut self) -> (String, u8) {
        self.read_subscribe_many().await.swap_remove(0)
    }

    /// All filters of a SUBSCRIBE, and the QoS asked for.
    pub(super) async fn read_subscribe_many(&mut self) -> Vec<(String, u8)> {
        let (first, rest) = self.read().await;
        assert_eq!(first, 0x82, "SUBSCRIBE");
        let mut left = &rest[2..];
        let mut filters = Vec::new();
        while !left.is_empty() {
            let (filter, rest) = text(left);
            filters.push((filter, rest[0]));
            left = &rest[1..];
        }
        filters
    }

    pub(super) async fn send_suback(&mut self) {
        self.send(&[0x90, 3, 0, 1, 1]).await;
    }

    pub(super) async fn sign_in_and_subscribe(&mut self) {
        self.read_connect().await;
        self.send_connack(0).await;
        self.read_subscribe().await;
        self.send_suback().await;
    }

    /// The next packet, which must be a PUBLISH of QoS 1: topic, packet id, body.
    pub(super) async fn read_publish(&mut self) -> (String, u16, String) {
        let (first, rest) = self.read().await;
        assert_eq!(first, 0x32, "PUBLISH with QoS 1");
        let (topic, rest) = text(&rest);
        (topic, u16::from_be_bytes([rest[0], rest[1]]), String::from_utf8_lossy(&rest[2..]).into_owned())
    }

    /// The next packet, which must be a PUBLISH of QoS 0: topic, body.
    pub(super) async fn read_publish_qos_0(&mut self) -> (String, String) {
        let (first, rest) = self.read().await;
        assert_eq!(first, 0x30, "PUBLISH with QoS 0");
        let (topic, body) = text(&rest);
        (topic, String::from_utf8_lossy(body).into_owned())
    }

    pub(super) async fn send_puback(&mut self, packet_id: u16) {
        let [high, low] = packet_id.to_be_bytes();
        self.send(&[0x40, 2, high, low]).await;
    }

    /// The packet id of the next packet, which must be a PUBACK.
    pub(super) async fn read_puback(&mut self) -> u16 {
        let (first, rest) = self.read().await;
        assert_eq!(first, 0x40, "PUBACK");
        u16::from_be_bytes([rest[0], rest[1]])
    }
}

/// A PUBLISH of QoS 1 on the topic of `dev1` with this property bag; short enough for one length byte.
pub(super) fn publish(packet_id: u16, bag: &str, body: &str) -> Vec<u8> {
    publish_on(&format!("devices/dev1/messages/devicebound/{bag}"), packet_id, body)
}

/// A PUBLISH of QoS 1; short enough for one length byte.
pub(super) fn publish_on(topic: &str, packet_id: u16, body: &str) -> Vec<u8> {
    let length = 2 + topic.len() + 2 + body.len();
    let mut packet = vec![0x32, u8::try_from(length).ok().filter(|l| *l < 128).expect("a short packet")];
    packet.extend(u16::try_from(topic.len()).expect("a short topic").to_be_bytes());
    packet.extend(topic.as_bytes());
    packet.extend(packet_id.to_be_bytes());
    packet.extend(body.as_bytes());
    packet
}

/// A PUBLISH of QoS 0; short enough for one length byte.
pub(super) fn publish_qos_0(topic: &str, body: &str) -> Vec<u8> {
    let length =
        u8::try_from(2 + topic.len() + body.len()).ok().filter(|l| *l < 128).expect("a short packet");
    let topic_length = u16::try_from(topic.len()).expect("a short topic").to_be_bytes();
    [&[0x30, length], &topic_length[..], topic.as_bytes(), body.as_bytes()].concat()
}

fn text(bytes: &[u8]) -> (String, &[u8]) {
    let length = usize::from(u16::from_be_bytes([bytes[0], bytes[1]]));
    (String::from_utf8(bytes[2..2 + length].to_vec()).expect("UTF-8"), &bytes[2 + length..])
}
