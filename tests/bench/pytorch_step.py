"""The PyTorch side of against_pytorch.sh: one network's training steps, measured as `cohort-peer bench` measures its own.

    python pytorch_step.py --arch resnet20 --image 3x32x32 --classes 100 --batch 128 --steps 20 --threads 2 \
        --layout nchw|channels_last

A step is forward, cross-entropy, backward and SGD (momentum 0.9, Nesterov, weight decay 5e-4), in eager mode, on random
images that are made outside the measured time. Prints JSON: images per second at the median step, the greatest resident
memory, and how much of it there was after `import torch` alone (MB of 10^6 bytes). The networks are those of
peer/src/models, written as one writes them in PyTorch: in-place where that is allowed, the fused optimiser.
"""

import argparse
import json
import re
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F

WARM_UP = 3


def peak_rss_mb():
    with open("/proc/self/status") as status:
        return int(re.search(r"VmHWM:\s*(\d+) kB", status.read())[1]) * 1024 / 1e6


def conv3x3(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def relu(x):
    return F.relu(x, inplace=True)


class BasicBlock(nn.Module):
    """He et al. 2016: two convolutions, and a projection where the shape changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1, self.bn1 = conv3x3(inputs, outputs, stride), nn.BatchNorm2d(outputs)
        self.conv2, self.bn2 = conv3x3(outputs, outputs), nn.BatchNorm2d(outputs)
        self.downsample = nn.Identity()
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x):
        y = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        y += self.downsample(x)
        return relu(y)


class PreActivationBlock(nn.Module):
    """Zagoruyko and Komodakis 2016: the shortcut starts behind the first activation where the width changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1, self.conv1 = nn.BatchNorm2d(inputs), conv3x3(inputs, outputs, stride)
        self.bn2, self.conv2 = nn.BatchNorm2d(outputs), conv3x3(outputs, outputs)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x):
        active = relu(self.bn1(x))
        y = self.conv2(relu(self.bn2(self.conv1(active))))
        y += x if self.shortcut is None else self.shortcut(active)
        return y


class Normalised(nn.Sequential):
    """Batch norm and ReLU: behind the stem of a residual network, behind the stages of a wide one."""

    def __init__(self, channels):
        super().__init__(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


def three_stages(block, blocks, widths):
    def stage(inputs, outputs, stride):
        later = [block(outputs, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(block(inputs, outputs, stride), *later)

    stem, first, second, third = widths
    return stage(stem, first, 1), stage(first, second, 2), stage(second, third, 2)


def network(arch, channels, classes):
    """resnetDEPTH, resnetDEPTHx4 or wrn_DEPTH_WIDEN."""
    if found := re.fullmatch(r"wrn_(\d+)_(\d+)", arch):
        depth, widen = map(int, found.groups())
        widths = [16, 16 * widen, 32 * widen, 64 * widen]
        stages = three_stages(PreActivationBlock, (depth - 4) // 6, widths)
        body = [conv3x3(channels, widths[0]), *stages, Normalised(widths[3])]
    elif found := re.fullmatch(r"resnet(\d+)(x4)?", arch):
        widths = [32, 64, 128, 256] if found[2] else [16, 16, 32, 64]
        stages = three_stages(BasicBlock, (int(found[1]) - 2) // 6, widths)
        body = [conv3x3(channels, widths[0]), Normalised(widths[0]), *stages]
    else:
        raise SystemExit(f"pytorch_step.py has no architecture {arch}")
    return nn.Sequential(*body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(widths[3], classes))


def main():
    imported_mb = peak_rss_mb()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", required=True)
    parser.add_argument("--image", required=True)
    parser.add_argument("--layout", choices=["nchw", "channels_last"], required=True)
    for number in ("classes", "batch", "steps", "threads"):
        parser.add_argument(f"--{number}", type=int, required=True)
    args = parser.parse_args()

    torch.manual_seed(0)
    torch.set_num_threads(args.threads)
    channels, height, width = map(int, args.image.split("x"))
    layout = torch.channels_last if args.layout == "channels_last" else torch.contiguous_format
    net = network(args.arch, channels, args.classes).to(memory_format=layout).train()
    sgd = torch.optim.SGD(net.parameters(), 0.01, momentum=0.9, weight_decay=5e-4, nesterov=True, fused=True)

    seconds = []
    for _ in range(WARM_UP + args.steps):
        images = torch.rand(args.batch, channels, height, width) * 2 - 1
        images = images.contiguous(memory_format=layout)
        labels = torch.randint(args.classes, (args.batch,))
        start = time.perf_counter()
        loss = F.cross_entropy(net(images), labels)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
        loss.item()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds[WARM_UP:])
    print(json.dumps({
        "images_per_s": args.batch / median,
        "ms_per_step": median * 1e3,
        "peak_rss_mb": peak_rss_mb(),
        "imported_rss_mb": imported_mb,
        "parameters": sum(parameter.numel() for parameter in net.parameters()),
    }))


main()
