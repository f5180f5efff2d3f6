//! A client for an emulator that runs on the same machine. It finds the emulator by its state directory and asks over
//! HTTPS.
//!
//! Owns: which files say where the emulator is, requests and their limits, and sentences that say what is wrong with an
//! answer.
//! Must not know: the hub, listeners, what is printed.
//!
//! Each request uses its own connection: the emulator closes old ones, and a new connection on loopback is cheap.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::client::conn::http1::handshake;
use hyper::header::{AUTHORIZATION, CONNECTION, HOST, HeaderValue};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::clock::ClockSetting;
use super::hub::{Fault, FaultName};
use super::identity;
use super::provisioning::{DpsFault, DpsFaultName};
use super::state_dir::{AUTHORITY, HTTPS_ADDRESS, PAGE_ADDRESS};
use crate::credentials::HostPort;
use crate::message::excerpt;
use crate::tls::{self, TlsError};
use crate::trust;

/// Time limit from dialling to the end of the answer. It must be longer than the emulator holds back an unchanged
/// overview.
const PATIENCE: Duration = Duration::from_secs(40);
/// Most bytes of an answer: an overview has up to a hundred devices.
const MAX_ANSWER: usize = 64 * 1024 * 1024;
/// The path of the clock.
const CLOCK: &str = "/emulator/clock";
const DPS_FAULTS: &str = "/emulator/provisioning/faults";
/// The characters outside letters and digits that a path segment may contain unescaped.
const ENCODED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');

/// Why a request to a running emulator failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The directory has no files of an emulator.
    #[error(
        "{dir} is not the state directory of an emulator: name that of the running one with --state-dir, or source its file env",
        dir = .0.display()
    )]
    NoStateDir(PathBuf),
    /// A file exists but cannot be used.
    #[error("cannot use {path}: {reason}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong, and what to do about it.
        reason: String,
    },
    /// The certificate authority.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Nothing listens at the address.
    #[error(
        "no emulator answers at {address} ({reason}): start it with c2d-agent emulator --state-dir {dir}, or name the state \
         directory of the one that runs with --state-dir",
        dir = .state_dir.display()
    )]
    NotRunning {
        /// The emulator's last known address.
        address: SocketAddr,
        /// The emulator's state directory.
        state_dir: PathBuf,
        /// The system's error text.
        reason: String,
    },
    /// The server at the address does not have the keys of the directory.
    #[error(
        "what answers at {address} is not the emulator of {dir}: {reason}; name the state directory of the one that runs with \
         --state-dir",
        dir = .state_dir.display()
    )]
    Another {
        /// The address that answered.
        address: SocketAddr,
        /// The state directory that was given.
        state_dir: PathBuf,
        /// What did not match.
        reason: String,
    },
    /// The emulator answers, but the connection broke.
    #[error("the emulator at {0} gave an unexpected answer ({1}): read its log, or start it again")]
    Broken(SocketAddr, String),
    /// The device or module does not exist.
    #[error(
        "the emulator has no {0}: name one that it was started with, or one that a back end has made; its page lists them"
    )]
    Unknown(String),
    /// The emulator refused the request; the text is its own.
    #[error("the emulator refuses: {0}")]
    Refused(String),
}

/// A running emulator.
#[derive(Debug)]
pub struct RunningEmulator {
    state_dir: PathBuf,
    /// The name in the emulator's certificate, and the port.
    host: HostPort,
    name: ServerName<'static>,
    /// The emulator's address on this machine.
    address: SocketAddr,
    authorization: HeaderValue,
    tls: Arc<ClientConfig>,
}

impl RunningEmulator {
    /// Reads where the emulator of a state directory listens. It does not dial yet.
    ///
    /// # Errors
    /// [`AskError`] if the directory or one of its files cannot be used.
    pub fn find(state_dir: &Path) -> Result<Self, AskError> {
        let page = read(state_dir, PAGE_ADDRESS)?;
        let (host, token) = page_address(&page).ok_or_else(|| damaged(state_dir, PAGE_ADDRESS))?;
        let name = ServerName::try_from(host.name.clone());
        let name = name.map_err(|_| damaged(state_dir, PAGE_ADDRESS))?;
        let mut authorization =
            HeaderValue::from_str(&token).map_err(|_| damaged(state_dir, PAGE_ADDRESS))?;
        authorization.set_sensitive(true);
        let address = read(state_dir, HTTPS_ADDRESS)?.trim().parse();
        let address = address.map_err(|_| damaged(state_dir, HTTPS_ADDRESS))?;
        let tls = tls::client_config(Some(&state_dir.join(AUTHORITY)), None)?;
        Ok(Self { state_dir: state_dir.to_owned(), host, name, address, authorization, tls })
    }

    /// Everything that the page shows. With `after`, the answer comes when the version differs from it, or after half a
    /// minute.
    ///
    /// # Errors
    /// [`AskError`].
    ///
    /// # Cancel safety
    /// Cancel safe: it only reads.
    pub async fn overview(&self, after: Option<u64>) -> Result<Value, AskError> {
        let after = after.map(|after| format!("?after={after}")).unwrap_or_default();
        self.ask(Method::GET, &format!("/emulator/overview{after}"), Bytes::new(), "").await
    }

