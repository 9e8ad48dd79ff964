"""ReLU whose side can be chosen where an activation is 0 to rounding, and the search for the sides that another program
took.

The gradient of a ReLU network jumps where an input of a ReLU crosses 0. Among millions of activations a few come nearer
to 0 than f32 rounds, and two correct programs then take different sides. Choosing the other side there, and nowhere
else, must make the difference vanish if rounding is its whole cause.
"""

import torch
from torch import nn

# Inputs nearer to 0 than this may lie on either side in f32.
NEAR = 1e-5

# Sides that are changed in one network in one step at most, and activations that are tried for each: a search, not a fit.
FLIPS_MAX, TRIED_MAX = 6, 100


class _State:
    calls, flips, near = 0, frozenset(), None


class _Sided(torch.autograd.Function):
    """A ReLU whose side is chosen on the way back: of an input near 0 the value is the same on either."""

    @staticmethod
    def forward(context, x, place):
        context.place = place
        context.save_for_backward(x > 0)
        return x.clamp(min=0)

    @staticmethod
    def backward(context, gradient):
        return gradient * _sides(context.saved_tensors[0], context.place), None


def _sides(side, place):
    flipped = [i for call, i in _State.flips if call == place]
    if flipped:
        side = side.clone()
        side.view(-1)[flipped] ^= True
    return side


def relu(x):
    place = _State.calls
    _State.calls += 1
    if _State.near is not None:
        flat = x.detach().abs().flatten()
        close = (flat < NEAR).nonzero().flatten().tolist()
        _State.near += [(flat[i].item(), place, i) for i in close]
        return _Sided.apply(x, place)
    if not _State.flips:
        return nn.functional.relu(x)
    return x * _sides(x.detach() > 0, place)


class Relu(nn.Module):
    def forward(self, x):
        return relu(x)


class sided:
    """Inside, these sides are the other ones. Calls of ReLU are counted from 0."""

    def __init__(self, flips):
        self.flips = frozenset(flips)

    def __enter__(self):
        _State.calls, _State.flips = 0, self.flips

    def __exit__(self, *_):
        _State.flips = frozenset()


def watched(forwards):
    """What each of `forwards` gives, made so that `sided` changes gradients through it later, and for each its activations
    near 0: (distance from 0, call, index)."""
    _State.calls, given, near = 0, [], []
    for forward in forwards:
        _State.near = []
        given.append(forward())
        near.append(sorted(_State.near))
    _State.near = None
    return given, near


def search(gap, near, enough):
    """The sides that bring the greatest difference of one network below `enough`, or the distance as low as they can. `gap`
    says of a set of sides (Euclidean distance, greatest difference). The distance decides, since each side that is put
    right shortens it, whatever others still stand wrong."""
    flips = frozenset()
    best = gap(flips)
    while best[1] > enough and len(flips) < FLIPS_MAX:
        found = flip = None
        for _, call, i in near[:TRIED_MAX]:
            measured = gap(flips ^ {(call, i)})
            if measured[0] < (found or best)[0]:
                found, flip = measured, (call, i)
            if measured[0] < best[0] / 2:
                # Among activations this rare, one that explains half of what is left is the one.
                break
        if found is None or found[0] > 0.98 * best[0]:
            break
        best, flips = found, flips ^ {flip}
    return flips
