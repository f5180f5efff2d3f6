//! The workload API of an emulated edge device, over a Unix socket. A module gets its tokens signed and the roots to
//! trust.
//!
//! Owns: the socket, requests and answers. Must not know: MQTT, what tokens are for, the environment of a module
//! (`state_dir`).
//!
//! Source: wire reference 6.4 and 6.5. A real daemon has one socket for each module and identifies its caller by the
//! process. Here all modules of one device share a socket, and the caller must have the emulator's own user, or root.
//! One choice differs: for a generation that the module does not have, the answer is 404; a real daemon signs with a
//! key that no hub accepts.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::Incoming;
use hyper::{Method, Request, StatusCode};
use percent_encoding::percent_decode_str;
use serde::Deserialize;
use serde_json::json;
use tokio::net::UnixListener;
use tokio_util::sync::CancellationToken;

use super::identity;
use super::json_server::{self, JsonAnswer};
use super::registry::DeviceCredential;
use super::shared::SharedHub;
use crate::message::excerpt;

/// The API versions that a daemon knows.
const VERSIONS: [&str; 7] =
    ["2018-06-28", "2019-01-30", "2019-10-22", "2019-11-05", "2020-07-07", "2021-12-07", "2022-08-03"];

/// Most requests at a time. Further requests are dropped without an answer, as a daemon does.
const MAX_REQUESTS: usize = 10;

/// Most bytes of a request's body.
const MAX_BODY: usize = 64 * 1024;

/// Why the socket cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum WorkloadSocketError {
    /// The modules belong to several devices, or there are no modules.
    #[error(
        "--workload-socket serves one edge device: give --module DEVICE/MODULE, with the same DEVICE in all \
         of them"
    )]
    NoDevice,
    /// The path cannot be used.
    #[error("cannot listen on {path}: {reason}; give another path with --workload-socket", path = .path.display())]
    Listen {
        /// The path.
        path: PathBuf,
        /// The reason.
        reason: io::Error,
    },
}

/// The daemon of one edge device.
pub(super) struct Workload {
    listener: UnixListener,
    path: PathBuf,
    device_id: String,
    trust_bundle: String,
    hub: SharedHub,
}

/// A module's request to sign. A daemon reads no other fields.
#[derive(Deserialize)]
struct Sign {
    data: String,
}

impl Workload {
    /// Listens for the modules of a device. A leftover socket that no process listens on is replaced.
    pub(super) fn bind(
        path: &Path,
        device_id: String,
        trust_bundle: String,
        hub: SharedHub,
    ) -> Result<Self, WorkloadSocketError> {
        let failed = |reason| WorkloadSocketError::Listen { path: path.to_owned(), reason };
        let listener = match UnixListener::bind(path) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                match std::os::unix::net::UnixStream::connect(path) {
                    // No process listens on the socket, so it is a leftover.
                    Err(refused) if refused.kind() == io::ErrorKind::ConnectionRefused => {
                        std::fs::remove_file(path).map_err(failed)?;
                        UnixListener::bind(path).map_err(failed)?
                    }
                    _ => return Err(failed(error)),
                }
            }
            bound => bound.map_err(failed)?,
        };
        Ok(Self { listener, path: path.to_owned(), device_id, trust_bundle, hub })
    }

    /// Serves until `stop` is cancelled, then removes the socket.
    pub(super) async fn run(self, stop: CancellationToken) {
        let workload = Arc::new(self);
        let accept = || async {
            let (stream, _) = workload.listener.accept().await?;
            let is_own = stream
                .peer_cred()
                .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == rustix::process::geteuid().as_raw());
            Ok((stream, is_own))
        };
        let answering = Arc::clone(&workload);
        let answer = move |is_own: bool, request| {
            let workload = Arc::clone(&answering);
            async move {
                if !is_own {
                    let words = "the caller runs as another user than the emulator";
                    return refusal(StatusCode::FORBIDDEN, words);
                }
                workload.answer(request).await.unwrap_or_else(|refusal| refusal)
            }
        };
        json_server::serve("a request to the workload socket", MAX_REQUESTS, stop, accept, answer).await;
        if let Err(error) = std::fs::remove_file(&workload.path) {
            tracing::debug!(%error, "the workload socket could not be removed");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Result<JsonAnswer, JsonAnswer> {
        let path = request.uri().path().to_owned();
        let query = request.uri().query().unwrap_or_default();
        let version = query.split('&').find_map(|pair| pair.strip_prefix("api-version=")).unwrap_or_default();
        if !VERSIONS.contains(&version) {
            let words =
                format!("\"{}\" is not an api-version: use one of {}", excerpt(version), VERSIONS.join(", "));
            return Err(refusal(StatusCode::BAD_REQUEST, &words));
        }
        let segments: Vec<String> = path
            .split('/')
            .skip(1)
            .map(|text| percent_decode_str(text).decode_utf8_lossy().into_owned())
            .collect();
        let segments: Vec<&str> = segments.iter().map(String::as_str).collect();
        match (request.method(), segments.as_slice()) {
            (&Method::GET, ["trust-bundle"]) => {
                tracing::debug!("gave a module the trust bundle");
                Ok((StatusCode::OK, json!({ "certificate": self.trust_bundle })))
            }
            (&Method::POST, ["modules", module, "genid", generation, "sign"]) => {
                let (module, generation) = ((*module).to_owned(), (*generation).to_owned());
                let body = Limited::new(request.into_body(), MAX_BODY).collect().await;
                let body = body.map_err(|error| refusal(StatusCode::BAD_REQUEST, &error.to_string()))?;
                self.sign(&module, &generation, &body.to_bytes())
            }
            _ => Err(refusal(
                StatusCode::NOT_FOUND,
                "the emulator's workload API only signs and gives its trust bundle",
            )),
        }
    }

    fn sign(&self, module: &str, generation: &str, body: &[u8]) -> Result<JsonAnswer, JsonAnswer> {
        let id = identity::join(&self.device_id, Some(module));
        let identity = self.hub.with(|hub, _| hub.identity(&id));
        let unknown =
            || refusal(StatusCode::NOT_FOUND, &format!("there is no module \"{}\"", excerpt(module)));
        let identity = identity.ok_or_else(unknown)?;
        if identity.record.generation != generation {
            let words = format!("the module \"{module}\" has no generation \"{}\"", excerpt(generation));
            return Err(refusal(StatusCode::NOT_FOUND, &words));
        }
        let DeviceCredential::Keys(keys) = identity.device.credential else {
            return Err(unknown());
        };
        let data = serde_json::from_slice::<Sign>(body).map_err(|error| error.to_string());
        let data = data.and_then(|sign| STANDARD.decode(sign.data).map_err(|error| error.to_string()));
        let data =
            data.map_err(|error| refusal(StatusCode::BAD_REQUEST, &format!("data cannot be read: {error}")))?;
        tracing::info!(module = id, "signed for a module");
        Ok((StatusCode::OK, json!({ "digest": STANDARD.encode(keys.primary.digest(&data)) })))
    }
}

fn refusal(status: StatusCode, message: &str) -> JsonAnswer {
    tracing::warn!(status = status.as_u16(), "refused a request to the workload socket: {message}");
    (status, json!({ "message": message }))
}
