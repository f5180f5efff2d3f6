//! A minimal MQTT device on a blocking TLS socket, and an emulator in a thread, with a hub that tests can use directly.
//!
//! Owns: packets in and out with deadlines. Must not know: what a test shows.
#![allow(dead_code)] // Not every feature set uses every part.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use c2d_agent::credentials::{DeviceConnectionString, DeviceSecret, SasToken, SharedAccessKey};
use c2d_agent::emulator::hub::{EnqueueError, QueuedMessage};
use c2d_agent::emulator::shared::SharedHub;
use c2d_agent::emulator::{self, Clock, Options};
use c2d_agent::feedback::{DeliveryAck, FeedbackStatus};
use c2d_agent::message::{self, C2dMessage};
use c2d_agent::tls::{self, ClientCertificate};
use rumqttc::mqttbytes::v4::{
    ConnAck, Connect, ConnectReturnCode, Packet, PubAck, Publish, SubAck, Subscribe, SubscribeFilter,
};
use rumqttc::mqttbytes::{Error, QoS};
use rustls::{ClientConfig, ClientConnection, StreamOwned};
use tokio::sync::oneshot;

use crate::harness::DEADLINE;

/// An emulator in a thread, with the devices `dev1` (key) and `cert1`, `cert2` (certificates).
pub(crate) struct Local {
    pub(crate) hub: SharedHub,
    pub(crate) address: SocketAddr,
    dir: tempfile::TempDir,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Local {
    pub(crate) fn start() -> Self {
        Self::start_as("localhost", SystemTime::now)
    }

    /// Starts an emulator with another name or another clock.
    pub(crate) fn start_as(hostname: &str, clock: Clock) -> Self {
        let dir = tempfile::tempdir().expect("a directory");
        let options = Options {
            state_dir: dir.path().join("state"),
            bind: Ipv4Addr::LOCALHOST.into(),
            hostname: hostname.into(),
            gateway_hostname: None,
            hubs: Vec::new(),
            mqtt_port: 0,
            amqp_port: 0,
            https_port: Some(0),
            devices: vec!["dev1".into()],
            x509_devices: vec!["cert1".into(), "cert2".into()],
            modules: Vec::new(),
            routes: Vec::new(),
            workload_socket: None,
            feedback_interval: Duration::from_millis(10),
            certificate_lifetime: std::time::Duration::from_secs(3600),
            size: None,
            faults: Vec::new(),
            clock: None,
            well_known_keys: false,
            provisioning: None,
            entra: None,
        };
        let (stop, stopped) = oneshot::channel::<()>();
        let (ready, started) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.expect("a runtime").block_on(async {
                let emulator = emulator::start(options, clock).await.expect("started");
                ready.send((emulator.hub().clone(), emulator.mqtt_address())).expect("waiting");
                drop(stopped.await);
                emulator.stop().await;
            });
        });
        let (hub, address) = started.recv_timeout(DEADLINE).expect("a started emulator");
        Self { hub, address, dir, stop: Some(stop), thread: Some(thread) }
    }

    pub(crate) fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    /// Sends a message to `dev1`; its id is also its body.
    pub(crate) fn send(&self, id: &str) -> Result<(), EnqueueError> {
        let mut message = C2dMessage { body: Bytes::copy_from_slice(id.as_bytes()), ..C2dMessage::default() };
        message.system.set(message::MESSAGE_ID, id);
        message.system.set(message::TO, "/devices/dev1/messages/devicebound");
        let queued =
            QueuedMessage { device_id: "dev1".into(), message, ack: DeliveryAck::Full, expiry: None };
        self.hub.with(|hub, now| hub.enqueue(queued, now))
    }

    /// Waits for feedback and returns all records of one batch.
    pub(crate) fn feedback(&self) -> Vec<(String, FeedbackStatus)> {
        let batch = self.wait(|hub, now| hub.next_feedback_batch(now));
        self.hub.with(|hub, _| hub.complete_feedback(batch.lock)).expect("locked");
        batch.records.into_iter().map(|record| (record.original_message_id, record.status_code)).collect()
    }

    /// Waits until the hub has an answer. The hub changes in the emulator's thread.
    pub(crate) fn wait<T>(
        &self,
        mut ask: impl FnMut(&mut c2d_agent::emulator::hub::Hub, SystemTime) -> Option<T>,
    ) -> T {
        let end = std::time::Instant::now() + DEADLINE;
        loop {
            if let Some(found) = self.hub.with(&mut ask) {
                return found;
            }
            assert!(std::time::Instant::now() < end, "the hub never got there");
            std::thread::park_timeout(Duration::from_millis(2));
        }
    }

    /// The key of `dev1`.
    pub(crate) fn key(&self) -> SharedAccessKey {
        let file = self.state().join("devices/dev1.connection-string");
        let text = std::fs::read_to_string(file).expect("a connection string");
        match DeviceConnectionString::parse(&text).expect("valid").secret {
            DeviceSecret::Key(key) => key,
            other => panic!("not a key: {other:?}"),
        }
    }

    /// A token of `dev1` that is valid for `seconds` more.
    pub(crate) fn token(&self, seconds: i64) -> String {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).expect("after 1970").as_secs();
        let expiry = Duration::from_secs(now.checked_add_signed(seconds).expect("in range"));
        let expiry = SystemTime::UNIX_EPOCH + expiry;
        SasToken::sign(&self.key(), "localhost/devices/dev1", None, expiry).expose().to_owned()
    }

    /// A correct CONNECT of `dev1`.
    pub(crate) fn connect_packet(&self) -> Connect {
        let mut connect = Connect::new("dev1");
        connect.clean_session = false;
        connect.keep_alive = 60;
        connect.set_login("localhost/dev1/?api-version=2021-04-12", self.token(600));
        connect
    }

    /// Opens a TLS connection.
    pub(crate) fn dial(&self) -> Device {
        Device::dial(self.address, &self.state(), None)
    }

    /// Opens a TLS connection with the certificate of `device`.
    pub(crate) fn dial_with_certificate(&self, device: &str) -> Device {
        let file = |kind: &str| self.state().join(format!("devices/{device}.{kind}.pem"));
        let certificate = ClientCertificate { certificate: file("cert"), private_key: file("key") };
        Device::dial(self.address, &self.state(), Some(&certificate))
    }

    /// Signs `dev1` in and returns the CONNACK's session-present flag with the device.
    pub(crate) fn sign_in(&self) -> (Device, bool) {
        let mut device = self.dial();
        device.send(Packet::Connect(self.connect_packet()));
        let ack = device.connack();
        assert_eq!(ack.code, ConnectReturnCode::Success);
        (device, ack.session_present)
    }

    /// Signs `dev1` in and subscribes to C2D messages with QoS 1.
    pub(crate) fn subscribed(&self) -> Device {
        let (mut device, _) = self.sign_in();
        device.subscribe(&[("devices/dev1/messages/devicebound/#", QoS::AtLeastOnce)]);
        device
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
            && !std::thread::panicking()
        {
            panic!("the emulator panicked");
        }
    }
}