    /// The messages of a device, or of DEVICE/MODULE, with numbers above `after`, oldest first. If there are too many,
    /// the answer has the first ones.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn events(&self, id: &str, after: u64) -> Result<Vec<Value>, AskError> {
        let path = format!("/emulator/devices/{}/events?after={after}", escape(id));
        match self.ask(Method::GET, &path, Bytes::new(), id).await? {
            Value::Array(events) => Ok(events),
            _ => Err(self.broken("its list of messages is not valid")),
        }
    }

    /// The faults that are set for a device.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn faults(&self, id: &str) -> Result<Value, AskError> {
        self.ask(Method::GET, &faults_path(id), Bytes::new(), id).await
    }

    /// Sets a fault, and returns all faults of the device.
    ///
    /// # Errors
    /// [`AskError`].
    ///
    /// # Cancel safety
    /// If dropped early, the fault may or may not be set.
    pub async fn set_fault(&self, id: &str, fault: Fault) -> Result<Value, AskError> {
        let path = format!("{}/{}", faults_path(id), fault.name().as_str());
        let value = fault.value().unwrap_or_default();
        self.ask(Method::PUT, &path, Bytes::from(value), id).await
    }

    /// Ends one fault of a device, or all of them, and returns the faults that remain.
    ///
    /// # Errors
    /// [`AskError`].
    ///
    /// # Cancel safety
    /// If dropped early, the fault may or may not be ended.
    pub async fn clear_faults(&self, id: &str, name: Option<FaultName>) -> Result<Value, AskError> {
        let name = name.map(|name| format!("/{}", name.as_str())).unwrap_or_default();
        let path = format!("{}{name}", faults_path(id));
        self.ask(Method::DELETE, &path, Bytes::new(), id).await
    }

    /// The faults of the provisioning service: a row for those of all registrations, and one for each registration that
    /// has its own.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn dps_faults(&self) -> Result<Value, AskError> {
        self.ask(Method::GET, DPS_FAULTS, Bytes::new(), "").await
    }

    /// Sets a fault of the provisioning service, for one registration or for all, and returns all faults.
    ///
    /// # Errors
    /// [`AskError`].
    ///
    /// # Cancel safety
    /// If dropped early, the fault may or may not be set.
    pub async fn set_dps_fault(
        &self,
        registration_id: Option<&str>,
        fault: DpsFault,
    ) -> Result<Value, AskError> {
        let path = format!("{DPS_FAULTS}/{}{}", fault.name().as_str(), of_registration(registration_id));
        self.ask(Method::PUT, &path, Bytes::from(fault.value().unwrap_or_default()), "").await
    }

    /// Ends one fault of the provisioning service, or all, of one registration or of all; returns those that remain.
    ///
    /// # Errors
    /// [`AskError`].
    ///
    /// # Cancel safety
    /// If dropped early, the fault may or may not be ended.
    pub async fn clear_dps_faults(
        &self,
        registration_id: Option<&str>,
        name: Option<DpsFaultName>,
    ) -> Result<Value, AskError> {
        let name = name.map(|name| format!("/{}", name.as_str())).unwrap_or_default();
        let path = format!("{DPS_FAULTS}{name}{}", of_registration(registration_id));
        self.ask(Method::DELETE, &path, Bytes::new(), "").await
    }

    /// The emulator's clock.
    ///
    /// # Errors
    /// [`AskError`].
    pub async fn clock(&self) -> Result<Value, AskError> {
        self.ask(Method::GET, CLOCK, Bytes::new(), "").await
    }

    /// Moves the emulator's clock, or sets it to the real time. Returns what it shows then.
    ///
    /// # Errors
    /// [`AskError`].
    ///
    /// # Cancel safety
    /// If dropped early, the clock may or may not be moved.
    pub async fn move_clock(&self, setting: Option<ClockSetting>) -> Result<Value, AskError> {
        let Some(setting) = setting else {
            return self.ask(Method::DELETE, CLOCK, Bytes::new(), "").await;
        };
        let name = match setting {
            ClockSetting::At(_) => "now",
            ClockSetting::Offset(_) => "offset",
            ClockSetting::Advance(_) => "advance",
        };
        let body = json!({ name: setting.to_string() }).to_string();
        self.ask(Method::PUT, CLOCK, Bytes::from(body), "").await
    }

    /// Puts a message into an input of a module, and returns its message id.
    ///
    /// # Errors
    /// [`AskError`].
    ///
    /// # Cancel safety
    /// If dropped early, the message may or may not be queued.
    pub async fn send_input(
        &self,
        device: &str,
        module: &str,
        input: &str,
        message: &Value,
    ) -> Result<Value, AskError> {
        let [device_id, module_id, input] = [device, module, input].map(escape);
        let path = format!("/emulator/devices/{device_id}/modules/{module_id}/inputs/{input}");
        let id = identity::join(device, Some(module));
        self.ask(Method::POST, &path, Bytes::from(message.to_string()), &id).await
    }

    /// The JSON of an answer with status 200. `id` is the device or module that the request is about; errors name it.
    async fn ask(&self, method: Method, path: &str, body: Bytes, id: &str) -> Result<Value, AskError> {
        let exchanged = tokio::time::timeout(PATIENCE, self.exchange(method, path, body)).await;
        let (status, body) = exchanged.map_err(|_| self.broken("no answer in time"))??;
        let body: Value = serde_json::from_slice(&body).map_err(|_| self.broken("not JSON"))?;
        let said = body["Message"].as_str().unwrap_or("no reason");
        let (code, sentence) = said.split_once(';').unwrap_or(("", said));
        match status {
            StatusCode::OK => Ok(body),
            StatusCode::UNAUTHORIZED => Err(self.another("it does not take the token in page.address")),
            StatusCode::NOT_FOUND if code.ends_with("DeviceNotFound") || code.ends_with("ModuleNotFound") => {
                Err(AskError::Unknown(identity::named(id)))
            }
            _ => Err(AskError::Refused(sentence.to_owned())),
        }
    }

    async fn exchange(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
    ) -> Result<(StatusCode, Bytes), AskError> {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(HOST, self.host.to_string())
            .header(AUTHORIZATION, &self.authorization)
            .header(CONNECTION, "close")
            .body(Full::new(body))
            .map_err(|error| self.broken(&error.to_string()))?;
        let broken = |error: hyper::Error| self.broken(&error.to_string());
        let (mut sender, connection) = handshake(TokioIo::new(self.dial().await?)).await.map_err(broken)?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let (head, body) = response.into_parts();
            let body = Limited::new(body, MAX_ANSWER).collect().await;
            let body = body.map_err(|error| self.broken(&error.to_string()))?;
            Ok((head.status, body.to_bytes()))
        };
        let mut answer = std::pin::pin!(answer);
        tokio::select! {
            biased;
            answered = &mut answer => answered,
            // The complete answer may have arrived before the connection ended. If it has not, the request's own error
            // says best what is missing.
            _ended = connection => answer.await,
        }
    }

    /// Dials this machine first: the hub's name may exist only in a network of containers.
    async fn dial(&self) -> Result<TlsStream<TcpStream>, AskError> {
        let stream = match TcpStream::connect(self.address).await {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                let named = (self.host.name.as_str(), self.address.port());
                TcpStream::connect(named).await.map_err(|_| error)
            }
            dialled => dialled,
        };
        let stream = stream.map_err(|error| AskError::NotRunning {
            address: self.address,
            state_dir: self.state_dir.clone(),
            reason: trust::in_words(&error),
        })?;
        let shaken = TlsConnector::from(Arc::clone(&self.tls)).connect(self.name.clone(), stream).await;
        shaken.map_err(|error| match tls::tls_cause(&error) {
            Some(cause) if tls::is_untrusted(cause) => {
                self.another("its certificate is not signed by the ca.pem there")
            }
            Some(cause) => self.another(&tls::describe(cause, &self.host.name)),
            None => self.broken(&error.to_string()),
        })
    }

    fn another(&self, reason: &str) -> AskError {
        let (address, state_dir) = (self.address, self.state_dir.clone());
        AskError::Another { address, state_dir, reason: reason.to_owned() }
    }

    fn broken(&self, reason: &str) -> AskError {
        AskError::Broken(self.address, excerpt(reason))
    }
}

