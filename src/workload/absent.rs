//! The workload API in a build without the feature `full`: it is never asked, because `config` refuses every module.
//!
//! Owns: nothing. Must not know: anything.

use crate::credentials::WorkloadAccess;
use crate::features;

/// Why no module can sign in.
#[derive(Debug, thiserror::Error)]
#[error("{}", features::FULL.lacks("the identity of an IoT Edge module"))]
pub(crate) struct WorkloadError;

impl WorkloadError {
    pub(crate) fn is_final(&self) -> bool {
        true
    }
}

/// # Errors
/// Always.
pub(crate) async fn sign(_access: &WorkloadAccess, _text: &str) -> Result<Vec<u8>, WorkloadError> {
    Err(WorkloadError)
}

/// # Errors
/// Always.
pub(crate) async fn trust_bundle(_access: &WorkloadAccess) -> Result<String, WorkloadError> {
    Err(WorkloadError)
}
