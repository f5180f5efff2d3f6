//! What holds over every transport: which one it is can be seen.
//!
//! Must not know: how any of them works. Used by: nobody.

use crate::harness::{Emulator, binary, run};
use crate::over::{self, TRANSPORTS};

const RULE: &str = "[[rule]]\nname = \"any\"\nwhen = \"any\"\ndo = [ { shell = \"true\" } ]\n";

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a directory")
}

#[test]
fn the_transport_is_in_the_log_in_the_status_and_in_the_metrics() {
    let emulator = Emulator::start();
    for transport in TRANSPORTS {
        let dir = dir();
        let rest = format!("{RULE}[metrics]\nlisten = \"127.0.0.1:0\"\n");
        let agent = over::start(&emulator, transport, dir.path(), &rest);
        let line = agent.process.stderr.wait_for("signed in");
        assert!(line.contains(&format!("transport=\"{transport}\"")), "{line}");
        crate::harness::wait_for_status(dir.path(), &format!(" over {transport}, 0 reconnects"));
        let config = dir.path().join("config.toml");
        let told = run(binary().args(["status", "--json", "-c"]).arg(&config));
        let told: serde_json::Value = serde_json::from_slice(&told.stdout).expect("JSON");
        assert_eq!(told["connection"]["transport"], **transport);
        #[cfg(feature = "metrics")]
        for other in TRANSPORTS {
            use crate::metrics::scraper::{address, scrape};
            let figure = format!("c2d_agent_connection_transport{{transport=\"{other}\"}}");
            let expected = if other == transport { 1.0 } else { 0.0 };
            assert_eq!(scrape(address(&agent.process)).figure(&figure), Some(expected), "{figure}");
        }
        assert_eq!(agent.process.terminate(), Some(0));
    }
}
