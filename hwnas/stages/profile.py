"""`hwnas profile`: operators -> latency table."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from hwnas.core.progress import SILENT, Progress

if TYPE_CHECKING:
    from pathlib import Path

    from hwnas.space.spec import SpaceSpec
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.timing import TimingSettings


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileResult:
    """A latency table's extent."""

    table: str
    target: str
    space: str
    operators: int
    fastest_us: float
    slowest_us: float


def profile(
    space: str,
    target: str,
    out: Path,
    *,
    image_shape: tuple[int, int, int] | None = None,
    classes: int | None = None,
    threads: int = 1,
    relative_width: float = 0.02,
    max_samples: int = 300,
    seed: int = 0,
    progress: Progress = SILENT,
) -> ProfileResult:
    """Measure every operator of a search space on a target, into a latency table.

    A table that exists is continued: what it holds is not measured again.

    Args:
        space: Name of the search space, e.g. rnas-cl-s3.
        target: What to measure on, e.g. onnxruntime-cpu; `hwnas doctor` lists them.
        out: The table's file, JSON Lines.
        image_shape: Channels, height and width of an image; by default the space's own.
        classes: Number of classes; by default the space's own.
        threads: Threads within an operator.
        relative_width: An operator is finished once the 95 % interval of its median is narrower
            than this share of the median.
        max_samples: ... or at this many samples.
        seed: Shuffles the order of measuring.
        progress: Where to report.

    Returns:
        What the table holds.

    Raises:
        ConfigError: The space is unknown, or a setting out of range.
        TargetError: The target is unknown or cannot be used here.
        LatencyTableError: The file is another table.
    """
    from hwnas.space.spec import space_spec
    from hwnas_profilers.timing import TimingSettings

    settings = TimingSettings(
        relative_width=relative_width,
        min_samples=min(TimingSettings().min_samples, max_samples),
        max_samples=max_samples,
        seed=seed,
    )
    spec = space_spec(space, image_shape=image_shape, classes=classes)
    table = make_table(spec, target, out, threads=threads, settings=settings, progress=progress)
    medians = [measured.statistics.median_us for measured in table.measurements.values()]
    return ProfileResult(
        table=str(out),
        target=target,
        space=space,
        operators=len(medians),
        fastest_us=min(medians),
        slowest_us=max(medians),
    )


def make_table(
    spec: SpaceSpec,
    target: str,
    out: Path,
    *,
    threads: int,
    settings: TimingSettings,
    progress: Progress = SILENT,
) -> LatencyTable:
    """Measure what a table does not hold yet of a space's operators. Raises as `profile`."""
    import msgspec

    from hwnas.core.environment import provenance
    from hwnas.space.channel_space import ChannelSpace
    from hwnas_profilers.profiler import profile_operators
    from hwnas_profilers.records import TableHeader
    from hwnas_profilers.targets import require_target

    require_target(target)
    space = ChannelSpace(spec)
    header = TableHeader(
        target=target,
        space=spec.name,
        space_spec=msgspec.to_builtins(spec),
        space_fingerprint=spec.fingerprint,
        threads=threads,
        batch=space.batch,
        dtype="fp32",
        settings=asdict(settings),
        provenance=provenance(),
    )
    return profile_operators(
        space.operators(), path=out, header=header, settings=settings, progress=progress
    )
