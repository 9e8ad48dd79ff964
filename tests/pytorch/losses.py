"""The joint loss of a whole cohort, in which autograd sees all networks at once.

Cross-entropy, Deep Mutual Learning (Zhang et al., CVPR 2018) and Mutual Contrastive Learning (Yang et al., AAAI 2022)
with the ensemble of logits of the official MCL code. Every pair term stands here once, as the papers sum it.
"""

import torch
from torch.nn import functional as F

MCL_DEFAULTS = {"alpha": 0.1, "beta": 0.1, "gamma": 1.0, "lam": 1.0, "tau": 0.1, "kd_t": 3.0, "logit_kd": "last"}
# Those that the meta-update shares are written out in hypergradient.py once more.
LMCL_DEFAULTS = {"alpha": 0.1, "beta": 0.1, "gamma": 1.0, "lam": 1.0, "tau": 0.1, "kd_t": 3.0, "kd": True, "double": True,
                 "matching": "learned"}
MATCH_DIM = 128
DML_DEFAULTS = {"t": 1.0, "reduce": "mean", "target": "each"}


def kl(student, teacher, t):
    """T^2 KL(teacher || student) of rows softened by `t`, mean over rows; the teacher is a constant."""
    p = F.log_softmax(teacher.detach() / t, dim=1)
    return t * t * F.kl_div(F.log_softmax(student / t, dim=1), p, reduction="batchmean", log_target=True)


def kl_of_mean(student, teachers, t):
    """The same against the mean of the teachers' softened probabilities."""
    p = torch.stack([F.softmax(teacher.detach() / t, dim=1) for teacher in teachers]).mean(dim=0)
    return t * t * F.kl_div(F.log_softmax(student / t, dim=1), p, reduction="batchmean")


def contrast(scores, y):
    """Supervised contrast: rows are anchors, the column of an anchor's own index is neither positive nor in the
    denominator; anchors without a positive are skipped."""
    own = torch.eye(len(y), dtype=torch.bool)
    positive = (y[:, None] == y[None, :]) & ~own
    log_p = scores - scores.masked_fill(own, float("-inf")).logsumexp(dim=1, keepdim=True)
    count = positive.sum(dim=1)
    anchors = count > 0
    if not anchors.any():
        return 0.0 * scores.sum()
    rows = -(log_p * positive).sum(dim=1)[anchors] / count[anchors]
    return rows.mean()


def weighted_contrast(scores, y, weight):
    """The same with a weight for each anchor, without renormalising."""
    own = torch.eye(len(y), dtype=torch.bool)
    positive = ((y[:, None] == y[None, :]) & ~own).to(scores.dtype)
    count = positive.sum(dim=1)
    # Finite in place of the own column: one sample alone has no other.
    away = scores - scores.masked_fill(own, -1e30).logsumexp(dim=1, keepdim=True)
    rows = -(away * positive).sum(dim=1) / count.clamp_min(1)
    return (weight * rows * (count > 0)).sum() / (count > 0).sum().clamp_min(1)


def weighted_kl(student, teacher, t, weight):
    p = F.softmax(teacher.detach() / t, dim=1)
    rows = (p * (p.log() - F.log_softmax(student / t, dim=1))).sum(dim=1)
    return t * t * (weight * rows).mean()


def l_mcl(settings, said, y):
    """Layer-wise Mutual Contrastive Learning (Yang et al., TPAMI 2023), as the official code sums it."""
    s = LMCL_DEFAULTS | settings
    total = 0.0
    for logits, _, _, aggregated in said:
        total = total + sum(F.cross_entropy(z, y) for z in [*logits, aggregated])
        if s["kd"]:
            total = total + sum(kl(logits[-1], teacher, s["kd_t"]) for *_, teacher in said)
    pairs = 0.0
    for i, (_, first, match_first, _) in enumerate(said):
        for j, (_, second, match_second, _) in enumerate(said):
            for k, a in enumerate(first):
                for z, b in enumerate(second):
                    aligned = len(first) - k == len(second) - z
                    if i == j or s["matching"] == "one-to-one" and not aligned:
                        continue
                    w = torch.ones(len(y), dtype=a.dtype)
                    if s["matching"] == "learned":
                        w = (match_first[k] * match_second[z]).sum(dim=1).sigmoid().detach()
                    aa, bb, ab, ba = (u @ v.T / s["tau"] for u, v in ((a, a), (b, b), (a, b), (b, a)))
                    for weight, one, other in ((s["alpha"], aa, bb), (s["beta"], ab, ba)):
                        pairs = pairs + weight * (weighted_contrast(one, y, w) + weighted_contrast(other, y, w))
                    for weight, one, other in ((s["gamma"], aa, bb), (s["lam"], ab, ba)):
                        t = s["kd_t"]
                        pairs = pairs + weight * (weighted_kl(one, other, t, w) + weighted_kl(other, one, t, w))
    return total + (pairs if s["double"] else pairs / 2)


def dml(settings, logits):
    s = DML_DEFAULTS | settings
    total = 0.0
    for i, z in enumerate(logits):
        others = [other for j, other in enumerate(logits) if j != i]
        if not others:
            continue
        if s["target"] == "ensemble":
            total = total + kl_of_mean(z, others, s["t"])
        else:
            share = 1 / len(others) if s["reduce"] == "mean" else 1.0
            total = total + share * sum(kl(z, other, s["t"]) for other in others)
    return total


def mcl(settings, logits, embeddings, y):
    s = MCL_DEFAULTS | settings
    networks = range(len(logits))
    total = 0.0
    if embeddings[0] is not None:
        score = {(i, j): embeddings[i] @ embeddings[j].T / s["tau"] for i in networks for j in networks}
        for i in networks:
            total = total + s["alpha"] * contrast(score[i, i], y)
            for j in networks:
                if i != j:
                    # Ordered pairs: each anchors once, and is pulled to the other once.
                    total = total + s["gamma"] * kl(score[i, i], score[j, j], s["kd_t"])
                    total = total + s["beta"] * contrast(score[i, j], y)
                    total = total + s["lam"] * kl(score[i, j], score[j, i], s["kd_t"])
    students = {"off": [], "all": networks, "last": networks if len(logits) == 2 else networks[-1:]}
    ensemble = torch.stack(logits).mean(dim=0)
    for i in students[s["logit_kd"]]:
        total = total + kl(logits[i], ensemble, s["kd_t"])
    return total


def wants_embedding(method):
    """Width of the embedding that a method needs, or None."""
    s = MCL_DEFAULTS | method
    needed = method["name"] in ("mcl", "l-mcl") and any(s[weight] > 0 for weight in ("alpha", "beta", "gamma", "lam"))
    return s.get("feat_dim", 128) if needed else None


def wants_matching(method):
    """Width of the matching features, 0 if L-MCL does without, None for other methods."""
    if method["name"] != "l-mcl":
        return None
    return MATCH_DIM if (LMCL_DEFAULTS | method)["matching"] == "learned" else 0


def joint(method, said, y):
    """The one loss of all networks. `said`: (logits [B, C], embeddings [B, E] or None) of every network in order, for
    L-MCL what `networks.say_stages` gives."""
    if method["name"] == "l-mcl":
        return l_mcl(method, said, y)
    logits = [z for z, _ in said]
    loss = sum(F.cross_entropy(z, y) for z in logits)
    if method["name"] == "dml":
        loss = loss + dml(method, logits)
    elif method["name"] == "mcl":
        loss = loss + mcl(method, logits, [v for _, v in said], y)
    return loss
