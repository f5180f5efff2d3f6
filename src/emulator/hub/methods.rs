//! Direct methods: calls from back ends to a device, and the answers to them.
//!
//! Owns: which calls of a device are pending, how long each may take, and how it ends. Must not know: topics, links,
//! HTTP, and who waits. A listener asks again after a change of the hub, or at the time that it was given.
//!
//! Source: wire reference 1.7 and Microsoft's page "Understand and invoke direct methods from IoT Hub". A device can
//! take calls if it is connected and has subscribed to methods. Choices where these are silent: [`MAX_CALLS`],
//! [`MAX_NAME`], and that an answer which is not JSON ends the call with an error.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use serde_json::value::RawValue;

use super::session::Session;
use super::{ConnectionId, DeviceState, Hub, Subscription};

/// Largest payload of a call, and largest payload of an answer, in bytes.
pub const MAX_PAYLOAD: usize = 128 * 1024;

/// Most pending calls of one device.
pub const MAX_CALLS: usize = 16;

/// Longest name of a method, in bytes.
pub const MAX_NAME: usize = 100;

/// The shortest response time-out that a back end may set.
pub const MIN_RESPONSE_TIMEOUT: Duration = Duration::from_secs(5);

/// The longest response time-out and the longest connect time-out that a back end may set.
pub const MAX_METHOD_TIMEOUT: Duration = Duration::from_secs(300);

/// A call from a back end.
#[derive(Debug)]
pub struct MethodCall {
    /// The method's name.
    pub name: String,
    /// The payload: JSON that the device gets unchanged.
    pub payload: Box<RawValue>,
    /// How long the device may take to answer.
    pub response_timeout: Duration,
    /// How long to wait for the device to connect and subscribe.
    pub connect_timeout: Duration,
}

/// The id of a call. A hub never uses an id twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallId(u64);

impl CallId {
    /// The id as a number, for protocols that send it to clients.
    pub fn number(self) -> u64 {
        self.0
    }

    /// The id with this number, whether the call is pending or not.
    pub fn from_number(number: u64) -> Self {
        Self(number)
    }
}

/// A call on its way to a device.
#[derive(Debug)]
pub struct MethodRequest {
    /// The id that the answer must contain.
    pub id: CallId,
    /// The method's name.
    pub name: String,
    /// The payload as JSON.
    pub payload: Box<RawValue>,
}

/// What a device answered.
#[derive(Debug)]
pub struct MethodAnswer {
    /// The status that the device chose.
    pub status: i32,
    /// The payload as JSON; null if the device sent nothing.
    pub payload: Box<RawValue>,
}

/// The state of a call.
#[derive(Debug)]
pub enum Progress {
    /// The call is pending. It ends at this time at the latest, unless the hub changes.
    Pending(SystemTime),
    /// The call is over, and the hub has removed it.
    Done(Result<MethodAnswer, CallError>),
}

/// Why a call has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CallError {
    /// The device does not exist. Hub code 404001.
    #[error("the hub has no device \"{0}\"")]
    UnknownDevice(String),
    /// The call breaks a rule; the text says which. The device has not received it.
    #[error("{0}")]
    Argument(String),
    /// Hub code 429001.
    #[error("device \"{0}\" has {MAX_CALLS} pending calls already: wait until one of them ends")]
    TooManyCalls(String),
    /// The device did not connect in time. It has not received the call. Hub code 404103.
    #[error("Timed out waiting for device to connect.")]
    NotOnline(Duration),
    /// The device's connection ended, or the device was deleted or disabled, before it answered. It may have run the
    /// method. So the hub code is 504101, the one for no answer, and not the one for an absent device. This is a
    /// choice.
    #[error("The device's connection ended before it answered.")]
    Gone,
    /// Hub code 504101.
    #[error("Timed out waiting for the response from device.")]
    TimedOut,
    /// The hub cannot pass on the device's answer.
    #[error("The device's answer cannot be passed on: {0}.")]
    BadAnswer(String),
}

/// The pending calls of one device, oldest first. At most [`MAX_CALLS`].
#[derive(Debug, Default)]
pub(super) struct Calls(VecDeque<Pending>);

#[derive(Debug)]
struct Pending {
    id: CallId,
    called: SystemTime,
    response_timeout: Duration,
    connect_timeout: Duration,
    state: State,
}

#[derive(Debug)]
enum State {
    Waiting { name: String, payload: Box<RawValue> },
    Sent { by: ConnectionId, at: SystemTime },
    Answered(Result<MethodAnswer, CallError>),
}

impl Pending {
    fn is_waiting(&self) -> bool {
        matches!(self.state, State::Waiting { .. })
    }