/// One connection of a device.
pub(crate) struct Device {
    stream: StreamOwned<ClientConnection, TcpStream>,
    buffer: BytesMut,
}

impl Device {
    fn dial(address: SocketAddr, state: &Path, certificate: Option<&ClientCertificate>) -> Self {
        let config = tls::client_config(Some(&state.join("ca.pem")), certificate).expect("a configuration");
        Self::dial_with(address, config)
    }

    /// Opens a TLS connection with the test's own configuration.
    pub(crate) fn dial_with(address: SocketAddr, config: Arc<ClientConfig>) -> Self {
        let socket = TcpStream::connect(address).expect("connected");
        socket.set_read_timeout(Some(DEADLINE)).expect("a socket");
        socket.set_nodelay(true).expect("a socket");
        let name = "localhost".try_into().expect("a name");
        let connection = ClientConnection::new(config, name).expect("a connection");
        Self { stream: StreamOwned::new(connection, socket), buffer: BytesMut::new() }
    }

    pub(crate) fn send(&mut self, packet: Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, 1 << 20).expect("writable");
        self.send_bytes(&bytes);
    }

    pub(crate) fn send_bytes(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).expect("sent");
        self.stream.flush().expect("sent");
    }

    /// The next packet; `None` when the emulator has closed the connection.
    pub(crate) fn next(&mut self) -> Option<Packet> {
        loop {
            match Packet::read(&mut self.buffer, 1 << 20) {
                Ok(packet) => return Some(packet),
                Err(Error::InsufficientBytes(_)) => {}
                Err(error) => panic!("the emulator sent a bad packet: {error}"),
            }
            self.read()?;
        }
    }

    /// Reads more bytes; `None` at the end of the connection.
    fn read(&mut self) -> Option<()> {
        let mut bytes = [0; 16 * 1024];
        match self.stream.read(&mut bytes) {
            Ok(0) => None,
            Ok(read) => {
                self.buffer.extend_from_slice(&bytes[..read]);
                Some(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                panic!("nothing came in {DEADLINE:?}")
            }
            Err(_) => None,
        }
    }

    /// The bytes of the next packet; `None` when the emulator has closed the connection.
    pub(crate) fn frame(&mut self) -> Option<Vec<u8>> {
        loop {
            if let Some(length) = frame_length(&self.buffer) {
                return Some(self.buffer.split_to(length).to_vec());
            }
            self.read()?;
        }
    }

    /// Reads until the emulator closes the connection. Fails if packets come instead.
    #[track_caller]
    pub(crate) fn expect_close(&mut self) {
        assert_eq!(self.next(), None, "the connection should be closed");
    }

    #[track_caller]
    pub(crate) fn connack(&mut self) -> ConnAck {
        match self.next() {
            Some(Packet::ConnAck(ack)) => ack,
            other => panic!("not a CONNACK: {other:?}"),
        }
    }

    #[track_caller]
    pub(crate) fn publish(&mut self) -> Publish {
        match self.next() {
            Some(Packet::Publish(publish)) => publish,
            other => panic!("not a PUBLISH: {other:?}"),
        }
    }

    /// The ids (bodies) of the next `count` messages.
    #[track_caller]
    pub(crate) fn bodies(&mut self, count: usize) -> Vec<String> {
        (0..count).map(|_| String::from_utf8_lossy(&self.publish().payload).into_owned()).collect()
    }

    pub(crate) fn puback(&mut self, publish: &Publish) {
        self.send(Packet::PubAck(PubAck::new(publish.pkid)));
    }

    /// Subscribes and returns the SUBACK, which must be the next packet.
    #[track_caller]
    pub(crate) fn subscribe(&mut self, filters: &[(&str, QoS)]) -> SubAck {
        let filters = filters.iter().map(|(path, qos)| SubscribeFilter::new((*path).to_owned(), *qos));
        let mut subscribe = Subscribe::new_many(filters);
        subscribe.pkid = 1;
        self.send(Packet::Subscribe(subscribe));
        match self.next() {
            Some(Packet::SubAck(ack)) => ack,
            other => panic!("not a SUBACK: {other:?}"),
        }
    }

    /// Asserts that the emulator has sent nothing that was not read yet: the next packet must be a PINGRESP.
    #[track_caller]
    pub(crate) fn expect_silence(&mut self) {
        self.send(Packet::PingReq);
        assert_eq!(self.next(), Some(Packet::PingResp));
    }
}

/// The length of the first packet, if it is complete. Source: MQTT 3.1.1, 2.2.3.
fn frame_length(bytes: &[u8]) -> Option<usize> {
    let (mut length, mut shift) = (0, 0);
    for (at, byte) in bytes.iter().enumerate().skip(1).take(4) {
        length |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            let whole = at + 1 + length;
            return (bytes.len() >= whole).then_some(whole);
        }
    }
    None
}
