//! Calls of direct methods on one connection, over any transport: the open calls, and the answers that are ready.
//!
//! Owns: that each call is answered once, how many may be open, and the answers to calls that the agent does not take.
//! Must not know: MQTT packets, AMQP messages, what a method does.
//! Source: wire reference 1.7, 2.7.
//!
//! An answer leaves in one of two ways. Between two polls the reading task takes all that are ready
//! ([`Calls::take_ready`]), also while it waits for room for a message. While the task is parked in `poll()`, the
//! first answer goes through the client's request channel, which wakes the task; the other answers wait until it is on
//! the wire. Answers need no order among themselves. See [`Gate`].

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::delivery::{Delivery, Receipt};
use super::gate::{Answers, Books, Gate, GateState, Phase};
use crate::message::{C2dMessage, excerpt};

/// How many calls of one connection may wait for their answers.
pub(super) const OPEN_CALLS: usize = 64;
/// The largest payload of a call and of its answer. Source: wire reference 6.1.
pub(super) const PAYLOAD_LIMIT: usize = 128 * 1024;

const BAD_REQUEST: u16 = 400;
const TOO_LARGE: u16 = 413;
const BUSY: u16 = 429;
const UNAVAILABLE: u16 = 503;

const TOO_MANY: &str = "too many calls are running: call again later";
const NOT_NOW: &str = "the call was not carried out: the agent is ending, signs in again or changes its configuration; \
                       call again later";

/// A call as the hub sends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CallRequest {
    /// None when it is not text.
    pub(super) name: Option<String>,
    /// Opaque: the answer carries it unchanged.
    pub(super) id: String,
    pub(super) payload: Bytes,
}

/// An answer to be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct CallAnswer {
    pub(super) id: String,
    pub(super) status: u16,
    pub(super) payload: Bytes,
}

/// Hands an answer to a parked `poll()`; false if it could not.
pub(super) type AnswerHandOver = Box<dyn Fn(&CallAnswer) -> bool + Send + Sync>;

/// One connection as its calls see it.
pub(super) type Calls = Gate<OpenCalls>;

/// The books of [`Calls`].
pub(super) struct OpenCalls {
    /// The ids that wait for an answer; at most [`OPEN_CALLS`].
    open: BTreeSet<String>,
    /// At most one per call that was open, and one per call that was refused within one poll.
    ready: Vec<CallAnswer>,
    hand_over: AnswerHandOver,
    /// The warning about a repeated id was logged.
    warned: bool,
}

impl Books for OpenCalls {
    fn open(&self) -> usize {
        self.open.len()
    }

    fn is_ready(&mut self) -> bool {
        !self.ready.is_empty()
    }

    fn close(&mut self) {
        self.ready.clear();
    }
}

impl GateState<OpenCalls> {
    fn push(&mut self, answer: CallAnswer) {
        if self.phase != Phase::Closed && !self.ring(|books| (books.hand_over)(&answer)) {
            self.books.ready.push(answer);
        }
    }
}

impl Calls {
    pub(super) fn new(hand_over: AnswerHandOver) -> Self {
        Self::with_books(OpenCalls { open: BTreeSet::new(), ready: Vec::new(), hand_over, warned: false })
    }

    /// For the reading task: hands a call on, or answers it if that is not possible. Never waits. `connection` as in
    /// [`Delivery`].
    pub(super) fn hand_on(
        self: &Arc<Self>,
        request: CallRequest,
        connection: u64,
        calls: &mpsc::Sender<Delivery>,
    ) {
        let CallRequest { name, id, payload } = request;
        if !self.open(&id) {
            return;
        }
        let receipt = Receipt::of_call(self.clone(), id);
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return receipt.answer(BAD_REQUEST, error("the method has no name, or one that is not UTF-8"));
        };
        if payload.len() > PAYLOAD_LIMIT {
            return receipt.answer(TOO_LARGE, error(&too_large("payload", payload.len())));
        }
        // The hub's request ids repeat, so none of them can name a call for ever.
        let message_id = format!("method-{:032x}", fastrand::u128(..));
        let message = Ok(C2dMessage::of_method(&name, &message_id, payload));
        let (origin, redelivered, sequence, arrived) = (None, false, None, Instant::now());
        match calls.try_send(Delivery {
            message,
            origin,
            connection,
            redelivered,
            sequence,
            arrived,
            receipt,
        }) {
            Ok(()) => {}
            Err(mpsc::error::TrySendError::Full(delivery)) => {
                delivery.receipt.answer(BUSY, error(TOO_MANY));
            }
            Err(mpsc::error::TrySendError::Closed(delivery)) => delivery.receipt.leave(),
        }
    }

    /// Registers a call. False if it was answered at once, or is ignored because a call with this id is still open.
    fn open(&self, id: &str) -> bool {
        let mut opened = false;
        self.change(|state| {
            let OpenCalls { open, warned, .. } = &mut state.books;
            if open.contains(id) {
                if !std::mem::replace(warned, true) {
                    let id = excerpt(id);
                    tracing::warn!(id, "ignored a call: a call with this request id is still running");
                }
                return;
            }
            let (status, reason) = match state.phase {
                Phase::Open if open.len() < OPEN_CALLS => {
                    opened = open.insert(id.to_owned());
                    return;
                }
                Phase::Open => (BUSY, TOO_MANY),
                Phase::Draining | Phase::Closed => (UNAVAILABLE, NOT_NOW),
            };
            state.push(CallAnswer { id: id.to_owned(), status, payload: error(reason) });
        });
        opened
    }

    /// For the reading task between two polls: the answers to send now.
    pub(super) fn take_ready(&self) -> Vec<CallAnswer> {
        self.take(|state| std::mem::take(&mut state.books.ready))
    }
}

