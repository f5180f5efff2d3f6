//! Tests of who signs in: a device, a module, both, or none.

use super::*;

const EDGE: [(&str, &str); 7] = [
    ("IOTEDGE_WORKLOADURI", "unix:///run/w.sock"),
    ("IOTEDGE_APIVERSION", "2021-12-07"),
    ("IOTEDGE_IOTHUBHOSTNAME", "h.example"),
    ("IOTEDGE_GATEWAYHOSTNAME", "gateway"),
    ("IOTEDGE_DEVICEID", "edge1"),
    ("IOTEDGE_MODULEID", "agent"),
    ("IOTEDGE_MODULEGENERATIONID", "7"),
];

fn with(text: &str, variables: &[(&str, &str)]) -> Inspection {
    let env = |name: &str| {
        let found = variables.iter().chain(&EDGE).find(|(own, _)| *own == name);
        found.map(|(_, value)| (*value).to_owned())
    };
    inspect_text(text, Path::new("/nowhere/config.toml"), &env)
}

fn ids(config: &Config) -> Vec<String> {
    config.identities.iter().map(DeviceIdentity::client_id).collect()
}

#[cfg(not(feature = "full"))]
#[test]
fn a_build_without_modules_refuses_one_in_one_sentence_and_takes_a_device() {
    let dev = ("C2D_DEVICE_CONNECTION_STRING", CONNECTION);
    let edge_hub = ("EdgeHubConnectionString", "HostName=h.example");
    for (variables, asks) in [
        (vec![], "IOTEDGE_WORKLOADURI"),
        (vec![("IOTEDGE_MODULEID", "")], "IOTEDGE_WORKLOADURI"),
        (vec![dev], "IOTEDGE_WORKLOADURI"),
        (vec![dev, edge_hub, ("IOTEDGE_WORKLOADURI", "")], "EdgeHubConnectionString"),
    ] {
        let report = with("", &variables).report;
        assert_eq!(report.problems(), 1, "{report}");
        let sentence =
            format!("{asks}: the identity of an IoT Edge module is not in this program: the Debian package");
        assert!(report.to_string().contains(&sentence), "{report}");
        assert!(
            report.to_string().contains(&format!("its Cargo feature is full; or unset {asks}")),
            "{report}"
        );
    }
    let device = with("", &[dev, ("IOTEDGE_WORKLOADURI", "")]).into_config().expect("valid");
    assert_eq!(ids(&device), ["dev"], "the other variables of edgeAgent alone make no module");
}

#[cfg(feature = "full")]
#[test]
fn a_module_needs_nothing_but_its_environment_and_a_device_may_be_beside_it() {
    let module = with("[device]\ntoken_lifetime = \"10m\"\n", &[]).into_config().expect("valid");
    assert_eq!(ids(&module), ["edge1/agent"]);
    assert_eq!((module.identities.device(), module.token_lifetime), (None, Duration::from_secs(600)));
    let both = with("", &[("C2D_DEVICE_CONNECTION_STRING", CONNECTION)]).into_config().expect("valid");
    assert_eq!(ids(&both), ["dev", "edge1/agent"]);
    let resources: Vec<_> = both.identities.iter().map(DeviceIdentity::resource).collect();
    assert_eq!(resources, ["h.example/devices/dev", "h.example/devices/edge1/modules/agent"]);
}

#[cfg(feature = "full")]
#[test]
fn half_a_device_is_a_problem_beside_a_module_too() {
    let report = with("[device]\ndevice_id = \"pi\"\n", &[]).report.to_string();
    assert!(report.contains("the device is not named"), "{report}");
}

#[cfg(feature = "full")]
#[test]
fn a_module_that_cannot_be_read_is_the_only_problem_and_nobody_is_explained() {
    let report = with("", &[("IOTEDGE_MODULEID", "")]).report;
    assert_eq!(report.problems(), 1, "{report}");
    assert!(report.to_string().contains("IOTEDGE_MODULEID is not set"), "{report}");
    let nobody = inspect_text("", Path::new("/nowhere/config.toml"), &|_| None).report.to_string();
    for part in
        ["C2D_DEVICE_CONNECTION_STRING", "connection_string_file", "certificate", "IOTEDGE_WORKLOADURI"]
    {
        assert!(nobody.contains(part), "{nobody}");
    }
}
