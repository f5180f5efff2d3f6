//! A finding: what a check found, and what to do about it.
//!
//! Owns: the names of the checks, on which scripts may rely. Must not know: how the checks work.

use serde::Serialize;

/// A check. The names in JSON are stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Check {
    /// The configuration file.
    Configuration,
    /// Who signs in.
    Identity,
    /// Who can read the key.
    SecretFile,
    /// A ready-made SAS token.
    Token,
    /// The device's own certificate.
    DeviceCertificate,
    /// An agent that runs.
    Agent,
    /// The socket where a module has its tokens signed. This check and the next two are for modules only.
    WorkloadApi,
    /// The roots that the workload API gives.
    TrustBundle,
    /// Whether the workload API signs for this deployment of the module.
    Generation,
    /// The host name.
    NameLookup,
    /// The port to which the agent connects; the subject is the port.
    MqttPort,
    /// The other way to a hub; the subject is the port.
    HttpsPort,
    /// Whether the server is the right one.
    Tls,
    /// The dates of the server's certificate.
    ServerCertificate,
    /// This machine's clock.
    Clock,
    /// Whether the provisioning service assigns a hub.
    Registration,
    /// Whether the hub lets the device in.
    SignIn,
    /// Who runs the doctor.
    User,
    /// The record of messages.
    Inbox,
    /// A program of a rule; the subject is its path.
    Program,
    /// `/bin/sh`.
    Shell,
    /// What drives the pins.
    Gpio,
    /// A pin; the subject is its name.
    Pin,
}

/// The result of a check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Standing {
    /// As it should be.
    Ok,
    /// The agent works, or may work, but a person should look at this.
    Warning,
    /// The agent will not work like this.
    Failed,
    /// Not checked; the detail says why.
    Skipped,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// Which check.
    pub check: Check,
    /// The examined thing, if the check examines several.
    pub subject: Option<String>,
    /// The connection, if the agent makes two: `DEVICE`, or `DEVICE/MODULE`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub connection: Option<String>,
    /// The result of the check.
    pub status: Standing,
    /// What was found.
    pub detail: String,
    /// What to do, in one sentence; present with a warning or a failure.
    pub remedy: Option<String>,
}

impl Check {
    pub(super) fn ok(self, detail: impl Into<String>) -> Finding {
        self.found(Standing::Ok, detail, None)
    }

    pub(super) fn skipped(self, reason: impl Into<String>) -> Finding {
        self.found(Standing::Skipped, reason, None)
    }

    pub(super) fn warning(self, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.found(Standing::Warning, detail, Some(remedy.into()))
    }

    pub(super) fn failed(self, detail: impl Into<String>, remedy: impl Into<String>) -> Finding {
        self.found(Standing::Failed, detail, Some(remedy.into()))
    }

    /// A warning in the words of an error.
    pub(super) fn warned_of(self, error: impl ToString) -> Finding {
        let (detail, remedy) = taken_apart(error.to_string());
        self.found(Standing::Warning, detail, Some(remedy))
    }

    /// A failure in the words of an error.
    pub(super) fn failed_with(self, error: impl ToString) -> Finding {
        let (detail, remedy) = taken_apart(error.to_string());
        self.found(Standing::Failed, detail, Some(remedy))
    }

    fn found(self, status: Standing, detail: impl Into<String>, remedy: Option<String>) -> Finding {
        Finding { check: self, subject: None, connection: None, status, detail: detail.into(), remedy }
    }
}

impl Finding {
    /// Sets the subject, if the check examines several.
    pub(super) fn about(self, subject: impl ToString) -> Finding {
        Finding { subject: Some(subject.to_string()), ..self }
    }

    /// Sets the connection, if there are two.
    pub(super) fn on(self, connection: Option<&str>) -> Finding {
        Finding { connection: connection.map(str::to_owned), ..self }
    }
}

/// Splits an error into detail and remedy. An error of this program is one sentence; its remedy follows the last colon
/// outside of brackets.
fn taken_apart(sentence: String) -> (String, String) {
    let mut depth = 0;
    let colon = sentence.char_indices().rev().find(|(at, c)| {
        match c {
            ')' => depth += 1,
            '(' => depth -= 1,
            _ => {}
        }
        *c == ':' && depth == 0 && sentence[at + 1..].starts_with(' ')
    });
    match colon {
        Some((at, _)) => (sentence[..at].to_owned(), sentence[at + 2..].to_owned()),
        None => (sentence, "try again later; if it still fails, read the agent's log".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_taken_apart_at_its_last_colon() {
        let apart = |text: &str| taken_apart(text.to_owned());
        let (detail, remedy) =
            apart("no TLS with h:8883: the name is wrong (it is: x): check HostName (a: b)");
        assert_eq!(
            (detail.as_str(), remedy.as_str()),
            ("no TLS with h:8883: the name is wrong (it is: x)", "check HostName (a: b)")
        );
        let (detail, remedy) = apart("the hub at h:8883 is unavailable (CONNACK 3: throttling)");
        assert_eq!(detail, "the hub at h:8883 is unavailable (CONNACK 3: throttling)");
        assert!(remedy.starts_with("try again"), "{remedy}");
    }
}
