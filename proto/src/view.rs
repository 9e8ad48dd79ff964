//! The numbered set of members that holds for a range of steps, and how such sets follow each other.

use std::ops::Deref;

use crate::id::{PeerName, Step, ViewId};
use crate::schema::Schema;

/// One peer as the others need to know it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Its position in the run spec: sums over peers run in this order, so that all form the same bits.
    pub index: usize,
    /// Its name.
    pub name: PeerName,
    /// Where its contribution log is served, `host:port`.
    pub address: String,
    /// What it says in every round 0.
    pub schema: Schema,
}

/// The members that hold from a step on, until the next view begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct View {
    /// Its number; it only grows.
    pub id: ViewId,
    /// The first step for which it holds.
    pub begins_at: Step,
    /// Ascending by index.
    pub members: Vec<Member>,
}

impl View {
    /// The member of a name.
    pub fn member(&self, name: &PeerName) -> Option<&Member> {
        self.members.iter().find(|member| &member.name == name)
    }
}

/// The views that somebody may still need, ascending in number and in first step: each holds until the next one begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Views(Vec<View>);

impl Views {
    /// Takes a view, perhaps one that is known already. It takes the place of older ones that begin no earlier.
    pub fn insert(&mut self, view: View) {
        self.0.retain(|known| known.id > view.id || (known.id < view.id && known.begins_at < view.begins_at));
        let place = self.0.partition_point(|known| known.id < view.id);
        self.0.insert(place, view);
    }

    /// The view that holds for a step.
    pub fn at(&self, step: Step) -> Option<&View> {
        self.0.iter().rev().find(|view| view.begins_at <= step)
    }

    /// The first step, from one on, that falls into a view with this member; the step itself if there is none. Before a
    /// member comes in, nobody waits for it.
    pub fn due(&self, member: &PeerName, step: Step) -> Step {
        let mut to_come = self.0.iter().skip(self.holder(step));
        to_come.find(|view| view.member(member).is_some()).map_or(step, |view| view.begins_at.max(step))
    }

    /// Since which step a member of the newest view has been one without a gap.
    pub fn since(&self, member: &PeerName) -> Option<Step> {
        let within = self.0.iter().rev().take_while(|view| view.member(member).is_some());
        within.last().map(|view| view.begins_at)
    }

    /// The step from which on one is no member any more; `None` if it is one now, or never was.
    pub fn left_at(&self, member: &PeerName) -> Option<Step> {
        let last = self.0.iter().rposition(|view| view.member(member).is_some())?;
        self.0.get(last + 1).map(|view| view.begins_at)
    }

    /// Nobody needs steps below this.
    pub fn retain_from(&mut self, step: Step) {
        self.0.drain(..self.holder(step));
    }

    /// Lets go of the oldest beyond so many.
    pub fn keep_newest(&mut self, most: usize) {
        self.0.drain(..self.0.len().saturating_sub(most));
    }

    /// The members of the newest view, whose addresses may change.
    pub fn newest_members_mut(&mut self) -> impl Iterator<Item = &mut Member> {
        self.0.last_mut().into_iter().flat_map(|view| &mut view.members)
    }

    /// The place of the view that holds for a step, or of the first.
    fn holder(&self, step: Step) -> usize {
        self.0.iter().rposition(|view| view.begins_at <= step).unwrap_or(0)
    }
}

impl Deref for Views {
    type Target = [View];

    fn deref(&self) -> &[View] {
        &self.0
    }
}

impl From<View> for Views {
    fn from(view: View) -> Self {
        Self(vec![view])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view(id: u64, begins_at: Step, names: &[&str]) -> View {
        let member = |(index, name): (usize, &&str)| Member {
            index,
            name: PeerName::new(*name).unwrap(),
            address: "h:1".into(),
            schema: Schema::default(),
        };
        View { id: ViewId(id), begins_at, members: names.iter().enumerate().map(member).collect() }
    }

    fn ids(views: &Views) -> Vec<u64> {
        views.iter().map(|view| view.id.0).collect()
    }

    /// Both are in from the start, a alone from step 5, both again from step 9.
    fn three() -> Views {
        let mut views = Views::default();
        for view in [view(3, 9, &["a", "b"]), view(1, 0, &["a", "b"]), view(2, 5, &["a"])] {
            views.insert(view);
        }
        views
    }

    #[test]
    fn they_may_be_said_in_any_order_and_again() {
        let mut views = three();
        assert_eq!(ids(&views), [1, 2, 3]);
        views.insert(view(2, 5, &["a"]));
        assert_eq!(ids(&views), [1, 2, 3]);
        views.insert(view(4, 5, &["b"]));
        assert_eq!(ids(&views), [1, 4], "it begins no later than two of them");
        assert_eq!(views.at(8).map(|view| view.id), Some(ViewId(4)));
    }

    #[test]
    fn a_member_is_due_where_it_comes_in() {
        let (views, b) = (three(), PeerName::new("b").unwrap());
        assert_eq!([3, 5, 8, 9, 12].map(|step| views.due(&b, step)), [3, 9, 9, 9, 12]);
        assert_eq!(views.due(&PeerName::new("c").unwrap(), 7), 7);
    }

    #[test]
    fn a_member_comes_and_goes() {
        let (mut views, [a, b]) = (three(), ["a", "b"].map(|name| PeerName::new(name).unwrap()));
        assert_eq!((views.since(&a), views.since(&b)), (Some(0), Some(9)));
        assert_eq!((views.left_at(&a), views.left_at(&b)), (None, None));
        views.insert(view(4, 12, &["a"]));
        assert_eq!((views.since(&b), views.left_at(&b)), (None, Some(12)));
        assert_eq!(views.left_at(&PeerName::new("c").unwrap()), None);
    }

    #[test]
    fn what_holds_for_a_step_to_come_is_kept() {
        let mut views = three();
        views.retain_from(6);
        assert_eq!(ids(&views), [2, 3]);
        views.keep_newest(1);
        assert_eq!((ids(&views), views.at(8)), (vec![3], None));
    }
}
