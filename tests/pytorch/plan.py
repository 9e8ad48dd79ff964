"""The batch plan, worked out a second time from its description: SplitMix64, Fisher-Yates, and the learning rate of
each epoch. `cohort-coordinator plan` must print the same.
"""

import math

MASK = (1 << 64) - 1


class SplitMix64:
    """Steele, Lea and Flood, 2014."""

    def __init__(self, seed):
        self.state = seed & MASK

    def next(self):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        q = self.state
        q = ((q ^ (q >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        q = ((q ^ (q >> 27)) * 0x94D049BB133111EB) & MASK
        return q ^ (q >> 31)

    def below(self, bound):
        return (self.next() * bound) >> 64


def shuffle(items, rng):
    for i in range(len(items) - 1, 0, -1):
        j = rng.below(i + 1)
        items[i], items[j] = items[j], items[i]


def epoch_indices(labels, seed, epoch, batch, per_class):
    """The samples of an epoch, batch after batch. `per_class` None: a permutation; else so many of each class."""
    rng = SplitMix64(SplitMix64(SplitMix64(seed).next() ^ epoch).next())
    steps = len(labels) // batch
    if per_class is None:
        order = list(range(len(labels)))
        shuffle(order, rng)
        return order[: steps * batch]
    members = {c: [i for i, label in enumerate(labels) if label == c] for c in sorted(set(labels))}
    classes, order = list(members), []
    for _ in range(steps):
        shuffle(classes, rng)
        for c in classes[: batch // per_class]:
            own = list(members[c])
            if len(own) < per_class:
                order += [own[rng.below(len(own))] for _ in range(per_class)]
                continue
            for a in range(per_class):
                j = a + rng.below(len(own) - a)
                own[a], own[j] = own[j], own[a]
            order += own[:per_class]
    return order


def rate(optim, epoch, epochs):
    """Learning rate of an epoch; the cosine begins where the warm-up ends, milestones count from the run's start."""
    lr, warmup = optim.get("lr", 0.1), optim.get("warmup_epochs", 0)
    schedule = optim.get("schedule", "cosine")
    if epoch < warmup:
        return lr * (epoch + 1) / warmup
    if schedule == "cosine":
        return lr * 0.5 * (1 + math.cos(math.pi * (epoch - warmup) / max(epochs - warmup, 1)))
    if schedule == "multistep":
        return lr * 0.1 ** sum(milestone <= epoch for milestone in optim["milestones"])
    return lr


def derive(run, labels):
    """All steps of a run: dictionaries with step, epoch, lr and indices. Needs the sampler said, not "auto"."""
    data, batch = run["data"], run["data"]["batch"]
    per_class = data.get("per_class", 2) if data["sampler"] == "per-class" else None
    in_epoch = len(labels) // batch
    steps = run["run"].get("steps") or run["run"]["epochs"] * in_epoch
    epochs, order = -(-steps // in_epoch), {}
    for step in range(steps):
        epoch, place = divmod(step, in_epoch)
        if epoch not in order:
            order = {epoch: epoch_indices(labels, run["run"].get("seed", 0), epoch, batch, per_class)}
        indices = order[epoch][place * batch : (place + 1) * batch]
        yield {"step": step, "epoch": epoch, "lr": rate(run["optim"], epoch, epochs), "indices": indices}
