//! The message of `c2d-send`.
//!
//! Owns: its arguments, and the checks that need no hub. Must not know: who gets it, what it waits for.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, anyhow};

use super::property;
use crate::cli::back_end::{self, duration};
use crate::feedback::DeliveryAck;
use crate::fleet::{MessageTemplate, check_text};
use crate::message::MAX_C2D_BYTES;

/// The hub keeps no message longer. Source: wire reference 5.1.
pub(super) const LONGEST_EXPIRY: Duration = Duration::from_secs(2 * 24 * 3600);

// Not a doc comment, which would become part of the help of the command.
// What all messages have in common.
#[derive(Debug, clap::Args)]
pub(super) struct MessageArgs {
    /// An application property; may be given several times.
    #[arg(long = "property", value_name = "K=V", value_parser = property::parse)]
    properties: Vec<(String, String)>,
    /// The body, as text. Without --data and --file the body is empty.
    #[arg(long, value_name = "TEXT", conflicts_with = "file", allow_hyphen_values = true)]
    data: Option<String>,
    /// The body, from a file; - is standard input.
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// The message id [default: a random UUID; of many messages, the UUID of the run with the device or the number].
    #[arg(long, value_name = "ID")]
    message_id: Option<String>,
    /// The correlation id: the id of a related message.
    #[arg(long, value_name = "ID")]
    correlation_id: Option<String>,
    /// The user id of the sender.
    #[arg(long, value_name = "ID")]
    user_id: Option<String>,
    /// The type of the body, such as application/json.
    #[arg(long, value_name = "TYPE")]
    content_type: Option<String>,
    /// The encoding of the body, such as utf-8.
    #[arg(long, value_name = "ENCODING")]
    content_encoding: Option<String>,
    /// Which outcomes the hub reports: none, positive, negative or full. [default: none; full with --wait and
    /// --wait-outcome]
    #[arg(long, value_name = "LEVEL")]
    ack: Option<DeliveryAck>,
    /// How long the hub may keep the message, such as 10m; at most 2 days [default: the hub's, 1 hour].
    #[arg(long, value_name = "DURATION", value_parser = duration)]
    expiry: Option<Duration>,
}

impl MessageArgs {
    /// Builds what the messages have in common. `waiting` is the option that waits for feedback.
    ///
    /// # Errors
    /// When an argument is wrong.
    pub(super) fn template(&self, waiting: Option<&str>) -> anyhow::Result<MessageTemplate> {
        let texts = [
            ("--correlation-id", &self.correlation_id),
            ("--user-id", &self.user_id),
            ("--content-type", &self.content_type),
            ("--content-encoding", &self.content_encoding),
        ];
        for (option, text) in texts.into_iter().filter_map(|(option, text)| Some((option, text.as_ref()?))) {
            check_text(text).map_err(|reason| anyhow!("{option} {reason}"))?;
        }
        if let Some(expiry) = self.expiry.filter(|expiry| *expiry > LONGEST_EXPIRY) {
            let given = humantime::format_duration(expiry);
            return Err(anyhow!("--expiry is {given}, but the hub keeps no message longer than 2 days"));
        }
        let ack = match (self.ack, waiting) {
            (Some(DeliveryAck::None), Some(option)) => {
                return Err(anyhow!(
                    "{option} needs feedback, but --ack none asks for none: leave --ack out, or use --ack full"
                ));
            }
            (Some(ack), _) => ack,
            (None, Some(_)) => DeliveryAck::Full,
            (None, None) => DeliveryAck::None,
        };
        Ok(MessageTemplate {
            message_id: self.message_id.clone(),
            correlation_id: self.correlation_id.clone(),
            user_id: self.user_id.clone(),
            content_type: self.content_type.clone(),
            content_encoding: self.content_encoding.clone(),
            expiry: self.expiry,
            ack,
            properties: self.application_properties()?,
            body: self.body()?,
        })
    }

    /// Whether the body comes from standard input.
    pub(super) fn is_from_stdin(&self) -> bool {
        self.file.as_ref().is_some_and(|path| path.as_os_str() == "-")
    }

    fn application_properties(&self) -> anyhow::Result<Vec<(String, String)>> {
        for (number, (name, _)) in self.properties.iter().enumerate() {
            if self.properties.iter().take(number).any(|(other, _)| other == name) {
                return Err(anyhow!("--property {name} is given twice: give each name once"));
            }
        }
        Ok(self.properties.clone())
    }

    fn body(&self) -> anyhow::Result<Vec<u8>> {
        // Reads one byte above the limit, to tell a body that is too long from one that just fits.
        let limit = MAX_C2D_BYTES as u64 + 1;
        let mut body = Vec::new();
        match (&self.data, &self.file) {
            (Some(text), _) => body = text.clone().into_bytes(),
            (None, Some(path)) if path.as_os_str() == "-" => {
                let read = std::io::stdin().take(limit).read_to_end(&mut body);
                read.context("cannot read the body from standard input")?;
            }
            (None, Some(path)) => {
                let file = std::fs::File::open(path);
                file.and_then(|file| file.take(limit).read_to_end(&mut body))
                    .map_err(|error| back_end::unreadable("body", path, &error))?;
            }
            (None, None) => {}
        }
        if body.len() > MAX_C2D_BYTES {
            return Err(anyhow!(
                "the body has more than {MAX_C2D_BYTES} bytes (64 KiB), the most that a C2D message may have: send \
                 less, or send a link to the data"
            ));
        }
        Ok(body)
    }
}
