"""`hwnas report`: a run as one HTML page."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportResult:
    """Where the report is."""

    report: str


def report(run: Path, *, out: Path | None = None) -> ReportResult:
    """Write the HTML report of a run.

    Args:
        run: Folder of `hwnas run`; verification must have been reached.
        out: The page's file; by default `report.html` in the run's folder.

    Returns:
        Where the page is.

    Raises:
        InputFileError: The run has not got as far as its verification.
    """
    from hwnas.core.artifacts import write_atomically
    from hwnas.report.page import page_from_run

    out = out or run / "report.html"
    write_atomically(out, page_from_run(run).encode())
    return ReportResult(report=str(out))
