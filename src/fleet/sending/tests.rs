//! Runs against a hub that a test plays, with a clock that jumps over waits.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::*;
use crate::fleet::{EntryList, MessageTemplate, Naming};

/// What the hub does with a message.
enum Play {
    Answer(HubAnswer),
    /// It never answers.
    Silent,
    /// It gives no credit, ever.
    NoCredit,
    /// It ends the link while the message is on its way, and answers those before.
    Cut(ServiceError),
}

type Script = Rc<RefCell<dyn FnMut(&str) -> Play>>;

struct PlayedLink {
    script: Script,
    lost: Rc<RefCell<Option<ServiceError>>>,
    /// When its token expires.
    end: Instant,
}

/// How long a token is valid.
const LIFE: Duration = Duration::from_secs(3600);

impl SendingLink for PlayedLink {
    async fn begin(&mut self, message: &OutgoingMessage) -> Result<Answering, ServiceError> {
        let play = (self.script.borrow_mut())(&message.device_id);
        match play {
            Play::Answer(answer) => Ok(std::future::ready(Ok(answer)).boxed()),
            Play::Silent => Ok(std::future::pending().boxed()),
            Play::NoCredit => std::future::pending().await,
            Play::Cut(error) => {
                *self.lost.borrow_mut() = Some(error);
                Ok(std::future::pending().boxed())
            }
        }
    }

    async fn lost(&mut self) -> ServiceError {
        let lost = self.lost.borrow_mut().take();
        match lost {
            Some(error) => error,
            None => {
                sleep_until(self.end).await;
                ServiceError::Lost("the token has expired".into())
            }
        }
    }
}

/// A run over three devices, and what came of it.
struct Played {
    result: Result<(), RunError>,
    /// What was told, a line each.
    told: Vec<String>,
    /// The devices of the messages that reached the hub, in order.
    sent: Vec<String>,
    /// What the journal has of each device.
    journal: Vec<Option<Settlement>>,
    took: Duration,
    links: usize,
}

fn refusal(condition: &str) -> Refusal {
    Refusal { condition: condition.to_owned(), meaning: "no".to_owned(), ..Refusal::default() }
}

fn refused(condition: &str) -> Play {
    Play::Answer(HubAnswer::Refused(refusal(condition)))
}

fn accepted() -> Play {
    Play::Answer(HubAnswer::Accepted)
}

fn play(script: impl FnMut(&str) -> Play + 'static) -> Played {
    play_until(CancellationToken::new(), script, |_| Ok(()))
}

/// `connected` says whether the hub lets the program in for the n-th time.
fn play_until(
    stop: CancellationToken,
    script: impl FnMut(&str) -> Play + 'static,
    connected: impl FnMut(usize) -> Result<(), ServiceError>,
) -> Played {
    play_at(6_000.0, stop, script, connected)
}

fn play_at(
    per_minute: f64,
    stop: CancellationToken,
    mut script: impl FnMut(&str) -> Play + 'static,
    mut connected: impl FnMut(usize) -> Result<(), ServiceError>,
) -> Played {
    let folder = tempfile::tempdir().expect("a folder");
    let path = folder.path().join("journal");
    let entries = EntryList::of_devices(&b"a\nb\nc"[..], "list").expect("a list").entries;
    let template = MessageTemplate::default();
    let run = Run { id: "r".into(), hub: "h".into(), naming: Naming::ByDevice, template, entries };
    let journal = RunJournal::create(&path, &run).expect("a journal");
    let sent = Rc::new(RefCell::new(Vec::new()));
    let seen = Rc::clone(&sent);
    let script: Script = Rc::new(RefCell::new(move |device: &str| {
        seen.borrow_mut().push(device.to_owned());
        script(device)
    }));
    let mut told = Vec::new();
    let mut links = 0;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build();
    let (result, took) = runtime.expect("a runtime").block_on(async {
        let begun = Instant::now();
        let pace = Pace::new(per_minute, begun);
        let limits = SendingLimits { window: 2, patience: Duration::from_secs(600) };
        let clock = || SystemTime::UNIX_EPOCH;
        let mut sending = Sending::new(&run, journal, &[None, None, None], pace, limits, stop, clock);
        let connect = async || {
            links += 1;
            let (script, end) = (Rc::clone(&script), Instant::now() + LIFE);
            connected(links).map(|()| PlayedLink { script, lost: Rc::default(), end })
        };
        let mut tell = |progress: Progress<'_>| {
            told.push(match progress {
                Progress::Settled { entry, settlement, .. } => format!("{entry} {settlement:?}"),
                Progress::Postponed { entry, condition, .. } => format!("{entry} postponed {condition}"),
                Progress::Slowed { error, wait, .. } => format!("slowed {wait:?} {error}"),
                Progress::Lost { error, wait } => format!("lost {wait:?} {error}"),
            });
        };
        let result = sending.run(connect, &mut tell).await;
        (result, begun.elapsed())
    });
    let (_, (_, journal)) = RunJournal::resume(&path).expect("a journal");
    let sent = sent.borrow().clone();
    Played { result, told, sent, journal, took, links }
}

