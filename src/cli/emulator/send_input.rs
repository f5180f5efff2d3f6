//! `emulator send-input`: a message for an input of a module, as if a route had brought it.
//!
//! Owns: its arguments and its line of output. Must not know: HTTPS.

use serde_json::{Map, Value, json};

use super::running::{RunningArgs, failure};
use crate::cli::shown::{Output, plain};
use crate::cli::{Exit, Failure};

/// Send a message to an input of a module of the running emulator, as if a route had brought it.
///
/// On an edge device, other modules send to inputs, by the routes of the deployment manifest; a program outside the device
/// cannot.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  c2d-agent emulator send-input --device edge1 --module c2d-agent \\
    --input commands --property level=high

Exit codes: 0 the message waits for the module; 1 an error, for example no emulator is running, or it has no such module; 2 the \
arguments are wrong, or the directory is not a state directory.")]
pub(super) struct SendInputArgs {
    /// The edge device.
    #[arg(long, value_name = "ID")]
    device: String,
    /// The module of the device.
    #[arg(long, value_name = "ID")]
    module: String,
    /// The input of the module.
    #[arg(long, value_name = "NAME")]
    input: String,
    /// An application property; may be given several times.
    #[arg(long = "property", value_name = "K=V", value_parser = property)]
    properties: Vec<(String, String)>,
    /// The body, as text [default: empty].
    #[arg(
        long,
        value_name = "TEXT",
        default_value = "",
        hide_default_value = true,
        allow_hyphen_values = true
    )]
    data: String,
    /// The message id [default: a random UUID].
    #[arg(long, value_name = "ID")]
    message_id: Option<String>,
    #[command(flatten)]
    running: RunningArgs,
}

/// Sends the message.
///
/// # Errors
/// When no emulator answers, or it refuses the message.
pub(super) fn run(args: &SendInputArgs) -> Result<Exit, Failure> {
    let client = args.running.client()?;
    let properties: Map<String, Value> =
        args.properties.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect();
    let mut message = json!({ "properties": properties, "body": args.data });
    if let Some(id) = &args.message_id {
        message["messageId"] = id.as_str().into();
    }
    let SendInputArgs { device, module, input, .. } = args;
    super::super::block_on(async {
        let sent = client.send_input(device, module, input, &message).await.map_err(failure)?;
        let mut out = Output::new();
        if args.running.json {
            out.json(&sent)?;
        } else {
            let id = plain(sent["messageId"].as_str().unwrap_or_default());
            out.line(&format!("message {id}  input {input} of module {module} of device {device}"))?;
        }
        out.flush()?;
        Ok(Exit::Done)
    })
}

fn property(text: &str) -> Result<(String, String), String> {
    let pair = text.split_once('=').ok_or("write NAME=VALUE")?;
    Ok((pair.0.to_owned(), pair.1.to_owned()))
}
