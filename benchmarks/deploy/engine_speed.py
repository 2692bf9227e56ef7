"""ONNX Runtime's engine, as `hwnas export` makes it, beside what one would run without it.

Asked: on this processor at batch 1 at least 4 times as fast as PyTorch's eager mode, and no slower
than the best of ONNX Runtime's default sessions of at most as many threads: the interval of its
median does not lie above that one's. An engine has the threads of its target, which its latency
table was measured with: one by default, or all cores. Both race. torch.compile and OpenVINO stand
beside them. Engines are made, opened, compared and timed by the functions of `hwnas export` and
`hwnas bench`. On a busy machine nothing is judged: calls that take longer are interrupted more
often, so engines look faster beside PyTorch than they are.

The networks are the largest of each space, untrained: what a network takes depends on its shape,
not on what it has learned.

    python benchmarks/deploy/engine_speed.py [--spaces rnas-cl-s7,rnas-cl-xs] [--batches 1,8,64]
        [--threads 1,2]
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
import tempfile
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json
from hwnas.core.environment import provenance, this_device, usable_cores
from hwnas.core.progress import SILENT
from hwnas.deploy.making import SOURCE_FILE, EngineModel, Recipe, make_engines
from hwnas.deploy.race import race
from hwnas.deploy.rivals import EAGER, engines_of, rivals_of
from hwnas.report.bench_picture import bench_svg
from hwnas.space.registry import space_from_spec
from hwnas.space.spec import space_spec
from hwnas.stages.bench import MOST_NOISY, lines_of
from hwnas_export.onnx_export import onnx_from_module
from hwnas_profilers.timing import TimingSettings

if TYPE_CHECKING:
    from hwnas.deploy.race import Race

RESULTS = Path(__file__).parents[1] / "results" / "deploy"
TARGET = "onnxruntime-cpu"
DEFAULT_SESSIONS = "ONNX Runtime default"
ASKED_TIMES_EAGER = 4.0


def main() -> None:
    """Measure, print, and write what was measured."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--spaces", default="rnas-cl-s7,rnas-cl-xs")
    parser.add_argument("--batches", default="1,8,64")
    parser.add_argument("--threads", default=f"1,{usable_cores()}")
    parser.add_argument("--relative-width", type=float, default=0.005)
    parser.add_argument("--compile-limit-s", type=float, default=600.0)
    parser.add_argument("--quick", action="store_true", help="batch 1, few samples, no compiler")
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    settings = TimingSettings.for_networks(relative_width=given.relative_width)
    if given.quick:
        given.batches, given.compile_limit_s = "1", 0.0
        settings = TimingSettings.quick()
    batches = tuple(map(int, given.batches.split(",")))
    runs: list[dict[str, Any]] = []
    counts = sorted(set(map(int, given.threads.split(","))))
    for name, threads in product(given.spaces.split(","), counts):
        found, facts = one_race(name, batches, threads, settings, given.compile_limit_s)
        say(
            f"\n{name}, engine of {threads} threads: {facts['params']:,} parameters; "
            f"session: {facts['session'] or 'as usual'}"
        )
        for line in lines_of(found.lanes):
            ratio = f"{line.times_eager:6.2f}x eager" if line.times_eager else ""
            say(
                f"  batch {line.batch:<3} {line.name:<32} {line.median_us:10.1f} us "
                f"({line.low_us:.1f} to {line.high_us:.1f}; p10 {line.p10_us:.1f}, p90 "
                f"{line.p90_us:.1f}; n={line.n}) {line.images_per_s:9,.0f}/s {ratio}"
            )
        for absence in found.absent:
            say(f"  batch {absence.batch:<3} {absence.name:<32} not timed: {absence.reason}")
        verdict = judged(found, threads)
        say(f"  {verdict['text']}; noisy rounds {found.noisy_rounds} of {found.rounds}")
        runs.append(
            {"space": name, "threads": threads, "facts": facts, "verdict": verdict, "race": found}
        )
        given.out.mkdir(parents=True, exist_ok=True)
        picture = bench_svg(found.lanes, this_device().name)
        write_atomically(given.out / f"engine_speed_{name}_{threads}.svg", picture)
    document = {
        "benchmark": "deploy/engine_speed",
        "quick": given.quick,
        "settings": dataclasses.asdict(settings),
        "runs": runs,
        "provenance": provenance(),
    }
    path = given.out / "engine_speed.json"
    write_atomically(path, encode_json(document, indent=1))
    say(f"written: {path}")


def one_race(
    name: str,
    batches: tuple[int, ...],
    threads: int,
    settings: TimingSettings,
    compile_limit_s: float,
) -> tuple[Race, dict[str, Any]]:
    """Make the engine of a space's largest network, and let it race."""
    space = space_from_spec(space_spec(name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        twin = space.network(space.largest).eval()
    shape = space.spec.image_shape
    model = onnx_from_module(twin, (1, *shape), dynamic_batch=True).SerializeToString()
    recipe = Recipe(
        threads=threads,
        batch=1,
        batches=(1, 1, max(batches)),
        class_names=tuple(map(str, range(space.spec.classes))),
        image_shape=shape,
        pixel_range=(0.0, 1.0),
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        (folder / SOURCE_FILE).write_bytes(model)
        made = make_engines(
            folder, [TARGET], lambda _: EngineModel(content=model), recipe, progress=SILENT
        )
        engines = engines_of(folder, made.cards)
        rivals = rivals_of(twin, model, shape, threads=threads, engines=engines)
        found = race(
            (*engines, *rivals),
            twin,
            shape,
            batches=batches,
            threads=threads,
            settings=settings,
            compile_limit_s=compile_limit_s,
        )
    facts = {
        "genotype": "largest",
        "image_shape": list(shape),
        "params": sum(parameter.numel() for parameter in twin.parameters()),
        "session": made.cards[0].session,
    }
    return found, facts


def judged(found: Race, threads: int) -> dict[str, Any]:
    """Judge batch 1 by the targets. The session that chooses its threads takes all cores."""
    at_one = {lane.name: lane.latency for lane in found.lanes if lane.batch == 1}
    defaults = {
        key: each
        for key, each in at_one.items()
        if key.startswith(f"{DEFAULT_SESSIONS},")
        or (key == DEFAULT_SESSIONS and threads >= usable_cores())
    }
    if TARGET not in at_one or EAGER not in at_one or not defaults:
        return {"text": "not judged: batch 1 was not timed"}
    if found.noisy_rounds > MOST_NOISY * found.rounds:
        return {"text": "NOT JUDGED, and of no use as figures: the machine was busy"}
    engine = at_one[TARGET]
    best = min(defaults, key=lambda key: defaults[key].median_us)
    times = at_one[EAGER].median_us / engine.median_us
    is_no_slower = engine.low_us <= defaults[best].high_us
    ratio = engine.median_us / defaults[best].median_us
    return {
        "times_eager": times,
        "fast_enough": times >= ASKED_TIMES_EAGER,
        "best_default": best,
        "ratio_to_best_default": ratio,
        "no_slower_than_default": is_no_slower,
        "text": f"batch 1: {times:.2f}x eager (asked {ASKED_TIMES_EAGER:g}x: "
        f"{'met' if times >= ASKED_TIMES_EAGER else 'MISSED'}), {ratio:.3f} of the latency of the "
        f"best default, {best} (no slower: {'met' if is_no_slower else 'MISSED'})",
    }


def say(text: str = "") -> None:
    """Print a line at once."""
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
