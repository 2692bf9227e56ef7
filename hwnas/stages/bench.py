"""`hwnas bench`: a bundle's engines beside what one would run without them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.deploy.race import Absence, Lane
    from hwnas.deploy.records import EngineCard
    from hwnas.stages.bundle import Bundle
    from hwnas_profilers.timing import TimingSettings

KIND = "bench"
RECORD_FILE = "bench.json"
PICTURE_FILE = "bench.svg"

MOST_NOISY = 0.5
"""Where more than this share of the rounds was disturbed, ratios say little."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchLine:
    """One contestant at one size of batch: a row of the table.

    Attributes:
        batch: Images per call.
        name: An engine's target, or a rival.
        precision: Of its arithmetic.
        threads: Threads within an operator; 0 where the runtime chooses.
        median_us: Median latency of a call.
        low_us: Lower end of the median's 95 % interval.
        high_us: Upper end of it.
        p10_us: 10th percentile.
        p90_us: 90th percentile.
        n: Samples.
        images_per_s: Throughput, calls one after the other.
        times_eager: How many times as fast as eager PyTorch at this batch; None where that was not
            timed.
        ready_s: Seconds until its first outputs: loading, compiling and one call.
    """

    batch: int
    name: str
    precision: str
    threads: int
    median_us: float
    low_us: float
    high_us: float
    p10_us: float
    p90_us: float
    n: int
    images_per_s: float
    times_eager: float | None
    ready_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchResult:
    """What was found.

    Attributes:
        bundle: Its folder.
        device: The processor's name.
        lines: The table.
        not_timed: Who was not timed, and why.
        rounds: Rounds of the timing.
        noisy_rounds: Those of them in which other programs disturbed the machine.
        out: Folder of figures and picture; None where none was asked for.
    """

    bundle: str
    device: str
    lines: tuple[BenchLine, ...]
    not_timed: tuple[Absence, ...]
    rounds: int
    noisy_rounds: int
    out: str | None


def bench(
    bundle: Path,
    *,
    batches: tuple[int, ...] = (1, 8, 64),
    targets: tuple[str, ...] | None = None,
    out: Path | None = None,
    relative_width: float = 0.01,
    compile_limit_s: float = 120.0,
    seed: int = 0,
    progress: Progress = SILENT,
) -> BenchResult:
    """Time a bundle's engines beside PyTorch, torch.compile, default ONNX Runtime and OpenVINO.

    Latency and throughput of all are measured in one interleaved run per size of batch, with the
    same number of threads (and default ONNX Runtime with its own number too), on this machine.
    Outputs are compared before: who computes something else is named, and not timed.

    Args:
        bundle: Folder that `hwnas export` or `hwnas run` wrote.
        batches: Images per call.
        targets: Which of the bundle's engines, by target; by default all.
        out: Folder for all samples as JSON and a picture; by default nothing is written. A
            benchmark that stands there is replaced, anything else is refused.
        relative_width: A latency is known well enough once the 95 % interval of its median is
            narrower than this share of the median.
        compile_limit_s: Seconds that torch.compile gets for each size of batch; 0 leaves it out.
        seed: Of the random pixels that all are given.
        progress: Where to report.

    Returns:
        The table.

    Raises:
        ArtifactError: The bundle is none, or a file of it was changed; or another stage's artifact
            stands in `out`.
        TargetError: The bundle holds no engine for a target.
        ConfigError: A setting is out of range.
        InputFileError: Something else stands in `out`.
    """
    import dataclasses

    from hwnas.core.artifacts import (
        MANIFEST,
        ManifestDraft,
        check_place,
        new_artifact,
        read_manifest,
        sha256_of_file,
    )
    from hwnas.core.decoding import encode_json
    from hwnas.core.environment import provenance, this_device
    from hwnas.core.errors import ConfigError
    from hwnas.deploy.race import race
    from hwnas.deploy.rivals import engines_of, rivals_of
    from hwnas.stages.bundle import open_bundle
    from hwnas.stages.calls import call_text

    if compile_limit_s < 0:
        raise ConfigError(f"compile_limit_s is {compile_limit_s}, not at least 0")
    if seed < 0:
        raise ConfigError(f"seed is {seed}, not at least 0")
    settings = timing_of(relative_width, seed)
    if out is not None:
        check_place(out)
        if (out / MANIFEST).is_file():
            read_manifest(out, kind=KIND)
    opened = open_bundle(bundle)
    card = opened.card
    engines = engines_of(bundle, _cards(bundle, opened, targets))
    rivals = rivals_of(
        opened.twin, opened.model, card.image_shape, threads=card.threads, engines=engines
    )
    found = race(
        (*engines, *rivals),
        opened.twin,
        card.image_shape,
        batches=batches,
        threads=card.threads,
        settings=settings,
        compile_limit_s=compile_limit_s,
        seed=seed,
        progress=progress,
    )
    if found.noisy_rounds > MOST_NOISY * found.rounds:
        progress.say(
            f"bench: the machine was busy in {found.noisy_rounds} of {found.rounds} rounds. Calls "
            "that take longer are interrupted more often: do not quote these ratios"
        )
    result = BenchResult(
        bundle=str(bundle),
        device=this_device().name,
        lines=lines_of(found.lanes),
        not_timed=found.absent,
        rounds=found.rounds,
        noisy_rounds=found.noisy_rounds,
        out=None if out is None else str(out),
    )
    if out is None:
        return result

    from hwnas.report.bench_picture import bench_svg

    draft = ManifestDraft(
        kind=KIND,
        call=call_text(
            "bench",
            bundle=bundle,
            batches=batches,
            targets=targets,
            out=out,
            relative_width=relative_width,
            compile_limit_s=compile_limit_s,
            seed=seed,
        ),
        settings={"timing": dataclasses.asdict(settings)},
        inputs={"bundle": sha256_of_file(bundle / MANIFEST)},
    )
    document = {"race": found, "settings": settings, "provenance": provenance()}
    with new_artifact(out, draft) as folder:
        (folder / RECORD_FILE).write_bytes(encode_json(document, indent=1))
        (folder / PICTURE_FILE).write_bytes(bench_svg(found.lanes, result.device))
    return result


