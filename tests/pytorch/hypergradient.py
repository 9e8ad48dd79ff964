"""Writes peer/src/meta/testdata/*.safetensors: hypergradients of L-MCL's matching weights for small networks, by
autograd through the unrolled steps of SGD in one process and float64.

    pip install torch numpy safetensors
    python tests/pytorch/hypergradient.py

A file holds the batch (`x` [B, D], `y` [B]), the initial parameters of each network (`I.name`), and the results: `exact.I.name`
by d J / d phi, and `compat.I.name` by the recursion of the authors' release, which adds the adjoint of the velocity
without the factor weight decay. Networks are chains of linear (batch norm) ReLU stages; each stage has a classifier
`fc.K`, a projection head `embed.K.{0,2}` and a matching projection `match.K`. Where a case has memory banks, the file holds
them (`bank.I` [N, E]) as well, the keys of each anchor (`keys` [B, 1 + K+ + K-], the own sample first), and what the banks hold
after the first inner step (`after.I`).
"""

import pathlib

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

OUT = pathlib.Path(__file__).resolve().parents[2] / "peer/src/meta/testdata"
ALPHA, BETA, GAMMA, LAM, TAU, KD_T = 0.1, 0.1, 1.0, 1.0, 0.1, 3.0
MOMENTUM, DECAY, INNER_STEPS = 0.9, 5e-4, 2
BATCH, INPUTS, CLASSES, EMBEDDING, MATCHING = 12, 6, 4, 8, 7

MEMORY_TAU, MOMENTUM_OF_BANKS, POSITIVES, NEGATIVES, SAMPLES = 0.07, 0.5, 2, 9, 40

# Name: widths of the stages of each network, whether they have batch norm, learning rate, seed.
CASES = {
    "two_plain": ([[9, 8], [7, 10]], False, 0.05, 1),
    "two_norm": ([[9, 8], [7, 10, 6]], True, 0.1, 2),
    "three_norm": ([[9, 8], [7, 10, 6], [8, 8]], True, 0.1, 3),
}


# The same at memory banks, and whether both networks of a pair use one bank within themselves, as the release does.
BANK_CASES = {
    "two_banks": ([[9, 8], [7, 10, 6]], True, 0.1, 4, False),
    "three_banks_confused": ([[9, 8], [7, 10], [8, 8]], True, 0.1, 5, True),
}


def draw(widths, norm, generator):
    """Parameters of one network, representable in float32."""
    made = {}

    def linear(name, inputs, outputs):
        bound = inputs ** -0.5
        for part, shape in (("weight", (outputs, inputs)), ("bias", (outputs,))):
            made[f"{name}.{part}"] = (torch.rand(shape, generator=generator) * 2 - 1) * bound

    inputs = INPUTS
    for k, width in enumerate(widths):
        linear(f"layer.{k}", inputs, width)
        if norm:
            made[f"bn.{k}.weight"] = 0.5 + torch.rand(width, generator=generator)
            made[f"bn.{k}.bias"] = 0.3 * torch.randn(width, generator=generator)
        linear(f"fc.{k}", width, CLASSES)
        linear(f"embed.{k}.0", width, EMBEDDING)
        linear(f"embed.{k}.2", EMBEDDING, EMBEDDING)
        linear(f"match.{k}", width, MATCHING)
        inputs = width
    return {name: value.float().double() for name, value in made.items()}


def unit(x):
    return x * x.square().sum(dim=1, keepdim=True).clamp_min(1e-24).rsqrt()


def say(p, x, _=0):
    """(logits, embeddings, matching features) of every stage."""
    said = [], [], []
    k = 0
    while f"layer.{k}.weight" in p:
        lin = lambda name, v: F.linear(v, p[f"{name}.weight"], p[f"{name}.bias"])
        x = lin(f"layer.{k}", x)
        if f"bn.{k}.weight" in p:
            x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt() * p[f"bn.{k}.weight"] + p[f"bn.{k}.bias"]
        x = F.relu(x)
        said[0].append(lin(f"fc.{k}", x))
        said[1].append(unit(lin(f"embed.{k}.2", F.relu(lin(f"embed.{k}.0", x)))))
        said[2].append(unit(lin(f"match.{k}", x)))
        k += 1
    return said


def contrast(scores, y, w):
    own = torch.eye(len(y), dtype=torch.bool)
    positive = (y[:, None] == y[None, :]) & ~own
    log_p = scores - scores.masked_fill(own, float("-inf")).logsumexp(dim=1, keepdim=True)
    count = positive.sum(dim=1)
    rows = -(log_p * positive).sum(dim=1) / count.clamp_min(1)
    return (w * rows)[count > 0].sum() / max(1, int((count > 0).sum()))


