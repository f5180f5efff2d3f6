//! The configuration's fixtures: the report of each, word for word, and what depends on real files.
//!
//! Each `tests/fixtures/config/{valid,invalid}/NAME.toml` has its expected report beside it in `NAME.txt`. A valid file
//! without warnings has no report. Lines `# env: NAME=VALUE` at its top are its environment. If reports must change,
//! set `C2D_WRITE_FIXTURES=1` to write them again, and read the difference. `drop_ins/NAME/` holds a `config.toml` with
//! its `config.d`, and the report in `report.txt`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use c2d_agent::config::{self, Config, Report};
use c2d_agent::credentials::DeviceAuth;

const DEVICE: &str = "HostName=hub.example;DeviceId=pi-01;SharedAccessKey=AAAA";
const SERVICE: &str = "HostName=hub.example;SharedAccessKeyName=service;SharedAccessKey=c2VjcmV0";

#[test]
fn every_invalid_configuration_has_its_report() {
    each_fixture("invalid", 49, |result| Some(result.expect_err("invalid").to_string()));
}

#[test]
fn every_valid_configuration_is_taken() {
    each_fixture("valid", 7, |result| {
        let warnings = result.unwrap_or_else(|report| panic!("{report}")).warnings;
        (!warnings.is_empty()).then(|| warnings.to_string())
    });
}

