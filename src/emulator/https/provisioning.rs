//! The provisioning service over HTTPS: what a device asks for itself.
//!
//! Owns: the routes `/{scope}/registrations/{id}` and below, their headers. Must not know: enrolments, connections.
//!
//! Source: wire reference 12.1 and 12.8; `POST` is the "device registration status lookup" of the REST reference. Node's
//! client sends a body with GET.
//!
//! `faults` sets the faults of the service, `enrolments` is for its back ends, and `overview` for the page.

use hyper::StatusCode;
use hyper::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue, LOCATION, RETRY_AFTER};
use uuid::Uuid;

use super::call::HttpCall;
use super::reply::{self, HttpRefusal, HttpReply, HttpResult};
use crate::emulator::provisioning::{
    DoorError, DpsAnswer, DpsRefusal, MAX_REQUEST, ProvisioningDesk, RegistrationClaim,
};

pub(super) mod enrolments;
pub(super) mod faults;
pub(super) mod overview;

/// What a proxy might answer in the place of the service.
const PAGE: &str = "<!DOCTYPE html><html><body><h1>Sign in to the network</h1></body></html>";

/// `PUT /{scope}/registrations/{id}/register`.
pub(super) async fn register(call: &mut HttpCall) -> HttpResult {
    let (desk, claim) = admit(call)?;
    let body = call.body(MAX_REQUEST).await?;
    let answer = desk.register(&claim, &body).await;
    answered(call, &desk, &claim, &answer)
}

/// `GET /{scope}/registrations/{id}/operations/{operation}`.
pub(super) async fn poll(call: &mut HttpCall) -> HttpResult {
    let (desk, claim) = admit(call)?;
    call.body(MAX_REQUEST).await?;
    let answer = desk.poll(&claim, call.segment(4), call.reception.mqtt_port).await;
    answered(call, &desk, &claim, &answer)
}

/// `POST /{scope}/registrations/{id}`.
pub(super) async fn look_up(call: &mut HttpCall) -> HttpResult {
    let (desk, claim) = admit(call)?;
    call.body(MAX_REQUEST).await?;
    let answer = desk.look_up(&claim, call.reception.mqtt_port).await;
    answered(call, &desk, &claim, &answer)
}

/// Whether the path is one whose GET may have a body.
pub(super) fn is_polled(call: &HttpCall) -> bool {
    call.segment(1).eq_ignore_ascii_case("registrations")
        && call.segment(3).eq_ignore_ascii_case("operations")
}

fn admit(call: &HttpCall) -> Result<(ProvisioningDesk, RegistrationClaim), HttpRefusal> {
    let (scope, id) = (call.segment(0), call.segment(2));
    let (real, now) = (call.hub.clock().0, call.hub.now());
    // A header that is no text is no token either.
    let token = call.headers.get(AUTHORIZATION).map(|value| value.to_str().unwrap_or("?"));
    match call.reception.admit(scope, id, token, real) {
        Ok(admitted) if call.has_version() => Ok(admitted),
        Ok(_) => Err(reply::bad_argument("the query has no api-version, such as 2021-06-01").into()),
        Err(error) => {
            tracing::warn!(
                registration_id = crate::message::excerpt(id),
                "the provisioning service refused a request: {error}"
            );
            let refusal = match error {
                DoorError::Closed => DpsRefusal::closed(error.to_string()),
                error => DpsRefusal::unauthorized(error.to_string()),
            };
            Err(shown(&refusal.answer(Uuid::new_v4(), now)).into())
        }
    }
}

fn answered(
    call: &HttpCall,
    desk: &ProvisioningDesk,
    claim: &RegistrationClaim,
    answer: &DpsAnswer,
) -> HttpResult {
    if desk.answers_html(&claim.registration_id) {
        let html = HeaderValue::from_static("text/html; charset=utf-8");
        return Ok(reply::text(PAGE).with(CONTENT_TYPE, html));
    }
    let reply = shown(answer);
    let operation = answer.body["operationId"].as_str().filter(|_| answer.status == 202);
    let place = operation.map(|operation| {
        format!("/{}/registrations/{}/operations/{operation}", call.segment(0), call.segment(2))
    });
    Ok(match place.and_then(|place| HeaderValue::from_str(&place).ok()) {
        Some(place) => reply.with(LOCATION, place),
        None => reply,
    })
}

/// An answer of the service as one over HTTPS.
fn shown(answer: &DpsAnswer) -> HttpReply {
    let status = StatusCode::from_u16(answer.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let reply = reply::json_of(status, &answer.body);
    match answer.retry_after {
        Some(seconds) => reply.with(RETRY_AFTER, HeaderValue::from(seconds)),
        None => reply,
    }
}
