//! The back end's side of the hub, over one AMQP 1.0 connection and one HTTPS connection.
//!
//! Owns: dialling, TLS, signing in, links, and sentences for the hub's refusals.
//! Must not know: the command line, rules, the emulator.
//!
//! The AMQP connection, over TLS or a WebSocket, sends C2D messages and reads delivery feedback. The HTTPS connection
//! reads and writes twins, calls methods, reads feedback and purges queues.
//!
//! Signing in is SASL PLAIN (wire reference 2.2): the user is `{policy}@sas.root.{first label of the host}`, and a SAS
//! token is the password. CBS would have the same result, but needs two links and a round trip more. A token of Microsoft
//! Entra has no other way: it is put to CBS after SASL ANONYMOUS, and the next one before it ends.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fe2o3_amqp::connection::ConnectionHandle;
use fe2o3_amqp::sasl_profile::SaslProfile;
use fe2o3_amqp::session::SessionHandle;
use fe2o3_amqp::{Connection, Session};
use tokio::task::JoinSet;

use crate::amqp_frames::{Failed, Guarded, MAX_FRAME};
use crate::credentials::{ProxySettings, SasToken, ServiceSecret};
use crate::tls::TlsError;
use crate::websocket::HUB_PATH;

mod cbs;
mod dial;
mod entra;
mod event_hub;
mod failure;
mod feedback;
mod https;
mod identity;
mod node;
mod refusal;
mod send;
mod source;
mod target;

use cbs::ServiceCbs;
pub(crate) use entra::az_program;
pub use entra::{EntraRoute, EntraTokens};
pub use event_hub::{EventHubAccess, EventReader, EventStart, EventsFrom, HubEvent};
pub use feedback::{FeedbackBatch, FeedbackReceiver};
pub use https::{
    DeviceEvent, DeviceKeys, HttpsService, HubJob, JobDevices, JobOrder, JobWork, MAX_METHOD_PAYLOAD,
    MethodAnswer, MethodCall, NewCredential, QueryPage, RegisteredDevice, Twin, TwinPatch,
};
use identity::Who;
pub use identity::{ServiceIdentity, ServiceProof};
pub use refusal::{Refusal, RefusalScope};
pub use send::{C2dSender, HubAnswer, OutgoingMessage};
pub use source::{FeedbackSource, FeedbackTransport};
pub use target::Addressee;

/// The standard port of the hub's REST side.
pub const HTTPS_PORT: u16 = dial::HTTPS.port;

/// How long a token that is made from a key is valid. The time to wait for feedback is added.
pub const TOKEN_LIFETIME: Duration = Duration::from_secs(3600);

/// The limit from the first packet to the open AMQP connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

/// The limit for one answer of the hub: an attached link, an outcome, a close.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// The closing handshake is not needed for success, so it must not delay the exit.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

/// 2024-01-01T00:00:00Z. A clock before this time is not set.
const EARLIEST_PLAUSIBLE: Duration = Duration::from_secs(1_704_067_200);

/// The way to the hub.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum ServiceTransport {
    /// AMQP over TLS, on port 5671 or the port of the connection string.
    #[default]
    Amqp,
    /// AMQP over a WebSocket, for networks that let only HTTPS through.
    WebSocket(HttpsWay),
}

/// The way to the hub's HTTPS port: for HTTP and for WebSockets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HttpsWay {
    /// The port. The one in the connection string is for AMQP.
    pub port: u16,
    /// Proxies for this way.
    pub proxies: ProxySettings,
}

/// A signed-in connection. Its drop ends it; [`Service::close`] says goodbye first.
#[derive(Debug)]
pub struct Service {
    // Fields drop in this order: the session must go before its connection.
    /// Puts the next token of Entra before one ends.
    _renewal: JoinSet<()>,
    session: SessionHandle<()>,
    connection: ConnectionHandle<()>,
    who: Who,
    failed: Failed,
}

