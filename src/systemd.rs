//! systemd: the messages of this process to the service manager.
//!
//! Owns: everything that names the `sd_notify` crate: readiness, reloads, the status line, the watchdog.
//! Must not know: what the agent does.
//!
//! Without `NOTIFY_SOCKET` in the environment no message is sent. A thread sends, because the socket's queue may be
//! full while the manager is busy, and the agent's loop must not wait for it.
//! Source of the messages: sd_notify(3), sd_watchdog_enabled(3).

use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use sd_notify::NotifyState;

/// Most messages that wait. There are more only while the manager does not read.
const QUEUE: usize = 32;
/// How long the last messages may take.
const LAST_WORDS: Duration = Duration::from_millis(100);

/// The connection to the service manager. A drop waits up to [`LAST_WORDS`] for the messages that are left.
#[derive(Debug, Default)]
pub(crate) struct Systemd {
    sender: Option<SyncSender<Message>>,
    /// Closed when the thread ends.
    ended: Option<Receiver<()>>,
    watchdog: Option<Duration>,
    status: String,
}

#[derive(Debug)]
enum Message {
    Ready,
    Reloading,
    Stopping,
    Alive,
    Status(String),
}

impl Systemd {
    /// Connects to the service manager that the environment names, if there is one.
    pub(crate) fn from_environment() -> Self {
        if std::env::var_os("NOTIFY_SOCKET").is_none_or(|path| path.is_empty()) {
            return Self::default();
        }
        let (sender, messages) = sync_channel(QUEUE);
        let (running, ended) = sync_channel(1); // carries no value: it only tells the end of the thread
        let thread = std::thread::Builder::new().name("systemd".to_owned());
        if let Err(error) = thread.spawn(move || send_all(&messages, running)) {
            tracing::error!(%error, "cannot send messages to systemd: the thread for it cannot start");
            return Self::default();
        }
        let watchdog = sd_notify::watchdog_enabled().filter(|limit| !limit.is_zero());
        Self { sender: Some(sender), ended: Some(ended), watchdog, status: String::new() }
    }

    /// Whether a service manager listens.
    pub(crate) fn listens(&self) -> bool {
        self.sender.is_some()
    }

    /// How often to call [`Systemd::alive`]: twice within the manager's limit. `None` without a watchdog.
    pub(crate) fn watchdog_interval(&self) -> Option<Duration> {
        self.watchdog.map(|limit| limit / 2)
    }

    /// The service is ready, or ready again after [`Systemd::reloading`].
    pub(crate) fn ready(&mut self) {
        self.send(Message::Ready);
    }

    /// The configuration is being read; [`Systemd::ready`] follows.
    pub(crate) fn reloading(&mut self) {
        self.send(Message::Reloading);
    }

    /// The service is about to end.
    pub(crate) fn stopping(&mut self) {
        self.send(Message::Stopping);
    }

    /// The agent's loop runs.
    pub(crate) fn alive(&mut self) {
        self.send(Message::Alive);
    }

    /// One line for `systemctl status`. It is sent only when it changes.
    pub(crate) fn status(&mut self, status: String) {
        if self.listens() && self.status != status {
            self.status.clone_from(&status);
            self.send(Message::Status(status));
        }
    }

    fn send(&mut self, message: Message) {
        let Some(sender) = &self.sender else { return };
        match sender.try_send(message) {
            Ok(()) => {}
            Err(TrySendError::Full(message)) => {
                tracing::warn!(?message, "systemd does not read messages: dropped one");
                // The dropped message may be a status, so the next status is sent even if it is the same.
                self.status.clear();
            }
            // The thread has ended, and has logged the reason.
            Err(TrySendError::Disconnected(_)) => self.sender = None,
        }
    }
}

impl Drop for Systemd {
    fn drop(&mut self) {
        self.sender = None;
        let Some(ended) = &self.ended else { return };
        if ended.recv_timeout(LAST_WORDS) == Err(RecvTimeoutError::Timeout) {
            tracing::debug!("systemd did not read the last messages in time");
        }
    }
}

/// Sends each message until the channel closes or a message cannot be sent. The drop of `running` tells the end.
fn send_all(messages: &Receiver<Message>, running: SyncSender<()>) {
    for message in messages {
        let sent = match &message {
            Message::Ready => sd_notify::notify(&[NotifyState::Ready]),
            Message::Reloading => NotifyState::monotonic_usec_now()
                .and_then(|now| sd_notify::notify(&[NotifyState::Reloading, now])),
            Message::Stopping => sd_notify::notify(&[NotifyState::Stopping]),
            Message::Alive => sd_notify::notify(&[NotifyState::Watchdog]),
            Message::Status(status) => sd_notify::notify(&[NotifyState::Status(&one_line(status))]),
        };
        if let Err(error) = sent {
            tracing::error!(%error, "cannot send messages to systemd: NOTIFY_SOCKET does not accept them");
            break;
        }
    }
    drop(running);
}

/// The text on one line, because a line break would begin another message.
fn one_line(text: &str) -> String {
    text.replace(char::is_control, " ")
}
