//! Values of a snapshot as text: messages, properties, bodies, acknowledgements.
//!
//! Owns: these forms, for serde. Must not know: which fields have them, files.

use std::sync::Arc;

use bytes::Bytes;

use crate::feedback::DeliveryAck;
use crate::message::{C2dMessage, Properties};

/// A message, stored as its property bag and its body in base64.
pub(super) mod c2d_message {
    use super::{Arc, C2dMessage};
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        message: &C2dMessage,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        // An empty pair in a bag is skipped.
        let bag = [message.system.encode(), message.application.encode()].join("&");
        (bag, super::body::encode(&message.body)).serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Arc<C2dMessage>, D::Error> {
        let (bag, body) = <(String, String)>::deserialize(deserializer)?;
        let body = super::body::decode(&body).map_err(D::Error::custom)?;
        C2dMessage::from_bag(&bag, body).map(Arc::new).map_err(D::Error::custom)
    }
}

/// Properties, stored as a property bag.
pub(super) mod properties {
    use super::Properties;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        properties: &Properties,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        properties.encode().serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Properties, D::Error> {
        Properties::decode(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// A body, stored in base64.
pub(super) mod body {
    use super::Bytes;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(super) fn encode(body: &[u8]) -> String {
        STANDARD.encode(body)
    }

    pub(super) fn decode(text: &str) -> Result<Bytes, base64::DecodeError> {
        STANDARD.decode(text).map(Bytes::from)
    }

    pub(in super::super) fn serialize<S: Serializer>(body: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        encode(body).serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Bytes, D::Error> {
        decode(&String::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}

/// An acknowledgement level, stored as its word.
pub(super) mod ack {
    use super::DeliveryAck;
    use serde::de::Error as _;
    use serde::{Deserialize as _, Deserializer, Serialize as _, Serializer};

    pub(in super::super) fn serialize<S: Serializer>(
        ack: &DeliveryAck,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        ack.as_str().serialize(serializer)
    }

    pub(in super::super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<DeliveryAck, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(D::Error::custom)
    }
}
