"""Runs Cohort's own programs for the comparison: run files, the data folder, processes with a time limit."""

import json
import os
import pathlib
import subprocess

import numpy
from safetensors.torch import save_file

import joint
import losses
import networks
import plan

# Images of the shortened test set: every run ends with an evaluation that is not what is compared here.
TEST_IMAGES = 300

# Length of every run.
STEPS = 10

# A run that has not ended after so many seconds hangs.
SECONDS_MAX = 300


def write_idx(path, array):
    header = b"\0\0\x08" + bytes([array.ndim]) + numpy.array(array.shape, ">u4").tobytes()
    path.write_bytes(header + array.tobytes())


def short_data(source, folder):
    """A data folder with all training images of `source` and the first few test images."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in pathlib.Path(source).glob("train-*"):
        link = folder / file.name
        if not link.exists():
            link.symlink_to(file.resolve())
    images, labels = joint.read_split(source, "t10k", TEST_IMAGES)
    write_idx(folder / "t10k-images-idx3-ubyte", images)
    write_idx(folder / "t10k-labels-idx1-ubyte", labels)
    return folder


def toml_value(value):
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {toml_value(v)}" for key, v in value.items()) + " }"
    if isinstance(value, list):
        return "[" + ", ".join(map(toml_value, value)) + "]"
    return json.dumps(str(value) if isinstance(value, pathlib.Path) else value)


def toml(run):
    """A run.toml of the nested dictionaries that reading it gives back."""
    lines = []
    for name, section in run.items():
        for table in section if name == "peer" else [section]:
            lines.append(f"[[{name}]]" if name == "peer" else f"[{name}]")
            lines += [f"{key} = {toml_value(value)}" for key, value in table.items()]
    return "\n".join(lines) + "\n"


def make_run(folder, case):
    """Writes initial weights and run.toml of a case into `folder`; returns the run."""
    folder.mkdir(parents=True, exist_ok=True)
    method, peers = case["method"], []
    for i, arch in enumerate(case["peers"]):
        network = networks.build(arch, 1, 10, losses.wants_embedding(method), losses.wants_matching(method))
        init = (folder / f"init-{i}.safetensors").resolve()
        save_file(networks.draw(network, 1000 + i).state_dict(), init)
        peers.append({"name": "abcdefgh"[i], "arch": arch, "init": init})
    data = {"dataset": "fashion-mnist", "augment": "none"} | case["data"]
    optim = {"lr": 0.05} | case.get("optim", {})
    run = {
        # Every step leaves its state, so that each can be checked by itself.
        "run": {"name": "parity", "seed": 7, "steps": STEPS, "checkpoint_every": 1, "keep": STEPS},
        "data": data,
        "method": method,
        "optim": optim,
        "policy": {"failure_timeout_ms": 60_000},
        "peer": peers,
    }
    write_run(folder, run, STEPS, 1)
    return run


def write_run(folder, run, steps, checkpoint_every):
    """run.toml of the run with another length and other checkpoints; returns it."""
    changed = run | {"run": run["run"] | {"steps": steps, "checkpoint_every": checkpoint_every}}
    (folder / "run.toml").write_text(toml(changed))
    return changed


def derive(run, data):
    _, labels = joint.read_split(data, "train", run["data"].get("train_limit"))
    return list(plan.derive(run, labels.tolist()))


class Failed(Exception):
    """A program of Cohort ended otherwise than it should."""


class Programs:
    """Where the binaries are. One binary may play all three: its first argument selects the program."""

    def __init__(self, localhost, coordinator=None):
        self.localhost = [os.path.abspath(localhost)]
        self.coordinator = [os.path.abspath(coordinator)] if coordinator else self.localhost + ["coordinator"]
        self.peer = self.localhost + ["peer"]

    @staticmethod
    def call(command):
        """(exit code, stdout, stderr); the code is "hangs" if the time limit ends it."""
        try:
            done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=SECONDS_MAX)
        except subprocess.TimeoutExpired as expired:
            return "hangs", expired.stdout or "", expired.stderr or ""
        return done.returncode, done.stdout, done.stderr

    def must(self, command):
        code, out, err = self.call(command)
        if code != 0:
            raise Failed(f"{' '.join(map(str, command))} ended with {code}\n{out}{err}")
        return out

    def cohort(self, folder, data, out, threads=1):
        """Trains the run of `folder`; the folder of each peer's last weights."""
        run = ["--run", folder / "run.toml", "--data", data, "--out", out, "--threads", threads, "--no-baseline"]
        self.must(self.localhost + run)
        return {path.name: path for path in sorted((out / "peers").iterdir())}

    def states(self, run, folder, data):
        """By completed steps, the checkpoint's folder of every peer in order."""
        peers = self.cohort(folder, data, folder / "out")
        return {n: [peers[peer["name"]] / f"checkpoint-{n}" for peer in run["peer"]] for n in range(1, STEPS + 1)}

    def plan(self, run, folder, data):
        """The plan, and whether the coordinator's words and the second derivation are the same."""
        derived = derive(run, data)
        code, out, _ = self.call(self.coordinator + ["plan", "--run", folder / "run.toml", "--data", data])
        if code != 0:
            return derived, "no plan"
        said = [json.loads(line) for line in out.splitlines()]
        same = len(said) == len(derived) and all(
            {**a, "lr": 0} == {**b, "lr": 0} and abs(a["lr"] - b["lr"]) <= 1e-12 * b["lr"] for a, b in zip(said, derived)
        )
        return said, "same" if same else "DIFFERS"

    def logits(self, arch, weights, data, out):
        """Logits of the test set by `eval`."""
        what = ["--arch", arch, "--weights", weights, "--dataset", "fashion-mnist", "--data", data]
        self.must(self.peer + ["eval", *what, "--logits", out, "--threads", 1])
        return joint.load_file(out)["logits"]