def kl(s, t, w):
    p = F.log_softmax(t.detach() / KD_T, dim=1)
    return KD_T**2 * (w * (p.exp() * (p - F.log_softmax(s / KD_T, dim=1))).sum(dim=1)).mean()


def inner(networks, x, y, say=say):
    """Twice the pair loss of all stages of all unordered pairs of networks."""
    said = [say(p, x, i) for i, p in enumerate(networks)]
    total = 0.0
    for i, first in enumerate(said):
        for second in said[i + 1 :]:
            for a, u in zip(first[1], first[2]):
                for b, v in zip(second[1], second[2]):
                    w = torch.sigmoid((u * v).sum(dim=1))
                    aa, bb, ab, ba = a @ a.T / TAU, b @ b.T / TAU, a @ b.T / TAU, b @ a.T / TAU
                    total = total + ALPHA * (contrast(aa, y, w) + contrast(bb, y, w))
                    total = total + GAMMA * (kl(aa, bb, w) + kl(bb, aa, w))
                    total = total + BETA * (contrast(ab, y, w) + contrast(ba, y, w))
                    total = total + LAM * (kl(ab, ba, w) + kl(ba, ab, w))
    return 2 * total


class AtBanks:
    """The inner objective at memory banks, which remember the last stages after every inner step."""

    def __init__(self, banks, keys, confused):
        self.banks, self.keys, self.confused = banks, keys, confused

    def scores(self, bank, v, own):
        keys = self.keys if own else self.keys[:, 1:]
        return torch.einsum("bke,be->bk", self.banks[bank][keys], v) / MEMORY_TAU

    @staticmethod
    def contrast(scores, positives, w):
        return -(w * F.log_softmax(scores, dim=1)[:, :positives].mean(dim=1)).mean()

    def pair(self, i, j, a, b, w):
        """One visit of an ordered pair: half of what its two stages cost."""
        q_a, q_b = self.scores(i, a, False), self.scores(i if self.confused else j, b, False)
        r_a, r_b = self.scores(j, a, True), self.scores(i, b, True)
        total = ALPHA * (self.contrast(q_a, POSITIVES, w) + self.contrast(q_b, POSITIVES, w))
        total = total + GAMMA * (kl(q_a, q_b, w) + kl(q_b, q_a, w))
        total = total + BETA * (self.contrast(r_a, POSITIVES + 1, w) + self.contrast(r_b, POSITIVES + 1, w))
        return (total + LAM * (kl(r_a, r_b, w) + kl(r_b, r_a, w))) / 2

    def __call__(self, networks, x, y, say):
        said = [say(p, x, i) for i, p in enumerate(networks)]
        total = 0.0
        for i, first in enumerate(said):
            for j, second in enumerate(said):
                for a, u in zip(first[1], first[2]):
                    for b, v in zip(second[1], second[2]):
                        if i != j:
                            total = total + self.pair(i, j, a, b, torch.sigmoid((u * v).sum(dim=1)))
        return 2 * total

    def remember(self, networks, x, say):
        for i, p in enumerate(networks):
            last, bank = say(p, x, i)[1][-1].detach(), self.banks[i].clone()
            for n, sample in enumerate(self.keys[:, 0]):
                bank[sample] = unit((1 - MOMENTUM_OF_BANKS) * last[n : n + 1] + MOMENTUM_OF_BANKS * self.banks[i][sample])[0]
            # Banks are float32, whatever the rest is.
            self.banks[i] = bank.float().double()


def outer(networks, x, y, say=say):
    return sum(F.cross_entropy(z, y) for i, p in enumerate(networks) for z in say(p, x, i)[0])


def split(networks):
    theta = [(i, name) for i, p in enumerate(networks) for name in p if not name.startswith("match.")]
    phi = [(i, name) for i, p in enumerate(networks) for name in p if name.startswith("match.")]
    return theta, phi


def moved(networks, keys, values):
    new = [dict(p) for p in networks]
    for (i, name), value in zip(keys, values):
        new[i][name] = value
    return new


