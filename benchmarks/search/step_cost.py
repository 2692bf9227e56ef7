"""What a step of the search takes, beside its physical parts, in one interleaved run.

    python benchmarks/search/step_cost.py [--spaces rnas-cl-s7,mbconv-32] [--batch 64]
        [--samples 15] [--precisions fp32,bf16] [--teacher-width 64]
        [--teacher-blocks 2,2,2,2] [--threads 1]

The parts, per batch of 32x32 images:

- `student`: forward and backward of the widest slim network, cross-entropy alone: no masks, no
  maps, no optimizer. In an mbconv space that is the network of the largest option of every block.
- `teacher`: forward of the teacher in inference mode and in its precision, no maps.

A search step is related to their sum round by round. The rest is what the search adds: masks or the
superblocks, attention maps of student and teacher, their distances, losses, and the optimizer.
`latency term` is what holds the budget: expected latency, penalty, and their gradients, alone.
The default teacher has the shape of a ResNet-18 for small images.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from _shared import ReadySteps, new_teacher, say, spread, timed_ms, write_result
from torch.nn import functional

from hwnas.core.threads import torch_threads
from hwnas.search.rnas_cl import SearchConfig
from hwnas.space.memory_format import channels_last
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec

if TYPE_CHECKING:
    from collections.abc import Callable

    from hwnas.distill.teacher import Teacher
    from hwnas.space.chain_space import ChainSpace

STEPS = ("weight step", "choice step")


def main() -> None:
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--spaces", default="rnas-cl-s7,mbconv-32")
    parser.add_argument("--precisions", default="fp32,bf16")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--samples", type=int, default=15)
    parser.add_argument("--teacher-width", type=int, default=64)
    parser.add_argument("--teacher-blocks", default="2,2,2,2")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a small teacher, few samples")
    parser.add_argument("--out", type=Path, help="another file for the figures")
    given = parser.parse_args()
    if given.quick:
        given.batch, given.samples, given.teacher_width, given.teacher_blocks = 16, 6, 16, "1,1,1"
    blocks = tuple(map(int, given.teacher_blocks.split(",")))
    runs = []
    say("                                 student  teacher |  weight step          choice step")
    with torch_threads(given.threads):
        for name in given.spaces.split(","):
            for precision in given.precisions.split(","):
                config = SearchConfig(batch=given.batch, precision=precision)
                space = space_from_spec(space_spec(name))
                teacher = new_teacher(
                    space, given.teacher_width, blocks, config.attention_size, precision
                )
                runs.append(one_run(space, teacher, config, given.samples))
    facts = {
        "batch": given.batch,
        "teacher": {"width": given.teacher_width, "blocks": list(blocks)},
        "threads": given.threads,
        "quick": given.quick,
    }
    write_result("step_cost", {"facts": facts, "runs": runs}, given.out)


def one_run(
    space: ChainSpace, teacher: Teacher, config: SearchConfig, samples: int
) -> dict[str, object]:
    """Time the steps and their parts together; print and return ratios and samples."""
    steps = ReadySteps(space, teacher, config)
    rivals: dict[str, Callable[[], object]] = {
        "student": plain_student(space, steps, config.precision),
        "teacher": lambda: teacher.logits(steps.images),
        "weight step": steps.step_weights,
        "choice step": steps.step_choices,
        "latency term": steps.latency_term,
    }
    timed = timed_ms(rivals, samples)
    parts = timed["student"] + timed["teacher"]
    ratios = {name: spread(timed[name] / parts) for name in STEPS}
    share = spread(timed["latency term"] / timed["choice step"])
    columns = "".join(
        f"| {np.median(timed[name]):8.1f} ms {ratio['median']:5.2f}x "
        f"({ratio['p10']:.2f}-{ratio['p90']:.2f}) "
        for name, ratio in ratios.items()
    )
    say(
        f"{space.spec.name:<12} {config.precision:<5} b{config.batch:<4} n={samples:<3} "
        f"{np.median(timed['student']):8.1f} {np.median(timed['teacher']):8.1f} {columns}"
        f"| latency term {np.median(timed['latency term']):.2f} ms, {100 * share['median']:.2f} %"
    )
    return {
        "space": space.spec.name,
        "precision": config.precision,
        "batch": config.batch,
        "ratio_to_student_and_teacher": ratios,
        "latency_term_share_of_choice_step": share,
        "samples_ms": {name: each.tolist() for name, each in timed.items()},
    }


def plain_student(space: ChainSpace, steps: ReadySteps, precision: str) -> Callable[[], None]:
    """Return forward and backward of the widest slim network."""
    network = channels_last(space.network(space.largest)).train()

    def run() -> None:
        network.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "bf16"):
            logits = network(steps.images)
        torch.autograd.backward(functional.cross_entropy(logits.float(), steps.labels))

    return run


if __name__ == "__main__":
    main()
