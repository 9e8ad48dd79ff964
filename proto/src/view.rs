//! The numbered set of members that holds for a range of steps.

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
