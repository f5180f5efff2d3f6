//! The spelling of header names in an answer.
//!
//! Owns: how hyper learns it. Must not know: which headers there are.
//!
//! hyper writes all names in small letters. HTTP allows that, but the C SDK compares case by case: it finds `ETag` and
//! not `etag` (Azure/azure-iot-sdk-c, `iothubtransporthttp.c`; Azure/azure-c-shared-utility, `map.c`).

use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper::http::Extensions;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;

/// hyper's smallest buffer.
const MIN_BUFFER: usize = 8 * 1024;

/// The names of an answer's headers as they are spelled on the wire, in the order in which they were added.
#[derive(Debug, Clone, Default)]
pub(super) struct SpelledNames(Vec<String>);

impl SpelledNames {
    /// Adds a valid name of a header.
    pub(super) fn push(&mut self, name: &str) {
        self.0.push(name.to_owned());
    }

    /// What an answer's extensions must have for hyper to write these names so. If hyper gives nothing, it is empty, and
    /// the log says so. Does not wait.
    ///
    /// hyper keeps the spelling of a request in an extension that only its parser can make, and it spells an answer by
    /// the same extension. So hyper parses a request with these names, from memory.
    pub(super) async fn for_hyper(self) -> Extensions {
        let lines: String = self.0.iter().map(|name| format!("{name}:\r\n")).collect();
        let head = format!("GET / HTTP/1.1\r\n{lines}\r\n");
        let kept = Mutex::new(Extensions::new());
        let service = service_fn(|request: Request<Incoming>| {
            *kept.lock().unwrap_or_else(PoisonError::into_inner) = request.extensions().clone();
            std::future::ready(Ok::<_, Infallible>(Response::new(Empty::<Bytes>::new())))
        });
        let memory = TokioIo::new(tokio::io::join(head.as_bytes(), tokio::io::sink()));
        let parsed = http1::Builder::new()
            .preserve_header_case(true)
            .max_headers(self.0.len())
            .max_buf_size(head.len().max(MIN_BUFFER))
            .serve_connection(memory, service)
            .await;
        let kept = kept.into_inner().unwrap_or_else(PoisonError::into_inner);
        if kept.is_empty() {
            tracing::warn!(?parsed, "the names of headers go out in small letters");
        }
        kept
    }
}
