"""Writes the golden vectors of L-MCL with hostile arguments (tests/golden/vectors/lmcl_step__*, lmcl_inner__* and others).

    python tests/pytorch/golden_lmcl.py tests/golden/vectors

Everything in float64, term by term from the paper's definitions, with log-softmax throughout: numbers stay finite where
probabilities vanish. Gradients are autograd's. Another seed (second argument) makes other files.
"""

import json
import pathlib
import sys

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

WEIGHTS = {"alpha": 0.1, "gamma": 1.0, "beta": 0.1, "lam": 1.0, "tau": 0.1, "kd_t": 3.0}

FAR = -1e30


def con(scores, y, weight):
    """Supervised contrast: own column away, anchors without positives skipped."""
    own = torch.eye(len(y), dtype=torch.bool)
    positive = (y[:, None] == y[None, :]) & ~own
    count = positive.sum(dim=1)
    anchors = (count > 0).sum()
    if anchors == 0:
        return 0.0 * scores.sum()
    log_p = F.log_softmax(scores.masked_fill(own, FAR), dim=1)
    rows = -torch.where(positive, log_p, torch.zeros_like(log_p)).sum(dim=1) / count.clamp_min(1)
    return (weight * rows).sum() / anchors


def kl(student, teacher, t, weight):
    p, q = F.log_softmax(teacher.detach() / t, dim=1), F.log_softmax(student / t, dim=1)
    return t * t * (weight * (p.exp() * (p - q)).sum(dim=1)).mean()


def contrasts(v, u, y, learn_weights):
    """The four sums over unordered pairs of networks, twice each; λ of stages (0, 0) and (1, last)."""
    terms = dict.fromkeys(("vcl", "soft_vcl", "icl", "soft_icl"), 0.0)
    tau, t = WEIGHTS["tau"], WEIGHTS["kd_t"]
    for j in range(len(v)):
        for i in range(j):
            for a, match_a in zip(v[i], u[i]):
                for b, match_b in zip(v[j], u[j]):
                    w = (match_a * match_b).sum(dim=1).sigmoid()
                    w = w if learn_weights else w.detach()
                    aa, bb, ab, ba = (x @ z.T / tau for x, z in ((a, a), (b, b), (a, b), (b, a)))
                    terms["vcl"] = terms["vcl"] + 2 * (con(aa, y, w) + con(bb, y, w))
                    terms["icl"] = terms["icl"] + 2 * (con(ab, y, w) + con(ba, y, w))
                    terms["soft_vcl"] = terms["soft_vcl"] + 2 * (kl(aa, bb, t, w) + kl(bb, aa, t, w))
                    terms["soft_icl"] = terms["soft_icl"] + 2 * (kl(ab, ba, t, w) + kl(ba, ab, t, w))
    named = {"alpha": "vcl", "gamma": "soft_vcl", "beta": "icl", "lam": "soft_icl"}
    loss = sum(WEIGHTS[weight] * terms[name] for weight, name in named.items())
    last = len(u[1]) - 1
    return terms | {"loss": loss, f"lambda_00_1{last}": (u[0][0] * u[1][last]).sum(dim=1).sigmoid()}


def write(folder, name, term, params, inputs, learnable, outputs):
    outputs["loss"].backward()
    tensors = {f"in.{key}": value for key, value in inputs.items()}
    tensors |= {f"out.{key}": torch.as_tensor(value) for key, value in outputs.items()}
    for key in learnable:
        gradient = inputs[key].grad
        tensors[f"grad.{key}"] = torch.zeros_like(inputs[key]) if gradient is None else gradient
    for key, value in tensors.items():
        assert value.isfinite().all(), f"{name}: {key}"
    tensors = {key: value.detach().clone().contiguous() for key, value in tensors.items()}
    metadata = {"term": term, "params": json.dumps(params), "note": f"made by tests/pytorch/{pathlib.Path(sys.argv[0]).name}"}
    save_file(tensors, folder / f"{term}__{name}.safetensors", metadata=metadata)


def rows(generator, b, width):
    return F.normalize(torch.randn(b, width, generator=generator, dtype=torch.float64), dim=1)


def contrast_cases(generator):
    """(name, v, u, y): unit rows of two networks of two and three stages, then what is hostile about them."""
    def fresh(b, stages=(2, 3), width=4):
        return tuple([[rows(generator, b, width) for _ in range(s)] for s in stages] for _ in "vu")

    v, u = fresh(1)
    yield "single_sample", v, u, torch.tensor([3])
    v, u = fresh(5)
    yield "no_positives", v, u, torch.tensor([4, 0, 3, 1, 2])
    v, u = fresh(6)
    # A dead unit makes rows of zeros; a dead network makes nothing else.
    v[0][0][1:3], u[0][1][0] = 0.0, 0.0
    v[1] = [torch.zeros_like(x) for x in v[1]]
    u[1][2] = torch.zeros_like(u[1][2])
    yield "zero_vectors", v, u, torch.tensor([0, 0, 1, 1, 2, 0])
    v, u = fresh(6)
    yield "all_rows_equal", [[x[:1].repeat(6, 1) for x in n] for n in v], u, torch.tensor([0, 0, 1, 1, 2, 0])
    v, u = fresh(6)
    # Scores up to 1e4 in size: no unit rows, but what a broken or hostile peer may say.
    yield "scores_of_1e4", [[x * 1000 ** 0.5 for x in n] for n in v], u, torch.tensor([0, 0, 1, 1, 2, 0])
    v, u = fresh(64, (2, 2), 6)
    yield "hundred_classes", v, u, torch.randint(0, 100, (64,), generator=generator)


