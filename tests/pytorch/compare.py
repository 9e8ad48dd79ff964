"""Compares Cohort with the joint training of joint.py: same initial weights, same batches, then all tensors.

    pip install torch numpy safetensors
    cargo build --release --bin localhost
    python tests/pytorch/compare.py --localhost target/release/localhost --data examples/data/fashion-mnist

Two questions, for each case:

* `step`: from each of Cohort's own checkpoints, one joint step of PyTorch in f64; does it end at Cohort's next checkpoint?
  The greatest absolute difference of a weight over all steps. `sided`, then batch-norm statistics: the same after the
  steps that are off by more than 1e-6 were repeated with the other side of a ReLU at activations within 1e-5 of 0
  (kinks.py); `flips`: how many there were in all steps. What is left is what rounding at a kink does not explain.
* `run`: all steps from the initial weights without correction, against PyTorch in f32; `run/64`, in f64. `rounding` is
  what PyTorch in f32 differs from itself in f64 for the kinks' sake alone. Only beside it can `run` be judged.

`moved` is the greatest movement of a weight, `logits` the greatest difference of `eval --logits` to PyTorch on the final
weights, `meta` and `cosine` the greatest relative error and 1 - cosine of the change that a meta-update of L-MCL makes,
against double backward in f64 through the unrolled steps from the same weights (the columns of a step leave the matching
out), `plan` whether the coordinator's batch plan is that of plan.py. A case fails if `sided` or its statistics are beyond
2e-6 (times `moved` where that is more than 1: fresh networks of L-MCL go that far), the logits beyond 1e-4, the cosine's beyond 1e-3, or if the plan differs. Exit 1 if one fails. `--only REGEX` picks
cases; `--repeat` adds bitwise repetitions.
"""

import argparse
import pathlib
import re
import sys
import tempfile

import torch

import joint
import kinks
import meta
import networks
from cluster import STEPS, Failed, Programs, make_run, short_data, write_run
from retry import Retry

STEP_MAX, LOGITS_MAX = 2e-6, 1e-4

# Of 1 - cosine between what a meta-update changed and what double backward says.
COSINE_GAP_MAX = 1e-3

# A step that is off by less needs no explanation.
EXACT = 1e-6

PAIRS = {"batch": 20, "sampler": "per-class"}
SHUFFLED = {"batch": 64, "sampler": "shuffle"}
# 200 images: three batches of 64 an epoch; 100: five of 20.
FEW_SHUFFLED = SHUFFLED | {"train_limit": 200}
FEW_PAIRS = PAIRS | {"train_limit": 100}
TWO = ["resnet8", "wrn_10_1"]
THREE = ["resnet8", "wrn_10_1", "resnet14"]


def case(name, peers, method, data, **rest):
    return {"name": name, "peers": peers, "method": method, "data": data, **rest}


