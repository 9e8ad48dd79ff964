"""Writes the golden vectors of the terms at memory banks (tests/golden/vectors/*memory_bank__*, but not the first of them).

    python tests/pytorch/golden_memory.py tests/golden/vectors

Everything in float64, pair by pair from the definitions of the papers (Yang et al., AAAI 2022 and TPAMI 2023), with rows of
keys gathered for each anchor. Gradients are autograd's. Another seed (second argument) makes other files.
"""

import pathlib
import sys

import torch
from torch.nn import functional as F

from golden_lmcl import rows, write

WEIGHTS = {"alpha": 0.1, "gamma": 1.0, "beta": 0.1, "lam": 1.0, "tau": 0.07, "kd_t": 3.0}
SAMPLES, CLASSES, WIDTH, FEATURES, MOMENTUM = 30, 5, 6, 4, 0.25


def con(scores, positives, w=1.0):
    return -(w * F.log_softmax(scores, dim=1)[:, :positives].mean(dim=1)).mean()


def kl(student, teacher, w=1.0):
    t = WEIGHTS["kd_t"]
    p, q = F.log_softmax(teacher.detach() / t, dim=1), F.log_softmax(student / t, dim=1)
    return t * t * (w * (p.exp() * (p - q)).sum(dim=1)).mean()


class Banks:
    """Scores of embeddings at banks [N, E], for keys `pos` [B, 1 + K+] (the own sample first) and `neg` [B, K-]."""

    def __init__(self, banks, pos, neg):
        self.banks, self.keys, self.positives = banks, torch.cat([pos, neg], dim=1), pos.shape[1] - 1

    def scores(self, bank, v, keys):
        return torch.einsum("bke,be->bk", self.banks[bank][keys], v) / WEIGHTS["tau"]

    def within(self, bank, v):
        return self.scores(bank, v, self.keys[:, 1:])

    def across(self, bank, v):
        return self.scores(bank, v, self.keys)


def of_networks(v, at):
    """MCL: VCL once a network, the other terms over ordered pairs."""
    terms = {"vcl": sum(con(at.within(i, x), at.positives) for i, (x,) in enumerate(v))}
    pairs = [(i, j) for i in range(len(v)) for j in range(len(v)) if i != j]
    terms["soft_vcl"] = sum(kl(at.within(i, v[i][0]), at.within(j, v[j][0])) for i, j in pairs)
    terms["icl"] = sum(con(at.across(j, v[i][0]), at.positives + 1) for i, j in pairs)
    terms["soft_icl"] = sum(kl(at.across(j, v[i][0]), at.across(i, v[j][0])) for i, j in pairs)
    return terms


def of_stages(v, at, params, u):
    """L-MCL: all terms, VCL too, both ways for each pair of stages of each ordered pair of networks, weighted where there
    are matching features."""
    terms = dict.fromkeys(("vcl", "soft_vcl", "icl", "soft_icl"), 0.0)
    visits = [(i, j) for i in range(len(v)) for j in range(len(v)) if i != j]
    # Counted once, a pair of networks is half of each visit.
    share = 1.0 if params["double"] else 0.5
    for i, j in visits:
        for k, a in enumerate(v[i]):
            for z, b in enumerate(v[j]):
                if params["matching"] == "one-to-one" and len(v[i]) - k != len(v[j]) - z:
                    continue
                q_a, q_b = at.within(i, a), at.within(i if params["bank_bug"] else j, b)
                r_ab, r_ba = at.across(j, a), at.across(i, b)
                w = torch.sigmoid((u[i][k] * u[j][z]).sum(dim=1)) if u else 1.0
                terms["vcl"] += share * (con(q_a, at.positives, w) + con(q_b, at.positives, w))
                terms["soft_vcl"] += share * (kl(q_a, q_b, w) + kl(q_b, q_a, w))
                terms["icl"] += share * (con(r_ab, at.positives + 1, w) + con(r_ba, at.positives + 1, w))
                terms["soft_icl"] += share * (kl(r_ab, r_ba, w) + kl(r_ba, r_ab, w))
    return terms


