//! What one connection has proved, by SASL PLAIN, by CBS tokens, or by the client certificate of its TLS connection.
//!
//! Owns: which hub the connection is for, the valid grants and their end, and which devices the connection acts for.
//! Must not know: frames, how a token arrived.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use fe2o3_amqp::types::definitions::AmqpError;
use fe2o3_amqp::types::performatives::Attach;
use futures_util::FutureExt as _;
use futures_util::future::select_all;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::address;
use super::condition::LinkRefusal;
use super::enrollee::{ConnectionDoor, Enrollee};
use super::frames::Answers;
use crate::credentials::SasToken;
use crate::emulator::entra;
use crate::emulator::hub::{ConnectionId, Subscription};
use crate::emulator::hubs::Hubs;
use crate::emulator::provisioning::{DoorError, Reception};
use crate::emulator::registry::{AuthError, BackEndRight, Grant, Thumbprint};
use crate::emulator::shared::SharedHub;
use crate::message::format_time;

/// Most devices of one connection. An SDK that shares a connection between more devices is told to open another one.
const MAX_DEVICES: usize = 100;

/// What a module hears that signs in or attaches a link.
pub(super) const NO_MODULES: &str =
    "this emulator serves modules over MQTT only: let the module connect over MQTT";

/// Why a token was refused. No variant holds secret text.
#[derive(Debug, thiserror::Error)]
pub(super) enum ClaimError {
    #[error(transparent)]
    Auth(#[from] AuthError),
    #[error("the token is for another policy than the user name")]
    OtherPolicy,
    #[error("the connection has {MAX_DEVICES} devices already")]
    TooManyDevices,
    #[error("{NO_MODULES}")]
    Module,
}

/// The claims of one connection. A later valid token replaces an earlier one of that policy or device.
pub(super) struct Claims {
    hubs: Hubs,
    /// The hub that the client means. It is set once.
    meant: OnceLock<SharedHub>,
    certificate: Option<Thumbprint>,
    /// For a client of the provisioning service.
    door: ConnectionDoor,
    grants: watch::Sender<Grants>,
    /// The hub's connections for the devices that have links here.
    connections: Mutex<BTreeMap<String, ConnectionId>>,
    /// How many links take method calls, for each of the hub's connections.
    callable: Mutex<HashMap<ConnectionId, usize>>,
    /// Answers to receivers that settle second.
    pub(super) answers: Answers,
    /// Cuts the connection.
    kill: CancellationToken,
}

#[derive(Default)]
struct Grants {
    service: Option<Grant>,
    /// For reading D2C messages only.
    reader: Option<Grant>,
    devices: BTreeMap<String, Grant>,
}

impl Claims {
    /// Claims without tokens. `certificate` is the one that the client has shown; `kill` cuts the connection.
    pub(super) fn new(
        hubs: Hubs,
        certificate: Option<Thumbprint>,
        reception: Reception,
        kill: CancellationToken,
    ) -> Arc<Self> {
        let door = ConnectionDoor::new(reception);
        let grants = watch::Sender::new(Grants::default());
        let (meant, connections, answers) = (OnceLock::new(), Mutex::default(), Answers::default());
        let callable = Mutex::default();
        Arc::new(Self { hubs, meant, certificate, door, grants, connections, callable, answers, kill })
    }

    /// The hub of this connection; the main one until the client has said which one it means.
    pub(super) fn hub(&self) -> &SharedHub {
        self.meant.get().unwrap_or_else(|| self.hubs.main().hub())
    }

    /// Notes which hub the client means, if it has not said so before: the one of a token or a link, else the main one.
    pub(super) fn settle_hub(&self, address: &str) {
        let found = || self.hubs.of_address(address).unwrap_or_else(|| self.hubs.main()).hub().clone();
        self.meant.get_or_init(found);
    }

    /// Notes that the client has opened its connection with this host name. It may be that of a gateway, or an address
    /// that no hub is named after: then a token or a link decides.
    pub(super) fn opened(&self, host: &str) {
        if self.hubs.of_address(host).is_some() {
            self.settle_hub(host);
        }
    }

