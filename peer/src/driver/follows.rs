//! The tasks that follow the sources of this peer: one a source, begun anew whenever training starts elsewhere, another
//! view is said, or a source may be found at another address.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use cohort_proto::contribution::Position;
use cohort_proto::id::{PeerName, RunId, Step, ViewId};
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
    /// Those that this peer learns from, and the names of the tensors that it does so by.
    from: BTreeMap<PeerName, BTreeSet<String>>,
    run: RunId,
    agenda: Agenda,
    tasks: JoinSet<(u64, Result<(), PeerError>)>,
    /// Whether training was told where to start; nobody is followed before.
    started: bool,
    epoch: u64,
    /// Of each source: what has been delivered.
    reached: BTreeMap<PeerName, Reached>,
    /// Of each source: the places that are left for more.
    places: BTreeMap<PeerName, Arc<Semaphore>>,
    /// The views that were said, ascending.
    views: Views,
    /// Those who are gone: nothing more is taken of them until another view is said.
    gone: BTreeSet<PeerName>,
}

impl Follows {
    pub(super) fn new(
        network: Arc<dyn Network>,
        me: PeerName,
        from: BTreeMap<PeerName, BTreeSet<String>>,
        (run, agenda): (RunId, Agenda),
    ) -> Self {
        let (reached, places) = (BTreeMap::new(), BTreeMap::new());
        let (tasks, views, gone) = (JoinSet::new(), Views::default(), BTreeSet::new());
        Self { network, me, from, run, agenda, tasks, started: false, epoch: 0, reached, places, views, gone }
    }

    /// Whether any view was said.
    pub(super) fn knows_a_view(&self) -> bool {
        !self.views.is_empty()
    }

    /// The view that holds for a step.
    pub(super) fn view_at(&self, step: Step) -> ViewId {
        self.views.at(step).map_or(ViewId(0), |view| view.id)
    }

    /// Training starts at a step, in an epoch: everybody is to be followed from there.
    pub(super) fn restart(&mut self, epoch: u64) {
        self.tasks.abort_all();
        self.reached.clear();
        self.places.clear();
        self.started = true;
        self.epoch = epoch;
    }

    /// Nobody is followed before training was told where to start anew.
    pub(super) fn stands_down(&mut self) {
        self.started = false;
    }

    /// A view was said, perhaps again; `next` is the first step that this peer may still have to take. With a newer view
    /// than it knew everything from there on is heard again, since what was heard may be void. An older one tells nothing
    /// new, even if it was let go meanwhile: those who are gone stay gone.
    pub(super) fn viewed(&mut self, view: View, next: Step) {
        if self.views.last().is_none_or(|newest| newest.id < view.id) {
            // What is heard again has no places of its own: what holds of what was heard before keeps those it has.
            self.reached.clear();
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

    /// Follows the sources among the members of all views of which this peer is one and that hold for a step to come, each
    /// from the first entry of it that has not been delivered. Who was left behind hears nobody: it will not take those
    /// steps.
    pub(super) fn follow(&mut self, next: Step, words: &mpsc::Sender<Word>) {
        self.tasks.abort_all();
        if !self.started {
            return;
        }
        // Whoever was a member only before that may not even be served by others any more.
        self.views.retain_from(next);
        let known = Arc::new(self.views.clone());
        let mine = self.views.iter().filter(|view| view.member(&self.me).is_some());
        let members = mine.flat_map(|view| &view.members);
        // The newest view has the newest address.
        let sources: BTreeMap<&PeerName, &Member> = members.map(|member| (&member.name, member)).collect();
        for (name, source) in sources.into_iter().filter(|(name, _)| !self.gone.contains(name)) {
            let Some(wanted) = self.from.get(name) else { continue };
            // Nobody says anything to this peer before both are members.
            let from = Position::of(self.views.due(name, self.views.due(&self.me, next)));
            let reached = self.reached.entry(name.clone()).or_insert_with(|| Reached::at(from)).clone();
            let places = self.places.entry(name.clone()).or_insert_with(places).clone();
            let following = Following {
                network: self.network.clone(),
                source: source.clone(),
                me: self.me.clone(),
                wanted: wanted.clone(),
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
        self.reached.values().for_each(|reached| reached.raise(Position::of(step + 1)));
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::net::network::Tcp;
    use cohort_proto::schema::Schema;
    use cohort_proto::spec::RunSpec;

    const RUN: &str = "[run]\nsteps = 9\n[data]\ndataset = \"mnist\"\nbatch = 2\n[method]\nname = \"dml\"\n\
                       [[peer]]\nname = \"a\"\narch = \"resnet8\"\n[[peer]]\nname = \"b\"\narch = \"resnet8\"\n";

    fn name(text: &str) -> PeerName {
        PeerName::new(text).unwrap()
    }

    fn view(id: u64, begins_at: Step, members: &[&str]) -> View {
        let member = |(index, text): (usize, &&str)| Member {
            index,
            name: name(text),
            address: "127.0.0.1:1".into(),
            schema: Schema::default(),
        };
        View { id: ViewId(id), begins_at, members: members.iter().enumerate().map(member).collect() }
    }

    fn peer_a() -> Follows {
        let agenda = Agenda::of(&RunSpec::parse(RUN).unwrap());
        Follows::new(Arc::new(Tcp), name("a"), [(name("b"), BTreeSet::new())].into(), (RunId(1), agenda))
    }

    #[tokio::test]
    async fn who_was_left_behind_follows_nobody() {
        let (mut follows, (words, _inbox)) = (peer_a(), mpsc::channel::<Word>(4));
        follows.restart(1);
        follows.viewed(view(2, 4, &["b"]), 5);
        follows.follow(5, &words);
        assert!(follows.tasks.is_empty());
        follows.viewed(view(3, 9, &["a", "b"]), 5);
        follows.follow(5, &words);
        assert_eq!(follows.tasks.len(), 1);
        assert_eq!(follows.reached[&name("b")].get(), Position::of(9), "from where it comes in");
    }

    #[tokio::test]
    async fn an_old_view_that_is_said_again_brings_nobody_back() {
        let mut follows = peer_a();
        follows.viewed(view(2, 4, &["a", "b"]), 5);
        follows.take_no_more(&[name("b")]).await;
        follows.viewed(view(1, 0, &["a", "b"]), 5);
        assert!(follows.gone.contains(&name("b")), "it was said what had come of it");
        let places = Arc::new(Semaphore::new(1));
        follows.places.insert(name("b"), places.clone());
        follows.viewed(view(3, 6, &["a", "b"]), 5);
        assert!(follows.gone.is_empty());
        assert!(Arc::ptr_eq(&follows.places[&name("b")], &places), "what was heard keeps its places");
    }
}
