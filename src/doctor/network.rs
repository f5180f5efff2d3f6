//! The way to the hub: its addresses, its ports.
//!
//! Owns: name look-up and connecting, their failures in words, the order of the checks that follow.
//! Must not know: certificates, MQTT.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use futures_util::future::join_all;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};

use super::server::Handshake;
use super::subject::NetworkSubject;
use super::{CHECK_LIMIT, Check, Finding, clock, server};

/// Most addresses of one host that are tried.
const MAX_ADDRESSES: usize = 8;

/// How far a connection to the server gets.
pub(super) enum HowFar<'c> {
    /// No further check is possible, and all later ones were told as skipped. `sign_in`: whether to try the sign-in.
    Told { sign_in: bool },
    /// The results of connecting to the ports of this host.
    Tried { host: &'c str, mqtt: Result<TcpReached, Unreached>, https: Result<TcpReached, Unreached> },
}

/// Looks the host up and connects; each takes at most [`CHECK_LIMIT`].
pub(super) async fn reach<'c>(subject: &NetworkSubject<'c>, tell: &mut impl FnMut(Finding)) -> HowFar<'c> {
    let (host, why_not) = match subject.identity {
        _ if subject.offline => ("", Some("--offline")),
        Some(identity) => (identity.dialled().name.as_str(), None),
        None => ("", Some("the configuration does not say who signs in")),
    };
    if let Some(reason) = why_not {
        skip(subject, Check::NameLookup, reason, tell);
        return HowFar::Told { sign_in: false };
    }
    if let Some(proxy) = subject.proxy(host) {
        let reason = format!("the connection to the hub uses the proxy {proxy}: see the sign-in");
        skip(subject, Check::NameLookup, &reason, tell);
        return HowFar::Told { sign_in: true };
    }
    let addresses = match look_up(subject, host).await {
        Ok((finding, addresses)) => {
            tell(finding);
            addresses
        }
        Err(finding) => {
            tell(finding);
            skip(subject, Check::MqttPort, "there is no address to connect to", tell);
            return HowFar::Told { sign_in: false };
        }
    };
    let (mqtt, https) =
        tokio::join!(connect(&addresses, subject.mqtt_port()), connect(&addresses, subject.https_port));
    tell(mqtt_port(subject, host, &mqtt, https.is_ok()));
    tell(https_port(subject, &https, mqtt.is_ok()));
    HowFar::Tried { host, mqtt, https }
}

/// Makes a TLS connection if there is a TCP connection, in at most [`CHECK_LIMIT`]. Returns whether to sign in at this
/// server.
pub(super) async fn meet(
    subject: &NetworkSubject<'_>,
    way: HowFar<'_>,
    tell: &mut impl FnMut(Finding),
) -> bool {
    let (host, mqtt, https) = match way {
        HowFar::Told { sign_in } => return sign_in,
        HowFar::Tried { host, mqtt, https } => (host, mqtt, https),
    };
    let ask = async {
        match https {
            Ok(reached) => clock::ask(subject, host, reached.stream).await,
            Err(_) => None,
        }
    };
    let Ok(reached) = mqtt else {
        let time = ask.await;
        skip(subject, Check::Tls, "there is no connection", &mut |finding| {
            let is_clock = finding.check == Check::Clock;
            tell(if is_clock { clock::clock(subject, time.as_ref(), None) } else { finding });
        });
        return false;
    };
    let (handshake, time) = tokio::join!(Handshake::make(subject, host, reached.stream), ask);
    let now = (subject.clock)();
    tell(server::tls(subject, host, &handshake));
    tell(server::certificate(&handshake, now));
    tell(clock::clock(subject, time.as_ref(), handshake.chain.first()));
    handshake.result.is_ok()
}

/// Tells that no server can be trusted without a trust bundle.
pub(super) fn pass_by(subject: &NetworkSubject<'_>, way: &HowFar<'_>, tell: &mut impl FnMut(Finding)) {
    if let HowFar::Tried { .. } = way {
        skip(subject, Check::Tls, "there is no trust bundle, so no certificate can be trusted", tell);
    }
}

/// Tells this check and all later ones as skipped, except the clock, which can always be checked.
fn skip(subject: &NetworkSubject<'_>, first: Check, reason: &str, tell: &mut impl FnMut(Finding)) {
    let all = [
        Check::NameLookup.skipped(reason),
        Check::MqttPort.skipped(reason).about(subject.mqtt_port()),
        Check::HttpsPort.skipped(reason).about(subject.https_port),
        Check::Tls.skipped(reason),
        Check::ServerCertificate.skipped(reason),
        clock::clock(subject, None, None),
    ];
    all.into_iter().skip_while(|finding| finding.check != first).for_each(tell);
}