def keys(generator, anchors, positives, negatives):
    """Samples x have class x mod CLASSES."""
    pos, neg = [], []
    for x in anchors:
        same = [s for s in range(SAMPLES) if s % CLASSES == x % CLASSES]
        other = torch.tensor([s for s in range(SAMPLES) if s % CLASSES != x % CLASSES])
        drawn = torch.randperm(len(same), generator=generator)[:positives]
        pos.append([x] + [same[at] for at in drawn])
        neg.append(other[torch.randint(0, len(other), (negatives,), generator=generator)])
    return torch.tensor(pos), torch.stack(neg)


def exact(x):
    """Banks are kept in f32."""
    return x.float().double()


def remembered(bank, anchors, v):
    return F.normalize(MOMENTUM * bank[anchors] + (1 - MOMENTUM) * v.detach(), dim=1)


def case(generator, stages, anchors, positives, negatives, params, spoil=None):
    v = [[exact(rows(generator, len(anchors), WIDTH)) for _ in range(count)] for count in stages]
    banks = [exact(0.7 * torch.randn(SAMPLES, WIDTH, generator=generator, dtype=torch.float64)) for _ in stages]
    if spoil is not None:
        spoil(v, banks)
    pos, neg = keys(generator, anchors, positives, negatives)
    v = [[x.requires_grad_() for x in of_one] for of_one in v]
    at = Banks(banks, pos, neg)
    learned = params is not None and params["matching"] == "learned"
    u = [[exact(rows(generator, len(anchors), FEATURES)) for _ in of_one] for of_one in v] if learned else []
    terms = of_networks(v, at) if params is None else of_stages(v, at, params, u)
    named = {"alpha": "vcl", "gamma": "soft_vcl", "beta": "icl", "lam": "soft_icl"}
    terms["loss"] = sum(WEIGHTS[weight] * terms[name] for weight, name in named.items())
    for i, (bank, of_one) in enumerate(zip(banks, v)):
        terms[f"new_rows_{i}"] = remembered(bank, pos[:, 0], of_one[-1])
    flat = {f"v{i}" if params is None else f"v{i}{k}": x for i, of_one in enumerate(v) for k, x in enumerate(of_one)}
    flat_u = {f"u{i}{k}": x for i, of_one in enumerate(u) for k, x in enumerate(of_one)}
    inputs = flat | flat_u | {f"m{i}": bank for i, bank in enumerate(banks)} | {"pos": pos, "neg": neg}
    return inputs, list(flat), terms


def zeros(v, banks):
    """A dead unit makes rows of zeros, and a bank may have never been anything else."""
    v[0][0][1] = 0.0
    v[1][-1][:] = 0.0
    banks[0][:] = 0.0


def main():
    folder = pathlib.Path(sys.argv[1])
    generator = torch.Generator().manual_seed(int(sys.argv[2]) if len(sys.argv) > 2 else 21)
    batch = [7, 12, 0, 29, 7, 3]
    numbers = WEIGHTS | {"momentum": MOMENTUM}
    for name, networks, anchors, spoil in (("three_networks", 3, batch, None), ("single_sample", 2, [4], None),
                                           ("zero_vectors", 2, batch, zeros)):
        made = case(generator, [1] * networks, anchors, 2, 9, None, spoil)
        write(folder, name, "memory_bank", numbers, *made)
    plain = {"double": True, "matching": "uniform", "bank_bug": False}
    for name, stages, anchors, changed, spoil in (
        ("unequal", [2, 3], batch, {}, None),
        ("three_networks", [2, 1, 3], batch, {"double": False}, None),
        ("one_to_one", [2, 4], batch, {"matching": "one-to-one"}, None),
        ("bug", [2, 3], batch, {"bank_bug": True}, None),
        ("single_sample", [2, 2], [4], {}, None),
        ("zero_vectors", [2, 3], batch, {}, zeros),
        ("learned", [2, 3], batch, {"matching": "learned"}, None),
        ("learned_bug", [3, 1, 2], batch, {"matching": "learned", "bank_bug": True, "double": False}, None),
    ):
        params = plain | changed
        made = case(generator, stages, anchors, 2, 9, params, spoil)
        write(folder, name, "lmcl_memory_bank", numbers | params, *made)


if __name__ == "__main__":
    main()
