//! An HTTP proxy, as `HTTPS_PROXY` and `NO_PROXY` name it.
//!
//! Owns: the syntax of both, which hosts need no proxy, and the proxy's credentials, which are never shown.
//! Must not know: the environment, sockets.
//!
//! The variables have no standard. This does what curl does, without address ranges.

use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use percent_encoding::percent_decode_str;

use super::HostPort;

/// The ports of a proxy whose URL has no port, without TLS and with TLS. Source: curl.
const DEFAULT_PORT: u16 = 1080;
const DEFAULT_TLS_PORT: u16 = 443;

/// The longest value of either variable.
const MAX_BYTES: usize = 16 * 1024;

/// An HTTP proxy and the login for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proxy {
    /// The host that it listens on.
    pub host: String,
    /// Its port.
    pub port: u16,
    /// Whether the connection to it uses TLS (`https://`).
    pub tls: bool,
    /// Name and password, if the URL has them.
    pub login: Option<ProxyLogin>,
}

impl fmt::Display for Proxy {
    /// `host:port`, without the login.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        HostPort { name: self.host.clone(), port: Some(self.port) }.fmt(f)
    }
}

/// Name and password for a proxy. Neither can be printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyLogin(String);

impl ProxyLogin {
    /// The value of a `Proxy-Authorization` header: a secret. Source: RFC 7617.
    pub fn expose_header(&self) -> String {
        format!("Basic {}", STANDARD.encode(&self.0))
    }
}

impl fmt::Debug for ProxyLogin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ProxyLogin(…)")
    }
}

/// Why a proxy cannot be used. It never repeats the value of the variable, which may hold a password.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ProxyError {
    /// A scheme other than `http` and `https`.
    #[error("{0} does not begin with http:// or https://: use an HTTP proxy, which supports CONNECT")]
    Scheme(&'static str),
    /// A value that is not a URL.
    #[error(
        "{0} is not the address of a proxy, such as http://proxy.example:3128 or http://NAME:PASSWORD@proxy.example:3128"
    )]
    Malformed(&'static str),
    /// A login that is not percent-encoded text.
    #[error(
        "the name or password in {0} cannot be read: write characters such as @ : / % as %40 %3A %2F %25"
    )]
    Login(&'static str),
}

/// What the environment says about proxies.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProxySettings {
    proxy: Option<Proxy>,
    direct: Vec<Exception>,
}

/// One entry of `NO_PROXY`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Exception {
    /// `None` means `*`: every host.
    suffix: Option<String>,
    port: Option<u16>,
}

