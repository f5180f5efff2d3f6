//! The door by which a sample message comes, and what it means for how the message is settled or answered.
//!
//! Owns: how a sample names its door, and the sentences about doors. Must not know: conditions, plans. Used by: `cli::check`.

use bytes::Bytes;

use crate::config::Inspection;
use crate::credentials::DeviceIdentity;
use crate::message::{C2dMessage, INPUT, MESSAGE_ID, METHOD, MessageError, SOURCE, Source};
use crate::rules::{Door, Plan, Policy, Rules, Settle};

/// Stands for the one that the agent makes for each call.
const CALL_ID: &str = "method-00000000000000000000000000000000";

/// Most properties of a sample that are named.
const MOST_NAMED: usize = 20;

/// The properties of the hub's own that begin with `$.`. Source: wire reference 1.5.
const SYSTEM: [&str; 13] = [
    "$.mid", "$.cid", "$.uid", "$.to", "$.exp", "$.ct", "$.ce", "$.ctime", "$.schema", "$.on", "$.cdid",
    "$.cmid", INPUT,
];

/// Why a sample can come by no door.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum SampleError {
    #[error("--message is not a property bag")]
    Bag(#[from] MessageError),
    #[error(
        "--message looks like JSON, but takes properties as on the wire, such as 'action=pump&state=on': a JSON body is given \
         with --data"
    )]
    Json,
    #[error("a message comes in only one way: give {INPUT}=NAME or {METHOD}=NAME, not both")]
    TwoDoors,
    #[error(
        "the message comes as {is}, not as \"{claimed}\": give {INPUT}=NAME or {METHOD}=NAME, or neither for \
         a C2D message"
    )]
    OtherDoor { is: &'static str, claimed: String },
    #[error("{0} has no name: give {0}=NAME")]
    Nameless(&'static str),
    #[error(
        "a method call has no properties, but {0} is given: put it into the payload with --data, as in \
         '{{\"{0}\": …}}', and test body.{0} in the rule"
    )]
    PropertyOfCall(String),
}

/// Reads a sample as it would be after it came by the door that it names.
///
/// # Errors
/// What is wrong with it.
pub(super) fn sample(bag: &str, body: Bytes) -> Result<C2dMessage, SampleError> {
    if bag.trim_start().starts_with(['{', '[']) {
        return Err(SampleError::Json);
    }
    let message = C2dMessage::from_bag(bag, body)?;
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
        return Ok(C2dMessage::of_method(
            name,
            message.message_id().unwrap_or(CALL_ID),
            message.body.clone(),
        ));
    }
    Ok(if message.source() == Source::C2d { message.as_c2d() } else { message })
}

/// Where a sample would come in, where that needs words.
pub(super) fn arrival(message: &C2dMessage, inspection: &Inspection) -> Option<String> {
    let device = inspection.identity.as_ref();
    let module = inspection.module.as_ref().map(|module| &module.identity);
    let named = |kind: &str, identity: &DeviceIdentity| format!("{kind} {}", identity.client_id());
    let module_name = module.map(|module| named("module", module));
    match message.source() {
        Source::C2d => (device.is_none() && module.is_some()).then(|| {
            "a C2D message, which would not come here: IoT Hub sends none to modules, and no device signs \
             in"
            .to_owned()
        }),
        Source::Input(input) => Some(match module_name {
            Some(module) => format!("a message to the input \"{}\" of {module}", input.escape_debug()),
            None => format!(
                "a message to the input \"{}\", which would not come here: no module signs in",
                input.escape_debug()
            ),
        }),
        Source::Method(method) => {
            let callee = module_name.or_else(|| device.map(|device| named("device", device)));
            let callee = callee.map_or(String::new(), |callee| format!(" of {callee}"));
            Some(format!("a call of the method \"{}\"{callee}", method.escape_debug()))
        }
    }
}

/// What a sample has that no rule takes.
pub(super) fn contents(message: &C2dMessage) -> Vec<String> {
    let names: Vec<_> =
        message.system.iter().chain(message.application.iter()).map(|(name, _)| name).collect();
    let quoted = |name: &&str| format!("\"{}\"", name.escape_debug());
    let shown: Vec<_> = names.iter().take(MOST_NAMED).map(quoted).collect();
    let more = if names.len() > MOST_NAMED { ", …" } else { "" };
    let mut lines = vec![match shown.as_slice() {
        [] => "the message has no properties: --message gives them, as in 'action=pump&state=on'".to_owned(),
        shown => format!("the message has the properties {}{more}", shown.join(", ")),
    }];
    let strange = |name: &&str| name.starts_with("$.") && !SYSTEM.contains(name);
    lines.extend(names.into_iter().filter(strange).take(MOST_NAMED).map(|name| {
        format!(
            "{} is not one of the hub's properties ({}), and a sender's own properties cannot begin with $.",
            quoted(&name),
            SYSTEM.join(", ")
        )
    }));
    lines
}

/// Rules whose messages come by doors that nobody who signs in here has.
pub(super) fn closed(rules: &Rules, inspection: &Inspection) -> Vec<String> {
    let (device, module) = (inspection.identity.is_some(), inspection.module.is_some());
    let is_open = |door: &Door| match door {
        Door::C2d => device,
        Door::Input => module,
        Door::Method => device || module,
    };
    let why = |doors: &[Door]| match doors {
        [] => None,
        doors if doors.iter().any(is_open) => None,
        [Door::Input, ..] => Some("messages to inputs, and no module signs in"),
        _ => Some("C2D messages, and no device signs in"),
    };
    let each = rules.iter().filter_map(|rule| Some((rule.name(), why(&rule.doors().collect::<Vec<_>>())?)));
    each.map(|(rule, why)| {
        format!("rule \"{rule}\" matches only {why} here: it has no effect on this gateway")
    })
    .collect()
}

/// What the caller of a method hears whose action is done.
pub(super) fn answered(policy: &Policy, plan: &Plan) -> String {
    match policy.settle {
        Settle::AfterAction => format!(
            "after the action: 200 when it succeeds, 500 when it fails, 504 when it takes longer than {}",
            humantime::format_duration(plan.timeout)
        ),
        Settle::OnAccept => "202 as soon as it is recorded, before the action".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(bag: &str) -> Result<C2dMessage, String> {
        sample(bag, Bytes::from_static(b"{}")).map_err(|error| error.to_string())
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
            (
                "$.method=a&state=on",
                "has no properties, but state is given: put it into the payload with --data",
            ),
            ("a=%zz", "--message is not a property bag"),
        ] {
            assert!(read(bag).is_err_and(|error| error.contains(part)), "{bag}: {:?}", read(bag));
        }
    }
}
