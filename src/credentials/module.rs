//! The environment of an IoT Edge module: who the module is, and where its tokens are signed.
//!
//! Owns: the `IOTEDGE_…` variables, and the variables of Microsoft's SDKs for a module on a developer's machine.
//! Must not know: sockets, files, HTTP.
//!
//! Source: wire reference 6.4.

use std::fmt;
use std::path::PathBuf;

use super::connection_string::{
    CredentialError, DeviceConnectionString, DeviceSecret, HostPort, check_device_id, check_module_id,
};
use super::{DeviceAuth, DeviceIdentity, excerpt};

const WORKLOAD_URI: &str = "IOTEDGE_WORKLOADURI";
const DEVICE_ID: &str = "IOTEDGE_DEVICEID";
const MODULE_ID: &str = "IOTEDGE_MODULEID";
const GENERATION_ID: &str = "IOTEDGE_MODULEGENERATIONID";
const HUB: &str = "IOTEDGE_IOTHUBHOSTNAME";
const GATEWAY: &str = "IOTEDGE_GATEWAYHOSTNAME";
const API_VERSION: &str = "IOTEDGE_APIVERSION";
const AUTH_SCHEME: &str = "IOTEDGE_AUTHSCHEME";
const CONNECTION_STRING: &str = "EdgeHubConnectionString";
const CA_FILE: &str = "EdgeModuleCACertificateFile";

/// The only authentication scheme that edgeAgent has.
const SAS_TOKEN: &str = "sasToken";
/// Real generation ids and API versions have a dozen or two.
const MAX_CHARS: usize = 128;
const SHOWN: usize = 60;

/// The workload API that signs a module's tokens, and the module's identity there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkloadAccess {
    /// The Unix socket of the workload API.
    pub socket: PathBuf,
    /// The module's own id.
    pub module_id: String,
    /// Which deployment of the module this is. Each redeploy changes it.
    pub generation_id: String,
    /// The version of the API to use, such as `2021-12-07`.
    pub api_version: String,
}

/// A module, as its environment describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModuleEnvironment {
    /// Who signs in; `module_id` is always set.
    pub identity: DeviceIdentity,
    /// A file of roots to trust in addition to the usual ones. Only without a workload API, which supplies the roots
    /// itself.
    pub ca_file: Option<PathBuf>,
}

/// Why the environment of a module cannot be used. No variant holds secret text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ModuleError {
    /// Everything that is wrong with the variables of edgeAgent.
    #[error(
        "{WORKLOAD_URI} is set, so this is an IoT Edge module, but {0}: let edgeAgent start it, or unset \
         {WORKLOAD_URI}"
    )]
    Environment(Problems),
    /// The connection string cannot be read.
    #[error("{CONNECTION_STRING}: {0}")]
    ConnectionString(#[from] CredentialError),
    /// The connection string belongs to a device.
    #[error(
        "{CONNECTION_STRING} has no ModuleId, so it is for a device: use the one of a module, or set \
         C2D_DEVICE_CONNECTION_STRING to this one"
    )]
    DeviceString,
    /// The environment has no place to name a module's certificate.
    #[error("{CONNECTION_STRING} says x509=true: use one with the SharedAccessKey of the module")]
    X509,
}

/// Several mistakes, in one sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<String>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join("; "))
    }
}

/// The variable that makes this process a module: it asks for the identity of one. Blank variables count as absent.
pub fn module_variable(env: &dyn Fn(&str) -> Option<String>) -> Option<&'static str> {
    [WORKLOAD_URI, CONNECTION_STRING].into_iter().find(|name| variable(env, name).is_some())
}

fn variable(env: &dyn Fn(&str) -> Option<String>, name: &str) -> Option<String> {
    let value = env(name)?;
    let value = value.trim();
    (!value.is_empty()).then(|| value.to_owned())
}

/// Reads who a module is from its environment, as Microsoft's SDKs do. If `IOTEDGE_WORKLOADURI` is set, edgeAgent's
/// variables count. Otherwise `EdgeHubConnectionString` does, with `EdgeModuleCACertificateFile` if the system's roots
/// are not enough.
/// `None` if neither is set, because then this process is not a module. Blank variables count as absent.
///
/// # Errors
/// [`ModuleError`] names the variables at fault.
pub fn module_from_environment(
    env: &dyn Fn(&str) -> Option<String>,
) -> Result<Option<ModuleEnvironment>, ModuleError> {
    let variable = |name: &str| variable(env, name);
    if let Some(uri) = variable(WORKLOAD_URI) {
        return of_edge_agent(&uri, &variable).map(Some).map_err(ModuleError::Environment);
    }
    variable(CONNECTION_STRING).map(|text| of_connection_string(&text, variable(CA_FILE))).transpose()
}

