//! A message that a person writes to try a rule.
//!
//! Owns: how a sample names its door, and which samples cannot be messages. Pure. Must not know: rules, where the
//! sample stands.

use bytes::Bytes;

use super::{C2dMessage, INPUT, MESSAGE_ID, METHOD, MessageError, SOURCE, Source};

/// Stands for the id that the agent makes for each call.
const CALL_ID: &str = "method-00000000000000000000000000000000";

/// Why a sample cannot come through any door.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SampleError {
    /// Its properties cannot be decoded.
    #[error("the message is not a property bag: {0}")]
    Bag(#[from] MessageError),
    /// It is JSON, which is a body.
    #[error(
        "the message looks like JSON, but takes properties as on the wire, such as 'action=pump&state=on': give a JSON body as \
         data"
    )]
    Json,
    /// It names two doors.
    #[error("a message comes in only one way: give {INPUT}=NAME or {METHOD}=NAME, not both")]
    TwoDoors,
    /// `$.source` names another door than the sample's.
    #[error(
        "the message comes as {is}, not as \"{claimed}\": give {INPUT}=NAME or {METHOD}=NAME, or neither for \
         a C2D message"
    )]
    OtherDoor {
        /// The sample's door.
        is: &'static str,
        /// The door that `$.source` names.
        claimed: String,
    },
    /// It names a door without a name.
    #[error("{0} has no name: give {0}=NAME")]
    Nameless(&'static str),
    /// It is a call with a property. Calls have none.
    #[error(
        "a method call has no properties, but {0} is given: put it into the payload, with the data '{{\"{0}\": …}}', and test \
         body.{0} in the rule"
    )]
    PropertyOfCall(String),
}

impl C2dMessage {
    /// Reads a sample, a property bag and a body, and returns the message as it would be after its door: with
    /// `$.method=NAME` a call of that method, with `$.input=NAME` a message to that input, otherwise a C2D message.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn sample(bag: &str, body: Bytes) -> Result<Self, SampleError> {
        if bag.trim_start().starts_with(['{', '[']) {
            return Err(SampleError::Json);
        }
        let message = Self::from_bag(bag, body)?;
        let names = [INPUT, METHOD].into_iter().filter(|name| message.system.contains(name));
        match names.collect::<Vec<_>>().as_slice() {
            [] => {}
            [name] if message.system.get(name).is_some_and(|value| !value.is_empty()) => {}
            [name] => return Err(SampleError::Nameless(name)),
            _ => return Err(SampleError::TwoDoors),
        }
        let is = message.source().word();
        if let Some(claimed) = message.system.get(SOURCE).filter(|claimed| *claimed != is) {
            return Err(SampleError::OtherDoor { is, claimed: claimed.to_owned() });
        }
        if let Source::Method(name) = message.source() {
            let mut all = message.system.iter().chain(message.application.iter());
            let known = [METHOD, SOURCE, MESSAGE_ID];
            if let Some((name, _)) = all.find(|(name, _)| !known.contains(name)) {
                return Err(SampleError::PropertyOfCall(name.to_owned()));
            }
            let id = message.message_id().unwrap_or(CALL_ID);
            return Ok(Self::of_method(name, id, message.body.clone()));
        }
        Ok(if message.source() == Source::C2d { message.as_c2d() } else { message })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bag: &str) -> Result<C2dMessage, String> {
        C2dMessage::sample(bag, Bytes::from_static(b"{}")).map_err(|error| error.to_string())
    }

    #[test]
    fn a_sample_comes_by_the_door_that_it_names() {
        let call = read("$.method=pump&$.source=method").expect("a call");
        assert_eq!((call.source(), call.message_id()), (Source::Method("pump"), Some(CALL_ID)));
        let input = read("$.input=in&$.cmid=sensor&x=1").expect("a message");
        assert_eq!(input.source(), Source::Input("in"));
        assert_eq!((input.property("$.cmid"), input.property("x")), (Some("sensor"), Some("1")));
        let c2d = read("$.cmid=sensor&x=1").expect("a message");
        assert_eq!((c2d.source(), c2d.property("$.cmid")), (Source::C2d, None), "no sender may claim that");
    }

    #[test]
    fn a_sample_that_cannot_come_is_refused() {
        for (bag, part) in [
            ("$.method=a&$.input=b", "in only one way"),
            ("$.source=input", "comes as c2d, not as \"input\""),
            ("$.method=a&$.source=c2d", "comes as method, not as \"c2d\""),
            ("$.method=", "$.method has no name"),
            ("$.method=a&state=on", "has no properties, but state is given: put it into the payload"),
            ("a=%zz", "the message is not a property bag: the property text \"%zz\" has a %"),
            (" {\"a\": 1}", "give a JSON body as data"),
        ] {
            assert!(read(bag).is_err_and(|error| error.contains(part)), "{bag}: {:?}", read(bag));
        }
    }
}
