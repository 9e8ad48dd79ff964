"""Makes the values that the networks are compared with: PyTorch, float64, nets written here from their papers.

    python generate.py ARCH CxHxW CLASSES BATCH [OUT]     one file, ARCH_CxHxW.safetensors
    python generate.py --stages ARCH CxHxW CLASSES BATCH [OUT]   the same with auxiliary classifiers and aggregator
    python generate.py --names                            tensors of auxiliary classifiers, for auxiliary_names.txt
    python generate.py --counts                           trainable scalars of every architecture, 3x32x32, 100 classes

Weights are not stored: both sides compute them with the project's own generator from the tensor's name (`fill`).
Large gradients are stored as every k-th entry. The smallest absolute value in front of a ReLU is printed: where it is
within float32's rounding error (about 1e-5), one ReLU may open in float32 that is shut in float64, and the gradients
in front of it then differ by percents. Made with torch 2.15.0 and a batch of 3.
"""

import math
import sys

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

WORD = (1 << 64) - 1
SAMPLES = 256  # entries of a gradient that are stored
BEFORE_RELU = []  # smallest absolute value in front of each ReLU


def mixed(state):
    state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 & WORD
    state = (state ^ (state >> 27)) * 0x94D049BB133111EB & WORD
    return state ^ (state >> 31)


def unit_numbers(name, count):
    """SplitMix64 keyed by (7, FNV-1a of the name), as numbers in [0, 1)."""
    key = 0xCBF29CE484222325
    for byte in name.encode():
        key = (key ^ byte) * 0x100000001B3 & WORD
    gamma, state = 0x9E3779B97F4A7C15, 0
    for part in (7, key):
        state = mixed(((state ^ part) + gamma) & WORD)
    return [(mixed((state + (i + 1) * gamma) & WORD) >> 11) / (1 << 53) for i in range(count)]


def fill(name, shape):
    """Weights scaled by fan-in, everything else around 1 (scales, variances) or 0."""
    unit = torch.tensor(unit_numbers(name, math.prod(shape)), dtype=torch.float64).reshape(shape)
    if len(shape) > 1 and name.endswith("weight"):
        return (2 * unit - 1) * math.sqrt(6 / math.prod(shape[1:]))
    around = 0.0 if name.endswith(("bias", "running_mean")) else 1.0
    return around + (unit - 0.5)


def relu(x):
    BEFORE_RELU.append(x.detach().abs().min().item())
    return x.relu()


class Basic(nn.Module):
    """Post-activated block."""

    def __init__(self, i, o, stride):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(i, o, 3, stride, 1, bias=False), nn.BatchNorm2d(o)
        self.conv2, self.bn2 = nn.Conv2d(o, o, 3, 1, 1, bias=False), nn.BatchNorm2d(o)
        if stride != 1 or i != o:
            self.downsample = nn.Sequential(nn.Conv2d(i, o, 1, stride, bias=False), nn.BatchNorm2d(o))

    def forward(self, x):
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        return relu(y + (self.downsample(x) if hasattr(self, "downsample") else x))


class Pre(nn.Module):
    """Pre-activated block."""

    def __init__(self, i, o, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(i), nn.Conv2d(i, o, 3, stride, 1, bias=False)
        self.bn2, self.conv2 = nn.BatchNorm2d(o), nn.Conv2d(o, o, 3, 1, 1, bias=False)
        if i != o:
            self.convShortcut = nn.Conv2d(i, o, 1, stride, bias=False)

    def forward(self, x):
        active = relu(self.bn1(x))
        y = self.conv2(relu(self.bn2(self.conv1(active))))
        return y + (self.convShortcut(active) if hasattr(self, "convShortcut") else x)


def stage(block, n, i, o, stride):
    return nn.Sequential(*[block(o if k else i, o, 1 if k else stride) for k in range(n)])


class ResNet(nn.Module):
    def __init__(self, depth, scale, channels, classes):
        super().__init__()
        w = [16, 16, 32, 64] if scale == 1 else [32, 64, 128, 256]
        w = {6: [16, 16, 32], 10: [64, 64, 128, 256, 512], 18: [64, 64, 128, 256, 512]}.get(depth, w)
        self.n, self.w = (depth - 2) // (2 * len(w) - 2), w
        self.conv1, self.bn1 = nn.Conv2d(channels, w[0], 3, 1, 1, bias=False), nn.BatchNorm2d(w[0])
        for k in range(len(w) - 1):
            setattr(self, f"layer{k + 1}", stage(Basic, self.n, w[k], w[k + 1], 2 if k else 1))
        self.fc = nn.Linear(w[-1], classes)

    def maps(self, x):
        x, maps = relu(self.bn1(self.conv1(x))), []
        for k in range(len(self.w) - 1):
            x = getattr(self, f"layer{k + 1}")(x)
            maps.append(x)
        return maps

    def pooled(self, maps):
        return maps[-1].mean((2, 3))

    def forward(self, x):
        return self.fc(self.pooled(self.maps(x)))

    def rest(self, k):
        """The stages after stage k, once more."""
        return nn.Sequential(*[stage(Basic, self.n, *ends, 2) for ends in zip(self.w[k + 1 :], self.w[k + 2 :])])


class Block(nn.Module):
    def __init__(self, *a):
        super().__init__()
        self.layer = stage(Pre, *a)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, depth, widen, channels, classes):
        super().__init__()
        self.n, self.w = n, w = (depth - 4) // 6, [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1, self.block2, self.block3 = (Block(n, w[k], w[k + 1], 2 if k else 1) for k in range(3))
        self.bn1, self.fc = nn.BatchNorm2d(w[3]), nn.Linear(w[3], classes)

    def maps(self, x):
        first = self.block1(self.conv1(x))
        second = self.block2(first)
        return [first, second, self.block3(second)]

    def pooled(self, maps):
        return relu(self.bn1(maps[-1])).mean((2, 3))

    def forward(self, x):
        return self.fc(self.pooled(self.maps(x)))

    def rest(self, k):
        """The stages after stage k, once more."""
        return nn.Sequential(*[Block(self.n, *ends, 2) for ends in zip(self.w[k + 1 :], self.w[k + 2 :])])