def cases():
    dml, mcl = {"name": "dml"}, {"name": "mcl"}
    cohorts = ((2, TWO), (3, THREE))
    samplers = (("pairs", PAIRS), ("shuffle", SHUFFLED))
    yield case("alone-2-shuffle", TWO, {"name": "alone"}, SHUFFLED)
    for method in (dml, mcl):
        for count, peers in cohorts:
            for sampler, data in samplers:
                yield case(f"{method['name']}-{count}-{sampler}", peers, method, data)
    for count, peers in cohorts:
        for students in ("off", "all"):
            yield case(f"mcl-{count}-kd-{students}", peers, mcl | {"logit_kd": students}, PAIRS)
    yield case("mcl-3-equal-weights", THREE, mcl | {"gamma": 0.1, "lam": 0.1, "tau": 0.2, "kd_t": 4.0}, PAIRS)
    yield case("mcl-2-narrow", TWO, mcl | {"feat_dim": 16}, PAIRS)
    yield case("mcl-2-logits-only", TWO, mcl | {"alpha": 0, "beta": 0, "gamma": 0, "lam": 0}, SHUFFLED)
    yield case("mcl-2-icl-only", TWO, mcl | {"alpha": 0, "gamma": 0, "lam": 0, "logit_kd": "off"}, PAIRS)
    yield case("mcl-3-orphans", THREE, mcl, {"batch": 12, "sampler": "shuffle"})
    yield case("mcl-1", ["resnet8"], mcl, PAIRS)
    l_mcl = {"name": "l-mcl", "meta_freq": 0}
    for count, peers in cohorts:
        for sampler, data in samplers:
            yield case(f"l-mcl-{count}-{sampler}", peers, l_mcl, data)
        for precision in ("f32", "f64"):
            learned = l_mcl | {"meta_freq": 3, "meta_precision": precision}
            yield case(f"l-mcl-{count}-meta-{precision}", peers, learned, FEW_PAIRS)
    # So slow that few activations change sides, but one is enough to part two programs over a whole run.
    yield case("l-mcl-2-slow", TWO, l_mcl, PAIRS, optim={"lr": 1e-3})
    yield case("l-mcl-2-orphans", TWO, l_mcl, {"batch": 12, "sampler": "shuffle"})
    yield case("l-mcl-3-unequal", ["resnet6", "wrn_10_1", "resnet8"], l_mcl | {"feat_dim": 16}, PAIRS)
    yield case("l-mcl-3-one-to-one", THREE, l_mcl | {"matching": "one-to-one", "kd": False}, PAIRS)
    yield case("l-mcl-2-uniform", TWO, l_mcl | {"matching": "uniform", "double": False}, PAIRS)
    yield case("dml-3-sum", THREE, dml | {"reduce": "sum"}, SHUFFLED)
    yield case("dml-3-ensemble", THREE, dml | {"target": "ensemble"}, SHUFFLED)
    yield case("dml-2-t4", TWO, dml | {"t": 4.0}, SHUFFLED)
    yield case("dml-2-cosine", TWO, dml, FEW_PAIRS | {"sampler": "shuffle"})
    yield case("mcl-2-cosine", TWO, mcl, FEW_PAIRS)
    yield case("dml-2-multistep", TWO, dml, FEW_SHUFFLED, optim={"schedule": "multistep", "milestones": [1, 3]})
    yield case("dml-2-warmup", TWO, dml, FEW_SHUFFLED, optim={"warmup_epochs": 2})
    yield case("mcl-2-warmup-constant", TWO, mcl, FEW_SHUFFLED, optim={"warmup_epochs": 3, "schedule": "constant"})
    yield case("dml-2-no-decay", TWO, dml, SHUFFLED, optim={"weight_decay": 0.0})
    yield case("dml-2-decay-0.1", TWO, dml, SHUFFLED, optim={"weight_decay": 0.1})
    yield case("dml-2-plain-momentum", TWO, dml, SHUFFLED, optim={"nesterov": False})
    yield case("dml-2-no-momentum", TWO, dml, SHUFFLED, optim={"momentum": 0.0})
    yield case("mcl-2-clip", TWO, mcl, PAIRS, optim={"clip_norm": 0.5})
    yield case("dml-3-clip", THREE, dml, SHUFFLED, optim={"clip_norm": 0.5})
    yield case("mcl-2-normalize", TWO, mcl, PAIRS | {"normalize": {"mean": [0.5], "std": [0.25]}})
    yield case("mcl-2-wider", ["resnet20", "wrn_16_2"], mcl, PAIRS)
    yield case("dml-2-x4", ["resnet8x4", "wrn_16_1"], dml, PAIRS)


def difference(a, b):
    """(over weights, over batch-norm statistics); infinite if names, shapes or counters differ, or on NaN."""
    if a.keys() != b.keys() or any(a[key].shape != b[key].shape for key in a):
        return float("inf"), float("inf")
    worst = [0.0, 0.0]
    for key in a:
        gap = (a[key].double() - b[key].double()).abs().max().item()
        if key.endswith("num_batches_tracked") and gap != 0:
            gap = float("inf")
        kind = int("running_" in key or "num_batches" in key)
        worst[kind] = max(worst[kind], gap if gap == gap else float("inf"))
    return tuple(worst)


def worst_of(pairs):
    return tuple(max(column) for column in zip(*(difference(a, b) for a, b in pairs)))