async fn look_up(subject: &NetworkSubject<'_>, host: &str) -> Result<(Finding, Vec<IpAddr>), Finding> {
    if let Ok(address) = host.parse() {
        return Ok((Check::NameLookup.ok(format!("{host} is an address itself")), vec![address]));
    }
    let dns = if subject.workload().is_some() {
        "check that this container is in the network of edgeHub (azure-iot-edge, unless createOptions say otherwise)"
    } else {
        "check this machine's DNS (/etc/resolv.conf) and network"
    };
    let found: Vec<_> = match timeout(CHECK_LIMIT, lookup_host((host, 0))).await {
        Ok(Ok(found)) => found.map(|address| address.ip()).take(MAX_ADDRESSES).collect(),
        Ok(Err(error)) => {
            let detail = format!("{host} was not found ({error})");
            return Err(Check::NameLookup
                .failed(detail, format!("check {}, and {}", subject.names(), &dns["check ".len()..])));
        }
        Err(_elapsed) => {
            return Err(Check::NameLookup
                .failed(format!("no answer for {host} within {} s", CHECK_LIMIT.as_secs()), dns));
        }
    };
    let mut addresses = Vec::new();
    for address in found {
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    if addresses.is_empty() {
        return Err(
            Check::NameLookup.failed(format!("{host} has no address"), format!("check {}", subject.names()))
        );
    }
    let shown: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    Ok((Check::NameLookup.ok(format!("{host} is {}", shown.join(", "))), addresses))
}

/// A connection.
pub(super) struct TcpReached {
    stream: TcpStream,
    address: IpAddr,
    took: Duration,
    /// An earlier address that does not answer.
    silent: Option<IpAddr>,
}

/// Why there is no connection.
pub(super) enum Unreached {
    Silent,
    Refused(IpAddr),
    Failed(io::Error),
}

/// Tries all addresses at the same time; the first that answers, in their order, counts.
async fn connect(addresses: &[IpAddr], port: u16) -> Result<TcpReached, Unreached> {
    let began = Instant::now();
    let attempts = addresses.iter().map(|address| async move {
        let made = timeout(CHECK_LIMIT, TcpStream::connect(SocketAddr::new(*address, port))).await;
        (*address, made, began.elapsed())
    });
    let (mut silent, mut refused, mut failed) = (None, None, None);
    for (address, made, took) in join_all(attempts).await {
        match made {
            Ok(Ok(stream)) => return Ok(TcpReached { stream, address, took, silent }),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => {
                refused = refused.or(Some(address));
            }
            Ok(Err(error)) => failed = failed.or(Some(error)),
            Err(_elapsed) => silent = silent.or(Some(address)),
        }
    }
    Err(match (silent, refused, failed) {
        (_, Some(address), _) => Unreached::Refused(address),
        (Some(_), _, _) => Unreached::Silent,
        (None, None, Some(error)) => Unreached::Failed(error),
        (None, None, None) => Unreached::Silent,
    })
}

fn mqtt_port(
    subject: &NetworkSubject<'_>,
    host: &str,
    mqtt: &Result<TcpReached, Unreached>,
    https_is_open: bool,
) -> Finding {
    let (port, https) = (subject.mqtt_port(), subject.https_port);
    let check = Check::MqttPort;
    let finding = match mqtt {
        Ok(TcpReached { address, took, silent: None, .. }) => {
            check.ok(format!("{address} answers in {} ms", took.as_millis()))
        }
        Ok(TcpReached { address, silent: Some(silent), .. }) => check.warning(
            format!("{address} answers, but {silent}, which the agent tries first, does not"),
            "make that address reachable, or remove it from the host name (DNS, /etc/hosts)",
        ),
        Err(why) => {
            let detail = match why {
                Unreached::Silent => format!("no answer within {} s", CHECK_LIMIT.as_secs()),
                Unreached::Refused(_) => "the connection is refused".to_owned(),
                Unreached::Failed(error) => error.to_string(),
            };
            if subject.workload().is_some() {
                let remedy = format!(
                    "check that edgeHub runs (iotedge list) and listens on {port}, and that \
                     IOTEDGE_GATEWAYHOSTNAME is its device's name"
                );
                check.failed(detail, remedy)
            } else if https_is_open {
                // No firewall or network can be the reason on the machine itself.
                let remedy = match why {
                    Unreached::Refused(address) if address.is_loopback() => format!(
                        "nothing listens on port {port} of this machine: check that HostName has the port on \
                         which the hub (emulator, gateway) listens"
                    ),
                    _ => {
                        format!("a firewall blocks {port}: allow outgoing connections to {host}:{port}")
                    }
                };
                check.failed(format!("{detail}, but port {https} answers"), remedy)
            } else {
                let remedy = match why {
                    Unreached::Refused(_) => {
                        "check host and port, and whether the hub (emulator, gateway) runs"
                    }
                    Unreached::Silent => {
                        "check this machine's network, and whether a firewall drops everything"
                    }
                    Unreached::Failed(_) => "check this machine's network and routes",
                };
                check.failed(detail, remedy)
            }
        }
    };
    finding.about(port)
}

/// The HTTPS port. The agent does not need it.
fn https_port(
    subject: &NetworkSubject<'_>,
    https: &Result<TcpReached, Unreached>,
    mqtt_is_open: bool,
) -> Finding {
    let finding = match https {
        Ok(reached) => Check::HttpsPort.ok(format!("answers in {} ms", reached.took.as_millis())),
        Err(_) if mqtt_is_open => Check::HttpsPort.ok("does not answer, and the agent does not need it"),
        Err(_) => {
            let remedy = "check the network first: more than one port fails";
            Check::HttpsPort.warning("does not answer, either", remedy)
        }
    };
    finding.about(subject.https_port)
}
