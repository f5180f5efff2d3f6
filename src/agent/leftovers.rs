//! Leftovers: programs that an agent with this inbox left running when it was killed.
//!
//! Owns: that they have ended before the agent learns what the inbox holds, so that no rule runs beside its own earlier
//! run. Must not know: how such programs are found and ended.
//!
//! No program is started before the agent knows what the inbox holds. At that time the inbox is open, so this process
//! has its claim, and no other agent runs these programs.

use std::fs;
use std::path::{Path, PathBuf};

use futures_util::future::BoxFuture;

use crate::action::{Actions, Children, take_over};
use crate::inbox::{Inbox, News};

/// Stands between the inbox and the agent.
pub(super) struct Leftovers {
    inbox: PathBuf,
    /// News that came before this was made.
    first: Option<News>,
    /// While leftovers are ended: the news that waits for that, and the new notes.
    ending: Option<BoxFuture<'static, (News, Option<Children>)>>,
}

impl Leftovers {
    pub(super) fn new(inbox: &Path, first: Option<News>) -> Self {
        Self { inbox: inbox.to_owned(), first, ending: None }
    }

    /// The next news of the inbox. [`News::Opened`] comes only when the leftovers have ended. Cancel safe.
    pub(super) async fn next(&mut self, inbox: &mut Inbox, actions: &Actions) -> News {
        let ending = match &mut self.ending {
            Some(ending) => ending,
            None => {
                let news = match self.first.take() {
                    Some(news) => news,
                    None => inbox.next().await,
                };
                if !matches!(news, News::Opened(_)) {
                    return news;
                }
                let inbox = self.inbox.clone();
                let take_over = take_over(move || notes_beside(&inbox));
                self.ending.insert(Box::pin(async move { (news, take_over.await) }))
            }
        };
        let (news, children) = ending.await;
        self.ending = None;
        children.into_iter().for_each(|children| actions.note_children(children));
        news
    }
}

/// The notes are beside the file to which the path of the inbox leads, because another path may lead to the same one.
/// Waits for the disk.
fn notes_beside(inbox: &Path) -> PathBuf {
    let mut path = fs::canonicalize(inbox).unwrap_or_else(|_| inbox.to_owned()).into_os_string();
    path.push(".children");
    path.into()
}