@torch.no_grad()
def logit_gap(programs, run, folder, data, finals):
    """Greatest difference of test logits between `eval` and torch on the weights that Cohort ended with."""
    images, _ = joint.read_split(data, "t10k")
    worst = 0.0
    x = joint.pixels(images, {"dataset": "fashion-mnist"}, torch.float32)
    for peer, final, network in zip(run["peer"], finals, joint.load_cohort(run, torch.float32, finals)):
        expected, _ = networks.say(network.eval(), x)
        out = folder / f"logits-{peer['name']}.safetensors"
        said = programs.logits(peer["arch"], final, data, out)
        worst = max(worst, (said - expected).abs().max().item())
    return worst


def step_gap(run, data, lines, states, steps):
    """(weights, weights sided, statistics sided, sides changed), the greatest over `steps`, each made from the state in
    which Cohort began it. `states`: by completed steps, the checkpoint's folder of every peer."""
    raw, sided, flips = [], [], 0
    for step in steps:
        after = [joint.load_file(path / "model.safetensors") for path in states[step + 1]]

        def gap(sides):
            with kinks.sided(sides):
                cohort = joint.train(run, data, [lines[step]], "f64", states.get(step), learn_matching=False)
            return worst_of([(but_matching(a), but_matching(b.state_dict())) for a, b in zip(after, cohort)])

        begun = best = gap(())
        if begun[0] > EXACT:
            sides = Retry(run, data, lines[step], states.get(step)).sides(after, EXACT)
            # The whole step once more: what the search found is judged by the reference, statistics and all.
            best = gap(sides)
            flips += len(sides)
        raw.append(begun[0])
        sided.append(best)
    return max(raw), *(max(column) for column in zip(*sided)), flips


def but_matching(state):
    """What a meta-update changes is compared by itself, from the weights that Cohort made it with."""
    return {key: value for key, value in state.items() if not key.startswith("match.")}


def meta_gap(run, data, lines, states):
    """(relative error, 1 - cosine) of what meta-updates change of the matching, against double backward in f64; the
    greatest of all. 0 if there are none."""
    images, labels = joint.read_split(data, "train", run["data"].get("train_limit"))
    worst = [0.0, 0.0]
    for step, line in enumerate(lines):
        if not meta.follows(run, line["step"], len(labels)):
            continue
        after = [joint.load_file(path / "model.safetensors") for path in states[step + 1]]
        begun = states.get(step) or [None] * len(after)
        before = [joint.load_file(path / "model.safetensors" if path else peer["init"])
                  for path, peer in zip(begun, run["peer"])]
        cohort = joint.load_cohort(run, torch.float64, [
            {key: old[key] if key.startswith("match.") else value for key, value in new.items()}
            for old, new in zip(before, after)
        ])
        sgd = joint.optimizers(run["optim"], cohort)
        for network, path in zip(cohort, states.get(step, [])):
            joint.resume_momenta(sgd, network, path, torch.float64)
        x, y = joint.batch_of(images, labels, line["indices"], run["data"], torch.float64)
        meta.update(cohort, x, y, line["lr"], sgd[1])

        def changes(new):
            return torch.cat([(a[key].double() - b[key].double()).flatten()
                              for a, b in zip(new, before) for key in b if key.startswith("match.")])

        ours, exact = changes(after), changes([network.state_dict() for network in cohort])
        error = ((ours - exact).norm() / exact.norm()).item()
        cosine = (1 - (ours @ exact) / (ours.norm() * exact.norm())).item()
        print(f"  meta-update after step {step}: {error:.2e} of a change of {exact.norm():.2e}, 1 - cosine {cosine:.1e}")
        worst = [max(worst[0], error), max(worst[1], cosine)]
    return worst


def moved(before, after):
    keys = [key for key in before if "running_" not in key and "num_batches" not in key]
    return max((before[key] - after[key]).abs().max().item() for key in keys)


