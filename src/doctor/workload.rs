//! The workload API: does it sign for this module, and whom does it say to trust?
//!
//! Owns: that check. Must not know: what else is done with the roots. Used by: `doctor`.

use std::time::SystemTime;

use tokio::time::timeout;

use super::{CHECK_LIMIT, Check, Finding};
use crate::credentials::{DeviceAuth, DeviceIdentity, UnsignedToken};
use crate::workload;

/// Has a token signed that has expired already, and gets the trust bundle, which is given back. `None` for whoever has no
/// workload API.
pub(super) async fn workload(
    identity: &DeviceIdentity,
    offline: bool,
    now: SystemTime,
) -> Option<(Finding, Option<String>)> {
    let DeviceAuth::Workload(access) = &identity.auth else { return None };
    if offline {
        return Some((Check::WorkloadApi.skipped("--offline"), None));
    }
    let text = UnsignedToken::new(&identity.resource(), now).text_to_sign();
    let asked = async { tokio::join!(workload::sign(access, &text), workload::trust_bundle(access)) };
    let socket = access.socket.display();
    let Ok((signed, bundle)) = timeout(CHECK_LIMIT, asked).await else {
        let detail = format!("{socket} does not answer within {} s", CHECK_LIMIT.as_secs());
        let remedy = "look at aziot-edged (iotedge system status), or restart it";
        return Some((Check::WorkloadApi.failed(detail, remedy), None));
    };
    let finding = match (signed, &bundle) {
        (Err(error), _) => Check::WorkloadApi.failed_with(error),
        (Ok(_), Err(error)) => Check::WorkloadApi.failed_with(error),
        (Ok(_), Ok(bundle)) => {
            let roots = crate::config::counted(bundle.matches("-----BEGIN CERTIFICATE-----").count(), "root");
            Check::WorkloadApi.ok(format!("{socket} signs for {}, and gives {roots}", identity.client_id()))
        }
    };
    Some((finding, bundle.ok()))
}
