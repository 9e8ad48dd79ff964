"""The networks of the reference: CIFAR residual networks (He et al. 2016, section 4.2) and wide residual networks
(Zagoruyko and Komodakis 2016), with state-dict keys spelled as the official PyTorch code of MCL and mdistiller spells
them, and the projection head of MCL under `embed.0`.
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
        blocks = (depth - 2) // 6
        stem, first, second, third = widths
        self.conv1 = conv3x3(channels, stem)
        self.bn1 = nn.BatchNorm2d(stem)
        self.layer1 = self.stage(stem, first, blocks, 1)
        self.layer2 = self.stage(first, second, blocks, 2)
        self.layer3 = self.stage(second, third, blocks, 2)
        self.fc = nn.Linear(third, classes)

    @staticmethod
    def stage(inputs, outputs, blocks, stride):
        later = [BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)]
        return nn.Sequential(BasicBlock(inputs, outputs, stride), *later)

    def feature(self, x):
        x = relu(self.bn1(self.conv1(x)))
        return self.layer3(self.layer2(self.layer1(x))).mean(dim=(2, 3))


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
        blocks = (depth - 4) // 6
        self.conv1 = conv3x3(channels, 16)
        self.block1 = WideStage(16, 16 * widen, blocks, 1)
        self.block2 = WideStage(16 * widen, 32 * widen, blocks, 2)
        self.block3 = WideStage(32 * widen, 64 * widen, blocks, 2)
        self.bn1 = nn.BatchNorm2d(64 * widen)
        self.fc = nn.Linear(64 * widen, classes)

    def feature(self, x):
        x = self.block3(self.block2(self.block1(self.conv1(x))))
        return relu(self.bn1(x)).mean(dim=(2, 3))


def build(arch, channels, classes, embedding=None):
    """The network `arch`; with a projection head to `embedding` numbers unless that is None."""
    if arch.startswith("wrn_"):
        depth, widen = map(int, arch.split("_")[1:])
        network = WideResNet(depth, widen, channels, classes)
    elif arch.endswith("x4"):
        depth = int(arch.removeprefix("resnet").removesuffix("x4"))
        network = ResNet(depth, [32, 64, 128, 256], channels, classes)
    else:
        network = ResNet(int(arch.removeprefix("resnet")), [16, 16, 32, 64], channels, classes)
    if embedding is not None:
        width = network.fc.in_features
        head = nn.Sequential(nn.Linear(width, embedding), Relu(), nn.Linear(embedding, embedding))
        network.embed = nn.ModuleList([head])
    return network


def say(network, images):
    """(logits [B, C], unit embeddings [B, E] or None) of a batch."""
    feature = network.feature(images)
    embedding = F.normalize(network.embed[0](feature), dim=1) if hasattr(network, "embed") else None
    return network.fc(feature), embedding


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
