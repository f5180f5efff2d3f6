//! Who signs in: a device, a module of an IoT Edge device, or both.
//!
//! Owns: which of them exist, and that there is at least one. Must not know: how either is read.

use std::path::{Path, PathBuf};

use crate::credentials::{DeviceIdentity, ModuleEnvironment, module_from_environment, module_variable};
use crate::features::FULL;
use crate::tls;

use super::report::{Place, Report};

/// Who signs in. With both, C2D messages come to the device, and the module does everything else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Identities {
    /// A device only.
    Device(DeviceIdentity),
    /// A module only.
    Module(ModuleEnvironment),
    /// Both.
    Both(Box<(DeviceIdentity, ModuleEnvironment)>),
}

impl Identities {
    /// The given identities; `None` if there is none.
    pub(super) fn of(device: Option<DeviceIdentity>, module: Option<ModuleEnvironment>) -> Option<Self> {
        Some(match (device, module) {
            (Some(device), Some(module)) => Self::Both(Box::new((device, module))),
            (Some(device), None) => Self::Device(device),
            (None, Some(module)) => Self::Module(module),
            (None, None) => return None,
        })
    }

    /// The same with another device. Without a device, nothing changes.
    #[must_use]
    pub fn with_device(self, device: DeviceIdentity) -> Self {
        match self {
            Self::Device(_) => Self::Device(device),
            Self::Both(both) => Self::Both(Box::new((device, both.1))),
            Self::Module(module) => Self::Module(module),
        }
    }

    /// The device.
    pub fn device(&self) -> Option<&DeviceIdentity> {
        match self {
            Self::Device(device) => Some(device),
            Self::Both(both) => Some(&both.0),
            Self::Module(_) => None,
        }
    }

    /// The module.
    pub fn module(&self) -> Option<&ModuleEnvironment> {
        match self {
            Self::Module(module) => Some(module),
            Self::Both(both) => Some(&both.1),
            Self::Device(_) => None,
        }
    }

    /// The device; the module if there is no device.
    pub fn first(&self) -> &DeviceIdentity {
        match self {
            Self::Device(device) => device,
            Self::Both(both) => &both.0,
            Self::Module(module) => &module.identity,
        }
    }

    /// All of them, the device first.
    pub fn iter(&self) -> impl Iterator<Item = &DeviceIdentity> {
        self.device().into_iter().chain(self.module().map(|module| &module.identity))
    }
}

/// Reads the module from the environment. A build without modules refuses it also beside a device: the agent would
/// otherwise never get what is sent to the module.
pub(super) fn read_module(
    env: &dyn Fn(&str) -> Option<String>,
    report: &mut Report,
) -> Option<ModuleEnvironment> {
    let variable = module_variable(env)?;
    if !FULL.is_built() {
        let missing = FULL.lacks("the identity of an IoT Edge module");
        report.problem(Place::Environment, format!("{variable}: {missing}; or unset {variable}"));
        return None;
    }
    let module = match module_from_environment(env) {
        Ok(module) => module?,
        Err(error) => {
            report.problem(Place::Environment, error.to_string());
            return None;
        }
    };
    if let Some(problem) = module.ca_file.as_deref().and_then(unreadable) {
        report.problem(Place::Environment, format!("EdgeModuleCACertificateFile: {problem}"));
    }
    Some(module)
}

fn unreadable(path: &Path) -> Option<String> {
    let path: PathBuf = path.into();
    let read = super::files::check_regular(&path)
        .map_err(|reason| format!("cannot read {}: {reason}", path.display()));
    read.and_then(|()| tls::read_certificates(&path).map_err(|error| error.to_string())).err()
}
