//! Routes of modules: which outputs lead to which inputs.
//!
//! Owns: their text, and whether a message fits. Must not know: queues, devices.
//!
//! Source: wire reference 6.3, and Microsoft's page "Learn how to deploy modules and establish routes in IoT Edge". The
//! emulator supports FROM without WHERE, modules as sources, and both sinks.

use std::fmt;
use std::str::FromStr;

use crate::credentials::check_module_id;
use crate::message::excerpt;

/// A route from outputs of modules to an input, for every device that has these modules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InputRoute {
    /// `None` means any module.
    module: Option<String>,
    /// `None` means any output, and messages without an output.
    output: Option<String>,
    /// Module and input; `None` means the hub, which gets all messages anyway.
    into: Option<(String, String)>,
}

/// Why a route cannot be parsed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "\"{0}\" is not a route that the emulator knows: write FROM /messages/modules/MODULE/outputs/OUTPUT INTO \
     BrokeredEndpoint(\"/modules/MODULE/inputs/INPUT\"), with * for any module or output, or INTO $upstream; \
     WHERE is not supported"
)]
pub struct RouteError(String);

impl FromStr for InputRoute {
    type Err = RouteError;

    fn from_str(text: &str) -> Result<Self, RouteError> {
        Self::read(text).ok_or_else(|| RouteError(excerpt(text)))
    }
}

impl InputRoute {
    fn read(text: &str) -> Option<Self> {
        let words: Vec<&str> = text.split_whitespace().collect();
        let (from, source, into, sink) = match words.as_slice() {
            [from, source, into, sink] => (from, source, into, *sink),
            _ => return None,
        };
        if !from.eq_ignore_ascii_case("from") || !into.eq_ignore_ascii_case("into") {
            return None;
        }
        let name = |text: &str| check_module_id(text).is_ok().then(|| text.to_owned());
        let any = |text: &str| if text == "*" { Some(None) } else { name(text).map(Some) };
        let source: Vec<&str> = source.strip_prefix('/')?.split('/').collect();
        let (module, output) = match source.as_slice() {
            ["*"] | ["messages", "*"] | ["messages", "modules", "*"] => (None, None),
            ["messages", "modules", module, "*"] => (any(module)?, None),
            ["messages", "modules", module, "outputs", output] => (any(module)?, any(output)?),
            _ => return None,
        };
        if sink.eq_ignore_ascii_case("$upstream") {
            return Some(Self { module, output, into: None });
        }
        let endpoint = sink.strip_prefix("BrokeredEndpoint(")?.strip_suffix(')')?;
        let endpoint = endpoint.strip_prefix('"')?.strip_suffix('"')?;
        let sink: Vec<&str> = endpoint.split('/').collect();
        match sink.as_slice() {
            ["", "modules", into, "inputs", input] => {
                Some(Self { module, output, into: Some((name(into)?, name(input)?)) })
            }
            _ => None,
        }
    }

    /// The module and input that a message goes to, if the route matches.
    pub(super) fn leads(&self, module: &str, output: Option<&str>) -> Option<&(String, String)> {
        let is = |wanted: &Option<String>, own: Option<&str>| {
            wanted.as_deref().is_none_or(|wanted| Some(wanted) == own)
        };
        self.into.as_ref().filter(|_| is(&self.module, Some(module)) && is(&self.output, output))
    }
}

impl fmt::Display for InputRoute {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let any = |name: &Option<String>| name.clone().unwrap_or_else(|| "*".to_owned());
        write!(f, "FROM /messages/modules/{}/outputs/{} INTO ", any(&self.module), any(&self.output))?;
        match &self.into {
            Some((module, input)) => write!(f, "BrokeredEndpoint(\"/modules/{module}/inputs/{input}\")"),
            None => write!(f, "$upstream"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn route(text: &str) -> InputRoute {
        text.parse().expect(text)
    }

    #[test]
    fn routes_of_manifests_are_read() {
        for (text, module, output, leads) in [
            ("FROM /messages/* INTO BrokeredEndpoint(\"/modules/b/inputs/in\")", "a", None, true),
            (
                "from /messages/modules/a/* into BrokeredEndpoint(\"/modules/b/inputs/in\")",
                "a",
                Some("x"),
                true,
            ),
            (
                "FROM /messages/modules/a/outputs/x INTO BrokeredEndpoint(\"/modules/b/inputs/in\")",
                "a",
                Some("x"),
                true,
            ),
            (
                "FROM /messages/modules/a/outputs/x INTO BrokeredEndpoint(\"/modules/b/inputs/in\")",
                "a",
                Some("y"),
                false,
            ),
            (
                "FROM /messages/modules/a/outputs/x INTO BrokeredEndpoint(\"/modules/b/inputs/in\")",
                "a",
                None,
                false,
            ),
            (
                "FROM /messages/modules/a/outputs/* INTO BrokeredEndpoint(\"/modules/b/inputs/in\")",
                "c",
                Some("x"),
                false,
            ),
            ("FROM /messages/modules/a/outputs/* INTO $upstream", "a", Some("x"), false),
        ] {
            let expected = leads.then(|| ("b".to_owned(), "in".to_owned()));
            assert_eq!(route(text).leads(module, output), expected.as_ref(), "{text}");
            assert_eq!(route(&route(text).to_string()), route(text));
        }
        for text in [
            "",
            "FROM /messages/*",
            "FROM /messages/* WHERE a = 1 INTO $upstream",
            "FROM /messages/modules/a b/* INTO $upstream",
            "FROM /twinChangeNotifications INTO $upstream",
            "FROM /messages/* INTO BrokeredEndpoint(\"/modules/b\")",
        ] {
            let error = text.parse::<InputRoute>().expect_err(text);
            assert!(error.to_string().contains("is not a route that the emulator knows"), "{error}");
        }
    }
}