/// Plays these in order, and accepts what comes after.
fn first(plays: impl IntoIterator<Item = Play>) -> impl FnMut(&str) -> Play + 'static {
    let mut plays: VecDeque<_> = plays.into_iter().collect();
    move |_| plays.pop_front().unwrap_or_else(accepted)
}

const ALL: [Option<Settlement>; 3] =
    [Some(Settlement::Accepted), Some(Settlement::Accepted), Some(Settlement::Accepted)];

#[test]
fn a_hub_that_does_not_answer_is_a_lost_connection_after_30_seconds() {
    let played = play(first([Play::Silent]));
    assert!(played.result.is_ok(), "{:?}", played.result);
    assert_eq!((played.journal.as_slice(), played.links), (ALL.as_slice(), 2));
    let late = "lost 1s no answer from the hub: waited 30 s for the outcome of a message";
    assert!(played.told.iter().any(|line| line == late), "{:?}", played.told);
    assert!((31..40).contains(&played.took.as_secs()), "{:?}", played.took);
    assert_eq!(played.sent.iter().filter(|device| *device == "a").count(), 2, "{:?}", played.sent);
}

#[test]
fn what_the_hub_gives_back_is_sent_three_times_and_the_others_are_sent() {
    for answer in [|| Play::Answer(HubAnswer::Returned("given back")), || refused("amqp:internal-error")] {
        let played = play(move |device| if device == "a" { answer() } else { accepted() });
        assert!(played.result.is_ok(), "{:?}", played.result);
        assert_eq!(
            played.journal,
            [None, ALL[1].clone(), ALL[2].clone()],
            "not settled, so a resumed run sends it"
        );
        assert_eq!(played.sent.iter().filter(|device| *device == "a").count(), 3, "{:?}", played.sent);
        assert_eq!(played.told.iter().filter(|line| line.starts_with("0 postponed amqp:")).count(), 1);
        assert_eq!(played.links, 1, "the link is not lost");
    }
}

#[test]
fn a_refusal_settles_a_message_only_if_it_is_about_the_message() {
    let played = play(first([refused("amqp:not-found"), refused("amqp:resource-limit-exceeded")]));
    assert!(played.result.is_ok() && matches!(played.journal[0], Some(Settlement::Refused { .. })));
    assert_eq!(played.journal[1], None, "its queue is full now");
    assert!(
        played.told.contains(&"1 postponed amqp:resource-limit-exceeded".to_owned()),
        "{:?}",
        played.told
    );
    assert_eq!(played.sent.len(), 3, "a full queue is not asked again: {:?}", played.sent);

    for (condition, is_quota) in [
        ("com.microsoft:quota-exceeded", true),
        ("com.microsoft:iot-hub-suspended", false),
        ("amqp:not-allowed", false),
    ] {
        let played = play(first([accepted(), refused(condition)]));
        match played.result {
            Err(RunError::Quota(refusal)) => assert!(is_quota, "{refusal}"),
            Err(RunError::Hub(ServiceError::Refused(refusal))) => assert!(!is_quota, "{refusal}"),
            result => panic!("{condition}: {result:?}"),
        }
        assert_eq!(
            played.journal[..2],
            [ALL[0].clone(), None],
            "{condition}: the one before is in the journal"
        );
    }
}

#[test]
fn a_hub_that_throttles_without_a_pause_gets_one_and_at_last_the_run_gives_up() {
    let throttling = || {
        let refusal = Refusal { retry_after: Some(0), ..refusal("com.microsoft:device-container-throttled") };
        Play::Answer(HubAnswer::Refused(refusal))
    };
    let played = play(move |_| throttling());
    match played.result {
        Err(RunError::NoProgress { within, .. }) => assert_eq!(within, Duration::from_secs(600)),
        result => panic!("{result:?}"),
    }
    assert!((600..620).contains(&played.took.as_secs()), "{:?}", played.took);
    // Two at a time, a second apart.
    assert!(played.sent.len() <= 1_210, "{}", played.sent.len());
    assert!(played.told.iter().all(|line| line == "slowed 1s the hub throttles"), "{:?}", played.told);
}

