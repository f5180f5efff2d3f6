//! MQTT 3.1.1 packets over a byte stream.
//!
//! Owns: framing, the packet size limit, buffers. Only this file of the emulator names rumqttc, whose codec it uses.
//! Must not know: the meaning of a packet, the hub.

use std::io;
use std::time::Duration;

use bytes::BytesMut;
use rumqttc::mqttbytes::v4;
use rumqttc::mqttbytes::{self, Error};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::time::timeout;

pub(super) use rumqttc::mqttbytes::QoS;
pub(super) use rumqttc::mqttbytes::v4::{
    ConnAck, Connect, ConnectReturnCode, LastWill, Packet, PubAck, Publish, SubAck, Subscribe,
    SubscribeReasonCode, UnsubAck, Unsubscribe,
};

/// Largest packet in either direction. Source: wire reference 1.4.
const MAX_PACKET: usize = 256 * 1024;

/// Longest topic that the protocol allows.
pub(super) const MAX_TOPIC: usize = u16::MAX as usize;

/// A peer that reads nothing for this long is disconnected.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);

/// Why no more packets can be read or written.
#[derive(Debug, thiserror::Error)]
pub(super) enum WireError {
    /// The bytes are not MQTT 3.1.1, or a client may not send this packet.
    #[error("the device sent a malformed packet: {0}")]
    Malformed(String),
    /// A packet is larger than the hub takes.
    #[error("the device sent a packet of more than {MAX_PACKET} bytes, the most that a hub takes: {0}")]
    TooLarge(usize),
    /// The CONNECT has another version: its level, or 0 if the protocol name is wrong.
    #[error("the device speaks protocol level {0}, not MQTT 3.1.1 (level 4)")]
    ProtocolLevel(u8),
    /// The connection broke.
    #[error("the connection broke: {0}")]
    Io(#[from] io::Error),
    /// The peer does not read.
    #[error("the device read nothing for {} seconds", WRITE_TIMEOUT.as_secs())]
    NotReading,
    /// The protocol cannot encode a packet of the emulator.
    #[error("a packet cannot be written: {0}")]
    Unwritable(String),
}

/// Packets over a stream, with both buffers. Pushed packets are sent at the next flush. An empty buffer takes no
/// memory, because most connections are idle.
pub(super) struct Wire<S> {
    stream: S,
    incoming: BytesMut,
    outgoing: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    pub(super) fn new(stream: S) -> Self {
        Self { stream, incoming: BytesMut::new(), outgoing: BytesMut::new() }
    }

    /// The next packet; `None` at the end of the stream. Cancel safe.
    pub(super) async fn next(&mut self) -> Result<Option<Packet>, WireError> {
        loop {
            if let Some(packet) = self.next_buffered()? {
                return Ok(Some(packet));
            }
            if self.incoming.is_empty() {
                self.incoming = BytesMut::new();
            }
            if self.stream.read_buf(&mut self.incoming).await? == 0 {
                return Ok(None);
            }
        }
    }

    /// A packet that has already arrived, if there is one.
    pub(super) fn next_buffered(&mut self) -> Result<Option<Packet>, WireError> {
        decode(&mut self.incoming)
    }

    /// Buffers a packet for the next flush.
    pub(super) fn push(&mut self, packet: &Packet) -> Result<(), WireError> {
        let written = packet.write(&mut self.outgoing, MAX_PACKET);
        written.map(drop).map_err(|error| WireError::Unwritable(error.to_string()))
    }

    /// Sends the buffered packets. Not cancel safe: the peer may get half a packet.
    pub(super) async fn flush(&mut self) -> Result<(), WireError> {
        if self.outgoing.is_empty() {
            return Ok(());
        }
        let send = async {
            self.stream.write_all_buf(&mut self.outgoing).await?;
            self.stream.flush().await
        };
        timeout(WRITE_TIMEOUT, send).await.map_err(|_| WireError::NotReading)??;
        self.outgoing = BytesMut::new();
        Ok(())
    }