fn of_edge_agent(
    uri: &str,
    variable: &dyn Fn(&str) -> Option<String>,
) -> Result<ModuleEnvironment, Problems> {
    let mut problems = Vec::new();
    let socket = uri.strip_prefix("unix://").filter(|path| path.starts_with('/') && path.len() > 1);
    if socket.is_none() {
        let shown = excerpt(uri, SHOWN);
        problems.push(format!("{WORKLOAD_URI} is \"{shown}\", but must be unix:///path of a socket"));
    }
    if let Some(scheme) = variable(AUTH_SCHEME).filter(|scheme| !scheme.eq_ignore_ascii_case(SAS_TOKEN)) {
        let shown = excerpt(&scheme, SHOWN);
        problems.push(format!("{AUTH_SCHEME} is \"{shown}\", but only {SAS_TOKEN} is supported"));
    }
    let id = |check: fn(&str) -> Result<(), CredentialError>| {
        move |text: &str| check(text).map(|()| text.to_owned()).map_err(|error| error.to_string())
    };
    let host = |text: &str| {
        HostPort::parse(text).ok_or_else(|| format!("it is \"{}\", not a host name", excerpt(text, SHOWN)))
    };
    let device_id = required(DEVICE_ID, variable, id(check_device_id), &mut problems);
    let module_id = required(MODULE_ID, variable, id(check_module_id), &mut problems);
    let generation_id = required(GENERATION_ID, variable, short, &mut problems);
    let hub = required(HUB, variable, host, &mut problems);
    let gateway = required(GATEWAY, variable, host, &mut problems);
    let api_version = required(API_VERSION, variable, short, &mut problems);
    let (Some(socket), Some(device_id), Some(module_id), Some(generation_id), Some(hub), Some(api_version)) =
        (socket, device_id, module_id, generation_id, hub, api_version)
    else {
        return Err(Problems(problems));
    };
    if !problems.is_empty() {
        return Err(Problems(problems));
    }
    let access = WorkloadAccess {
        socket: PathBuf::from(socket),
        module_id: module_id.clone(),
        generation_id,
        api_version,
    };
    let auth = DeviceAuth::Workload(access);
    let identity = DeviceIdentity { hub, device_id, module_id: Some(module_id), gateway, auth };
    Ok(ModuleEnvironment { identity, ca_file: None })
}

/// A variable that must be set, and that `read` must accept.
fn required<T>(
    name: &str,
    variable: &dyn Fn(&str) -> Option<String>,
    read: impl Fn(&str) -> Result<T, String>,
    problems: &mut Vec<String>,
) -> Option<T> {
    let Some(text) = variable(name) else {
        problems.push(format!("{name} is not set"));
        return None;
    };
    read(&text).map_err(|reason| problems.push(format!("{name}: {reason}"))).ok()
}

fn short(text: &str) -> Result<String, String> {
    if text.chars().count() <= MAX_CHARS && !text.chars().any(char::is_control) {
        return Ok(text.to_owned());
    }
    Err(format!("it is \"{}\", but must be one line of at most {MAX_CHARS} characters", excerpt(text, 20)))
}

