//! Who learns from whom, where a method does not say it edge by edge.

use serde::{Deserialize, Serialize};

use super::super::SpecError;
use super::super::section::Section;

/// A shape of graph over some peers in the order of run.toml.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Topology {
    /// Everybody with everybody.
    All,
    /// Each with the one before it and the one after it; the last with the first.
    Ring,
    /// The first with each of the others.
    Star,
    /// Everybody with everybody in each group of so many.
    Groups(usize),
}

impl Topology {
    /// Reads `topology` and `group`. `None` if neither is there.
    pub(super) fn read(section: &mut Section, peers: usize) -> Result<Option<Self>, SpecError> {
        let group = section.whole("group", 2..=peers.max(2) as u64)?.map(|group| group as usize);
        let shapes =
            [("all", Self::All), ("ring", Self::Ring), ("star", Self::Star), ("groups", Self::Groups(0))];
        let shape = section.choice("topology", &shapes)?;
        match (shape, group) {
            (Some(Self::Groups(_)), Some(group)) => Ok(Some(Self::Groups(group))),
            (Some(Self::Groups(_)), None) => {
                Err(section.missing("group", "write how many peers a group has, such as group = 2"))
            }
            (_, Some(_)) => Err(section.error("group", "needs topology = \"groups\"")),
            (shape, None) => Ok(shape),
        }
    }

    /// The pairs (source, target) over peers of these indices, by target and then source.
    pub fn pairs(self, peers: &[usize]) -> Vec<(usize, usize)> {
        let count = peers.len();
        let linked = |i: usize, j: usize| match self {
            Self::All => true,
            Self::Ring => (i + 1) % count == j || (j + 1) % count == i,
            Self::Star => i == 0 || j == 0,
            Self::Groups(size) => i / size.max(1) == j / size.max(1),
        };
        let places = (0..count).flat_map(|to| (0..count).map(move |from| (from, to)));
        let pairs = places.filter(|(from, to)| from != to && linked(*from, *to));
        pairs.filter_map(|(from, to)| Some((*peers.get(from)?, *peers.get(to)?))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let peers = [1, 4, 5, 9];
        let sources = |shape: Topology, target: usize| -> Vec<usize> {
            let pairs = shape.pairs(&peers).into_iter();
            pairs.filter(|(_, to)| *to == target).map(|(from, _)| from).collect()
        };
        assert_eq!(sources(Topology::All, 4), [1, 5, 9]);
        assert_eq!(sources(Topology::Ring, 1), [4, 9]);
        assert_eq!(sources(Topology::Ring, 5), [4, 9]);
        assert_eq!(sources(Topology::Star, 1), [4, 5, 9]);
        assert_eq!(sources(Topology::Star, 9), [1]);
        assert_eq!(sources(Topology::Groups(2), 5), [9]);
        assert_eq!(sources(Topology::Groups(3), 9), Vec::<usize>::new());
        assert_eq!(Topology::Ring.pairs(&[0, 1]), [(1, 0), (0, 1)], "two are a ring without doubled edges");
        assert!(Topology::Ring.pairs(&[3]).is_empty());
    }
}
