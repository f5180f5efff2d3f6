//! The endpoint of a build without the feature `full`: it cannot be opened, and its error says how to get one.
//!
//! Owns: nothing. Must not know: anything.

use std::convert::Infallible;
use std::net::SocketAddr;

use super::{MetricsError, Scrape};

/// No value of this type exists.
#[derive(Debug)]
pub(crate) struct Endpoint(Infallible);

impl Endpoint {
    /// # Errors
    /// Always.
    pub(crate) fn open(_listen: SocketAddr) -> Result<Self, MetricsError> {
        Err(MetricsError::NotBuilt)
    }

    pub(crate) fn address(&self) -> SocketAddr {
        match self.0 {}
    }

    pub(crate) async fn next(&mut self) -> Scrape {
        match self.0 {}
    }

    pub(crate) async fn close(&mut self) {
        match self.0 {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_asks_for_metrics_is_told_how_to_get_them_and_not_to_try_again() {
        let error = Endpoint::open("127.0.0.1:0".parse().expect("an address")).expect_err("there is none");
        assert!(
            error.to_string().contains("[metrics] is not in this program: the Debian package"),
            "{error}"
        );
        assert!(!error.may_pass());
    }
}
