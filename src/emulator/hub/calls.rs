//! The pending calls of methods of one device, from the back end's request to the device's answer.
//!
//! Owns: limits, time-outs, which connection may answer a call. Must not know: the hub, topics, links, HTTP.
//!
//! Source: wire reference 1.7 and Microsoft's page "Understand and invoke direct methods from IoT Hub". A device can
//! take calls if it is connected and has subscribed to methods. Choices where these are silent: [`MAX_CALLS`],
//! [`MAX_NAME`], and that an answer which is not JSON ends the call with an error.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use serde_json::value::RawValue;

use super::session::{ConnectionId, DeviceSession, Subscription};

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
pub struct BackEndCall {
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
pub struct CallId(pub(super) u64);

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
pub struct DeviceAnswer {
    /// The status that the device chose.
    pub status: i32,
    /// The payload as JSON; null if the device sent nothing.
    pub payload: Box<RawValue>,
}

/// The state of a call.
#[derive(Debug)]
pub enum CallProgress {
    /// The call is pending. It ends at this time at the latest, unless the hub changes.
    Pending(SystemTime),
    /// The call is over, and the hub has removed it.
    Done(Result<DeviceAnswer, CallError>),
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

impl CallError {
    /// The hub's word for the error.
    pub fn word(&self) -> &'static str {
        match self {
            Self::UnknownDevice(_) => "DeviceNotFound",
            Self::Argument(_) => "ArgumentInvalid",
            Self::TooManyCalls(_) => "ThrottlingException",
            Self::NotOnline(_) => "DeviceNotOnline",
            Self::Gone | Self::TimedOut => "GatewayTimeout",
            Self::BadAnswer(_) => "BadDeviceResponse",
        }
    }
}

/// The pending calls of one device, oldest first. At most [`MAX_CALLS`].
#[derive(Debug, Default)]
pub(super) struct PendingCalls(VecDeque<Pending>);

#[derive(Debug)]
struct Pending {
    id: CallId,
    called: SystemTime,
    response_timeout: Duration,
    connect_timeout: Duration,
    state: CallState,
}

#[derive(Debug)]
enum CallState {
    Waiting { name: String, payload: Box<RawValue> },
    Sent { by: ConnectionId, at: SystemTime },
    Answered(Result<DeviceAnswer, CallError>),
}

impl Pending {
    /// When the call ends if nothing happens, and with which error.
    fn end(&self, session: &DeviceSession) -> (SystemTime, CallError) {
        let connect_end = self.called + self.connect_timeout;
        match self.state {
            CallState::Sent { at, .. } => (at + self.response_timeout, CallError::TimedOut),
            // The device is connected but does not take the call.
            _ if takes_methods(session) => (connect_end + self.response_timeout, CallError::TimedOut),
            _ => (connect_end, CallError::NotOnline(self.connect_timeout)),
        }
    }
}

fn takes_methods(session: &DeviceSession) -> bool {
    session.is_connected() && session.granted(Subscription::Methods).is_some()
}

impl PendingCalls {
    /// Adds a call.
    ///
    /// # Errors
    /// [`CallError`]; in this case there is no call.
    pub(super) fn push(
        &mut self,
        device_id: &str,
        id: CallId,
        call: BackEndCall,
        now: SystemTime,
    ) -> Result<(), CallError> {
        call.check().map_err(CallError::Argument)?;
        if self.0.len() >= MAX_CALLS {
            return Err(CallError::TooManyCalls(device_id.to_owned()));
        }
        let BackEndCall { name, payload, response_timeout, connect_timeout } = call;
        let state = CallState::Waiting { name, payload };
        self.0.push_back(Pending { id, called: now, response_timeout, connect_timeout, state });
        Ok(())
    }

    /// The oldest call that waits; `connection` must send it now.
    pub(super) fn next(&mut self, connection: ConnectionId, now: SystemTime) -> Option<MethodRequest> {
        let call = self.0.iter_mut().find(|call| matches!(call.state, CallState::Waiting { .. }))?;
        match std::mem::replace(&mut call.state, CallState::Sent { by: connection, at: now }) {
            CallState::Waiting { name, payload } => Some(MethodRequest { id: call.id, name, payload }),
            CallState::Sent { .. } | CallState::Answered(_) => None,
        }
    }

    /// Stores the answer to a call that `connection` has sent. Returns whether a caller waits for it.
    pub(super) fn answer(&mut self, connection: ConnectionId, id: CallId, status: i32, body: &[u8]) -> bool {
        let sent = |state: &CallState| matches!(state, CallState::Sent { by, .. } if *by == connection);
        let Some(call) = self.0.iter_mut().find(|call| call.id == id && sent(&call.state)) else {
            return false;
        };
        call.state = CallState::Answered(answer(status, body));
        true
    }

    /// The state of a call. A call that is over is removed.
    pub(super) fn progress(&mut self, session: &DeviceSession, id: CallId, now: SystemTime) -> CallProgress {
        let Some(at) = self.0.iter().position(|call| call.id == id) else {
            return CallProgress::Done(Err(CallError::Gone));
        };
        let over = match self.0.get(at).map(|call| (&call.state, call.end(session))) {
            Some((CallState::Answered(_), _)) => None,
            Some((CallState::Sent { by, .. }, _)) if !session.is_current(*by) => Some(CallError::Gone),
            Some((_, (end, _))) if now < end => return CallProgress::Pending(end),
            Some((_, (_, error))) => Some(error),
            None => Some(CallError::Gone),
        };
        let call = self.0.remove(at);
        CallProgress::Done(match (over, call.map(|call| call.state)) {
            (None, Some(CallState::Answered(answer))) => answer,
            (error, _) => Err(error.unwrap_or(CallError::Gone)),
        })
    }

    /// Lets no call last longer than one that begins now, because the clock may have been set back.
    pub(super) fn go_back_to(&mut self, now: SystemTime) {
        for call in &mut self.0 {
            call.called = call.called.min(now);
            if let CallState::Sent { at, .. } = &mut call.state {
                *at = (*at).min(now);
            }
        }
    }

    /// Removes a call that no caller waits for.
    pub(super) fn forget(&mut self, id: CallId) -> bool {
        let before = self.0.len();
        self.0.retain(|call| call.id != id);
        self.0.len() < before
    }
}

impl BackEndCall {
    /// Checks the call against the hub's limits.
    ///
    /// # Errors
    /// The text says which rule is broken.
    pub fn check(&self) -> Result<(), String> {
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

fn answer(status: i32, body: &[u8]) -> Result<DeviceAnswer, CallError> {
    let bytes = body.len();
    if bytes > MAX_PAYLOAD {
        return Err(CallError::BadAnswer(format!("it has {bytes} bytes, more than {MAX_PAYLOAD}")));
    }
    let text = if body.is_empty() { b"null" } else { body };
    match serde_json::from_slice(text) {
        Ok(payload) => Ok(DeviceAnswer { status, payload }),
        Err(error) => Err(CallError::BadAnswer(format!("it is not JSON: {error}"))),
    }
}
