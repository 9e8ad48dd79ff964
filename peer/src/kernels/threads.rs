//! Threads and memory of the process, set once before anything else runs.

use std::num::NonZeroUsize;
use std::sync::atomic::{AtomicBool, Ordering};

/// Most threads of one process.
pub const THREADS_MAX: usize = 1024;

/// Why the process could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// No machine has that many cores, and each thread takes memory.
    #[error("{threads} CPU threads are more than the {THREADS_MAX} that one process may start")]
    TooMany {
        /// Threads asked for.
        threads: usize,
    },
    /// rayon's global pool exists already or its threads cannot be started.
    #[error("the pool of {threads} CPU threads cannot be started: {source}")]
    Pool {
        /// Threads asked for.
        threads: usize,
        /// rayon's reason.
        source: rayon::ThreadPoolBuildError,
    },
    /// Threads run already, or it was called before.
    #[error("CPU threads can be set up only once, before the process has any other thread")]
    Late,
    /// The process may not use a core that it was given.
    #[error("CPU core {core} is none of those that this process may use: {allowed:?}")]
    Core {
        /// The core asked for.
        core: usize,
        /// Those that the process may use; none where the system does not tell, and there nothing can be pinned.
        allowed: Vec<usize>,
    },
}

/// How many threads compute, and where.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Threads {
    /// Threads of the one pool; 0 takes one for each of `cores` or, without any, as many as the machine offers.
    pub count: usize,
    /// The cores that the threads stay on, in turn; with none they are free. Peers that share a machine are given
    /// different ones.
    pub cores: Vec<usize>,
}

/// Limits every computation of this process to one pool of threads and tells the allocator to keep the memory that
/// it has. Returns the number of threads.
///
/// Must be the first act of `main`: the environment may be changed only while there is one thread. The number of
/// threads and their cores change the speed only, never a bit of a result.
///
/// # Errors
/// When there would be too many threads, a core is not to be had, this is not the first act, or the pool cannot be
/// started.
pub fn init(threads: Threads) -> Result<usize, InitError> {
    let Threads { count, cores } = threads;
    let count = match count {
        0 if !cores.is_empty() => cores.len(),
        0 => std::thread::available_parallelism().map_or(1, NonZeroUsize::get),
        n => n,
    };
    if count > THREADS_MAX {
        return Err(InitError::TooMany { threads: count });
    }
    if !cores.is_empty() {
        let allowed = allowed_cores();
        if let Some(&core) = cores.iter().find(|core| !allowed.contains(core)) {
            return Err(InitError::Core { core, allowed });
        }
    }
    check_first()?;
    limit_candle(count, !cores.is_empty());
    keep_memory();
    let mut pool = rayon::ThreadPoolBuilder::new().num_threads(count).thread_name(|i| format!("kernel-{i}"));
    if !cores.is_empty() {
        pool = pool.start_handler(move |i| pin(&cores, i));
    }
    pool.build_global().map_err(|source| InitError::Pool { threads: count, source })?;
    Ok(count)
}

/// That no thread could notice what [`init`] changes: it is called once, and there is one thread.
fn check_first() -> Result<(), InitError> {
    static CALLED: AtomicBool = AtomicBool::new(false);
    // Elsewhere than on Linux the number of threads is not known, and the order of `main` has to do.
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, Iterator::count);
    if CALLED.swap(true, Ordering::Relaxed) || threads > 1 { Err(InitError::Late) } else { Ok(()) }
}

/// Runs `f` on a thread of the pool, so that each kernel in it begins there at once. From any other thread every one of
/// the hundreds in a step would first have to wake the pool, a twentieth of the time of ResNet-20 on two cores.
///
/// `f` must not wait for anything but kernels: it occupies a thread of the pool. Closures that run at once must share no
/// tensors that either changes: one that waits for its kernels may take up another's work meanwhile.
pub fn compute<R: Send>(f: impl FnOnce() -> R + Send) -> R {
    rayon::scope(|_| f())
}

/// candle splits large element-wise ops over a pool of its own, sized by the environment, whose threads spin
/// while they wait and so take the cores from rayon's threads and from the other peers of the machine.
///
/// Its threads would inherit the one core of the pinned thread that happens to start them, so beside pinned threads
/// there are none.
fn limit_candle(threads: usize, pinned: bool) {
    /// Up to here the pool costs more than it saves (ResNet-20 on two cores: 640 images/s without, 600 with
    /// it; two such processes at once, spinning without limit: 48 each instead of 160 to 330).
    const WITHOUT_POOL_MAX: usize = 2;
    let of_pool = if pinned || threads <= WITHOUT_POOL_MAX { 1 } else { threads };
    for (name, value) in [
        ("RAYON_NUM_THREADS", threads),
        ("CANDLE_NUM_THREADS", of_pool),
        // Rounds that an idle thread of the pool spins before it sleeps.
        ("CANDLE_BARRIER_POOL_SPIN_LIMIT", 1),
    ] {
        // SAFETY: `check_first` has found no other thread that could read or write the environment.
        #[expect(unsafe_code, reason = "candle can be told only through the environment")]
        unsafe {
            std::env::set_var(name, value.to_string());
        }
    }
}

