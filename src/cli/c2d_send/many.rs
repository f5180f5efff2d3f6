//! `c2d-send` for many messages: to the devices of a list or a query, or many to one device.
//!
//! Owns: its arguments, where the journal is, the order of events and the exit code. Must not know: AMQP, HTTP, how a run
//! is sent.

use std::cell::{Cell, RefCell};
use std::collections::HashSet;
use std::fs::File;
use std::io::{BufReader, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, anyhow};
use clap::ValueEnum as _;
use futures_util::StreamExt as _;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook_tokio::Signals;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::many_output::{Aftermath, ManyOutput};
use super::{SendArgs, property};
use crate::cli::hub_size::{TierArg, rate};
use crate::cli::shown::{plain, shell};
use crate::cli::{Exit, Failure, back_end, found, run_files, sentence, tell};
use crate::credentials::check_device_id;
use crate::feedback::DeliveryAck;
use crate::fleet::{
    EntryList, Estimate, Naming, Pace, Progress, Run, RunError, RunJournal, Sending, SendingLimits,
    Settlement, Tier,
};
use crate::message::contains_uuid;
use crate::service::{Service, ServiceError, ServiceIdentity, TOKEN_LIFETIME};

mod follow;

use follow::{Awaited, Follow};

/// Messages on their way at a time. A hub answers within a few of them, and this many may come twice after a `kill -9`.
const WINDOW: usize = 16;
/// How long the hub may take nothing.
const PATIENCE: Duration = Duration::from_secs(600);
const DEFAULT_TIER: &str = "s1";

// Not a doc comment, which would become part of the help of the command.
// Many messages.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Many messages")]
pub(super) struct ManyArgs {
    /// Send to each device of a list: an id a line, or a JSON object a line with "deviceId" and columns for
    /// placeholders; its "properties" are added to the message, and its "body" is the body. - is standard input.
    #[arg(long, value_name = "FILE")]
    devices_from: Option<PathBuf>,
    /// Send to each device that the hub finds: the condition behind WHERE, or a whole query that selects deviceId.
    #[arg(long, value_name = "SQL")]
    query: Option<String>,
    /// Send many messages to --device: a JSON object a line, with columns as for --devices-from. - is standard input.
    #[arg(long, value_name = "FILE", requires = "device", conflicts_with_all = ["count", "devices_from", "query",
        "resume"])]
    messages_from: Option<PathBuf>,
    /// Send this many messages to --device; n in braces, in any part, is the number of the message.
    #[arg(long, value_name = "N", requires = "device", conflicts_with_all = ["devices_from", "query", "resume"],
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    count: Option<u32>,
    /// Go on with a run that was interrupted: send what its journal has not settled, with the same ids.
    #[arg(long, value_name = "JOURNAL", conflicts_with_all = ["properties", "data", "file", "message_id",
        "correlation_id", "user_id", "content_type", "content_encoding", "ack", "expiry", "journal"])]
    resume: Option<PathBuf>,
    /// How fast to send, such as 100/min or 5/s [default: what --tier and --units allow].
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rate: Option<f64>,
    /// The tier of the hub: it says how many messages a minute and a day the hub takes.
    #[arg(long, value_name = "TIER", default_value = DEFAULT_TIER)]
    tier: TierArg,
    /// The units of the hub.
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    units: u32,
    /// The file that keeps what was sent [default: beside the list, or else in $XDG_STATE_HOME or ~/.local/state].
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
    /// Only say what would be sent, how long it takes, and what share of the daily quota it is.
    #[arg(long)]
    dry_run: bool,
    /// Give up when the hub has failed or throttled for this long without taking anything; --resume goes on later
    /// [default: 10m].
    #[arg(long, value_name = "DURATION", value_parser = back_end::duration)]
    give_up_after: Option<Duration>,
}

impl SendArgs {
    /// What is awaited of the messages of a run.
    fn awaited(&self) -> Option<Awaited> {
        self.wait.map(Awaited::Feedback).or(self.wait_outcome.map(Awaited::Outcome))
    }
}

impl ManyArgs {
    /// Whether there is more than one message to one device.
    pub(super) fn is_wanted(&self) -> bool {
        self.messages_from.is_some() || self.count.is_some() || self.dry_run
    }

    /// The hub that the estimate is for.
    fn hub_size(&self) -> String {
        let tier = self.tier.to_possible_value();
        let tier = tier.as_ref().map_or("", |tier| tier.get_name()).to_uppercase();
        let units = if self.units == 1 { "1 unit".to_owned() } else { format!("{} units", self.units) };
        format!("a hub of tier {tier} with {units}")
    }

