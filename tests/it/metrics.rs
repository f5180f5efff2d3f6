//! Metrics: what a scraper reads from a running agent, and that scrapers cannot disturb the agent.

pub(crate) mod scraper;
mod served;

use crate::harness::{Agent, Process};

const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";

/// An agent whose hub does not answer.
fn without_hub(config: &str) -> (Agent, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a directory");
    let made = rcgen::generate_simple_self_signed(["root".to_owned()]).expect("a certificate");
    std::fs::write(dir.path().join("ca.pem"), made.cert.pem()).expect("written");
    let string = format!("HostName=localhost:1;DeviceId=dev1;SharedAccessKey={KEY}");
    let agent = Agent::spawn(&string, &dir.path().join("ca.pem"), dir.path(), config);
    (agent, dir)
}

/// How many TCP sockets of a process listen.
fn listening(process: &Process) -> usize {
    let of = |file: &str| {
        let table = std::fs::read_to_string(format!("/proc/{}/net/{file}", process.id())).unwrap_or_default();
        // Source: proc(5). The fourth column is the state, 0A for LISTEN, and the tenth the inode.
        let row = |line: &str| {
            let columns: Vec<&str> = line.split_whitespace().collect();
            (columns.get(3) == Some(&"0A")).then(|| format!("socket:[{}]", columns.get(9).unwrap_or(&"")))
        };
        table.lines().filter_map(row).collect::<Vec<_>>()
    };
    let tables = [of("tcp"), of("tcp6")].concat();
    assert!(!tables.is_empty() || std::path::Path::new("/proc/net/tcp").exists(), "no /proc/net/tcp");
    let files = std::fs::read_dir(format!("/proc/{}/fd", process.id())).expect("its open files");
    let links = files.filter_map(|file| std::fs::read_link(file.ok()?.path()).ok());
    links.filter(|link| tables.iter().any(|socket| link.as_os_str() == socket.as_str())).count()
}

#[test]
fn nothing_listens_unless_it_is_asked_for() {
    let (agent, _dir) = without_hub("");
    agent.process.stderr.wait_for("not connected");
    assert_eq!(listening(&agent.process), 0);
    assert_eq!(agent.process.terminate(), Some(0));
}

/// Shows that the test above can fail.
#[test]
fn one_socket_listens_when_it_is_asked_for() {
    let (agent, _dir) = without_hub("[metrics]\nlisten = \"127.0.0.1:0\"\n");
    agent.process.stderr.wait_for("metrics are served");
    assert_eq!(listening(&agent.process), 1);
    assert_eq!(agent.process.terminate(), Some(0));
}
