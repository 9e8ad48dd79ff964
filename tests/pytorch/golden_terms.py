"""Writes golden vectors of single loss terms (tests/golden/vectors/*__t_*) for arguments that others leave out: a batch of
one, features of length 0 and short ones, combinations of several networks, closed gates.

    python tests/pytorch/golden_terms.py tests/golden/vectors

Everything in float64 from the papers' definitions; gradients are autograd's. Arguments are numbers that f32 holds exactly.
Another seed (second argument) makes other files.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

CLASSES, WIDTH = 5, 6


def write(folder, name, term, params, inputs, learnable, compute):
    leaves = {key: value.clone() for key, value in inputs.items()}
    for key in learnable:
        leaves[key].requires_grad_()
    outputs = compute(**leaves)
    outputs["loss"].backward()
    tensors = {f"in.{key}": value for key, value in inputs.items()}
    tensors |= {f"out.{key}": value for key, value in outputs.items()}
    for key in learnable:
        gradient = leaves[key].grad
        tensors[f"grad.{key}"] = torch.zeros_like(leaves[key]) if gradient is None else gradient
    for key, value in tensors.items():
        assert value.isfinite().all(), f"{term} {name}: {key}"
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    metadata = {"term": term, "params": json.dumps(params), "note": "made by tests/pytorch/golden_terms.py"}
    save_file(tensors, folder / f"{term}__t_{name}.safetensors", metadata=metadata)


def kl(student, teacher, t):
    p, q = F.log_softmax(teacher.detach() / t, dim=1), F.log_softmax(student / t, dim=1)
    return t * t * (p.exp() * (p - q)).sum(dim=1)


def soft_ce(target, z):
    return -(target.detach() * F.log_softmax(z, dim=1)).sum(dim=1).mean()


def kd_fn(form, tau=2.0, lambda2=9.0):
    def compute(f, w, b, z_t_fn, y):
        r = f.norm(dim=1, keepdim=True)
        rho = r.clamp(max=tau) if form == "clip" else torch.full_like(r, tau)
        z_fn = (rho * f / (f.square().sum(dim=1, keepdim=True) + 1e-10).sqrt()) @ w.T + b
        term = soft_ce(z_t_fn.softmax(dim=1), z_fn)
        return {"z_fn": z_fn, "loss": F.cross_entropy(f @ w.T + b, y) + lambda2 * term}
    return compute, {"tau": tau, "lambda2": lambda2, "form": form}


def hypersphere(f, w, b, y):
    z = 16.0 * F.normalize(f, dim=1) @ w.T + b
    return {"loss": F.cross_entropy(z, y)}


def bisect(slope, high):
    """The least point of a convex function on [0, high], by its slope."""
    if slope(0.0) >= 0:
        return 0.0
    if slope(high) <= 0:
        return high
    low = 0.0
    for _ in range(100):
        middle = 0.5 * (low + high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 0.5 * (low + high)


def best_of_three(d):
    """The weights of three rows d[i] = z_i - z_i[c] that minimise the cross-entropy of their sum: one bisection within another."""
    def slopes(a0, a1):
        p = (a0 * d[0] + a1 * d[1] + (1 - a0 - a1) * d[2]).softmax(dim=0)
        return [float((p * row).sum()) for row in d]

    def inner(a0):
        def slope(a1):
            g = slopes(a0, a1)
            return g[1] - g[2]
        return bisect(slope, 1 - a0)

    def outer(a0):
        a1 = inner(a0)
        g = slopes(a0, a1)
        # What a0 gains is lost by the one that is free to give.
        return g[0] - (g[1] if a1 >= 1 - a0 and a0 < 1 else g[2])

    a0 = bisect(outer, 1.0)
    a1 = inner(a0)
    return [a0, a1, 1 - a0 - a1]


def kdcl(target, t=2.0):
    def compute(z0, z1, z2, y, w=None):
        z = torch.stack([z0, z1, z2]).detach()
        if target == "mean":
            goal = z.mean(dim=0)
        elif target == "general":
            goal = (z * w[:, None, None]).sum(dim=0)
        elif target == "minlogit":
            goal = (z - z.gather(2, y.expand(3, -1)[:, :, None])).min(dim=0).values
        else:
            rows = []
            for n, c in enumerate(y):
                weights = best_of_three(z[:, n] - z[:, n, c : c + 1])
                rows.append(sum(a * row for a, row in zip(weights, z[:, n])))
            goal = torch.stack(rows)
        return {"loss": F.cross_entropy(z0, y) + kl(z0, goal, t).mean()}
    return compute, {"t": t, "lambda": 1.0, "target": target}


def one(z0, z1, z2, s0, s1, s2, y):
    gates = torch.cat([s0, s1, s2], dim=1).softmax(dim=1)
    z_e = sum(gates[:, i : i + 1] * z for i, z in enumerate((z0, z1, z2)))
    ramp = torch.tensor(-5.0 * (1 - 10 / 80) ** 2, dtype=torch.float64).exp()
    loss = F.cross_entropy(z0, y) + F.cross_entropy(z_e, y) + ramp * kl(z0, z_e, 3.0).mean()
    return {"z_e": z_e, "loss": loss}


def dkd(z_s, z_t, y, t=4.0):
    def parts(z):
        ls = F.log_softmax(z / t, dim=1)
        others = ls[F.one_hot(y, CLASSES) == 0].reshape(len(y), CLASSES - 1)
        binary = torch.stack([ls.gather(1, y[:, None])[:, 0], others.logsumexp(dim=1)], dim=1)
        return binary, F.log_softmax(others, dim=1)

    (b_s, o_s), (b_t, o_t) = parts(z_s), parts(z_t.detach())
    tckd = (b_t.exp() * (b_t - b_s)).sum(dim=1).mean()
    nckd = (o_t.exp() * (o_t - o_s)).sum(dim=1).mean()
    loss = F.cross_entropy(z_s, y) + 3 / 20 * t * t * (tckd + 8 * nckd)
    return {"tckd": tckd, "nckd": nckd, "loss": loss}


def ktg_edge(gate):
    def compute(z_s, z_t, y):
        rows = kl(z_s, z_t, 1.0)
        factor = {"cutoff": 0.0, "negative_linear": 1 - 10 / 40}.get(gate, 1.0)
        passed = (z_t.argmax(dim=1) == y).double() if gate == "correct" else torch.ones_like(rows)
        return {"loss": factor * (rows * passed).mean()}
    return compute, {"gate": gate, "t": 1.0, "iteration": 9, "iterations": 40}


def tsd_teacher(z, y):
    top = z.softmax(dim=1).sort(dim=1, descending=True, stable=True).values[:, :3]
    gap = (top[:, 0] - top[:, 1:].sum(dim=1) / 2).mean()
    return {"gap": gap, "loss": 0.6 * F.cross_entropy(z, y) + 0.4 * gap}


def ps_kd(z, past, y):
    alpha = 0.8 * 11 / 300
    return {"loss": soft_ce((1 - alpha) * F.one_hot(y, CLASSES).double() + alpha * past, z)}


def afd(d_other, d_own, z_s, z_t, y):
    discriminator = (1 - d_other).square().mean() + d_own.square().mean()
    generator = (1 - d_own).square().mean()
    logit = F.cross_entropy(z_s, y) + kl(z_s, z_t, 3.0).mean()
    loss = discriminator + 2 * generator + logit
    return {"discriminator": discriminator, "generator": generator, "logit": logit, "loss": loss}


def main():
    folder = pathlib.Path(sys.argv[1])
    generator = torch.Generator().manual_seed(int(sys.argv[2]) if len(sys.argv) > 2 else 6)

    def normal(*shape, size=1.0):
        x = size * torch.randn(*shape, generator=generator, dtype=torch.float64)
        return (x * 1024).round() / 1024

    def extreme(b):
        sign = torch.randint(-1, 2, (b, CLASSES), generator=generator)
        return 1e4 * sign + (normal(b, CLASSES) * 16).round() / 16

    def labels(b):
        return torch.randint(0, CLASSES, (b,), generator=generator)

    # Lengths around 2, on both sides of it; then a row of zeros.
    lengths = torch.tensor([0.01, 0.3, 0.7, 1.0, 1.5, 3.0], dtype=torch.float64)[:, None]
    f = (normal(6, WIDTH) * lengths * 1024).round() / 1024
    zero = f.clone()
    zero[2] = 0.0
    classifier = {"w": normal(CLASSES, WIDTH), "b": normal(CLASSES)}
    for name, features in (("short", f), ("zero", zero)):
        inputs = {"f": features, "y": labels(6)} | classifier
        write(folder, name, "hypersphere", {"rho": 16.0}, inputs, ("f", "w", "b"), hypersphere)
        for form in ("clip", "paper"):
            compute, params = kd_fn(form)
            teacher = {"z_t_fn": normal(6, CLASSES)}
            write(folder, f"{name}_{form}", "kd_fn", params, inputs | teacher, ("f", "w", "b"), compute)

    for target in ("linear", "mean", "general"):
        compute, params = kdcl(target)
        inputs = {f"z{i}": normal(12, CLASSES, size=2.0) for i in range(3)} | {"y": labels(12)}
        if target == "general":
            inputs["w"] = torch.tensor([1.25, -0.75, 0.5], dtype=torch.float64)
        write(folder, target, "kdcl", params, inputs, ("z0",), compute)

    for gate in ("negative_linear", "cutoff"):
        compute, params = ktg_edge(gate)
        inputs = {"z_s": normal(6, CLASSES), "z_t": normal(6, CLASSES), "y": labels(6)}
        write(folder, gate, "ktg_edge", params, inputs, ("z_s",), compute)

    inputs = {"d_other": normal(6, 1).sigmoid().float().double(), "d_own": normal(6, 1).sigmoid().float().double()}
    inputs |= {"z_s": normal(6, CLASSES), "z_t": normal(6, CLASSES), "y": labels(6)}
    write(folder, "plain", "afd", {"t": 3.0}, inputs, ("d_other", "d_own", "z_s"), afd)

    for name, b in (("extreme", 6), ("single", 1)):
        cohort = {f"z{i}": extreme(b) for i in range(3)} | {"y": labels(b)}
        scores = {f"s{i}": normal(b, 1) for i in range(3)}
        compute, params = kdcl("minlogit")
        write(folder, name, "kdcl", params, cohort, ("z0",), compute)
        one_params = {"t": 3.0, "epoch": 10, "ramp": 80}
        # A mixture of 1e4 in f32 says nothing about differences of 1: scores learn in the mild case.
        write(folder, name, "one", one_params, cohort | scores, ("z0",), one)
        pair = {"z_s": extreme(b), "z_t": extreme(b), "y": labels(b)}
        dkd_params = {"alpha": 1.0, "beta": 8.0, "t": 4.0, "w_ce": 1.0, "epoch": 3, "warmup": 20}
        write(folder, name, "dkd", dkd_params, pair, ("z_s",), dkd)
        compute, params = ktg_edge("correct")
        write(folder, name, "ktg_edge", params, pair, ("z_s",), compute)
        own = {"z": extreme(b), "y": labels(b)}
        write(folder, name, "tsd_teacher", {"eta": 0.6, "k": 3}, own, ("z",), tsd_teacher)
        past = {"past": normal(b, CLASSES).softmax(dim=1).float().double()}
        write(folder, name, "ps_kd", {"alpha_t": 0.8, "epoch": 10, "epochs": 300}, own | past, ("z",), ps_kd)


if __name__ == "__main__":
    main()
