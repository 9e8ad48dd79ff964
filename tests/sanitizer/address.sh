#!/usr/bin/env bash
# Runs the tests of the CPU kernels, the only unsafe code, under AddressSanitizer: every read and write outside an
# allocation, and every use after free, ends them.
#
#     tests/sanitizer/address.sh [FILTER]        FILTER defaults to kernels::
#
# What it does: builds cohort-peer's unit tests and all that they depend on with the sanitizer of the stable toolchain
# (which asks for RUSTC_BOOTSTRAP; the standard library stays uninstrumented, memory that it allocates does not) into
# target/address, and runs those of the kernels on every instruction set of this machine.
# Needs: Linux on x86-64, Rust, 1.2 GB of disk. Takes seven minutes on two cores the first time, nearly all of it compiling;
# a minute when only our code has changed. Not part of CI.
set -euo pipefail
cd "$(dirname "$0")/../.."
export RUSTC_BOOTSTRAP=1 RUSTFLAGS="${RUSTFLAGS:-} -Zsanitizer=address" CARGO_TARGET_DIR="${CARGO_TARGET_DIR:-target/address}"
# Optimised where the tests spend their time; a report names functions and lines.
profile=(--config 'profile.dev.package."*".opt-level=1' --config 'profile.dev.debug="line-tables-only"')
# A target of its own keeps build scripts and procedural macros out of it.
exec cargo test --locked -p cohort-peer --target x86_64-unknown-linux-gnu "${profile[@]}" --lib -- "${1:-kernels::}"
