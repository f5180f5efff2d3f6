//! What DPS answers to a registration.
//!
//! Owns: the bodies of answers, and which refusal an error is. Must not know: how an answer came.
//!
//! An answer is read with care: a proxy may answer in HTML, and a later version of the service with words of its own.

use std::time::Duration;

use serde::Deserialize;
use serde_json::Value;

use super::assignment::Assignment;
use super::excerpt;
use super::refusal::RegistrationRefusal;

/// How long to wait before the next question if the service does not say. Source: wire reference 12.4.
const DEFAULT_WAIT: Duration = Duration::from_secs(2);
/// Waits outside this range are not believed. Source: wire reference 12.4.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(300);
/// The most characters of the service's words that are shown.
const MOST_SAID: usize = 300;

/// What an answer says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Registration {
    /// The service is still at it.
    Assigning(Assigning),
    /// The device has a hub.
    Assigned(Box<Assignment>),
}

/// A registration that has not ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assigning {
    /// What to ask after.
    pub operation_id: String,
    /// How long to wait before that.
    pub wait: Duration,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Body {
    operation_id: Option<String>,
    status: Option<String>,
    registration_state: Option<Value>,
    error_code: Option<u64>,
    message: Option<String>,
}

impl Registration {
    /// Reads an answer. `status` is that of the topic or of HTTP, `retry_after` the text beside it.
    ///
    /// # Errors
    /// [`RegistrationRefusal`] when there is no assignment, and none is being made.
    pub fn read(
        registration_id: &str,
        status: u16,
        retry_after: Option<&str>,
        body: &[u8],
    ) -> Result<Self, RegistrationRefusal> {
        let wait = wait(retry_after);
        let parsed: Option<Body> = serde_json::from_slice(body).ok();
        if status == 429 || status >= 500 {
            return Err(RegistrationRefusal::Busy { status, wait });
        }
        let no_json = || {
            let begins = excerpt(&String::from_utf8_lossy(body.get(..200).unwrap_or(body)));
            RegistrationRefusal::Unusable(format!("status {status}, and no JSON object but \"{begins}\""))
        };
        if status >= 300 {
            let said =
                parsed.map_or_else(String::new, |body| words(body.error_code, body.message.as_deref()));
            return Err(refused(registration_id, status, said));
        }
        let body = parsed.ok_or_else(no_json)?;
        let state = body.registration_state.unwrap_or_default();
        let text = |name: &str| state.get(name).and_then(Value::as_str);
        match body.status.unwrap_or_default().to_ascii_lowercase().as_str() {
            "assigning" => {
                let operation_id = body.operation_id.filter(|id| is_operation(id)).ok_or_else(|| {
                    RegistrationRefusal::Unusable(
                        "it is assigning and names no operation to ask after".into(),
                    )
                })?;
                Ok(Self::Assigning(Assigning { operation_id, wait }))
            }
            "assigned" => Assignment::read(&state).map(|assigned| Self::Assigned(Box::new(assigned))),
            "disabled" => Err(RegistrationRefusal::Disabled { registration_id: registration_id.to_owned() }),
            "failed" => {
                let code = state.get("errorCode").and_then(Value::as_u64).or(body.error_code);
                let message = text("errorMessage").or(body.message.as_deref());
                Err(failed(registration_id, code, message, wait))
            }
            other => Err(RegistrationRefusal::Unusable(format!("its status is \"{}\"", excerpt(other)))),
        }
    }
}

/// An operation id stands in a topic and in a path.
fn is_operation(id: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_alphanumeric() || "-._~".contains(c);
    (1..=256).contains(&id.len()) && id.chars().all(is_allowed)
}

fn wait(retry_after: Option<&str>) -> Duration {
    let seconds = retry_after.and_then(|text| text.trim().parse().ok());
    seconds.map_or(DEFAULT_WAIT, |seconds| Duration::from_secs(seconds).clamp(SHORTEST_WAIT, LONGEST_WAIT))
}

/// Text of the service without control characters, cut short. It stands in no quotes, so its own need no backslash.
fn shown(text: &str) -> String {
    text.chars().take(MOST_SAID).fold(String::new(), |mut shown, c| {
        if c == '"' || c == '\'' {
            shown.push(c)
        } else {
            shown.extend(c.escape_debug())
        }
        shown
    })
}

/// The words of the service, in one line.
fn words(code: Option<u64>, message: Option<&str>) -> String {
    let message = shown(message.unwrap_or_default());
    match (code, message.trim_end_matches('.')) {
        (Some(code), "") => code.to_string(),
        (Some(code), message) => format!("{code}: {message}"),
        (None, message) => message.to_owned(),
    }
}

fn refused(registration_id: &str, status: u16, said: String) -> RegistrationRefusal {
    let said = if said.is_empty() { format!("status {status}") } else { said };
    match status {
        401 | 403 | 404 => {
            RegistrationRefusal::Unauthorized { registration_id: registration_id.to_owned(), said }
        }
        _ => RegistrationRefusal::Unusable(format!("status {status}, {said}")),
    }
}

