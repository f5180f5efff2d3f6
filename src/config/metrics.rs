//! Reads the `[metrics]` table.
//!
//! Owns: its key, and the warning if strangers could read the metrics. Must not know: HTTP, what is measured.

use std::net::SocketAddr;

use crate::features;

use super::field::{Field, shown};
use super::key::{Absent, Form, Key};
use super::report::Report;
use super::settings::MetricsSettings;

pub(super) const LISTEN: Key<Form> = Key {
    name: "listen",
    kind: Form("an IP address and a port, such as `\"127.0.0.1:9464\"`", "text"),
    absent: Absent::Refused,
    about: "the address where a scraper reads them; without the table nothing listens. See \
            [Metrics](metrics.md)",
};

/// Reads `[metrics]`; without the table there are no metrics.
pub(super) fn read(field: Option<Field<'_>>, report: &mut Report) -> Option<MetricsSettings> {
    let mut table = field?.table("[metrics]", report)?;
    if !features::FULL.is_built() {
        report.problem(table.place.clone(), features::FULL.lacks("[metrics]") + "; or remove [metrics]");
    }
    let remedy = "set listen = \"127.0.0.1:9464\", or remove [metrics] to serve none";
    let listen = table.require(&LISTEN, remedy, report);
    let listen = listen.and_then(|field| read_listen(&field, report));
    table.finish(report);
    Some(MetricsSettings { listen: listen? })
}

fn read_listen(field: &Field<'_>, report: &mut Report) -> Option<SocketAddr> {
    let text = field.text(report)?;
    let Ok(listen) = text.parse::<SocketAddr>() else {
        let message = format!(
            "listen is \"{}\": write an IP address and a port, such as \"127.0.0.1:9464\" or \"[::1]:9464\"",
            shown(text)
        );
        return field.wrong(message, report);
    };
    if !listen.ip().is_loopback() {
        let message = format!(
            "{} is not loopback: every machine in the network can read the metrics, with the names of rules \
             and pins; block others with a firewall, or listen on 127.0.0.1",
            listen.ip()
        );
        report.warning(field.value.place.clone(), message);
    }
    Some(listen)
}