    fn per_minute(&self) -> f64 {
        self.rate.unwrap_or_else(|| Tier::from(self.tier).per_minute() * f64::from(self.units))
    }
}

pub(super) fn run(args: &SendArgs) -> Result<Exit, Failure> {
    let list = args.many.devices_from.as_ref().or(args.many.messages_from.as_ref());
    if args.message.is_from_stdin() && list.is_some_and(|list| list.as_os_str() == "-") {
        let error =
            anyhow!("both the body and the list are to come from standard input: give one of them as a file");
        return Err(Failure::usage(error));
    }
    let identity = args.hub.identity().map_err(Failure::usage)?;
    // A journal that may not grow is an error with a sentence.
    crate::cli::run::survive_file_size_limit()?;
    super::super::block_on(async {
        let (run, begun) = prepared(args, &identity).await?;
        if let (Some(_), DeliveryAck::None) = (args.awaited(), run.template.ack) {
            let error = anyhow!(
                "the messages of this run ask for no feedback, so nothing is known of them later: leave --wait and \
                 --wait-outcome out, or begin a run with one of them"
            );
            return Err(Failure::usage(error));
        }
        let (sizes, is_same) = check(&run).map_err(Failure::usage)?;
        let many = &args.many;
        let (journal, settled) = match begun {
            Some((journal, settled)) => (Some(journal), settled),
            None => (None, vec![None; run.entries.len()]),
        };
        let open = sizes.into_iter().zip(&settled).filter(|(_, state)| state.is_none());
        let estimate =
            Estimate::new(open.map(|(size, _)| size), many.per_minute(), many.tier.into(), many.units);
        let mut output = ManyOutput::new(args.output.json, &run);
        output.planned(&estimate, &many.hub_size(), is_same, many.dry_run);
        if many.dry_run {
            return output.broken().map_or(Ok(Exit::Done), |error| Err(error.into()));
        }
        let journal = match journal {
            Some(journal) => journal,
            None => create_journal(args, &run)?,
        };
        send(args, &identity, &run, (journal, settled), output).await
    })
}

/// The run of the arguments, and what is left of it if it was begun before.
async fn prepared(
    args: &SendArgs,
    identity: &ServiceIdentity,
) -> Result<(Run, Option<(RunJournal, Vec<Option<Settlement>>)>), Failure> {
    let many = &args.many;
    let waiting = args.wait_option().map_err(Failure::usage)?;
    if let Some(path) = &many.resume {
        let (journal, (run, settled)) = RunJournal::resume(path).map_err(Failure::usage)?;
        if run.hub != identity.host.name {
            let (path, hub, own) = (path.display(), plain(&run.hub), &identity.host.name);
            let error = anyhow!(
                "{path} is the journal of a run at {hub}, but the hub given is {own}: give the \
                         connection string of {hub}"
            );
            return Err(Failure::usage(error));
        }
        return Ok((run, Some((journal, settled))));
    }
    let template = args.message.template(waiting).map_err(Failure::usage)?;
    let (list, naming) = match (&args.device, &many.devices_from, &many.query) {
        (Some(device), _, _) => {
            check_device_id(device).map_err(Failure::usage)?;
            let list = match &many.messages_from {
                Some(path) => read(path, |reader, name| EntryList::of_messages(reader, name, device))?,
                None => EntryList::numbered(device, many.count.unwrap_or(1) as usize),
            };
            (list, Naming::ByNumber)
        }
        (None, Some(path), _) => {
            (read(path, |reader, name| EntryList::of_devices(reader, name))?, Naming::ByDevice)
        }
        (None, None, Some(sql)) => (found::devices(&args.hub, identity, sql).await?, Naming::ByDevice),
        (None, None, None) => return Err(anyhow!("no device is named").into()),
    };
    let (id, hub) = (uuid::Uuid::new_v4().to_string(), identity.host.name.clone());
    Ok((Run { id, hub, naming, template, entries: list.entries }, None))
}

fn read(
    path: &Path,
    parse: impl FnOnce(&mut dyn std::io::BufRead, &str) -> Result<EntryList, crate::fleet::ListError>,
) -> Result<EntryList, Failure> {
    let list = if path.as_os_str() == "-" {
        if std::io::stdin().is_terminal() {
            tell("reading the list from the terminal: end it with Ctrl-D");
        }
        parse(&mut std::io::stdin().lock(), "the list")
    } else {
        let file =
            File::open(path).map_err(|error| Failure::usage(back_end::unreadable("list", path, &error)))?;
        parse(&mut BufReader::new(file), &plain(&path.display().to_string()))
    };
    list.map_err(Failure::usage)
}