#[test]
fn patience_counts_from_the_first_failure() {
    // The second message is sent long after the first one.
    let mut links = 0;
    let script = first([accepted(), Play::Cut(ServiceError::Lost("gone".into()))]);
    let played = play_until(CancellationToken::new(), script, |_| {
        links += 1;
        match links {
            2 | 3 => Err(ServiceError::Unreachable("away".into())),
            _ => Ok(()),
        }
    });
    assert!(played.result.is_ok(), "{:?}", played.result);
    assert_eq!(played.journal, ALL);
    let lost: Vec<_> = played.told.iter().filter(|line| line.starts_with("lost")).collect();
    assert_eq!(lost.len(), 3, "{lost:?}");
    let mut links = 0;
    let script = first([accepted(), Play::Cut(ServiceError::Lost("gone".into()))]);
    let away = play_until(CancellationToken::new(), script, |_| {
        links += 1;
        if links == 1 { Ok(()) } else { Err(ServiceError::Unreachable("away".into())) }
    });
    assert!(matches!(away.result, Err(RunError::NoProgress { .. })), "{:?}", away.result);
    assert!((600..680).contains(&away.took.as_secs()), "{:?}", away.took);
}

#[test]
fn a_hub_that_is_away_at_the_start_is_told_at_once() {
    let away = play_until(
        CancellationToken::new(),
        |_| accepted(),
        |_| Err(ServiceError::Unreachable("away".into())),
    );
    assert!(matches!(away.result, Err(RunError::Hub(ServiceError::Unreachable(_)))), "{:?}", away.result);
    assert!(away.took.is_zero(), "{:?}", away.took);
}

#[test]
fn a_slow_run_outlives_its_tokens() {
    // A message every five hours.
    let played = play_at(1.0 / 300.0, CancellationToken::new(), |_| accepted(), |_| Ok(()));
    assert!(played.result.is_ok(), "{:?}", played.result);
    assert_eq!((played.journal.as_slice(), played.took.as_secs() / 3600), (ALL.as_slice(), 10));
    assert!((9..=12).contains(&played.links), "{}", played.links);
}

#[test]
fn what_was_answered_before_the_link_was_lost_is_in_the_journal_before_the_next_one() {
    let stop = CancellationToken::new();
    let script = first([accepted(), Play::Cut(ServiceError::Lost("gone".into()))]);
    let played = play_until(stop.clone(), script, |link| match link {
        1 => Ok(()),
        _ => Err(ServiceError::TokenExpired("now".into())),
    });
    assert!(
        matches!(played.result, Err(RunError::Hub(ServiceError::TokenExpired(_)))),
        "{:?}",
        played.result
    );
    assert_eq!(played.journal, [ALL[0].clone(), None, None]);
}

#[test]
fn a_busy_hub_is_dialled_again_and_a_quota_ends_the_run_wherever_it_is_said() {
    for condition in
        ["com.microsoft:device-container-throttled", "amqp:resource-limit-exceeded", "amqp:internal-error"]
    {
        let played = play_until(
            CancellationToken::new(),
            |_| accepted(),
            |link| match link {
                1 => Err(ServiceError::Refused(Refusal { retry_after: Some(7), ..refusal(condition) })),
                _ => Ok(()),
            },
        );
        assert!(
            played.result.is_ok() && played.told[0].starts_with("lost 7s "),
            "{condition}: {:?}",
            played.told
        );
    }
    let quota = || ServiceError::Refused(refusal("com.microsoft:quota-exceeded"));
    let played = play_until(CancellationToken::new(), |_| accepted(), |_| Err(quota()));
    assert!(matches!(played.result, Err(RunError::Quota(_))), "{:?}", played.result);
    let played = play(first([accepted(), Play::Cut(quota())]));
    assert!(matches!(played.result, Err(RunError::Quota(_))), "{:?}", played.result);
    assert_eq!(played.journal[0], ALL[0]);
    let played = play_until(
        CancellationToken::new(),
        |_| accepted(),
        |_| Err(ServiceError::Refused(refusal("amqp:not-found"))),
    );
    assert!(matches!(played.result, Err(RunError::Hub(_))) && played.links == 1, "{:?}", played.result);
}

#[test]
fn a_signal_is_heard_while_the_hub_gives_no_credit_and_while_it_is_dialled() {
    let stop = CancellationToken::new();
    let heard = stop.clone();
    let played = play_until(
        stop,
        move |device| {
            if device == "a" {
                return accepted();
            }
            heard.cancel();
            Play::NoCredit
        },
        |_| Ok(()),
    );
    assert!(matches!(played.result, Err(RunError::Stopped)), "{:?}", played.result);
    assert_eq!(played.journal, [ALL[0].clone(), None, None]);
    assert!(played.took <= LAST_ANSWERS, "{:?}", played.took);
    let stopped = CancellationToken::new();
    stopped.cancel();
    let played = play_until(stopped, |_| accepted(), |_| Ok(()));
    assert!(matches!(played.result, Err(RunError::Stopped)) && played.sent.is_empty(), "{:?}", played.result);
}
