"""Pieces of work: each is done once, whoever needs it, and found again by what it depends on."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hwnas.core.artifacts import sha256_of
from hwnas.core.decoding import encode_json

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping
    from pathlib import Path

    from hwnas.core.progress import Progress

_DIGITS = 12


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Work:
    """A piece of work.

    Attributes:
        stage: What it is, in a word.
        key: The stage, and a digest of everything that it depends on: its name in the folder.
        path: What it makes: a folder, or a file.
        done: Says whether that is there, and whole.
        make: Makes it, going on from a checkpoint where there is one.
        needs: What must be done before.
        training: Name of the task whose steps are epochs; empty without any.
        attacks: Whether it is made of batches that are kept one by one, so that it may be stopped
            at any moment.
    """

    stage: str
    key: str
    path: Path
    done: Callable[[], bool]
    make: Callable[[Progress], Any]
    needs: tuple[Work, ...] = ()
    training: str = ""
    attacks: bool = False

    @property
    def spent_path(self) -> Path:
        """Where its time is kept."""
        return self.path.with_name(f"{self.key}.time.json")

    @property
    def failure_path(self) -> Path:
        """Where the error of its last run is kept."""
        return self.path.with_name(f"{self.key}.error.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkFailure:
    """Why a piece of work could not be done.

    Attributes:
        stage: What failed.
        message: The error.
        hint: How to mend it.
        attempt: Tells this failure from those of earlier runs.
    """

    stage: str
    message: str
    hint: str = ""
    attempt: str = field(default="")


def key_of(stage: str, depends_on: Mapping[str, Any], needs: Iterable[str] = ()) -> str:
    """Return the key of a piece of work.

    Args:
        stage: What it is, in a word.
        depends_on: Settings and hashes of inputs: plain data.
        needs: Keys of the work that it takes up.

    >>> key_of("train", {"epochs": 2}) == key_of("train", {"epochs": 2})
    True
    >>> key_of("train", {"epochs": 2}) == key_of("train", {"epochs": 3})
    False
    """
    digest = sha256_of(encode_json({"depends_on": dict(depends_on), "needs": list(needs)}))
    return f"{stage}-{digest[:_DIGITS]}"


def in_order(works: Iterable[Work]) -> list[Work]:
    """Return work and all that it needs, each once and after what it needs itself."""
    ordered: dict[str, Work] = {}

    def visit(work: Work) -> None:
        if work.key not in ordered:
            for need in work.needs:
                visit(need)
            ordered[work.key] = work

    for work in works:
        visit(work)
    return list(ordered.values())
