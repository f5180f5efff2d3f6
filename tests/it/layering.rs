//! Rules of this project that a compiler cannot know, checked on the text of `src/` and `tests/it/`.
//!
//! Owns: which module may import which, which crate may be named where, and the shape of a file; `files.rs` has which
//! file of a module may import which, and `circles.rs` that none do in a circle. Must not know: what any module does.

use std::path::Path;

mod circles;
mod files;
mod imports;
mod its_own_rules;

/// Each module of the library and the others that it may import: the table in `src/lib.rs`, from top to bottom.
const MAY_IMPORT: &[(&str, &[&str])] = &[
    // Vocabulary: pure. `config` asks `tls` whether a certificate fits its key.
    ("feedback", &[]),
    ("features", &[]),
    ("message", &["feedback"]),
    ("outcome", &[]),
    ("credentials", &[]),
    ("provisioning", &["credentials"]),
    ("trust", &[]),
    ("certificate", &["trust"]),
    ("rules", &["message"]),
    (
        "config",
        &["rules", "message", "credentials", "provisioning", "certificate", "trust", "features", "tls"],
    ),
    // Mechanisms: none knows another, except that all may use `tls`, `websocket`, `workload`, `processes` and `amqp_frames`.
    ("tls", &["trust"]),
    ("processes", &[]),
    (
        "session",
        &[
            "message",
            "credentials",
            "provisioning",
            "certificate",
            "tls",
            "websocket",
            "workload",
            "amqp_frames",
        ],
    ),
    ("action", &["config", "rules", "message", "processes", "trust"]),
    (
        "service",
        &["message", "credentials", "feedback", "outcome", "trust", "tls", "websocket", "amqp_frames"],
    ),
    ("inbox", &["config", "message", "outcome", "processes", "trust"]),
    ("websocket", &["credentials", "features", "tls"]),
    ("workload", &["message", "credentials", "features"]),
    // A guard is no protocol: it says which bytes may be decoded, and does not say what they should be.
    ("amqp_frames", &["message"]),
    ("emulator", &["message", "credentials", "feedback", "trust", "tls", "websocket", "amqp_frames"]),
    ("systemd", &[]),
    ("metrics", &["features"]),
    // Policy.
    (
        "agent",
        &[
            "session",
            "inbox",
            "action",
            "systemd",
            "metrics",
            "config",
            "rules",
            "message",
            "outcome",
            "credentials",
            "provisioning",
            "certificate",
            "tls",
        ],
    ),
    (
        "doctor",
        &[
            "session",
            "workload",
            "inbox",
            "action",
            "config",
            "rules",
            "message",
            "credentials",
            "provisioning",
            "trust",
            "tls",
        ],
    ),
    ("fleet", &["service", "message", "credentials", "feedback", "trust"]),
    // Edge.
    (
        "cli",
        &[
            "agent",
            "fleet",
            "doctor",
            "session",
            "inbox",
            "action",
            "systemd",
            "metrics",
            "service",
            "emulator",
            "config",
            "rules",
            "message",
            "outcome",
            "credentials",
            "provisioning",
            "feedback",
            "trust",
            "features",
            "tls",
        ],
    ),
    ("main", &["cli"]),
];

/// Modules that use no socket, process, runtime or clock.
const PURE: &[&str] = &[
    "feedback",
    "features",
    "message",
    "outcome",
    "credentials",
    "provisioning",
    "certificate",
    "trust",
    "rules",
    "config",
];