    /// Lets in a client of the provisioning service that signs in by SASL PLAIN.
    pub(super) fn enroll(&self, id_scope: &str, registration_id: &str, token: &str) -> Result<(), DoorError> {
        self.door.sign_in((id_scope, registration_id), token, self.hub().clock().0)
    }

    /// The client of the provisioning service that may attach this link.
    ///
    /// # Errors
    /// The service's error.
    pub(super) fn enrollee(
        &self,
        attach: &Attach,
        id_scope: &str,
        registration_id: &str,
    ) -> Result<Arc<Enrollee>, LinkRefusal> {
        self.door.at(attach, (id_scope, registration_id), self.hub().clock().0)
    }

    /// Counts a packet that a device has sent or is about to get. If a fault drops the connection at this packet, this
    /// cuts the connection and returns false.
    pub(super) fn count_packet(&self, device_id: &str) -> bool {
        let drops = self.hub().with(|hub, _| hub.drops_packet(device_id));
        if drops {
            tracing::warn!(device_id, "dropped an AMQP connection because of the fault drop-at");
            self.kill.cancel();
        }
        !drops
    }

    /// Accepts a service token of the policy `user`.
    pub(super) fn put_of_policy(&self, token: &str, user: &str) -> Result<(), ClaimError> {
        self.settle_hub(&SasToken::parse(token).map_err(AuthError::from)?.resource());
        let grant = self
            .hub()
            .with(|hub, now| hub.authenticate_back_end(token, BackEndRight::ServiceConnect, now))?;
        if grant.policy.as_deref() != Some(user) {
            return Err(ClaimError::OtherPolicy);
        }
        self.grants.send_modify(|grants| grants.service = Some(grant));
        Ok(())
    }

    /// Accepts a token for a device.
    pub(super) fn put_of_device(&self, token: &str, device_id: &str) -> Result<(), ClaimError> {
        if device_id.contains('/') {
            return Err(ClaimError::Module);
        }
        self.settle_hub(&SasToken::parse(token).map_err(AuthError::from)?.resource());
        let grant = self.hub().with(|hub, now| hub.authenticate_device(device_id, Some(token), None, now))?;
        let room =
            |grants: &Grants| grants.devices.contains_key(device_id) || grants.devices.len() < MAX_DEVICES;
        if !room(&self.grants.borrow()) {
            return Err(ClaimError::TooManyDevices);
        }
        self.grants.send_modify(|grants| drop(grants.devices.insert(device_id.to_owned(), grant)));
        tracing::debug!(device_id, "took a device token");
        Ok(())
    }

    /// Accepts a token that was sent to `$cbs` for `audience`. If the token's resource or the audience names a device,
    /// the token must be valid for that device.
    pub(super) fn put(&self, token: &str, audience: &str) -> Result<(), ClaimError> {
        if entra::bearer(token).is_some() {
            // C# names the hub here, and other SDKs the scope of the token, which is the same for all hubs.
            self.opened(audience);
            return self.put_of_service(token);
        }
        let parsed = SasToken::parse(token).map_err(AuthError::from)?;
        let resource = parsed.resource();
        self.settle_hub(&resource);
        match device_of(&resource).or_else(|| device_of(&address::decode(audience))) {
            Some(device_id) => self.put_of_device(token, &device_id),
            None if self.hub().with(|hub, _| hub.event_hub().is_meant(&resource)) => {
                let grant = self.hub().with(|hub, now| hub.authenticate_reader(token, now))?;
                tracing::debug!(policy = grant.policy, "took a token of a reader of D2C messages");
                self.grants.send_modify(|grants| grants.reader = Some(grant));
                Ok(())
            }
            None => self.put_of_service(token),
        }
    }