def exact(networks, x, y, lr, say=say, inner=inner):
    """d J / d phi through the graph of all steps, and the networks along the path."""
    theta, phi = split(networks)
    leaves = [networks[i][name].clone().requires_grad_() for i, name in phi]
    now = moved(networks, phi, leaves)
    values = [networks[i][name].clone().requires_grad_() for i, name in theta]
    speed = [torch.zeros_like(value) for value in values]
    path = []
    for step in range(INNER_STEPS + 1):
        now = moved(now, theta, values)
        path.append([{name: value.detach() for name, value in p.items()} for p in now])
        loss = (inner if step < INNER_STEPS else outer)(now, x, y, say)
        gradients = torch.autograd.grad(loss, values, create_graph=True, materialize_grads=True)
        speed = [MOMENTUM * v + g + DECAY * p for v, g, p in zip(speed, gradients, values)]
        values = [p - lr * v for p, v in zip(values, speed)]
        if step < INNER_STEPS and isinstance(inner, AtBanks):
            inner.remember(now, x, say)
            inner.after = getattr(inner, "after", list(inner.banks))
    now = moved(now, theta, values)
    path.append([{name: value.detach() for name, value in p.items()} for p in now])
    return dict(zip(phi, torch.autograd.grad(outer(now, x, y, say), leaves))), path


def released(path, x, y, lr):
    """The recursion of the authors' release over a given path, by double backward."""
    theta, phi = split(path[0])
    at = lambda networks: [networks[i][name].clone().requires_grad_() for i, name in theta]
    values = at(path[-1])
    a0 = list(torch.autograd.grad(outer(moved(path[-1], theta, values), x, y), values, materialize_grads=True))
    a1 = [torch.zeros_like(a) for a in a0]
    total = [torch.zeros_like(path[0][i][name]) for i, name in phi]
    for step in reversed(range(INNER_STEPS + 1)):
        values = at(path[step])
        leaves = [path[0][i][name].clone().requires_grad_() for i, name in phi]
        now = moved(moved(path[step], theta, values), phi, leaves)
        loss = (inner if step < INNER_STEPS else outer)(now, x, y)
        gradients = torch.autograd.grad(loss, values, create_graph=True, materialize_grads=True)
        b = [v - lr * t for v, t in zip(a1, a0)]
        along = sum((g * d).sum() for g, d in zip(gradients, b))
        second = torch.autograd.grad(along, values + leaves, materialize_grads=True)
        a0 = [(1 - lr * DECAY) * t + v + h for t, v, h in zip(a0, a1, second)]
        a1 = [MOMENTUM * d for d in b]
        total = [t + g for t, g in zip(total, second[len(values) :])]
    return dict(zip(phi, total))


def main():
    torch.set_num_threads(1)
    OUT.mkdir(exist_ok=True)
    for name, (widths, norm, lr, seed) in CASES.items():
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(BATCH, INPUTS, generator=generator).double()
        y = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 2, 0])
        networks = [draw(w, norm, generator) for w in widths]
        results, path = exact(networks, x, y, lr)
        compat = released(path, x, y, lr)
        gap = sum((compat[k] - v).square().sum() for k, v in results.items()) ** 0.5
        size = sum(v.square().sum() for v in results.values()) ** 0.5
        print(f"{name}: norm {size:.6e}, release off by {gap / size:.2e}")
        print("  losses", [float(outer(p, x, y)) for p in path])
        file = {"x": x, "y": y, "lr": torch.tensor([lr], dtype=torch.float64)}
        for i, p in enumerate(networks):
            file |= {f"{i}.{key}": value for key, value in p.items()}
        file |= {f"exact.{i}.{key}": value for (i, key), value in results.items()}
        file |= {f"compat.{i}.{key}": value for (i, key), value in compat.items()}
        save_file(file, OUT / f"{name}.safetensors")
    for name, case in BANK_CASES.items():
        at_banks(name, *case)


def at_banks(name, widths, norm, lr, seed, confused):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(BATCH, INPUTS, generator=generator).double()
    y = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 0, 1, 2, 0])
    networks = [draw(w, norm, generator) for w in widths]
    bound = (EMBEDDING / 3) ** -0.5
    banks = [(torch.rand(SAMPLES, EMBEDDING, generator=generator) * 2 - 1) * bound for _ in widths]
    keys = torch.randint(SAMPLES, (BATCH, 1 + POSITIVES + NEGATIVES), generator=generator)
    objective = AtBanks([bank.double() for bank in banks], keys, confused)
    results, _ = exact(networks, x, y, lr, inner=objective)
    file = {"x": x, "y": y, "lr": torch.tensor([lr], dtype=torch.float64), "keys": keys}
    print(f"{name}: norm {sum(v.square().sum() for v in results.values()) ** 0.5:.6e}")
    for i, p in enumerate(networks):
        file |= {f"{i}.{key}": value for key, value in p.items()}
        file |= {f"bank.{i}": banks[i], f"after.{i}": objective.after[i].float()}
    file |= {f"exact.{i}.{key}": value for (i, key), value in results.items()}
    save_file(file, OUT / f"{name}.safetensors")


if __name__ == "__main__":
    main()
