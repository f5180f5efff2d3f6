//! An HTTP proxy, TLS in front of it, and a TLS server with a given answer, for tests of the way to the hub.
//!
//! Owns: these servers. Must not know: what is sent through them.
#![allow(dead_code)] // Not every feature set uses every part.

use std::io::{BufRead as _, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, sync_channel};
use std::sync::{Arc, Mutex};

use c2d_agent::tls;
use rustls::pki_types::PrivatePkcs8KeyDer;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, ServerConnection, StreamOwned};
use tokio::io::copy_bidirectional;
use tokio_rustls::TlsAcceptor;

/// A proxy that takes CONNECT to any host, and always leads to one address.
pub(crate) struct ConnectProxy {
    /// The address of the server.
    pub(crate) address: SocketAddr,
    heads: Receiver<String>,
    tunnels: Arc<Mutex<Vec<TcpStream>>>,
}

impl ConnectProxy {
    /// Leads to `target`. `login` is the value of `Proxy-Authorization` that the proxy requires.
    pub(crate) fn to(target: SocketAddr, login: Option<&'static str>) -> Self {
        Self::answering(move |head| {
            let named = |line: &str| line.to_ascii_lowercase().starts_with("proxy-authorization:");
            let given = head.lines().find(|line| named(line)).and_then(|line| line.split_once(": "));
            match login {
                Some(login) if given.is_none_or(|(_, value)| value != login) => Err(
                    "HTTP/1.1 407 Proxy Authentication Required\r\nProxy-Authenticate: Basic\r\nContent-Length: 4\r\n\r\nstop"
                        .to_owned(),
                ),
                _ => Ok(target),
            }
        })
    }

    /// Answers each request as `answer` says: with a tunnel to an address, or with bytes.
    pub(crate) fn answering(answer: impl Fn(&str) -> Result<SocketAddr, String> + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        let (heads_in, heads) = sync_channel(100); // no test makes more connections
        let tunnels = Arc::new(Mutex::new(Vec::new()));
        let own = Arc::clone(&tunnels);
        std::thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let head = read_head(&client);
                let answered = answer(&head);
                let Ok(()) = heads_in.send(head) else { return };
                let target = match answered {
                    Ok(target) => target,
                    Err(bytes) => {
                        drop(client.write_all(bytes.as_bytes()));
                        continue;
                    }
                };
                let server = TcpStream::connect(target).expect("the target");
                client.write_all(b"HTTP/1.1 200 OK\r\n\r\n").expect("answered");
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut to) =
                        (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
                    own.lock().expect("tunnels").push(from.try_clone().expect("a socket"));
                    std::thread::spawn(move || {
                        drop(std::io::copy(&mut from, &mut to));
                        drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
                    });
                }
            }
        });
        Self { address, heads, tunnels }
    }

    /// The heads of the requests since the last call.
    pub(crate) fn requests(&self) -> Vec<String> {
        self.heads.try_iter().collect()
    }

    /// Cuts all tunnels.
    pub(crate) fn cut(&self) {
        for stream in self.tunnels.lock().expect("tunnels").drain(..) {
            drop(stream.shutdown(Shutdown::Both));
        }
    }
}

fn read_head(stream: &TcpStream) -> String {
    let mut reader = BufReader::with_capacity(1, stream);
    let mut head = String::new();
    while matches!(reader.read_line(&mut head), Ok(read) if read > 2) {}
    head
}

/// A TLS server that answers every request with the same bytes and closes the connection.
pub(crate) struct Portal {
    /// The address of the server.
    pub(crate) address: SocketAddr,
    /// The certificate of the server, which clients must trust.
    pub(crate) ca_file: PathBuf,
}

impl Portal {
    /// Starts a portal for `localhost`, and writes its certificate into `dir`.
    pub(crate) fn answering(dir: &Path, answer: &'static str) -> Self {
        Self::named(dir, "localhost", answer)
    }

