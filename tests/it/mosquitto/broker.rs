//! Mosquitto with TLS and client certificates: a broker that is not ours.
//!
//! Owns: its process, its certificates, publishing to it. Must not know: what a single test shows.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};

use crate::harness::{Agent, Process, binary, program, run, write_config};

/// A running broker; its sessions survive [`Mosquitto::restart`].
pub(crate) struct Mosquitto {
    /// The process; it logs every packet.
    pub(crate) process: Process,
    address: SocketAddr,
    dir: tempfile::TempDir,
}

impl Mosquitto {
    /// Starts a broker, or says why that is not possible.
    pub(crate) fn start() -> Result<Self, &'static str> {
        if program("mosquitto").is_none() || program("mosquitto_pub").is_none() {
            return Err("mosquitto and mosquitto-clients are not installed");
        }
        let dir = tempfile::tempdir().expect("a directory");
        write_certificates(dir.path());
        // Mosquitto cannot say which port it chose, so it gets a port that was free a moment ago.
        let free = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = free.local_addr().expect("an address");
        drop(free);
        Ok(Self { process: spawn(dir.path(), address), address, dir })
    }

    /// The address of the broker.
    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// The broker's certificate authority.
    pub(crate) fn ca_file(&self) -> PathBuf {
        self.dir.path().join("ca.pem")
    }

    /// Stops the broker in good order.
    pub(crate) fn stop(&self) {
        self.process.terminate();
    }

    /// Starts the broker again at the same address.
    pub(crate) fn restart(&mut self) {
        self.process = spawn(self.dir.path(), self.address);
    }

    /// `mosquitto_pub` or `mosquitto_sub` with this broker's address and a client certificate.
    pub(crate) fn client(&self, name: &str) -> Command {
        let mut command = Command::new(program(name).expect("installed"));
        let dir = self.dir.path();
        command.args(["-h", "localhost", "-p", &self.address.port().to_string(), "-q", "1"]);
        command.arg("--cafile").arg(dir.join("ca.pem"));
        command.arg("--cert").arg(dir.join("client.pem")).arg("--key").arg(dir.join("client.key"));
        command
    }

    /// Publishes a message to `dev1` with this property bag, and returns when the broker has it.
    pub(crate) fn publish(&self, bag: &str, body: &[u8]) {
        let mut command = self.client("mosquitto_pub");
        command.args(["-t", &format!("devices/dev1/messages/devicebound/{bag}")]);
        if body.is_empty() {
            assert!(run(command.arg("-n")).status.success(), "mosquitto_pub failed");
            return;
        }
        let mut child = command.arg("-s").stdin(Stdio::piped()).spawn().expect("mosquitto_pub starts");
        child.stdin.take().expect("piped").write_all(body).expect("written");
        assert!(child.wait().expect("a status").success(), "mosquitto_pub failed");
    }

    /// Starts the agent as `dev1` with its certificate, and the rest of the configuration, in `dir`.
    pub(crate) fn spawn_agent(&self, dir: &Path, rest: &str) -> Agent {
        self.spawn_agent_at(self.address, dir, rest)
    }

    /// As [`Mosquitto::spawn_agent`], with another address, such as that of a proxy.
    pub(crate) fn spawn_agent_at(&self, address: SocketAddr, dir: &Path, rest: &str) -> Agent {
        let own = self.dir.path();
        let device = format!(
            "[device]\nhub = \"localhost:{}\"\ndevice_id = \"dev1\"\nca_file = {:?}\ncertificate = {:?}\n\
             private_key = {:?}\n",
            address.port(),
            own.join("ca.pem"),
            own.join("client.pem"),
            own.join("client.key"),
        );
        let config = write_config(dir, &(device + rest));
        let mut command = binary();
        command.arg("run").arg("-c").arg(&config);
        Agent { process: Process::spawn(&mut command), dir: dir.to_owned() }
    }

    /// As [`Mosquitto::spawn_agent`], and waits until the agent has subscribed.
    pub(crate) fn start_agent(&self, dir: &Path, rest: &str) -> Agent {
        let agent = self.spawn_agent(dir, rest);
        agent.process.stderr.wait_for("subscribed");
        agent
    }

    /// How many PUBACKs of `dev1` the broker has seen.
    pub(crate) fn pubacks(&self) -> usize {
        self.process.stderr.count(PUBACK)
    }

    /// Waits for the `n`-th PUBACK of `dev1` since the broker's last start.
    pub(crate) fn wait_for_puback(&self, n: usize) {
        self.process.stderr.wait_for_nth(PUBACK, n);
    }
}

const PUBACK: &str = "Received PUBACK from dev1";

fn spawn(dir: &Path, address: SocketAddr) -> Process {
    let folder = dir.display();
    let port = address.port();
    // Without `user`, Mosquitto gives up root and can no longer read a temporary directory.
    let user = if rustix::process::geteuid().is_root() { "user root\n" } else { "" };
    let text = format!(
        "listener {port} 127.0.0.1\ncafile {folder}/ca.pem\ncertfile {folder}/server.pem\nkeyfile {folder}/server.key\n\
         require_certificate true\nallow_anonymous true\npersistence true\npersistence_location {folder}/\n\
         set_tcp_nodelay true\nlog_dest stderr\nlog_type all\n{user}"
    );
    let config: PathBuf = dir.join("mosquitto.conf");
    std::fs::write(&config, text).expect("written");
    let process =
        Process::spawn(Command::new(program("mosquitto").expect("installed")).arg("-c").arg(config));
    process.stderr.wait_for(" running");
    process
}

/// An authority, a server certificate for `localhost` and a client certificate for `dev1`.
fn write_certificates(dir: &Path) {
    let key = KeyPair::generate().expect("a key");
    let mut params = CertificateParams::new(Vec::new()).expect("parameters");
    // The authority needs its own name, or OpenSSL does not find it as the issuer.
    params.distinguished_name.push(DnType::CommonName, format!("authority {}", dir.display()));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = params.self_signed(&key).expect("an authority");
    std::fs::write(dir.join("ca.pem"), authority.pem()).expect("written");
    let issuer = Issuer::new(params, key);
    for (name, subject, purpose) in [
        ("server", "localhost", ExtendedKeyUsagePurpose::ServerAuth),
        ("client", "dev1", ExtendedKeyUsagePurpose::ClientAuth),
    ] {
        let key = KeyPair::generate().expect("a key");
        let mut params = CertificateParams::new([subject.to_owned()]).expect("parameters");
        params.distinguished_name.push(DnType::CommonName, subject);
        params.extended_key_usages = vec![purpose];
        let certificate = params.signed_by(&key, &issuer).expect("a certificate");
        std::fs::write(dir.join(format!("{name}.pem")), certificate.pem()).expect("written");
        let file = dir.join(format!("{name}.key"));
        std::fs::write(&file, key.serialize_pem()).expect("written");
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).expect("permissions");
    }
}
