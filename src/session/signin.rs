//! What a device signs in with: user name, password, and how long the password is valid.
//!
//! Owns: the CONNECT packet's user name, signing tokens, when to renew. Pure: `now` is an argument.
//! Must not know: sockets, rumqttc, who signs outside this process.

use std::time::{Duration, SystemTime};

use crate::credentials::{DeviceAuth, DeviceIdentity, SasToken, UnsignedToken, WorkloadAccess};

use super::failure::Fault;

/// 2024-01-01T00:00:00Z. No build of this program is older, so a clock before this time is not set.
pub(crate) const EARLIEST_PLAUSIBLE: Duration = Duration::from_secs(1_704_067_200);

/// The version of the protocol of the hub. Source: wire reference 1.2.
const API_VERSION: &str = "2021-04-12";
/// The first one in which a hub issues certificates: a preview. Source: wire reference 12.6.
const API_VERSION_WITH_CERTIFICATES: &str = "2025-08-01-preview";

/// The longest wait for unsettled messages before a renewal.
pub(super) const LONGEST_DRAIN: Duration = Duration::from_secs(60);

/// One sign-in. Each connection gets a new one, so that no old token is used again.
#[derive(PartialEq, Eq)]
pub(super) struct SignIn {
    /// `{hub}/{device}/?api-version=…&DeviceClientType=…`, with `{module}/` behind the device. Source: wire reference 1.2.
    pub(super) user_name: String,
    /// A SAS token's text; absent with a certificate.
    pub(super) password: Option<String>,
    /// Until when the hub accepts the token; absent with a certificate.
    pub(super) expiry: Option<SystemTime>,
    /// When to sign in again with a new token; absent without a key to make one.
    pub(super) renewal: Option<Renewal>,
}

/// When a token must be replaced, counted from the sign-in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Renewal {
    /// At 80 % of the token's life.
    pub(super) after: Duration,
    /// How long unsettled messages may take after that: until 95 % of the life, at most a minute.
    pub(super) drain: Duration,
}

/// A sign-in, or a token that another program must sign first.
pub(super) enum Draft<'i> {
    Ready(SignIn),
    Unsigned { token: UnsignedToken, access: &'i WorkloadAccess },
}

impl SignIn {
    /// Makes a sign-in at `now`. With a key, its token is valid for `lifetime`. `is_issued`: the hub may be asked for
    /// the next certificate.
    ///
    /// # Errors
    /// [`Fault::ClockUnset`] and [`Fault::TokenExpired`], which are known before dialling.
    pub(super) fn draft(
        identity: &DeviceIdentity,
        lifetime: Duration,
        is_issued: bool,
        now: SystemTime,
    ) -> Result<Draft<'_>, Fault> {
        if now < SystemTime::UNIX_EPOCH + EARLIEST_PLAUSIBLE {
            return Err(Fault::ClockUnset { now });
        }
        Ok(Draft::Ready(match &identity.auth {
            DeviceAuth::Key(key) => {
                let token = SasToken::sign(key, &identity.resource(), None, now + lifetime);
                Self::signed(identity, &token, now)
            }
            DeviceAuth::Token(token) if token.expiry() <= now => {
                return Err(Fault::TokenExpired { expiry: token.expiry(), now });
            }
            DeviceAuth::Token(token) => Self::with(identity, Some(token), None),
            DeviceAuth::Certificate { .. } => {
                let mut sign_in = Self::with(identity, None, None);
                if is_issued {
                    sign_in.user_name = user_name(identity, API_VERSION_WITH_CERTIFICATES);
                }
                sign_in
            }
            DeviceAuth::Workload(access) => {
                let token = UnsignedToken::new(&identity.resource(), now + lifetime);
                return Ok(Draft::Unsigned { token, access });
            }
        }))
    }

    /// Makes a sign-in with a token made at `now`, which can be renewed.
    pub(super) fn signed(identity: &DeviceIdentity, token: &SasToken, now: SystemTime) -> Self {
        // The hub looks at the token's own expiry, which is rounded down to a second.
        let life = token.expiry().duration_since(now).unwrap_or_default();
        Self::with(identity, Some(token), Some(Renewal::of(life)))
    }

    fn with(identity: &DeviceIdentity, token: Option<&SasToken>, renewal: Option<Renewal>) -> Self {
        let user_name = user_name(identity, API_VERSION);
        let expiry = token.map(SasToken::expiry);
        let password = token.map(|token| token.expose().to_owned());
        Self { user_name, password, expiry, renewal }
    }
}

fn user_name(identity: &DeviceIdentity, api_version: &str) -> String {
    let (hub, client, program) = (&identity.hub.name, identity.client_id(), env!("CARGO_PKG_VERSION"));
    format!("{hub}/{client}/?api-version={api_version}&DeviceClientType=c2d-agent%2F{program}")
}

