//! Tests of actions on a real machine: real processes, simulated pins.
//!
//! Owns: nothing that ships. Must not know: sessions.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Actions, Outcome, OutcomeResult};
use crate::config::{ActiveLevel, GpioBackend, GpioSettings, LineName, OnExit, PinSettings};
use crate::rules::{PinChange, PinState, Plan, PlannedStep};

fn simulated(state_file: &Path) -> Actions {
    let pump = PinSettings {
        line: LineName::Number(17),
        active: ActiveLevel::High,
        initial: PinState::Off,
        on_exit: OnExit::Set(PinState::Off),
        max_on: None,
        on_disconnect: None,
    };
    let settings = GpioSettings {
        backend: GpioBackend::Simulated,
        chip: None,
        state_file: Some(state_file.to_owned()),
        pins: BTreeMap::from([("pump".to_owned(), pump)]),
        interlocks: Vec::new(),
    };
    Actions::open(&settings, &BTreeMap::new()).unwrap()
}

fn plan(steps: Vec<PlannedStep>) -> Plan {
    Plan {
        rule: "test".to_owned(),
        steps,
        environment: vec![("C2D_RULE".to_owned(), "test".to_owned())],
        timeout: Duration::from_secs(20),
    }
}

fn shell(text: &str) -> PlannedStep {
    PlannedStep::Shell { text: text.to_owned() }
}

fn program(argv: &[&str]) -> PlannedStep {
    PlannedStep::Run { argv: argv.iter().map(|argument| (*argument).to_owned()).collect() }
}

fn pump(change: PinChange) -> PlannedStep {
    PlannedStep::Gpio { pin: "pump".to_owned(), change }
}

async fn perform(plan: &Plan) -> Outcome {
    perform_with(plan, Bytes::new()).await
}

async fn perform_with(plan: &Plan, body: Bytes) -> Outcome {
    let actions = Actions::open(&GpioSettings::default(), &BTreeMap::new()).unwrap();
    actions.perform(plan, body, &CancellationToken::new()).await
}

fn text(outcome: &Outcome) -> String {
    String::from_utf8(outcome.output.clone()).unwrap()
}

/// Polls until the condition holds.
async fn until(mut so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !so() {
        assert!(Instant::now() < deadline, "it did not happen within 10 s");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// Whether the process exists and is not a zombie that its parent has not waited for yet.
fn is_running(pid: &str) -> bool {
    fs::read_to_string(format!("/proc/{}/stat", pid.trim()))
        .is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with('Z')))
}

#[tokio::test]
async fn a_program_gets_the_plans_environment_a_fixed_path_the_root_folder_and_nothing_else() {
    let outcome = perform(&plan(vec![program(&["/usr/bin/env"]), program(&["/bin/pwd"])])).await;
    assert_eq!(outcome.to_string(), "succeeded");
    assert_eq!(outcome.exit_code, Some(0));
    assert_eq!(
        text(&outcome),
        "C2D_RULE=test\nPATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\n/\n"
    );
}

#[tokio::test]
async fn a_program_reads_the_body_on_its_standard_input() {
    let body = Bytes::from(vec![b'x'; 256 * 1024]);
    assert_eq!(
        text(&perform_with(&plan(vec![program(&["/usr/bin/wc", "-c"])]), body).await).trim(),
        "262144"
    );
    assert_eq!(text(&perform(&plan(vec![program(&["/usr/bin/wc", "-c"])])).await).trim(), "0");
}

#[tokio::test]
async fn a_program_need_not_read_the_body() {
    let outcome = perform_with(&plan(vec![program(&["/bin/true"])]), Bytes::from(vec![0; 256 * 1024])).await;
    assert_eq!(outcome.result, OutcomeResult::Succeeded);
}

#[tokio::test]
async fn both_output_streams_are_kept_in_the_order_written() {
    let outcome = perform(&plan(vec![shell("echo one; echo two >&2; echo three")])).await;
    assert_eq!(text(&outcome), "one\ntwo\nthree\n");
    assert_eq!(outcome.output_bytes, 14);
}

#[tokio::test]
async fn the_first_failing_step_ends_the_plan_and_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let state_file = folder.path().join("pins.json");
    let actions = simulated(&state_file);
    let plan = plan(vec![program(&["/bin/true"]), shell("exit 3"), pump(PinChange::Set(PinState::On))]);
    let outcome = actions.perform(&plan, Bytes::new(), &CancellationToken::new()).await;
    assert_eq!(outcome.to_string(), "failed: step 2 of 3 (shell): exit code 3");
    assert_eq!(outcome.exit_code, Some(3));
    assert_eq!(fs::read_to_string(&state_file).unwrap(), r#"{"pump":"off"}"#);
}

#[tokio::test]
async fn a_program_ended_by_a_signal_has_no_exit_code_and_the_signal_is_named() {
    let outcome = perform(&plan(vec![shell("kill -SEGV $$")])).await;
    assert_eq!(outcome.to_string(), "failed: shell: killed by signal 11 (SIGSEGV)");
    assert_eq!(outcome.exit_code, None);
}

