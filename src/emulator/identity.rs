//! Ids of devices and modules. A module's id is DEVICE/MODULE; no device id can contain the slash.
//!
//! Owns: this form, and what follows from it: the resource of a token, the beginning of topics. Must not know: which
//! devices exist, sockets.
//!
//! Source: wire reference 1.2 and 6.3. A module has its own id, so it has everything that a device has: a connection, a
//! twin, methods, and a queue, which holds the messages for its inputs.

use crate::credentials::{CredentialError, check_device_id, check_module_id};

/// Splits an id into the device, and the module if the id is a module's.
pub(super) fn split(id: &str) -> (&str, Option<&str>) {
    id.split_once('/').map_or((id, None), |(device, module)| (device, Some(module)))
}

/// Whether the id is a module's.
pub(super) fn is_module(id: &str) -> bool {
    split(id).1.is_some()
}

/// The id of a module, or of the device if there is no module.
pub(super) fn join(device_id: &str, module_id: Option<&str>) -> String {
    module_id.map_or_else(|| device_id.to_owned(), |module| format!("{device_id}/{module}"))
}

/// The name for sentences: `device "D"`, or `module "M" of device "D"`.
pub(super) fn named(id: &str) -> String {
    match split(id) {
        (device, None) => format!("device \"{device}\""),
        (device, Some(module)) => format!("module \"{module}\" of device \"{device}\""),
    }
}

/// The resource of a token and the beginning of topics: `devices/D` or `devices/D/modules/M`.
pub(super) fn path(id: &str) -> String {
    match split(id) {
        (device, None) => format!("devices/{device}"),
        (device, Some(module)) => format!("devices/{device}/modules/{module}"),
    }
}

/// Checks that the text is a valid DEVICE/MODULE.
///
/// # Errors
/// Fails if one of the two is not a valid id.
pub(super) fn check_module(id: &str) -> Result<(), CredentialError> {
    let (device, module) = split(id);
    check_device_id(device)?;
    check_module_id(module.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_is_told_from_a_device() {
        assert_eq!((split("edge1"), path("edge1").as_str()), (("edge1", None), "devices/edge1"));
        assert_eq!(split("edge1/filter"), ("edge1", Some("filter")));
        assert_eq!(path(&join("edge1", Some("filter"))), "devices/edge1/modules/filter");
        assert!(is_module("edge1/filter") && !is_module(&join("edge1", None)));
        assert!(check_module("edge1/filter").is_ok());
        for wrong in ["edge1", "edge1/", "/filter", "edge1/a/b", "a b/c"] {
            assert!(check_module(wrong).is_err(), "{wrong}");
        }
    }
}
