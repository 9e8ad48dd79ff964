//! Every maximum in one place, with the arithmetic that justifies it.

use std::time::Duration;

/// Version of the wire protocol. A peer of another version is refused at join.
pub const PROTOCOL_VERSION: u32 = 3;

/// Peers in one run. The coordinator's work per step report is O(members); a cohort is usually 2 to 16.
pub const PEERS_MAX: usize = 1024;

/// Characters of a peer or run name: it becomes a folder name and a certificate's subject.
pub const NAME_CHARS_MAX: usize = 64;

/// Characters of an address (`host:port`; a DNS name has at most 253).
pub const ADDRESS_CHARS_MAX: usize = 300;

/// Bytes of a run.toml. A thousand peers at about 100 bytes each are 100 kB.
pub const SPEC_BYTES_MAX: usize = 1 << 20;

/// CPU threads of a peer: the largest machines have about 500 cores.
pub const THREADS_MAX: usize = 1024;

/// Tensors in one contribution: 4 stages, each with an embedding and a matching feature, and logits, with room.
pub const TENSORS_MAX: usize = 64;

/// Names of tensors that a follower may ask for: all of a step, and those of its further rounds.
pub const WANTED_MAX: usize = 2 * TENSORS_MAX;

/// Dimensions of a tensor; feature maps have 4.
pub const RANK_MAX: usize = 8;

/// Bytes of tensor data in one contribution. L-MCL at batch 128 says 444 kB; ImageNet logits at batch 1024 are 4 MB;
/// a feature map of 256x64x32x32 f32 is 64 MB.
pub const CONTRIBUTION_BYTES_MAX: usize = 64 << 20;

/// Bytes of one gRPC message of the data plane: a contribution and its names.
pub const EXCHANGE_MESSAGE_BYTES_MAX: usize = CONTRIBUTION_BYTES_MAX + (1 << 20);

/// Bytes of one gRPC message of the control plane: a status with a thousand members at about 2 kB each.
pub const CONTROL_MESSAGE_BYTES_MAX: usize = 4 << 20;

/// Bytes of a run spec, which a status carries beside its members: some 20,000 edges.
pub const RUN_SPEC_BYTES_MAX: usize = CONTROL_MESSAGE_BYTES_MAX / 2;

/// Bytes that a peer's contribution log may hold: what accumulates between two checkpoints. A run whose contributions
/// would exceed it is refused before training with the advice to write checkpoints more often.
pub const LOG_BYTES_MAX: u64 = 2 << 30;

/// Contributions received from one source and not yet consumed. A source that needs our own contribution for its next
/// step cannot be further ahead than one step; one-directional edges are held back by flow control.
pub const INBOX_PER_SOURCE: usize = 4;

/// Messages queued between a process's network tasks and its deciding loop, each way.
pub const QUEUE_DEPTH: usize = 256;

/// Loss terms, or timings, in one report: the terms of a loss with room, and the weights with which 4 own stages are
/// matched with 4 stages of 15 others (240). A report of that many names of 20 letters is 10 kB; cohorts so large that
/// a status of theirs would exceed [`CONTROL_MESSAGE_BYTES_MAX`] have too many weights to report any.
pub const REPORT_ENTRIES_MAX: usize = 64 + 15 * 4 * 4;

/// Characters of the name of a term or a timing: a peer's name is in some, with two stages.
pub const TERM_CHARS_MAX: usize = NAME_CHARS_MAX + 16;

/// Characters of a reason or a sentence that travels.
pub const SENTENCE_CHARS_MAX: usize = 1000;

/// Checkpoint steps that a joining peer may offer.
pub const CHECKPOINTS_MAX: usize = 1024;

/// Steps of a run. More would overflow nothing, but no run of this many steps ends.
pub const STEPS_MAX: u64 = 1 << 40;

/// Steps that a lease may reach beyond the slowest member.
pub const LEASE_STEPS_MAX: u64 = 64;

/// Steps that a lease always reaches beyond the slowest member, so that a slow step never waits for a grant.
pub const LEASE_STEPS_MIN: u64 = 2;

/// The time that a lease is meant to cover: also how long a graceful stop takes at the most, about.
pub const LEASE_SPAN: Duration = Duration::from_secs(2);

/// Attempts to reach the coordinator, with pauses that double up to [`RETRY_PAUSE_MAX`]: about 12 seconds in all.
pub const CONNECT_ATTEMPTS: u32 = 8;

/// The first pause between two attempts.
pub const RETRY_PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause between two attempts.
pub const RETRY_PAUSE_MAX: Duration = Duration::from_secs(4);

/// How long one connection attempt may take.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Reports that a peer can say again to a coordinator that was started anew. What a coordinator has forgotten lies beyond
/// the slowest peer at its last grant but one, and a lease reaches no further than [`LEASE_STEPS_MAX`].
pub const REPORTS_KEPT: usize = 4 * LEASE_STEPS_MAX as usize;

/// Steps whose digests the coordinator holds against those that a replay recomputes: about 200 bytes a peer and step.
pub const DIGEST_STEPS_MAX: usize = 16 * 1024;

/// Sessions of one start of a coordinator; the number of the start is in the bits above, so that a session of an earlier
/// start is never mistaken for one of this.
pub const SESSION_BITS: u32 = 32;

/// Views that a peer keeps in mind: those since the oldest checkpoint that all hold, which are few.
pub const VIEWS_MAX: usize = 256;

/// Steps of which a peer keeps what it received, for those who have received less of a source that is gone. Peers that need
/// each other are at most one step apart, and the inbox holds [`INBOX_PER_SOURCE`] more.
pub const RELAY_STEPS: u64 = 2 + INBOX_PER_SOURCE as u64;

/// How often a coordinator lets a cohort fall back to a common checkpoint before it gives the run up.
pub const FALLBACKS_MAX: u32 = 16;

/// Names in a heartbeat or a sentence about who is waited for.
pub const WAITS_FOR_MAX: usize = 16;

/// Concurrent streams that one connection may open on a service of ours.
pub const STREAMS_PER_CONNECTION: u32 = 16;

/// A connection that carries nothing is probed this often, and given up when a probe stays unanswered as long.
pub const KEEPALIVE: Duration = Duration::from_secs(10);

/// Bytes of the memory banks of all networks, which every peer holds: 1.3 million samples of width 128 are 656 MB a
/// network, so six networks on ImageNet fit.
pub const BANKS_BYTES_MAX: u64 = 4 << 30;

/// Bytes of what a teacher keeps of all training samples: 1000 logits of a million samples are 4 GB.
pub const CACHE_BYTES_MAX: u64 = 4 << 30;
