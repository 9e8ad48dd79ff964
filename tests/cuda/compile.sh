#!/usr/bin/env bash
# Compiles and links cohort-peer with `--features cuda` and with `--features cudnn` on a machine without a GPU, a
# driver or a CUDA toolkit.
#
#     tests/cuda/compile.sh [FOLDER]        FOLDER defaults to target/cuda; used again when it is there
#
# What it does: takes NVIDIA's compiler and libraries from PyPI, lets nvcc compile candle's kernels for compute
# capability 8.0 (CUDA_COMPUTE_CAP asks for another), compiles our crates with warnings as errors, links the binary,
# and starts it once for its help, which proves that every symbol is found. It runs nothing on a GPU.
# Needs: Linux, Rust, gcc and binutils, Python 3 with venv, PyPI (1 GB to fetch), 4 GB of disk.
# Takes: about ten minutes on two idle cores, nearly all of it nvcc; a second run takes one. Not part of CI.
set -euo pipefail
cd "$(dirname "$0")/../.."

folder=$(realpath -m "${1:-target/cuda}")
mkdir -p "$folder"
export CARGO_TARGET_DIR="$folder/build"
export RUSTFLAGS="${RUSTFLAGS:-} -D warnings"

now="preparing"
report=()
trap 'printf "\nFAILED while %s. Done before that:\n" "$now"; printf "  %s\n" "${report[@]:-nothing}"' ERR
step() { now=$1; printf '\n== %s (%s)\n' "$now" "$(date +%T)"; }
# Wheels carry libX.so.N only; the linker asks for libX.so.
unversioned() { for file in "$1"/lib*.so.*; do ln -sf "$(basename "$file")" "${file%%.so.*}.so"; done; }

step "installing the toolkit from PyPI into $folder"
[ -x "$folder/venv/bin/pip" ] || python3 -m venv "$folder/venv"
# The compiler's parts must be of one release, and cudarc refuses an nvcc newer than those it knows: 13.0 is in force
# here, whatever PyPI's newest is. The other libraries are only linked, so any of their releases for CUDA 13 will do.
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps \
    'nvidia-cuda-nvcc>=13.0,<13.1' 'nvidia-cuda-runtime>=13.0,<13.1' 'nvidia-cuda-cccl>=13.0,<13.1' \
    'nvidia-nvvm>=13.0,<13.1' 'nvidia-cuda-crt>=13.0,<13.1' \
    'nvidia-cublas>=13' 'nvidia-curand>=10.4' 'nvidia-cuda-nvrtc>=13.0' 'nvidia-cudnn-cu13>=9'
wheels=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/nvidia
unversioned "$wheels/cu13/lib"
unversioned "$wheels/cudnn/lib"
export CUDA_HOME="$wheels/cu13" CUDA_PATH="$wheels/cu13" CUDNN_LIB="$wheels/cudnn"
export PATH="$wheels/cu13/bin:$PATH"
export CUDA_COMPUTE_CAP="${CUDA_COMPUTE_CAP:-80}"
nvcc --version | sed -n 4p

# The driver's library comes with a driver, never with a wheel. In its place: a library that has every driver function
# our objects call, each answering CUDA_ERROR_NO_DEVICE.
driver_stub() {
    # nm cannot read the metadata member of Rust's archives, and says so.
    { nm --undefined-only "$CARGO_TARGET_DIR"/debug/deps/*.rlib 2>/dev/null || true; } |
        awk '$1 == "U" && $2 ~ /^cu[A-Z]/ { print "int " $2 "(void) { return 100; }" }' |
        sort -u > "$folder/driver.c"
    gcc -shared -fPIC -w -Wl,-soname,libcuda.so.1 -o "$CUDA_HOME/lib/libcuda.so.1" "$folder/driver.c"
    ln -sf libcuda.so.1 "$CUDA_HOME/lib/libcuda.so"
    echo "stand-in for libcuda.so: $(wc -l < "$folder/driver.c") functions"
}

# Nothing is measured here, so nothing of ours or of our dependencies is optimised.
fast=(--config 'profile.dev.opt-level=0' --config 'profile.dev.package."*".opt-level=0'
    --config 'profile.dev.package.cohort-peer.opt-level=0' --config 'profile.dev.debug=false')

for feature in cuda cudnn; do
    step "compiling cohort-peer --features $feature"
    cargo build --locked -p cohort-peer --features "$feature" --lib "${fast[@]}"
    report+=("compiled: cohort-peer --features $feature (nvcc for compute capability $CUDA_COMPUTE_CAP, our crates with -D warnings)")
    step "linking cohort-peer --features $feature"
    driver_stub
    cargo build --locked -p cohort-peer --features "$feature" --bins "${fast[@]}"
    LD_LIBRARY_PATH="$CUDA_HOME/lib:$CUDNN_LIB/lib" \
        "$CARGO_TARGET_DIR/debug/cohort-peer" --help > "$folder/help.txt"
    report+=("linked and started: cohort-peer --features $feature (libcuda.so is a stand-in)")
done

printf '\n== Done\n'
printf '%s\n' "${report[@]}"
nvcc --version | sed -n 4p
rustc --version
echo "Not run: anything on a GPU."
