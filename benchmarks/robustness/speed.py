"""How long attacks take, beside every other library that has them: one network, samples, threads.

    python benchmarks/robustness/speed.py --rival-python VENV/bin/python
        [--teacher FOLDER] [--data cifar10:FOLDER] [--n 500] [--eps 8/255] [--norm linf]
        [--attacks fgsm,pgd,...,autoattack] [--rounds 3] [--seed 0] [--batch 250] [--threads 1]

See agreement.py for the rivals' environment. In each round every library runs every attack that it
has, in shuffled order, once: what slows the machine for longer than a run hits all alike. Both
sides are two processes that never run at once.

All are timed as a whole: a pass over the images, the attack on those that are classified right, the
verdict, and whatever a library prepares. Where a library attacks all images as they come, it is
spared those that are wrong from the start.
Beside the time on the clock stands that of the CPU, which other programs on a busy machine do not
count in: with one thread and a core to itself an attack takes about as long.
A rival that misses a tenth of what we break is marked: it is faster at another task.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np
from _shared import (
    HAS,
    job_of,
    options_of,
    parser_of,
    rivals_of,
    say,
    subject_of,
    threat_of,
    write_result,
)

from hwnas.core.threads import torch_threads
from hwnas.robustness.attacks.registry import ATTACKS
from hwnas.robustness.attacks.table import run_attacks

if TYPE_CHECKING:
    import argparse

    from _shared import Rivals
    from _subject import Subject

OURS = "hwnas"


def main() -> None:
    """Time, print and write."""
    parser = parser_of(__doc__)
    parser.add_argument("--attacks", default=",".join(ATTACKS))
    parser.add_argument("--libraries", default=",".join(HAS), help="of those installed")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    runs: list[dict[str, Any]] = []
    with torch_threads(given.threads):
        subject = subject_of(given)
        with rivals_of(given, subject) as rivals:
            wanted = [name for name in rivals.versions if name in given.libraries.split(",")]
            pairs = [
                (attack, library)
                for attack in given.attacks.split(",")
                for library in (OURS, *wanted)
                if library == OURS or attack in HAS[library][given.norm]
            ]
            order = np.random.default_rng(given.seed)
            for number in range(given.rounds):
                for index in order.permutation(len(pairs)):
                    attack, library = pairs[index]
                    if library == OURS:
                        run = run_ours(subject, attack, given)
                    else:
                        run = run_theirs(rivals, library, attack, given)
                    runs.append({"attack": attack, "library": library, "round": number, **run})
                    say(f"round {number + 1}: {attack} by {library}, {run['seconds']:.2f} s")
            versions = rivals.versions
    summary = summarized(runs, given.attacks.split(","))
    document = {
        **options_of(given),
        "versions": versions,
        "summary": summary,
        "runs": runs,
    }
    write_result(f"speed_{given.norm}", document, given.out)


def run_ours(subject: Subject, attack: str, given: argparse.Namespace) -> dict[str, Any]:
    """Time one of our attacks as a whole."""
    start, start_cpu = time.perf_counter(), time.process_time()
    outcome = run_attacks(
        subject.network,
        subject.images,
        subject.labels,
        threat_of(given),
        attacks=[attack],
        seed=given.seed,
        batch=given.batch,
        queries=given.queries,
    )
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": time.process_time() - start_cpu,
        "robust": outcome.table.worst_case.value,
        "n": outcome.table.n,
    }


def run_theirs(
    rivals: Rivals, library: str, attack: str, given: argparse.Namespace
) -> dict[str, Any]:
    """Time one of a rival's attacks."""
    answer = rivals.run(job_of(given, library, attack))
    return {
        "seconds": answer["seconds"],
        "cpu_seconds": answer["cpu_seconds"],
        "robust": float(np.mean(~answer["broken"])),
        "n": len(answer["broken"]),
    }


def summarized(runs: list[dict[str, Any]], attacks: list[str]) -> list[dict[str, Any]]:
    """Print and return, for each attack and library, the median and our ratio to it."""
    rows = []
    say(
        f"{'attack':<10} {'library':<14} {'median s':>9} {'min':>8} {'max':>8} {'ratio':>7} "
        f"{'CPU s':>8} {'ratio':>7} robust"
    )
    for attack in attacks:
        mine = [run for run in runs if run["attack"] == attack and run["library"] == OURS]
        for library in (OURS, *HAS):
            found = [run for run in runs if run["attack"] == attack and run["library"] == library]
            if not found:
                continue
            seconds = [run["seconds"] for run in found]
            cpu = [run["cpu_seconds"] for run in found]
            ratios, cpu_ratios = (
                [run[what] / own[what] for run, own in zip(found, mine, strict=True)]
                for what in ("seconds", "cpu_seconds")
            )
            missed = found[0]["robust"] - mine[0]["robust"]
            weaker = missed > 0.1 * (1 - mine[0]["robust"])
            rows.append(
                {
                    "attack": attack,
                    "library": library,
                    "rounds": len(found),
                    "median_s": float(np.median(seconds)),
                    "min_s": min(seconds),
                    "max_s": max(seconds),
                    "times_ours_median": float(np.median(ratios)),
                    "median_cpu_s": float(np.median(cpu)),
                    "times_ours_cpu_median": float(np.median(cpu_ratios)),
                    "robust": found[0]["robust"],
                    "weaker": weaker,
                }
            )
            say(
                f"{attack:<10} {library:<14} {np.median(seconds):9.3f} {min(seconds):8.3f} "
                f"{max(seconds):8.3f} {np.median(ratios):6.2f}x {np.median(cpu):8.3f} "
                f"{np.median(cpu_ratios):6.2f}x {100 * found[0]['robust']:.2f}%"
                + ("  (weaker)" if weaker else "")
            )
    return rows


if __name__ == "__main__":
    main()
