//! Serving the clients of the control socket.
//!
//! Owns: how many there may be, how much and how long each may ask. Must not know: what the answers are.

use std::io::{self, Write as _};
use std::time::Duration;

use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::Request;
use super::wire::{ANSWER_LIMIT, Answer, Call, MAX_PAGE, MAX_REQUEST_BYTES, line};
use crate::inbox::Query;

/// Clients that are served at once.
pub(super) const MAX_CLIENTS: usize = 4;
/// How long a client may take for its next request, from the first wait to the line feed.
const IDLE_LIMIT: Duration = Duration::from_secs(30);
/// How long to wait when the kernel gives no connection, for want of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);

/// Lets clients in, for ever. Dropped, all clients are cut off.
pub(super) async fn accept(listener: UnixListener, requests: mpsc::Sender<Request>) {
    let mut clients = JoinSet::new();
    loop {
        let accepted = listener.accept().await;
        // Those that have hung up make room.
        while let Some(ended) = clients.try_join_next() {
            if let Err(error) = ended {
                tracing::error!(%error, "a client of the control socket could not be served: please report this");
            }
        }
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

/// Tells one client too many. The first bytes on a connection never block.
fn refuse(stream: UnixStream) {
    let sentence = format!("{MAX_CLIENTS} others are asking this agent right now: try again in a moment");
    let told = stream.into_std().and_then(|mut stream| stream.write_all(&line(&Answer::Error(sentence))));
    if let Err(error) = told {
        tracing::debug!(%error, "a client of the control socket could not be told that there are too many");
    }
}

/// What a client sent.
enum Line {
    Whole(Vec<u8>),
    TooLong,
    /// It has hung up.
    End,
}

/// Serves one client until it hangs up or does what it should not.
async fn serve(mut stream: UnixStream, requests: mpsc::Sender<Request>) {
    let (reader, mut writer) = stream.split();
    let mut reader = BufReader::new(reader);
    loop {
        let (answer, go_on) = match timeout(IDLE_LIMIT, read_line(&mut reader)).await {
            Ok(Ok(Line::End)) => return,
            Ok(Err(error)) => return tracing::debug!(%error, "a client of the control socket is gone"),
            Err(_elapsed) => {
                let sentence = format!("there was no request for {} s", IDLE_LIMIT.as_secs());
                (Answer::Error(sentence), false)
            }
            Ok(Ok(Line::TooLong)) => {
                (Answer::Error(format!("a request is at most {MAX_REQUEST_BYTES} bytes long")), false)
            }
            Ok(Ok(Line::Whole(text))) => match serde_json::from_slice(&text) {
                Ok(call) => (answer(call, &requests).await, true),
                Err(error) => (Answer::Error(format!("this is not a request: {error}")), false),
            },
        };
        // A client that does not read its answer is cut off.
        match timeout(ANSWER_LIMIT, writer.write_all(&line(&answer))).await {
            Ok(Ok(())) if go_on => {}
            _ => return,
        }
    }
}

/// One line, of which never more than its limit is kept.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Line> {
    let mut text = Vec::new();
    reader.take(MAX_REQUEST_BYTES).read_until(b'\n', &mut text).await?;
    Ok(match text.last() {
        Some(b'\n') => Line::Whole(text),
        Some(_) if text.len() as u64 == MAX_REQUEST_BYTES => Line::TooLong,
        // What has no line feed before the end was cut off.
        _ => Line::End,
    })
}

/// Hands a request to the agent and waits for what it says.
async fn answer(call: Call, requests: &mpsc::Sender<Request>) -> Answer {
    let asked = async {
        match call {
            Call::Status {} => {
                let (sender, answer) = oneshot::channel();
                requests.send(Request::Status(sender)).await.ok()?;
                answer.await.ok().map(|status| Answer::Status(Box::new(status)))
            }
            Call::Query(query) => {
                let (sender, answer) = oneshot::channel();
                requests.send(Request::Query(bounded(query), sender)).await.ok()?;
                answer.await.ok().map(|reply| Answer::Reply(Box::new(reply.into())))
            }
        }
    };
    match timeout(ANSWER_LIMIT, asked).await {
        Ok(Some(answer)) => answer,
        Ok(None) => Answer::Error("the agent is stopping".to_owned()),
        Err(_elapsed) => Answer::Error(format!(
            "the inbox gave no answer within {} s, and may still do what was asked: `c2d-agent status` says whether it \
             is in trouble",
            ANSWER_LIMIT.as_secs()
        )),
    }
}

/// An answer has room for so many records only; whoever asks for more asks again.
fn bounded(query: Query) -> Query {
    match query {
        Query::List { state, after, limit } => Query::List { state, after, limit: limit.min(MAX_PAGE) },
        query => query,
    }
}
