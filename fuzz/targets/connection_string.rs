//! Any text as a device and as a service connection string, and as a host with a port.
//!
//! Shared by the fuzz target and by `tests/it/corpora.rs`, so that both check the same.

use c2d_agent::credentials::{DeviceConnectionString, HostPort, ServiceConnectionString};

pub(crate) fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let device = DeviceConnectionString::parse(text);
    let service = ServiceConnectionString::parse(text);
    assert!(device.is_err() || service.is_err(), "no text is both a device and a service connection string");

    for error in [device.as_ref().err(), service.as_ref().err()].into_iter().flatten() {
        let sentence = error.to_string();
        assert!(!sentence.contains('\n'), "an error is one line: {sentence}");
        for key in long_keys(text) {
            assert!(!sentence.contains(key), "an error repeats a key: {sentence}");
        }
    }
    for (host, debug) in [
        device.as_ref().ok().map(|own| (&own.host, format!("{own:?}"))),
        service.as_ref().ok().map(|own| (&own.host, format!("{own:?}"))),
    ]
    .into_iter()
    .flatten()
    {
        assert_eq!(HostPort::parse(&host.to_string()).as_ref(), Some(host));
        assert!(!debug.contains('\n'));
        for key in long_keys(text) {
            assert!(!debug.contains(key), "Debug shows a key: {debug}");
        }
    }
    if let Some(host) = HostPort::parse(text) {
        assert_eq!(HostPort::parse(&host.to_string()), Some(host));
    }
}

/// Values of `SharedAccessKey` that no error contains by chance: long, no words with spaces, nowhere else in the text.
fn long_keys(text: &str) -> impl Iterator<Item = &str> {
    text.split(';')
        .filter_map(|part| part.split_once('='))
        .filter(|(name, _)| name.trim().eq_ignore_ascii_case("SharedAccessKey"))
        .map(|(_, value)| value.trim())
        .filter(move |value| value.len() >= 24 && !value.contains(' ') && text.matches(value).count() == 1)
}