/// The cores that the process may use; none where the system does not tell.
#[cfg(target_os = "linux")]
pub fn allowed_cores() -> Vec<usize> {
    // SAFETY: a set of cores is plain bits, of which all zero is the empty one; `sched_getaffinity` writes no more than
    // the size that it is told, and `CPU_ISSET` is asked for cores below the set's own size only.
    #[expect(unsafe_code, reason = "affinity is known to the C library only")]
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        if libc::sched_getaffinity(0, size_of_val(&set), &raw mut set) != 0 {
            return Vec::new();
        }
        (0..libc::CPU_SETSIZE as usize).filter(|&core| libc::CPU_ISSET(core, &set)).collect()
    }
}

/// The cores that the process may use; none where the system does not tell.
#[cfg(not(target_os = "linux"))]
pub fn allowed_cores() -> Vec<usize> {
    Vec::new()
}

/// Keeps the calling thread, the pool's `i`th, on one core. A refusal leaves it free, which costs speed only.
#[cfg(target_os = "linux")]
fn pin(cores: &[usize], i: usize) {
    // SAFETY: as in `allowed_cores`; the core is one that it found in a set of the same size, and there is one.
    #[expect(unsafe_code, reason = "affinity is set through the C library")]
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cores[i % cores.len()], &mut set);
        libc::sched_setaffinity(0, size_of_val(&set), &raw const set);
    }
}

#[cfg(not(target_os = "linux"))]
fn pin(_: &[usize], _: usize) {}

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
    reserve_huge_pages();
}

/// Takes a piece of the heap, asks for huge pages there and gives it back to the allocator, which by now returns
/// nothing to the kernel: tensors are made from it, at a page fault for 2 MiB instead of one for each 4 KiB. Only
/// what is used becomes resident.
#[cfg(all(target_os = "linux", target_env = "gnu"))]
fn reserve_huge_pages() {
    /// More than a step of the largest network for small images takes; what goes beyond has small pages.
    const RESERVED_BYTES: usize = 1 << 30;
    const HUGE_PAGE_BYTES: usize = 2 << 20;
    // SAFETY: there is one thread. `madvise` is told of whole pages inside the piece that `malloc` gave, changes no
    // value in it, and may refuse; the piece is not used and freed once.
    #[expect(unsafe_code, reason = "the allocator is reached through the C library")]
    unsafe {
        let piece = libc::malloc(RESERVED_BYTES);
        if piece.is_null() {
            return;
        }
        let offset = piece.cast::<u8>().align_offset(HUGE_PAGE_BYTES);
        let first = piece.cast::<u8>().wrapping_add(offset);
        let whole = (RESERVED_BYTES - offset) / HUGE_PAGE_BYTES * HUGE_PAGE_BYTES;
        libc::madvise(first.cast(), whole, libc::MADV_HUGEPAGE);
        libc::free(piece);
    }
}

#[cfg(not(all(target_os = "linux", target_env = "gnu")))]
fn keep_memory() {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn too_many_threads_are_refused_before_anything_is_set_up() {
        let e = init(Threads { count: 1_000_000, cores: Vec::new() }).unwrap_err();
        assert!(e.to_string().contains("1000000 CPU threads"), "{e}");
    }

    #[test]
    fn a_core_that_is_not_there_is_refused_before_anything_is_set_up() {
        let e = init(Threads { count: 1, cores: vec![1_000_000] }).unwrap_err();
        assert!(e.to_string().contains("core 1000000"), "{e}");
    }

    /// Asked of the system, which tells what it was told.
    #[test]
    #[cfg(target_os = "linux")]
    fn a_pinned_thread_has_one_core() {
        let cores = allowed_cores();
        let of_thread = |i: usize| {
            let cores = cores.clone();
            std::thread::spawn(move || {
                pin(&cores, i);
                allowed_cores()
            })
        };
        for i in [0, cores.len() - 1, cores.len()] {
            assert_eq!(of_thread(i).join().unwrap(), [cores[i % cores.len()]]);
        }
    }
}
