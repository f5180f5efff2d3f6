//! Direct methods: calls of back ends to devices.
//!
//! Owns: which device a call is for. Must not know: topics, links, HTTP, and who waits. A listener asks again after a
//! change of the hub, or at the time that it was given.

use std::time::SystemTime;

use super::calls::{BackEndCall, CallError, CallId, CallProgress, MethodRequest};
use super::session::{ConnectionId, Subscription};
use super::state::Hub;

impl Hub {
    /// Accepts a call. [`Hub::method_progress`] reports its end; a caller that no longer waits must call
    /// [`Hub::forget_method`].
    ///
    /// # Errors
    /// [`CallError`]; in this case there is no call.
    pub fn call_method(
        &mut self,
        device_id: &str,
        call: BackEndCall,
        now: SystemTime,
    ) -> Result<CallId, CallError> {
        let shown: String = device_id.chars().take(128).collect();
        let id = CallId(self.next_id());
        let Some(state) = self.devices.passing_mut(device_id) else {
            return Err(CallError::UnknownDevice(shown));
        };
        state.calls.push(&shown, id, call, now)?;
        self.wake(device_id);
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
        let state = self.current_passing(device_id, connection)?;
        state.session.granted(Subscription::Methods)?;
        state.calls.next(connection, now)
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
        let state = self.current_passing(device_id, connection);
        let answered = state.is_some_and(|state| state.calls.answer(connection, id, status, body));
        if answered {
            self.wake(device_id);
        }
        answered
    }

    /// The state of a call. A call that is over is removed.
    pub fn method_progress(&mut self, device_id: &str, id: CallId, now: SystemTime) -> CallProgress {
        match self.devices.passing_mut(device_id) {
            Some(state) => {
                let progress = state.calls.progress(&state.session, id, now);
                // A job may wait for its place.
                self.version += u64::from(matches!(progress, CallProgress::Done(_)));
                progress
            }
            None => CallProgress::Done(Err(CallError::Gone)),
        }
    }

    /// Removes a call that no caller waits for. If it is over, nothing happens.
    pub fn forget_method(&mut self, device_id: &str, id: CallId) {
        if let Some(state) = self.devices.passing_mut(device_id)
            && state.calls.forget(id)
        {
            self.version += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::calls::{MAX_CALLS, MAX_PAYLOAD};
    use super::super::tests::{NOW, after, connect, hub};
    use super::*;
    use std::time::Duration;

    fn call(name: &str) -> BackEndCall {
        let payload = serde_json::from_str(r#"{"b": 1,  "a": 2}"#).expect("JSON");
        let (response_timeout, connect_timeout) = (Duration::from_secs(30), Duration::from_secs(10));
        BackEndCall { name: name.to_owned(), payload, response_timeout, connect_timeout }
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
            CallProgress::Pending(until) => Err(until.duration_since(now).expect("in the future")),
            CallProgress::Done(Ok(answer)) => Ok(Ok((answer.status, answer.payload.get().to_owned()))),
            CallProgress::Done(Err(error)) => Ok(Err(error)),
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
        hub.disconnect("dev1", newer, NOW);
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
            (BackEndCall { payload: large, ..call("x") }, "131074 bytes"),
            (
                BackEndCall { response_timeout: seconds(4), ..call("x") },
                "responseTimeoutInSeconds must be 5 to 300",
            ),
            (BackEndCall { response_timeout: seconds(301), ..call("x") }, "responseTimeoutInSeconds"),
            (
                BackEndCall { connect_timeout: seconds(301), ..call("x") },
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
