"""Makes the values that the networks are compared with: PyTorch, float64, nets written here from their papers.

    python generate.py ARCH CxHxW CLASSES BATCH [OUT]     one file, ARCH_CxHxW.safetensors
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
        n, w = (depth - 2) // 6, [16, 16, 32, 64] if scale == 1 else [32, 64, 128, 256]
        self.conv1, self.bn1 = nn.Conv2d(channels, w[0], 3, 1, 1, bias=False), nn.BatchNorm2d(w[0])
        self.layer1, self.layer2, self.layer3 = (stage(Basic, n, w[k], w[k + 1], 2 if k else 1) for k in range(3))
        self.fc = nn.Linear(w[3], classes)

    def forward(self, x):
        x = relu(self.bn1(self.conv1(x)))
        return self.fc(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, *a):
        super().__init__()
        self.layer = stage(Pre, *a)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, depth, widen, channels, classes):
        super().__init__()
        n, w = (depth - 4) // 6, [16, 16 * widen, 32 * widen, 64 * widen]
        self.conv1 = nn.Conv2d(channels, 16, 3, 1, 1, bias=False)
        self.block1, self.block2, self.block3 = (Block(n, w[k], w[k + 1], 2 if k else 1) for k in range(3))
        self.bn1, self.fc = nn.BatchNorm2d(w[3]), nn.Linear(w[3], classes)

    def forward(self, x):
        x = relu(self.bn1(self.block3(self.block2(self.block1(self.conv1(x))))))
        return self.fc(x.mean((2, 3)))


def network(arch, channels, classes):
    if arch.startswith("wrn_"):
        depth, widen = arch[4:].split("_")
        return WideResNet(int(depth), int(widen), channels, classes)
    depth, _, scale = arch[6:].partition("x")
    return ResNet(int(depth), int(scale or 1), channels, classes)


def main(arch, image, classes, batch, out="."):
    channels, height, width = map(int, image.split("x"))
    classes, batch = int(classes), int(batch)
    net = network(arch, channels, classes).double()
    state = {k: v if v.dtype == torch.int64 else fill(k, v.shape) for k, v in net.state_dict().items()}
    net.load_state_dict(state)
    x = 2 * fill("input.bias", (batch, channels * height * width)).reshape(batch, channels, height, width)
    labels = torch.arange(batch) % classes
    with torch.no_grad():
        found = {"logits.eval": net.eval()(x)}
    logits = net.train()(x)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    found |= {"logits.train": logits.detach(), "loss": loss.detach()}
    for name, parameter in net.named_parameters():
        flat = parameter.grad.flatten()
        found["grad." + name] = flat[:: -(-len(flat) // SAMPLES)].clone()
    found |= {"after." + k: v.clone() for k, v in net.state_dict().items() if "running" in k}
    about = {"arch": arch, "image": image, "classes": str(classes), "batch": str(batch)}
    print(f"{arch} {image}: nearest to a ReLU's edge {min(BEFORE_RELU):.1e}")
    save_file(found, f"{out}/{arch}_{image}.safetensors", metadata=about)


if sys.argv[1:] == ["--counts"]:
    narrow = [f"resnet{d}" for d in (8, 14, 20, 32, 44, 56, 110)] + ["resnet8x4", "resnet32x4"]
    for name in narrow + [f"wrn_{s}" for s in ("10_1", "16_1", "16_2", "28_4", "40_1", "40_2")]:
        print(f'("{name}", {sum(p.numel() for p in network(name, 3, 100).parameters())}),')
else:
    main(*sys.argv[1:])