#[tokio::test]
async fn a_program_that_cannot_start_says_why() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, content: &str, mode: u32| {
        let path = folder.path().join(name);
        fs::write(&path, content).unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let no_interpreter = file("no-interpreter", "#!/does/not/exist\n", 0o755);
    let not_executable = file("not-executable", "#!/bin/sh\n", 0o644);
    let no_format = file("no-format", "echo a shell must not run this\n", 0o755);
    let too_large = "x".repeat(256 * 1024);
    let cases = [
        (vec!["/does/not/exist"], "/does/not/exist does not exist".to_owned()),
        (
            vec![&no_interpreter],
            format!(
                "{no_interpreter} exists, but the interpreter in its first line, or its loader, does not"
            ),
        ),
        (
            vec![&not_executable],
            format!(
                "{not_executable} may not be executed by this user; check its mode, its folders' modes and the noexec \
                 mount option"
            ),
        ),
        (
            vec![&no_format],
            format!("{no_format} is neither a program for this machine nor a script that begins with #!"),
        ),
        (
            vec!["/bin/true", &too_large],
            "the arguments and environment for /bin/true are larger than the kernel allows".to_owned(),
        ),
    ];
    for (argv, reason) in cases {
        let outcome = perform(&plan(vec![program(&argv)])).await;
        assert_eq!(outcome.to_string(), format!("failed: run {}: cannot start it: {reason}", argv[0]));
        assert_eq!(text(&outcome), "");
    }
}

#[tokio::test]
async fn a_flood_of_output_is_read_to_the_end_and_only_its_beginning_is_kept() {
    let outcome = perform(&plan(vec![shell("yes 0123456 | head -c 50000000")])).await;
    assert_eq!(outcome.result, OutcomeResult::Succeeded);
    assert_eq!((outcome.output.len(), outcome.output_bytes), (4096, 50_000_000));
}

#[tokio::test]
async fn an_endless_flood_is_cut_off_by_the_deadline() {
    let mut plan = plan(vec![program(&["/usr/bin/yes"])]);
    plan.timeout = Duration::from_millis(500);
    let outcome = perform(&plan).await;
    assert_eq!(outcome.result, OutcomeResult::TimedOut);
    assert!(outcome.to_string().starts_with("timed out: run /usr/bin/yes was stopped after "), "{outcome}");
    assert!(outcome.duration < Duration::from_secs(2), "{outcome}");
    assert_eq!(outcome.output.len(), 4096);
}