impl ProxySettings {
    /// Reads `https_proxy` and `no_proxy`, or their names in capitals. The small letters take precedence, and empty
    /// variables count as absent.
    ///
    /// # Errors
    /// [`ProxyError`] names the variable and never repeats its value.
    pub fn read(variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, ProxyError> {
        let first = |names: [&'static str; 2]| {
            names.into_iter().find_map(|name| {
                variable(name)
                    .map(|value| value.trim().to_owned())
                    .filter(|value| !value.is_empty())
                    .map(|value| (name, value))
            })
        };
        let proxy = match first(["https_proxy", "HTTPS_PROXY"]) {
            Some((name, value)) => Some(parse(name, &value)?),
            None => None,
        };
        let direct = first(["no_proxy", "NO_PROXY"]).map(|(_, value)| exceptions(&value)).unwrap_or_default();
        Ok(Self { proxy, direct })
    }

    /// The proxy for `host`; `None` if there is none or `NO_PROXY` has the host.
    pub fn on_the_way_to(&self, host: &str, port: u16) -> Option<&Proxy> {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        self.proxy.as_ref().filter(|_| !self.direct.iter().any(|exception| exception.covers(&host, port)))
    }
}

impl Exception {
    fn covers(&self, host: &str, port: u16) -> bool {
        let named = self.suffix.as_ref().is_none_or(|suffix| {
            host == suffix || host.strip_suffix(suffix.as_str()).is_some_and(|rest| rest.ends_with('.'))
        });
        named && self.port.is_none_or(|only| only == port)
    }
}

fn parse(name: &'static str, value: &str) -> Result<Proxy, ProxyError> {
    let (tls, rest) = match value.split_once("://") {
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (false, rest),
        Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (true, rest),
        Some(_) => return Err(ProxyError::Scheme(name)),
        None => (false, value),
    };
    if value.len() > MAX_BYTES {
        return Err(ProxyError::Malformed(name));
    }
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default();
    let (login, address) = match authority.rsplit_once('@') {
        Some((login, address)) => (Some(login), address),
        None => (None, authority),
    };
    let HostPort { name: host, port } = HostPort::parse(address).ok_or(ProxyError::Malformed(name))?;
    let login = match login {
        Some(login) => Some(read_login(login).ok_or(ProxyError::Login(name))?),
        None => None,
    };
    let port = port.unwrap_or(if tls { DEFAULT_TLS_PORT } else { DEFAULT_PORT });
    Ok(Proxy { host, port, tls, login })
}

/// `NAME:PASSWORD` or `NAME`, percent-encoded. A name cannot contain a colon, which ends it. Source: RFC 7617, 2.
fn read_login(text: &str) -> Option<ProxyLogin> {
    let decoded = |text: &str| {
        let decoded = percent_decode_str(text).decode_utf8().ok()?.into_owned();
        (!decoded.chars().any(char::is_control)).then_some(decoded)
    };
    let (name, password) = text.split_once(':').unwrap_or((text, ""));
    let (name, password) = (decoded(name)?, decoded(password)?);
    (!name.contains(':')).then(|| ProxyLogin(format!("{name}:{password}")))
}

fn exceptions(value: &str) -> Vec<Exception> {
    // Past the limit only whole entries count: the beginning of a name is another name.
    let whole = |bytes: &[u8]| bytes.iter().rposition(|byte| matches!(byte, b',' | b' ')).unwrap_or(0);
    let end = value.as_bytes().get(..MAX_BYTES).map_or(value.len(), whole);
    let value = value.get(..end).unwrap_or_default();
    let entries = value.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty());
    entries
        .filter_map(|entry| {
            if entry == "*" {
                return Some(Exception { suffix: None, port: None });
            }
            let entry =
                entry.strip_prefix("*.").unwrap_or(entry).trim_start_matches('.').trim_end_matches('.');
            let HostPort { name, port } = HostPort::parse(entry)?;
            Some(Exception { suffix: Some(name.to_ascii_lowercase()), port })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<ProxySettings, ProxyError> {
        ProxySettings::read(&|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn a_proxy_is_read_with_its_login_and_shows_neither_name_nor_password() {
        let settings =
            read(&[("HTTPS_PROXY", "http://us%40er:p%3Aa%25ss@proxy.example:3128/")]).expect("valid");
        let proxy = settings.on_the_way_to("hub.example", 443).expect("a proxy");
        assert_eq!(proxy.to_string(), "proxy.example:3128");
        let login = proxy.login.as_ref().expect("a login");
        assert_eq!(login.expose_header(), format!("Basic {}", STANDARD.encode("us@er:p:a%ss")));
        let shown = format!("{settings:?}");
        assert!(!shown.contains("er:") && !shown.contains("ss"), "{shown}");
        assert!(!proxy.tls);
        let found = |variables: &[(&str, &str)]| {
            let settings = read(variables).expect("valid");
            settings.on_the_way_to("h", 1).map(|proxy| (proxy.to_string(), proxy.tls))
        };
        let variables = [("https_proxy", "proxy.example"), ("HTTPS_PROXY", "other:1")];
        assert_eq!(found(&variables), Some(("proxy.example:1080".to_owned(), false)));
        assert_eq!(
            found(&[("HTTPS_PROXY", "HTTPS://n:p@proxy.example")]),
            Some(("proxy.example:443".to_owned(), true))
        );
        assert_eq!(read(&[("HTTPS_PROXY", " ")]), Ok(ProxySettings::default()));
    }

    #[test]
    fn a_list_of_exceptions_that_is_too_long_counts_by_whole_names_up_to_the_limit() {
        // The limit cuts through a letter of two bytes, and so through the name that it is in.
        let long = format!("first.example,hub.example.{}", "é".repeat(MAX_BYTES));
        let settings = read(&[("HTTPS_PROXY", "http://proxy.example"), ("NO_PROXY", &long)]).expect("valid");
        assert!(settings.on_the_way_to("first.example", 443).is_none());
        assert!(settings.on_the_way_to("hub.example", 443).is_some());
        let names: usize =
            settings.direct.iter().filter_map(|one| one.suffix.as_ref()).map(String::len).sum();
        assert!(names <= MAX_BYTES, "{names} bytes are kept");
    }

    #[test]
    fn what_is_no_http_proxy_is_named_by_its_variable_alone() {
        for (value, error) in [
            ("socks5://n:secret@p:1", ProxyError::Scheme("HTTPS_PROXY")),
            ("https://n:secret@p:x", ProxyError::Malformed("HTTPS_PROXY")),
            ("http://n:secret@p:x", ProxyError::Malformed("HTTPS_PROXY")),
            ("http://", ProxyError::Malformed("HTTPS_PROXY")),
            ("http://n:%ff@p:1", ProxyError::Login("HTTPS_PROXY")),
            ("http://n:%0d%0asecret@p:1", ProxyError::Login("HTTPS_PROXY")),
        ] {
            let refused = read(&[("HTTPS_PROXY", value)]).expect_err(value);
            assert!(!refused.to_string().contains("secret"));
            assert_eq!(refused, error);
        }
    }

    #[test]
    fn hosts_suffixes_ports_and_the_star_go_direct() {
        let direct = |no_proxy: &str, host: &str, port| {
            let settings = read(&[("HTTPS_PROXY", "p:1"), ("NO_PROXY", no_proxy)]).expect("valid");
            settings.on_the_way_to(host, port).is_none()
        };
        assert!(direct("*", "hub.example", 443));
        assert!(direct("other, hub.example", "HUB.example.", 443));
        assert!(direct(".example", "hub.example", 443) && direct("*.example", "hub.example", 443));
        assert!(direct("example", "hub.example", 443) && !direct("ample", "hub.example", 443));
        assert!(
            direct("hub.example:443", "hub.example", 443) && !direct("hub.example:443", "hub.example", 8443)
        );
        assert!(direct("[::1]:443,127.0.0.1", "127.0.0.1", 1) && direct("::1", "::1", 1));
        assert!(!direct("", "hub.example", 443) && !direct("hub", "hub.example", 443));
    }
}
