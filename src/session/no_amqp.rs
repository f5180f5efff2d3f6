//! AMQP in a build without it. The configuration refuses AMQP earlier, so this code never runs.
//!
//! Owns: nothing. Must not know: anything.

use std::sync::Arc;

use tokio::sync::watch;

use super::PublishError;
use super::arrivals::Arrivals;
use super::calls::Calls;
use super::failure::Fault;
use super::mqtt::{Dial, Progress};
use super::outbox::{Outbox, Publisher};
use super::settlements::Settlements;
use super::signin::SignIn;

pub(super) struct Connection {
    pub(super) settlements: Arc<Settlements>,
    pub(super) calls: Arc<Calls>,
    pub(super) outbox: Arc<Outbox>,
    pub(super) progress: watch::Receiver<Progress>,
}

pub(super) struct Reader {
    _progress: watch::Sender<Progress>,
}

impl Connection {
    pub(super) fn prepare(_dial: Dial, _arrivals: Arrivals, publisher: &Arc<Publisher>) -> (Self, Reader) {
        let hand = |_upstream, _request| Err(PublishError::Lost);
        let outbox = Arc::new(Outbox::new(Box::new(hand), Arc::clone(publisher)));
        let (_progress, progress) = watch::channel(Progress::default());
        let (settlements, calls) = (Arc::new(Settlements::new()), Arc::new(Calls::new(Box::new(|_| false))));
        (Self { settlements, calls, outbox, progress }, Reader { _progress })
    }

    pub(super) fn hang_up(&self) -> bool {
        false
    }

    pub(super) fn renew(&self, _sign_in: &SignIn) -> bool {
        false
    }
}

impl Reader {
    pub(super) async fn run(self) -> Result<(), Fault> {
        Err(Fault::Protocol { reason: "this program is built without the feature amqp".into() })
    }

    pub(super) async fn sign_in_and_out(self) -> Result<(), Fault> {
        self.run().await
    }
}
