//! The renewal of a certificate at the hub: what is asked, and what the answers mean.
//!
//! Owns: the bodies, and each error in words. Must not know: topics, when to ask.
//!
//! Source: wire reference 12.6. It is a preview of the service, so answers are read with care.

use serde::Deserialize;
use serde_json::{Value, json};

/// The most characters of the hub's words that are shown.
const MOST_SAID: usize = 200;

/// The body of a request for a certificate. `csr` is the DER of the request in base64. With `replaces_others`, a
/// request of this device that is under way is given up.
pub fn renewal_body(device_id: &str, csr: &str, replaces_others: bool) -> Vec<u8> {
    let mut body = json!({ "id": device_id, "csr": csr });
    if replaces_others {
        body["replace"] = "*".into();
    }
    body.to_string().into_bytes()
}

/// What the hub answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RenewalAnswer {
    /// It is at it: the certificate follows, if need be on another connection.
    Accepted,
    /// The chain, in base64 of DER.
    Issued(Vec<String>),
    /// There is no certificate.
    Refused(RenewalRefusal),
}

/// Why there is no certificate.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{sentence}")]
pub struct RenewalRefusal {
    /// What the hub means, in one sentence.
    pub sentence: String,
    /// Whether a request of this device is under way, and which one, if the hub says so. The next one must replace it.
    pub under_way: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Body {
    certificates: Option<Vec<String>>,
    error_code: Option<u64>,
    message: Option<String>,
    info: Option<Value>,
}

impl RenewalAnswer {
    /// Reads an answer. `status` is that of the topic, as in HTTP.
    pub fn read(status: u16, body: &[u8]) -> Self {
        let parsed: Option<Body> = serde_json::from_slice(body).ok();
        match (status, parsed) {
            (202, _) => Self::Accepted,
            (200, Some(Body { certificates: Some(chain), .. })) => Self::Issued(chain),
            (200..300, _) => {
                Self::refused(format!("its answer (status {status}) has no list of certificates"))
            }
            (status, body) => {
                let body = body.unwrap_or_default();
                let id = || {
                    body.info.as_ref().and_then(|info| info.get("requestId")?.as_str()).unwrap_or_default()
                };
                let under_way = (status == 409).then(|| shown(id()));
                Self::Refused(RenewalRefusal { sentence: sentence(status, &body), under_way })
            }
        }
    }

    fn refused(sentence: String) -> Self {
        Self::Refused(RenewalRefusal { sentence, under_way: None })
    }
}

fn sentence(status: u16, body: &Body) -> String {
    let info = |name: &str| body.info.as_ref()?.get(name)?.as_str().map(shown);
    let code = body.error_code.map_or_else(|| status.to_string(), |code| code.to_string());
    let said = body.message.as_deref().map_or(String::new(), |said| format!(": {}", shown(said)));
    match body.error_code {
        Some(400_037 | 400_040) => {
            let words: Vec<_> =
                ["credentialError", "credentialMessage"].into_iter().filter_map(info).collect();
            let words = if words.is_empty() { said } else { format!(": {}", words.join(", ")) };
            format!(
                "the certificate authority refuses the request ({code}{words}): look at the policy of the enrolment"
            )
        }
        Some(409_004 | 409_005) => {
            let which = info("requestId").map_or(String::new(), |id| format!(", {id}"));
            format!("another request of this device is under way ({code}{which}): the next one replaces it")
        }
        Some(412_001) => format!("there was no request to replace ({code}): the next one is an ordinary one"),
        Some(400_004 | 400_006) => {
            format!("the hub does not understand the request ({code}{said}): please report this")
        }
        _ if matches!(status, 401 | 403 | 404 | 405) => {
            format!(
                "the hub issues no certificates to this device ({code}{said}): it needs Azure Device Registry"
            )
        }
        _ if status == 429 || status >= 500 => format!("the hub is busy ({code}{said})"),
        _ => format!("the hub refused the request ({code}{said})"),
    }
}

/// Words of the hub, cut short and without control characters. They stand in no quotes, so their own need no backslash.
fn shown(said: &str) -> String {
    said.chars().take(MOST_SAID).fold(String::new(), |mut shown, c| {
        if c == '"' || c == '\'' {
            shown.push(c)
        } else {
            shown.extend(c.escape_debug())
        }
        shown
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(status: u16, body: &Value) -> RenewalAnswer {
        RenewalAnswer::read(status, body.to_string().as_bytes())
    }

    fn said(status: u16, body: &Value) -> RenewalRefusal {
        let RenewalAnswer::Refused(refusal) = read(status, body) else { panic!("refused") };
        refusal
    }

    #[test]
    fn a_request_names_the_device_and_may_replace_another_one() {
        assert_eq!(renewal_body("d", "MIIB", false), br#"{"csr":"MIIB","id":"d"}"#);
        assert_eq!(renewal_body("d", "MIIB", true), br#"{"csr":"MIIB","id":"d","replace":"*"}"#);
    }

    #[test]
    fn an_answer_is_a_wait_a_chain_or_a_sentence() {
        let accepted = json!({ "correlationId": "c", "operationExpires": "2026-01-31T12:52:20.565000000Z" });
        assert_eq!(read(202, &accepted), RenewalAnswer::Accepted);
        let issued = json!({ "correlationId": "c", "certificates": ["a", "b"] });
        assert_eq!(read(200, &issued), RenewalAnswer::Issued(vec!["a".into(), "b".into()]));
        let info = json!({ "credentialError": "E7", "credentialMessage": "key too weak" });
        for code in [400_037, 400_040] {
            let refusal = said(400, &json!({ "errorCode": code, "message": "m", "info": info }));
            let words = format!("refuses the request ({code}: E7, key too weak): look at the policy");
            assert!(refusal.sentence.contains(&words) && refusal.under_way.is_none(), "{refusal}");
        }
        for code in [409_004, 409_005] {
            let refusal = said(409, &json!({ "errorCode": code, "info": { "requestId": "r-1" } }));
            assert!(refusal.sentence.contains(&format!("under way ({code}, r-1)")), "{refusal}");
            assert_eq!(refusal.under_way.as_deref(), Some("r-1"));
        }
        assert!(said(412, &json!({ "errorCode": 412_001 })).sentence.contains("no request to replace"));
        let refusal = said(400, &json!({ "errorCode": 400_004, "message": "\"id\"\nmissing", "info": null }));
        assert!(refusal.sentence.contains("(400004: \"id\"\\nmissing): please report this"), "{refusal}");
        assert!(said(404, &json!({})).sentence.contains("needs Azure Device Registry"));
        assert_eq!(said(503, &json!([])).sentence, "the hub is busy (503)");
        assert!(said(200, &json!({ "certificates": "x" })).sentence.contains("no list of certificates"));
    }

    proptest! {
        #[test]
        fn any_answer_is_read(status in any::<u16>(), body in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = RenewalAnswer::read(status, &body);
        }
    }
}
