//! The workload API of the edge device, as the module will find it: its socket, the roots it gives, its signature.
//!
//! Owns: the verdict on them. Must not know: HTTP, how signatures are used.
//!
//! Both checks are always made: the socket is on this machine, and a signature disconnects no agent.

use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;
use tokio::time::timeout;

use super::certificate::Certificate;
use super::user;
use super::{CHECK_LIMIT, Check, Finding};
use crate::config::counted;
use crate::credentials::WorkloadAccess;
use crate::tls::{self, TlsError};
use crate::workload::{self, WorkloadError};

/// How long the check of the socket may take.
const LIMIT: Duration = Duration::from_secs(2);
/// A text to sign; a signature of it is useless to an attacker.
const SAMPLE: &str = "c2d-agent doctor";
/// Most names of roots that are shown.
const MAX_ROOTS: usize = 3;

/// What a module gets from the workload API.
pub(super) struct Given {
    /// The roots in PEM; `None` if the gateway cannot be trusted.
    pub(super) bundle: Option<String>,
    /// Whether the workload API signs tokens.
    pub(super) signs: bool,
}

/// Checks the socket, and asks for the trust bundle and a signature. Takes at most 7 seconds.
pub(super) async fn examine(access: &WorkloadAccess, tell: &mut impl FnMut(Finding)) -> Given {
    let found = match timeout(LIMIT, socket(&access.socket)).await {
        Ok(found) => found,
        Err(_elapsed) => Check::WorkloadApi.failed(
            format!("{} cannot be examined within {} s", access.socket.display(), LIMIT.as_secs()),
            "look in the system log for a disk or a mount that hangs",
        ),
    };
    let is_there = found.remedy.is_none();
    tell(found);
    if !is_there {
        let reason = "the workload socket cannot be used";
        tell(Check::TrustBundle.skipped(reason));
        tell(Check::Generation.skipped(reason));
        return Given { bundle: None, signs: false };
    }
    let (bundle, signature) = tokio::join!(
        timeout(CHECK_LIMIT, workload::trust_bundle(access)),
        timeout(CHECK_LIMIT, workload::sign(access, SAMPLE))
    );
    let bundle = match bundle {
        Ok(Ok(bundle)) => roots(&bundle).map(|finding| (finding, bundle)),
        Ok(Err(error)) => Err(Check::TrustBundle.failed_with(error)),
        Err(_elapsed) => Err(silent(Check::TrustBundle, access)),
    };
    let bundle = match bundle {
        Ok((finding, bundle)) => {
            tell(finding);
            Some(bundle)
        }
        Err(finding) => {
            tell(finding);
            None
        }
    };
    let signs = matches!(signature, Ok(Ok(_)));
    tell(match signature {
        Ok(signature) => generation(access, signature.map(drop)),
        Err(_elapsed) => silent(Check::Generation, access),
    });
    Given { bundle, signs }
}

async fn socket(path: &Path) -> Finding {
    let check = Check::WorkloadApi;
    let shown = path.display();
    let found = match tokio::fs::metadata(path).await {
        Ok(found) => found,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return check.failed(
                format!("{shown} is not there"),
                "run this in the module's container (docker exec NAME c2d-agent doctor), into which edgeAgent mounts it; on \
                 a machine without IoT Edge unset IOTEDGE_WORKLOADURI",
            );
        }
        Err(error) => return check.failed(format!("cannot look at {shown}: {error}"), as_whom()),
    };
    if !found.file_type().is_socket() {
        return check.failed(
            format!("{shown} is not a socket"),
            "check that aziot-edged runs (iotedge system status), then let edgeAgent make the container \
             again: a container engine mounts a directory if the socket is missing",
        );
    }
    let mode = found.permissions().mode() & 0o7777;
    let whose = format!("{shown}, mode {mode:04o}, of {}", user::named(found.uid()));
    match UnixStream::connect(path).await {
        Ok(_connected) => check.ok(whose),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            check.failed(format!("{} may not connect to {whose}", user::own()), as_whom())
        }
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => check.failed(
            format!("nothing listens on {shown}"),
            "check that aziot-edged runs (iotedge system status); if it was restarted, restart this \
             container, which still has the old socket",
        ),
        Err(error) => check.failed(
            format!("{shown} accepts no connection ({error})"),
            "look at aziot-edged (iotedge system status), or restart it",
        ),
    }
}

fn as_whom() -> String {
    format!("run the agent as a user that the socket's mode allows; checked for {}", user::own())
}

/// Checks whether TLS can use the trust bundle.
fn roots(bundle: &str) -> Result<Finding, Finding> {
    let check = Check::TrustBundle;
    let remedy = "check the certificates of this edge device (trust_bundle_cert and edge_ca in /etc/aziot/config.toml)";
    if let Err(error) = tls::client_config_trusting(None, bundle) {
        let reason = match error {
            TlsError::Bundle { reason } => reason,
            other => other.to_string(),
        };
        return Err(check.failed(format!("it cannot be used: {reason}"), remedy));
    }
    let roots = tls::read_bundle(bundle).unwrap_or_default();
    if roots.is_empty() {
        return Ok(check.warning("it is empty, so only the roots of this system are trusted", remedy));
    }
    let names =
        roots.iter().filter_map(|der| Certificate::read(der)).map(|root| format!("\"{}\"", root.subject));
    let names: Vec<_> = names.take(MAX_ROOTS).collect();
    let more = if roots.len() > MAX_ROOTS { ", …" } else { "" };
    Ok(check.ok(format!("{}: {}{more}", counted(roots.len(), "root"), names.join(", "))))
}

fn generation(access: &WorkloadAccess, signed: Result<(), WorkloadError>) -> Finding {
    let check = Check::Generation;
    let WorkloadAccess { module_id, generation_id, .. } = access;
    match signed {
        Ok(()) => check.ok(format!("{generation_id}: the workload API signs for {module_id}")),
        Err(WorkloadError::Gone { status, said, .. }) => check.failed(
            format!(
                "the workload API does not sign for {module_id} in generation {generation_id} (status \
                 {status}: {said}): the module was redeployed or removed, or doctor does not run in its \
                 container"
            ),
            "restart the container; if edgeAgent does not make a new one, remove this one (docker rm -f \
             NAME), whose environment is that of another deployment",
        ),
        Err(error) => check.failed_with(error),
    }
}

fn silent(check: Check, access: &WorkloadAccess) -> Finding {
    check.failed(
        format!(
            "{} accepts the request, but does not answer within {} s",
            access.socket.display(),
            CHECK_LIMIT.as_secs()
        ),
        "look at aziot-edged (iotedge system status), or restart it",
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::Standing;

    #[test]
    fn a_bundle_is_told_by_its_roots_and_one_that_is_none_by_what_is_wrong() {
        let made = rcgen::generate_simple_self_signed(["gateway".to_owned()]).expect("a certificate");
        let found = roots(&made.cert.pem().repeat(4)).expect("good");
        let name = "\"rcgen self signed cert\"";
        assert_eq!(found, Check::TrustBundle.ok(format!("4 roots: {name}, {name}, {name}, …")));
        assert_eq!(roots(" \n").expect("nothing").status, Standing::Warning);
        let wrong = roots("<html>").expect_err("no bundle");
        assert_eq!(wrong.detail, "it cannot be used: it holds no certificate in PEM form (-----BEGIN …)");
    }
}
