"""What `hwnas attack` found, as plain data: its JSON file, and what tables and pages show."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from hwnas.robustness.evaluate import Accuracy
from hwnas.robustness.threat import Norm, Protocol
from hwnas_export.torch_from_onnx import TwinParity

if TYPE_CHECKING:
    from hwnas.robustness.criteria import Check

Access = Literal["white-box", "black-box", "white-box twin, black-box engine"]
"""What the attacks could see of the model."""

On = Literal["model", "twin", "engine"]
"""What a figure is of: a model that is only one thing, a PyTorch twin, or an engine."""

CLEAN, WORST_CASE = "clean", "worst case"


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackLine:
    """One line of the table of attacks.

    Attributes:
        attack: Its name; `clean` for none, `worst case` for all at once, sample by sample.
        on: What was asked.
        accuracy: Share of all samples still right.
        low: Lower end of its 95 % Wilson interval.
        high: Upper end of it.
        n: Samples.
        norm: Norm of the perturbation.
        eps: Its bound, as it was written.
        protocol: The space that eps is meant in.
        seed: Seed of all draws.
        seconds: Time that it took; None where it only counts what others did.
        queries: Images that a black box asked about; None for others.
        settings: What it ran with.
    """

    attack: str
    on: On
    accuracy: float
    low: float
    high: float
    n: int
    norm: Norm
    eps: str
    protocol: Protocol
    seed: int
    seconds: float | None = None
    queries: int | None = None
    settings: str = ""

    @property
    def interval(self) -> Accuracy:
        """The accuracy with its interval."""
        return Accuracy.from_counts(round(self.accuracy * self.n), self.n)


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckLine:
    """One check: of the model where `eps` is empty, else of the evaluation at an eps.

    Attributes:
        name: Its name.
        on: What was checked.
        eps: At which eps, as it was written; empty for checks of the model itself.
        passed: How it came out.
        figure: What was found; None where it could not be computed.
        allowed: The bound, with its unit.
        meaning: Of a failed check, which figures mean nothing; None of one that was passed.
    """

    name: str
    on: On
    eps: str
    passed: bool
    figure: float | None
    allowed: str
    meaning: str | None

    @classmethod
    def from_check(cls, check: Check, *, on: On, eps: str = "") -> CheckLine:
        """Make a line of a check."""
        return cls(
            name=check.name,
            on=on,
            eps=eps,
            passed=check.passed,
            figure=check.figure,
            allowed=f"{check.relation} {check.limit:.4g} {check.unit}",
            meaning=None if check.passed else check.meaning,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class AttackRecord:
    """Everything that was found on one model.

    Attributes:
        model: What it was named by.
        kind: What that is, e.g. `bundle` or `ONNX model`.
        access: What the attacks could see of it.
        reason: Why there is no white box, where there is none.
        parity: The twin against the engine; None where there are not both.
        data: The images' source.
        classes: Its classes.
        majority: Share of the most frequent class: what a constant answer reaches.
        lines: The table.
        checks: The checks of the model and of the evaluation.
    """

    model: str
    kind: str
    access: Access
    reason: str
    parity: TwinParity | None
    data: str
    classes: int
    majority: float
    lines: tuple[AttackLine, ...]
    checks: tuple[CheckLine, ...]

    @property
    def failed(self) -> tuple[CheckLine, ...]:
        """The checks that were not passed."""
        return tuple(check for check in self.checks if not check.passed)
