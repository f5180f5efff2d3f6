//! The questions of one registration at the Device Provisioning Service, and the pauses between them.
//!
//! Owns: their order and how many there are. Must not know: topics, HTTP, connections.

use std::future::Future;

use bytes::Bytes;
use tokio::time::Instant;

use super::failure::Fault;
use crate::provisioning::{Assignment, Registration, RegistrationRefusal};

/// The most questions of one registration. Each has a pause before it, so that a service that assigns for ever ends here.
const MOST_QUESTIONS: u32 = 100;

/// What the service says in the end: an assignment, or why there is none.
pub(super) type Answered = Result<Assignment, RegistrationRefusal>;

/// A question.
#[derive(Debug, Clone, Copy)]
pub(super) enum Question<'q> {
    /// Registers.
    Register,
    /// Asks how this operation goes.
    State(&'q str),
}

/// The answer to a question.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct ServiceAnswer {
    pub(super) status: u16,
    /// The text of `retry-after`.
    pub(super) retry_after: Option<String>,
    pub(super) body: Bytes,
}

/// A connection to the service.
pub(super) trait Asks {
    /// Asks, and waits for the answer.
    ///
    /// # Errors
    /// Why the connection failed.
    fn ask(&mut self, question: Question<'_>) -> impl Future<Output = Result<ServiceAnswer, Fault>> + Send;
}

/// Registers, and asks until the service has an answer, or wants a pause beyond `until`.
///
/// # Errors
/// Why the connection failed.
pub(super) async fn register(
    service: &mut impl Asks,
    registration_id: &str,
    until: Instant,
) -> Result<Answered, Fault> {
    let mut operation = None;
    for question in 1..=MOST_QUESTIONS {
        let asked = operation.as_deref().map_or(Question::Register, Question::State);
        let ServiceAnswer { status, retry_after, body } = service.ask(asked).await?;
        let assigning = match Registration::read(registration_id, status, retry_after.as_deref(), &body) {
            Ok(Registration::Assigning(assigning)) => assigning,
            Ok(Registration::Assigned(assignment)) => return Ok(Ok(*assignment)),
            Err(refusal) => return Ok(Err(refusal)),
        };
        let wait_s = assigning.wait.as_secs();
        if Instant::now() + assigning.wait >= until {
            let said = format!(
                "it still assigns after {question} questions, and wants another {wait_s} s, which is longer than one \
                 registration may take"
            );
            return Ok(Err(RegistrationRefusal::Unusable(said)));
        }
        tracing::debug!(question, wait_s, "the provisioning service is assigning a hub");
        tokio::time::sleep(assigning.wait).await;
        operation = Some(assigning.operation_id);
    }
    let said = format!("it still assigns after {MOST_QUESTIONS} questions");
    Ok(Err(RegistrationRefusal::Unusable(said)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    /// A service that assigns for ever.
    struct Undecided {
        asked: Vec<String>,
    }

    impl Asks for Undecided {
        async fn ask(&mut self, question: Question<'_>) -> Result<ServiceAnswer, Fault> {
            self.asked.push(format!("{question:?}"));
            let body = Bytes::from_static(br#"{"operationId":"5.x","status":"assigning"}"#);
            Ok(ServiceAnswer { status: 202, retry_after: Some("3".to_owned()), body })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_service_that_assigns_for_ever_is_asked_with_pauses_and_given_up() {
        let mut service = Undecided { asked: Vec::new() };
        let began = Instant::now();
        let until = began + Duration::from_secs(3600);
        let said = register(&mut service, "reg-01", until).await.expect("answers");
        let said = said.expect_err("no hub").to_string();
        assert!(said.contains("it still assigns after 100 questions"), "{said}");
        assert_eq!((service.asked.len(), &*service.asked[0]), (100, "Register"));
        assert!(service.asked[1..].iter().all(|asked| asked == "State(\"5.x\")"), "{:?}", service.asked);
        assert_eq!(began.elapsed(), Duration::from_secs(300));
    }

    #[tokio::test(start_paused = true)]
    async fn a_pause_beyond_the_end_is_not_waited_for() {
        let mut service = Undecided { asked: Vec::new() };
        let until = Instant::now() + Duration::from_secs(10);
        let said = register(&mut service, "reg-01", until).await.expect("answers");
        let said = said.expect_err("no hub").to_string();
        assert!(said.contains("it still assigns after 4 questions, and wants another 3 s"), "{said}");
        assert!(Instant::now() < until);
    }
}
