//! A scraper for tests: HTTP over a plain socket, and figures as the Prometheus project's parser reads them.
//!
//! Owns: requests, answers, single figures. Must not know: what the agent measures.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Instant;

use crate::harness::{DEADLINE, Process};

/// An answer over HTTP.
pub(crate) struct Answer {
    /// The status line and the headers, in lower case.
    pub(crate) head: String,
    pub(crate) body: String,
}

impl Answer {
    /// The value of a figure, such as `c2d_agent_pin_on{pin="led"}`.
    pub(crate) fn figure(&self, name: &str) -> Option<f64> {
        let line = self.body.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.map(|value| value.parse().expect("a number"))
    }
}

/// The address where a running agent serves its metrics, from its log.
pub(crate) fn address(agent: &Process) -> SocketAddr {
    let line = agent.stderr.wait_for("metrics are served");
    let address = line.split_once("address=").map(|(_, address)| address.trim());
    address.and_then(|address| address.parse().ok()).unwrap_or_else(|| panic!("no address in {line}"))
}

/// Connects. The test fails if an answer takes too long.
pub(crate) fn connect(to: SocketAddr) -> TcpStream {
    let stream = TcpStream::connect(to).expect("it listens");
    stream.set_read_timeout(Some(DEADLINE)).expect("a socket");
    stream
}

/// Sends a request as it is and reads the answer to its end. `None` if the connection was cut instead.
pub(crate) fn ask(to: SocketAddr, request: &[u8]) -> Option<Answer> {
    let mut stream = connect(to);
    // The endpoint may refuse a request before it is sent completely.
    drop(stream.write_all(request));
    let mut answer = Vec::new();
    // The connection may also be cut at the end of the answer; the bytes before that count.
    drop(stream.read_to_end(&mut answer));
    let text = String::from_utf8(answer).expect("text");
    let (head, body) = text.split_once("\r\n\r\n")?;
    Some(Answer { head: head.to_lowercase(), body: body.to_owned() })
}

/// `GET /metrics`, which must succeed.
pub(crate) fn scrape(from: SocketAddr) -> Answer {
    let answer = ask(from, b"GET /metrics HTTP/1.1\r\nHost: gateway\r\n\r\n").expect("an answer");
    assert!(answer.head.starts_with("http/1.1 200 "), "{}\n{}", answer.head, answer.body);
    answer
}

/// Scrapes until a figure has a value.
pub(crate) fn wait_for_figure(from: SocketAddr, name: &str, value: f64) -> Answer {
    let end = Instant::now() + DEADLINE;
    loop {
        let answer = scrape(from);
        if answer.figure(name) == Some(value) {
            return answer;
        }
        assert!(Instant::now() < end, "{name} does not become {value}:\n{}", answer.body);
        std::thread::park_timeout(std::time::Duration::from_millis(20)); // a figure has no event: poll
    }
}
