"""Gates: a figure, the tolerance that it must keep, and what it means when it does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hwnas.core.errors import GateFailedError
from hwnas.robustness import criteria
from hwnas.verify.tolerances import Tolerances

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

__all__ = ["Gate", "Tolerances", "at_least", "at_most", "gate_of_check", "require", "require_each"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One gate and how it came out.

    Attributes:
        name: Its name, as in reports and scripts.
        passed: Whether the figure keeps the tolerance.
        figure: What was found; None where it could not be computed, which never passes.
        relation: On which side of the tolerance the figure must be.
        tolerance: The bound; it may itself be met.
        unit: Unit of figure and tolerance.
        meaning: What a failure says about the engine.
    """

    name: str
    passed: bool
    figure: float | None
    relation: Literal["at most", "at least"]
    tolerance: float
    unit: str
    meaning: str

    def __str__(self) -> str:
        figure = "not computable" if self.figure is None else f"{self.figure:.4g}"
        unit = f" {self.unit}" if self.unit else ""
        return f"{self.name}: {figure}, allowed {self.relation} {self.tolerance:.4g}{unit}"


def at_most(name: str, figure: float | None, tolerance: float, *, unit: str, meaning: str) -> Gate:
    """Judge a figure that must not exceed its tolerance."""
    return gate_of_check(criteria.at_most(name, figure, tolerance, unit=unit, meaning=meaning))


def at_least(name: str, figure: float | None, tolerance: float, *, unit: str, meaning: str) -> Gate:
    """Judge a figure that must reach its tolerance."""
    return gate_of_check(criteria.at_least(name, figure, tolerance, unit=unit, meaning=meaning))


def gate_of_check(check: criteria.Check) -> Gate:
    """Make a gate of a check: its limit is a tolerance of the engine."""
    return Gate(
        name=check.name,
        passed=check.passed,
        figure=check.figure,
        relation=check.relation,
        tolerance=check.limit,
        unit=check.unit,
        meaning=check.meaning,
    )


def require(gates: Sequence[Gate]) -> None:
    """Do nothing where all gates are passed.

    Raises:
        GateFailedError: Names each failed gate with its figure, tolerance and meaning.
    """
    require_each({"the engine": gates})


def require_each(engines: Mapping[str, Sequence[Gate]]) -> None:
    """Do nothing where all gates of all engines are passed.

    Args:
        engines: The gates of each engine, by what it is called.

    Raises:
        GateFailedError: Names each engine that failed, and each of its failed gates.
    """
    said = []
    for name, gates in engines.items():
        failed = [gate for gate in gates if not gate.passed]
        if failed:
            lines = "".join(f"\n  {gate}\n    {gate.meaning}" for gate in failed)
            said.append(f"{name} failed {len(failed)} of {len(gates)} gates:{lines}")
    if said:
        raise GateFailedError(
            "\n".join(said),
            hint="export the engine again from its twin; where the figures are what you accept, "
            "widen the tolerances of `verify`",
        )
