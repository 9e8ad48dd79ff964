//! The tasks that follow the sources of this peer: one a source, begun anew whenever training starts elsewhere or a
//! source may be found at another address.

use std::collections::BTreeMap;

use cohort_proto::contribution::Position;
use cohort_proto::id::{PeerName, RunId, Step};
use cohort_proto::meta::Agenda;
use cohort_proto::view::Member;
use tokio::sync::mpsc;
use tokio::task::{JoinError, JoinSet};

use crate::error::PeerError;
use crate::net::follow::{Following, Reached, follow};
use crate::trainer::Word;

/// Whose logs are followed, and how far.
#[derive(Debug)]
pub(super) struct Follows {
    me: PeerName,
    run: RunId,
    agenda: Agenda,
    tasks: JoinSet<Result<(), PeerError>>,
    epoch: u64,
    /// Where training started; nobody is followed before.
    from: Option<Step>,
    reached: BTreeMap<PeerName, Reached>,
}

impl Follows {
    pub(super) fn new(me: PeerName, run: RunId, agenda: Agenda) -> Self {
        let (tasks, reached) = (JoinSet::new(), BTreeMap::new());
        Self { me, run, agenda, tasks, epoch: 0, from: None, reached }
    }

    /// Training starts at a step: everybody is to be followed from there. Returns the number of the new epoch.
    pub(super) fn restart(&mut self, step: Step) -> u64 {
        self.tasks.abort_all();
        self.reached.clear();
        self.from = Some(step);
        self.epoch += 1;
        self.epoch
    }

    /// Follows these members, and no others, each from the first entry of it that has not been delivered.
    pub(super) fn follow(&mut self, members: &[Member], words: &mpsc::Sender<Word>) {
        self.tasks.abort_all();
        let Some(from) = self.from.map(Position::of) else { return };
        for source in members.iter().filter(|member| member.name != self.me) {
            let reached = self.reached.entry(source.name.clone()).or_insert_with(|| Reached::at(from));
            let following = Following {
                source: source.clone(),
                me: self.me.clone(),
                run: self.run,
                agenda: self.agenda,
                from,
                reached: reached.clone(),
                epoch: self.epoch,
            };
            self.tasks.spawn(follow(following, words.clone()));
        }
    }

    /// The next task that ended by itself; `None` while there is no task.
    pub(super) async fn ended(&mut self) -> Option<Result<(), PeerError>> {
        Some(match self.tasks.join_next().await? {
            Ok(result) => result,
            Err(error) if JoinError::is_cancelled(&error) => Ok(()),
            Err(error) => Err(PeerError::Internal(format!("following a peer: {error}"))),
        })
    }

    pub(super) async fn shutdown(&mut self) {
        self.tasks.shutdown().await;
    }
}
