//! Decides whether a CONNECT is accepted.
//!
//! Owns: the checks of a device's CONNECT and their return codes. Must not know: sockets, later packets.
//! Source: wire reference 1.2 and 1.3.

use std::time::SystemTime;

use super::super::hub::Connected;
use super::super::hubs::Hubs;
use super::super::registry::Thumbprint;
use super::super::shared::SharedHub;
use super::codec::{Connect, ConnectReturnCode, QoS};
use super::username::UserName;

/// A device that has signed in. The hub already counts this connection as the device's connection.
pub(super) struct SignedIn {
    pub(super) hub: SharedHub,
    pub(super) device_id: String,
    pub(super) connected: Connected,
    /// When the connection must be closed; `None` for a certificate.
    pub(super) token_expires: Option<SystemTime>,
}

/// A refused sign-in: the return code for the device, and for the log the name and the reason.
pub(super) struct SignInRefusal {
    pub(super) code: ConnectReturnCode,
    pub(super) device_id: String,
    pub(super) reason: String,
}

impl SignInRefusal {
    /// A CONNECT with another MQTT version.
    pub(super) fn protocol_level(level: u8) -> Self {
        Self {
            code: ConnectReturnCode::RefusedProtocolVersion,
            device_id: String::new(),
            reason: format!("the device speaks protocol level {level}, not MQTT 3.1.1 (level 4)"),
        }
    }
}

/// Checks a CONNECT and makes it the device's connection, at the hub that the user name names.
///
/// # Errors
/// [`SignInRefusal`]; in this case no hub has changed.
pub(super) fn check(
    connect: &Connect,
    certificate: Option<&Thumbprint>,
    hubs: &Hubs,
) -> Result<SignedIn, SignInRefusal> {
    let refuse = |code, reason: String| {
        let device_id = connect.client_id.chars().take(128).flat_map(char::escape_debug).collect();
        SignInRefusal { code, device_id, reason }
    };
    let not_authorized = |reason: String| refuse(ConnectReturnCode::NotAuthorized, reason);
    let login = connect.login.as_ref().ok_or_else(|| not_authorized("it has no user name".to_owned()))?;
    let user = UserName::parse(&login.username).map_err(|error| not_authorized(error.to_string()))?;
    if connect.client_id != user.client_id() {
        let reason = "the client id is not the id in the user name".to_owned();
        return Err(refuse(ConnectReturnCode::BadClientId, reason));
    }
    if connect.last_will.as_ref().is_some_and(|will| will.qos == QoS::ExactlyOnce) {
        return Err(not_authorized("its will has QoS 2".to_owned()));
    }
    let token = Some(login.password.as_str()).filter(|password| !password.is_empty());
    let id = user.client_id();
    let found = hubs.named(&user.host).ok_or_else(|| {
        let host = user.host.chars().take(100).collect::<String>();
        let names: Vec<_> = hubs.names().map(|name| format!("\"{name}\"")).collect();
        not_authorized(match names.as_slice() {
            [only] => format!("the user name is for the hub \"{host}\", and this is {only}"),
            all => {
                format!("the user name is for the hub \"{host}\", and the hubs here are {}", all.join(", "))
            }
        })
    });
    let shared = found?.hub().clone();
    // The check and the new connection are one step under the hub's lock, so the device cannot change in between.
    let signed_in = shared.with(|hub, now| {
        let grant =
            hub.authenticate_device(&id, token, certificate, now).map_err(|error| error.to_string())?;
        if hub.is_throttled(&id) {
            return Ok(None);
        }
        if hub.names().is_service(&user.host) {
            let host = &user.host;
            tracing::warn!(
                device_id = id,
                "\"{host}\" is the hub's name for back ends: a real hub may refuse devices there"
            );
        }
        let connected = hub.connect(&id, connect.clean_session, now);
        let connected = connected.ok_or_else(|| "the device was removed".to_owned())?;
        if let Some(model_id) = user.model_id {
            hub.set_model_id(&id, model_id);
        }
        let (hub, token_expires) = (shared.clone(), grant.expires);
        Ok(Some(SignedIn { hub, device_id: id.clone(), connected, token_expires }))
    });
    let throttled = || {
        let reason = "the hub throttles the device because of the fault throttle".to_owned();
        refuse(ConnectReturnCode::ServiceUnavailable, reason)
    };
    signed_in.map_err(not_authorized)?.ok_or_else(throttled)
}
