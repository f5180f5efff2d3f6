//! The door by which a sample message comes, and how this door changes the way the message is settled or answered.
//!
//! Owns: the sentences about doors. Must not know: conditions, plans.

use crate::config::Inspection;
use crate::credentials::DeviceIdentity;
use crate::message::{C2dMessage, INPUT, Source};
use crate::rules::{Door, Plan, Policy, Rules, Settle};

/// Most properties of a sample that are listed.
const MOST_NAMED: usize = 20;

/// The hub's own properties that begin with `$.`. Source: wire reference 1.5.
const SYSTEM: [&str; 13] = [
    "$.mid", "$.cid", "$.uid", "$.to", "$.exp", "$.ct", "$.ce", "$.ctime", "$.schema", "$.on", "$.cdid",
    "$.cmid", INPUT,
];

/// Where a sample would come in. `None` for a plain C2D message, which needs no explanation.
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

/// The properties of a sample that no rule matches.
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

/// Rules that no message can reach: the device or module that signs in here does not have their doors.
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

/// What the caller of a method gets when its action is run.
pub(super) fn answered(policy: &Policy, plan: &Plan) -> String {
    match policy.settle {
        Settle::AfterAction => format!(
            "after the action: 200 when it succeeds, 500 when it fails, 504 when it takes longer than {}",
            humantime::format_duration(plan.timeout)
        ),
        Settle::OnAccept => "202 as soon as it is recorded, before the action".to_owned(),
    }
}