    /// When the call ends if nothing happens, and with which error.
    fn end(&self, session: &Session) -> (SystemTime, CallError) {
        let connect_end = self.called + self.connect_timeout;
        match self.state {
            State::Sent { at, .. } => (at + self.response_timeout, CallError::TimedOut),
            // The device is connected but does not take the call.
            _ if takes_methods(session) => (connect_end + self.response_timeout, CallError::TimedOut),
            _ => (connect_end, CallError::NotOnline(self.connect_timeout)),
        }
    }
}

fn takes_methods(session: &Session) -> bool {
    session.is_connected() && session.granted(Subscription::Methods).is_some()
}

impl DeviceState {
    fn progress(&mut self, id: CallId, now: SystemTime) -> Progress {
        let Self { calls: Calls(calls), session, .. } = self;
        let Some(at) = calls.iter().position(|call| call.id == id) else {
            return Progress::Done(Err(CallError::Gone));
        };
        let over = match calls.get(at).map(|call| (&call.state, call.end(session))) {
            Some((State::Answered(_), _)) => None,
            Some((State::Sent { by, .. }, _)) if !session.is_current(*by) => Some(CallError::Gone),
            Some((_, (end, _))) if now < end => return Progress::Pending(end),
            Some((_, (_, error))) => Some(error),
            None => Some(CallError::Gone),
        };
        let call = calls.remove(at);
        Progress::Done(match (over, call.map(|call| call.state)) {
            (None, Some(State::Answered(answer))) => answer,
            (error, _) => Err(error.unwrap_or(CallError::Gone)),
        })
    }
}

impl Hub {
    /// Accepts a call. [`Hub::method_progress`] reports its end; a caller that no longer waits must call
    /// [`Hub::forget_method`].
    ///
    /// # Errors
    /// [`CallError`]; in this case there is no call.
    pub fn call_method(
        &mut self,
        device_id: &str,
        call: MethodCall,
        now: SystemTime,
    ) -> Result<CallId, CallError> {
        let shown = || device_id.chars().take(128).collect::<String>();
        let id = CallId(self.next_id());
        let state = self.devices.get_mut(device_id).ok_or_else(|| CallError::UnknownDevice(shown()))?;
        call.check().map_err(CallError::Argument)?;
        let Calls(calls) = &mut state.calls;
        if calls.len() >= MAX_CALLS {
            return Err(CallError::TooManyCalls(shown()));
        }
        let MethodCall { name, payload, response_timeout, connect_timeout } = call;
        let state = State::Waiting { name, payload };
        calls.push_back(Pending { id, called: now, response_timeout, connect_timeout, state });
        self.version += 1;
        Ok(id)
    }

    /// The next call for the device; `connection` must send it now. `None` if there is none, if the device has not
    /// subscribed to methods, or if `connection` is no longer its connection.
    pub fn next_method(
        &mut self,
        device_id: &str,
        connection: ConnectionId,
        now: SystemTime,
    ) -> Option<MethodRequest> {
        let state = self.current(device_id, connection)?;
        state.session.granted(Subscription::Methods)?;
        let Calls(calls) = &mut state.calls;
        let call = calls.iter_mut().find(|call| call.is_waiting())?;
        match std::mem::replace(&mut call.state, State::Sent { by: connection, at: now }) {
            State::Waiting { name, payload } => Some(MethodRequest { id: call.id, name, payload }),
            State::Sent { .. } | State::Answered(_) => None,
        }
    }

    /// Stores the device's answer to a call that `connection` has sent it. Returns whether a caller waits for it.
    pub fn answer_method(
        &mut self,
        device_id: &str,
        connection: ConnectionId,
        id: CallId,
        status: i32,
        body: &[u8],
    ) -> bool {
        let Some(state) = self.current(device_id, connection) else { return false };
        let Calls(calls) = &mut state.calls;
        let sent = |state: &State| matches!(state, State::Sent { by, .. } if *by == connection);
        let Some(call) = calls.iter_mut().find(|call| call.id == id && sent(&call.state)) else {
            return false;
        };
        call.state = State::Answered(answer(status, body));
        self.version += 1;
        true
    }

    /// The state of a call. A call that is over is removed.
    pub fn method_progress(&mut self, device_id: &str, id: CallId, now: SystemTime) -> Progress {
        match self.devices.get_mut(device_id) {
            Some(state) => state.progress(id, now),
            None => Progress::Done(Err(CallError::Gone)),
        }
    }

    /// Removes a call that no caller waits for. If it is over, nothing happens.
    pub fn forget_method(&mut self, device_id: &str, id: CallId) {
        if let Some(DeviceState { calls: Calls(calls), .. }) = self.devices.get_mut(device_id) {
            calls.retain(|call| call.id != id);
        }
    }
}