/// Text that only some places may have: the text, the places, and what to do instead.
/// A place that ends with `/` is a folder.
const CONFINED: &[(&str, &[&str], &str)] = &[
    (
        "rumqttc",
        &["src/session/mqtt.rs", "src/session/mqtt/", "src/emulator/mqtt/codec.rs"],
        "go through `session` or the emulator's codec",
    ),
    (
        "fe2o3_amqp",
        &[
            "src/service.rs",
            "src/service/",
            "src/session/amqp.rs",
            "src/session/amqp/",
            "src/emulator/",
            "src/amqp_frames/note.rs",
        ],
        "go through `service` or `session`",
    ),
    ("serde_amqp", &["src/emulator/amqp/", "src/service/event_hub/reader.rs"], "let the AMQP crate decode"),
    (
        "hyper",
        &[
            "src/service/https.rs",
            "src/service/https/",
            "src/service/entra/",
            "src/session/https_registration.rs",
            "src/emulator/client.rs",
            "src/emulator/https.rs",
            "src/emulator/https/",
            "src/emulator/imds.rs",
            "src/emulator/json_server.rs",
            "src/emulator/workload.rs",
            "src/metrics.rs",
            "src/metrics/",
            "src/websocket/tunnel.rs",
            "src/workload.rs",
        ],
        "go through `service`, `session`, `workload`, the emulator or `metrics`",
    ),
    (
        "tungstenite",
        &["src/websocket.rs", "src/websocket/", "src/emulator/https/upgrade.rs"],
        "go through `websocket`",
    ),
    (
        "crate::amqp_frames",
        &["src/service.rs", "src/service/", "src/session/amqp/", "src/emulator/amqp/frames/"],
        "go through `service`, `session`, or `frames` of the emulator",
    ),
    ("sd_notify", &["src/systemd.rs"], "go through `systemd`"),
    ("prometheus_client", &["src/metrics.rs", "src/metrics/"], "go through `metrics`"),
    (
        "x509_parser",
        &["src/doctor/", "src/doctor.rs", "src/emulator/tls.rs", "src/emulator/entra/assertion.rs"],
        "only the doctor, and the emulator's sign-in, look into certificates",
    ),
    (
        "rppal::gpio",
        &["src/action/gpio/rppal.rs"],
        "go through `action::gpio`: the crate is retired and will be replaced",
    ),
    (
        "rppal::system",
        &["src/action/gpio/rppal.rs"],
        "go through `action::gpio`: the crate is retired and will be replaced",
    ),
    ("indicatif", &["src/cli/c2d_send/many_bar.rs"], "go through `many_bar`"),
    ("crc32c::", &["src/inbox/"], "go through `inbox`"),
    ("gpiocdev", &["src/action/gpio/cdev.rs"], "go through `action::gpio`"),
    (
        "rustls_pemfile",
        &["src/tls.rs"],
        "use the functions of `tls`: the crate is archived and will be replaced",
    ),
    ("anyhow", &["src/cli.rs", "src/cli/"], "give the module a thiserror enum"),
    (
        "SystemTime::now",
        &["src/cli.rs", "src/cli/"],
        "take the time as an argument, or a `fn() -> SystemTime`",
    ),
    (
        "cfg(feature",
        &[
            "src/lib.rs",
            "src/cli.rs",
            "src/cli/",
            "src/action/gpio.rs",
            "src/config.rs",
            "src/metrics.rs",
            "src/session.rs",
            "src/session/transports.rs",
        ],
        "put the `cfg` on the module's declaration",
    ),
    (
        "cfg!(feature",
        &["src/cli.rs", "src/cli/", "src/action/gpio.rs", "src/features.rs"],
        "put a `cfg` on the module's declaration",
    ),
];

/// Names that a pure module must not use.
const IMPURE: &[&str] = &[
    "tokio",
    "TcpStream",
    "TcpListener",
    "UdpSocket",
    "ToSocketAddrs",
    "std::process",
    "rustls::",
    "tracing::",
];

/// File names that do not say what the file owns.
const EMPTY_NAMES: &[&str] = &["mod", "util", "utils", "common", "types", "helpers", "misc"];

const MAX_LINES: usize = 500;

#[test]
fn every_file_keeps_the_house_rules() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut files = Vec::new();
    for folder in ["src", "tests"] {
        collect(&root.join(folder), root, &mut files);
    }
    assert!(files.len() > 10, "only {} source files were found under {}", files.len(), root.display());
    let problems: Vec<String> = files.iter().flat_map(|(path, text)| problems(path, text)).collect();
    assert!(problems.is_empty(), "{} house rules are broken:\n{}", problems.len(), problems.join("\n"));
}

/// Collects every `.rs` file under `folder`: its path from `root` and its text.
pub(crate) fn collect(folder: &Path, root: &Path, files: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).expect("a readable folder") {
        let path = entry.expect("a readable entry").path();
        if path.is_dir() {
            collect(&path, root, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let name = path.strip_prefix(root).expect("below the root").to_string_lossy().into_owned();
            files.push((name, std::fs::read_to_string(&path).expect("UTF-8 text")));
        }
    }
}

/// All problems with one file, a sentence each.
fn problems(path: &str, text: &str) -> Vec<String> {
    let mut found = shape_problems(path, text);
    let is_test = path.starts_with("tests/") || path.ends_with("/tests.rs") || path.contains("/tests/");
    if !is_test {
        let code = shipped_code(text);
        found.extend(import_problems(path, &code));
        found.extend(confined_problems(path, &code));
        found.extend(test_knob_problems(path, text));
    }
    found
}

fn shape_problems(path: &str, text: &str) -> Vec<String> {
    let mut found = Vec::new();
    if !text.starts_with("//!") {
        found.push(format!(
            "{path}: open the file with `//!`: what it is, what it owns, what it must not know"
        ));
    }
    let lines = text.lines().count();
    if lines > MAX_LINES {
        found.push(format!(
            "{path}: {lines} lines are more than {MAX_LINES}: split it, or move its tests to a `tests.rs`"
        ));
    }
    let mut names = path.trim_end_matches(".rs").split('/');
    if let Some(name) = names.find(|name| EMPTY_NAMES.contains(name)) {
        found.push(format!(
            "{path}: `{name}` says nothing: name the file after what it owns (`foo.rs` beside `foo/`)"
        ));
    }
    found
}

