"""One step of a cohort whose backward pass is made many times, with sides of ReLUs chosen otherwise (kinks.py). The other
side of an activation that is 0 to rounding changes the gradient of its own network and nothing else, so that a trial is
one backward pass through one network."""

import torch

import joint
import kinks
import losses
import networks


class Retry:
    """The step of a plan's line from the state that `resume` holds (as joint.train), in f64."""

    def __init__(self, run, data, line, resume):
        images, labels = joint.read_split(data, "train", run["data"].get("train_limit"))
        self.optim, self.lr = run["optim"], line["lr"]
        self.cohort = joint.load_cohort(run, torch.float64, resume and [path / "model.safetensors" for path in resume])
        self.momenta = [
            joint.load_file(path / "optimizer.safetensors") if path else {} for path in resume or [None] * len(self.cohort)
        ]
        x, y = joint.batch_of(images, labels, line["indices"], run["data"], torch.float64)
        say = networks.say_stages if run["method"]["name"] == "l-mcl" else networks.say
        forwards = [lambda network=network: say(network, x) for network in self.cohort]
        said, self.near = kinks.watched(forwards)
        self.loss = losses.joint(run["method"], said, y)

    def sides(self, after, enough):
        """The sides with which every network comes as near as it can to the weights `after`."""
        found = [
            kinks.search(lambda flips: self.gap(index, flips, target), self.near[index], enough)
            for index, target in enumerate(after)
        ]
        return frozenset().union(*found)

    def gap(self, index, flips, target):
        """(Euclidean distance, greatest difference) between the weights of a network after the step and `target`."""
        names, parameters = zip(*(
            pair for pair in self.cohort[index].named_parameters() if not pair[0].startswith("match.")
        ))
        with kinks.sided(flips):
            gradients = torch.autograd.grad(self.loss, parameters, retain_graph=True, allow_unused=True)
        gradients = [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients)]
        most = self.optim.get("clip_norm", 0.0)
        if most > 0:
            norm = torch.stack([g.norm() for g in gradients]).norm()
            gradients = [g * min(1.0, (most / (norm + 1e-6)).item()) for g in gradients]
        gaps = [
            (self.stepped(name, p.detach(), g, self.momenta[index]) - target[name].double()).flatten()
            for name, p, g in zip(names, parameters, gradients)
        ]
        gaps = torch.cat(gaps)
        return gaps.norm().item(), gaps.abs().max().item()

    def stepped(self, name, parameter, gradient, momenta):
        """SGD as PyTorch's, of one parameter."""
        momentum = self.optim.get("momentum", 0.9)
        gradient = gradient + self.optim.get("weight_decay", 5e-4) * parameter
        before = momenta.get(f"{name}.momentum_buffer")
        velocity = gradient if before is None else momentum * before.double() + gradient
        ahead = gradient + momentum * velocity if self.optim.get("nesterov", momentum > 0) else velocity
        return parameter - self.lr * ahead
