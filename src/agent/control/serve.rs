//! Serves the clients of the control socket.
//!
//! Owns: how many clients there may be, and how much and how long each may ask. Must not know: what the answers say.

use std::io::{self, Write as _};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::wire::{ANSWER_LIMIT, ControlAnswer, ControlCall, MAX_PAGE, MAX_REQUEST_BYTES, line};
use crate::agent::status::Status;
use crate::inbox::{Query, Reply};

/// Most clients at once.
pub(super) const MAX_CLIENTS: usize = 4;
/// How long a client may take for its next request, up to and including the line feed.
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// How long to wait if the kernel gives no connection, because descriptors have run out.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// What a client wants. The agent may drop an answer that no client waits for any more.
#[derive(Debug)]
pub(crate) enum ControlRequest {
    Status(oneshot::Sender<Status>),
    Query(Query, oneshot::Sender<Reply>),
}

/// Accepts clients for ever. When it is dropped, all clients are cut off.
pub(super) async fn accept(listener: UnixListener, requests: mpsc::Sender<ControlRequest>) {
    let mut clients = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        // Clients that have hung up make room.
        while clients.try_join_next().is_some() {}
        match accepted {
            Ok((stream, _)) if clients.len() < MAX_CLIENTS => {
                clients.spawn(serve(stream, requests.clone()));
            }
            Ok((stream, _)) => refuse(stream),
            Err(error) => {
                tracing::warn!(%error, "the control socket cannot accept connections");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Tells a client that there are too many. The first bytes on a connection never block.
fn refuse(stream: UnixStream) {
    let sentence = format!("{MAX_CLIENTS} others are asking this agent right now: try again in a moment");
    let told =
        stream.into_std().and_then(|mut stream| stream.write_all(&line(&ControlAnswer::Error(sentence))));
    if let Err(error) = told {
        tracing::debug!(%error, "a client of the control socket could not be told that there are too many");
    }
}

/// What a client sent.
enum ClientLine {
    Whole(Vec<u8>),
    TooLong,
    /// The client has hung up.
    End,
}

/// Serves one client until it hangs up or breaks a limit.
async fn serve(mut stream: UnixStream, requests: mpsc::Sender<ControlRequest>) {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    loop {
        let (answer, go_on) = match timeout(IDLE_LIMIT, read_line(&mut reader)).await {
            Ok(Ok(ClientLine::End)) => return,
            Ok(Err(error)) => return tracing::debug!(%error, "a client of the control socket is gone"),
            Err(_elapsed) => {
                let sentence = format!("there was no request for {} s", IDLE_LIMIT.as_secs());
                (ControlAnswer::Error(sentence), false)
            }
            Ok(Ok(ClientLine::TooLong)) => {
                (ControlAnswer::Error(format!("a request is at most {MAX_REQUEST_BYTES} bytes long")), false)
            }
            Ok(Ok(ClientLine::Whole(text))) => match serde_json::from_slice(&text) {
                Ok(call) => (answer(call, &requests).await, true),
                Err(error) => (ControlAnswer::Error(format!("this is not a request: {error}")), false),
            },
        };
        // A client that does not read its answer is cut off.
        match timeout(ANSWER_LIMIT, writer.write_all(&line(&answer))).await {
            Ok(Ok(())) if go_on => {}
            _ => return,
        }
    }
}

/// Reads one line, and never keeps more of it than the limit.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<ClientLine> {
    let mut text = Vec::new();
    reader.take(MAX_REQUEST_BYTES).read_until(b'\n', &mut text).await?;
    Ok(match text.last() {
        Some(b'\n') => ClientLine::Whole(text),
        Some(_) if text.len() as u64 == MAX_REQUEST_BYTES => ClientLine::TooLong,
        // Without a line feed before the end, the line was cut off.
        _ => ClientLine::End,
    })
}

/// Hands a request to the agent and waits for the answer.
async fn answer(call: ControlCall, requests: &mpsc::Sender<ControlRequest>) -> ControlAnswer {
    let asked = async {
        match call {
            ControlCall::Status {} => {
                let (sender, answer) = oneshot::channel();
                requests.send(ControlRequest::Status(sender)).await.ok()?;
                answer.await.ok().map(|status| ControlAnswer::Status(Box::new(status)))
            }
            ControlCall::Query(query) => {
                let (sender, answer) = oneshot::channel();
                requests.send(ControlRequest::Query(bounded(query), sender)).await.ok()?;
                answer.await.ok().map(|reply| ControlAnswer::Reply(Box::new(reply.into())))
            }
        }
    };
    match timeout(ANSWER_LIMIT, asked).await {
        Ok(Some(answer)) => answer,
        Ok(None) => ControlAnswer::Error("the agent is stopping".to_owned()),
        Err(_elapsed) => ControlAnswer::Error(format!(
            "the inbox gave no answer within {} s, and may still do what was asked: `c2d-agent status` says whether it \
             is in trouble",
            ANSWER_LIMIT.as_secs()
        )),
    }
}

/// An answer has room for a limited number of records. A client that wants more asks again.
fn bounded(query: Query) -> Query {
    match query {
        Query::List { state, after, limit } => Query::List { state, after, limit: limit.min(MAX_PAGE) },
        query => query,
    }
}
