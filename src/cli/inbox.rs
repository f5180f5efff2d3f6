//! `inbox`: shows what happened to each message, and runs dead letters again or drops them.
//!
//! Owns: its arguments, pages, sentences and exit codes. Must not know: sockets, the inbox's file.

use std::collections::VecDeque;
use std::path::PathBuf;

use anyhow::anyhow;
use clap::{Subcommand, ValueEnum};
use serde::Serialize;

use crate::agent::control::{MAX_PAGE, view::RecordView};
use crate::agent::not_to_retry;
use crate::inbox::{Number, Query, Record, Reply, Selector, State};
use crate::message::C2dMessage;

use super::reach::{Reached, reach, settings};
use super::shown::{Output, terminal_width, width};
use super::{DEFAULT_CONFIG, Exit, Failure, tell};

mod details;
mod present;
mod table;

use present::RulesNow;

/// Show what happened to each message. Run dead letters again, or drop them.
///
/// Works while the agent runs (through its control socket) and while it does not (on the inbox's file). Only the user
/// who runs the agent, and root, may do this.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "ID is a message id, or a number as `list` shows it: '#12' in quotes, or 12 if no message \
                  has that id.\n\nExit codes: 0 done; 1 it failed, there is no such record, or its state does \
                  not allow it; 2 the configuration does not say where the inbox is."
)]
pub(super) struct InboxArgs {
    /// The configuration file, which says where the inbox is.
    #[arg(short, long, value_name = "FILE", default_value = DEFAULT_CONFIG, global = true)]
    config: PathBuf,
    /// Print JSON: one object per line.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: InboxCommand,
}

#[derive(Debug, Subcommand)]
enum InboxCommand {
    /// List the most recent records, the newest last.
    List {
        /// Only records in this state.
        #[arg(long, value_enum, value_name = "STATE")]
        state: Option<StateArg>,
        /// How many records.
        #[arg(long, value_name = "N", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
        limit: u32,
    },
    /// Show one record: properties, body, outcome, output.
    Show(Id),
    /// Run a dead letter again, at once or when the agent starts. A message that no rule matched runs once a rule
    /// matches it.
    Retry(Id),
    /// Drop a dead letter, or a message that waits for its turn: it is not run.
    Drop(Id),
    /// Print all records with their messages as JSON, one object per line, the oldest first.
    Export,
}

#[derive(Debug, clap::Args)]
struct Id {
    /// A message id, or a number such as '#12'.
    #[arg(value_name = "ID", allow_hyphen_values = true)]
    id: String,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum StateArg {
    /// Recorded; its action has not begun, or waits for its next attempt.
    Accepted,
    /// Its action may have begun.
    Started,
    /// Ended.
    Finished,
    /// Failed, or no rule matched it: a dead letter, which can be run again or dropped.
    Dead,
}

impl From<StateArg> for State {
    fn from(state: StateArg) -> Self {
        match state {
            StateArg::Accepted => Self::Accepted,
            StateArg::Started => Self::Started,
            StateArg::Finished => Self::Finished,
            StateArg::Dead => Self::Dead,
        }
    }
}

/// The object of `show --json`.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ShownRecord {
    #[serde(flatten)]
    record: RecordView,
    #[serde(skip_serializing_if = "Option::is_none")]
    rules_now: Option<RulesNow>,
}

/// The object of `retry --json` and `drop --json`: stable for scripts; fields are added, never renamed.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct DoneLine<'a> {
    done: &'static str,
    /// Only of `retry`: `now`, or `at-start` when no agent runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    runs: Option<&'static str>,
    record: &'a Record,
}

/// Does what the subcommand says.
///
/// # Errors
/// When the inbox cannot be reached, or refuses the command.
pub(super) fn run(args: &InboxArgs) -> Result<Exit, Failure> {
    let settings = settings(&args.config)?;
    let (config, inbox) = (args.config.clone(), reach(&settings)?);
    let mut asked = AskedInbox { config, inbox, out: Output::new(), json: args.json };
    match &args.command {
        InboxCommand::List { state, limit } => asked.list(state.map(State::from), *limit as usize)?,
        InboxCommand::Show(id) => asked.show(id)?,
        InboxCommand::Retry(id) => asked.retry(id)?,
        InboxCommand::Drop(id) => asked.drop_by_hand(id)?,
        InboxCommand::Export => asked.export()?,
    }
    asked.out.flush()?;
    Ok(Exit::Done)
}

struct AskedInbox {
    config: PathBuf,
    inbox: Reached,
    out: Output,
    json: bool,
}

impl AskedInbox {
    fn list(&mut self, state: Option<State>, limit: usize) -> anyhow::Result<()> {
        let (mut newest, mut older) = (VecDeque::new(), 0_u64);
        let mut pages = Pages::new(state);
        while let Some(records) = pages.next(&mut self.inbox)? {
            for record in records {
                newest.push_back(record);
                if newest.len() > limit {
                    newest.pop_front();
                    older += 1;
                }
            }
        }
        let newest = Vec::from(newest);
        if self.json {
            newest.iter().try_for_each(|record| self.out.json(record))?;
        } else {
            table::lines(&newest, terminal_width()).iter().try_for_each(|line| self.out.line(line))?;
        }
        self.out.flush()?;
        if newest.is_empty() {
            tell(match state {
                Some(_) => "no record is in this state",
                None => "the inbox is empty",
            });
        } else if older > 0 {
            let all = older + newest.len() as u64;
            tell(format_args!("{older} older records are not shown: --limit {all} shows all"));
        }
        Ok(())
    }

