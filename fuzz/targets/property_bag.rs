//! Any text as a property bag, and as the end of a devicebound topic.
//!
//! Shared by the fuzz target and by `tests/it/corpora.rs`, so that both check the same.

use bytes::Bytes;
use c2d_agent::message::{C2dMessage, Properties};

pub(crate) fn run(data: &[u8]) {
    let Ok(bag) = std::str::from_utf8(data) else { return };
    let topic = format!("devices/dev1/messages/devicebound/{bag}");
    let message = C2dMessage::from_topic("dev1", &topic, Bytes::new());
    match Properties::decode(bag) {
        Ok(properties) => {
            let encoded = properties.encode();
            assert!(encoded.is_ascii() && !encoded.contains(['+', '/', '#', '$', ' ']), "{encoded}");
            assert_eq!(Properties::decode(&encoded).as_ref(), Ok(&properties));

            let message = message.expect("a bag that decodes makes a message");
            assert_eq!(message.system.len() + message.application.len(), properties.len());
            let again = C2dMessage::from_topic("dev1", &message.to_topic("dev1"), Bytes::new());
            let again = again.expect("our own topic decodes");
            assert_eq!(again.application, message.application);
            assert_eq!(again.message_id(), message.message_id());
            assert_eq!(again.expiry(), message.expiry());
        }
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "an error is one line: {error}");
            assert!(message.is_err(), "a bag that does not decode makes no message");
        }
    }
    // The whole text as a topic: anything but our own is refused, nothing panics.
    drop(C2dMessage::from_topic("dev1", bag, Bytes::new()));
}
