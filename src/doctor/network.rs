//! The way to the hub: its addresses, its ports.
//!
//! Owns: name look-up and connecting, their failures in words, the order of what follows.
//! Must not know: certificates, MQTT. Used by: `doctor`.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::time::{Duration, SystemTime};

use futures_util::future::join_all;
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, timeout};

use super::server::Handshake;
use super::{CHECK_LIMIT, Check, Finding, clock, server};
use crate::credentials::{DeviceIdentity, Over, Proxy, Route, Transport};
use crate::session::standard_port;

/// Most addresses of one host that are looked at.
const MAX_ADDRESSES: usize = 8;

/// What the checks of the network need to know.
#[derive(Clone, Copy)]
pub(super) struct Subject<'c> {
    pub(super) identity: Option<&'c DeviceIdentity>,
    pub(super) ca_file: Option<&'c Path>,
    /// The roots that a module gets from its workload API.
    pub(super) bundle: Option<&'c str>,
    pub(super) token_lifetime: Duration,
    pub(super) transport: Transport,
    pub(super) route: &'c Route,
    pub(super) offline: bool,
    pub(super) https_port: u16,
    pub(super) clock: fn() -> SystemTime,
}

impl Subject<'_> {
    /// Where the agent connects.
    pub(super) fn mqtt_port(&self) -> u16 {
        match self.route.over {
            Over::WebSocket => self.route.https_port,
            Over::Tls | Over::Either => {
                let own = self.identity.and_then(|identity| identity.dialled().port);
                own.unwrap_or(standard_port(self.transport))
            }
        }
    }

    /// The proxy through which the agent connects.
    fn proxy(&self, host: &str) -> Option<&Proxy> {
        let Route { over, https_port, proxies, .. } = self.route;
        proxies.on_the_way_to(host, *https_port).filter(|_| *over == Over::WebSocket)
    }
}