    fn show(&mut self, id: &Id) -> anyhow::Result<()> {
        let selector = self.selector(id)?;
        let (record, message) = self.find(selector)?;
        let rules_now = match &message {
            Some(message) if record.state == State::Dead => match present::rules(&self.config) {
                Some(rules) => RulesNow::of(&record, message, &rules),
                None => {
                    tell(
                        "the rules have problems, so it is not known whether a rule matches it now: see \
                         `c2d-agent check`",
                    );
                    None
                }
            },
            _ => None,
        };
        if self.json {
            return self
                .out
                .json(&ShownRecord { record: RecordView::new(record, message.as_ref()), rules_now });
        }
        let now = std::time::SystemTime::now();
        details::lines(&record, message.as_ref(), rules_now.as_ref(), now, width())
            .iter()
            .try_for_each(|line| self.out.line(line))
    }

    fn retry(&mut self, id: &Id) -> anyhow::Result<()> {
        let selector = self.selector(id)?;
        // A running agent checks by itself whether one of its rules matches the message.
        if !self.inbox.is_agent()
            && let (record, Some(message)) = self.find(selector.clone())?
            && let Some(rules) = present::rules(&self.config)
            && let Some(refusal) = not_to_retry(&record, &message, &rules)
        {
            return Err(anyhow!(refusal));
        }
        let record = match self.inbox.query(Query::Retry(selector))? {
            Reply::Retried(unfinished) => unfinished.record,
            other => return Err(unexpected(other)),
        };
        let (runs, when) = match self.inbox.is_agent() {
            true => ("now", "is run again now, or as soon as its turn comes"),
            false => ("at-start", "will be run when the agent starts: none runs now"),
        };
        if self.json {
            return self.out.json(&DoneLine { done: "retried", runs: Some(runs), record: &record });
        }
        self.out.line(&format!("{} {when}", record.name()))
    }

    fn drop_by_hand(&mut self, id: &Id) -> anyhow::Result<()> {
        let selector = self.selector(id)?;
        let record = match self.inbox.query(Query::Drop(selector))? {
            Reply::Dropped(record) => record,
            other => return Err(unexpected(other)),
        };
        if self.json {
            return self.out.json(&DoneLine { done: "dropped", runs: None, record: &record });
        }
        self.out.line(&format!("{} is dropped: it will not be run", record.name()))
    }

    fn export(&mut self) -> anyhow::Result<()> {
        let mut pages = Pages::new(None);
        while let Some(records) = pages.next(&mut self.inbox)? {
            for record in records {
                // A finished record has no message any more. Any other record is read again, with its message. It may
                // have changed since the page was read.
                let (record, message) = match record.state {
                    State::Finished => (record, None),
                    _ => match self.inbox.query(Query::Show(record.number.into()))? {
                        Reply::Record { record, message } => (record, message),
                        // The record was removed after the page was read.
                        Reply::Refused(_) => (record, None),
                        other => return Err(unexpected(other)),
                    },
                };
                self.out.json(&RecordView::new(record, message.as_ref()))?;
                if !self.out.is_open() {
                    return Ok(());
                }
            }
        }
        Ok(())
    }

    fn find(&mut self, selector: Selector) -> anyhow::Result<(Record, Option<C2dMessage>)> {
        match self.inbox.query(Query::Show(selector))? {
            Reply::Record { record, message } => Ok((record, message)),
            other => Err(unexpected(other)),
        }
    }

    /// The record that the user means. Digits that are no message id are a record's number, because a shell takes an
    /// unquoted `#12` for a comment.
    fn selector(&mut self, id: &Id) -> anyhow::Result<Selector> {
        let given = Selector(id.id.clone());
        let Ok(digits) = id.id.parse().map(Number) else { return Ok(given) };
        match self.inbox.query(Query::Show(given.clone()))? {
            Reply::Refused(_) => Ok(digits.into()),
            _ => Ok(given),
        }
    }
}

/// All records in order of acceptance, a page at a time.
struct Pages {
    state: Option<State>,
    after: u64,
}

impl Pages {
    fn new(state: Option<State>) -> Self {
        Self { state, after: 0 }
    }

    /// The next page; `None` after the last.
    fn next(&mut self, inbox: &mut Reached) -> anyhow::Result<Option<Vec<Record>>> {
        match inbox.query(Query::List { state: self.state, after: self.after, limit: MAX_PAGE })? {
            Reply::Records(records) => {
                let Some(last) = records.last() else { return Ok(None) };
                self.after = last.number.0;
                Ok(Some(records))
            }
            other => Err(unexpected(other)),
        }
    }
}

fn unexpected(reply: Reply) -> anyhow::Error {
    match reply {
        Reply::Refused(sentence) | Reply::Unavailable(sentence) => anyhow!(sentence),
        _ => anyhow!("the inbox gave the answer to another request: please report this"),
    }
}