fn escape(segment: &str) -> String {
    utf8_percent_encode(segment, ENCODED).to_string()
}

fn of_registration(id: Option<&str>) -> String {
    id.map(|id| format!("?registrationId={}", escape(id))).unwrap_or_default()
}

fn faults_path(id: &str) -> String {
    format!("/emulator/devices/{}/faults", escape(id))
}

/// The host and the token of `https://HOST:PORT/#TOKEN`.
fn page_address(text: &str) -> Option<(HostPort, String)> {
    let (host, token) = text.trim().strip_prefix("https://")?.split_once("/#")?;
    let token = percent_decode_str(token).decode_utf8().ok()?.into_owned();
    Some((HostPort::parse(host)?, token))
}

/// Reads a file that an emulator has written.
fn read(state_dir: &Path, name: &str) -> Result<String, AskError> {
    let path = state_dir.join(name);
    fs::read_to_string(&path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => AskError::NoStateDir(state_dir.to_owned()),
        _ => AskError::File { path, reason: trust::in_words(&error) },
    })
}

fn damaged(state_dir: &Path, name: &str) -> AskError {
    let reason =
        "it does not have the form that an emulator writes: restart the emulator, which writes it again";
    AskError::File { path: state_dir.join(name), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_of_the_page_is_taken_apart() {
        let (host, token) = page_address("https://[::1]:8443/#Shared%20x%26y%3D\n").expect("an address");
        assert_eq!((host.to_string().as_str(), token.as_str()), ("[::1]:8443", "Shared x&y="));
        for wrong in ["", "https://hub:8443/", "http://hub/#x", "https://hub:0/#x", "https://hub/#%ff"] {
            assert!(page_address(wrong).is_none(), "{wrong}");
        }
    }
}
