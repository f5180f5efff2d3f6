//! Any text as the user name with which a device signs in to the emulator.
//!
//! Shared by the fuzz target and by `tests/it/corpora.rs`, so that both check the same.

use c2d_agent::emulator::UserName;

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match UserName::parse(text) {
        Ok(user) => {
            assert!(!user.host.is_empty() && !user.device_id.is_empty());
            assert!(
                !user.device_id.contains('/'),
                "a device id with a slash would reach into another's topics"
            );
            assert_eq!(user.client_id().matches('/').count(), usize::from(user.module_id.is_some()));
            let again = format!("{}/{}/?api-version=2021-04-12", bracketed(&user.host), user.client_id());
            let again = UserName::parse(&again).expect("what was read can be written");
            assert_eq!(
                (again.host, again.device_id, again.module_id),
                (user.host, user.device_id, user.module_id)
            );
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "an error is one line: {error}"),
    }
}

fn bracketed(host: &str) -> String {
    if host.contains(':') { format!("[{host}]") } else { host.to_owned() }
}
