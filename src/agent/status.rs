//! The status of a running agent: the answer to `c2d-agent status`.
//!
//! Owns: the shape, as JSON both ways; fields are added, never renamed. Must not know: where the facts come from, how
//! they are shown to people.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::inbox::Counts;
use crate::outcome::DesiredReport;

/// A running agent, at one moment. Times are in RFC 3339.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct Status {
    /// The version of the agent. The program that asks may have another one.
    pub(crate) version: String,
    pub(crate) pid: u32,
    pub(crate) device_id: String,
    /// Set if a module signs in instead of the device itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) module_id: Option<String>,
    /// While no hub is assigned, the provisioning service.
    pub(crate) hub: String,
    /// How the device is enrolled, if it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) provisioning: Option<ProvisioningStatus>,
    #[serde(with = "rfc3339")]
    pub(crate) started: SystemTime,
    /// When the configuration in force was read.
    #[serde(default, with = "optional_rfc3339")]
    pub(crate) configured: Option<SystemTime>,
    /// How many problems the last reload had, if it was refused.
    #[serde(default)]
    pub(crate) refused_reload: Option<usize>,
    pub(crate) connection: ConnectionStatus,
    /// When the SAS token is renewed next. None with a certificate, or without a connection.
    #[serde(default, with = "optional_rfc3339")]
    pub(crate) next_token_renewal: Option<SystemTime>,
    /// The certificate of the device, if it signs in with one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) certificate: Option<CertificateStatus>,
    /// The module, if one signs in beside the device.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) module: Option<ModuleStatus>,
    /// What happened to the rules in the twin, if the agent follows it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) desired: Option<DesiredReport>,
    /// How many rules of the twin are in force.
    #[serde(default)]
    pub(crate) twin_rules: usize,
    #[serde(default, with = "optional_rfc3339")]
    pub(crate) last_message_received: Option<SystemTime>,
    pub(crate) actions: ActionCounts,
    pub(crate) inbox: InboxStatus,
    /// `on` or `off`, by the pin's name.
    pub(crate) pins: BTreeMap<String, String>,
}

/// The enrolment of a device through the provisioning service.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ProvisioningStatus {
    /// The host of the service.
    pub(crate) service: String,
    pub(crate) id_scope: String,
    pub(crate) registration_id: String,
    /// When the hub was assigned. None if none is.
    #[serde(default, with = "optional_rfc3339")]
    pub(crate) assigned: Option<SystemTime>,
}

/// When a certificate is valid.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct CertificateStatus {
    #[serde(with = "rfc3339")]
    pub(crate) valid_from: SystemTime,
    #[serde(with = "rfc3339")]
    pub(crate) valid_until: SystemTime,
    /// When the agent renews it. None if another program does.
    #[serde(default, with = "optional_rfc3339", skip_serializing_if = "Option::is_none")]
    pub(crate) renewal: Option<SystemTime>,
}

/// A module that signs in beside the device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ModuleStatus {
    /// `DEVICE/MODULE`.
    pub(crate) id: String,
    /// The address that it connects to: its gateway, or its hub.
    pub(crate) hub: String,
    pub(crate) connection: ConnectionStatus,
    /// As [`Status::next_token_renewal`], for the module.
    #[serde(default, with = "optional_rfc3339")]
    pub(crate) next_token_renewal: Option<SystemTime>,
}

/// The connection to the hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ConnectionStatus {
    pub(crate) state: ConnectionState,
    /// The transport, as the configuration names it: `mqtt`, `mqtt-ws`, `amqp` or `amqp-ws`. None without a
    /// connection.
    #[serde(default)]
    pub(crate) transport: Option<String>,
    /// Since when it is in that state.
    #[serde(with = "rfc3339")]
    pub(crate) since: SystemTime,
    /// Why there is no connection, in one sentence.
    #[serde(default)]
    pub(crate) reason: Option<String>,
    /// How often a connection was made after the first one.
    pub(crate) reconnects: u64,
}

/// Whether the agent is connected to the hub.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) enum ConnectionState {
    Connected,
    /// The first attempt is under way.
    Connecting,
    /// The connection was lost, or no attempt has succeeded. Another attempt follows.
    Disconnected,
}

/// Actions that have not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ActionCounts {
    pub(crate) running: u64,
    /// Actions that wait for their turn, or for their next attempt.
    pub(crate) waiting: u64,
}

/// The inbox: messages, outcomes since it was created, reports that wait for the hub.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct InboxStatus {
    pub(crate) path: String,
    pub(crate) counts: Counts,
    /// What is wrong with the inbox, in one sentence.
    #[serde(default)]
    pub(crate) trouble: Option<String>,
}

/// A time as text.
mod rfc3339 {
    use super::SystemTime;
    use crate::message::{format_time, parse_time};
    use serde::{Deserialize as _, Deserializer, Serializer, de::Error as _};

    pub(super) fn serialize<S: Serializer>(time: &SystemTime, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&format_time(*time))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<SystemTime, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_time(&text)
            .ok_or_else(|| D::Error::custom(format_args!("\"{text}\" is not a time in RFC 3339")))
    }
}

/// A time as text, or null.
mod optional_rfc3339 {
    use super::{SystemTime, rfc3339};
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    struct Time(#[serde(with = "rfc3339")] SystemTime);

    pub(super) fn serialize<S: Serializer>(time: &Option<SystemTime>, to: S) -> Result<S::Ok, S::Error> {
        match time {
            Some(time) => rfc3339::serialize(time, to),
            None => to.serialize_none(),
        }
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Option<SystemTime>, D::Error> {
        Ok(Option::<Time>::deserialize(from)?.map(|Time(time)| time))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::parse_time;

    #[test]
    fn a_status_survives_json_and_says_times_in_rfc_3339() {
        let status = Status {
            version: "0.1.0".into(),
            pid: 4711,
            device_id: "pi-01".into(),
            module_id: None,
            provisioning: None,
            module: None,
            desired: None,
            twin_rules: 0,
            hub: "h".into(),
            configured: None,
            refused_reload: None,
            started: parse_time("2026-11-23T21:18:01Z").expect("a time"),
            connection: ConnectionStatus {
                state: ConnectionState::Disconnected,
                transport: None,
                since: parse_time("2026-11-23T21:30:05.5Z").expect("a time"),
                reason: Some("the hub is away".into()),
                reconnects: 2,
            },
            next_token_renewal: None,
            certificate: None,
            last_message_received: parse_time("2026-11-23T21:29:00Z"),
            actions: ActionCounts { running: 1, waiting: 2 },
            inbox: InboxStatus { path: "i".into(), counts: Counts::default(), trouble: None },
            pins: [("pump".to_owned(), "on".to_owned())].into(),
        };
        let text = serde_json::to_string(&status).expect("JSON");
        assert!(text.contains(
            "\"connection\":{\"state\":\"disconnected\",\"transport\":null,\"since\":\"2026-11-23T21:30:05.5000000Z\""
        ));
        assert!(
            text.contains(
                "\"nextTokenRenewal\":null,\"twinRules\":0,\"lastMessageReceived\":\"2026-11-23T21:29:00.0000000Z\""
            )
        );
        assert_eq!(serde_json::from_str::<Status>(&text).expect("a status"), status);
    }

    #[test]
    fn a_time_that_is_none_is_refused() {
        let error = serde_json::from_str::<ConnectionStatus>(
            "{\"state\":\"connected\",\"since\":\"yesterday\",\"reconnects\":0}",
        );
        assert!(error.expect_err("no time").to_string().contains("\"yesterday\" is not a time in RFC 3339"));
    }
}
