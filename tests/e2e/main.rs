//! The whole system as users meet it: real processes, real sockets, real files. What goes well ends in the weights that
//! it must; what goes wrong ends in the right exit code, with a sentence that says why, and with nothing lost.
//!
//! Time decides nothing here: tests wait for conditions, and hold processes in the middle of a run with [`gate`].

mod call;
mod gate;
mod setting;
mod hostile;

mod finish;
mod going_on;
mod bad_input;
mod refusals;
mod attacks;
mod failures;
mod disk_full;
mod slow_disk;
mod chaos;
mod l_mcl;
mod bank;
mod teacher;
mod graph;
mod validation;
mod commands;
mod measures;
