"""What robustness objectives add to a search's steps, beside plain steps, in one interleaved run.

    python benchmarks/robustness/objective_cost.py [--spaces rnas-cl-xs,rnas-cl-s7,mbconv-32]
        [--batch 64] [--samples 10] [--teacher-width 64] [--teacher-blocks 2,2,2,2] [--threads 1]
        [--crown] [--quick]

For each space, per batch of its images:

- `choice step`, `weight step`: plain, without an objective.
- `jacobian`, `certified`, `combined`: a step of the choices that has the objective, with its
  default settings; `jacobian, all rows` with exact rows; `certified, crown-ibp` with --crown.

Two ratios are taken round by round. Per step: a step that has the objective beside a plain step of
the choices. Amortized: the mean step of choices, as only one of `objective_every` has it. The
targets, at most 1.5 for `jacobian` and 2 for `certified`, are of the amortized one. What all steps
of an epoch take, with one step of the weights for each of the choices, is shown besides.

The default teacher has the shape of a ResNet-18 for small images; with a smaller one, steps are
cheaper and the ratios larger.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # what the benchmarks of the search share

from search._shared import ReadySteps, new_teacher, say, spread, timed_ms, write_result

from hwnas.core.threads import torch_threads
from hwnas.search.rnas_cl import SearchConfig
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec

if TYPE_CHECKING:
    from collections.abc import Callable

RESULT = Path(__file__).parents[1] / "results" / "robustness" / "objective_cost.json"
TARGETS = {"jacobian": 1.5, "certified": 2.0}
"""Amortized ratios that are asked for."""


def main() -> None:
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--spaces", default="rnas-cl-xs,rnas-cl-s7,mbconv-32")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--samples", type=int, default=10)
    parser.add_argument("--teacher-width", type=int, default=64)
    parser.add_argument("--teacher-blocks", default="2,2,2,2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--crown", action="store_true", help="time crown-ibp too, which is slow")
    parser.add_argument("--quick", action="store_true", help="a small space and teacher")
    parser.add_argument("--out", type=Path, default=RESULT, help="another file for the figures")
    given = parser.parse_args()
    if given.quick:
        given.spaces, given.batch, given.samples = "rnas-cl-xs", 32, 6
        given.teacher_width, given.teacher_blocks = 8, "1,1"
    with torch_threads(given.threads):
        runs = [one_run(name, given) for name in given.spaces.split(",")]
    facts = {
        "batch": given.batch,
        "teacher": {"width": given.teacher_width, "blocks": given.teacher_blocks},
        "threads": given.threads,
        "quick": given.quick,
        "targets": TARGETS,
    }
    write_result("objective_cost", {"facts": facts, "runs": runs}, given.out)


def variants(plain: SearchConfig, *, crown: bool) -> dict[str, SearchConfig]:
    """Return the settings that are timed, by name."""
    found = {name: replace(plain, objective=name) for name in ("jacobian", "certified", "combined")}
    found["jacobian, all rows"] = replace(plain, objective="jacobian", objective_classes=0)
    if crown:
        found["certified, crown-ibp"] = replace(
            plain, objective="certified", objective_bound="crown-ibp"
        )
    return found


def one_run(name: str, given: argparse.Namespace) -> dict[str, object]:
    """Time all steps of one space together; print and return ratios and samples."""
    plain = SearchConfig(batch=given.batch)
    space = space_from_spec(space_spec(name))
    blocks = tuple(map(int, given.teacher_blocks.split(",")))
    teacher = new_teacher(space, given.teacher_width, blocks, plain.attention_size, "fp32")
    base = ReadySteps(space, teacher, plain)
    rivals: dict[str, Callable[[], object]] = {
        "weight step": base.step_weights,
        "choice step": base.step_choices,
    }
    settings = variants(plain, crown=given.crown)
    for variant, config in settings.items():
        rivals[variant] = ReadySteps(space, teacher, config).step_choices
    timed = timed_ms(rivals, given.samples)
    choice, weight = timed["choice step"], timed["weight step"]
    say(
        f"{name}: batch {given.batch}, n={given.samples}, "
        f"weight step {np.median(weight):.1f} ms, choice step {np.median(choice):.1f} ms"
    )
    found: dict[str, Any] = {}
    for variant, config in settings.items():
        every = config.objective_every
        mean = (timed[variant] + (every - 1) * choice) / every
        found[variant] = {
            "images": config.objective_images,
            "every": every,
            "rows": config.objective_classes,
            "per_step": spread(timed[variant] / choice),
            "amortized": spread(mean / choice),
            "search": spread((weight + mean) / (weight + choice)),
        }
        shown = found[variant]
        target = TARGETS.get(variant)
        verdict = ""
        if target is not None:
            met = shown["amortized"]["median"] <= target
            verdict = f"  target {target:g}: {'met' if met else 'MISSED'}"
        say(
            f"  {variant:<22} {np.median(timed[variant]):9.1f} ms  per step "
            f"{shown['per_step']['median']:5.2f}x  amortized {shown['amortized']['median']:5.2f}x "
            f"({shown['amortized']['p10']:.2f}-{shown['amortized']['p90']:.2f})  search "
            f"{shown['search']['median']:5.2f}x{verdict}"
        )
    return {
        "space": name,
        "objectives": found,
        "samples_ms": {rival: each.tolist() for rival, each in timed.items()},
    }


if __name__ == "__main__":
    main()