def compare(programs, spec, root, data, steps):
    """One case; prints its line of figures; whether it passes."""
    folder = root / spec["name"]
    run = make_run(folder, spec)
    lines, plan_words = programs.plan(run, folder, data)
    states = programs.states(run, folder, data)
    finals = [path / "model.safetensors" for path in states[STEPS]]
    ours = [joint.load_file(path) for path in finals]
    *step, flips = step_gap(run, data, lines, states, steps or range(STEPS))
    whole = [float("nan")] * 6
    if not steps:
        single = [network.state_dict() for network in joint.train(run, data, lines, "f32")]
        double = [network.state_dict() for network in joint.train(run, data, lines, "f64")]
        pairs = ((ours, single), (ours, double), (single, double))
        whole = [gap for a, b in pairs for gap in worst_of(zip(a, b))]
    numbers = [
        *step,
        *whole,
        max(moved(joint.load_file(peer["init"]), last) for peer, last in zip(run["peer"], ours)),
        logit_gap(programs, run, folder, data, finals),
        *meta_gap(run, data, lines, states),
    ]
    furthest = numbers[-4]
    passed = max(step[1:]) < STEP_MAX * max(1.0, furthest) and numbers[-3] < LOGITS_MAX and plan_words != "DIFFERS"
    passed &= numbers[-1] < COSINE_GAP_MAX
    cells = [spec["name"], *(f"{number:.1e}" for number in numbers), flips, plan_words, "ok" if passed else "FAILS"]
    print(row(cells), flush=True)
    return passed


HEAD = "case step sided stats run stats run/64 stats rounding stats moved logits meta cosine flips plan verdict".split()


def row(cells):
    return f"{cells[0]:<22}" + " ".join(f"{cell:<8}" for cell in cells[1:])


def repeat(programs, root, data):
    """Runs two cases again, and with another number of threads: the files of weights must be equal to the byte."""
    passed = True
    for spec in (case("mcl-3-again", THREE, {"name": "mcl"}, PAIRS), case("dml-2-again", TWO, {"name": "dml"}, SHUFFLED)):
        folder = root / spec["name"]
        run = make_run(folder, spec)
        write_run(folder, run, STEPS, STEPS)
        outs = {}
        for name, threads in (("first", 1), ("second", 1), ("two-threads", 2), ("three-threads", 3)):
            peers = programs.cohort(folder, data, folder / name, threads)
            outs[name] = {
                (peer, file): (path / f"checkpoint-{STEPS}" / file).read_bytes()
                for peer, path in peers.items()
                for file in ("model.safetensors", "optimizer.safetensors")
            }
        for name in ("second", "two-threads", "three-threads"):
            different = [f"{peer}/{file}" for (peer, file), blob in outs[name].items() if blob != outs["first"][peer, file]]
            print(f"{spec['name']:<24} first = {name}: {'bitwise' if not different else f'DIFFER {different}'}")
            passed &= not different
    return passed


def survives(work, programs, *rest):
    """What `work` says, or false with Cohort's words if one of its programs failed."""
    try:
        return work(programs, *rest)
    except Failed as failure:
        print(failure, flush=True)
        return False


def main():
    parser = argparse.ArgumentParser(description="Compares Cohort with a joint training in PyTorch.")
    parser.add_argument("--localhost", required=True, help="the binary `localhost`")
    parser.add_argument("--coordinator", help="cohort-coordinator, if `localhost` is not to print the plan")
    parser.add_argument("--data", type=pathlib.Path, required=True, help="folder of Fashion-MNIST's IDX files")
    parser.add_argument("--work", type=pathlib.Path, help="folder for everything that is written [a temporary one]")
    parser.add_argument("--only", default="", help="regular expression of case names")
    parser.add_argument("--steps", type=lambda text: [int(step) for step in text.split(",")], default=[],
                        help="only these steps, such as 0,3,9, and no whole runs: quicker")
    parser.add_argument("--repeat", action="store_true", help="bitwise repetitions as well")
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as temporary:
        # A folder of its own for each call: a run that finds its own state goes on from there.
        root = pathlib.Path(tempfile.mkdtemp(prefix="parity-", dir=args.work or temporary))
        data = short_data(args.data, root / "data")
        programs = Programs(args.localhost, args.coordinator)
        print(row(HEAD), flush=True)
        chosen = [spec for spec in cases() if re.search(args.only, spec["name"])]
        passed = [survives(compare, programs, spec, root, data, args.steps) for spec in chosen]
        if args.repeat:
            passed.append(survives(repeat, programs, root, data))
    sys.exit(0 if passed and all(passed) else 1)


if __name__ == "__main__":
    main()
