//! The sockets that the emulator listens on: three ports, each at one or several addresses.
//!
//! Owns: which HTTPS port is tried, and the sentence about a port that is not available. Must not know: TLS, what is
//! served.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tokio::net::TcpListener;

use super::EmulatorError;
use super::listener::HTTPS_PORT;

/// The HTTPS port if no port was given and the standard port is not available.
const SPARE_HTTPS_PORT: u16 = 8443;

/// How often a port is chosen that must be free at several addresses.
const CHOICES: usize = 8;

/// One port at each address.
pub(super) struct Sockets {
    /// The first address, with the port.
    pub(super) address: SocketAddr,
    pub(super) listeners: Vec<TcpListener>,
}

impl Sockets {
    /// Listens at one port of each address; 0 means any port that is free at all of them. `option` is the one that
    /// gives the port.
    ///
    /// # Errors
    /// [`EmulatorError::Listen`].
    pub(super) async fn listen(
        addresses: &[IpAddr],
        port: u16,
        protocol: &'static str,
        option: &str,
    ) -> Result<Self, EmulatorError> {
        let mut left = if port == 0 { CHOICES } else { 1 };
        loop {
            left -= 1;
            match at_all(addresses, port, protocol, option).await {
                Err(error) if left == 0 || addresses.len() == 1 => return Err(error),
                Err(error) => tracing::debug!("{error}; trying another port"),
                Ok(sockets) => return Ok(sockets),
            }
        }
    }

    /// Listens for HTTPS. If a port was given, only this port is tried.
    ///
    /// # Errors
    /// [`EmulatorError::Listen`].
    pub(super) async fn listen_https(
        addresses: &[IpAddr],
        asked: Option<u16>,
    ) -> Result<Self, EmulatorError> {
        let on = |port| Self::listen(addresses, port, "HTTPS", "--https-port");
        if let Some(port) = asked {
            return on(port).await;
        }
        for port in [HTTPS_PORT, SPARE_HTTPS_PORT] {
            match on(port).await {
                Ok(listening) => return Ok(listening),
                Err(error) => tracing::info!("{error}; trying another port"),
            }
        }
        on(0).await
    }

    /// The address at which a client on this machine can dial, because the first address may stand for every one.
    pub(super) fn dialled_here(&self) -> SocketAddr {
        let ip = match self.address.ip() {
            IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
            IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
            ip => ip,
        };
        SocketAddr::new(ip, self.address.port())
    }
}

async fn at_all(
    addresses: &[IpAddr],
    port: u16,
    protocol: &'static str,
    option: &str,
) -> Result<Sockets, EmulatorError> {
    let mut sockets =
        Sockets { address: SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port), listeners: vec![] };
    for (at, ip) in addresses.iter().enumerate() {
        let names_it = if at == 0 { "--bind" } else { "--hub" };
        let address = SocketAddr::new(*ip, sockets.address.port());
        let (address, listener) = listen(address, protocol, option, names_it).await?;
        if at == 0 {
            sockets.address = address;
        }
        sockets.listeners.push(listener);
    }
    Ok(sockets)
}

/// `names_it` is the option that gives the address.
async fn listen(
    address: SocketAddr,
    protocol: &'static str,
    option: &str,
    names_it: &str,
) -> Result<(SocketAddr, TcpListener), EmulatorError> {
    let failed = |error: io::Error| {
        let reason = match error.kind() {
            io::ErrorKind::AddrInUse => {
                format!("the port is in use; stop what listens there, or choose another with {option}")
            }
            io::ErrorKind::PermissionDenied => {
                format!("ports below 1024 need privileges; choose another with {option}")
            }
            io::ErrorKind::AddrNotAvailable => {
                format!("this machine has no such address; choose one of its own with {names_it}")
            }
            _ => error.to_string(),
        };
        EmulatorError::Listen { address, protocol, reason }
    };
    let listener = TcpListener::bind(address).await.map_err(failed)?;
    Ok((listener.local_addr().map_err(failed)?, listener))
}
