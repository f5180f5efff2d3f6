//! Idle time-outs of AMQP on the wire: what the agent asks of its hub, and what it sends for the hub's time-out.
//!
//! Must not know: how the agent counts.
//! Source: AMQP 1.0, 2.4.5 and 2.7.1.

use std::io::{Read, Write as _};
use std::net::TcpListener;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};

use rustls::{ServerConnection, StreamOwned};

use crate::amqp_conditions::spawn;
use crate::harness::DEADLINE;
use crate::proxied::server_config;

/// AMQP 1.0 without SASL.
const HEADER: &[u8] = b"AMQP\x00\x01\x00\x00";
/// An Open of the container "p" that asks for a frame every 300 ms.
const OPEN: &[u8] =
    b"\x00\x00\x00\x1f\x02\x00\x00\x00\x00\x53\x10\xc0\x12\x05\xa1\x01p\x40\x70\x00\x01\x00\x00\x60\xff\xff\
    \x70\x00\x00\x01\x2c";
/// An empty frame.
const EMPTY: &[u8] = b"\x00\x00\x00\x08\x02\x00\x00\x00";
/// A second, as a uint of milliseconds.
const ONE_SECOND: &[u8] = b"\x70\x00\x00\x03\xe8";

fn frame(stream: &mut impl Read) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    stream.read_exact(&mut length)?;
    let mut frame = length.to_vec();
    frame.resize(u32::from_be_bytes(length) as usize, 0);
    stream.read_exact(&mut frame[4..])?;
    Ok(frame)
}

#[test]
fn the_hub_is_told_the_keep_alive_hears_empty_frames_and_is_given_up_when_it_says_nothing() {
    let dir = tempfile::tempdir().expect("a directory");
    let (config, ca_file) = server_config(dir.path(), "peer.pem", "localhost", None);
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let port = listener.local_addr().expect("an address").port();
    let (frames, seen) = sync_channel(100);
    std::thread::spawn(move || {
        let (client, _) = listener.accept().expect("a client");
        let mut stream = StreamOwned::new(ServerConnection::new(config).expect("a connection"), client);
        let mut header = [0; HEADER.len()];
        stream.read_exact(&mut header).expect("a header");
        assert_eq!(header, HEADER);
        stream.write_all(&[HEADER, OPEN].concat()).and_then(|()| stream.flush()).expect("answered");
        // From here on the hub sends nothing.
        while let Ok(frame) = frame(&mut stream) {
            frames.send(frame).expect("the test waits");
        }
    });
    let began = Instant::now();
    let agent = spawn(port, &ca_file, dir.path(), ["keep_alive = \"1s\"", ""]);
    let open = seen.recv_timeout(DEADLINE).expect("an Open");
    assert!(open.windows(ONE_SECOND.len()).any(|bytes| bytes == ONE_SECOND), "{open:x?}");
    let line = agent.process.stderr.wait_for("not connected");
    assert!(line.contains(&format!("localhost:{port} does not answer any more")), "{line}");
    assert!(began.elapsed() > Duration::from_secs(2), "it was patient for twice its keep-alive");
    let empty = seen.try_iter().filter(|frame| frame == EMPTY).count();
    // The hub asked for a frame every 300 ms, and two seconds have passed.
    assert!((3..=8).contains(&empty), "{empty} empty frames");
    assert_eq!(agent.process.terminate(), Some(0));
}
