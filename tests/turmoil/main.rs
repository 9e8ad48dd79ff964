//! The real services of coordinator and peers, over a simulated network in virtual time: seeds that drop, hold, delay and
//! cut off messages, and kill and start processes. What trains is a stand-in (`trainer`); all else is production code.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on fails")]

mod setting;
mod network;
mod disk;
mod witness;
mod trainer;
mod processes;
mod faults;
mod world;
mod verdict;
mod seeds;
