//! Certificates that the service issues: the hub's answers, and the request that goes along with a registration.
//!
//! Owns: how many answers may wait for the agent, and when a wish for a registration may count. Must not know: topics,
//! what an answer says.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt as _;
use tokio::sync::Notify;
use tokio::time::{Instant, sleep_until};

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
    wanted: Notify,
    /// Until when the service wants to be left alone.
    rest_until: Mutex<Option<Instant>>,
}

impl NextRegistration {
    /// `csr`: a request for a certificate, in base64 of its DER.
    pub(super) fn set(&self, csr: Option<String>) {
        // Without a request, a wish that still waits has nothing to ask for, nor with the request of a later key.
        if csr.is_none() {
            self.fulfilled();
        }
        *self.csr.lock().unwrap_or_else(PoisonError::into_inner) = csr;
    }

    /// Wishes for one. If the service asked for a pause, it counts after that.
    pub(super) fn want(&self) {
        self.wanted.notify_one();
    }

    /// The service asked for a pause. `fraction` is a random number from 0 to 1, which keeps a thousand devices apart.
    pub(super) fn rest(&self, pause: Duration, fraction: f64) {
        let until = Instant::now() + pause.mul_f64(1.0 + fraction.clamp(0.0, 1.0));
        *self.rest_until.lock().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    /// Waits for a wish, and until the service may be asked. Cancel safe.
    pub(super) async fn wanted(&self) {
        let rest_until = *self.rest_until.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(until) = rest_until {
            sleep_until(until).await;
        }
        self.wanted.notified().await;
    }

    /// There was one: a wish that came meanwhile is fulfilled, too.
    pub(super) fn fulfilled(&self) {
        let _earlier_wish = self.wanted.notified().now_or_never();
    }

    pub(super) fn csr(&self) -> Option<String> {
        self.csr.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}
