//! A hub over AMQP that ends links, sessions or connections as the test says.
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

/// The description that the hub sends with its condition.
pub(crate) const WORDS: &str = "words of the hub";

/// The place where the hub sends a condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Level {
    /// The link for messages is not attached at all.
    Attach,
    /// The link for messages is detached after both links are attached.
    Link,
    /// The links of the twin are not attached.
    Twin,
    /// The session is ended after both links are attached.
    Session,
    /// The connection is closed after both links are attached.
    Connection,
}

/// A hub for one device.
pub(crate) struct AmqpPeer {
    /// The address of the hub.
    pub(crate) address: SocketAddr,
    /// The hub's certificate, which clients must trust.
    pub(crate) ca_file: PathBuf,
}

impl AmqpPeer {
    /// Writes the certificate into `dir`. Each connection ends with the next of `endings`; later connections stay.
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

/// Serves one connection to its end. An error here needs no handling: the test then misses the agent's sentence.
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
    // The links for messages and for reports come first, then those of methods.
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
        // Then methods have their own session.
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
    // This message goes out when there is credit, so when the agent has its links. The agent ignores it.
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
    // The handles must live, because a drop would end the sessions and links.
    std::future::pending().await
}

/// Attaches without a terminus, which announces a detach with the reason, and then detaches.
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

/// An error with this condition. The crate picks its own type by the symbol.
fn error(condition: &str) -> Error {
    let condition = ErrorCondition::Custom(Symbol::from(condition));
    Error::new(condition, Some(WORDS.to_owned()), None)
}
