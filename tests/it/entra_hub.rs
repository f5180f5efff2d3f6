//! Which hub a token of Microsoft Entra goes to. Nothing is dialled.
//!
//! Owns: nothing. Must not know: where tokens come from.

use std::process::Command;

use crate::entra::said;
use crate::harness::{binary, run};

/// Who would sign in where, with variables of the environment.
fn auth(options: &str, variables: &[(&str, &str)]) -> (Option<i32>, String) {
    let mut asked: Command = binary();
    asked.arg("auth").args(options.split(' ')).envs(variables.iter().copied());
    let output = run(&mut asked);
    (output.status.code(), said(&output))
}

const HUB: &str = "C2D_HUB";
const STRING: &str = "C2D_SERVICE_CONNECTION_STRING";

#[test]
fn the_hub_of_an_option_or_of_a_file_comes_before_that_of_the_environment() {
    let dir = tempfile::tempdir().expect("a directory");
    let file = dir.path().join("string");
    std::fs::write(&file, "HostName=of-file.azure-devices.net").expect("written");
    let other = (HUB, "other.azure-devices.net");
    for (options, variables, hub) in [
        (format!("--connection-string-file {}", file.display()), vec![other], "of-file.azure-devices.net"),
        ("--hub given.azure-devices.net".to_owned(), vec![other], "given.azure-devices.net"),
        ("--json".to_owned(), vec![other], "other.azure-devices.net"),
        ("--json".to_owned(), vec![(STRING, "HostName=s.azure-devices.net")], "s.azure-devices.net"),
        (
            "--json".to_owned(),
            vec![(HUB, "one.service.azure-devices.net"), (STRING, "HostName=One.azure-devices.net")],
            "one.service.azure-devices.net",
        ),
    ] {
        let (code, text) = auth(&format!("--auth managed {options}"), &variables);
        assert_eq!(code, Some(0), "{text}");
        let is_named = [format!("hub: {hub}\n"), format!("\"hub\":\"{hub}\",")];
        assert!(is_named.iter().any(|words| text.contains(words)), "{options}: {text}");
    }
    let string = (STRING, "HostName=one.azure-devices.net;SharedAccessKeyName=p;SharedAccessKey=MTIzNA==");
    let (code, text) = auth("--auth managed", &[other, string]);
    assert_eq!(code, Some(2), "{text}");
    assert_eq!(
        text,
        "c2d-agent: C2D_HUB names the hub other.azure-devices.net, but C2D_SERVICE_CONNECTION_STRING names \
         one.azure-devices.net: unset one of them, or give --hub\n"
    );
}

#[test]
fn a_token_goes_to_a_hub_in_azure_or_to_one_that_the_user_trusts_by_a_file() {
    let words = "c2d-agent: hub.example is not the name of a hub in Azure, and a token of Microsoft Entra would be valid at \
                 all hubs of its principal: correct the name, or give --ca-file for a hub of your own, such as the emulator\n";
    for (options, variables) in [
        ("--auth managed --hub hub.example", vec![]),
        ("--auth managed", vec![(HUB, "hub.example")]),
        ("--auth managed", vec![(STRING, "HostName=hub.example"), ("C2D_CA_FILE", "")]),
    ] {
        assert_eq!(auth(options, &variables), (Some(2), words.to_owned()), "{options}");
    }
    // The name of a host that only begins or ends like one of Azure.
    for host in ["h.azure-devices.net.example", "h.x-azure-devices.net", "127.0.0.1.example"] {
        let (code, text) = auth(&format!("--auth managed --hub {host}"), &[]);
        assert_eq!(code, Some(2), "{text}");
    }
    for options in [
        "--auth managed --hub H.Azure-Devices.CN",
        "--auth managed --hub localhost:5671",
        "--auth managed --hub 127.0.0.1",
        "--auth managed --hub [::1]:5671",
        "--auth managed --hub hub.example --ca-file ca.pem",
    ] {
        assert_eq!(auth(options, &[]).0, Some(0), "{options}");
    }
    assert_eq!(auth("--auth managed --hub hub.example", &[("C2D_CA_FILE", "ca.pem")]).0, Some(0));
    // A key is for one hub only.
    let string = "HostName=hub.example;SharedAccessKeyName=p;SharedAccessKey=MTIzNA==";
    let (code, text) = auth("--auth sas", &[(STRING, string)]);
    assert_eq!(code, Some(0), "{text}");
}
