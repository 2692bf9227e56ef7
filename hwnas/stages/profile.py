"""`hwnas profile`: operators -> latency table; or a model -> whose latency it is."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from hwnas.core.errors import ConfigError
from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.space.chain_space import ChainSpace
    from hwnas_profilers.breakdown.values import Breakdown
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.timing import TimingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileResult:
    """A latency table's extent, and how quiet the machine was.

    Attributes:
        table: Its file.
        target: What was measured on.
        device: The device's name.
        space: The search space.
        operators: Operators that are measured.
        pairs: Pairs of neighbors that are measured as one.
        unsupported: Operators that the runtime refuses: they are out of the space.
        fastest_us: Median of the fastest operator.
        slowest_us: Median of the slowest one.
        disturbed_rounds: Rounds that were repeated as the machine was disturbed, over all runs.
        noisy_rounds: Rounds that were disturbed but kept, as too many were.
    """

    table: str
    target: str
    device: str
    space: str
    operators: int
    pairs: int
    unsupported: int
    fastest_us: float
    slowest_us: float
    disturbed_rounds: int
    noisy_rounds: int


def profile(
    space: str | None = None,
    target: str = "onnxruntime-cpu",
    out: Path | None = None,
    *,
    model: Path | None = None,
    image_shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
    input_shape: tuple[int, ...] | None = None,
    batch: int = 1,
    threads: int = 1,
    energy: bool = False,
    quick: bool = False,
    precise: bool = False,
    relative_width: float | None = None,
    max_samples: int | None = None,
    seed: int = 0,
    progress: Progress = SILENT,
) -> ProfileResult | Breakdown:
    """Measure a search space's operators into a latency table, or one model operator by operator.

    A table that exists is continued: what it holds is not measured again.

    Args:
        space: Name of the search space, e.g. rnas-cl-s3.
        target: What to measure on, e.g. onnxruntime-cpu, or ssh://pi@board/onnxruntime-cpu for a
            board; `hwnas doctor` lists them.
        out: The table's file, JSON Lines. With --model a folder for its figures and picture.
        model: Instead of a space: an ONNX model, a torch program (.pt2), or code that makes a
            module (file.py:function, package.module:function). Says whose latency it is, as the
            runtime fuses it.
        image_shape: Channels, height and width of an image; by default the space's own.
        classes: Number of classes; by default the space's own.
        input_shape: With --model: the shape of its input, where the model leaves it open.
        batch: Images per call.
        threads: Threads within an operator.
        energy: Meter the energy of each operator too, where the target can tell; takes seconds per
            operator.
        quick: A first look: 5 % intervals.
        precise: For a table that is to be kept: 0.5 % intervals.
        relative_width: An operator is finished once the 95 % interval of its median is narrower
            than this share of the median; 0.02 by default.
        max_samples: ... or at this many samples; 300 by default.
        seed: Shuffles the order of measuring.
        progress: Where to report.

    Returns:
        What the table holds; with --model its operators' latencies.

    Raises:
        ConfigError: The space is unknown, or a setting out of range.
        TargetError: The target is unknown, cannot be used here, or a board cannot be reached.
        LatencyTableError: The file is another table.
        InputFileError: The model cannot be read.
    """
    settings = timing_settings(
        quick=quick,
        precise=precise,
        relative_width=relative_width,
        max_samples=max_samples,
        seed=seed,
    )
    asked = quick or precise or relative_width is not None or max_samples is not None
    if (space is None) == (model is None):
        raise ConfigError(
            "profile takes a search space or a model, one of both",
            hint="hwnas profile --space rnas-cl-s3 --target onnxruntime-cpu --out table.jsonl, "
            "or hwnas profile --model model.onnx",
        )
    if model is not None:
        from hwnas.stages.breakdown import make_breakdown

        return make_breakdown(
            model,
            target,
            out,
            input_shape=input_shape,
            threads=threads,
            batch=batch,
            # A single model is timed as long as whole networks are, unless asked otherwise.
            settings=settings if asked else None,
            progress=progress,
        )
    assert space is not None
    if out is None:
        raise ConfigError(
            "the table needs a file", hint=f"hwnas profile --space {space} --out table.jsonl"
        )
    from hwnas.space.registry import space_from_spec
    from hwnas.space.spec import space_spec
    from hwnas_profilers.targets import parse_target

    searched = space_from_spec(
        space_spec(space, image_shape=image_shape, classes=classes),
        batch=batch,
        dtype=parse_target(target).runtime.precision,
    )
    table = make_table(
        searched, target, out, threads=threads, settings=settings, energy=energy, progress=progress
    )
    medians = [measured.statistics.median_us for measured in table.measurements.values()]
    return ProfileResult(
        table=str(out),
        target=target,
        device=table.header.provenance.device.name,
        space=space,
        operators=len(medians),
        pairs=len(table.pairs),
        unsupported=len(table.unsupported),
        fastest_us=min(medians),
        slowest_us=max(medians),
        disturbed_rounds=sum(session.disturbed_rounds for session in table.sessions),
        noisy_rounds=sum(session.noisy_rounds for session in table.sessions),
    )


def timing_settings(
    *,
    quick: bool = False,
    precise: bool = False,
    relative_width: float | None = None,
    max_samples: int | None = None,
    seed: int = 0,
) -> TimingSettings:
    """Return a preset of timing settings, with what is given put before it.

    Raises:
        ConfigError: Both presets are asked for, or a setting is out of range.
    """
    from dataclasses import replace

    from hwnas_profilers.timing import TimingSettings

    if quick and precise:
        raise ConfigError("--quick and --precise contradict each other", hint="give one of them")
    if quick:
        settings = TimingSettings.quick(seed=seed)
    else:
        settings = TimingSettings.precise(seed=seed) if precise else TimingSettings(seed=seed)
    if relative_width is not None:
        settings = replace(settings, relative_width=relative_width)
    if max_samples is not None:
        settings = replace(
            settings, max_samples=max_samples, min_samples=min(settings.min_samples, max_samples)
        )
    return settings


def make_table(
    space: ChainSpace,
    target: str,
    out: Path,
    *,
    threads: int,
    settings: TimingSettings,
    energy: bool = False,
    progress: Progress = SILENT,
) -> LatencyTable:
    """Measure what a table does not hold yet of a space's operators. Raises as `profile`."""
    import msgspec

    from hwnas.core.environment import provenance
    from hwnas_profilers.operators import profile_operators
    from hwnas_profilers.profiler import profiler_for
    from hwnas_profilers.records import TableHeader

    with profiler_for(target, threads=threads) as profiler:
        reached = profiler.target
        header = TableHeader(
            target=reached.name,
            space=space.spec.name,
            space_spec=msgspec.to_builtins(space.spec),
            space_fingerprint=space.spec.fingerprint,
            threads=threads,
            batch=space.batch,
            dtype=reached.runtime.precision,
            settings=asdict(settings),
            provenance=provenance(profiler.device, profiler.packages),
            host=reached.host,
        )
        return profile_operators(
            space.operators(),
            profiler=profiler,
            path=out,
            header=header,
            settings=settings,
            energy=energy,
            progress=progress,
        )
