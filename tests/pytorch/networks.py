"""The networks of the reference: CIFAR residual networks (He et al. 2016, section 4.2) and wide residual networks
(Zagoruyko and Komodakis 2016), with state-dict keys spelled as the official PyTorch code of MCL and mdistiller spells
them, and the projection head of MCL under `embed.0`. For L-MCL a branch behind every stage but the last under
`auxiliary_classifier` (winycg/L-MCL, models/), heads `embed.K` and `match.K` of every stage, and the aggregator.
"""

import torch
from torch import nn
from torch.nn import functional as F

from kinks import Relu, relu


def conv3x3(inputs, outputs, stride=1):
    return nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False)


class BasicBlock(nn.Module):
    """conv-bn-relu-conv-bn, plus a shortcut that is 1x1 convolution and batch norm where the shape changes."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.downsample = None
        if stride != 1 or inputs != outputs:
            projection = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)
            self.downsample = nn.Sequential(projection, nn.BatchNorm2d(outputs))

    def forward(self, x):
        shortcut = x if self.downsample is None else self.downsample(x)
        y = relu(self.bn1(self.conv1(x)))
        return relu(self.bn2(self.conv2(y)) + shortcut)


class ResNet(nn.Module):
    def __init__(self, depth, widths, channels, classes):
        super().__init__()
        self.widths, self.blocks = widths, (depth - 2) // (2 * len(widths) - 2)
        self.conv1 = conv3x3(channels, widths[0])
        self.bn1 = nn.BatchNorm2d(widths[0])
        for k, ends in enumerate(zip(widths, widths[1:])):
            setattr(self, f"layer{k + 1}", self.stage(*ends, self.blocks, 2 if k else 1))
        self.fc = nn.Linear(widths[-1], classes)

    @staticmethod
    def stage(inputs, outputs, blocks, stride):
        later = [BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(inputs, outputs, stride), *later)

    def maps(self, x):
        x, maps = relu(self.bn1(self.conv1(x))), []
        for k in range(len(self.widths) - 1):
            x = getattr(self, f"layer{k + 1}")(x)
            maps.append(x)
        return maps

    def feature(self, x):
        return self.pooled(self.maps(x))

    def pooled(self, maps):
        return maps[-1].mean(dim=(2, 3))

    def later_stages(self, k):
        """Those after stage k, made anew."""
        ends = zip(self.widths[k + 1 :], self.widths[k + 2 :])
        return nn.Sequential(*[self.stage(*pair, self.blocks, 2) for pair in ends])

    def forward(self, x):
        return say_stages(self, x)


class PreActivationBlock(nn.Module):
    """bn-relu-conv-bn-relu-conv; where the width changes, the shortcut starts after the first activation."""

    def __init__(self, inputs, outputs, stride):
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inputs)
        self.conv1 = conv3x3(inputs, outputs, stride)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.conv2 = conv3x3(outputs, outputs)
        self.convShortcut = None
        if inputs != outputs:
            self.convShortcut = nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False)

    def forward(self, x):
        active = relu(self.bn1(x))
        y = self.conv2(relu(self.bn2(self.conv1(active))))
        return y + (x if self.convShortcut is None else self.convShortcut(active))


class WideStage(nn.Module):
    """Holds the blocks under the name `layer`, since the official keys are `block1.layer.0.*`."""

    def __init__(self, inputs, outputs, blocks, stride):
        super().__init__()
        later = [PreActivationBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        self.layer = nn.Sequential(PreActivationBlock(inputs, outputs, stride), *later)

    def forward(self, x):
        return self.layer(x)


class WideResNet(nn.Module):
    def __init__(self, depth, widen, channels, classes):
        super().__init__()
        self.widths, self.blocks = [16, 16 * widen, 32 * widen, 64 * widen], (depth - 4) // 6
        self.conv1 = conv3x3(channels, 16)
        self.block1 = WideStage(16, 16 * widen, self.blocks, 1)
        self.block2 = WideStage(16 * widen, 32 * widen, self.blocks, 2)
        self.block3 = WideStage(32 * widen, 64 * widen, self.blocks, 2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, classes)

    def maps(self, x):
        first = self.block1(self.conv1(x))
        second = self.block2(first)
        return [first, second, self.block3(second)]

    def feature(self, x):
        return self.pooled(self.maps(x))

    def pooled(self, maps):
        return relu(self.bn1(maps[-1])).mean(dim=(2, 3))

    def later_stages(self, k):
        """Those after stage k, made anew."""
        ends = zip(self.widths[k + 1 :], self.widths[k + 2 :])
        return nn.Sequential(*[WideStage(*pair, self.blocks, 2) for pair in ends])

    def forward(self, x):
        return say_stages(self, x)


class AuxiliaryClassifier(nn.Module):
    """Behind every stage but the last: the stages that follow once more, and a classifier."""

    def __init__(self, network):
        super().__init__()
        width, classes = network.widths[-1], network.fc.out_features
        self.branches = range(1, len(network.widths) - 1)
        for k in self.branches:
            setattr(self, f"block_extractor{k}", network.later_stages(k - 1))
            if isinstance(network, WideResNet):
                setattr(self, f"bn{k}", nn.BatchNorm2d(width))
            setattr(self, f"fc{k}", nn.Linear(width, classes))

    def forward(self, maps):
        features, logits = [], []
        for k in self.branches:
            x = getattr(self, f"block_extractor{k}")(maps[k - 1])
            if hasattr(self, f"bn{k}"):
                x = relu(getattr(self, f"bn{k}")(x))
            features.append(x.mean(dim=(2, 3)))
            logits.append(getattr(self, f"fc{k}")(features[-1]))
        return features, logits


def head(width, embedding):
    return nn.Sequential(nn.Linear(width, embedding), Relu(), nn.Linear(embedding, embedding))


def build(arch, channels, classes, embedding=None, matching=None):
    """The network `arch`; with a projection head to `embedding` numbers unless that is None. With `matching` it has what
    L-MCL adds, and features of so many numbers to match stages by (0: none)."""
    if arch.startswith("wrn_"):
        depth, widen = map(int, arch.split("_")[1:])
        network = WideResNet(depth, widen, channels, classes)
    elif arch.endswith("x4"):
        depth = int(arch.removeprefix("resnet").removesuffix("x4"))
        network = ResNet(depth, [32, 64, 128, 256], channels, classes)
    else:
        depth = int(arch.removeprefix("resnet"))
        network = ResNet(depth, [16, 16, 32] if depth == 6 else [16, 16, 32, 64], channels, classes)
    width, stages = network.fc.in_features, 1
    if matching is not None:
        stages = len(network.widths) - 1
        network.auxiliary_classifier = AuxiliaryClassifier(network)
        network.aggregator = nn.Sequential(nn.Linear(stages * width, width), Relu(), nn.Linear(width, stages))
        network.match = nn.ModuleList([nn.Linear(width, matching) for _ in range(stages if matching else 0)])
    if embedding is not None:
        network.embed = nn.ModuleList([head(width, embedding) for _ in range(stages)])
    return network


def say(network, images):
    """(logits [B, C], unit embeddings [B, E] or None) of a batch."""
    feature = network.feature(images)
    embedding = F.normalize(network.embed[0](feature), dim=1) if hasattr(network, "embed") else None
    return network.fc(feature), embedding


def say_stages(network, images):
    """(logits, unit embeddings, unit matching features of every stage, aggregated logits) of a batch."""
    maps = network.maps(images)
    features, logits = network.auxiliary_classifier(maps)
    features.append(network.pooled(maps))
    logits.append(network.fc(features[-1]))
    shares = network.aggregator(torch.cat(features, dim=1)).softmax(dim=1)
    aggregated = sum(share[:, None] * z for share, z in zip(shares.unbind(dim=1), logits))
    said = [[F.normalize(h(f), dim=1) for h, f in zip(heads, features)] for heads in (network.embed, network.match)]
    return logits, *said, aggregated


@torch.no_grad()
def draw(network, seed):
    """Random weights in which nothing is at a neutral value: batch-norm scales, shifts, running statistics and counters
    too, so that a tensor that is ignored or mixed up shows."""
    generator = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.weight.uniform_(0.5, 1.5, generator=generator)
            module.bias.normal_(0, 0.1, generator=generator)
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
            module.num_batches_tracked.fill_(5)
        elif isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu", generator=generator)
        elif isinstance(module, nn.Linear):
            bound = module.in_features ** -0.5
            module.weight.uniform_(-bound, bound, generator=generator)
            module.bias.uniform_(-bound, bound, generator=generator)
    return network
