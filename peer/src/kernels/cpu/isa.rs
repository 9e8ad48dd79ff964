//! Which instruction set the kernels run on: asked of the processor once, narrowed by `COHORT_ISA`.
#![cfg_attr(
    target_arch = "x86_64",
    expect(unsafe_code, reason = "entry into functions compiled for a set that the processor was asked for")
)]

use std::cell::Cell;
use std::sync::OnceLock;

#[cfg(target_arch = "x86_64")]
use super::avx::{Avx2, Avx512};
use super::lanes::{Lanes, Portable};

/// An instruction set that kernels are compiled for, slowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::kernels) enum Isa {
    /// What every processor of the target has.
    Portable,
    /// x86-64 with AVX2 and FMA.
    Avx2,
    /// x86-64 with AVX-512F besides.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, reason = "no other processor has it"))]
    Avx512,
}

thread_local! {
    static SCOPED: Cell<Option<Isa>> = const { Cell::new(None) };
}

impl Isa {
    /// The set for an operation that starts on this thread: the scoped one, else that of the process.
    ///
    /// `COHORT_ISA` set to `portable`, `avx2` or `avx512` asks for less than the processor offers; it is read
    /// once, and what the processor lacks, or an unknown word, leaves the best set in force.
    pub(in crate::kernels) fn current() -> Self {
        static OF_PROCESS: OnceLock<Isa> = OnceLock::new();
        SCOPED.get().unwrap_or_else(|| {
            *OF_PROCESS.get_or_init(|| {
                let best = Self::best();
                match std::env::var("COHORT_ISA").as_deref() {
                    Ok("portable") => Self::Portable,
                    Ok("avx2") => best.min(Self::Avx2),
                    _ => best,
                }
            })
        })
    }

    /// The best set of this processor.
    pub(in crate::kernels) fn best() -> Self {
        #[cfg(target_arch = "x86_64")]
        {
            let avx2 = std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma");
            if avx2 && std::is_x86_feature_detected!("avx512f") {
                return Self::Avx512;
            }
            if avx2 {
                return Self::Avx2;
            }
        }
        Self::Portable
    }

    /// Runs `f` with operations of this thread held to `self` or the best set, whichever is less.
    #[cfg(test)]
    pub(in crate::kernels) fn scoped<R>(self, f: impl FnOnce() -> R) -> R {
        let before = SCOPED.replace(Some(self.min(Self::best())));
        let result = f();
        SCOPED.set(before);
        result
    }
}

/// A computation written once for every instruction set. `run` and all that it calls must be inlined, else it
/// is compiled for the least set.
pub(super) trait Kernel {
    type Output;
    fn run<V: Lanes>(self) -> Self::Output;
}

/// Runs a kernel on a set; one that the processor lacks falls back to plain Rust.
pub(super) fn dispatch<K: Kernel>(isa: Isa, kernel: K) -> K::Output {
    #[cfg(target_arch = "x86_64")]
    match isa.min(Isa::best()) {
        // SAFETY: the processor was asked for AVX-512F, AVX2 and FMA in the line above.
        Isa::Avx512 => return unsafe { run_avx512(kernel) },
        // SAFETY: the processor was asked for AVX2 and FMA in the line above.
        Isa::Avx2 => return unsafe { run_avx2(kernel) },
        Isa::Portable => {}
    }
    let _ = isa;
    kernel.run::<Portable>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx512>()
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    kernel.run::<Avx2>()
}
