//! The service API of provisioning: enrolments and registrations, for back ends.
//!
//! Owns: the routes `/enrollments`, `/enrollmentGroups` and `/registrations`, their JSON and their pages. Must not know:
//! connections, what an enrolment means.
//!
//! Source: `provisioningserviceclient.ts` and `query.ts` of Microsoft's Node SDK (`provisioning/service`). A choice: a
//! query returns all rows of its collection, and one with a condition is refused.

use hyper::StatusCode;
use hyper::header::{HeaderName, HeaderValue};
use serde_json::{Value, json};
use uuid::Uuid;

use super::shown;
use crate::emulator::https::call::HttpCall;
use crate::emulator::https::pages::{PageStart, RowPage};
use crate::emulator::https::reply::{self, HttpRefusal, HttpResult};
use crate::emulator::provisioning::{DpsRefusal, EnrolmentKind, ProvisioningDesk};
use crate::message::excerpt;

/// Most bytes of an enrolment, and of a query.
const MAX_BODY: usize = 256 * 1024;
/// Most bytes of ten enrolments.
const MAX_BULK_BODY: usize = 10 * MAX_BODY;
/// So many rows are taken from the book at a time.
const SLICE: usize = 64;

/// `GET /enrollments/{id}`, `GET /enrollmentGroups/{id}`.
pub(in crate::emulator::https) fn get(call: &HttpCall) -> HttpResult {
    let found =
        desk(call)?.enrolment(kind(call), call.segment(1)).map_err(|refusal| refused(call, &refusal))?;
    Ok(reply::tagged(&found.show(false), &found.etag()))
}

/// `PUT /enrollments/{id}`, `PUT /enrollmentGroups/{id}`.
pub(in crate::emulator::https) async fn put(call: &mut HttpCall) -> HttpResult {
    let body = call.body(MAX_BODY).await?;
    let made = desk(call)?.put_enrolment(kind(call), call.segment(1), &body, call.expected()).await;
    let made = made.map_err(|refusal| refused(call, &refusal))?;
    Ok(reply::tagged(&made.show(false), &made.etag()))
}

/// `DELETE /enrollments/{id}`, `DELETE /enrollmentGroups/{id}`.
pub(in crate::emulator::https) async fn delete(call: &mut HttpCall) -> HttpResult {
    let deleted = desk(call)?.delete_enrolment(kind(call), call.segment(1), call.expected()).await;
    deleted.map_err(|refusal| refused(call, &refusal))?;
    Ok(reply::no_content())
}

/// `POST /enrollments/{id}/attestationmechanism`, and the same for groups: with the keys.
pub(in crate::emulator::https) async fn attestation(call: &mut HttpCall) -> HttpResult {
    call.body(MAX_BODY).await?;
    let found =
        desk(call)?.enrolment(kind(call), call.segment(1)).map_err(|refusal| refused(call, &refusal))?;
    Ok(reply::ok(&found.attestation(true)))
}

/// `POST /enrollments`: many changes in one request.
pub(in crate::emulator::https) async fn change(call: &mut HttpCall) -> HttpResult {
    let body = call.body(MAX_BULK_BODY).await?;
    let sent: Value = serde_json::from_slice(&body)
        .map_err(|error| reply::bad_argument(&format!("the body is no bulk operation: {error}")))?;
    let failed = desk(call)?.change_enrolments(&sent).await.map_err(|refusal| refused(call, &refusal))?;
    let errors: Vec<Value> = failed
        .iter()
        .map(|(id, refusal)| {
            json!({ "registrationId": id, "errorCode": refusal.code, "errorStatus": refusal.said })
        })
        .collect();
    Ok(reply::ok(&json!({ "isSuccessful": errors.is_empty(), "errors": errors })))
}

/// `GET /registrations/{id}`.
pub(in crate::emulator::https) fn registration(call: &HttpCall) -> HttpResult {
    let found = desk(call)?.registration(call.segment(1)).map_err(|refusal| refused(call, &refusal))?;
    Ok(reply::tagged(&found.show(None), &found.etag()))
}

/// `DELETE /registrations/{id}`.
pub(in crate::emulator::https) async fn delete_registration(call: &mut HttpCall) -> HttpResult {
    let deleted = desk(call)?.delete_registration(call.segment(1), call.expected()).await;
    deleted.map_err(|refusal| refused(call, &refusal))?;
    Ok(reply::no_content())
}

/// `POST /enrollments/query`, `POST /enrollmentGroups/query`, `POST /registrations/{group}/query`.
pub(in crate::emulator::https) async fn query(call: &mut HttpCall) -> HttpResult {
    let body = call.body(MAX_BODY).await?;
    let sent: Value = serde_json::from_slice(&body).unwrap_or_default();
    let text = sent["query"].as_str().unwrap_or_default();
    let words: Vec<String> = text.split_whitespace().map(str::to_ascii_lowercase).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    if !matches!(words.as_slice(), [] | ["*"] | ["select", "*"] | ["select", "*", "from", _]) {
        let sentence = format!(
            "\"{}\" is not a query of this emulator's provisioning service: use SELECT * FROM enrollments",
            excerpt(text)
        );
        return Err(reply::bad_argument(&sentence).into());
    }
    let group = call.segment(0).eq_ignore_ascii_case("registrations").then(|| call.segment(1).to_owned());
    let desk = desk(call)?;
    let start = PageStart::read(call, &format!("{} {}", call.segment(0), call.segment(1)))?;
    let mut after = start.after().unwrap_or_default().to_owned();
    let mut page = RowPage::new(start, None);
    loop {
        tokio::task::yield_now().await;
        let rows: Vec<(String, Value)> = match &group {
            Some(group) => {
                let rows = desk.registrations_after(Some(group), &after, SLICE);
                rows.iter().map(|row| (row.registration_id.to_ascii_lowercase(), row.show(None))).collect()
            }
            None => {
                let rows = desk.enrolments_after(kind(call), &after, SLICE);
                rows.iter().map(|row| (row.id.to_ascii_lowercase(), row.show(false))).collect()
            }
        };
        let Some((last, _)) = rows.last() else { break };
        after.clone_from(last);
        if !rows.iter().all(|(place, row)| page.push(place, row)) {
            break;
        }
    }
    let item_type = match (&group, kind(call)) {
        (Some(_), _) => "registration",
        (None, EnrolmentKind::Individual) => "enrollment",
        (None, EnrolmentKind::Group) => "enrollmentGroup",
    };
    Ok(page.reply()?.with(HeaderName::from_static("x-ms-item-type"), HeaderValue::from_static(item_type)))
}

/// The service. A route of back ends is only reached if there is one.
fn desk(call: &HttpCall) -> Result<ProvisioningDesk, HttpRefusal> {
    let missing =
        || reply::error(StatusCode::NOT_FOUND, "ResourceNotFound", "there is no provisioning service");
    call.reception.desk.clone().ok_or_else(|| missing().into())
}

fn kind(call: &HttpCall) -> EnrolmentKind {
    if call.segment(0).eq_ignore_ascii_case("enrollmentGroups") {
        EnrolmentKind::Group
    } else {
        EnrolmentKind::Individual
    }
}

fn refused(call: &HttpCall, refusal: &DpsRefusal) -> HttpRefusal {
    tracing::info!(
        status = refusal.status,
        "the provisioning service refused a back end: {}",
        refusal.reason
    );
    shown(&refusal.answer(Uuid::new_v4(), call.hub.now())).into()
}