def sixty_fourths(x):
    """Numbers that f32 holds exactly at a size of 1e4: else the arguments of the two precisions would differ."""
    return (x * 64).round() / 64


def logits_case(generator, b, classes, size):
    """The terms of one network's own logits and the aggregated ones of two others, with entries of ±`size`."""
    def extreme():
        sign = torch.randint(0, 2, (b, classes), generator=generator) * 2 - 1
        return sixty_fourths(size * sign + torch.randn(b, classes, generator=generator, dtype=torch.float64))

    inputs = {key: extreme() for key in ("z0", "z1", "a0", "a1", "a2")}
    inputs["y"] = torch.randint(0, classes, (b,), generator=generator)
    for key in ("z0", "z1", "a0"):
        inputs[key].requires_grad_()
    y, t = inputs["y"], WEIGHTS["kd_t"]
    ce = F.cross_entropy(inputs["z0"], y) + F.cross_entropy(inputs["z1"], y)
    ce_aggregated = F.cross_entropy(inputs["a0"], y)
    ones = torch.ones(b, dtype=torch.float64)
    distilled = sum(kl(inputs["z1"], inputs[f"a{j}"], t, ones) for j in range(3))
    outputs = {"ce": ce, "ce_aggregated": ce_aggregated, "kl_aggregated": distilled,
               "loss": ce + ce_aggregated + distilled}
    return inputs, ("z0", "z1", "a0"), outputs


def aggregator_case(generator, b, logits, features):
    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    classes, d = 5, 6
    inputs = {"f0": features * normal(b, d), "f1": features * normal(b, d), "w0": normal(d, 2 * d), "b0": normal(d),
              "w2": normal(2, d), "b2": normal(2)}
    for key in ("z0", "z1"):
        # One class far above the others: a mixture of 1e4 in f32 says nothing about differences of 1.
        hot = F.one_hot(torch.randint(0, classes, (b,), generator=generator), classes)
        inputs[key] = sixty_fourths(logits * (2 * hot - 1) + normal(b, classes))
    # How the mixture changes such logits is 1e4 times what f32 rounds off; their own gradients are as exact as ever.
    learnable = ("z0", "z1") if logits > 100 else tuple(inputs)
    for key in learnable:
        inputs[key].requires_grad_()
    inputs["y"] = torch.randint(0, classes, (b,), generator=generator)
    hidden = F.linear(torch.cat([inputs["f0"], inputs["f1"]], dim=1), inputs["w0"], inputs["b0"]).relu()
    mixture = F.linear(hidden, inputs["w2"], inputs["b2"]).softmax(dim=1)
    a = mixture[:, :1] * inputs["z0"] + mixture[:, 1:] * inputs["z1"]
    return inputs, learnable, {"a": a, "loss": F.cross_entropy(a, inputs["y"])}


def main():
    folder = pathlib.Path(sys.argv[1])
    generator = torch.Generator().manual_seed(int(sys.argv[2]) if len(sys.argv) > 2 else 20)
    for name, v, u, y in contrast_cases(generator):
        for term, learn_weights in (("lmcl_step", False), ("lmcl_inner", True)):
            leaves = {f"{letter}{i}{k}": x.clone().requires_grad_() for letter, networks in (("v", v), ("u", u))
                      for i, stages in enumerate(networks) for k, x in enumerate(stages)}

            def of(letter, like):
                return [[leaves[f"{letter}{i}{k}"] for k in range(len(stages))] for i, stages in enumerate(like)]

            outputs = contrasts(of("v", v), of("u", u), y, learn_weights)
            learnable = [key for key in leaves if key[0] == "v" or learn_weights]
            write(folder, name, term, WEIGHTS, leaves | {"labels": y}, learnable, outputs)
    for name, b, classes, size in (("extreme", 6, 5, 1e4), ("single_sample", 1, 5, 1e4), ("hundred_classes", 64, 100, 10.0),
                                   ("equal", 6, 5, 0.0)):
        write(folder, name, "lmcl_logits", {"kd_t": WEIGHTS["kd_t"]}, *logits_case(generator, b, classes, size))
    for name, b, logits, features in (("extreme", 6, 1e4, 1.0), ("single_sample", 1, 1.0, 1.0), ("zero_features", 6, 1.0, 0.0),
                                      ("features_of_1e4", 6, 1.0, 1e4)):
        write(folder, name, "aggregator", {}, *aggregator_case(generator, b, logits, features))


if __name__ == "__main__":
    main()
