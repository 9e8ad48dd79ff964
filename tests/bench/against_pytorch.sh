#!/usr/bin/env bash
# How fast Cohort trains on a CPU, beside PyTorch on the same cores in the same minutes.
#
#     tests/bench/against_pytorch.sh [FOLDER] [--rounds N] [--steps N] [--threads N..] [--workload ARCH..]
#                                    [--isa avx512|avx2|portable]
#
# What it does: installs PyTorch into a virtual environment in FOLDER (default target/pytorch; used again when it is
# there), builds cohort-peer in release, and for each workload and number of threads runs `cohort-peer bench` and the same
# training step in PyTorch (pytorch_step.py; NCHW and channels_last) in turn. Prints images per second, the ratio to
# PyTorch's better layout, and peak resident memory of both. --isa also measures Cohort held to that instruction set, as
# on a machine with nothing better, and prints its ratio to the default.
# Needs: Linux, Rust, Python 3.10 or later with venv, PyPI (the first time: 3 GB, since the PyTorch of PyPI brings the
# libraries of its GPU side along; pip's own settings, such as PIP_INDEX_URL, may name an index with a build for CPU
# only), 8 GB of disk, and an idle machine: both sides lose most of their speed to any other busy process.
# Takes: about 20 minutes on two cores of 2023, after the installation; with --isa a quarter more. Not part of CI.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=""
if [ $# -gt 0 ] && [ "${1#-}" = "$1" ]; then
    folder=$(realpath -m "$1")
    shift
fi
cd "$here/../.."
folder=${folder:-$PWD/target/pytorch}
python=$folder/bin/python

if ! "$python" -c 'import torch' 2>/dev/null; then
    echo "installing PyTorch into $folder" >&2
    python3 -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check torch numpy
fi
# COHORT_PEER names a binary that is built already.
peer=${COHORT_PEER:-}
if [ -z "$peer" ]; then
    cargo build --release --locked -p cohort-peer --bin cohort-peer
    peer=${CARGO_TARGET_DIR:-target}/release/cohort-peer
    echo "Cohort $(git describe --always --dirty 2>/dev/null || echo 'without git'), $(rustc --version)"
fi
exec "$python" "$here/compare.py" --peer "$peer" "$@"