impl Service {
    /// Does what [`Service::connect_by`] does, over TLS only.
    ///
    /// # Errors
    /// As for [`Service::connect_by`].
    ///
    /// # Cancel safety
    /// As for [`Service::connect_by`].
    pub async fn connect(
        identity: &ServiceIdentity,
        ca_file: Option<&Path>,
        token_lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, ServiceError> {
        Self::connect_by(&ServiceTransport::Amqp, identity, ca_file, token_lifetime, now).await
    }

    /// Dials the hub of `identity` and signs in; it trusts the roots of `ca_file` and the system's. A token made from
    /// a key is valid for `token_lifetime` after `now`; a ready token is used unchanged.
    ///
    /// # Errors
    /// [`ServiceError`], a sentence for each: an expired token (before dialling), an unreachable host, TLS, a refusal.
    ///
    /// # Cancel safety
    /// A drop of the future closes everything that was open.
    pub async fn connect_by(
        way: &ServiceTransport,
        identity: &ServiceIdentity,
        ca_file: Option<&Path>,
        token_lifetime: Duration,
        now: SystemTime,
    ) -> Result<Self, ServiceError> {
        let host = &identity.host;
        let who = identity.who();
        // Before dialling, because it may take longer than the hub waits.
        let (sasl_profile, first) = match &identity.proof {
            ServiceProof::Policy { name, secret } => {
                let token = token(&host.name, name, secret, token_lifetime, now)?;
                let (username, password) = (user_name(&host.name, name), token.expose().to_owned());
                (SaslProfile::Plain { username, password }, None)
            }
            ServiceProof::Entra(tokens) => {
                let (token, rest) = tokens.token_and_rest().await?;
                (SaslProfile::Anonymous, Some((Arc::clone(tokens), token, rest)))
            }
        };
        let connecting = async {
            let builder = Connection::builder()
                .container_id(uuid::Uuid::new_v4().to_string())
                .max_frame_size(MAX_FRAME)
                .hostname(host.name.as_str())
                // TLS is done already; for "amqps" the crate would start its own.
                .scheme("amqp")
                .sasl_profile(sasl_profile);
            let failed = Failed::default();
            let opened = match way {
                ServiceTransport::Amqp => {
                    let stream = dial::dial_amqp(host, ca_file).await?;
                    builder.open_with_stream(Guarded::new(stream, Arc::clone(&failed))).await
                }
                ServiceTransport::WebSocket(way) => {
                    let stream = dial::dial_websocket(&host.name, HUB_PATH, way, ca_file).await?;
                    builder.open_with_stream(Guarded::new(stream, Arc::clone(&failed))).await
                }
            };
            let opened = async {
                let mut connection = opened.map_err(|error| failure::of_open(error, identity, now))?;
                let mut session = Session::begin(&mut connection).await.map_err(failure::of_begin)?;
                let mut renewal = JoinSet::new();
                if let Some((tokens, token, rest)) = first {
                    let cbs = ServiceCbs::sign_in(&mut session, host.name.clone(), (tokens, &token)).await?;
                    renewal.spawn(cbs.keep(rest));
                }
                Ok((renewal, session, connection))
            };
            let (renewal, session, connection) =
                opened.await.map_err(|error| failure::explained(error, &failed))?;
            Ok(Self { _renewal: renewal, session, connection, who, failed })
        };
        let late = || {
            let (seconds, port) = (CONNECT_TIMEOUT.as_secs(), way.port_in_words());
            ServiceError::Unreachable(format!(
                "{host} did not answer within {seconds} s: check HostName and its port ({port}), and whether a firewall \
                 drops it"
            ))
        };
        tokio::time::timeout(CONNECT_TIMEOUT, connecting).await.map_err(|_| late())?
    }

    /// Attaches the link that sends C2D messages.
    ///
    /// # Errors
    /// When the hub refuses or does not answer, or the connection is lost.
    pub async fn sender(&mut self) -> Result<C2dSender, ServiceError> {
        let attached = C2dSender::attach(&mut self.session, &self.who, Arc::clone(&self.failed));
        answered("an answer to the sender link", attached).await
    }

    /// Attaches the link that reads delivery feedback. The hub keeps feedback per hub, not per receiver: a batch that
    /// one receiver reads does not reach another.
    ///
    /// # Errors
    /// When the hub refuses or does not answer, or the connection is lost.
    pub async fn feedback_receiver(&mut self) -> Result<FeedbackReceiver, ServiceError> {
        let attached = FeedbackReceiver::attach(&mut self.session, &self.who, Arc::clone(&self.failed));
        answered("an answer to the feedback link", attached).await
    }

    /// Ends the connection in good order. It stops waiting after two seconds if the hub does not answer.
    pub async fn close(mut self) {
        match tokio::time::timeout(CLOSE_TIMEOUT, self.connection.close()).await {
            Ok(Ok(())) => tracing::debug!("closed the connection"),
            Ok(Err(error)) => tracing::debug!(%error, "closed the connection with an error"),
            Err(_) => tracing::debug!("closed the connection without an answer from the hub"),
        }
    }
}

impl ServiceTransport {
    fn port_in_words(&self) -> String {
        match self {
            Self::Amqp => format!("AMQP, {}", dial::AMQP.port),
            Self::WebSocket(way) => format!("WebSocket, {}", way.port),
        }
    }
}

/// Why the hub was not reached or did not do what was asked. Each is one sentence with the remedy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ServiceError {
    /// A ready token that has expired.
    #[error(
        "the SAS token of the service connection string expired at {0}: make a new one, or give the key instead"
    )]
    TokenExpired(String),
    /// The root file cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// No connection, so nothing was asked; the sentence says why.
    #[error("{0}")]
    Unreachable(String),
    /// The hub does not accept the policy or the token.
    #[error("{host} does not accept {who}: {remedy}")]
    NotAuthorised {
        /// The hub.
        host: String,
        /// The shared access policy, or the token of Entra, in words.
        who: String,
        /// What to check.
        remedy: String,
    },
    /// There is no token of Microsoft Entra.
    #[error("no token from Microsoft Entra for {login}: {reason}")]
    NoToken {
        /// Who asked whom.
        login: String,
        /// What went wrong.
        reason: String,
        /// Whether the same request may succeed a little later.
        is_passing: bool,
    },
    /// The hub refused the request.
    #[error("{0}")]
    Refused(Refusal),
    /// There is no device of that name.
    #[error("the hub knows no device \"{0}\": check --device")]
    UnknownDevice(String),
    /// There is a device of that name already.
    #[error("the hub has a device \"{0}\" already: choose another id, or delete that device first")]
    Exists(String),
    /// There is no job of that id.
    #[error("the hub knows no job \"{0}\": check its id; a hub keeps jobs for 30 days")]
    UnknownJob(String),
    /// There is no such module, or no such device.
    #[error("the hub knows no {0}: check --device and --module")]
    UnknownModule(String),
    /// No device took the call of a method.
    #[error("{}", not_online(.target, *.waited))]
    NotOnline {
        /// The device or module that was called.
        target: String,
        /// How long the hub waited for it.
        waited: Duration,
    },
    /// A method that the device may or may not have run.
    #[error(
        "{target} did not answer {name}, and may have run it or may still run it: its connection ended, or \
         it took longer than {seconds} s, which --timeout sets"
    )]
    NoMethodAnswer {
        /// The device or module that was called.
        target: String,
        /// The method.
        name: String,
        /// How long the hub waited.
        seconds: u64,
    },
    /// The twin has another etag than the patch.
    #[error("the twin of {0} has changed since, so it was not patched: read it again for its new etag")]
    Changed(String),
    /// What keeps this program from the messages of devices; the sentence has the remedy.
    #[error("{0}")]
    Events(String),
    /// The hub does not understand a query.
    #[error("the hub refuses the query: {0}")]
    Query(String),
    /// Too many requests.
    #[error("{0} is throttling requests (429): wait, and ask less often")]
    Throttled(String),
    /// An answer over HTTPS that a hub does not give, or that reports a failure. What was asked may have been done.
    #[error("{0}")]
    Answer(String),
    /// The hub understood the request, and did not do it.
    #[error("{0}")]
    Denied(String),
    /// The request was sent, and no answer came: it may have been done.
    #[error("{0}")]
    Unanswered(String),
    /// The hub did not answer.
    #[error("no answer from the hub: waited {seconds} s for {what}")]
    Late {
        /// What this side waited for.
        what: String,
        /// How long it waited.
        seconds: u64,
    },
    /// The connection ended.
    #[error("the connection to the hub was lost: {0}")]
    Lost(String),
    /// A feedback batch that cannot be read; it stays at the hub.
    #[error(transparent)]
    Feedback(#[from] crate::feedback::FeedbackError),
}