fn import_problems(path: &str, code: &str) -> Vec<String> {
    let own = module_of(path);
    if own == "lib" {
        return Vec::new();
    }
    let Some((_, allowed)) = MAY_IMPORT.iter().find(|(module, _)| *module == own) else {
        return vec![format!(
            "{path}: the module `{own}` has no layer yet: add it to MAY_IMPORT in {}",
            file!()
        )];
    };
    let known = |name: &str| MAY_IMPORT.iter().any(|(module, _)| *module == name);
    let mut foreign = imports(path, code);
    foreign.retain(|name| *name != own && known(name) && !allowed.contains(name));
    foreign.dedup();
    let mut found: Vec<String> = foreign
        .into_iter()
        .map(|name| format!("{path}: `{own}` may not know `{name}` (it may know: {}): pass a value or a function in from above", allowed.join(", ")))
        .collect();
    if PURE.contains(&own) {
        let impure = IMPURE.iter().filter(|name| code.contains(**name));
        found.extend(impure.map(|name| {
            format!("{path}: `{own}` is vocabulary and may not name `{name}`: move that to a mechanism")
        }));
    }
    found
}

fn confined_problems(path: &str, code: &str) -> Vec<String> {
    let at_home = |place: &&str| path == *place || (place.ends_with('/') && path.starts_with(*place));
    CONFINED
        .iter()
        .filter(|(text, places, _)| code.contains(text) && !places.iter().any(at_home))
        .map(|(text, places, remedy)| {
            format!("{path}: `{text}` belongs in {} only: {remedy}", places.join(", "))
        })
        .collect()
}

/// Files where a test needs its own clock: a thread sleeps by the system's clock, which no test can move.
const OWN_CLOCK: &[&str] = &["src/action/gpio/guard.rs"];

/// The shipped program must be the tested program: `cfg(test)` may come only before a module of tests, and such a
/// module must come last in its file.
fn test_knob_problems(path: &str, text: &str) -> Vec<String> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    let knobs = lines.iter().enumerate().filter(|(_, line)| line.contains("cfg(test)"));
    for (at, _) in knobs.filter(|_| !OWN_CLOCK.contains(&path)) {
        if !lines.get(at + 1).is_some_and(|next| next.starts_with("mod ")) {
            found.push(format!(
                "{path}:{}: `cfg(test)` changes what is shipped: keep it for `mod tests`",
                at + 1
            ));
        }
    }
    if let Some(start) = lines.iter().position(|line| line.starts_with("mod tests {")) {
        let end =
            lines.iter().skip(start).position(|line| *line == "}").map_or(lines.len(), |end| start + end);
        if lines.iter().skip(end + 1).any(|line| !line.trim().is_empty()) {
            found
                .push(format!("{path}:{}: tests come last in a file: move what follows above them", end + 2));
        }
    }
    found
}

/// The text without comments and without the module of tests at its end.
pub(crate) fn shipped_code(text: &str) -> String {
    let lines = text.lines().take_while(|line| !line.starts_with("mod tests {"));
    let code = lines.filter(|line| !line.trim_start().starts_with("//"));
    code.map(|line| line.split(" // ").next().unwrap_or(line)).collect::<Vec<_>>().join("\n")
}

/// The module of the library that a file belongs to: `src/session/mqtt.rs` is part of `session`.
fn module_of(path: &str) -> &str {
    let below = path.strip_prefix("src/").unwrap_or(path);
    below.split('/').next().unwrap_or(below).trim_end_matches(".rs")
}

/// The names after `crate::`, `c2d_agent::`, or enough `super::` to reach the root; a group `{a, b::c}` is split.
fn imports<'a>(path: &str, code: &'a str) -> Vec<&'a str> {
    let depth = path.strip_prefix("src/").unwrap_or(path).split('/').count();
    let supers = "super::".repeat(depth);
    let mut found = Vec::new();
    for root in ["crate::", "c2d_agent::", &supers] {
        for (at, _) in code.match_indices(root) {
            let before = code[..at].chars().next_back();
            if before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == ':') {
                continue;
            }
            let rest = &code[at + root.len()..];
            match rest.strip_prefix('{') {
                Some(group) => found.extend(group_heads(group)),
                None => found.extend(head(rest)),
            }
        }
    }
    found
}

/// The first names of a `use` group, after its opening brace.
fn group_heads(group: &str) -> Vec<&str> {
    let (mut level, mut start, mut found) = (0, 0, Vec::new());
    for (at, c) in group.char_indices() {
        match c {
            '{' => level += 1,
            '}' if level > 0 => level -= 1,
            ',' | '}' if level == 0 => {
                found.extend(head(group[start..at].trim_start()));
                start = at + 1;
                if c == '}' {
                    break;
                }
            }
            _ => {}
        }
    }
    found
}

fn head(text: &str) -> Option<&str> {
    let end = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    text.get(..end).filter(|name| !name.is_empty())
}
