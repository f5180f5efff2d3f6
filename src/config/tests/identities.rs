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

#[test]
fn half_a_device_is_a_problem_beside_a_module_too() {
    let report = with("[device]\ndevice_id = \"pi\"\n", &[]).report.to_string();
    assert!(report.contains("the device is not named"), "{report}");
}

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