impl ServiceError {
    /// Whether the cause is the configuration, not the hub or the way to it.
    pub fn is_configuration(&self) -> bool {
        matches!(self, Self::Tls(_))
    }

    /// Whether the same request may succeed a little later.
    pub fn is_passing(&self) -> bool {
        use ServiceError::*;
        matches!(
            self,
            Unreachable(_)
                | Unanswered(_)
                | Throttled(_)
                | Answer(_)
                | Denied(_)
                | Late { .. }
                | Lost(_)
                | NoToken { is_passing: true, .. }
        )
    }

    /// The hub's refusal, if this is one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }
}

/// Why a method did not reach its device, and which option waits for what.
fn not_online(target: &str, waited: Duration) -> String {
    match waited.is_zero() {
        true => format!(
            "{target} is not connected, or takes no methods: --connect-timeout waits until it connects, --timeout for \
             its answer"
        ),
        false => {
            let waited = humantime::format_duration(waited);
            format!(
                "{target} did not connect within {waited}, which --connect-timeout sets, or takes no methods"
            )
        }
    }
}

/// `{policy}@sas.root.{hub}`; `{hub}` is the first label of the host name. Source: wire reference 2.2.
fn user_name(host: &str, policy: &str) -> String {
    format!("{policy}@sas.root.{}", host.split('.').next().unwrap_or_default())
}

