//! Threads and memory of the process, set once before anything else runs.

use std::num::NonZeroUsize;

/// Why the process could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// rayon's global pool exists already or its threads cannot be started.
    #[error("the pool of {threads} CPU threads cannot be started: {source}")]
    Pool {
        /// Threads asked for.
        threads: usize,
        /// rayon's reason.
        source: rayon::ThreadPoolBuildError,
    },
}

/// Limits every computation of this process to `threads` threads (0: as many as the machine offers) and tells
/// the allocator to keep the memory that it has. Returns the number of threads.
///
/// Must be the first act of `main`: the environment may be changed only while there is one thread.
///
/// # Errors
/// When the pool cannot be started, for instance because it was used before.
pub fn init(threads: usize) -> Result<usize, InitError> {
    let threads = match threads {
        0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        n => n,
    };
    limit_candle(threads);
    keep_memory();
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .thread_name(|i| format!("kernel-{i}"))
        .build_global()
        .map_err(|source| InitError::Pool { threads, source })?;
    Ok(threads)
}

/// candle splits large element-wise ops over a pool of its own, sized by the environment, whose threads spin
/// while they wait and so take the cores from rayon's threads and from the other peers of the machine.
fn limit_candle(threads: usize) {
    /// Up to here the pool costs more than it saves (ResNet-20 on two cores: 640 images/s without, 600 with
    /// it; two such processes at once, spinning without limit: 48 each instead of 160 to 330).
    const WITHOUT_POOL_MAX: usize = 2;
    let of_pool = if threads <= WITHOUT_POOL_MAX { 1 } else { threads };
    for (name, value) in [
        ("RAYON_NUM_THREADS", threads),
        ("CANDLE_NUM_THREADS", of_pool),
        // Rounds that an idle thread of the pool spins before it sleeps.
        ("CANDLE_BARRIER_POOL_SPIN_LIMIT", 1),
    ] {
        // SAFETY: `init` is called first in `main`, so no other thread reads or writes the environment.
        #[expect(unsafe_code, reason = "candle can be told only through the environment")]
        unsafe {
            std::env::set_var(name, value.to_string());
        }
    }
}

/// Keeps glibc from handing every large tensor back to the kernel and faulting its pages in again a moment
/// later.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_memory() {
    for (parameter, value) in [
        // Tensors come from the heap, not from a mapping each, and from the one heap that is never given
        // back: those of further threads are, whenever they happen to be empty.
        (libc::M_MMAP_MAX, 0),
        (libc::M_ARENA_MAX, 1),
        (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
        (libc::M_TOP_PAD, 64 << 20),
    ] {
        // SAFETY: `mallopt` takes two integers and touches only the allocator's own settings; there is one
        // thread. Its answer is advice refused at worst.
        #[expect(unsafe_code, reason = "the allocator is set through the C library")]
        unsafe {
            libc::mallopt(parameter, value);
        }
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_memory() {}