    /// Starts a portal with a certificate for `name`. Two portals of one name need a directory each.
    pub(crate) fn named(dir: &Path, name: &str, answer: &'static str) -> Self {
        let (config, ca_file) = server_config(dir, &format!("portal-{name}.pem"), name, None);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let connection = ServerConnection::new(Arc::clone(&config)).expect("a connection");
                let mut stream = StreamOwned::new(connection, client);
                let mut some = [0; 4096];
                if matches!(stream.read(&mut some), Ok(read) if read > 0) {
                    drop(stream.write_all(answer.as_bytes()).and_then(|()| stream.flush()));
                }
            }
        });
        Self { address, ca_file }
    }
}

/// A port whose connections lead to one server after the other; after the last server, all lead to it.
pub(crate) struct Relay {
    /// The address of the server.
    pub(crate) address: SocketAddr,
}

impl Relay {
    pub(crate) fn leading(targets: Vec<SocketAddr>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        std::thread::spawn(move || {
            for (n, client) in listener.incoming().flatten().enumerate() {
                let server = TcpStream::connect(targets[n.min(targets.len() - 1)]).expect("the target");
                for (from, to) in [(&client, &server), (&server, &client)] {
                    let (mut from, mut to) =
                        (from.try_clone().expect("a socket"), to.try_clone().expect("a socket"));
                    std::thread::spawn(move || {
                        drop(std::io::copy(&mut from, &mut to));
                        drop((from.shutdown(Shutdown::Both), to.shutdown(Shutdown::Both)));
                    });
                }
            }
        });
        Self { address }
    }
}

/// TLS in front of a server, for proxies that use TLS.
pub(crate) struct TlsFront {
    /// The address of the server.
    pub(crate) address: SocketAddr,
    /// The certificate of the server, which clients must trust.
    pub(crate) ca_file: PathBuf,
    /// For each connection: whether its client showed a certificate.
    certificates: Arc<Mutex<Vec<bool>>>,
}

impl TlsFront {
    /// Leads to `target`, with a certificate for `name` that is written into `dir`. Asks clients for certificates that
    /// `client_ca` has signed, but also takes clients without a certificate.
    pub(crate) fn to(target: SocketAddr, dir: &Path, name: &str, client_ca: Option<&Path>) -> Self {
        let (config, ca_file) = server_config(dir, "front.pem", name, client_ca);
        let acceptor = TlsAcceptor::from(config);
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("a socket");
        let certificates = Arc::<Mutex<Vec<bool>>>::default();
        let seen = Arc::clone(&certificates);
        let serve = async move {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a listener");
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((client, _)) = listener.accept().await {
                let (acceptor, seen) = (acceptor.clone(), Arc::clone(&seen));
                connections.spawn(async move {
                    let Ok(mut client) = acceptor.accept(client).await else { return };
                    seen.lock().expect("certificates").push(client.get_ref().1.peer_certificates().is_some());
                    let mut server = tokio::net::TcpStream::connect(target).await.expect("the target");
                    drop(copy_bidirectional(&mut client, &mut server).await);
                });
            }
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        std::thread::spawn(move || runtime.block_on(serve));
        Self { address, ca_file, certificates }
    }

    /// For each connection so far: whether its client showed a certificate.
    pub(crate) fn certificates(&self) -> Vec<bool> {
        self.certificates.lock().expect("certificates").clone()
    }
}

/// TLS with a certificate for `name`, which is written into `dir`.
pub(crate) fn server_config(
    dir: &Path,
    file: &str,
    name: &str,
    client_ca: Option<&Path>,
) -> (Arc<ServerConfig>, PathBuf) {
    let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
    let ca_file = dir.join(file);
    std::fs::write(&ca_file, made.cert.pem()).expect("written");
    let key = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()).into();
    let builder = ServerConfig::builder_with_provider(tls::provider())
        .with_safe_default_protocol_versions()
        .expect("versions");
    let builder = match client_ca {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(tls::read_certificates(path).expect("certificates"));
            let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), tls::provider());
            builder.with_client_cert_verifier(verifier.allow_unauthenticated().build().expect("a verifier"))
        }
    };
    let config = builder.with_single_cert(vec![made.cert.der().clone()], key).expect("a configuration");
    (Arc::new(config), ca_file)
}
