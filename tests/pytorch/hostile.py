"""Initial weights and run files that are wrong or merely unusual: what Cohort says, and with which exit code.

    python tests/pytorch/hostile.py --localhost target/release/localhost --data examples/data/fashion-mnist

For each case the exit code that is expected (0 finished, 65 bad data, 78 bad run spec), the one that came, and the last
line on stderr. A case that does not end within a minute "hangs". Exit 1 if a code is not as expected. Needs what
compare.py needs.
"""

import argparse
import pathlib
import subprocess
import sys
import tempfile
import time

import torch
from safetensors.torch import load_file, save_file

from cluster import make_run, short_data, write_run

SECONDS_MAX = 60


def rename(path, change):
    save_file({change(key): tensor.clone() for key, tensor in load_file(path).items()}, path)


def edit(path, change):
    """`change` gets the dictionary of tensors and changes it in place."""
    # Copies: what is loaded is a view of the file that is about to be written.
    tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path)


def cut(path, length):
    path.write_bytes(path.read_bytes()[:length])


def spoil(key, value):
    def change(tensors):
        tensors[key].view(-1)[0] = value

    return lambda path: edit(path, change)


def replace(key, tensor):
    return lambda path: edit(path, lambda tensors: tensors.update({key: tensor}))


def remove(*prefixes):
    def change(tensors):
        for key in [key for key in tensors if key.startswith(prefixes)]:
            del tensors[key]

    return lambda path: edit(path, change)


def header(length):
    """A file whose first eight bytes promise a header of that many bytes."""
    return lambda path: path.write_bytes(length.to_bytes(8, "little") + b"{}" * 50)


# Name, expected exit code, what is done to the first peer's file.
INITIAL = [
    ("untouched", 0, lambda path: None),
    ("module. in front of every name", 0, lambda path: rename(path, lambda key: f"module.{key}")),
    ("classifier instead of fc", 0, lambda path: rename(path, lambda key: key.replace("fc.", "classifier."))),
    ("no projection head", 0, remove("embed.")),
    ("half of the projection head", 65, remove("embed.0.2")),
    ("no counters of batches", 0, lambda path: edit(path, lambda t: [t.pop(k) for k in list(t) if "num_batches" in k])),
    ("f64 weights", 0, lambda path: edit(path, lambda t: t.update({k: v.double() for k, v in t.items() if v.is_floating_point()}))),
    ("bf16 weights", 0, lambda path: edit(path, lambda t: t.update({k: v.bfloat16() for k, v in t.items() if v.is_floating_point()}))),
    ("a tensor missing", 65, remove("layer2.0.conv1.weight")),
    ("a tensor too many", 65, replace("surplus.weight", torch.zeros(3))),
    ("three input channels", 65, replace("conv1.weight", torch.zeros(16, 3, 3, 3))),
    ("transposed classifier", 65, replace("fc.weight", torch.zeros(64, 10))),
    ("100 classes", 65, lambda path: edit(path, lambda t: t.update({"fc.weight": torch.zeros(100, 64), "fc.bias": torch.zeros(100)}))),
    ("head of another width", 65, replace("embed.0.0.weight", torch.zeros(64, 64))),
    ("integers for weights", 65, replace("conv1.weight", torch.zeros(16, 1, 3, 3, dtype=torch.int32))),
    ("NaN in a weight", 65, spoil("conv1.weight", float("nan"))),
    ("NaN in running statistics", 65, spoil("bn1.running_mean", float("nan"))),
    ("infinity in the head", 65, spoil("embed.0.0.bias", float("inf"))),
    ("negative running variance", 65, spoil("bn1.running_var", -1.0)),
    ("weights of 1e30", 65, spoil("fc.weight", 1e30)),
    ("cut in the middle", 65, lambda path: cut(path, path.stat().st_size // 2)),
    ("one byte short", 65, lambda path: cut(path, path.stat().st_size - 1)),
    ("cut in the header", 65, lambda path: cut(path, 100)),
    ("empty", 65, lambda path: cut(path, 0)),
    ("header of 2^60 bytes", 65, header(1 << 60)),
    ("header of 90 MB", 65, header(90_000_000)),
    ("a pickle", 65, lambda path: torch.save({"conv1.weight": torch.zeros(3)}, path)),
    ("no such file", 65, lambda path: path.unlink()),
    ("a folder", 65, lambda path: (path.unlink(), path.mkdir())),
]

# Name, expected exit code, keys of [data] that are changed.
NORMALIZE = [
    ("normalize by a table", 0, {"mean": [0.5], "std": [0.25]}),
    ("normalize for three channels", 78, {"mean": [0.5] * 3, "std": [0.25] * 3}),
    ("normalize by std 0", 78, {"mean": [0.5], "std": [0.0]}),
    ("normalize without std", 78, {"mean": [0.5]}),
    ("normalize by 1e-40", 78, {"mean": [0.5], "std": [1e-40]}),
]


def attempt(localhost, folder, data):
    """(exit code or "hangs", seconds, last line on stderr)."""
    command = [localhost, "--run", folder / "run.toml", "--data", data, "--out", folder / "out", "--threads", "1"]
    began = time.monotonic()
    try:
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=SECONDS_MAX)
    except subprocess.TimeoutExpired:
        return "hangs", SECONDS_MAX, ""
    lines = done.stderr.strip().splitlines()
    return done.returncode, time.monotonic() - began, lines[-1] if lines else ""


def main():
    parser = argparse.ArgumentParser(description="Wrong initial weights: words and exit codes.")
    parser.add_argument("--localhost", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    args = parser.parse_args()
    localhost, passed = args.localhost.resolve(), True
    with tempfile.TemporaryDirectory() as temporary:
        root = pathlib.Path(temporary)
        data = short_data(args.data, root / "data")
        case = {
            "peers": ["resnet8", "wrn_10_1"],
            "method": {"name": "mcl"},
            "data": {"batch": 20, "sampler": "per-class", "train_limit": 200},
        }
        cases = [(name, code, change, None) for name, code, change in INITIAL]
        cases += [(name, code, lambda path: None, table) for name, code, table in NORMALIZE]
        for number, (name, expected, change, table) in enumerate(cases):
            folder = root / str(number)
            run = make_run(folder, case)
            if table:
                run["data"] = run["data"] | {"normalize": table}
            write_run(folder, run, 2, 2)
            change(folder / "init-0.safetensors")
            code, seconds, words = attempt(localhost, folder, data)
            passed &= code == expected
            verdict = "ok   " if code == expected else "FAILS"
            print(f"{verdict} {name}: expected {expected}, got {code} in {seconds:.1f} s: {words}", flush=True)
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
