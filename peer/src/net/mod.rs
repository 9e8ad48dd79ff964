//! The only place that knows tonic: the coordinator as seen from a peer, the logs of other peers, and the service
//! through which they follow ours.

pub mod backoff;
pub mod network;
pub mod channel;
pub mod control;
pub mod follow;
pub mod serve;