    /// Closes the stream in order, if the peer allows it.
    pub(super) async fn close(mut self) {
        if let Ok(Err(error)) = timeout(Duration::from_secs(1), self.stream.shutdown()).await {
            tracing::debug!(%error, "the peer was gone before the connection was closed");
        }
    }
}

/// Removes one packet from the front of `bytes`; `None` if it is not complete yet. Packets that a client may not send
/// are an error.
fn decode(bytes: &mut BytesMut) -> Result<Option<Packet>, WireError> {
    let malformed = |error: &dyn std::fmt::Display| WireError::Malformed(error.to_string());
    let Some(kind) = bytes.first().map(|byte| byte >> 4) else { return Ok(None) };
    // CONNECT, PUBLISH, PUBACK, SUBSCRIBE, UNSUBSCRIBE, PINGREQ, DISCONNECT.
    if ![1, 3, 4, 8, 10, 12, 14].contains(&kind) {
        return Err(malformed(&format_args!("a client does not send packets of type {kind} at QoS 0 or 1")));
    }
    let header = match mqttbytes::check(bytes.iter(), MAX_PACKET) {
        Ok(header) => header,
        Err(Error::InsufficientBytes(_)) => return Ok(None),
        Err(Error::PayloadSizeLimitExceeded(size)) => return Err(WireError::TooLarge(size)),
        Err(error) => return Err(malformed(&error)),
    };
    if kind == 1 {
        check_protocol(bytes.get(..header.frame_length()).unwrap_or_default())?;
    }
    v4::Packet::read(bytes, MAX_PACKET).map(Some).map_err(|error| malformed(&error))
}

/// Checks the protocol name and level of a CONNECT first, because the layout of the rest depends on them.
fn check_protocol(packet: &[u8]) -> Result<(), WireError> {
    let length_bytes = packet.iter().skip(1).take_while(|byte| **byte & 0x80 != 0).count() + 1;
    let body = packet.get(1 + length_bytes..).unwrap_or_default();
    match body {
        [0, 4, b'M', b'Q', b'T', b'T', 4, ..] => Ok(()),
        [0, 4, b'M', b'Q', b'T', b'T', level, ..] => Err(WireError::ProtocolLevel(*level)),
        [0, 6, b'M', b'Q', b'I', b's', b'd', b'p', level, ..] => Err(WireError::ProtocolLevel(*level)),
        _ => Err(WireError::Malformed("CONNECT names another protocol".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use proptest::prelude::*;

    fn bytes_of(packet: &Packet) -> BytesMut {
        let mut bytes = BytesMut::new();
        packet.write(&mut bytes, MAX_PACKET).expect("writable");
        bytes
    }

    fn samples() -> Vec<BytesMut> {
        let mut connect = Connect::new("dev1");
        connect.set_login("h/dev1/?api-version=1", "secret");
        connect.last_will =
            Some(LastWill::new("devices/dev1/messages/events/", "gone", QoS::AtLeastOnce, true));
        let mut publish = Publish::new("devices/dev1/messages/events/a=1", QoS::AtLeastOnce, "body");
        publish.pkid = 7;
        let mut subscribe = Subscribe::new("devices/dev1/messages/devicebound/#", QoS::AtLeastOnce);
        subscribe.pkid = 8;
        let unsubscribe = Unsubscribe { pkid: 9, topics: vec!["devices/dev1/messages/devicebound/#".into()] };
        [
            Packet::Connect(connect),
            Packet::Publish(publish),
            Packet::Subscribe(subscribe),
            Packet::Unsubscribe(unsubscribe),
            Packet::PubAck(PubAck::new(7)),
            Packet::PingReq,
            Packet::Disconnect,
        ]
        .iter()
        .map(bytes_of)
        .collect()
    }

    /// Decodes until the bytes run out or are refused. The buffer must shrink with each packet.
    fn decode_all(mut bytes: BytesMut) -> usize {
        let mut packets = 0;
        let mut left = bytes.len();
        while let Ok(Some(_)) = decode(&mut bytes) {
            assert!(bytes.len() < left, "a packet takes its bytes");
            left = bytes.len();
            packets += 1;
        }
        packets
    }

    #[test]
    fn packets_are_found_in_a_stream_whole_and_in_parts() {
        let all: Vec<u8> = samples().concat();
        assert_eq!(decode_all(BytesMut::from(&all[..])), samples().len());
        let mut buffer = BytesMut::new();
        let mut packets = 0;
        for byte in all {
            buffer.extend_from_slice(&[byte]);
            packets += usize::from(decode(&mut buffer).expect("well formed").is_some());
        }
        assert_eq!(packets, samples().len());
    }

    #[test]
    fn other_protocol_versions_are_told_apart_from_damage() {
        let level = |bytes: &[u8]| match decode(&mut BytesMut::from(bytes)) {
            Err(WireError::ProtocolLevel(level)) => Some(level),
            _ => None,
        };
        assert_eq!(level(b"\x10\x10\x00\x04MQTT\x05\x02\x00\x3c\x00\x00\x03abc"), Some(5));
        assert_eq!(level(b"\x10\x11\x00\x06MQIsdp\x03\x02\x00\x3c\x00\x03abc"), Some(3));
        assert_eq!(level(b"\x10\x0f\x00\x04HTTP\x04\x02\x00\x3c\x00\x03abc"), None);
    }

    #[test]
    fn a_packet_that_is_too_large_is_refused_at_its_header() {
        let mut bytes = BytesMut::from(&b"\x30\xff\xff\xff\x7f"[..]);
        assert!(matches!(decode(&mut bytes), Err(WireError::TooLarge(_))));
        // 256 KiB and one byte.
        let mut bytes = BytesMut::from(&b"\x30\x81\x80\x10"[..]);
        assert!(matches!(decode(&mut bytes), Err(WireError::TooLarge(_))));
    }

    #[test]
    fn packets_that_only_a_server_sends_are_refused() {
        for first in [0x00, 0x20, 0x50, 0x62, 0x70, 0x90, 0xb0, 0xd0, 0xf0] {
            let mut bytes = BytesMut::from(&[first, 2, 0, 1][..]);
            assert!(matches!(decode(&mut bytes), Err(WireError::Malformed(_))), "{first:#x}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn any_bytes_are_decoded_or_refused_without_a_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            decode_all(BytesMut::from(&bytes[..]));
        }

        #[test]
        fn damaged_packets_are_decoded_or_refused_without_a_panic(
            which in 0_usize..7,
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            cut in proptest::option::of(any::<prop::sample::Index>()),
        ) {
            let mut bytes = samples().swap_remove(which);
            for (at, value) in changes {
                let at = at.index(bytes.len());
                bytes[at] = value;
            }
            if let Some(cut) = cut {
                bytes.truncate(cut.index(bytes.len()));
            }
            decode_all(bytes);
        }

        #[test]
        fn framed_garbage_of_every_type_is_decoded_or_refused_without_a_panic(
            first in any::<u8>(),
            body in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let length = u8::try_from(body.len()).expect("short");
            let bytes = [&[first, length][..], &body].concat();
            decode_all(BytesMut::from(&bytes[..]));
        }

        #[test]
        fn a_publish_comes_back_as_it_was(topic in "[a-z/%=&]{1,40}", body in proptest::collection::vec(any::<u8>(), 0..300)) {
            let mut publish = Publish::from_bytes(topic, QoS::AtLeastOnce, Bytes::from(body));
            publish.pkid = 1;
            let mut bytes = bytes_of(&Packet::Publish(publish.clone()));
            prop_assert_eq!(decode(&mut bytes).expect("well formed"), Some(Packet::Publish(publish)));
        }
    }
}