#[test]
fn drop_ins_have_their_reports() {
    let folder = Path::new("tests/fixtures/config/drop_ins");
    let mut failed = Vec::new();
    let cases: Vec<_> =
        fs::read_dir(folder).expect("fixtures").map(|case| case.expect("readable").path()).collect();
    assert!(cases.len() >= 5, "only {} fixtures in {}", cases.len(), folder.display());
    for case in cases {
        // The test uses a copy, because a checkout may be writable by its group, which is a warning.
        let dir = Directory::new();
        dir.copy(&case, "config.toml");
        let main = fs::read_to_string(dir.path("config.toml")).expect("readable");
        for file in fs::read_dir(case.join("config.d")).expect("drop-ins") {
            dir.copy(&case, &format!("config.d/{}", file.expect("readable").file_name().display()));
        }
        let found = match config::load(&dir.path("config.toml"), &|name| variable(&main, name)) {
            Ok(config) => config.warnings.to_string(),
            Err(report) => report.to_string(),
        };
        let found = format!("{}\n", dir.plain(&found));
        let beside = case.join("report.txt");
        if std::env::var_os("C2D_WRITE_FIXTURES").is_some() {
            fs::write(&beside, &found).expect("written");
        }
        let expected = fs::read_to_string(&beside).unwrap_or_default();
        if found != expected {
            failed.push(format!("{} has the report\n{found}but expected was\n{expected}", case.display()));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn a_connection_string_file_names_the_device_from_the_directory_of_the_configuration() {
    let dir = Directory::new();
    dir.write("device.txt", &format!("{DEVICE}\n"), 0o600);
    let config = dir.load("[device]\nconnection_string_file = \"device.txt\"\n").expect("valid");
    assert_eq!(config.identities.first().device_id, "pi-01");
    assert_eq!(dir.warnings(&config), "");
}

#[test]
fn a_device_of_the_configuration_beside_an_enrolment_of_the_environment_is_told_the_variable() {
    let dir = Directory::new();
    dir.write("device.txt", DEVICE, 0o600);
    dir.write("c.toml", "[device]\nconnection_string_file = \"device.txt\"\n", 0o644);
    let environment = |name: &str| (name == "C2D_PROVISIONING_ID_SCOPE").then(|| "0ne00000001".to_owned());
    let report = config::load(&dir.path("c.toml"), &environment).expect_err("named twice");
    let said = "the device is named twice, by C2D_PROVISIONING_ID_SCOPE and by [device]: unset the variable, or \
                remove the device from [device]";
    assert!(report.to_string().contains(said), "{report}");
}

#[test]
fn a_secret_that_everyone_can_read_is_a_warning() {
    let dir = Directory::new();
    dir.write("device.txt", DEVICE, 0o644);
    let config = dir.load("[device]\nconnection_string_file = \"device.txt\"\n").expect("valid");
    assert_eq!(
        dir.warnings(&config),
        "DIR/c.toml:2:26: everyone on this machine can read the secret in DIR/device.txt: run chmod o= \
         DIR/device.txt"
    );
}

#[test]
fn a_service_string_where_a_device_string_belongs_is_named_with_its_file() {
    let dir = Directory::new();
    dir.write("device.txt", SERVICE, 0o600);
    let report = dir.problems("[device]\nconnection_string_file = \"device.txt\"\n");
    assert!(
        report.starts_with("DIR/c.toml:2:26: DIR/device.txt: this is a service connection string"),
        "{report}"
    );
    assert!(!report.contains("c2VjcmV0"), "{report}");
}

#[test]
fn a_certificate_must_match_its_key() {
    let dir = Directory::new();
    for name in ["a", "b"] {
        let made = rcgen::generate_simple_self_signed([name.to_owned()]).expect("a certificate");
        dir.write(&format!("{name}.cert.pem"), &made.cert.pem(), 0o644);
        dir.write(&format!("{name}.key.pem"), &made.signing_key.serialize_pem(), 0o600);
    }
    let text = |key: &str| {
        format!(
            "[device]\nhub = \"hub.example\"\ndevice_id = \"pi-01\"\ncertificate = \"a.cert.pem\"\n\
             private_key = \"{key}\"\nca_file = \"b.cert.pem\"\n"
        )
    };
    let config = dir.load(&text("a.key.pem")).expect("valid");
    let expected =
        DeviceAuth::Certificate { certificate: dir.path("a.cert.pem"), private_key: dir.path("a.key.pem") };
    assert_eq!(config.identities.first().auth, expected);
    let with_string = "[device]\ncertificate = \"a.cert.pem\"\nprivate_key = \"a.key.pem\"\n";
    fs::write(dir.path("s.toml"), with_string).expect("written");
    let string = "HostName=hub.example;DeviceId=pi-02;x509=true";
    let env = |name: &str| (name == "C2D_DEVICE_CONNECTION_STRING").then(|| string.to_owned());
    let named = config::load(&dir.path("s.toml"), &env).expect("valid").identities.first().clone();
    assert_eq!((named.device_id.as_str(), named.auth), ("pi-02", expected));
    assert_eq!(config.ca_file, Some(dir.path("b.cert.pem")));
    let report = dir.problems(&text("b.key.pem"));
    assert!(
        report.starts_with(
            "DIR/c.toml:4:15: the certificate DIR/a.cert.pem does not match the private key DIR/b.key.pem"
        ),
        "{report}"
    );
    let report = dir.problems(&text("a.cert.pem"));
    assert!(
        report.starts_with("DIR/c.toml:5:15: DIR/a.cert.pem holds no unencrypted private key"),
        "{report}"
    );
}

#[test]
fn what_systemd_has_read_for_the_agent_stands_in_for_a_file_that_cannot_be_opened() {
    let dir = Directory::new();
    let load = |text: &str| {
        dir.write("c.toml", text, 0o644);
        let credentials = dir.path("credentials").display().to_string();
        config::load(&dir.path("c.toml"), &|name| {
            (name == "CREDENTIALS_DIRECTORY").then(|| credentials.clone())
        })
    };
    let id = |text: &str| {
        load(text).unwrap_or_else(|report| panic!("{report}")).identities.first().device_id.clone()
    };
    let named = "[device]\nconnection_string_file = \"device.connection-string\"\n";

    // A blank credential counts as none: the unit sets one if there is no file.
    dir.write("credentials/device.connection-string", "\n", 0o600);
    let report = dir.plain(&load("").expect_err("no device").to_string());
    assert!(report.contains("the device is not named"), "{report}");
    let report = dir.plain(&load(named).expect_err("no file").to_string());
    assert!(report.contains("cannot read DIR/device.connection-string: "), "{report}");

    dir.write(
        "credentials/device.connection-string",
        "HostName=h;DeviceId=handed;SharedAccessKey=AAAA\n",
        0o600,
    );
    assert_eq!(id(""), "handed", "nothing else names the device");
    assert_eq!(id(named), "handed", "the named file is not there");
    dir.write("device.connection-string", &DEVICE.replace("pi-01", "own"), 0o600);
    assert_eq!(id(named), "own", "the named file can be read");
    assert_eq!(id(""), "handed");
}

#[test]
fn a_certificate_and_its_key_can_be_handed_over_by_systemd() {
    let dir = Directory::new();
    let made = rcgen::generate_simple_self_signed(["pi-01".to_owned()]).expect("a certificate");
    dir.write("credentials/device.cert.pem", &made.cert.pem(), 0o400);
    dir.write("credentials/device.key.pem", &made.signing_key.serialize_pem(), 0o400);
    dir.write(
        "c.toml",
        "[device]\nhub = \"hub.example\"\ndevice_id = \"pi-01\"\ncertificate = \"device.cert.pem\"\n\
         private_key = \"device.key.pem\"\n",
        0o644,
    );
    let credentials = dir.path("credentials").display().to_string();
    let env = |name: &str| (name == "CREDENTIALS_DIRECTORY").then(|| credentials.clone());
    let config = config::load(&dir.path("c.toml"), &env).unwrap_or_else(|report| panic!("{report}"));
    let expected = DeviceAuth::Certificate {
        certificate: dir.path("credentials/device.cert.pem"),
        private_key: dir.path("credentials/device.key.pem"),
    };
    assert_eq!(config.identities.first().auth, expected);
}

#[test]
fn a_program_that_others_could_change_is_refused() {
    let dir = Directory::new();
    dir.write("open/run", "#!/bin/sh\n", 0o755);
    dir.write("own/run", "#!/bin/sh\n", 0o755);
    dir.write("own/loose", "#!/bin/sh\n", 0o775);
    dir.write("own/text", "#!/bin/sh\n", 0o644);
    std::os::unix::fs::symlink(dir.path("own/loose"), dir.path("own/link")).expect("a link");
    fs::set_permissions(dir.path("open"), fs::Permissions::from_mode(0o777)).expect("permissions");
    let report = |program: &str| {
        let path = dir.path(program);
        dir.problems(&format!(
            "[[rule]]\nname = \"a\"\nwhen = \"any\"\ndo = [{{ run = [\"{}\"] }}]\n",
            path.display()
        ))
    };
    let first = |program: &str| report(program).lines().nth(1).unwrap_or_default().to_owned();
    assert_eq!(
        first("own/loose"),
        "DIR/c.toml:4:16: the program DIR/own/loose is writable by users other than its owner: run chmod \
         go-w DIR/own/loose"
    );
    assert_eq!(first("own/link"), first("own/loose"));
    assert_eq!(
        first("own/text"),
        "DIR/c.toml:4:16: the program DIR/own/text is not executable: run chmod +x DIR/own/text"
    );
    assert_eq!(
        first("open/run"),
        "DIR/c.toml:4:16: the program DIR/open/run is in DIR/open, which is writable by users other than its \
         owner: run chmod go-w DIR/open"
    );
    assert!(!report("own/run").contains("program"), "{}", report("own/run"));
}

#[test]
fn a_configuration_that_is_no_text_file_is_refused() {
    let dir = Directory::new();
    fs::write(dir.path("binary"), [0xff, 0xfe]).expect("written");
    let refused =
        |path: PathBuf| dir.plain(&config::load(&path, &|_| None).expect_err("refused").to_string());
    assert_eq!(
        refused(dir.path("binary")),
        "DIR/binary: cannot read the configuration: it is not UTF-8 text: save it as UTF-8\n1 problem"
    );
    assert_eq!(
        refused(dir.path(".")),
        "DIR/.: cannot read the configuration: it is a directory; name a file in it with -c FILE\n1 problem"
    );
    assert_eq!(
        refused(PathBuf::from("/dev/zero")),
        "/dev/zero: cannot read the configuration: it is not a regular file\n1 problem"
    );
}

/// Loads each fixture of a folder and compares its report, `None` for none, with the text beside it.
fn each_fixture(folder: &str, at_least: usize, report: impl Fn(Result<Config, Report>) -> Option<String>) {
    // The path is relative, so that reports are the same on every machine; cargo runs tests in the package's folder.
    let folder = Path::new("tests/fixtures/config").join(folder);
    let mut paths: Vec<_> =
        fs::read_dir(&folder).expect("fixtures").map(|entry| entry.expect("readable").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "toml"));
    assert!(paths.len() >= at_least, "only {} fixtures in {}", paths.len(), folder.display());
    let mut failed = Vec::new();
    for path in paths {
        let text = fs::read_to_string(&path).expect("readable");
        // Only the text is read, because a checkout may be writable by its group, which is a warning.
        let inspection = config::inspect_text(&text, &path, &|name| variable(&text, name));
        // An agent does not read the tests; `check` reports their problems like all others.
        let (_, tests) = config::read_tests(&inspection);
        let checked = if tests.problems() > 0 { Err(tests) } else { inspection.into_config() };
        let found = report(checked);
        let beside = path.with_extension("txt");
        if std::env::var_os("C2D_WRITE_FIXTURES").is_some() {
            if let Some(found) = &found {
                fs::write(&beside, format!("{found}\n")).expect("written");
            }
            continue;
        }
        let expected = fs::read_to_string(&beside).ok();
        let found = found.map(|report| format!("{report}\n"));
        if found != expected {
            let [found, expected] = [found, expected].map(Option::unwrap_or_default);
            failed.push(format!("{} has the report\n{found}but expected was\n{expected}", path.display()));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// A variable of a fixture's environment.
fn variable(text: &str, name: &str) -> Option<String> {
    let set =
        |line: &str| Some(line.strip_prefix("# env: ")?.strip_prefix(name)?.strip_prefix('=')?.to_owned());
    text.lines().find_map(set)
}

/// A directory for a configuration and the files that it names.
struct Directory(tempfile::TempDir);

impl Directory {
    fn new() -> Self {
        Self(tempfile::tempdir().expect("a directory"))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str, mode: u32) {
        let path = self.path(name);
        let parent = path.parent().expect("a parent");
        fs::create_dir_all(parent).expect("a directory");
        fs::set_permissions(parent, fs::Permissions::from_mode(0o755)).expect("permissions");
        fs::write(&path, text).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).expect("permissions");
    }

    fn copy(&self, from: &Path, name: &str) {
        self.write(name, &fs::read_to_string(from.join(name)).expect("a fixture"), 0o644);
    }

    fn load(&self, text: &str) -> Result<Config, Report> {
        self.write("c.toml", text, 0o644);
        config::load(&self.path("c.toml"), &|_| None)
    }

    fn problems(&self, text: &str) -> String {
        self.plain(&self.load(text).expect_err("invalid").to_string())
    }

    fn warnings(&self, config: &Config) -> String {
        let no_rules = "there is no [[rule]]";
        let lines: Vec<_> = config.warnings.warning_lines().filter(|line| !line.contains(no_rules)).collect();
        self.plain(&lines.join("\n"))
    }

    /// The text with `DIR` in place of the directory's name, which changes.
    fn plain(&self, text: &str) -> String {
        text.replace(&self.0.path().display().to_string(), "DIR")
    }
}
