//! Twins as back ends read them.
//!
//! Owns: the routes below `/twins/{id}`. Must not know: connections, merging. Used by: `https::routes`.

use super::call::Call;
use super::reply::{self, Refusal, Reply};

/// `GET /twins/{id}`.
pub(super) fn get(call: &Call) -> Result<Reply, Refusal> {
    call.service()?;
    let device_id = call.segment(1);
    let twin = call.hub.with(|hub, _| hub.twin(device_id));
    Ok(twin.map_or_else(|| reply::no_device(device_id), |twin| reply::ok(&twin)))
}
