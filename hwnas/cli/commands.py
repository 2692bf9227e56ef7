"""The commands: their order, their one-line helps, and which parameters are given by position.

A command of a group is named by its whole path, `table show`; its function is `table_show`.
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
        summary="Measure a search space's operators into a latency table, or one model operator "
        "by operator.",
    ),
    "calibrate": CommandEntry(
        summary="Time whole networks on the target and fit the latency table to them.",
    ),
    "table show": CommandEntry(
        summary="Show what a latency table holds, how it was measured and how well it predicts.",
        positional=("table",),
    ),
    "table diff": CommandEntry(
        summary="Compare two latency tables: conditions, operators and the ratio of their medians.",
        positional=("first", "second"),
    ),
    "table merge": CommandEntry(
        summary="Merge latency tables of one space that were measured on one device and target.",
        positional=("tables",),
    ),
    "table validate": CommandEntry(
        summary="Check latency tables, and name every fault with its line.",
        positional=("tables",),
    ),
    "teacher": CommandEntry(
        summary="Train a robust teacher, or take one that exists.",
    ),
    "search": CommandEntry(
        summary="Search the space for a robust network within a latency budget.",
    ),
    "derive": CommandEntry(
        summary="Derive the exact best architecture under a latency budget, and measure it.",
    ),
    "pareto": CommandEntry(
        summary="Find the whole Pareto front of a search on a latency table, exactly.",
        positional=("search",),
    ),
    "train": CommandEntry(
        summary="Train the derived network with the tutors that the search chose.",
    ),
    "export": CommandEntry(
        summary="Export a trained network to an engine, and pack it into a bundle.",
    ),
    "rebuild": CommandEntry(
        summary="Make a bundle's engines anew on this machine, from its ONNX models, into a new "
        "bundle.",
        positional=("bundle",),
    ),
    "verify": CommandEntry(
        summary="Check engines: parity, speed, accuracy and robustness after export.",
        positional=("bundle",),
    ),
    "deploy": CommandEntry(
        summary="Send a bundle's engine to a board, and build and verify it there.",
        positional=("bundle", "board"),
    ),
    "bench": CommandEntry(
        summary="Time a bundle's engines beside PyTorch, torch.compile, default ONNX Runtime and "
        "OpenVINO.",
        positional=("bundle",),
    ),
    "attack": CommandEntry(
        summary="Attack a model, and check that the attacks can be trusted.",
        positional=("model",),
    ),
    "certify": CommandEntry(
        summary="Prove for how many test images, and how far around each, a network cannot be "
        "fooled.",
        positional=("model",),
    ),
    "report": CommandEntry(
        summary="Write the HTML report of a run.",
        positional=("run",),
    ),
    "run": CommandEntry(
        summary="Go from a device to a verified bundle: all stages, resumed where they stopped.",
        positional=("config",),
    ),
    "study run": CommandEntry(
        summary="Run a study: every arm in every seed, judged alike, with intervals.",
        positional=("study",),
    ),
    "study show": CommandEntry(
        summary="Show what a study has found so far, and write its table, pictures and page again.",
        positional=("study",),
    ),
    "study ensemble": CommandEntry(
        summary="Compare ensembles with one wider network of equal latency, and with each other.",
    ),
}

GROUPS = {
    "table": "Show, compare, merge and check latency tables.",
    "study": "Run arms over seeds, judged alike, and compare them.",
}
"""Commands that only hold others, with their one-line helps."""


def function_name(command: str) -> str:
    """Return the name of a command's function in `hwnas.api`.

    >>> function_name("table show")
    'table_show'
    """
    return command.replace(" ", "_")


def entries_of(group: str) -> dict[str, str]:
    """Return names and one-line helps of what a group holds: commands, and groups in their place.

    Args:
        group: Path of the group; empty for all of `hwnas`.

    >>> list(entries_of("table"))
    ['show', 'diff', 'merge', 'validate']
    """
    prefix = f"{group} " if group else ""
    entries: dict[str, str] = {}
    for command, entry in COMMANDS.items():
        if command.startswith(prefix):
            name, _, inner = command.removeprefix(prefix).partition(" ")
            entries[name] = GROUPS[prefix + name] if inner else entry.summary
    return entries
