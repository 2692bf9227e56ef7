"""What precision, memory layout and torch.compile do to the time of a search step, interleaved.

    python benchmarks/search/settings.py [--spaces rnas-cl-s7,mbconv-32] [--batch 64] [--samples 10]
        [--threads 1] [--no-compile]

All variants of a space are timed in one run of shuffled rounds. The teacher is kept small and in
fp32, so that the student's side is seen. Compiling takes its time once, before: it is reported too.
"""

from __future__ import annotations

import argparse
import itertools
import time
from pathlib import Path
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np
from _shared import ReadySteps, new_teacher, say, spread, timed_ms, write_result

from hwnas.core.threads import torch_threads
from hwnas.search.rnas_cl import SearchConfig
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec

if TYPE_CHECKING:
    from collections.abc import Sequence

Variant: TypeAlias = tuple[Literal["fp32", "bf16"], bool, bool]
"""Precision, whether channels last, whether compiled."""

BASELINE = "fp32, channels last"


def main() -> None:
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--spaces", default="rnas-cl-s7,mbconv-32")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-compile", action="store_true", help="leave compiled variants out")
    parser.add_argument("--quick", action="store_true", help="a small space, fp32, channels last")
    parser.add_argument("--out", type=Path, help="another file for the figures")
    given = parser.parse_args()
    if given.quick:
        given.spaces, given.batch, given.samples = "rnas-cl-xs", 16, 6
    variants = all_variants(compiled=not given.no_compile)
    if given.quick:
        variants = [variant for variant in variants if variant[:2] == ("fp32", True)]
    with torch_threads(given.threads):
        runs = [
            one_run(name, variants, given.batch, given.samples) for name in given.spaces.split(",")
        ]
    facts = {"batch": given.batch, "threads": given.threads, "quick": given.quick}
    write_result("settings", {"facts": facts, "baseline": BASELINE, "runs": runs}, given.out)


def all_variants(*, compiled: bool) -> list[Variant]:
    """List all combinations, the baseline first."""
    precisions: tuple[Literal["fp32", "bf16"], ...] = ("fp32", "bf16")
    return list(
        itertools.product(precisions, (True, False), (False, True) if compiled else (False,))
    )


def one_run(name: str, variants: Sequence[Variant], batch: int, samples: int) -> dict[str, object]:
    """Time all variants of one space."""
    space = space_from_spec(space_spec(name))
    ready: dict[str, ReadySteps] = {}
    first_s: dict[str, float] = {}
    failures: dict[str, str] = {}
    for precision, last, compile_ in variants:
        layout = "channels last" if last else "channels first"
        label = f"{precision}, {layout}{', compiled' if compile_ else ''}"
        config = SearchConfig(
            batch=batch, precision=precision, channels_last=last, compile=compile_
        )
        teacher = new_teacher(space, 16, (1, 1, 1), config.attention_size, "fp32")
        steps = ReadySteps(space, teacher, config)
        began = time.perf_counter()
        try:
            steps.step_weights()
            steps.step_choices()
        except Exception as error:  # torch.compile raises many kinds; what it says is a result
            failures[label] = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
            say(f"{name}: {label}: {failures[label]}")
            continue
        first_s[label] = time.perf_counter() - began
        ready[label] = steps
    calls = {
        f"{label}: {kind}": getattr(steps, method)
        for label, steps in ready.items()
        for kind, method in (("weights", "step_weights"), ("choices", "step_choices"))
    }
    timed = timed_ms(calls, samples)
    gains = {}
    for label in ready:
        gains[label] = {
            kind: spread(timed[f"{BASELINE}: {kind}"] / timed[f"{label}: {kind}"])
            for kind in ("weights", "choices")
        }
        say(
            f"{name:<11} {label:<30} "
            + "  ".join(
                f"{kind} {np.median(timed[f'{label}: {kind}']):8.1f} ms {gain['median']:5.2f}x "
                f"({gain['p10']:.2f}-{gain['p90']:.2f})"
                for kind, gain in gains[label].items()
            )
            + f"  first steps {first_s[label]:6.1f} s  n={samples}"
        )
    return {
        "space": name,
        "gain_over_baseline": gains,
        "first_steps_s": first_s,
        "failures": failures,
        "samples_ms": {call: each.tolist() for call, each in timed.items()},
    }


if __name__ == "__main__":
    main()
