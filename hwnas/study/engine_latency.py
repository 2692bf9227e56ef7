"""Latencies of a study's engines: all of them timed side by side, in one session."""

from __future__ import annotations

from contextlib import ExitStack
from typing import TYPE_CHECKING

import numpy as np

from hwnas.core.artifacts import write_atomically
from hwnas.core.decoding import encode_json
from hwnas.core.environment import provenance
from hwnas.core.errors import ArtifactError, MissingDependencyError, TargetError
from hwnas.core.time_limit import stop_if_time_is_up
from hwnas.deploy.engines import engine_card, made_elsewhere, open_runner
from hwnas.search.records import read_derivation
from hwnas.study.collect import architecture_of
from hwnas.study.gather import ENGINE_LATENCY_FILE, read_engine_session
from hwnas.study.latency import EngineSession, engine_place
from hwnas_profilers.profiler import normal_input
from hwnas_profilers.statistics import summarize
from hwnas_profilers.timing import LOADINGS, time_interleaved, without_odd_loadings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from hwnas.core.progress import Progress
    from hwnas.deploy.records import EngineCard
    from hwnas.study.workshop import Goal
    from hwnas_profilers.timing import TimingSettings


def measure_engines(
    goals: Sequence[Goal], out: Path, *, may_stop: bool, progress: Progress
) -> None:
    """Time all engines in one session, unless they were: one per architecture and target.

    What cannot be measured here is said and left out, as in `measure_networks`.

    Args:
        goals: Arms and seeds whose work is done.
        out: Folder of the study.
        may_stop: Whether a time limit counts: not where nothing else was done in this run.
        progress: Where to report.

    Raises:
        UnfinishedError: The time limit that holds is over.
    """
    engines = {
        engine_place(architecture_of(goal), target): (goal, target)
        for goal in goals
        for target in goal.engines
    }
    before = read_engine_session(out)
    if not engines or (before is not None and before.engines.keys() >= engines.keys()):
        return
    try:
        cards = {
            name: engine_card(goal.engines[target].path, target)
            for name, (goal, target) in engines.items()
        }
        elsewhere = next(filter(None, map(made_elsewhere, cards.values())), "")
        if elsewhere:
            progress.say(f"study: engines are not timed here: {elsewhere}")
            return
        if may_stop:
            stop_if_time_is_up("the study")
        progress.say(f"study: {len(engines)} engines are timed side by side")
        settings = next(iter(goals)).config.table.network_timing
        session = _session(engines, cards, settings, progress)
    except (TargetError, ArtifactError, MissingDependencyError) as error:
        progress.say(f"study: engines are not timed: {error.message}")
        return
    write_atomically(out / ENGINE_LATENCY_FILE, encode_json(session, indent=1))


def _session(
    engines: Mapping[str, tuple[Goal, str]],
    cards: Mapping[str, EngineCard],
    settings: TimingSettings,
    progress: Progress,
) -> EngineSession:
    generator = np.random.default_rng(settings.seed)
    with ExitStack() as stack:
        samplers = []
        for name, (goal, target) in engines.items():
            card = cards[name]
            bundle = goal.engines[target].path
            batch = max(_batch(goal), card.batches[0])
            for _ in range(LOADINGS):
                runner = stack.enter_context(open_runner(bundle, card, progress=progress))
                samplers.append(runner.sampler_on(normal_input(runner, generator, batch)))
        timed = time_interleaved(samplers, settings.shared_by(LOADINGS), progress=progress)
    statistics = [summarize(each.samples_us) for each in without_odd_loadings(timed, LOADINGS)]
    return EngineSession(
        engines=dict(zip(engines, statistics, strict=True)), provenance=provenance()
    )


def _batch(goal: Goal) -> int:
    """Return the images per call that an arm's budget is for."""
    assert goal.genotype is not None
    resources = read_derivation(goal.genotype.path).resources
    return resources.batch if resources else 1