fn of_connection_string(text: &str, ca_file: Option<String>) -> Result<ModuleEnvironment, ModuleError> {
    let DeviceConnectionString { host, device_id, module_id, gateway, secret } =
        DeviceConnectionString::parse(text)?;
    let module_id = Some(module_id.ok_or(ModuleError::DeviceString)?);
    let auth = match secret {
        DeviceSecret::Key(key) => DeviceAuth::Key(key),
        DeviceSecret::Token(token) => DeviceAuth::Token(token),
        DeviceSecret::X509 => return Err(ModuleError::X509),
    };
    let identity = DeviceIdentity { hub: host, device_id, module_id, gateway, auth };
    Ok(ModuleEnvironment { identity, ca_file: ca_file.map(PathBuf::from) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8=";
    const EDGE: [(&str, &str); 8] = [
        (WORKLOAD_URI, "unix:///var/run/iotedge/workload.sock"),
        (AUTH_SCHEME, "sasToken"),
        (API_VERSION, "2021-12-07"),
        (HUB, "localhost:18883"),
        (GATEWAY, "localhost:18884"),
        (DEVICE_ID, "edge1"),
        (MODULE_ID, "c2d-agent"),
        (GENERATION_ID, "638 0/x"),
    ];

    /// The environment of edgeAgent, with these variables replaced.
    fn read(other: &[(&str, &str)]) -> Result<Option<ModuleEnvironment>, String> {
        let all: Vec<_> = other.iter().chain(&EDGE).collect();
        let env = |name: &str| all.iter().find(|(own, _)| *own == name).map(|(_, value)| (*value).to_owned());
        module_from_environment(&env).map_err(|error| error.to_string())
    }

    #[test]
    fn edge_agent_names_the_module_its_gateway_and_its_socket() {
        let ModuleEnvironment { identity, ca_file } = read(&[]).expect("valid").expect("a module");
        assert_eq!(identity.client_id(), "edge1/c2d-agent");
        assert_eq!(
            identity.resource(),
            "localhost/devices/edge1/modules/c2d-agent",
            "the port is dialled only"
        );
        assert_eq!(identity.dialled().to_string(), "localhost:18884");
        let access = WorkloadAccess {
            socket: "/var/run/iotedge/workload.sock".into(),
            module_id: "c2d-agent".into(),
            generation_id: "638 0/x".into(),
            api_version: "2021-12-07".into(),
        };
        assert_eq!((identity.auth, ca_file), (DeviceAuth::Workload(access), None));
        assert!(read(&[(AUTH_SCHEME, "")]).is_ok(), "older ones do not say how");
    }

    #[test]
    fn all_that_is_missing_or_wrong_is_named_at_once() {
        let error = read(&[
            (WORKLOAD_URI, "http://172.17.0.1:15581"),
            (AUTH_SCHEME, "x509"),
            (DEVICE_ID, " "),
            (MODULE_ID, "a/b"),
            (GENERATION_ID, ""),
            (GATEWAY, "two words"),
        ])
        .expect_err("useless");
        for part in [
            "IOTEDGE_WORKLOADURI is \"http://172.17.0.1:15581\", but must be unix:///path",
            "IOTEDGE_AUTHSCHEME is \"x509\", but only sasToken",
            "IOTEDGE_DEVICEID is not set",
            "IOTEDGE_MODULEID: \"a/b\" is not a module id",
            "IOTEDGE_MODULEGENERATIONID is not set",
            "IOTEDGE_GATEWAYHOSTNAME: it is \"two words\"",
            "let edgeAgent start it",
        ] {
            assert!(error.contains(part), "{part}: {error}");
        }
        assert!(!error.contains("IOTEDGE_IOTHUBHOSTNAME"), "{error}");
        for wrong in ["unix://", "unix:///", "unix://relative", "/var/run/x"] {
            assert!(read(&[(WORKLOAD_URI, wrong)]).expect_err("no socket").contains(wrong), "{wrong}");
        }
        assert!(read(&[(GATEWAY, "")]).expect_err("none").contains("IOTEDGE_GATEWAYHOSTNAME is not set"));
    }

    #[test]
    fn on_a_developers_machine_a_connection_string_and_a_file_do() {
        let text = format!("HostName=h;DeviceId=d;ModuleId=m;SharedAccessKey={KEY};GatewayHostName=gw");
        let none = (WORKLOAD_URI, "");
        let found = read(&[none, (CONNECTION_STRING, &text), (CA_FILE, "/etc/ca.pem")]);
        let found = found.expect("valid").expect("a module");
        assert_eq!(found.identity.client_id(), "d/m");
        assert_eq!(found.identity.dialled().name, "gw");
        assert_eq!(found.ca_file, Some("/etc/ca.pem".into()));
        assert_eq!(read(&[none]), Ok(None), "this is no module");
        assert!(read(&[(CONNECTION_STRING, "nonsense")]).is_ok(), "edgeAgent's variables go first");

        let error = |text: &str| read(&[none, (CONNECTION_STRING, text)]).expect_err("useless");
        let device = error(&format!("HostName=h;DeviceId=d;SharedAccessKey={KEY}"));
        assert!(device.contains("EdgeHubConnectionString has no ModuleId"), "{device}");
        assert!(error("HostName=h;DeviceId=d;ModuleId=m;x509=true").contains("x509=true"));
        assert!(
            error("HostName=h").starts_with("EdgeHubConnectionString: the device connection string lacks")
        );
    }
}
