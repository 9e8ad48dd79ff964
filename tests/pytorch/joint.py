"""Joint training of a cohort in one process: every network of a run.toml, one loss, PyTorch's autograd and SGD.

    python tests/pytorch/joint.py --run run.toml --data DIR --plan plan.jsonl --precision f32 --out DIR

`plan.jsonl` is what `cohort-coordinator plan --run run.toml --data DIR` prints. Every [[peer]] needs `init`, and the run
augment = "none". Writes DIR/NAME.safetensors. Needs torch, numpy and safetensors from PyPI; compare.py drives it.
"""

import argparse
import gzip
import json
import pathlib
import tomllib

import numpy
import torch
from safetensors.torch import load_file, save_file

import losses
import meta
import networks

PRECISIONS = {"f32": torch.float32, "f64": torch.float64}

# Name: (classes, mean, deviation) of pixels in 0..1.
DATASETS = {"fashion-mnist": (10, [0.2860], [0.3530]), "mnist": (10, [0.1307], [0.3081])}


def read_idx(folder, name):
    """An IDX file, raw or gzip, as an array of bytes."""
    raw = pathlib.Path(folder, name)
    blob = raw.read_bytes() if raw.exists() else gzip.open(f"{raw}.gz").read()
    assert blob[:3] == b"\0\0\x08", f"{raw} is not an IDX file of bytes"
    shape = numpy.frombuffer(blob, ">u4", count=blob[3], offset=4)
    return numpy.frombuffer(blob, numpy.uint8, offset=4 + 4 * blob[3]).reshape(shape)


def read_split(folder, split, limit=None):
    """(images [N, H, W], labels [N]) of "train" or "t10k"."""
    images = read_idx(folder, f"{split}-images-idx3-ubyte")
    return images[:limit], read_idx(folder, f"{split}-labels-idx1-ubyte")[:limit]


def pixels(images, data, dtype):
    """Bytes [N, H, W] to normalised [N, 1, H, W]."""
    _, mean, std = DATASETS[data["dataset"]]
    normalize = data.get("normalize", "dataset")
    if normalize != "dataset":
        mean, std = normalize["mean"], normalize["std"]
    x = torch.from_numpy(images.astype(numpy.float32))[:, None].to(dtype) / 255
    return (x - mean[0]) / std[0]


def batch_of(images, labels, indices, data, dtype):
    """(normalised images, labels) of a step."""
    return pixels(images[indices], data, dtype), torch.from_numpy(labels[indices].astype(numpy.int64))


def load_cohort(run, dtype, weights=None):
    """The networks of a run with these weights (files or tensors by name) in the order of the peers, or the initial
    ones; in training mode."""
    classes = DATASETS[run["data"]["dataset"]][0]
    wanted = losses.wants_embedding(run["method"]), losses.wants_matching(run["method"])
    cohort = []
    for i, peer in enumerate(run["peer"]):
        network = networks.build(peer["arch"], 1, classes, *wanted)
        state = weights[i] if weights else peer["init"]
        network.load_state_dict(state if isinstance(state, dict) else load_file(state))
        cohort.append(network.to(dtype).train())
    return cohort


def train(run, folder, plan, precision, resume=None, learn_matching=True):
    """Trains along `plan` (dictionaries with step, lr and indices) and gives the networks back. `resume`: for every network
    a checkpoint's folder to go on from, instead of the initial weights. Without `learn_matching` a meta-update leaves the
    matching alone and changes the statistics only."""
    dtype = PRECISIONS[precision]
    assert run["data"].get("augment") == "none", "augmentation is not part of the reference"
    images, labels = read_split(folder, "train", run["data"].get("train_limit"))
    cohort = load_cohort(run, dtype, resume and [path / "model.safetensors" for path in resume])
    sgd, matching = optimizers(run["optim"], cohort)
    for network, path in zip(cohort, resume or []):
        resume_momenta((sgd, matching), network, path, dtype)
    for line in plan:
        sgd.param_groups[0]["lr"] = line["lr"]
        x, y = batch_of(images, labels, line["indices"], run["data"], dtype)
        for parameter in sgd.param_groups[0]["params"]:
            # Not None: decay and momentum act on a parameter that a step does not reach.
            parameter.grad = torch.zeros_like(parameter)
        say = networks.say_stages if run["method"]["name"] == "l-mcl" else networks.say
        losses.joint(run["method"], [say(network, x) for network in cohort], y).backward()
        if run["optim"].get("clip_norm", 0.0) > 0:
            for network in cohort:
                torch.nn.utils.clip_grad_norm_(network.parameters(), run["optim"]["clip_norm"])
        sgd.step()
        if meta.follows(run, line["step"], len(labels)):
            meta.update(cohort, x, y, line["lr"], matching if learn_matching else None)
    return cohort


def resume_momenta(optimizers, network, path, dtype):
    momenta = load_file(path / "optimizer.safetensors")
    for name, parameter in network.named_parameters():
        sgd = optimizers[name.startswith("match.")]
        sgd.state[parameter]["momentum_buffer"] = momenta[f"{name}.momentum_buffer"].to(dtype)


def optimizers(optim, cohort):
    """One SGD over all networks, and one over what matches stages, which takes no part in an ordinary step."""
    momentum = optim.get("momentum", 0.9)
    parameters = [pair for network in cohort for pair in network.named_parameters()]

    def sgd(matching, nesterov):
        chosen = [parameter for name, parameter in parameters if name.startswith("match.") == matching]
        rest = {"momentum": momentum, "nesterov": nesterov, "weight_decay": optim.get("weight_decay", 5e-4)}
        return torch.optim.SGD(chosen, lr=1.0, **rest) if chosen else None

    return sgd(False, optim.get("nesterov", momentum > 0)), sgd(True, momentum > 0)


def main():
    parser = argparse.ArgumentParser(description="Joint training of a cohort in one process.")
    parser.add_argument("--run", type=pathlib.Path, required=True)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--plan", type=pathlib.Path, required=True)
    parser.add_argument("--precision", choices=PRECISIONS, default="f32")
    parser.add_argument("--out", type=pathlib.Path, required=True)
    args = parser.parse_args()
    torch.set_num_threads(1)
    run = tomllib.loads(args.run.read_text())
    plan = [json.loads(line) for line in args.plan.read_text().splitlines()]
    args.out.mkdir(parents=True, exist_ok=True)
    for peer, network in zip(run["peer"], train(run, args.data, plan, args.precision)):
        save_file(network.state_dict(), args.out / f"{peer['name']}.safetensors")


if __name__ == "__main__":
    main()
