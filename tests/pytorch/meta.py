"""The meta-update of L-MCL in PyTorch: the hypergradient by autograd through the unrolled steps of all networks in one
graph (hypergradient.py), then a step of the matching's own optimiser.
"""

import torch
from torch.func import functional_call

import hypergradient


def follows(run, step, images):
    """Whether a meta-update follows a step; the steps of every epoch are counted anew."""
    method = run["method"]
    learned = method["name"] == "l-mcl" and method.get("matching", "learned") == "learned"
    frequency = method.get("meta_freq", 50) if learned else 0
    return frequency > 0 and step % (images // run["data"]["batch"]) % frequency == 0


def update(cohort, x, y, lr, sgd):
    """Changes the matching by its gradient and the running statistics by one pass; `sgd` None: the statistics only."""
    if sgd is not None:
        sgd.param_groups[0]["lr"] = lr
        for (i, name), gradient in hypergradient_of(cohort, x, y, lr).items():
            cohort[i].get_parameter(name).grad = gradient
        sgd.step()
    with torch.no_grad():
        for network in cohort:
            network(x)


def hypergradient_of(cohort, x, y, lr):
    """By (network, name)."""
    parameters = [{name: p.detach().clone() for name, p in network.named_parameters()} for network in cohort]

    def say(p, x, i):
        buffers = {name: buffer.clone() for name, buffer in cohort[i].named_buffers()}
        return functional_call(cohort[i], p | buffers, (x,))

    return hypergradient.exact(parameters, x, y, lr, say)[0]