#[tokio::test]
async fn a_program_that_ignores_sigterm_and_its_children_are_killed_after_the_grace_period() {
    let folder = tempfile::tempdir().unwrap();
    let pid_file = folder.path().join("pids");
    let pids = || fs::read_to_string(&pid_file).unwrap_or_default();
    let text =
        format!("trap '' TERM; sleep 60 & echo $! $$ > {}; while :; do sleep 60; done", pid_file.display());
    let actions = Actions::open(&GpioSettings::default(), &BTreeMap::new()).unwrap();
    let plan = plan(vec![shell(&text)]);
    let stop = CancellationToken::new();
    let cancel = async {
        until(|| pids().ends_with('\n')).await;
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(actions.perform(&plan, Bytes::new(), &stop), cancel);
    assert_eq!(outcome.result, OutcomeResult::Interrupted);
    assert!(
        outcome.duration >= Duration::from_secs(2) && outcome.duration < Duration::from_secs(10),
        "{outcome}"
    );
    assert_eq!(pids().split_whitespace().count(), 2);
    assert!(!pids().split_whitespace().any(is_running), "{} should be gone", pids());
}

#[tokio::test]
async fn stopping_ends_a_program_gracefully() {
    let folder = tempfile::tempdir().unwrap();
    let started = folder.path().join("started");
    let actions = Actions::open(&GpioSettings::default(), &BTreeMap::new()).unwrap();
    let waiting = format!("trap 'echo bye; exit 0' TERM; : > {}; sleep 60 & wait", started.display());
    let plan = plan(vec![shell(&waiting), shell("echo next")]);
    let stop = CancellationToken::new();
    let cancel = async {
        until(|| started.exists()).await;
        stop.cancel();
    };
    let (outcome, ()) = tokio::join!(actions.perform(&plan, Bytes::new(), &stop), cancel);
    assert_eq!(text(&outcome), "bye\n");
    assert_eq!(
        outcome.to_string(),
        "interrupted: step 1 of 2 (shell) was stopped because the agent is stopping"
    );
}

#[tokio::test]
async fn what_a_program_leaves_in_its_group_is_ended_with_it() {
    let outcome = perform(&plan(vec![shell("sleep 60 & echo $!")])).await;
    assert_eq!(outcome.result, OutcomeResult::Succeeded);
    assert!(outcome.duration < Duration::from_secs(2), "{outcome}");
    assert!(!is_running(&text(&outcome)));
}

#[tokio::test]
async fn a_daemon_that_left_the_group_neither_holds_up_the_action_nor_is_ended() {
    let outcome =
        perform(&plan(vec![shell("setsid sh -c 'echo $$; exec sleep 5' & wait_for=1; sleep 0.3")])).await;
    assert_eq!(outcome.result, OutcomeResult::Succeeded);
    assert!(outcome.duration < Duration::from_secs(2), "{outcome}");
    let pid = text(&outcome);
    assert!(is_running(&pid));
    let pid = rustix::process::Pid::from_raw(pid.trim().parse().unwrap()).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn a_dropped_action_kills_the_group_and_turns_its_pin_off() {
    let folder = tempfile::tempdir().unwrap();
    let state_file = folder.path().join("pins.json");
    let pid_file = folder.path().join("pid");
    let actions = simulated(&state_file);
    let forked = plan(vec![shell(&format!("sleep 60 & echo $! > {}; wait", pid_file.display()))]);
    let stop = CancellationToken::new();
    tokio::select! {
        outcome = actions.perform(&forked, Bytes::new(), &stop) => panic!("{outcome}"),
        () = until(|| fs::read_to_string(&pid_file).is_ok_and(|pid| pid.ends_with('\n'))) => {}
    }
    let pid = fs::read_to_string(&pid_file).unwrap();
    until(|| !is_running(&pid)).await;

    let pulsing = plan(vec![pump(PinChange::Pulse(Duration::from_secs(60)))]);
    tokio::select! {
        outcome = actions.perform(&pulsing, Bytes::new(), &stop) => panic!("{outcome}"),
        () = until(|| fs::read_to_string(&state_file).unwrap() == r#"{"pump":"on"}"#) => {}
    }
    assert_eq!(fs::read_to_string(&state_file).unwrap(), r#"{"pump":"off"}"#);
}

#[tokio::test]
async fn nothing_is_started_when_the_agent_is_already_stopping() {
    let actions = Actions::open(&GpioSettings::default(), &BTreeMap::new()).unwrap();
    let stop = CancellationToken::new();
    stop.cancel();
    let outcome = actions.perform(&plan(vec![shell("echo started")]), Bytes::new(), &stop).await;
    assert_eq!((outcome.result, outcome.output_bytes), (OutcomeResult::Interrupted, 0));
}

#[tokio::test]
async fn actions_run_side_by_side_on_one_thread() {
    let folder = tempfile::tempdir().unwrap();
    let state_file = folder.path().join("pins.json");
    let actions = simulated(&state_file);
    let (one, two) = (folder.path().join("one"), folder.path().join("two"));
    // Each program ends only after the other one has begun, while the pulse is on.
    let waiting = |own: &Path, other: &Path| {
        let (own, other, pins) = (own.display(), other.display(), state_file.display());
        let text = format!(
            "echo {own} > {own}; until [ -e {other} ] && grep -q '\"on\"' {pins}; do sleep 0.01; done; cat {own}"
        );
        plan(vec![shell(&text)])
    };
    let (first, second) = (waiting(&one, &two), waiting(&two, &one));
    let pulsing = plan(vec![pump(PinChange::Pulse(Duration::from_secs(19)))]);
    let (stop, stop_pulse) = (CancellationToken::new(), CancellationToken::new());
    let programs = async {
        let both = tokio::join!(
            actions.perform(&first, Bytes::new(), &stop),
            actions.perform(&second, Bytes::new(), &stop)
        );
        stop_pulse.cancel();
        both
    };
    let ((first, second), pulse) =
        tokio::join!(programs, actions.perform(&pulsing, Bytes::new(), &stop_pulse));
    for (outcome, own) in [(first, one), (second, two)] {
        assert_eq!(outcome.result, OutcomeResult::Succeeded, "{outcome}");
        assert_eq!(text(&outcome), format!("{}\n", own.display()));
    }
    assert_eq!(pulse.result, OutcomeResult::Interrupted);
    assert_eq!(actions.pin_states(), BTreeMap::from([("pump".to_owned(), PinState::Off)]));
}

#[tokio::test]
async fn one_of_two_actions_at_once_can_be_stopped_alone() {
    let actions = Actions::open(&GpioSettings::default(), &BTreeMap::new()).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let (begun, go) = (folder.path().join("begun"), folder.path().join("go"));
    let endless = plan(vec![shell(&format!(": > {}; sleep 60", begun.display()))]);
    let gated = plan(vec![shell(&format!("until [ -e {} ]; do sleep 0.01; done", go.display()))]);
    let (stop, other) = (CancellationToken::new(), CancellationToken::new());
    let stopped = async {
        let cancel = async {
            until(|| begun.exists()).await;
            stop.cancel();
        };
        let (outcome, ()) = tokio::join!(actions.perform(&endless, Bytes::new(), &stop), cancel);
        fs::write(&go, "").unwrap();
        outcome
    };
    let (stopped, ended) = tokio::join!(stopped, actions.perform(&gated, Bytes::new(), &other));
    assert_eq!(stopped.result, OutcomeResult::Interrupted);
    assert_eq!(ended.result, OutcomeResult::Succeeded, "{ended}");
}
