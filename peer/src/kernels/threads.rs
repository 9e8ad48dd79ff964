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

/// candle splits large element-wise ops over a pool of its own, whose size it reads from the environment.
fn limit_candle(threads: usize) {
    for (name, value) in [
        ("RAYON_NUM_THREADS", threads.to_string()),
        // Rounds that an idle thread of candle's pool spins before it sleeps. Spinning takes the core from
        // rayon's threads and from the other peers of the machine.
        ("CANDLE_BARRIER_POOL_SPIN_LIMIT", "1".to_owned()),
    ] {
        // SAFETY: `init` is called first in `main`, so no other thread reads or writes the environment.
        #[expect(unsafe_code, reason = "candle can be told only through the environment")]
        unsafe {
            std::env::set_var(name, value);
        }
    }
}

/// Keeps glibc from handing every large tensor back to the kernel and faulting its pages in again a moment later.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn keep_memory() {
    const MIB: libc::c_int = 1 << 20;
    for (parameter, value) in [
        // Tensors come from the heap, not from one mapping each; glibc refuses a threshold above 32 MiB.
        (libc::M_MMAP_THRESHOLD, 32 * MIB),
        (libc::M_MMAP_MAX, 0),
        (libc::M_TRIM_THRESHOLD, libc::c_int::MAX),
        (libc::M_TOP_PAD, 64 * MIB),
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
