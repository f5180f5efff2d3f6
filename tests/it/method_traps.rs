//! Calls of direct methods, and twins, that no hub should send. A scripted hub sends them over real TLS.
//!
//! Owns: the scripted hub. Must not know: how the agent is built.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;

use bytes::BytesMut;
use rumqttc::mqttbytes::v4::{
    ConnAck, ConnectReturnCode, Packet, PubAck, Publish, SubAck, SubscribeReasonCode,
};
use rumqttc::mqttbytes::{Error, QoS};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use crate::harness::{Agent, DEADLINE, wait_for_file};

/// The hub's end of the agent's only connection.
struct Hub {
    stream: StreamOwned<ServerConnection, TcpStream>,
    read: BytesMut,
}

impl Hub {
    /// Starts the agent with these rules, lets it sign in, and takes its subscriptions.
    fn with_agent(dir: &Path, rules: &str) -> (Self, Agent) {
        let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).expect("a certificate");
        std::fs::write(dir.join("ca.pem"), made.cert.pem()).expect("written");
        let key = rustls::pki_types::PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let config = ServerConfig::builder_with_provider(c2d_agent::tls::provider())
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key.into())
            .expect("a pair");
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let device =
            format!("HostName=localhost:{port};DeviceId=dev1;SharedAccessKey=AAECAwQFBgcICQoLDA0ODw==");
        let agent = Agent::spawn(&device, &dir.join("ca.pem"), dir, rules);
        let (socket, _) = listener.accept().expect("a connection");
        socket.set_read_timeout(Some(DEADLINE)).expect("a timeout");
        let connection = ServerConnection::new(Arc::new(config)).expect("a connection");
        let mut hub = Self { stream: StreamOwned::new(connection, socket), read: BytesMut::new() };
        assert!(matches!(hub.next(), Packet::Connect(_)));
        hub.send(&Packet::ConnAck(ConnAck { session_present: false, code: ConnectReturnCode::Success }));
        let Packet::Subscribe(subscribe) = hub.next() else { panic!("no SUBSCRIBE") };
        let granted = subscribe.filters.iter().map(|filter| SubscribeReasonCode::Success(filter.qos));
        hub.send(&Packet::SubAck(SubAck::new(subscribe.pkid, granted.collect())));
        agent.process.stderr.wait_for("subscribed");
        (hub, agent)
    }

    fn send(&mut self, packet: &Packet) {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, 1 << 20).expect("a packet");
        self.stream.write_all(&bytes).and_then(|()| self.stream.flush()).expect("written");
    }

    /// The next packet other than a ping.
    fn next(&mut self) -> Packet {
        loop {
            match Packet::read(&mut self.read, 1 << 20) {
                Ok(Packet::PingReq) => self.send(&Packet::PingResp),
                Ok(packet) => return packet,
                Err(Error::InsufficientBytes(_)) => {
                    let mut bytes = [0; 4096];
                    let length = self.stream.read(&mut bytes).expect("bytes in time");
                    assert!(length > 0, "the agent hung up");
                    self.read.extend_from_slice(&bytes[..length]);
                }
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn call(&mut self, method: &str, request: &str, payload: &str) {
        let topic = format!("$iothub/methods/POST/{method}/?$rid={request}");
        self.send(&Packet::Publish(Publish::new(topic, QoS::AtMostOnce, payload)));
    }

    /// The next publish of the agent: topic and payload.
    fn publish(&mut self) -> (String, String) {
        match self.next() {
            Packet::Publish(publish) => {
                if publish.qos == QoS::AtLeastOnce {
                    self.send(&Packet::PubAck(PubAck::new(publish.pkid)));
                }
                (publish.topic, String::from_utf8(publish.payload.to_vec()).expect("UTF-8"))
            }
            other => panic!("{other:?}"),
        }
    }
}

fn rules(dir: &Path) -> String {
    let dir = dir.display();
    format!(
        "[[rule]]\nname = \"gated\"\nwhen = {{ \"$.method\" = \"gated\" }}\n\
         do = [{{ shell = \"cat >> {dir}/done; until [ -e {dir}/go ]; do sleep 0.02; done\" }}]\n\
         [[rule]]\nname = \"c2d\"\nwhen = {{ \"$.source\" = \"c2d\" }}\ndo = []\n\
         [[rule]]\nname = \"claimed\"\nwhen = {{ \"$.source\" = \"method\" }}\ndo = []\n"
    )
}

#[test]
fn a_payload_that_is_not_json_is_answered_400_and_the_other_doors_stay_open() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut hub, _agent) = Hub::with_agent(dir.path(), &rules(dir.path()));
    for (request, payload) in [("7", "on"), ("8", "{\"state\": }"), ("9", "\u{fffd}{}")] {
        hub.call("gated", request, payload);
        let (topic, answer) = hub.publish();
        assert_eq!(topic, format!("$iothub/methods/res/400/?$rid={request}"));
        assert!(
            answer.contains("the payload is not JSON") && answer.contains("\"outcome\":\"undecodable\""),
            "{answer}"
        );
    }
    assert!(!dir.path().join("done").exists(), "nothing ran");
    // A C2D message with the properties of a call is still a C2D message.
    let topic = "devices/dev1/messages/devicebound/%24.mid=c-1&%24.method=gated&%24.source=method";
    let mut publish = Publish::new(topic, QoS::AtLeastOnce, "x");
    publish.pkid = 3;
    hub.send(&Packet::Publish(publish));
    assert!(matches!(hub.next(), Packet::PubAck(ack) if ack.pkid == 3));
    assert!(!dir.path().join("done").exists(), "nothing ran");
}