/// Why an operation failed. Its code begins with the status that a request would have had.
fn failed(
    registration_id: &str,
    code: Option<u64>,
    message: Option<&str>,
    wait: Duration,
) -> RegistrationRefusal {
    let said = words(code, message);
    let remedy = match code {
        Some(400_207) => "its custom allocation failed: look at the log of the function",
        Some(400_208) => "no hub is linked to the enrolment: link one at the provisioning service",
        Some(400_209) => {
            "it may not write to the hub: check the link between the provisioning service and the hub"
        }
        Some(code) if code / 1000 == 401 => return refused(registration_id, 401, said),
        Some(code) if code / 1000 == 429 || code / 1000 >= 500 => {
            let status = u16::try_from(code / 1000).unwrap_or(500);
            return RegistrationRefusal::Busy { status, wait };
        }
        _ => "look at the registration at the provisioning service",
    };
    let sentence = if said.is_empty() { remedy.to_owned() } else { format!("{said}; {remedy}") };
    RegistrationRefusal::NoHub { sentence }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn read(status: u16, body: &Value) -> Result<Registration, RegistrationRefusal> {
        Registration::read("reg-01", status, Some("3"), body.to_string().as_bytes())
    }

    fn sentence(status: u16, body: &[u8]) -> String {
        Registration::read("reg-01", status, None, body).expect_err("refused").to_string()
    }

    #[test]
    fn an_answer_is_a_question_to_ask_later_or_an_assignment() {
        let body = json!({ "operationId": "5.316a.b1e0-02", "status": "assigning", "registrationState": { "x": 1 } });
        let assigning = Assigning { operation_id: "5.316a.b1e0-02".into(), wait: Duration::from_secs(3) };
        assert_eq!(read(202, &body), Ok(Registration::Assigning(assigning)));
        let body = json!({ "status": "ASSIGNED", "registrationState": {
            "assignedHub": "h.azure-devices.net", "deviceId": "pump-12", "substatus": "never seen" } });
        let Ok(Registration::Assigned(assigned)) = read(200, &body) else { panic!("assigned") };
        assert_eq!((&*assigned.hub.name, &*assigned.device_id), ("h.azure-devices.net", "pump-12"));
    }

    #[test]
    fn each_refusal_is_one_sentence_that_says_what_to_do() {
        let unauthorized = br#"{"errorCode":401002,"trackingId":"8ad0","message":"Invalid certificate."}"#;
        let said = sentence(401, unauthorized);
        assert!(
            said.starts_with("it refused the registration id reg-01 (401002: Invalid certificate): "),
            "{said}"
        );
        let failed = |code: u64| {
            let state = json!({ "errorCode": code, "errorMessage": "a\nb" });
            sentence(200, json!({ "status": "failed", "registrationState": state }).to_string().as_bytes())
        };
        assert_eq!(
            failed(400_208),
            "it could not assign a hub: 400208: a\\nb; no hub is linked to the enrolment: link one at the \
             provisioning service"
        );
        assert!(failed(400_207).contains("custom allocation failed"));
        assert!(failed(401_002).contains("refused the registration id reg-01"));
        assert_eq!(
            failed(429_001),
            "it is busy (status 429), and asks for a pause of 2 s: ask it again later"
        );
        assert!(sentence(200, br#"{"status":"disabled"}"#).contains("reg-01 is disabled: enable it"));
        assert_eq!(
            sentence(503, b"<html>"),
            "it is busy (status 503), and asks for a pause of 2 s: ask it again later"
        );
    }

    #[test]
    fn answers_that_make_no_sense_are_told_with_their_beginning() {
        assert_eq!(
            sentence(200, b"<html>\n<body>a portal</body>"),
            "its answer cannot be used (status 200, and no JSON object but \"<html>\\n<body>a portal</body>\"): check endpoint \
             in [provisioning], and the registration at the service"
        );
        assert!(sentence(200, br#"{"status":"melted"}"#).contains("its status is \"melted\""));
        assert!(sentence(202, br#"{"status":"assigning"}"#).contains("names no operation"));
        for id in ["a/b", "a$b", "", &"x".repeat(257)] {
            let body = json!({ "operationId": id, "status": "assigning" });
            assert!(read(202, &body).is_err(), "{id}");
        }
        assert!(sentence(409, b"").contains("status 409"));
        let taken = br#"{"errorCode":409001,"message":"the device \"a\" isn't free\u001b[2J"}"#;
        let said = sentence(409, taken);
        assert!(said.contains("(status 409, 409001: the device \"a\" isn't free\\u{1b}[2J): "), "{said}");
    }

    #[test]
    fn a_wait_is_between_a_second_and_five_minutes() {
        for (text, seconds) in [("3", 3), ("0", 1), ("99999", 300), ("soon", 2), ("-1", 2)] {
            assert_eq!(wait(Some(text)), Duration::from_secs(seconds), "{text}");
        }
        assert_eq!(wait(None), Duration::from_secs(2));
    }
}
