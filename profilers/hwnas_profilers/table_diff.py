"""Two latency tables side by side: what was measured where, and how far the figures are apart."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from hwnas_profilers.table import conditions

if TYPE_CHECKING:
    from hwnas_profilers.records import Measurement, Statistics, TableHeader
    from hwnas_profilers.table import LatencyTable
    from hwnas_profilers.workload import OperatorKey

Comparison: TypeAlias = Literal["same conditions", "targets", "devices", "spaces"]

VERDICTS: dict[Comparison, str] = {
    "same conditions": "the same space on the same target and device: where they differ it is "
    "time, versions or noise",
    "targets": "one space on one device, but another target or other settings",
    "devices": "a comparison of devices: neither table speaks for the other's",
    "spaces": "tables of different spaces: only the operators that both have are compared",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A condition in which two tables differ.

    Attributes:
        condition: Its name.
        first: Its value in the first table; empty where it has none.
        second: Its value in the second one.
        decisive: Whether figures of both cannot be mixed for it.
    """

    condition: str
    first: str
    second: str
    decisive: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioRow:
    """An operator that both tables have.

    Attributes:
        operator: Its name; in the first table where precision or batch differ.
        first_us: Its median in the first table.
        second_us: Its median in the second one.
        ratio: Second over first.
        beyond_intervals: Whether the 95 % intervals of both are apart.
    """

    operator: str
    first_us: float
    second_us: float
    ratio: float
    beyond_intervals: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """Second over first, over the operators that both tables have."""

    median: float
    p10: float
    p90: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TableDiff:
    """How two tables differ.

    Attributes:
        first: File of the first table.
        second: File of the second one.
        comparison: What differs at most, of space, device and target.
        comparable: Whether figures of both are of the same space, target and device.
        verdict: The same in words.
        differences: Conditions in which they differ.
        common: Operators that both have.
        only_first: Operators that only the first one has.
        only_second: Operators that only the second one has.
        beyond_intervals: Common operators whose 95 % intervals are apart.
        ratios: Of the medians; None where there is no common operator.
        farthest: The common operators whose medians differ most, as ratios.
        operators_only_first: Names of those that only the first one has.
        operators_only_second: Names of those that only the second one has.
    """

    first: str
    second: str
    comparison: Comparison
    comparable: bool
    verdict: str
    differences: tuple[Difference, ...]
    common: int
    only_first: int
    only_second: int
    beyond_intervals: int
    ratios: Ratios | None
    farthest: tuple[RatioRow, ...]
    operators_only_first: tuple[str, ...]
    operators_only_second: tuple[str, ...]


def diff_tables(first: LatencyTable, second: LatencyTable, *, top: int = 10) -> TableDiff:
    """Compare two tables.

    All operators of a table have its batch and precision, so operators are matched without them:
    tables of two precisions or batches can be compared too.

    Args:
        first: One table.
        second: The other.
        top: How many of the operators that differ most to return.
    """
    mine, theirs = _matched(first), _matched(second)
    common = [
        _ratio_row(measurement, theirs[key]) for key, measurement in mine.items() if key in theirs
    ]
    ratios = np.array([row.ratio for row in common])
    comparison = _comparison(first.header, second.header)
    only_first = tuple(str(each.key) for key, each in mine.items() if key not in theirs)
    only_second = tuple(str(each.key) for key, each in theirs.items() if key not in mine)
    return TableDiff(
        first=str(first.path),
        second=str(second.path),
        comparison=comparison,
        comparable=comparison == "same conditions",
        verdict=VERDICTS[comparison],
        differences=condition_differences(first.header, second.header),
        common=len(common),
        only_first=len(only_first),
        only_second=len(only_second),
        beyond_intervals=sum(row.beyond_intervals for row in common),
        ratios=_ratios(ratios) if common else None,
        farthest=tuple(sorted(common, key=lambda row: -abs(math.log(row.ratio)))[:top]),
        operators_only_first=only_first,
        operators_only_second=only_second,
    )


def condition_differences(first: TableHeader, second: TableHeader) -> tuple[Difference, ...]:
    """Return every condition in which two tables differ, the decisive ones first."""
    differences = []
    for decisive, recorded in ((True, _decisive), (False, _recorded)):
        mine, theirs = recorded(first), recorded(second)
        differences += [
            Difference(
                condition=name,
                first=mine.get(name, ""),
                second=theirs.get(name, ""),
                decisive=decisive,
            )
            for name in dict.fromkeys((*mine, *theirs))
            if mine.get(name) != theirs.get(name)
        ]
    return tuple(differences)


def _decisive(header: TableHeader) -> dict[str, str]:
    """Return what must be equal for figures to be mixed."""
    space = {"space": header.space, "space_fingerprint": header.space_fingerprint}
    return {**space, **{name: str(value) for name, value in conditions(header).items()}}


def _recorded(header: TableHeader) -> dict[str, str]:
    """Return what is recorded beside: time, versions, settings."""
    provenance = header.provenance
    device = provenance.device
    return {
        "host": header.host,
        "utc": provenance.utc,
        "system": device.system,
        "machine": device.machine,
        "cores": str(device.cores),
        "governor": device.governor,
        "driver": device.driver,
        **{f"device {name}": value for name, value in device.facts.items()},
        "hwnas": provenance.hwnas,
        "git_commit": provenance.git_commit,
        "python": provenance.python,
        **provenance.packages,
        **{f"setting {name}": str(value) for name, value in header.settings.items()},
    }


def _comparison(first: TableHeader, second: TableHeader) -> Comparison:
    mine, theirs = _decisive(first), _decisive(second)
    different = {name for name in mine if mine[name] != theirs[name]}
    if "space_fingerprint" in different:
        return "spaces"
    if "device" in different:
        return "devices"
    return "targets" if different else "same conditions"


def _matched(table: LatencyTable) -> dict[OperatorKey, Measurement]:
    return {
        replace(key, batch=1, dtype=""): measurement
        for key, measurement in table.measurements.items()
    }


def _ratio_row(first: Measurement, second: Measurement) -> RatioRow:
    mine, theirs = first.statistics, second.statistics
    return RatioRow(
        operator=str(first.key),
        first_us=mine.median_us,
        second_us=theirs.median_us,
        ratio=theirs.median_us / mine.median_us,
        beyond_intervals=_are_apart(mine, theirs),
    )


def _are_apart(first: Statistics, second: Statistics) -> bool:
    return first.high_us < second.low_us or second.high_us < first.low_us


def _ratios(ratios: np.ndarray[tuple[int], np.dtype[np.float64]]) -> Ratios:
    p10, median, p90 = map(float, np.quantile(ratios, (0.1, 0.5, 0.9)))
    return Ratios(median=median, p10=p10, p90=p90)