impl Renewal {
    fn of(life: Duration) -> Self {
        Self { after: life.mul_f64(0.80), drain: life.mul_f64(0.15).min(LONGEST_DRAIN) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{HostPort, SharedAccessKey};

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(1_800_000_000_500)
    }

    fn key() -> SharedAccessKey {
        SharedAccessKey::from_bytes(*b"0123456789abcdef")
    }

    fn identity(auth: DeviceAuth) -> DeviceIdentity {
        let hub = HostPort { name: "localhost".into(), port: Some(18883) };
        let gateway = Some(HostPort { name: "gateway".into(), port: None });
        DeviceIdentity { hub, device_id: "dev1".into(), module_id: None, gateway, auth }
    }

    fn ready(identity: &DeviceIdentity, lifetime: Duration, now: SystemTime) -> Result<SignIn, Fault> {
        match SignIn::draft(identity, lifetime, false, now)? {
            Draft::Ready(sign_in) => Ok(sign_in),
            Draft::Unsigned { .. } => panic!("nobody else signs"),
        }
    }

    #[test]
    fn the_user_name_holds_the_hub_without_a_port_even_behind_a_gateway() {
        let made = ready(&identity(DeviceAuth::Key(key())), Duration::from_secs(60), now());
        let user_name = made.expect("a sign-in").user_name;
        let version = env!("CARGO_PKG_VERSION");
        let query = format!("api-version=2021-04-12&DeviceClientType=c2d-agent%2F{version}");
        assert_eq!(user_name, format!("localhost/dev1/?{query}"));
        let module = DeviceIdentity { module_id: Some("filter".into()), ..identity(DeviceAuth::Key(key())) };
        let made = ready(&module, Duration::from_secs(60), now()).expect("a sign-in");
        assert_eq!(made.user_name, format!("localhost/dev1/filter/?{query}"));
        let token = SasToken::parse(&made.password.expect("a password")).expect("a token");
        assert_eq!(token.resource(), "localhost/devices/dev1/modules/filter");
    }

    #[test]
    fn a_key_makes_a_token_for_the_device_that_is_renewed_at_80_percent_of_its_life() {
        let made = ready(&identity(DeviceAuth::Key(key())), Duration::from_secs(3600), now());
        let made = made.expect("a sign-in");
        let token = SasToken::parse(&made.password.expect("a password")).expect("a token");
        assert!(token.is_signed_by(&key()));
        assert_eq!(token.resource(), "localhost/devices/dev1");
        let renewal = made.renewal.expect("a renewal");
        assert!(renewal.after > Duration::from_secs(2879) && renewal.after <= Duration::from_secs(2880));
        assert_eq!(renewal.drain, LONGEST_DRAIN);
    }

    #[test]
    fn a_token_signed_elsewhere_is_like_one_of_an_own_key() {
        let access = WorkloadAccess {
            socket: "/s".into(),
            module_id: "filter".into(),
            generation_id: "1".into(),
            api_version: "2021-12-07".into(),
        };
        let module =
            DeviceIdentity { module_id: Some("filter".into()), ..identity(DeviceAuth::Workload(access)) };
        let lifetime = Duration::from_secs(3600);
        let Ok(Draft::Unsigned { token, .. }) = SignIn::draft(&module, lifetime, false, now()) else {
            panic!("a token to sign")
        };
        let digest = key().digest(token.text_to_sign().as_bytes());
        let signed = SignIn::signed(&module, &token.signed(digest), now());
        let own = ready(&DeviceIdentity { auth: DeviceAuth::Key(key()), ..module }, lifetime, now());
        assert!(signed == own.expect("a sign-in"));
    }

    #[test]
    fn a_short_life_is_drained_before_95_percent_of_it() {
        let renewal = Renewal::of(Duration::from_secs(4));
        assert_eq!(
            renewal,
            Renewal { after: Duration::from_millis(3200), drain: Duration::from_millis(600) }
        );
    }

    #[test]
    fn a_certificate_needs_neither_password_nor_renewal() {
        let auth = DeviceAuth::Certificate { certificate: "c".into(), private_key: "k".into() };
        let identity = identity(auth);
        let made = ready(&identity, Duration::from_secs(60), now()).expect("a sign-in");
        assert!(made.password.is_none() && made.renewal.is_none());
        let issued = SignIn::draft(&identity, Duration::from_secs(60), true, now());
        let Ok(Draft::Ready(issued)) = issued else { panic!("a sign-in") };
        assert!(issued.user_name.contains("?api-version=2025-08-01-preview&"), "{}", issued.user_name);
    }

    #[test]
    fn an_expired_token_and_an_unset_clock_are_known_before_dialling() {
        let past = now() - Duration::from_secs(1);
        let token = SasToken::sign(&key(), "localhost/devices/dev1", None, past);
        let made = ready(&identity(DeviceAuth::Token(token)), Duration::from_secs(60), now());
        assert!(matches!(made, Err(Fault::TokenExpired { .. })));
        let unset = SystemTime::UNIX_EPOCH + Duration::from_secs(60);
        let made = ready(&identity(DeviceAuth::Key(key())), Duration::from_secs(60), unset);
        assert!(matches!(made, Err(Fault::ClockUnset { .. })));
    }
}