    fn put_of_service(&self, token: &str) -> Result<(), ClaimError> {
        let grant = self
            .hub()
            .with(|hub, now| hub.authenticate_back_end(token, BackEndRight::ServiceConnect, now))?;
        let expires = grant.expires.map(format_time);
        tracing::debug!(policy = grant.policy, expires, "took a service token");
        self.grants.send_modify(|grants| grants.service = Some(grant));
        Ok(())
    }

    /// Whether the connection may act as a back end now.
    pub(super) fn are_valid(&self) -> bool {
        self.grants.borrow().service.as_ref().is_some_and(|grant| self.is_valid(grant))
    }

    /// Checks whether the connection may read D2C messages now.
    ///
    /// # Errors
    /// The hub's error.
    pub(super) fn check_reader(&self) -> Result<(), LinkRefusal> {
        let reader = self.grants.borrow().reader.as_ref().is_some_and(|grant| self.is_valid(grant));
        if reader || self.are_valid() {
            return Ok(());
        }
        let words =
            "not signed in: put a token of a policy with ServiceConnect for the Event Hub to $cbs first";
        Err(LinkRefusal::unauthorized(words))
    }

    /// Checks whether the connection may act as this device now.
    ///
    /// # Errors
    /// The hub's error for the device.
    pub(super) fn check_device(&self, device_id: &str) -> Result<(), LinkRefusal> {
        self.prove_device(device_id)?;
        if self.hub().with(|hub, _| hub.is_throttled(device_id)) {
            return Err(LinkRefusal::throttled("the hub is throttling the device: try again later"));
        }
        Ok(())
    }

    fn prove_device(&self, device_id: &str) -> Result<(), LinkRefusal> {
        if self.grants.borrow().devices.get(device_id).is_some_and(|grant| self.is_valid(grant)) {
            return Ok(());
        }
        let certificate = self.certificate.as_ref();
        let shown =
            self.hub().with(|hub, now| hub.authenticate_device(device_id, None, certificate, now).map(drop));
        shown.map_err(|error| match error {
            AuthError::NoProof => {
                LinkRefusal::unauthorized("not signed in: put a token of the device to $cbs first")
            }
            AuthError::UnknownDevice(_) => LinkRefusal::new(AmqpError::NotFound, error.to_string()),
            error => LinkRefusal::unauthorized(error.to_string()),
        })
    }

    /// The hub's connection for a device. If there is none, or another one has replaced it, a new one is made. It is a
    /// clean one, so that no MQTT subscription stays behind; this is a choice.
    pub(super) fn connection(&self, device_id: &str) -> Result<ConnectionId, LinkRefusal> {
        let mut connections = self.connections();
        self.hub().with(|hub, now| {
            if let Some(connection) = connections.get(device_id)
                && hub.is_current(device_id, *connection)
            {
                return Ok(*connection);
            }
            let connected = hub.connect(device_id, true, now);
            let connected = connected.ok_or_else(|| {
                LinkRefusal::new(AmqpError::NotFound, "the device was removed from the hub")
            })?;
            tracing::info!(device_id, "a device signed in over AMQP");
            connections.insert(device_id.to_owned(), connected.connection);
            // The task that waits for the end of the grants must look at this device, too.
            self.grants.send_modify(|_| ());
            Ok(connected.connection)
        })
    }

    /// Ends the connection. Messages that its devices have not settled wait for their next connections.
    pub(super) fn disconnect(&self) {
        let connections = std::mem::take(&mut *self.connections());
        self.hub().with(|hub, now| {
            for (device_id, connection) in connections {
                hub.disconnect(&device_id, connection, now);
            }
        });
    }

    /// Whether the connection serves neither devices nor readers of D2C messages.
    pub(super) fn are_of_a_back_end(&self) -> bool {
        let grants = self.grants.borrow();
        grants.reader.is_none() && grants.devices.is_empty()
    }

    /// Cuts the connection.
    pub(super) fn cut(&self) {
        self.kill.cancel();
    }