impl MethodCall {
    fn check(&self) -> Result<(), String> {
        let bytes = self.payload.get().len();
        if self.name.is_empty() || self.name.len() > MAX_NAME || self.name.contains(char::is_control) {
            return Err(format!("methodName must have 1 to {MAX_NAME} bytes, without control characters"));
        }
        if bytes > MAX_PAYLOAD {
            return Err(format!("the payload has {bytes} bytes, more than {MAX_PAYLOAD}"));
        }
        let (least, most) = (MIN_RESPONSE_TIMEOUT, MAX_METHOD_TIMEOUT);
        if !(least..=most).contains(&self.response_timeout) {
            let (least, most) = (least.as_secs(), most.as_secs());
            return Err(format!("responseTimeoutInSeconds must be {least} to {most}"));
        }
        if self.connect_timeout > most {
            return Err(format!("connectTimeoutInSeconds must be 0 to {}", most.as_secs()));
        }
        Ok(())
    }
}

fn answer(status: i32, body: &[u8]) -> Result<MethodAnswer, CallError> {
    let bytes = body.len();
    if bytes > MAX_PAYLOAD {
        return Err(CallError::BadAnswer(format!("it has {bytes} bytes, more than {MAX_PAYLOAD}")));
    }
    let text = if body.is_empty() { b"null" } else { body };
    match serde_json::from_slice(text) {
        Ok(payload) => Ok(MethodAnswer { status, payload }),
        Err(error) => Err(CallError::BadAnswer(format!("it is not JSON: {error}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{NOW, after, connect, hub};
    use super::*;

    fn call(name: &str) -> MethodCall {
        let payload = serde_json::from_str(r#"{"b": 1,  "a": 2}"#).expect("JSON");
        let (response_timeout, connect_timeout) = (Duration::from_secs(30), Duration::from_secs(10));
        MethodCall { name: name.to_owned(), payload, response_timeout, connect_timeout }
    }

    fn begin(hub: &mut Hub, name: &str) -> CallId {
        hub.call_method("dev1", call(name), NOW).expect("taken")
    }

    fn there(hub: &mut Hub) -> ConnectionId {
        let connection = connect(hub, false);
        assert!(hub.subscribe("dev1", connection, Subscription::Methods, 0));
        connection
    }

    /// The end of a call, or how much longer it may take.
    fn progress(
        hub: &mut Hub,
        id: CallId,
        now: SystemTime,
    ) -> Result<Result<(i32, String), CallError>, Duration> {
        match hub.method_progress("dev1", id, now) {
            Progress::Pending(until) => Err(until.duration_since(now).expect("in the future")),
            Progress::Done(Ok(answer)) => Ok(Ok((answer.status, answer.payload.get().to_owned()))),
            Progress::Done(Err(error)) => Ok(Err(error)),
        }
    }

    #[test]
    fn a_call_goes_to_the_device_as_it_was_sent_and_its_answer_comes_back_so() {
        let mut hub = hub();
        let connection = there(&mut hub);
        let (first, second) = (begin(&mut hub, "one"), begin(&mut hub, "two"));
        let sent = [0, 1].map(|_| hub.next_method("dev1", connection, after(1)).expect("a call"));
        assert_eq!(sent[0].payload.get(), r#"{"b": 1,  "a": 2}"#);
        assert_eq!([0, 1].map(|n| (sent[n].id, sent[n].name.as_str())), [(first, "one"), (second, "two")]);
        assert!(hub.next_method("dev1", connection, after(1)).is_none());
        assert_eq!(progress(&mut hub, first, after(1)), Err(Duration::from_secs(30)));
        assert!(hub.answer_method("dev1", connection, second, -7, br#"{"y": 1, "x": 1e400}"#));
        assert!(!hub.answer_method("dev1", connection, second, 0, b"1"), "the second answer to a call");
        assert!(hub.answer_method("dev1", connection, first, 204, b""));
        assert_eq!(progress(&mut hub, first, after(500)), Ok(Ok((204, "null".to_owned()))));
        assert_eq!(
            progress(&mut hub, second, after(500)),
            Ok(Ok((-7, r#"{"y": 1, "x": 1e400}"#.to_owned())))
        );
        assert_eq!(progress(&mut hub, second, after(500)), Ok(Err(CallError::Gone)), "it is forgotten");
    }

    #[test]
    fn a_device_that_does_not_come_or_does_not_listen_is_waited_for_as_long_as_it_was_asked() {
        let mut hub = hub();
        let id = begin(&mut hub, "one");
        assert_eq!(progress(&mut hub, id, NOW), Err(Duration::from_secs(10)));
        let connection = connect(&mut hub, false);
        assert!(hub.next_method("dev1", connection, NOW).is_none(), "connected, not subscribed");
        assert_eq!(progress(&mut hub, id, after(9)), Err(Duration::from_secs(1)));
        let ten = Duration::from_secs(10);
        assert_eq!(progress(&mut hub, id, after(10)), Ok(Err(CallError::NotOnline(ten))));
        // The device subscribes in time, and then has the full time to answer.
        let id = begin(&mut hub, "two");
        assert!(hub.subscribe("dev1", connection, Subscription::Methods, 0));
        hub.next_method("dev1", connection, after(9)).expect("a call");
        assert_eq!(progress(&mut hub, id, after(38)), Err(Duration::from_secs(1)));
        assert_eq!(progress(&mut hub, id, after(39)), Ok(Err(CallError::TimedOut)));
        assert!(!hub.answer_method("dev1", connection, id, 200, b"1"), "too late");
        // The device is connected, but does not take the call.
        let id = begin(&mut hub, "three");
        assert_eq!(progress(&mut hub, id, after(11)), Err(Duration::from_secs(29)));
        assert_eq!(progress(&mut hub, id, after(40)), Ok(Err(CallError::TimedOut)));
    }

    #[test]
    fn a_device_that_goes_away_ends_its_call_at_once_and_no_other_connection_answers_it() {
        let mut hub = hub();
        let connection = there(&mut hub);
        let (sent, waiting) = (begin(&mut hub, "sent"), begin(&mut hub, "waiting"));
        hub.next_method("dev1", connection, NOW).expect("a call");
        let newer = there(&mut hub);
        assert!(!hub.answer_method("dev1", connection, sent, 200, b"1"));
        assert!(!hub.answer_method("dev1", newer, sent, 200, b"1"));
        assert_eq!(progress(&mut hub, sent, NOW), Ok(Err(CallError::Gone)));
        assert_eq!(hub.next_method("dev1", newer, NOW).expect("a call").id, waiting);
        hub.disconnect("dev1", newer);
        assert_eq!(progress(&mut hub, waiting, NOW), Ok(Err(CallError::Gone)));
        let id = begin(&mut hub, "removed");
        hub.remove_device("dev1");
        assert_eq!(progress(&mut hub, id, NOW), Ok(Err(CallError::Gone)));
    }

    #[test]
    fn calls_are_counted_and_a_forgotten_one_makes_room() {
        let mut hub = hub();
        let ids: Vec<CallId> = (0..MAX_CALLS).map(|_| begin(&mut hub, "one")).collect();
        let refused = hub.call_method("dev1", call("one"), NOW).expect_err("full");
        assert_eq!(refused, CallError::TooManyCalls("dev1".into()));
        hub.forget_method("dev1", ids[3]);
        begin(&mut hub, "one");
        assert_eq!(hub.call_method("none", call("one"), NOW), Err(CallError::UnknownDevice("none".into())));
    }

    #[test]
    fn a_call_that_breaks_a_rule_is_not_taken_and_a_bad_answer_is_told_to_the_caller() {
        let mut hub = hub();
        let connection = there(&mut hub);
        let seconds = Duration::from_secs;
        let large = serde_json::from_str(&format!("\"{}\"", "x".repeat(MAX_PAYLOAD))).expect("JSON");
        for (refused, part) in [
            (call(""), "methodName"),
            (call(&"x".repeat(101)), "methodName"),
            (call("a\nb"), "methodName"),
            (MethodCall { payload: large, ..call("x") }, "131074 bytes"),
            (
                MethodCall { response_timeout: seconds(4), ..call("x") },
                "responseTimeoutInSeconds must be 5 to 300",
            ),
            (MethodCall { response_timeout: seconds(301), ..call("x") }, "responseTimeoutInSeconds"),
            (
                MethodCall { connect_timeout: seconds(301), ..call("x") },
                "connectTimeoutInSeconds must be 0 to 300",
            ),
        ] {
            let refused = hub.call_method("dev1", refused, NOW).expect_err(part).to_string();
            assert!(refused.contains(part), "{refused}");
        }
        for body in [&b"no JSON"[..], b"\"\xff\"", &[b'1'; MAX_PAYLOAD + 1]] {
            let id = begin(&mut hub, "x");
            hub.next_method("dev1", connection, NOW).expect("a call");
            assert!(hub.answer_method("dev1", connection, id, 200, body));
            assert!(matches!(progress(&mut hub, id, NOW), Ok(Err(CallError::BadAnswer(_)))));
        }
    }
}