#[test]
fn of_two_calls_with_one_request_id_one_is_run_and_answered() {
    let dir = tempfile::tempdir().expect("a directory");
    let (mut hub, agent) = Hub::with_agent(dir.path(), &rules(dir.path()));
    hub.call("gated", "1", "\"first\"");
    wait_for_file(&dir.path().join("done"), "first");
    hub.call("gated", "1", "\"second\"");
    agent.process.stderr.wait_for("a call with this request id is still running");
    // A message with the same id comes by another door while the call waits.
    let mut publish = Publish::new("devices/dev1/messages/devicebound/%24.mid=c-1", QoS::AtLeastOnce, "x");
    publish.pkid = 4;
    hub.send(&Packet::Publish(publish));
    assert!(matches!(hub.next(), Packet::PubAck(ack) if ack.pkid == 4));
    std::fs::write(dir.path().join("go"), "").expect("written");
    let (topic, answer) = hub.publish();
    assert!(
        topic == "$iothub/methods/res/200/?$rid=1" && answer.contains("\"succeeded\""),
        "{topic} {answer}"
    );
    // After the answer, the id is free. A second answer to the first call would come before this one.
    hub.call("gated", "1", "\"third\"");
    let (topic, again) = hub.publish();
    assert!(topic == "$iothub/methods/res/200/?$rid=1" && again != answer, "{topic} {again}");
    assert_eq!(std::fs::read_to_string(dir.path().join("done")).expect("read"), "\"first\"\"third\"");
}

#[test]
fn a_twin_without_desired_properties_takes_no_rule_away() {
    let dir = tempfile::tempdir().expect("a directory");
    let kept = r#"{"version":3,"rules":{"x":"[[rule]]\nname = \"x\"\nwhen = { x = 1 }\ndo = []\n"}}"#;
    std::fs::write(dir.path().join("twin-rules.json"), kept).expect("written");
    let (mut hub, agent) =
        Hub::with_agent(dir.path(), &format!("[twin]\naccept = [\"rules\"]\n{}", rules(dir.path())));
    agent.process.stderr.wait_for("rules of the twin are applied");
    let request = loop {
        let (topic, _) = hub.publish();
        if let Some(request) = topic.strip_prefix("$iothub/twin/GET/?$rid=") {
            break request.to_owned();
        }
    };
    let topic = format!("$iothub/twin/res/200/?$rid={request}");
    hub.send(&Packet::Publish(Publish::new(topic, QoS::AtMostOnce, "{}")));
    agent.process.stderr.wait_for("sent a twin without desired properties");
    assert_eq!(std::fs::read_to_string(dir.path().join("twin-rules.json")).expect("kept"), kept);
    assert!(!agent.process.stderr.text().contains("applied the rules of the twin"));
}
