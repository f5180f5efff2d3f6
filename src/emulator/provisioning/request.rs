//! What a client sends with a registration.
//!
//! Owns: the body of a request to register. Must not know: who sends it, enrolments.
//!
//! Source: wire reference 12.3. The body may be empty, and an SDK may send `"payload": null`.

use serde::Deserialize;
use serde_json::Value;

use super::answer::DpsRefusal;

/// Most bytes of a request. Source: azure-docs, `iot-dps-limits`.
pub(in crate::emulator) const MAX_REQUEST: usize = 96 * 1024;

/// A request to register.
#[derive(Debug, Default, PartialEq)]
pub(super) struct RegisterRequest {
    /// JSON for a custom allocation.
    pub(super) payload: Option<Value>,
    /// A certificate request (PKCS#10) in base64.
    pub(super) csr: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct RegisterBody {
    registration_id: Option<String>,
    payload: Option<Value>,
    csr: Option<String>,
    tpm: Option<Value>,
}

impl RegisterRequest {
    /// Reads the request of a client that says it is `registration_id`.
    ///
    /// # Errors
    /// 400 for another JSON, another id and TPM, 413 for too many bytes.
    pub(super) fn read(registration_id: &str, body: &[u8]) -> Result<Self, DpsRefusal> {
        if body.len() > MAX_REQUEST {
            return Err(DpsRefusal::too_large());
        }
        if body.trim_ascii().is_empty() {
            return Ok(Self::default());
        }
        let wrong = |reason: String| DpsRefusal::bad_request(reason);
        let sent: RegisterBody = serde_json::from_slice(body)
            .map_err(|error| wrong(format!("the body is no registration: {error}")))?;
        if sent.registration_id.is_some_and(|id| !id.eq_ignore_ascii_case(registration_id)) {
            return Err(wrong("the registrationId in the body is not the one that asks".to_owned()));
        }
        if sent.tpm.is_some_and(|tpm| !tpm.is_null()) {
            return Err(wrong("this emulator has no TPM attestation".to_owned()));
        }
        Ok(Self { payload: sent.payload, csr: sent.csr })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_the_sdks_send_is_read() {
        for empty in ["", " ", "{}", r#"{"registrationId":"a","payload":null}"#, r#"{"registrationId":"A"}"#]
        {
            assert_eq!(
                RegisterRequest::read("a", empty.as_bytes()),
                Ok(RegisterRequest::default()),
                "{empty}"
            );
        }
        let all = br#"{"registrationId":"a","payload":{"site":12},"csr":"MIIB"}"#;
        let expected = RegisterRequest { payload: Some(json!({ "site": 12 })), csr: Some("MIIB".into()) };
        assert_eq!(RegisterRequest::read("a", all), Ok(expected));
    }

    #[test]
    fn other_bodies_are_refused_with_the_reason() {
        let long = format!("\"{}\"", "x".repeat(MAX_REQUEST));
        let deep = "[".repeat(10_000);
        let text = format!("\"{}\"", "x".repeat(50_000));
        for (body, status, reason) in [
            ("[]", 400, "the body is no registration: "),
            ("<html>", 400, "the body is no registration: "),
            (&deep, 400, "the body is no registration: "),
            (&text, 400, "the body is no registration: invalid type: string \"xxx"),
            (r#"{"registrationId":"b"}"#, 400, "the registrationId in the body is not the one that asks"),
            (r#"{"tpm":{"endorsementKey":"x"}}"#, 400, "this emulator has no TPM attestation"),
            (&long, 413, ""),
        ] {
            let refused = RegisterRequest::read("a", body.as_bytes()).expect_err("refused");
            assert_eq!(refused.status, status);
            assert!(refused.reason.starts_with(reason) && refused.reason.len() <= 300, "{refused:?}");
        }
    }
}