/// Looks the host up, connects, and makes a TLS connection; each at most for [`CHECK_LIMIT`]. Tells whether the server is
/// one to sign in at.
pub(super) async fn examine(subject: &Subject<'_>, tell: &mut impl FnMut(Finding)) -> bool {
    let (host, why_not) = match subject.identity {
        _ if subject.offline => ("", Some("--offline")),
        Some(identity) => (identity.dialled().name.as_str(), None),
        None => ("", Some("the configuration does not say who signs in")),
    };
    if let Some(reason) = why_not {
        skip(subject, Check::NameLookup, reason, tell);
        return false;
    }
    if let Some(proxy) = subject.proxy(host) {
        let reason = format!("the way to the hub leads through the proxy {proxy}: see the sign-in");
        skip(subject, Check::NameLookup, &reason, tell);
        return true;
    }
    let addresses = match look_up(host).await {
        Ok((finding, addresses)) => {
            tell(finding);
            addresses
        }
        Err(finding) => {
            tell(finding);
            skip(subject, Check::MqttPort, "there is no address to connect to", tell);
            return false;
        }
    };
    let (mqtt, https) =
        tokio::join!(connect(&addresses, subject.mqtt_port()), connect(&addresses, subject.https_port));
    tell(mqtt_port(subject, host, &mqtt, https.is_ok()));
    tell(https_port(subject, &https, mqtt.is_ok()));
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

/// Tells of this check and of all that follow that they were not made. The clock can be looked at in any case.
fn skip(subject: &Subject<'_>, first: Check, reason: &str, tell: &mut impl FnMut(Finding)) {
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

async fn look_up(host: &str) -> Result<(Finding, Vec<IpAddr>), Finding> {
    if let Ok(address) = host.parse() {
        return Ok((Check::NameLookup.ok(format!("{host} is an address itself")), vec![address]));
    }
    let dns = "check this machine's DNS (/etc/resolv.conf) and network";
    let found: Vec<_> = match timeout(CHECK_LIMIT, lookup_host((host, 0))).await {
        Ok(Ok(found)) => found.map(|address| address.ip()).take(MAX_ADDRESSES).collect(),
        Ok(Err(error)) => {
            let detail = format!("{host} was not found ({error})");
            return Err(Check::NameLookup
                .failed(detail, format!("check HostName or GatewayHostName, and {}", &dns[6..])));
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
            Check::NameLookup.failed(format!("{host} has no address"), "check HostName or GatewayHostName")
        );
    }
    let shown: Vec<_> = addresses.iter().map(IpAddr::to_string).collect();
    Ok((Check::NameLookup.ok(format!("{host} is {}", shown.join(", "))), addresses))
}

/// A connection.
struct Reached {
    stream: TcpStream,
    address: IpAddr,
    took: Duration,
    /// An address before this one that does not answer.
    silent: Option<IpAddr>,
}

/// Why there is no connection.
enum Unreached {
    Silent,
    Refused,
    Failed(io::Error),
}

/// Tries all addresses at the same time; the first that answers, in their order, counts.
async fn connect(addresses: &[IpAddr], port: u16) -> Result<Reached, Unreached> {
    let began = Instant::now();
    let attempts = addresses.iter().map(|address| async move {
        let made = timeout(CHECK_LIMIT, TcpStream::connect(SocketAddr::new(*address, port))).await;
        (*address, made, began.elapsed())
    });
    let (mut silent, mut refused, mut failed) = (None, false, None);
    for (address, made, took) in join_all(attempts).await {
        match made {
            Ok(Ok(stream)) => return Ok(Reached { stream, address, took, silent }),
            Ok(Err(error)) if error.kind() == io::ErrorKind::ConnectionRefused => refused = true,
            Ok(Err(error)) => failed = failed.or(Some(error)),
            Err(_elapsed) => silent = silent.or(Some(address)),
        }
    }
    Err(match (silent, refused, failed) {
        (_, true, _) => Unreached::Refused,
        (Some(_), _, _) => Unreached::Silent,
        (None, false, Some(error)) => Unreached::Failed(error),
        (None, false, None) => Unreached::Silent,
    })
}

fn mqtt_port(
    subject: &Subject<'_>,
    host: &str,
    mqtt: &Result<Reached, Unreached>,
    https_is_open: bool,
) -> Finding {
    let (port, https) = (subject.mqtt_port(), subject.https_port);
    let check = Check::MqttPort;
    let finding = match mqtt {
        Ok(Reached { address, took, silent: None, .. }) => {
            check.ok(format!("{address} answers in {} ms", took.as_millis()))
        }
        Ok(Reached { address, silent: Some(silent), .. }) => check.warning(
            format!("{address} answers, but {silent}, which the agent tries first, does not"),
            "give this machine a way to that address, or take it out of the name (DNS, /etc/hosts)",
        ),
        Err(why) => {
            let detail = match why {
                Unreached::Silent => format!("no answer within {} s", CHECK_LIMIT.as_secs()),
                Unreached::Refused => "the connection is refused".to_owned(),
                Unreached::Failed(error) => error.to_string(),
            };
            if https_is_open {
                check.failed(
                    format!("{detail}, but port {https} answers"),
                    format!("a firewall blocks {port}: have outgoing connections to {host}:{port} allowed"),
                )
            } else {
                let remedy = match why {
                    Unreached::Refused => "check host and port, and whether the hub (emulator, gateway) runs",
                    Unreached::Silent => {
                        "check this machine's way out, and whether a firewall drops everything"
                    }
                    Unreached::Failed(_) => "check this machine's network and routes",
                };
                check.failed(detail, remedy)
            }
        }
    };
    finding.about(port)
}

/// The agent does without it.
fn https_port(subject: &Subject<'_>, https: &Result<Reached, Unreached>, mqtt_is_open: bool) -> Finding {
    let finding = match https {
        Ok(reached) => Check::HttpsPort.ok(format!("answers in {} ms", reached.took.as_millis())),
        Err(_) if mqtt_is_open => Check::HttpsPort.ok("does not answer, and the agent does not need it"),
        Err(_) => {
            let remedy = "look at the network first: it is no matter of one port";
            Check::HttpsPort.warning("does not answer, either", remedy)
        }
    };
    finding.about(subject.https_port)
}