fn token(
    host: &str,
    policy: &str,
    secret: &ServiceSecret,
    lifetime: Duration,
    now: SystemTime,
) -> Result<SasToken, ServiceError> {
    match secret {
        ServiceSecret::Key(key) => Ok(SasToken::sign(key, host, Some(policy), now + lifetime)),
        ServiceSecret::Token(token) if token.expiry() <= now => {
            Err(ServiceError::TokenExpired(humantime::format_rfc3339_seconds(token.expiry()).to_string()))
        }
        ServiceSecret::Token(token) => Ok(token.clone()),
    }
}

/// Limits the wait for one answer of the hub.
async fn answered<T>(
    what: &str,
    answer: impl Future<Output = Result<T, ServiceError>>,
) -> Result<T, ServiceError> {
    let late = || ServiceError::Late { what: what.to_owned(), seconds: ANSWER_TIMEOUT.as_secs() };
    tokio::time::timeout(ANSWER_TIMEOUT, answer).await.map_err(|_| late())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{ServiceConnectionString, SharedAccessKey};

    fn signed(text: &str, now: SystemTime) -> Result<SasToken, ServiceError> {
        let own = ServiceConnectionString::parse(text).expect("a service connection string");
        token(&own.host.name, &own.policy, &own.secret, TOKEN_LIFETIME, now)
    }

    #[test]
    fn the_user_name_has_the_policy_and_the_first_label_of_the_host() {
        assert_eq!(user_name("my.azure-devices.net", "service"), "service@sas.root.my");
    }

    #[test]
    fn a_key_signs_a_token_for_the_host_without_its_port() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_800_000_000);
        let token = signed("HostName=h:18000;SharedAccessKeyName=service;SharedAccessKey=AAAA", now);
        let token = token.expect("a token");
        assert_eq!((token.resource().as_str(), token.policy()), ("h", Some("service")));
        assert_eq!(token.expiry(), now + TOKEN_LIFETIME);
        assert!(token.is_signed_by(&SharedAccessKey::from_base64("AAAA").expect("base64")));
    }

    #[test]
    fn an_expired_token_is_refused_before_dialling() {
        let text = "SharedAccessSignature sr=h&sig=Yg%3D%3D&se=1700000000&skn=service";
        let text = format!("HostName=h;SharedAccessKeyName=service;SharedAccessSignature={text}");
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_001);
        let error = signed(&text, now).expect_err("expired");
        assert_eq!(
            error.to_string(),
            "the SAS token of the service connection string expired at 2023-11-14T22:13:20Z: make a new one, or give \
             the key instead"
        );
    }
}
