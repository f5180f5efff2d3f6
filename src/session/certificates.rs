//! Certificates that the service issues: the hub's answers, and the request that goes along with a registration.
//!
//! Owns: how many answers may wait for the agent. Must not know: topics, what an answer says.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::sync::Notify;

/// A request has two answers: that the hub is at it, and the chain.
const MOST: usize = 4;

/// One answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct CertificateAnswer {
    /// The id of the request.
    pub(crate) request: String,
    /// As in HTTP.
    pub(crate) status: u16,
    /// JSON.
    pub(crate) body: Bytes,
}

/// Answers that the agent has not seen yet. They may come on any connection.
#[derive(Debug, Default)]
pub(super) struct CertificateAnswers {
    waiting: Mutex<VecDeque<CertificateAnswer>>,
    changed: Notify,
}

impl CertificateAnswers {
    /// Takes an answer. If too many wait, the oldest one goes: the agent asks again.
    pub(super) fn push(&self, answer: CertificateAnswer) {
        let mut waiting = self.lock();
        if waiting.len() == MOST {
            waiting.pop_front();
            tracing::warn!("an answer to a request for a certificate was dropped, because too many came");
        }
        waiting.push_back(answer);
        self.changed.notify_one();
    }

    /// The next answer. Cancel safe.
    pub(super) async fn next(&self) -> CertificateAnswer {
        loop {
            if let Some(answer) = self.lock().pop_front() {
                return answer;
            }
            self.changed.notified().await;
        }
    }

    /// Nothing here can panic while the lock is held, so a poisoned lock holds a sound state.
    fn lock(&self) -> MutexGuard<'_, VecDeque<CertificateAnswer>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What goes along with the next registration, and whether it is wanted now.
#[derive(Debug, Default)]
pub(super) struct NextRegistration {
    csr: Mutex<Option<String>>,
    pub(super) wanted: Notify,
}

impl NextRegistration {
    /// `csr`: a request for a certificate, in base64 of its DER.
    pub(super) fn set(&self, csr: Option<String>) {
        *self.csr.lock().unwrap_or_else(PoisonError::into_inner) = csr;
    }

    /// There was one: a wish that came meanwhile is fulfilled, too.
    pub(super) fn fulfilled(&self) {
        let _earlier_wish = self.wanted.notified().now_or_never();
    }

    pub(super) fn csr(&self) -> Option<String> {
        self.csr.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
