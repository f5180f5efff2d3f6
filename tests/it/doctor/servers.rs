//! Faulty servers, for the tests of the doctor.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use rustls::{ServerConfig, ServerConnection, StreamOwned};

/// The name in a certificate, and the years in which the certificate is valid.
pub(super) struct Terms {
    pub(super) name: &'static str,
    pub(super) from: i32,
    pub(super) until: i32,
}

/// A certificate for `localhost` that is valid now.
pub(super) const GOOD: Terms = Terms { name: "localhost", from: 2020, until: 2090 };

/// Writes an authority's file into `dir`, and starts a server with a certificate of this authority. The server takes
/// connections until the process ends, and closes each after the first bytes that it gets.
pub(super) fn tls(dir: &Path, terms: &Terms) -> (SocketAddr, PathBuf) {
    let (ca_file, config) = certified(dir, terms);
    let address = serve(move |stream| {
        let connection = ServerConnection::new(Arc::clone(&config)).expect("a connection");
        // The client may refuse the certificate; these tests expect it.
        drop(StreamOwned::new(connection, stream).read(&mut [0; 1]));
    });
    (address, ca_file)
}

fn certified(dir: &Path, terms: &Terms) -> (PathBuf, Arc<ServerConfig>) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, "Example CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca_file = dir.join("example-ca.pem");
    std::fs::write(&ca_file, params.self_signed(&key).expect("an authority").pem()).expect("written");
    let issuer = Issuer::new(params, key);
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new([terms.name.to_owned()]).expect("parameters");
    params.distinguished_name.push(DnType::CommonName, terms.name);
    params.not_before = rcgen::date_time_ymd(terms.from, 1, 1);
    params.not_after = rcgen::date_time_ymd(terms.until, 1, 1);
    let certificate = params.signed_by(&key, &issuer).expect("a certificate");
    let key = PrivateKeyDer::try_from(key.serialize_der()).expect("a key");
    let config = ServerConfig::builder_with_provider(c2d_agent::tls::provider())
        .with_safe_default_protocol_versions()
        .expect("versions")
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key)
        .expect("a configuration");
    (ca_file, Arc::new(config))
}

/// A server that answers HTTP without TLS.
pub(super) fn plain_text() -> SocketAddr {
    serve(|mut stream| {
        // The request is read first, because a close with unread data would cut off the answer.
        drop(stream.read(&mut [0; 4096]));
        drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n"));
    })
}

/// A server that closes every connection as soon as it has read something.
pub(super) fn hangs_up() -> SocketAddr {
    serve(|mut stream| drop(stream.read(&mut [0; 4096])))
}

fn serve(each: impl Fn(TcpStream) + Send + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("an address");
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            stream.set_read_timeout(Some(Duration::from_secs(10))).expect("a socket");
            each(stream);
        }
    });
    address
}

/// A port whose queue of connections is full. More connections get no answer, as behind a firewall that drops packets.
pub(super) struct BlackHole {
    pub(super) address: SocketAddr,
    _listener: rustix::fd::OwnedFd,
    _queue: Vec<TcpStream>,
}

impl BlackHole {
    pub(super) fn open() -> Self {
        use rustix::net::{AddressFamily, SocketType, bind, getsockname, listen, socket};
        let listener = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
        bind(&listener, &SocketAddr::from(([127, 0, 0, 1], 0))).expect("bound");
        listen(&listener, 0).expect("listening");
        let address = SocketAddr::try_from(getsockname(&listener).expect("an address")).expect("IPv4");
        let mut queue = Vec::new();
        while let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(500)) {
            queue.push(stream);
            assert!(queue.len() < 16, "the queue has no end");
        }
        Self { address, _listener: listener, _queue: queue }
    }
}
