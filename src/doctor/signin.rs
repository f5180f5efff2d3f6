//! The sign-in: does the hub let this device or module in?
//!
//! Owns: when to try it, because a hub keeps only one connection per device or module. Must not know: MQTT.

use super::subject::NetworkSubject;
use super::{CHECK_LIMIT, Check, Finding, RunningAgent};
use crate::session::{self, SignInError};

/// Signs in and out. If that would disconnect a running agent, it does so only when the user asked for it.
pub(super) async fn sign_in(
    subject: &NetworkSubject<'_>,
    agent: &RunningAgent,
    forced: bool,
    may_try: Result<(), &'static str>,
) -> Finding {
    let Some(identity) = subject.identity else {
        return Check::SignIn.skipped("the configuration does not say who signs in");
    };
    if subject.offline {
        return Check::SignIn.skipped("--offline");
    }
    let anyway = "--sign-in forces it";
    match agent {
        RunningAgent::Running { .. } if !forced => {
            let detail = format!("it would disconnect the running agent for a moment: {anyway}");
            return Check::SignIn.skipped(detail);
        }
        RunningAgent::Unknown(_) if !forced => {
            return Check::SignIn
                .skipped(format!("it would disconnect an agent that may be running: {anyway}"));
        }
        _ => {}
    }
    if let Err(reason) = may_try {
        return Check::SignIn.skipped(reason);
    }
    let settings = session::Settings {
        identity: identity.clone(),
        transport: subject.transport,
        ca_file: subject.ca_file.map(Into::into),
        token_lifetime: subject.token_lifetime,
        route: subject.route.clone(),
        clock: subject.clock,
        twin: false,
        methods: false,
        desired: false,
        hub_source: session::HubSource::Configured,
        alone: true,
        issuing: session::Issuing::default(),
    };
    let device = identity.client_id();
    match session::probe(settings, CHECK_LIMIT).await {
        Ok(()) if matches!(agent, RunningAgent::Running { .. }) => Check::SignIn.warning(
            format!("the hub accepts {device}, and the running agent was disconnected"),
            "wait: the agent signs in again by itself within seconds",
        ),
        Ok(()) => Check::SignIn.ok(format!("the hub accepts {device}")),
        Err(SignInError::Tls(error)) => {
            Check::SignIn.failed(error.to_string(), format!("correct what {} names", subject.files()))
        }
        Err(SignInError::Failed(sentence)) => Check::SignIn.failed_with(sentence),
    }
}
