//! One request as a route sees it: path, query, headers, body, and whether the sender may make it.
//!
//! Owns: which hub a request is for, its authorisation, its api-version, its arguments, and the size limit and deadline
//! of its body. Must not know: which routes exist, connections, TLS.
//!
//! Source: wire reference 3 and 4.2. Routes of the real hub require an `api-version` with any date. Routes below
//! `/emulator/` belong to this emulator only and need none.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::Body as _;
use hyper::header::{AUTHORIZATION, HOST, HeaderMap};
use hyper::http::request::Parts;
use hyper::{Method, Request, StatusCode};
use percent_encoding::percent_decode_str;

use super::reply::{self, HttpRefusal};
use crate::emulator::hub::Hub;
use crate::emulator::hubs::Hubs;
use crate::emulator::identity;
use crate::emulator::listener::ARRIVAL_TIMEOUT;
use crate::emulator::provisioning::Reception;
use crate::emulator::registrar::{Expected, Registrar};
use crate::emulator::registry::{AuthError, BackEndRight, Grant, Thumbprint};
use crate::emulator::shared::SharedHub;
use crate::message::excerpt;

/// Most bytes of a body that are read in vain, and for how long.
const MAX_DISCARDED: usize = 64 * 1024 * 1024;
const DISCARDING: Duration = Duration::from_secs(2);

/// A request's body that has not been read.
pub(super) type RequestBody = UnsyncBoxBody<Bytes, hyper::Error>;

/// Who may use a route.
#[derive(Debug, Clone, Copy)]
pub(super) enum RouteRight {
    /// Everybody: the route shows no data of the hub.
    Anyone,
    /// A back end with this right, for a route of the real hub.
    BackEnd(BackEndRight),
    /// A back end with ServiceConnect, for a route of this emulator.
    OwnRoute,
    /// The same, from this machine only: the route changes the emulator's behaviour.
    OwnRouteHere,
    /// The device that the path names.
    Device,
    /// A client of the provisioning service. The route lets it in.
    Enrollee,
    /// A back end of the provisioning service.
    Enrolments,
}

/// One request.
pub(super) struct HttpCall {
    /// The hub that serves the request: the one that `Host` names, else the main one.
    pub(super) hub: SharedHub,
    /// The hub's registry of devices.
    pub(super) registrar: Registrar,
    /// All hubs of the emulator.
    pub(super) hubs: Hubs,
    /// The provisioning service.
    pub(super) reception: Reception,
    /// GET, PUT, …
    pub(super) method: Method,
    /// The request's headers.
    pub(super) headers: HeaderMap,
    path: String,
    /// The decoded segments of the path; `None` if the path cannot be decoded.
    segments: Option<Vec<String>>,
    query: String,
    certificate: Option<Thumbprint>,
    peer: SocketAddr,
    body: Option<RequestBody>,
}

impl HttpCall {
    /// Splits a request into its parts. `certificate` is the one of the TLS connection, and `peer` has opened that
    /// connection.
    pub(super) fn new(
        request: Request<RequestBody>,
        certificate: Option<Thumbprint>,
        reception: Reception,
        peer: SocketAddr,
        hubs: Hubs,
    ) -> Self {
        let (Parts { method, uri, headers, .. }, body) = request.into_parts();
        let segments = uri.path().strip_prefix('/').unwrap_or_default().split('/');
        let decoded = segments.map(|text| percent_decode_str(text).decode_utf8().map(Cow::into_owned));
        let mut segments = decoded.collect::<Result<Vec<_>, _>>().ok();
        // Node and C list with `/devices/` and `/configurations/`.
        if let Some(segments) =
            segments.as_mut().filter(|all| all.len() > 1 && all.last().is_some_and(String::is_empty))
        {
            segments.pop();
        }
        let body = Some(body).filter(|body| !body.is_end_stream());
        let (path, query) = (uri.path().to_owned(), uri.query().unwrap_or_default().to_owned());
        let host = headers.get(HOST).and_then(|host| host.to_str().ok());
        let registrar = host.and_then(|host| hubs.of_address(host)).unwrap_or_else(|| hubs.main()).clone();
        let hub = registrar.hub().clone();
        Self {
            hub,
            registrar,
            hubs,
            reception,
            method,
            headers,
            path,
            segments,
            query,
            certificate,
            peer,
            body,
        }
    }

    /// The path's segments in lower case, to find the route: the hub ignores case in its own words.
    pub(super) fn words(&self) -> Vec<String> {
        self.segments.iter().flatten().map(|text| text.to_ascii_lowercase()).collect()
    }