/// Checks each message before the first one is sent. Returns their sizes, and whether all have the same content.
fn check(run: &Run) -> anyhow::Result<(Vec<usize>, bool)> {
    let now = SystemTime::now();
    let mut ids = HashSet::new();
    let (mut first, mut is_same) = (None, true);
    let sizes = run.entries.iter().enumerate().map(|(index, entry)| {
        let message = run.message(entry, now).map_err(anyhow::Error::msg)?;
        let size = message.wire_size();
        let (id, content) = (message.message_id, (message.properties, message.body));
        if index == 0 {
            property::warn_of_odd(&content.0);
        }
        if index == 0 && !contains_uuid(&id) {
            tell(format_args!(
                "the message ids have no UUID in them, as \"{id}\": a device may act twice on a message that is sent \
                 again after a lost connection; put {{run}} into --message-id"
            ));
        }
        // The messages of several devices may have one id; the device tells them apart.
        if run.naming == Naming::ByNumber && run.template.message_id.is_some() && !ids.insert(id.clone()) {
            return Err(anyhow!(
                "{}: its message id \"{id}\" is that of an earlier line: put {{n}} or a column into --message-id",
                entry.place()
            ));
        }
        is_same &= content == *first.get_or_insert_with(|| content.clone());
        Ok(size)
    });
    let sizes: anyhow::Result<_> = sizes.collect();
    Ok((sizes?, is_same))
}

fn create_journal(args: &SendArgs, run: &Run) -> Result<RunJournal, Failure> {
    let many = &args.many;
    let list = many.devices_from.as_deref().or(many.messages_from.as_deref());
    let name = format!("{}.journal", run.id);
    let path = match &many.journal {
        Some(path) => path.clone(),
        None => run_files::beside(list, &format!(".{name}"), &name).map_err(Failure::usage)?,
    };
    Ok(RunJournal::create(&path, run).map_err(anyhow::Error::new)?)
}

async fn send(
    args: &SendArgs,
    identity: &ServiceIdentity,
    run: &Run,
    (journal, settled): (RunJournal, Vec<Option<Settlement>>),
    mut output: ManyOutput<'_>,
) -> Result<Exit, Failure> {
    let way = args.hub.amqp().map_err(Failure::usage)?;
    let ca_file = args.hub.ca_file();
    back_end::end_at_the_second_signal().context("signals cannot be received")?;
    let mut signals = Signals::new([SIGTERM, SIGINT]).context("signals cannot be received")?;
    let stop = CancellationToken::new();
    let path = journal.path().to_owned();
    let resume = resume_command(args, &path);
    output.journal(&path, &resume);
    for (index, settlement) in settled.iter().enumerate() {
        settlement.iter().for_each(|settlement| output.known(index, settlement));
    }
    let output = RefCell::new(output);
    let first_settled = journal.first_settled();
    let follow = args.awaited().map(|awaited| Follow::new(run, &output, awaited, &path)).transpose()?;
    let note = |index: usize, settlement: &Settlement| {
        follow.iter().for_each(|follow| follow.settled(index, settlement));
    };
    for (index, settlement) in
        settled.iter().enumerate().filter_map(|(index, state)| Some((index, state.as_ref()?)))
    {
        note(index, settlement);
    }
    if let Some(follow) = &follow {
        follow.look_first(&args.hub, identity, first_settled).await?;
    }
    output.borrow_mut().begin();
    let pace = Pace::new(args.many.per_minute(), Instant::now());
    let limits = SendingLimits { window: WINDOW, patience: args.many.give_up_after.unwrap_or(PATIENCE) };
    let mut sending = Sending::new(run, journal, &settled, pace, limits, stop.clone(), SystemTime::now);
    let connect = async || -> Result<_, ServiceError> {
        let now = SystemTime::now();
        let mut service =
            Service::connect_by(&way, identity, ca_file.as_deref(), TOKEN_LIFETIME, now).await?;
        let link = service.sender().await?;
        Ok((service, link))
    };
    let mut show = |progress: Progress<'_>| {
        if let Progress::Settled { entry, settlement, .. } = &progress {
            note(*entry, settlement);
        }
        output.borrow_mut().progress(&progress);
    };
    let over = CancellationToken::new();
    let sent = async {
        let sent = sending.run(connect, &mut show).await;
        if sent.is_err() {
            // Nothing more is awaited of a run that has not come to its end.
            stop.cancel();
        }
        over.cancel();
        sent
    };
    let followed = async {
        let Some(follow) = &follow else { return Ok(()) };
        let followed = follow.run(&args.hub, identity, &over, &stop).await;
        if let Err(error) = &followed {
            // The run may take hours until it ends with this error.
            output.borrow().waiting(&format!("the messages are not followed any more: {}", sentence(error)));
        }
        followed
    };
    let signalled = Cell::new(false);
    let heard = async {
        while signals.next().await.is_some() {
            signalled.set(true);
            output.borrow().waiting("stopping, which takes up to 5 s; a second signal ends at once");
            stop.cancel();
        }
        std::future::pending::<()>().await;
    };
    let both = async { tokio::join!(sent, followed) };
    let (sent, followed) = tokio::select! {
        both = both => both,
        () = heard => (Err(RunError::Stopped), Ok(())),
    };
    let sent = sent.and_then(|()| if signalled.get() { Err(RunError::Stopped) } else { Ok(()) });
    let after = follow.as_ref().map(|follow| follow.aftermath(stop.is_cancelled()));
    ended(sent, followed, &mut output.borrow_mut(), (&path, &resume), after.as_ref())
}