impl Answers for Calls {
    fn phase(&self) -> Phase {
        Gate::phase(self)
    }

    fn answer(&self, id: &str, status: u16, payload: Bytes) -> Phase {
        self.change(|state| {
            if !state.books.open.remove(id) {
                return;
            }
            let payload = match payload.len() {
                ..=PAYLOAD_LIMIT => payload,
                bytes => error(&too_large("answer", bytes)),
            };
            state.push(CallAnswer { id: id.to_owned(), status, payload });
        })
    }

    fn leave(&self, id: &str) -> Phase {
        self.answer(id, UNAVAILABLE, error(NOT_NOW))
    }
}

/// The payload of an answer that the method itself did not give.
fn error(reason: &str) -> Bytes {
    json!({ "error": reason }).to_string().into()
}

fn too_large(what: &str, bytes: usize) -> String {
    format!("the {what} has {bytes} bytes, more than the {PAYLOAD_LIMIT} that a method may have")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::session::gate::Ends as _;
    use futures_util::FutureExt as _;
    use std::sync::Mutex;

    /// Calls that record their wake-ups.
    fn calls() -> (Arc<Calls>, Arc<Mutex<Vec<String>>>) {
        let sent = Arc::new(Mutex::new(Vec::new()));
        let record = Arc::clone(&sent);
        let wake = move |answer: &CallAnswer| {
            record.lock().expect("unpoisoned").push(answer.id.clone());
            true
        };
        (Arc::new(Calls::new(Box::new(wake))), sent)
    }

    fn request(id: &str) -> CallRequest {
        CallRequest { name: Some("pump".into()), id: id.into(), payload: Bytes::from_static(b"{}") }
    }

    fn said(answers: Vec<CallAnswer>) -> Vec<(String, u16)> {
        answers.into_iter().map(|answer| (answer.id, answer.status)).collect()
    }

    #[test]
    fn an_answer_wakes_a_parked_reader_once_and_the_others_leave_with_it() {
        let (calls, sent) = calls();
        let (to, mut from) = mpsc::channel(4);
        for id in ["1", "2", "3"] {
            calls.hand_on(request(id), 1, &to);
        }
        let mut receipts = std::iter::from_fn(|| from.try_recv().ok()).map(|delivery| delivery.receipt);
        let [first, second, third] = [(); 3].map(|()| receipts.next().expect("a call"));
        first.answer(200, Bytes::new());
        assert!(!calls.park(), "one is ready");
        assert_eq!(said(calls.take_ready()), [("1".into(), 200)]);
        assert!(calls.park());
        second.answer(201, Bytes::new());
        third.answer(202, Bytes::new());
        assert_eq!(*sent.lock().expect("unpoisoned"), ["2"]);
        calls.unpark();
        assert_eq!(said(calls.take_ready()), [("3".into(), 202)]);
        calls.woken();
    }

    #[test]
    fn what_nobody_takes_is_answered_and_an_id_under_way_is_passed_over() {
        let (calls, _) = calls();
        let (to, mut from) = mpsc::channel(OPEN_CALLS - 1);
        for id in 0..=OPEN_CALLS {
            calls.hand_on(request(&id.to_string()), 1, &to);
        }
        // The channel had no room for either of these.
        let busy = said(calls.take_ready());
        assert_eq!(busy, [(63.to_string(), 429), (64.to_string(), 429)]);
        calls.hand_on(request("0"), 1, &to);
        assert_eq!(calls.take_ready(), [], "it is under way");
        drop(from.try_recv().expect("a call"));
        from.try_recv().expect("a call").receipt.leave();
        assert_eq!(said(calls.take_ready()), [("0".into(), 503), ("1".into(), 503)]);
        while let Ok(delivery) = from.try_recv() {
            delivery.receipt.answer(200, Bytes::new());
        }
        assert_eq!(calls.take_ready().len(), OPEN_CALLS - 3);
        calls.hand_on(CallRequest { name: None, ..request("x") }, 1, &to);
        calls.hand_on(CallRequest { payload: vec![0; PAYLOAD_LIMIT + 1].into(), ..request("y") }, 1, &to);
        drop(from);
        calls.hand_on(request("z"), 1, &to);
        assert_eq!(said(calls.take_ready()), [("x".into(), 400), ("y".into(), 413), ("z".into(), 503)]);
    }

    #[tokio::test]
    async fn a_call_is_waited_for_while_draining_and_a_closed_connection_answers_nothing() {
        let (calls, _) = calls();
        let (to, mut from) = mpsc::channel(4);
        calls.hand_on(request("1"), 1, &to);
        calls.hand_on(request("2"), 1, &to);
        let (first, second) = (from.try_recv().expect("a call"), from.try_recv().expect("a call"));
        assert!(first.receipt.is_current());
        calls.stop_taking();
        assert!(!first.receipt.is_current());
        calls.hand_on(request("3"), 1, &to);
        assert_eq!(said(calls.take_ready()), [("3".into(), 503)]);
        let mut drained = std::pin::pin!(calls.drained());
        assert!(drained.as_mut().now_or_never().is_none(), "two are open");
        first.receipt.answer(200, vec![b'1'; PAYLOAD_LIMIT + 1].into());
        assert!(drained.as_mut().now_or_never().is_none(), "one is open");
        let [answer] = <[CallAnswer; 1]>::try_from(calls.take_ready()).expect("one answer");
        assert_eq!(answer.status, 200);
        assert!(String::from_utf8_lossy(&answer.payload).contains("the answer has 131073 bytes"));
        calls.close();
        second.receipt.answer(200, Bytes::new());
        drained.await;
        assert_eq!(calls.take_ready(), []);
    }
}
