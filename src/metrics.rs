//! Metrics: figures about this process, for a scraper, as OpenMetrics text over HTTP.
//!
//! Owns: the shapes of figures, the endpoint with its limits, the text. Must not know: what is measured.
//!
//! No figures are kept here. Each request for `/metrics` comes out of [`Endpoint::next`] as a [`Scrape`], and the owner
//! of the figures answers it with the present ones. So no lock is needed, and a scraper sees when the owner is stuck.
//!
//! - `endpoint` serves HTTP, `text` writes the figures. In a build without the feature `full`, `absent` takes their
//!   place and says so.

use std::io;
use std::net::SocketAddr;

use tokio::sync::oneshot;

#[cfg(not(feature = "full"))]
mod absent;
#[cfg(feature = "full")]
mod endpoint;
#[cfg(feature = "full")]
mod text;

#[cfg(not(feature = "full"))]
pub(crate) use absent::Endpoint;
#[cfg(feature = "full")]
pub(crate) use endpoint::Endpoint;

/// A request for the present figures. A request whose client has gone may be dropped.
#[derive(Debug)]
pub(crate) struct Scrape(oneshot::Sender<Vec<Metric>>);

impl Scrape {
    pub(crate) fn answer(self, metrics: Vec<Metric>) {
        // Fails if the client has gone.
        drop(self.0.send(metrics));
    }
}

/// One metric with all its figures.
#[derive(Debug)]
#[allow(dead_code)] // read only in builds with the endpoint
pub(crate) struct Metric {
    /// Without the program's name as prefix, and without the suffixes for unit and kind.
    pub(crate) name: &'static str,
    pub(crate) unit: Option<Unit>,
    /// One sentence.
    pub(crate) help: &'static str,
    pub(crate) figures: Figures,
}

/// The unit of a metric that counts neither things nor states. It becomes a part of the metric's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unit {
    Seconds,
    Bytes,
}

/// Pairs of name and value that distinguish the figures of a metric, such as `rule` and `pump`.
pub(crate) type Labels = Vec<(&'static str, String)>;

/// The figures of one metric.
#[derive(Debug)]
#[allow(dead_code)] // read only in builds with the endpoint
pub(crate) enum Figures {
    /// A number that only grows while the process lives.
    Counter(Vec<(Labels, u64)>),
    Gauge(Vec<(Labels, f64)>),
    Histogram(Vec<(Labels, Histogram)>),
    /// A fact in its labels.
    Info(Labels),
}

/// The upper bounds of [`Histogram`], in seconds: from setting a pin to a program that runs for an hour.
const BOUNDS: [f64; 9] = [0.001, 0.01, 0.1, 1.0, 10.0, 30.0, 60.0, 600.0, 3600.0];

/// How long many runs took.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Histogram {
    /// How many runs took at most each of [`BOUNDS`] and more than the one before; the last entry is above all bounds.
    counts: [u64; BOUNDS.len() + 1],
    sum: f64,
}

impl Histogram {
    /// Adds one run.
    pub(crate) fn observe(&mut self, seconds: f64) {
        let at = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        if let Some(count) = self.counts.get_mut(at) {
            *count += 1;
        }
        self.sum += seconds;
    }
}

/// Why the endpoint cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MetricsError {
    /// This build has no endpoint.
    #[error("{}; or remove [metrics]", crate::features::FULL.lacks("[metrics]"))]
    #[allow(dead_code)] // made only in builds without the endpoint
    NotBuilt,
    /// The kernel refuses the address.
    #[error("metrics cannot be served at {listen}: {reason}")]
    #[allow(dead_code)] // made only in builds with the endpoint
    Listen { listen: SocketAddr, reason: String },
}

impl MetricsError {
    /// Whether another attempt may succeed.
    pub(crate) fn may_pass(&self) -> bool {
        matches!(self, Self::Listen { .. })
    }

    #[allow(dead_code)] // as above
    fn listen(listen: SocketAddr, error: &io::Error) -> Self {
        let reason = match error.kind() {
            io::ErrorKind::AddrInUse => {
                "the port is in use: stop what listens there, or set [metrics] listen to another one"
                    .to_owned()
            }
            io::ErrorKind::PermissionDenied => {
                "ports below 1024 need privileges: set [metrics] listen to another one".to_owned()
            }
            io::ErrorKind::AddrNotAvailable => {
                "this machine has no such address: set [metrics] listen to one of its own, such as 127.0.0.1"
                    .to_owned()
            }
            _ => format!("{error}: set [metrics] listen to another address"),
        };
        Self::Listen { listen, reason }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_histogram_counts_each_time_once() {
        let mut histogram = Histogram::default();
        for seconds in [0.0, 0.001, 0.0011, 3600.0, 3600.1, 100_000.0] {
            histogram.observe(seconds);
        }
        assert_eq!(histogram.counts, [2, 1, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert!((histogram.sum - 107_200.102_1).abs() < 1e-6, "{}", histogram.sum);
    }

    #[test]
    fn an_error_names_the_address_and_the_remedy() {
        let listen = "127.0.0.1:80".parse().expect("an address");
        let said = |kind: io::ErrorKind| MetricsError::listen(listen, &kind.into()).to_string();
        assert_eq!(
            said(io::ErrorKind::AddrInUse),
            "metrics cannot be served at 127.0.0.1:80: the port is in use: stop what listens there, or set [metrics] \
             listen to another one"
        );
        assert!(said(io::ErrorKind::PermissionDenied).contains("below 1024"));
    }
}