/// The last lines, and the exit code. A failure of the run is told before one of its feedback or output.
fn ended(
    sent: Result<(), RunError>,
    followed: anyhow::Result<()>,
    output: &mut ManyOutput<'_>,
    (journal, resume): (&Path, &str),
    after: Option<&Aftermath>,
) -> Result<Exit, Failure> {
    let finished = output.finished(journal, resume, after);
    let failure = match sent {
        Ok(()) => followed.err().map(Failure::from),
        Err(error) => {
            let is_usage = matches!(&error, RunError::Hub(error) if error.is_configuration());
            let error = match error {
                // It says so itself.
                error @ RunError::Journal(_) => error.into(),
                error => anyhow!("{error}; to go on: {resume}"),
            };
            followed.err().iter().for_each(|error| tell(sentence(error)));
            Some(Failure { exit: if is_usage { Exit::Usage } else { Exit::Error }, error })
        }
    };
    if let Some(failure) = &failure {
        output.failed(&failure.error);
    }
    let broken = [finished.as_ref().err().map(sentence), output.broken().as_ref().map(sentence)];
    match (failure, broken.into_iter().flatten().reduce(|one, other| format!("{one}; {other}"))) {
        (Some(failure), broken) => {
            broken.into_iter().for_each(tell);
            Err(failure)
        }
        (None, Some(broken)) => Err(anyhow::Error::msg(broken).into()),
        (None, None) => Ok(match after {
            _ if finished.is_ok_and(|not_taken| not_taken > 0) => Exit::NegativeFeedback,
            Some(after) if !after.undelivered.is_empty() => Exit::NegativeFeedback,
            Some(after) if !after.failed.is_empty() => Exit::ActionFailed,
            Some(after) if !after.missing.is_empty() => Exit::NoFeedback,
            _ => Exit::Done,
        }),
    }
}

/// The command that goes on with this run as it was asked for.
fn resume_command(args: &SendArgs, journal: &Path) -> String {
    let many = &args.many;
    let tier = many.tier.to_possible_value().map(|tier| tier.get_name().to_owned());
    let own = [
        ("--resume", Some(journal.display().to_string())),
        ("--rate", many.rate.map(|per_minute| format!("{per_minute}/min"))),
        ("--tier", tier.filter(|tier| tier != DEFAULT_TIER)),
        ("--units", (many.units != 1).then(|| many.units.to_string())),
        (
            "--give-up-after",
            many.give_up_after.map(|time| humantime::format_duration(time).to_string().replace(' ', "")),
        ),
    ];
    let own = own.into_iter().filter_map(|(option, value)| Some((option, value?)));
    let mut command = "c2d-agent c2d-send".to_owned();
    let waits = [("--wait", args.wait), ("--wait-outcome", args.wait_outcome)];
    let waits = waits.into_iter().filter_map(|(option, wait)| Some((option, wait?)));
    for (option, value) in own.chain(args.hub.as_given()) {
        command.push_str(&format!(" {option} {}", shell(&plain(&value))));
    }
    for (option, wait) in waits {
        command.push_str(&format!(
            " {option}={}",
            humantime::format_duration(wait).to_string().replace(' ', "")
        ));
    }
    if args.output.json {
        command.push_str(" --json");
    }
    command
}