    /// One decoded segment of the path, such as an id or a lock token. Empty if the path has no such segment.
    pub(super) fn segment(&self, index: usize) -> &str {
        self.segments.as_ref().and_then(|segments| segments.get(index)).map_or("", String::as_str)
    }

    /// The device or module in a path `/twins/D/…` or `/twins/D/modules/M/…`.
    pub(super) fn identity(&self) -> String {
        let is_module = self.segment(2).eq_ignore_ascii_case("modules");
        identity::join(self.segment(1), is_module.then(|| self.segment(3)))
    }

    /// A header as text; `None` if it is missing or not text.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// One decoded argument of the query. If the name occurs several times, the first one counts. Empty if it has no
    /// value.
    pub(super) fn argument(&self, name: &str) -> Option<Cow<'_, str>> {
        let pairs = self.query.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
        let (_, value) = pairs.into_iter().find(|(key, _)| key.eq_ignore_ascii_case(name))?;
        Some(percent_decode_str(value).decode_utf8_lossy())
    }

    /// The condition in `If-Match`. Clients send `*` and etags with and without quotation marks.
    pub(super) fn expected(&self) -> Expected {
        match self.header("if-match").map(|tag| tag.trim_start_matches("W/").trim_matches('"')) {
            None => Expected::Unsaid,
            Some("*") => Expected::Any,
            Some(etag) => Expected::Etag(etag.to_owned()),
        }
    }

    /// Allows the request if its sender has this right. The real hub's routes need an api-version, too.
    ///
    /// # Errors
    /// 401, 400 without an api-version, and what the single rights say.
    pub(super) fn allow(&self, right: RouteRight) -> Result<(), HttpRefusal> {
        match right {
            RouteRight::Anyone | RouteRight::Enrollee => Ok(()),
            RouteRight::Enrolments => self.enrolments(),
            RouteRight::BackEnd(right) => {
                self.back_end(right)?;
                self.versioned()
            }
            RouteRight::OwnRoute => self.back_end(BackEndRight::ServiceConnect),
            RouteRight::OwnRouteHere => {
                self.back_end(BackEndRight::ServiceConnect)?;
                self.comes_from_here()
            }
            RouteRight::Device => self.device(self.segment(1)),
        }
    }

    fn back_end(&self, right: BackEndRight) -> Result<(), HttpRefusal> {
        let proof = |hub: &Hub, token: Option<&str>, now| {
            hub.authenticate_back_end(token.ok_or(AuthError::NoProof)?, right, now)
        };
        self.authorised(proof).map(drop)
    }

    /// 401, and 404 without a provisioning service.
    fn enrolments(&self) -> Result<(), HttpRefusal> {
        let Some(desk) = &self.reception.desk else {
            self.back_end(BackEndRight::ServiceConnect)?;
            let sentence =
                "there is no provisioning service: start the emulator with --dps-device or --dps-group";
            return Err(reply::error(StatusCode::NOT_FOUND, "ResourceNotFound", sentence).into());
        };
        let proof = |hub: &Hub, token: Option<&str>, _| {
            let granted = desk.authorise(token, hub.names().iter(), self.hub.clock().0);
            granted.map(|()| Grant { expires: None, policy: None })
        };
        self.authorised(proof)?;
        self.versioned()
    }

    /// 403 for a peer on another machine.
    fn comes_from_here(&self) -> Result<(), HttpRefusal> {
        if self.peer.ip().to_canonical().is_loopback() {
            return Ok(());
        }
        let sentence = "faults and the clock can be set over loopback only: from this machine, or with --fault and --clock at the start";
        Err(reply::error(StatusCode::FORBIDDEN, "OperationNotAllowed", sentence).into())
    }

    /// Allows a device to act for itself, with a token or the certificate of its connection.
    ///
    /// 404 if the device does not exist and the token is from a policy that may act for any device. The errors of
    /// faults. A client that proves nothing does not learn which devices exist.
    fn device(&self, device_id: &str) -> Result<(), HttpRefusal> {
        let certificate = self.certificate.as_ref();
        let proof =
            |hub: &Hub, token: Option<&str>, now| hub.authenticate_device(device_id, token, certificate, now);
        let grant = self.authorised(proof)?;
        self.versioned()?;
        self.hub.with(|hub, _| {
            if hub.drops_packet(device_id) {
                return Err(reply::dropped().into());
            }
            if grant.expires.is_some() && hub.expires_token(device_id) {
                return Err(reply::unauthorized().into());
            }
            if hub.is_throttled(device_id) { Err(reply::throttled().into()) } else { Ok(()) }
        })
    }

    /// Reads a body that no route has read. Returns false if there is more of it: then the connection cannot serve another
    /// request.
    pub(super) async fn discard_body(&mut self) -> bool {
        let Some(body) = self.body.take() else { return true };
        tokio::time::timeout(DISCARDING, discard(body)).await.is_ok_and(|whole| whole)
    }

    /// Whether the request has a body that was not read.
    pub(super) fn has_unread_body(&self) -> bool {
        self.body.is_some()
    }

    /// Reads the body. A missing body is empty.
    ///
    /// # Errors
    /// 413 if the body is larger than `limit` bytes, 408 if it does not arrive in time, 400 if it breaks off.
    ///
    /// # Cancel safety
    /// Not cancel safe: the bytes that were read are lost.
    pub(super) async fn body(&mut self, limit: usize) -> Result<Bytes, HttpRefusal> {
        let Some(body) = self.body.take() else { return Ok(Bytes::new()) };
        match tokio::time::timeout(ARRIVAL_TIMEOUT, read(body, limit)).await {
            Ok(Ok(read)) if !read.is_longer => Ok(read.kept),
            Ok(Ok(read)) => {
                let sentence = format!("the body has more than {limit} bytes");
                let reply = reply::error(StatusCode::PAYLOAD_TOO_LARGE, "MessageTooLarge", &sentence);
                Err(if read.is_whole { reply } else { reply.closing() }.into())
            }
            Ok(Err(error)) => {
                Err(reply::bad_argument(&format!("the body is incomplete: {error}")).closing().into())
            }
            Err(_) => {
                let sentence = "the body did not arrive in time";
                Err(reply::error(StatusCode::REQUEST_TIMEOUT, "RequestTimeout", sentence).closing().into())
            }
        }
    }

    /// Checks the proof. The reason of a refusal goes to the log; the client is only told that access is denied.
    fn authorised(
        &self,
        proof: impl FnOnce(&Hub, Option<&str>, SystemTime) -> Result<Grant, AuthError>,
    ) -> Result<Grant, HttpRefusal> {
        let check = || {
            let token = self.headers.get(AUTHORIZATION).map(|value| value.to_str()).transpose();
            let token = token.map_err(|_| "the Authorization header is not text")?;
            match self.hub.with(|hub, now| proof(hub, token, now)) {
                Err(AuthError::MissingDevice(device_id)) => Ok(Err(reply::no_device(&device_id).into())),
                Err(AuthError::NoRole(principal)) => {
                    tracing::warn!(
                        principal,
                        path = excerpt(&self.path),
                        "refused a request: no role allows it"
                    );
                    Ok(Err(reply::no_role(&principal, &self.method, &self.path).into()))
                }
                granted => granted.map(Ok).map_err(|error| error.to_string()),
            }
        };
        check().unwrap_or_else(|reason| {
            tracing::warn!(reason, path = excerpt(&self.path), "refused a request");
            Err(reply::unauthorized().into())
        })
    }

    /// Whether the query has an api-version.
    pub(super) fn has_version(&self) -> bool {
        self.argument("api-version").is_some_and(|version| !version.is_empty())
    }

    fn versioned(&self) -> Result<(), HttpRefusal> {
        match self.has_version() {
            true => Ok(()),
            false => Err(reply::bad_argument("the query has no api-version, such as 2021-04-12").into()),
        }
    }
}
/// What was read of a body.
struct ReadBody {
    /// At most as many bytes as were asked for.
    kept: Bytes,
    /// Whether there were more.
    is_longer: bool,
    /// Whether all of it has come, so that the connection can serve another request.
    is_whole: bool,
}

/// Reads a body. What is beyond `limit` is read for a while, and not kept: many clients see the answer only after they
/// have sent the body.
async fn read(mut body: RequestBody, limit: usize) -> Result<ReadBody, hyper::Error> {
    let mut kept = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if kept.len() + data.len() > limit {
            let is_whole = tokio::time::timeout(DISCARDING, discard(body)).await.is_ok_and(|whole| whole);
            return Ok(ReadBody { kept: kept.freeze(), is_longer: true, is_whole });
        }
        kept.extend_from_slice(&data);
    }
    Ok(ReadBody { kept: kept.freeze(), is_longer: false, is_whole: true })
}

/// Reads a body to its end, and returns whether there was one.
async fn discard(mut body: RequestBody) -> bool {
    let mut left = MAX_DISCARDED;
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return false };
        let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return false };
        left = rest;
    }
    true
}
