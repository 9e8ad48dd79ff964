//! The tasks that follow the sources of this peer: one a source, begun anew whenever training starts elsewhere, another
//! view is said, or a source may be found at another address.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cohort_proto::contribution::Position;
use cohort_proto::id::{PeerName, RunId, Step};
use cohort_proto::meta::Agenda;
use cohort_proto::view::{Member, View, Views};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;

use crate::error::PeerError;
use crate::net::follow::{Following, Reached, follow, places};
use crate::net::network::Network;
use crate::trainer::Word;

/// Whose logs are followed, and how far.
#[derive(Debug)]
pub(super) struct Follows {
    network: Arc<dyn Network>,
    me: PeerName,
    run: RunId,
    agenda: Agenda,
    tasks: JoinSet<(u64, Result<(), PeerError>)>,
    /// Whether training was told where to start; nobody is followed before.
    started: bool,
    epoch: u64,
    /// Of each source: what has been delivered, if it is not heard anew, and the places that are left for more.
    sources: BTreeMap<PeerName, (Option<Reached>, Arc<Semaphore>)>,
    /// The views that were said, ascending.
    views: Views,
    /// Those who are gone: nothing more is taken of them until another view is said.
    gone: BTreeSet<PeerName>,
}

impl Follows {
    pub(super) fn new(network: Arc<dyn Network>, me: PeerName, run: RunId, agenda: Agenda) -> Self {
        let (tasks, sources) = (JoinSet::new(), BTreeMap::new());
        let (views, gone) = (Views::default(), BTreeSet::new());
        Self { network, me, run, agenda, tasks, started: false, epoch: 0, sources, views, gone }
    }

    /// Whether any view was said.
    pub(super) fn knows_a_view(&self) -> bool {
        !self.views.is_empty()
    }

    /// Training starts at a step: everybody is to be followed from there. Returns the number of the new epoch.
    pub(super) fn restart(&mut self) -> u64 {
        self.tasks.abort_all();
        self.sources.clear();
        self.started = true;
        self.epoch += 1;
        self.epoch
    }

    /// A view was said, perhaps again; `next` is the first step that this peer may still have to take. Of a view that it
    /// did not know, everything from there on is heard again, since what was heard may be void.
    pub(super) fn viewed(&mut self, view: View, next: Step) {
        if !self.views.iter().any(|known| known.id == view.id) {
            // Places stay taken: what is still valid waits there.
            self.sources.values_mut().for_each(|source| source.0 = None);
            self.gone.clear();
        }
        self.views.insert(view);
        self.views.retain_from(next);
    }

    /// Takes nothing more of these; nothing of theirs is under way when this returns.
    pub(super) async fn take_no_more(&mut self, peers: &[PeerName]) {
        self.gone.extend(peers.iter().cloned());
        self.tasks.shutdown().await;
    }

    /// The coordinator was started anew and has forgotten who is gone.
    pub(super) fn forget_who_is_gone(&mut self) {
        self.gone.clear();
    }

    /// Follows the members of all views that hold for a step to come, each from the first entry of it that has not been
    /// delivered.
    pub(super) fn follow(&mut self, next: Step, words: &mpsc::Sender<Word>) {
        self.tasks.abort_all();
        if !self.started {
            return;
        }
        let known = Arc::new(self.views.clone());
        let members = self.views.iter().flat_map(|view| &view.members);
        // The newest view has the newest address.
        let sources: BTreeMap<&PeerName, &Member> = members.map(|member| (&member.name, member)).collect();
        for (name, source) in
            sources.into_iter().filter(|(name, _)| **name != self.me && !self.gone.contains(name))
        {
            // It says nothing to steps before it was a member.
            let from = Position::of(self.views.due(name, next));
            let (reached, places) = self.sources.entry(name.clone()).or_insert_with(|| (None, places()));
            let (reached, places) =
                (reached.get_or_insert_with(|| Reached::at(from)).clone(), places.clone());
            let following = Following {
                network: self.network.clone(),
                source: source.clone(),
                me: self.me.clone(),
                run: self.run,
                agenda: self.agenda,
                reached,
                places,
                views: known.clone(),
                epoch: self.epoch,
            };
            let (epoch, words) = (self.epoch, words.clone());
            self.tasks.spawn(async move { (epoch, follow(following, words).await) });
        }
    }

    /// A step is complete: nothing of it, or from before it, is wanted any more, even where a log that begins anew
    /// cannot know which entry was the last one of that step.
    pub(super) fn completed(&self, step: Step) {
        let heard = self.sources.values().filter_map(|(reached, _)| reached.as_ref());
        heard.for_each(|reached| reached.raise(Position::of(step + 1)));
    }

    /// How the next task ended that ended by itself; `None` while there is no task.
    pub(super) async fn ended(&mut self) -> Option<Result<(), PeerError>> {
        Some(match self.tasks.join_next().await? {
            Ok((epoch, result)) if epoch == self.epoch => result,
            Ok(_) => Ok(()),
            Err(error) if error.is_cancelled() => Ok(()),
            Err(error) => Err(PeerError::Internal(format!("following a peer: {error}"))),
        })
    }

    pub(super) async fn shutdown(&mut self) {
        self.tasks.shutdown().await;
    }
}
