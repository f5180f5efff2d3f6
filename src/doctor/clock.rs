//! Compares this machine's clock with the server's: with a wrong clock, tokens and certificates are not valid.
//!
//! Owns: asking for the time over HTTPS (the `Date` of any answer), and how far the clock may be off.
//! Must not know: how a clock is set.

use std::time::{Duration, SystemTime};

use rustls::pki_types::ServerName;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

use super::certificate::{Age, Certificate, day};
use super::subject::NetworkSubject;
use super::{CHECK_LIMIT, Check, Finding};
use crate::credentials::DeviceAuth;
use crate::session::EARLIEST_PLAUSIBLE;
use crate::tls::{self, Judgement};

/// A smaller difference counts as none: the `Date` of an answer is in whole seconds, and an answer takes time to come.
const AS_GOOD_AS_RIGHT: Duration = Duration::from_secs(60);
/// Far more than the head of any answer needs.
const MAX_HEAD_BYTES: u64 = 16 * 1024;

const SET_IT: &str =
    "set it, and keep it set: timedatectl set-ntp true (a container has the clock of its host)";

/// The times of the server and of this machine at one moment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Times {
    server: SystemTime,
    here: SystemTime,
}

/// Asks for the time. `None` if no answer with a time comes within [`CHECK_LIMIT`]. The server's certificate may have
/// expired, but it must be trusted.
pub(super) async fn ask(subject: &NetworkSubject<'_>, host: &str, stream: TcpStream) -> Option<Times> {
    let (config, _witness) =
        tls::witnessing_config(subject.ca_file, subject.bundle, None, Judgement::AnyDate).ok()?;
    let name = ServerName::try_from(host.to_owned()).ok()?;
    let asked = async {
        let mut stream = TlsConnector::from(config).connect(name, stream).await.ok()?;
        let request = format!("HEAD / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.ok()?;
        let mut head = Vec::new();
        let mut answer = stream.take(MAX_HEAD_BYTES);
        // A peer may close without TLS's close_notify; its answer still counts.
        while !head.windows(4).any(|end| end == b"\r\n\r\n") {
            if !matches!(answer.read_buf(&mut head).await, Ok(read) if read > 0) {
                break;
            }
        }
        Some(Times { server: date(&head)?, here: (subject.clock)() })
    };
    timeout(CHECK_LIMIT, asked).await.ok().flatten()
}

/// The time in the head of an answer.
fn date(head: &[u8]) -> Option<SystemTime> {
    let head = std::str::from_utf8(head).ok()?;
    let (_, value) = head
        .lines()
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("date"))?;
    // "Tue, 24 Nov 2026 00:30:24 GMT": the only form that servers may send. Source: RFC 9110, 5.6.7.
    let mut words = value.split_ascii_whitespace().skip(1);
    let (day, month, year, time) = (words.next()?, words.next()?, words.next()?, words.next()?);
    const MONTHS: [&str; 12] =
        ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];
    let month = MONTHS.iter().position(|name| *name == month)? + 1;
    crate::message::parse_time(&format!("{year}-{month:02}-{day}T{time}Z"))
}

