"""Writes peer/src/meta/testdata/networks.safetensors: the hypergradient of two real networks with auxiliary classifiers,
by autograd through the unrolled steps in one process and float64.

    python tests/pytorch/hypergradient_networks.py

Weights and images are not stored: both sides draw them by name, as peer/src/models/testdata/generate.py does, and round
them to float32. `I.match.K.*` is d J / d phi of network I; `theta.I` the norm of its theta.
"""

import pathlib
import sys

import torch
from safetensors.torch import save_file
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F

import hypergradient as small

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "peer/src/models/testdata"))
import generate  # noqa: E402

ARCHITECTURES, CLASSES, BATCH, SIDE, EMBEDDING, MATCHING, LR = ["resnet8", "wrn_10_1"], 5, 16, 8, 8, 7, 0.05


class Staged(nn.Module):
    def __init__(self, arch):
        super().__init__()
        self.net = generate.network(arch, 1, CLASSES)
        self.net.auxiliary_classifier = generate.Auxiliary(self.net, CLASSES)
        d, stages = self.net.fc.in_features, len(self.net.w) - 1
        head = lambda: nn.Sequential(nn.Linear(d, EMBEDDING), nn.ReLU(), nn.Linear(EMBEDDING, EMBEDDING))
        self.net.embed = nn.ModuleList([head() for _ in range(stages)])
        self.net.match = nn.ModuleList([nn.Linear(d, MATCHING) for _ in range(stages)])

    def forward(self, x):
        net = self.net
        maps = net.maps(x)
        features, logits = net.auxiliary_classifier(maps)
        features.append(net.pooled(maps))
        logits.append(net.fc(features[-1]))
        embeddings = [small.unit(head(f)) for head, f in zip(net.embed, features)]
        return logits, embeddings, [small.unit(p(f)) for p, f in zip(net.match, features)]


def main():
    torch.set_num_threads(1)
    models = [Staged(arch).double() for arch in ARCHITECTURES]
    rounded = lambda name, shape: generate.fill(name, shape).float().double()
    networks = [
        {n.removeprefix("net."): rounded(n.removeprefix("net."), p.shape) for n, p in model.named_parameters()}
        for model in models
    ]

    def say(p, x, i):
        buffers = {name: b.clone() for name, b in models[i].named_buffers()}
        return functional_call(models[i], {"net." + k: v for k, v in p.items()} | buffers, (x,))

    x = (2 * generate.fill("input.bias", (BATCH, SIDE * SIDE))).float().double().reshape(BATCH, 1, SIDE, SIDE)
    y = torch.arange(BATCH) % CLASSES
    results, path = small.exact(networks, x, y, LR, say)
    print("losses", [float(small.outer(p, x, y, say)) for p in path])
    print("norm", float(sum(v.square().sum() for v in results.values()) ** 0.5))
    print("nearest to a ReLU's edge", min(generate.BEFORE_RELU))
    save_file({f"{i}.{name}": value for (i, name), value in results.items()}, small.OUT / "networks.safetensors")


if __name__ == "__main__":
    main()
