//! Tests of the meta-update: closed forms, PyTorch's double backward through the unrolled steps, and what must not
//! change when something fails. Peers run as threads that exchange through channels, in lock step as processes do.

mod company;
mod network;
mod scalar;
mod exact;
mod traces;
mod learners;
mod among;
mod banks;
