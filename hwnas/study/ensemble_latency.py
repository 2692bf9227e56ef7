"""The latencies of an ensemble study, and the wider networks that take as long as its ensembles."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.environment import provenance
from hwnas.study.ensemble_arms import widened_to, wider_base
from hwnas.study.ensemble_models import Architecture, Model
from hwnas.study.latency import Session
from hwnas.study.width_match import matched_widths
from hwnas_profilers.profiler import profiler_for

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from hwnas.core.progress import Progress
    from hwnas.study.ensemble_arms import EnsembleArm, Lineup
    from hwnas.study.ensemble_config import EnsembleConfig
    from hwnas.study.ensemble_models import ModelBuilder
    from hwnas_profilers.records import Statistics

    Measure = Callable[[Iterable[Model]], Mapping[str, Statistics]]


@dataclass(frozen=True, slots=True, kw_only=True)
class WiderNetwork:
    """One network that takes as long as the ensembles of a source in a seed.

    Attributes:
        source: The source.
        seed: The seed.
        architecture: The network.
    """

    source: str
    seed: int
    architecture: Architecture


@dataclass(frozen=True, slots=True, kw_only=True)
class EnsembleLatencies:
    """What was measured.

    Attributes:
        session: All models, measured side by side.
        wider: The wider networks.
    """

    session: Session
    wider: tuple[WiderNetwork, ...]

    def model(self, lineup: Lineup, arm: EnsembleArm, seed: int) -> Model:
        """Return what an arm is in a seed."""
        if arm.role != "wider":
            return lineup.model(arm, seed)
        found = next(each for each in self.wider if (each.source, each.seed) == (arm.source, seed))
        return Model(members=(found.architecture,))

    def measured_ms(self, model: Model) -> float:
        """Return the latency of a model: its median."""
        return self.session.networks[model.label].median_us / 1e3


def measure_latencies(
    config: EnsembleConfig, lineup: Lineup, builder: ModelBuilder, *, progress: Progress
) -> EnsembleLatencies:
    """Find the wider networks and measure everything, on the target.

    Every model is compiled as one engine, as it would be deployed: an ensemble pays for all of its
    members, in whatever way the runtime runs them. Weights are not trained yet: latency does not
    depend on them.

    Raises:
        TargetError: The target cannot be used here.
        ExportError: It refuses a model.
        ConfigError: A network cannot be widened, or its members cannot be combined.
    """
    target, timing = config.target, config.compare.timing
    # One profiler for all rounds: it exports a model once, which takes longer than to time it.
    with profiler_for(target.name, threads=target.threads) as profiler:

        def measure(models: Iterable[Model]) -> dict[str, Statistics]:
            workloads = {model.label: builder.workload(model) for model in models}
            timings = profiler.time_networks([*workloads.values()], timing, progress=progress)
            statistics = (each.statistics for each in timings)
            return dict(zip(workloads, statistics, strict=True))

        wider = match_wider(config, lineup, measure)
        models = [
            lineup.model(arm, seed)
            for arm in lineup.arms
            if arm.role != "wider"
            for seed in config.seeds
        ]
        models += [Model(members=(each.architecture,)) for each in wider]
        session = Session(
            target=target.name,
            threads=target.threads,
            networks=measure(models),
            provenance=provenance(profiler.device, profiler.packages),
        )
    return EnsembleLatencies(session=session, wider=wider)


def match_wider(
    config: EnsembleConfig, lineup: Lineup, measure: Measure
) -> tuple[WiderNetwork, ...]:
    """Find, for each source and seed, the width at which one network takes as long as an ensemble.

    A source has one ensemble per combination, of nearly the same latency: the geometric mean of
    them is what is met, so that none of them is far off. In every round ensembles and candidates
    are measured side by side, as only such latencies compare.

    Args:
        config: The settings.
        lineup: The arms.
        measure: Measures models side by side; returns what was found by their labels.
    """
    places = [(source, seed) for source in lineup.sources for seed in config.seeds]
    targets = [
        tuple(lineup.model(arm, seed) for arm in lineup.ensembles(source))
        for source, seed in places
    ]
    bases = [wider_base(config, lineup.members[place][0]) for place in places]
    # Children of one genotype are the same networks in every seed.
    asked = list(dict.fromkeys(zip(targets, bases, strict=True)))

    def ratios(guesses: Sequence[tuple[int, float]]) -> list[float]:
        candidates = [
            Model(members=(widened_to(asked[index][1], width),)) for index, width in guesses
        ]
        compared = [model for index, _ in guesses for model in asked[index][0]]
        found = measure([*compared, *candidates])

        def log_us(model: Model) -> float:
            return math.log(found[model.label].median_us)

        return [
            math.exp(log_us(candidate) - _mean([log_us(each) for each in asked[index][0]]))
            for candidate, (index, _) in zip(candidates, guesses, strict=True)
        ]

    # Of square law: as many times the work as there are members.
    start = math.sqrt(config.members.count)
    widths = dict(zip(asked, matched_widths(len(asked), ratios, start=start), strict=True))
    return tuple(
        WiderNetwork(
            source=source,
            seed=seed,
            architecture=widened_to(base, widths[target, base]),
        )
        for (source, seed), target, base in zip(places, targets, bases, strict=True)
    )


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
