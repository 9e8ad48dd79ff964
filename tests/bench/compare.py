"""Runs `cohort-peer bench` and pytorch_step.py in turn and prints what each does; called by against_pytorch.sh.

In a round every side runs once, Cohort between PyTorch's two layouts (with --isa, its two runs side by side there);
every other round runs backwards, so that a machine that slows down favours nobody. A ratio is taken within one round:
the noise of a machine moves single figures far more than it moves these.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from pathlib import Path

# Architecture, image, classes, batch.
WORKLOADS = [
    ("resnet20", "3x32x32", 100, 128),
    ("wrn_16_2", "3x32x32", 100, 64),
    ("resnet8x4", "3x32x32", 100, 64),
    ("resnet8", "1x28x28", 10, 128),
]
LAYOUTS = ["nchw", "channels_last"]
BUSY = 0.5  # load average above which the figures are not to be believed


def arguments():
    parser = argparse.ArgumentParser(prog="against_pytorch.sh [FOLDER]", description=__doc__.splitlines()[0])
    parser.add_argument("--peer", required=True, help=argparse.SUPPRESS)
    parser.add_argument("--rounds", type=int, default=5, help="times that every side runs [5]")
    parser.add_argument("--steps", type=int, default=12, help="measured steps of a run, after 3 that are not [12]")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2], help="thread counts [1 2]")
    known = [workload[0] for workload in WORKLOADS]
    parser.add_argument("--workload", nargs="+", choices=known, default=known, help="only these architectures")
    parser.add_argument("--isa", choices=["avx512", "avx2", "portable"], help="also Cohort held to this instruction set")
    args = parser.parse_args()
    if args.rounds < 1 or args.steps < 1 or min(args.threads) < 1:
        parser.error("rounds, steps and threads are at least 1")
    return args


def run(command, environment):
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True)
    if done.returncode != 0:
        sys.exit(f"compare.py: exit code {done.returncode} from {' '.join(command)}")
    return json.loads(done.stdout)


def sides(args, workload, threads):
    """Name of a side -> a function that runs it once; neighbours in this order are neighbours in time."""
    arch, image, classes, batch = workload
    numbers = {"classes": classes, "batch": batch, "steps": args.steps, "threads": threads}
    common = ["--arch", arch, "--image", image]
    common += [word for name, number in numbers.items() for word in (f"--{name}", str(number))]
    plain = {name: value for name, value in os.environ.items() if name != "COHORT_ISA"}

    def cohort(environment):
        return lambda: run([args.peer, "bench", *common], environment)

    def pytorch(layout):
        script = str(Path(__file__).with_name("pytorch_step.py"))
        # OpenMP's size is fixed when torch is imported.
        environment = plain | {"OMP_NUM_THREADS": str(threads)}
        return lambda: run([sys.executable, script, *common, "--layout", layout], environment)

    order = {"nchw": pytorch("nchw"), "cohort": cohort(plain)}
    if args.isa:
        order["isa"] = cohort(plain | {"COHORT_ISA": args.isa})
    return order | {"channels_last": pytorch("channels_last")}


def measure(args, workload, threads):
    """Side -> one record a round."""
    order = sides(args, workload, threads)
    records = {name: [] for name in order}
    for number in range(args.rounds):
        for name in list(order) if number % 2 == 0 else reversed(order):
            record = order[name]()
            records[name].append(record)
            said = f"{workload[0]}, {threads} threads, round {number + 1}: {name} {record['images_per_s']:.0f} images/s"
            print(said, file=sys.stderr, flush=True)
    return records


def speeds(records, side):
    return [record["images_per_s"] for record in records[side]]


def ratios(records, side, other):
    """Median, least and greatest quotient of two sides within a round."""
    quotients = [a / b for a, b in zip(speeds(records, side), speeds(records, other))]
    return f"{statistics.median(quotients):.2f} | {min(quotients):.2f} | {max(quotients):.2f}"


def greatest(records, side, field):
    return f"{max(record[field] for record in records[side]):.0f}"


def table(results):
    """The comparison with PyTorch's better layout, which is the one with the greater median."""
    yield (
        "| workload | threads | Cohort | PyTorch NCHW | PyTorch channels_last | Cohort / better | min | max "
        "| Cohort MB | PyTorch MB | of it import |"
    )
    yield "|---|---|---|---|---|---|---|---|---|---|---|"
    for (arch, image, _, batch), threads, records in results:
        median = {side: statistics.median(speeds(records, side)) for side in records}
        better = max(LAYOUTS, key=median.get)
        figures = " | ".join(f"{median[side]:.0f}" for side in ("cohort", *LAYOUTS))
        memory = [greatest(records, "cohort", "peak_rss_mb"), greatest(records, better, "peak_rss_mb")]
        memory.append(greatest(records, better, "imported_rss_mb"))
        compared = ratios(records, "cohort", better)
        yield f"| {arch} {image} b{batch} | {threads} | {figures} | {compared} | {' | '.join(memory)} |"


def isa_table(results, isa):
    """What Cohort does when held to less than the processor offers."""
    yield f"| workload | threads | Cohort {isa} | {isa} / default | min | max | {isa} / PyTorch's better | min | max |"
    yield "|---|---|---|---|---|---|---|---|---|"
    for (arch, image, _, batch), threads, records in results:
        better = max(LAYOUTS, key=lambda side: statistics.median(speeds(records, side)))
        figure = f"{statistics.median(speeds(records, 'isa')):.0f}"
        against = f"{ratios(records, 'isa', 'cohort')} | {ratios(records, 'isa', better)}"
        yield f"| {arch} {image} b{batch} | {threads} | {figure} | {against} |"


def machine():
    """What the figures were measured on; parts that the system does not tell are left out."""
    processor = Path("/proc/cpuinfo").read_text()
    fields = dict(line.split("\t", 1) for line in processor.split("\n\n")[0].splitlines() if "\t" in line)
    fields = {name: value.strip("\t: ") for name, value in fields.items()}
    sets = [word for word in ("avx2", "fma", "avx512f") if word in fields.get("flags", "").split()]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    name = fields.get("model name", platform.machine())
    yield f"{name} (family {fields.get('cpu family')}, model {fields.get('model')}), {' '.join(sets)}"
    yield f"{len(os.sched_getaffinity(0))} cores to use, {memory:.0f} GB, Linux {platform.release()}"
    found = "import torch; print('PyTorch', torch.__version__, torch.backends.cpu.get_cpu_capability())"
    yield subprocess.run([sys.executable, "-c", found], stdout=subprocess.PIPE, text=True, check=True).stdout.strip()


def main():
    args = arguments()
    cores = len(os.sched_getaffinity(0))
    if max(args.threads) > cores:
        sys.exit(f"compare.py: {max(args.threads)} threads were asked for, {cores} cores are to be had: --threads less")
    about = list(machine())
    load_before = os.getloadavg()[0]
    workloads = [workload for workload in WORKLOADS if workload[0] in args.workload]
    cases = [(workload, threads) for workload in workloads for threads in args.threads]
    results = [(*case, measure(args, *case)) for case in cases]

    print("\n".join(about))
    print(f"{args.rounds} rounds, {args.steps} measured steps a run, load average before {load_before:.2f}")
    if load_before > BUSY:
        print("The machine was BUSY when this began: do not believe these figures.")
    print("\nImages per second (medians), ratios within a round (median, min, max), peak resident memory (10^6 bytes):\n")
    print("\n".join(table(results)))
    if args.isa:
        print(f"\nCohort with COHORT_ISA={args.isa}:\n")
        print("\n".join(isa_table(results, args.isa)))


main()