def timing_of(relative_width: float, seed: int) -> TimingSettings:
    """Return how long is timed: samples of half a millisecond, as of whole networks.

    Raises:
        ConfigError: The width is no share.
    """
    from hwnas_profilers.timing import TimingSettings

    return TimingSettings(relative_width=relative_width, min_sample_us=500.0, seed=seed)


def lines_of(lanes: tuple[Lane, ...]) -> tuple[BenchLine, ...]:
    """Return the rows of a race's table."""
    from hwnas.deploy.rivals import EAGER

    eager_us = {lane.batch: lane.latency.median_us for lane in lanes if lane.name == EAGER}
    return tuple(
        BenchLine(
            batch=lane.batch,
            name=lane.name,
            precision=lane.precision,
            threads=lane.threads,
            median_us=lane.latency.median_us,
            low_us=lane.latency.low_us,
            high_us=lane.latency.high_us,
            p10_us=lane.latency.p10_us,
            p90_us=lane.latency.p90_us,
            n=lane.latency.n,
            images_per_s=lane.images_per_s,
            times_eager=(
                eager_us[lane.batch] / lane.latency.median_us if lane.batch in eager_us else None
            ),
            ready_s=lane.ready_s,
        )
        for lane in lanes
    )


def _cards(bundle: Path, opened: Bundle, targets: tuple[str, ...] | None) -> tuple[EngineCard, ...]:
    """Return the sidecars of the engines that are asked for."""
    from hwnas.core.errors import TargetError
    from hwnas.deploy.engines import engine_card, engine_cards
    from hwnas.deploy.rivals import only_engine
    from hwnas.stages.bundle import MODEL_FILE
    from hwnas_profilers.targets import parse_target

    cards = engine_cards(bundle)
    if cards:
        return cards if targets is None else tuple(engine_card(bundle, name) for name in targets)
    card = opened.card
    # Of a board, the same runtime is timed here.
    target = parse_target(card.target).name
    for name in targets or ():
        if name != target:
            raise TargetError(f"{bundle} holds no engine for target `{name}`",
                              hint=f"it holds: {target}")  # fmt: skip
    return (
        only_engine(
            target,
            opened.model,
            file=MODEL_FILE,
            threads=card.threads,
            class_names=card.class_names,
            image_shape=card.image_shape,
        ),
    )
