//! What to do after `init`: the next three commands.
//!
//! Owns: the text of the commands, which fits the path of the configuration. Must not know: how the file was written.

use std::path::Path;

use super::device::{CA_FILE_VARIABLE, ROOT_FILE};
use super::variable;
use super::{NewConfiguration, NewIdentity};
use crate::cli::shown::shell;
use crate::credentials::HubName;

const UNITS: [&str; 3] = ["/etc/systemd/system", "/usr/lib/systemd/system", "/lib/systemd/system"];

/// A sentence and three commands.
pub(super) fn lines(plan: &NewConfiguration, force: bool) -> Vec<String> {
    let Some(duty) = plan.duties.first() else { return Vec::new() };
    let sudo = if std::env::var_os("SUDO_USER").is_some() { "sudo " } else { "" };
    let config = match plan.is_of_the_service() {
        true => String::new(),
        false => format!(" -c {}", shell(&plan.config.display().to_string())),
    };
    let pairs = |between: &str| {
        let pairs: Vec<String> =
            duty.example().iter().map(|(name, value)| format!("{name}={value}")).collect();
        pairs.join(between)
    };
    let start = match plan.is_of_the_service() && is_a_service() {
        // An agent may run with the configuration that was replaced.
        true if force => format!("{sudo}systemctl restart c2d-agent"),
        true => format!("{sudo}systemctl start c2d-agent"),
        false => format!("{sudo}c2d-agent run{config}"),
    };
    let check = format!("  {sudo}c2d-agent check{config} --message '{}'", pairs("&"));
    let device = match &plan.who {
        NewIdentity::Device(device) => device,
        NewIdentity::Enrolment(_) => {
            return vec![
                "Next, check it, ask for its hub, and start it:".to_owned(),
                String::new(),
                check,
                format!("  {sudo}c2d-agent provision{config}"),
                format!("  {start}"),
            ];
        }
    };
    let id = shell(&device.id);
    let hub = HubName::of(&device.hub.name).map(|name| name.hub);
    let (from, [begin, end]) = match hub.filter(|_| plan.ca_file.is_none()) {
        Some(hub) => {
            let line = format!("az iot device c2d-message send --hub-name {} --device-id {id}", shell(hub));
            (Some("from any machine with az"), [line, format!("--properties '{}'", pairs(";"))])
        }
        None => {
            let root = plan.ca_file.as_ref().filter(|_| variable(CA_FILE_VARIABLE).is_none());
            let root = root.map(|_| plan.config.with_file_name(ROOT_FILE).display().to_string());
            let root = root.map_or(String::new(), |root| format!(" --ca-file {}", shell(&root)));
            let from = "with the service connection string in C2D_SERVICE_CONNECTION_STRING";
            let from = Some(from).filter(|_| variable("C2D_SERVICE_CONNECTION_STRING").is_none());
            let line = format!("c2d-agent c2d-send --device {id} --wait{root}");
            (from, [line, format!("--property {}", pairs(" --property "))])
        }
    };
    let mut lines = vec![
        "Next, check it, start it, and send it a message:".to_owned(),
        String::new(),
        check,
        format!("  {start}"),
    ];
    lines.extend(from.map(|from| format!("  # {from}:")));
    lines.extend([format!("  {begin} \\"), format!("    {end}")]);
    lines
}

/// Whether systemd runs here, and has the unit of the package.
fn is_a_service() -> bool {
    Path::new("/run/systemd/system").exists()
        && UNITS.iter().any(|folder| Path::new(folder).join("c2d-agent.service").exists())
}
