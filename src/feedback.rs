//! Delivery acknowledgement levels, feedback records and their JSON form.
//!
//! Owns: the words with which a sender asks for feedback (`iothub-ack`), and those with which the hub answers.
//! Must not know: AMQP, sockets, clocks.

use serde::{Deserialize, Serialize};

/// The application property that carries the level, without the `$.` prefix of system properties.
/// Source: wire reference 1.5 and 4.1.
pub const ACK_PROPERTY: &str = "iothub-ack";

/// Content type of a feedback batch. Source: wire reference 4.4.
pub const FEEDBACK_CONTENT_TYPE: &str = "application/vnd.microsoft.iothub.feedback.json";

/// For which outcomes of a C2D message the sender wants feedback.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DeliveryAck {
    /// No feedback; the hub's default.
    #[default]
    None,
    /// Feedback when the device completed the message.
    Positive,
    /// Feedback when the message expired, was rejected, purged, or abandoned too often.
    Negative,
    /// Feedback in every case.
    Full,
}

impl DeliveryAck {
    /// The word on the wire, in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Positive => "positive",
            Self::Negative => "negative",
            Self::Full => "full",
        }
    }

    /// Whether a sender that chose this level gets feedback with `status`. Source: wire reference 5.2.
    pub fn reports(self, status: FeedbackStatus) -> bool {
        match self {
            Self::None => false,
            Self::Positive => status == FeedbackStatus::Success,
            Self::Negative => status != FeedbackStatus::Success,
            Self::Full => true,
        }
    }
}

/// A word that is not a delivery acknowledgement level.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{0}\" is not a delivery acknowledgement level: use none, positive, negative or full")]
pub struct UnknownAck(pub String);

impl std::str::FromStr for DeliveryAck {
    type Err = UnknownAck;

    /// Ignores the case of letters, because senders use both `full` and `Full`.
    fn from_str(text: &str) -> Result<Self, UnknownAck> {
        [Self::None, Self::Positive, Self::Negative, Self::Full]
            .into_iter()
            .find(|level| level.as_str().eq_ignore_ascii_case(text))
            .ok_or_else(|| UnknownAck(text.to_owned()))
    }
}

/// The end of a C2D message.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum FeedbackStatus {
    /// The device completed it.
    Success,
    /// The message's time to live passed while it was queued.
    Expired,
    /// The device abandoned the message until the delivery limit.
    DeliveryCountExceeded,
    /// The device rejected it.
    Rejected,
    /// The back end cleared the device's queue.
    Purged,
    /// A word that this program does not know: one new word must not make a whole batch unreadable. The description of
    /// the record still says what happened.
    #[serde(other)]
    Unknown,
}

impl FeedbackStatus {
    /// The word on the wire.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Success => "Success",
            Self::Expired => "Expired",
            Self::DeliveryCountExceeded => "DeliveryCountExceeded",
            Self::Rejected => "Rejected",
            Self::Purged => "Purged",
            Self::Unknown => "Unknown",
        }
    }
}

impl std::fmt::Display for FeedbackStatus {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One record of a feedback batch: the outcome of one C2D message.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FeedbackRecord {
    /// The message id that the sender gave. Empty if it gave none: then no message can match the record.
    #[serde(default)]
    pub original_message_id: String,
    /// The outcome in words; the SDKs read it as the status.
    #[serde(default)]
    pub description: String,
    /// Changes when a device is deleted and created again with the same id.
    #[serde(default)]
    pub device_generation_id: String,
    /// The device the message was for.
    pub device_id: String,
    /// When the outcome occurred, RFC 3339 with up to seven fractional digits.
    #[serde(default)]
    pub enqueued_time_utc: String,
    /// The outcome.
    pub status_code: FeedbackStatus,
}

/// A feedback batch that could not be read.
#[derive(Debug, thiserror::Error)]
#[error("a feedback batch is not the JSON array that IoT Hub sends: {0}")]
pub struct FeedbackError(#[from] serde_json::Error);

/// Reads the body of one feedback message: a JSON array of records.
///
/// # Errors
/// When the body is not such an array.
pub fn decode_batch(body: &[u8]) -> Result<Vec<FeedbackRecord>, FeedbackError> {
    Ok(serde_json::from_slice(body)?)
}

/// The id of a feedback message: 32 hexadecimal digits made from its body. The id is the same at each delivery; the
/// hub's own lock token changes.
pub fn batch_id(body: &[u8]) -> String {
    let digest = ring::digest::digest(&ring::digest::SHA256, body);
    digest.as_ref().iter().take(16).map(|byte| format!("{byte:02x}")).collect()
}

/// Writes the body of one feedback message.
pub fn encode_batch(records: &[FeedbackRecord]) -> Vec<u8> {
    serde_json::to_vec(records).unwrap_or_else(|_| b"[]".to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_level_reports_what_the_feedback_table_says() {
        use FeedbackStatus::*;
        let all = [Success, Expired, DeliveryCountExceeded, Rejected, Purged];
        let reported = |ack: DeliveryAck| all.map(|status| ack.reports(status));
        assert_eq!(reported(DeliveryAck::None), [false; 5]);
        assert_eq!(reported(DeliveryAck::Positive), [true, false, false, false, false]);
        assert_eq!(reported(DeliveryAck::Negative), [false, true, true, true, true]);
        assert_eq!(reported(DeliveryAck::Full), [true; 5]);
    }

    #[test]
    fn levels_are_read_without_case_and_unknown_words_are_named() {
        assert_eq!("Full".parse(), Ok(DeliveryAck::Full));
        let error = "yes".parse::<DeliveryAck>().expect_err("not a level");
        assert!(error.to_string().contains("\"yes\""), "{error}");
    }

    #[test]
    fn a_batch_of_the_wire_reference_is_read() {
        let body = br#"[{"originalMessageId":"m-1","description":"Success","deviceGenerationId":"636000000000000000",
            "deviceId":"dev1","enqueuedTimeUtc":"2026-02-11T10:00:00.0000000Z","statusCode":"Success"}]"#;
        let records = decode_batch(body).expect("a valid batch");
        assert_eq!(records[0].original_message_id, "m-1");
        assert_eq!(records[0].status_code, FeedbackStatus::Success);
        assert_eq!(decode_batch(&encode_batch(&records)).expect("round trip"), records);
    }

    #[test]
    fn a_status_of_tomorrow_does_not_spoil_its_batch() {
        let body = br#"[{"deviceId":"d","statusCode":"Postponed","description":"Postponed"},
            {"deviceId":"d","originalMessageId":"m","statusCode":"Success"}]"#;
        let records = decode_batch(body).expect("readable");
        assert_eq!(
            (records[0].status_code, records[0].description.as_str()),
            (FeedbackStatus::Unknown, "Postponed")
        );
        assert_eq!(records[1].status_code, FeedbackStatus::Success);
    }

    #[test]
    fn a_batch_that_is_not_an_array_is_an_error() {
        assert!(decode_batch(b"{}").is_err());
    }
}
