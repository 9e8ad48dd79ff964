//! Recovery proved twice over the real machines (`Cluster`, `Rounds`, `ContributionLog`, `Place`): by thousands of seeded
//! worlds in which everything breaks at some moment, and by a search of small worlds that leaves no order of events out.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod coordinator;
mod disk;
mod driver;
mod follows;
mod journal;
mod process;
mod trainer;
mod training;
mod watch;
mod world;
mod timed;
mod seeds;
mod fingerprint;
mod search;
