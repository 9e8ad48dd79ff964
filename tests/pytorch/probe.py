"""The linear probe's classifier in PyTorch, float64: prints the logits that the unit test of peer/src/probe.rs expects.

Ten steps of SGD (momentum 0.9, no look-ahead) over all twelve samples from weights 0, at a rate of 0.5 that falls to a tenth
after 3, 6 and 9 of them.
"""

import math

import torch

SAMPLES, WIDTH, CLASSES = 12, 3, 4

features = torch.tensor(
    [[math.sin(1.3 * n + 2.1 * d) + 0.1 * d for d in range(WIDTH)] for n in range(SAMPLES)], dtype=torch.float64
)
labels = torch.tensor([3 if n % 5 == 0 else n * n % 4 + n % 3 // 2 for n in range(SAMPLES)])
classifier = torch.nn.Linear(WIDTH, CLASSES).double()
torch.nn.init.zeros_(classifier.weight)
torch.nn.init.zeros_(classifier.bias)
optimizer = torch.optim.SGD(classifier.parameters(), lr=0.5, momentum=0.9)
schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, milestones=[3, 6, 9], gamma=0.1)
for _ in range(10):
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(classifier(features), labels).backward()
    optimizer.step()
    schedule.step()
for row in classifier(features)[:3].tolist():
    print(", ".join(f"{z:.12f}" for z in row))