/// How wrong the clock is, by the server's time, or else by the dates of the server's certificate.
pub(super) fn clock(
    subject: &NetworkSubject<'_>,
    times: Option<&Times>,
    server: Option<&Certificate>,
) -> Finding {
    let now = (subject.clock)();
    let says = format!(
        "{} UTC",
        crate::message::format_time(now).chars().take(19).collect::<String>().replace('T', " ")
    );
    if now < SystemTime::UNIX_EPOCH + EARLIEST_PLAUSIBLE {
        return Check::Clock.failed(format!("it has not been set, and says {says}"), SET_IT);
    }
    if let Some(Times { server, here }) = times {
        let (off, ahead) = match here.duration_since(*server) {
            Ok(off) => (off, true),
            Err(behind) => (behind.duration(), false),
        };
        let what = if ahead { "ahead of" } else { "behind" };
        let detail = format!("{says}, {} {what} the server's", rounded(off));
        let has_key = subject
            .identity
            .is_some_and(|identity| matches!(identity.auth, DeviceAuth::Key(_) | DeviceAuth::Workload(_)));
        return match off {
            off if off <= AS_GOOD_AS_RIGHT => Check::Clock.ok(format!("{says}, the same as the server's")),
            off if !ahead && has_key && off >= subject.token_lifetime => Check::Clock
                .failed(format!("{detail}: its tokens are expired as soon as it makes them"), SET_IT),
            _ => Check::Clock.warning(detail, SET_IT),
        };
    }
    match server {
        _ if subject.offline => Check::Clock.skipped(format!("{says}; not compared, --offline")),
        None => Check::Clock.skipped(format!("{says}; there is nothing to compare it with")),
        Some(server) if matches!(server.age(now), Age::Good { .. }) => {
            Check::Clock.ok(format!("{says}, within the dates of the server's certificate"))
        }
        Some(server) => {
            let (from, until) = (day(server.not_before), day(server.not_after));
            Check::Clock.warning(
                format!("{says}, not within the dates of the server's certificate, {from} to {until}"),
                SET_IT,
            )
        }
    }
}

/// A duration in its largest unit that matters.
fn rounded(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (unit, name) = match seconds {
        0..120 => (1, "s"),
        120..7_200 => (60, "min"),
        7_200..172_800 => (3_600, "h"),
        _ => (86_400, "days"),
    };
    format!("{} {name}", (seconds + unit / 2) / unit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::credentials::{DeviceIdentity, HostPort, Route, SharedAccessKey};
    use crate::doctor::Standing;

    const NOW: u64 = 1_795_480_224; // 2026-11-24T00:30:24Z

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn the_date_of_an_answer_is_found() {
        let head =
            b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\ndate: Tue, 24 Nov 2026 00:30:24 GMT\r\n\r\n";
        assert_eq!(date(head), Some(at(NOW)));
        for head in
            ["HTTP/1.1 200 OK\r\n\r\n", "date: yesterday\r\n", "Date: Tue, 24 Foo 2026 00:30:24 GMT\r\n"]
        {
            assert_eq!(date(head.as_bytes()), None, "{head}");
        }
    }

    #[test]
    fn a_clock_may_be_off_a_little_and_is_useless_when_tokens_expire_before_they_are_made() {
        let identity = DeviceIdentity {
            hub: HostPort { name: "h".into(), port: None },
            device_id: "d".into(),
            module_id: None,
            gateway: None,
            auth: DeviceAuth::Key(SharedAccessKey::from_bytes(*b"key")),
        };
        let route = Route::default();
        let subject = NetworkSubject {
            identity: Some(&identity),
            is_service: false,
            ca_file: None,
            bundle: "",
            token_lifetime: Duration::from_secs(3600),
            transport: crate::credentials::Transport::Mqtt,
            route: &route,
            offline: false,
            https_port: 443,
            clock: || at(NOW),
        };
        let found = |server: u64| clock(&subject, Some(&Times { server: at(server), here: at(NOW) }), None);
        assert_eq!(found(NOW + 30), Check::Clock.ok("2026-11-24 00:30:24 UTC, the same as the server's"));
        let ahead = found(NOW - 90_000);
        assert_eq!(
            (ahead.status, ahead.detail.as_str()),
            (Standing::Warning, "2026-11-24 00:30:24 UTC, 25 h ahead of the server's")
        );
        let slow = found(NOW + 300);
        assert_eq!(
            (slow.status, slow.detail.as_str()),
            (Standing::Warning, "2026-11-24 00:30:24 UTC, 5 min behind the server's")
        );
        let useless = found(NOW + 3600);
        assert_eq!(useless.status, Standing::Failed);
        let unset = clock(&NetworkSubject { clock: || at(17), ..subject }, None, None);
        assert_eq!(unset.detail, "it has not been set, and says 1970-01-01 00:00:17 UTC");
    }
}