class Auxiliary(nn.Module):
    """A branch behind every stage but the last, with the attribute names of the published networks."""

    def __init__(self, net, classes):
        super().__init__()
        self.branches = range(1, len(net.w) - 1)
        for k in self.branches:
            setattr(self, f"block_extractor{k}", net.rest(k - 1))
            if isinstance(net, WideResNet):
                setattr(self, f"bn{k}", nn.BatchNorm2d(net.w[-1]))
            setattr(self, f"fc{k}", nn.Linear(net.w[-1], classes))

    def forward(self, maps):
        features, logits = [], []
        for k in self.branches:
            x = getattr(self, f"block_extractor{k}")(maps[k - 1])
            x = relu(getattr(self, f"bn{k}")(x)) if hasattr(self, f"bn{k}") else x
            features.append(x.mean((2, 3)))
            logits.append(getattr(self, f"fc{k}")(features[-1]))
        return features, logits


def stages(net, x):
    """Logits of every stage, and as the aggregator weighs them."""
    maps = net.maps(x)
    features, logits = net.auxiliary_classifier(maps)
    features.append(net.pooled(maps))
    logits.append(net.fc(features[-1]))
    weights = net.aggregator[2](relu(net.aggregator[0](torch.cat(features, 1)))).softmax(1)
    return logits, sum(weights[:, k : k + 1] * z for k, z in enumerate(logits))


def network(arch, channels, classes):
    if arch.startswith("wrn_"):
        depth, widen = arch[4:].split("_")
        return WideResNet(int(depth), int(widen), channels, classes)
    depth, _, scale = arch[6:].partition("x")
    return ResNet(int(depth), int(scale or 1), channels, classes)


def main(arch, image, classes, batch, out=".", with_stages=False):
    channels, height, width = map(int, image.split("x"))
    classes, batch = int(classes), int(batch)
    net = network(arch, channels, classes)
    if with_stages:
        d, count = net.fc.in_features, len(net.w) - 1
        net.auxiliary_classifier = Auxiliary(net, classes)
        net.aggregator = nn.Sequential(nn.Linear(count * d, d), nn.ReLU(), nn.Linear(d, count))
    net = net.double()
    state = {k: v if v.dtype == torch.int64 else fill(k, v.shape) for k, v in net.state_dict().items()}
    net.load_state_dict(state)
    x = 2 * fill("input.bias", (batch, channels * height * width)).reshape(batch, channels, height, width)
    labels = torch.arange(batch) % classes
    found = {}
    for mode in ("eval", "train"):
        net.train(mode == "train")
        if with_stages:
            logits, aggregated = stages(net, x)
            found |= {f"logits.{k}.{mode}": z for k, z in enumerate(logits)} | {f"aggregated.{mode}": aggregated}
            loss = sum(F.cross_entropy(z, labels) for z in [*logits, aggregated])
        else:
            found[f"logits.{mode}"] = net(x)
            loss = F.cross_entropy(found[f"logits.{mode}"], labels)
    loss.backward()
    found = {name: value.detach() for name, value in found.items()} | {"loss": loss.detach()}
    kept = SAMPLES // 8 if with_stages else SAMPLES
    for name, parameter in net.named_parameters():
        flat = parameter.grad.flatten()
        found["grad." + name] = flat[:: -(-len(flat) // kept)].clone()
    found |= {"after." + k: v.clone() for k, v in net.state_dict().items() if "running" in k}
    about = {"arch": arch, "image": image, "classes": str(classes), "batch": str(batch), "samples": str(kept)}
    about |= {"stages": "1"} if with_stages else {}
    print(f"{arch} {image}: nearest to a ReLU's edge {min(BEFORE_RELU):.1e}")
    save_file(found, f"{out}/{arch}_{image}{'_stages' * with_stages}.safetensors", metadata=about)


def command():
    if sys.argv[1:] == ["--counts"]:
        narrow = [f"resnet{d}" for d in (8, 14, 20, 32, 44, 56, 110)] + ["resnet8x4", "resnet32x4"]
        narrow += ["resnet6", "resnet10", "resnet18"]
        for name in narrow + [f"wrn_{s}" for s in ("10_1", "16_1", "16_2", "28_4", "40_1", "40_2")]:
            print(f'("{name}", {sum(p.numel() for p in network(name, 3, 100).parameters())}),')
    elif sys.argv[1:] == ["--names"]:
        for name in ("resnet6", "resnet14", "resnet10", "wrn_16_2"):
            for key, value in Auxiliary(network(name, 3, 10), 10).state_dict().items():
                print(name, "auxiliary_classifier." + key, "x".join(map(str, value.shape)) or "scalar")
    elif sys.argv[1] == "--stages":
        main(*sys.argv[2:], with_stages=True)
    else:
        main(*sys.argv[1:])


if __name__ == "__main__":
    command()
