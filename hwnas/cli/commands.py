"""The commands: their order, their one-line helps, and which parameters are given by position.

A literal table, so that `hwnas --help` imports no command. A test holds it equal to `hwnas.api`.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class CommandEntry:
    """What is known of a command without importing it.

    Attributes:
        summary: First line of the function's docstring.
        positional: Parameters given by position; all others are options.
    """

    summary: str
    positional: tuple[str, ...] = ()


COMMANDS = {
    "doctor": CommandEntry(
        summary="Say which targets can be used here and, for each that cannot, what to install.",
    ),
    "profile": CommandEntry(
        summary="Measure every operator of a search space on a target, into a latency table.",
    ),
    "calibrate": CommandEntry(
        summary="Time whole networks on the target and fit the latency table to them.",
    ),
    "teacher": CommandEntry(
        summary="Train a robust teacher, or take one from a file of weights.",
    ),
    "search": CommandEntry(
        summary="Search the space for a robust network within a latency budget.",
    ),
    "derive": CommandEntry(
        summary="Derive the exact best architecture under a latency budget, and measure it.",
    ),
    "train": CommandEntry(
        summary="Train the derived network with the tutors that the search chose.",
    ),
    "export": CommandEntry(
        summary="Export a trained network to an engine, and pack it into a bundle.",
    ),
    "verify": CommandEntry(
        summary="Check a bundle's engine: parity, latency, accuracy and robustness.",
        positional=("bundle",),
    ),
    "report": CommandEntry(
        summary="Write the HTML report of a run.",
        positional=("run",),
    ),
    "run": CommandEntry(
        summary="Go from a device to a verified bundle: all stages, resumed where they stopped.",
        positional=("config",),
    ),
}
