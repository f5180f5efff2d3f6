//! A hub over AMQP that ends what it was asked for in a way of the test's choice.
//!
//! Owns: the links of a device with a certificate, and one ending for each connection. Must not know: the agent.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use fe2o3_amqp::acceptor::{
    ConnectionAcceptor, LinkAcceptor, LinkEndpoint, ListenerSessionHandle, SessionAcceptor,
};
use fe2o3_amqp::link::delivery::Sendable;
use fe2o3_amqp::types::definitions::{Error, ErrorCondition, Role};
use fe2o3_amqp::types::messaging::Message;
use fe2o3_amqp::types::performatives::Attach;
use fe2o3_amqp::types::primitives::{Symbol, Value};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use crate::proxied::server_config;

/// What the hub says with its condition.
pub(crate) const WORDS: &str = "words of the hub";

/// Where a condition is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// The link for messages is not attached in the first place.
    Attach,
    /// It is taken away, once both are there.
    Link,
    /// The links of the twin are not attached.
    Twin,
    /// So is the session.
    Session,
    /// So is the connection.
    Connection,
}

/// A hub for one device.
pub(crate) struct AmqpPeer {
    /// Where it listens.
    pub(crate) address: SocketAddr,
    /// Its certificate, to be trusted.
    pub(crate) ca_file: PathBuf,
}

impl AmqpPeer {
    /// Writes its certificate into `dir`. Each connection is ended by the next of `endings`; those after the last one stay.
    pub(crate) fn ending(dir: &Path, endings: Vec<(Level, &'static str)>) -> Self {
        let (config, ca_file) = server_config(dir, "peer.pem", "localhost", None);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).expect("a free port");
        let address = listener.local_addr().expect("an address");
        let endings = Arc::new(Mutex::new(VecDeque::from(endings)));
        let acceptor = TlsAcceptor::from(config);
        std::thread::spawn(move || {
            runtime.block_on(async {
                let mut connections = JoinSet::new();
                while let Ok((client, _)) = listener.accept().await {
                    let ending = endings.lock().expect("endings").pop_front();
                    connections.spawn(serve(acceptor.clone(), client, ending));
                }
            });
        });
        Self { address, ca_file }
    }
}

/// Serves one connection to its end. Whatever goes wrong here, the test misses what the agent should have said.
async fn serve(acceptor: TlsAcceptor, client: TcpStream, ending: Option<(Level, &'static str)>) {
    let Ok(stream) = acceptor.accept(client).await else { return };
    let opened = ConnectionAcceptor::builder().container_id("peer").build().accept(stream).await;
    let Ok(mut connection) = opened else { return };
    let Some(begun) = connection.next_incoming_session().await else { return };
    let sessions = SessionAcceptor::builder().build();
    let Ok(mut session) = sessions.accept_incoming_session(begun, &mut connection).await else { return };
    let error = ending.map(|(_, condition)| error(condition));
    let level = ending.map(|(level, _)| level);
    let mut messages = None;
    let mut others = Vec::new();
    // Those for messages and for reports, and then those of methods.
    let count = if level == Some(Level::Twin) { 2 } else { 4 };
    for _ in 0..count {
        let Some(attach) = session.next_incoming_attach().await else { return };
        if attach.role == Role::Receiver && level == Some(Level::Attach) {
            refuse(attach, error.clone().expect("a condition"), &mut session).await;
            return std::future::pending().await;
        }
        match LinkAcceptor::builder().build().accept_incoming_attach(attach, &mut session).await {
            Ok(LinkEndpoint::Sender(link)) if messages.is_none() => messages = Some(link),
            Ok(link) => others.push(link),
            Err(_) => return,
        }
    }
    if level == Some(Level::Twin) {
        let Some(attach) = session.next_incoming_attach().await else { return };
        refuse(attach, error.expect("a condition"), &mut session).await;
        // Methods come in a session of their own then.
        let Some(begun) = connection.next_incoming_session().await else { return };
        let Ok(mut own) = sessions.accept_incoming_session(begun, &mut connection).await else { return };
        let mut links = Vec::new();
        while let Some(attach) = own.next_incoming_attach().await {
            let Ok(link) = LinkAcceptor::builder().build().accept_incoming_attach(attach, &mut own).await
            else {
                return;
            };
            links.push(link);
        }
        return;
    }
    // Sent once there is credit, so once the agent has what it asked for; it passes this over.
    if let Some(LinkEndpoint::Sender(calls)) = others.last_mut() {
        let nothing = Sendable::builder().message(Message::builder().value(Value::Null).build());
        if calls.send(nothing.settled(true).build()).await.is_err() {
            return;
        }
    }
    let gone = match (level, error, messages.take_if(|_| level == Some(Level::Link))) {
        (Some(Level::Link), Some(error), Some(link)) => {
            link.close_with_error(error).await.map_err(|error| error.to_string())
        }
        (Some(Level::Session), Some(error), _) => {
            session.end_with_error(error).await.map_err(|error| error.to_string())
        }
        (Some(Level::Connection), Some(error), _) => {
            connection.close_with_error(error).await.map_err(|error| error.to_string())
        }
        _ => Ok(()),
    };
    if let Err(error) = gone {
        eprintln!("peer: {error}");
    }
    // The handles stay, and with them whatever is not ended.
    std::future::pending().await
}

/// Attaches without a terminus, which says that a detach with the reason follows, and detaches.
async fn refuse(mut attach: Attach, error: Error, session: &mut ListenerSessionHandle) {
    match attach.role {
        Role::Sender => attach.target = None,
        Role::Receiver => attach.source = None,
    }
    let acceptor =
        LinkAcceptor::builder().verify_incoming_source(false).verify_incoming_target(false).build();
    let closed = match acceptor.accept_incoming_attach(attach, session).await {
        Ok(LinkEndpoint::Sender(link)) => link.close_with_error(error).await.map_err(|e| e.to_string()),
        Ok(LinkEndpoint::Receiver(link)) => link.close_with_error(error).await.map_err(|e| e.to_string()),
        Err(error) => Err(error.to_string()),
    };
    if let Err(error) = closed {
        eprintln!("peer: {error}");
    }
}

/// The symbol decides which type of the crate it is.
fn error(condition: &str) -> Error {
    let condition = ErrorCondition::Custom(Symbol::from(condition));
    Error::new(condition, Some(WORDS.to_owned()), None)
}