    /// Returns when a valid grant expires. A renewal in time delays this. Cancel safe.
    pub(super) async fn expired(&self) {
        let mut changes = self.grants.subscribe();
        loop {
            // A fault can let the token of each of these devices expire.
            let mut devices: Vec<_> =
                self.connections().keys().map(|id| self.hub().watch_device(id)).collect();
            self.expire_faulty();
            let expires = changes.borrow_and_update().first_end();
            let device_changes = devices.iter_mut().map(|device| device.changed().boxed());
            let a_device = async {
                if device_changes.len() == 0 {
                    return std::future::pending().await;
                }
                select_all(device_changes).await
            };
            tokio::select! {
                () = self.hub().reached(expires) => return,
                // `self` holds the senders, so these are always changes.
                _changed = changes.changed() => {}
                _changed = a_device => {}
            }
        }
    }

    /// Ends the grants of devices whose token must count as expired because of a fault. The fault waits until the
    /// device has a link.
    fn expire_faulty(&self) {
        // Skip devices that another connection has taken over: the fault is for their current connection.
        let connections = self.connections().clone();
        let current =
            connections.into_iter().filter(|(id, own)| self.hub().with(|hub, _| hub.is_current(id, *own)));
        let ids: Vec<String> = current.map(|(id, _)| id).collect();
        for id in ids.into_iter().filter(|id| self.grants.borrow().devices.contains_key(id)) {
            if let Some(now) = self.hub().with(|hub, now| hub.expires_token(&id).then_some(now)) {
                self.grants.send_modify(|grants| {
                    if let Some(grant) = grants.devices.get_mut(&id) {
                        grant.expires = Some(now);
                    }
                });
            }
        }
    }

    fn is_valid(&self, grant: &Grant) -> bool {
        grant.expires.is_none_or(|end| end > self.hub().now())
    }

    /// Notes that a link takes calls of a device's methods from now on.
    pub(super) fn begin_calls(&self, device_id: &str, own: ConnectionId) {
        let mut callable = self.callable.lock().unwrap_or_else(PoisonError::into_inner);
        *callable.entry(own).or_default() += 1;
        self.hub().with(|hub, _| hub.subscribe(device_id, own, Subscription::Methods, 0));
    }

    /// Notes that such a link has ended. After the last one, the device takes no calls.
    pub(super) fn end_calls(&self, device_id: &str, own: ConnectionId) {
        let mut callable = self.callable.lock().unwrap_or_else(PoisonError::into_inner);
        match callable.get_mut(&own) {
            Some(links) if *links > 1 => *links -= 1,
            _ => {
                callable.remove(&own);
                self.hub().with(|hub, _| hub.unsubscribe(device_id, own, Subscription::Methods));
            }
        }
    }

    /// Nothing panics while this lock is held, so the data is valid even if the lock is poisoned.
    fn connections(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, ConnectionId>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Grants {
    fn first_end(&self) -> Option<std::time::SystemTime> {
        self.service
            .iter()
            .chain(&self.reader)
            .chain(self.devices.values())
            .filter_map(|grant| grant.expires)
            .min()
    }
}

/// The device in a resource or an audience: `{host}/devices/{id}`, with any rest. A module is `{id}/modules/{module}`.
fn device_of(resource: &str) -> Option<String> {
    let path = resource.split_once("://").map_or(resource, |(_, rest)| rest);
    let (_, rest) = path.split_once("/devices/")?;
    let mut parts = rest.split('/');
    match (parts.next().filter(|id| !id.is_empty())?, parts.next(), parts.next()) {
        (id, Some(modules @ "modules"), Some(module)) => Some([id, modules, module].join("/")),
        (id, ..) => Some(id.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resource_names_its_device_in_every_spelling() {
        for resource in ["h/devices/d:1", "amqps://h/devices/d:1/messages"] {
            assert_eq!(device_of(resource).as_deref(), Some("d:1"), "{resource}");
        }
        assert_eq!(device_of("h/devices/d/modules/m").as_deref(), Some("d/modules/m"));
        for resource in ["h", "h/devices/", "", "https://h/twins/d"] {
            assert_eq!(device_of(resource), None, "{resource}");
        }
    }
}
