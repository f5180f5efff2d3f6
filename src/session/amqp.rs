//! AMQP 1.0 connections to the hub as a device.
//!
//! Owns: the channels between a connection and its task. In `session`, only this file and the files of its folder name
//! the AMQP crate. Must not know: reconnecting, what is done with messages.
//!
//! Source: wire reference 2. With a key there is no SASL: a token is put to `$cbs`, and another one at each renewal.
//! With a certificate there is only TLS. The twin has a pair of links of its own, and so have methods, if the settings
//! ask for them. Messages come on one link, with credit for as many as the agent's channel has room for. Each message
//! is settled by itself.

use std::sync::Arc;

use tokio::sync::{mpsc, watch};

use super::arrivals::Arrivals;
use super::calls::Calls;
use super::connection::{Connection, Reading, Shared, SignInProgress};
use super::dial::Dial;
use super::publish::{InFlight, Publisher, UNDER_WAY};
use super::upstream::PublishError;

use reader::{AmqpReader, Order};
use settlements::Settlements;

mod cbs;
mod credit;
mod fault;
mod links;
mod message;
mod methods;
mod opened;
mod pair;
mod pending;
mod reader;
mod received;
mod settlements;
mod stream;
mod twin;

/// Orders of the keeper that the task has not seen yet.
const ORDERS: usize = 2;

/// Prepares a connection. Nothing is sent before the task runs.
pub(super) fn prepare(dial: Dial, arrivals: Arrivals, publisher: &Arc<Publisher>) -> (Connection, Reading) {
    let settlements = Arc::new(Settlements::new());
    // The task always listens to `changed()`, so nothing must wake it.
    let calls = Arc::new(Calls::new(Box::new(|_| false)));
    let (publish, upstream) = mpsc::channel(UNDER_WAY);
    let publish = move |upstream, request| {
        publish.try_send((upstream, request)).map_err(|_full_or_gone| PublishError::Lost)
    };
    let in_flight = Arc::new(InFlight::new(Box::new(publish), Arc::clone(publisher)));
    let shared = Shared { gates: [settlements.clone(), calls.clone()], in_flight };
    let (report, progress) = watch::channel(SignInProgress::default());
    let (orders, asked) = mpsc::channel(ORDERS);
    let reader = AmqpReader {
        shared: shared.clone(),
        settlements,
        calls,
        arrivals,
        upstream,
        progress: report,
        orders: asked,
        dial,
    };
    let renewing = orders.clone();
    let renew = move |token: &str| renewing.try_send(Order::Renew(token.to_owned())).is_ok();
    let hang_up = Box::new(move || orders.try_send(Order::HangUp).is_ok());
    (Connection { progress, shared, hang_up, renew: Some(Box::new(renew)) }, Box::pin(reader.run()))
}
