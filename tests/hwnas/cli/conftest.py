"""A made-up public function behind a real command name, and a way to call the command line."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import click.testing
import pytest

from hwnas import api
from hwnas.cli.main import cli
from hwnas.core.progress import SILENT, Progress


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    twin: float
    engine: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    out: Path
    measured_ms: float
    accuracy: Inner
    gates: dict[str, bool]
    losses: tuple[float, ...] = tuple(map(float, range(40)))
    note: str | None = None
    calls: dict[str, Any] = field(default_factory=dict)


def outcome(**calls: Any) -> Outcome:
    return Outcome(
        out=Path("there"),
        measured_ms=1.25,
        accuracy=Inner(twin=0.9, engine=0.89),
        gates={"parity": True},
        calls=calls,
    )


def fake(
    space: str,
    out: Path,
    *,
    budget_ms: float = 2.5,
    image_shape: tuple[int, int, int] | None = None,
    factors: tuple[float, ...] = (0.5, 1.0),
    mode: Literal["fast", "exact"] = "fast",
    force: bool = False,
    seed: int = 0,
    progress: Progress = SILENT,
) -> Outcome:
    """Do a made-up thing.

    It is only
    for tests.

    Args:
        space: The space,
            by name.
        out: Where to write.
        budget_ms: A budget.
        image_shape: Channels, height, width.
        factors: Some factors.
        mode: How.
        force: Go on regardless.
        seed: A seed.
        progress: Where to report.

    Returns:
        What was done.
    """
    with progress.task("faking", total=2) as task:
        task.advance()
        task.advance(note="half")
    print("a library that prints")  # noqa: T201 - which the command line must keep off stdout
    return outcome(
        space=space,
        out=out,
        budget_ms=budget_ms,
        image_shape=image_shape,
        factors=factors,
        mode=mode,
        force=force,
        seed=seed,
    )


Install = Callable[[Callable[..., Any]], None]
Call = Callable[..., click.testing.Result]


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Put a function in the place of `hwnas.api.profile`."""

    def put(function: Callable[..., Any]) -> None:
        monkeypatch.setitem(vars(api), "profile", function)

    return put


@pytest.fixture
def hwnas() -> Call:
    """Call the command line in this process."""

    def call(*arguments: str, **environment: str) -> click.testing.Result:
        return click.testing.CliRunner().invoke(cli, arguments, env=environment, prog_name="hwnas")

    return call


@pytest.fixture
def profile(install: Install, hwnas: Call) -> Call:
    """Call `hwnas profile` with the made-up function behind it."""
    install(fake)

    def call(*arguments: str, **environment: str) -> click.testing.Result:
        return hwnas("profile", *arguments, **environment)

    return call
